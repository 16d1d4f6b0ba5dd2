"""Load Reflective DiT: a bundled model or a folder of one's own, under ComfyUI's memory manager."""

from __future__ import annotations

import copy
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import folder_paths
from comfy_api.latest import io

from ..reflect_core.presets.choice import DTYPES, IN_FP16, ModelChoice
from ..reflect_core.presets.load import is_known_family, preset_names
from ..reflect_core.presets.locate import NotHere
from ..reflect_core.presets.published import how_to_get, published_names
from ..reflect_core.presets.roots import KINDS as PLACES
from ..reflect_core.presets.roots import Roots
from ..reflect_core.types import Generator, Request, UserError
from .progress import speaking_as
from .schema import Model, rare, schema

OWN = "the model's own"
KEEP = ("whole", "streamed")
"""See `memory.py`."""
TEXT_JOINS = ("train", "search")
"""See `CorrectorOptions.text_join`."""
QUANTISE = ("none", "fp8", "nf4")
"""Of `quantise.WAYS` those whose weights may be moved. bitsandbytes keeps the scales of int8 beside the weights, where
they stay behind as a part is moved; torchao's have sizes that ComfyUI misreads."""
KINDS = ("diffusers", "reflect")
"""Folders below ComfyUI's `models` in which a folder with a model_index.json is offered."""
folder_paths.add_model_folder_path("reflect", str(Path(folder_paths.models_dir) / "reflect"))

_loaded: weakref.WeakValueDictionary[tuple, ReflectModel] = weakref.WeakValueDictionary()


class ReflectModel:
    """What goes over the wire: a generator, its parts' patchers, and what a record must know of it."""

    def __init__(self, choice: ModelChoice, keep: str) -> None:
        from .memory import Parts, best_dtype

        weights = sum(path.stat().st_size for path in choice.files("transformer"))
        choice.device, choice.dtype = "cpu", best_dtype(choice.dtype, weights // 2, choice.family in IN_FP16)
        self.choice, self.name = choice, choice.name
        self.generator = _packed(choice, weights) if choice.options.get("quantise") == "nf4" else choice.load()
        held = {name: [part, *self.generator.companions.get(name, ())] for name, part in self.generator.parts.items()}
        self.parts = Parts(held, keep)
        self.generator.places.manager = self.parts.place
        choice.device = str(self.patcher.load_device)
        self._describe()

    @property
    def patcher(self):
        return self.parts.patchers["transformer"]

    def get_models(self) -> list:
        return list(self.parts.patchers.values())

    def request(self, prompt: str, seed: int, steps: int, guidance: float, width: int, height: int) -> Request:
        """A plain request, with the model's own values where the widgets say so, see `schema.drawing`."""
        said = {"steps": steps or None, "guidance": None if guidance < 0 else guidance, "width": width or None,
                "height": height or None}
        values = {name: self.generator.defaults[name] if value is None else value for name, value in said.items()}
        return Request(prompt, seed, **values)

    def with_options(self, **options: Any) -> ReflectModel:
        """The same model and its weights with other options, see `FluxCorrector.with_options`."""
        other = copy.copy(self)
        other.choice = copy.copy(self.choice)
        other.choice.options = {**self.choice.options, **options}
        other.generator = self.generator.with_options(**options)
        other._describe()
        return other

    def _describe(self) -> None:
        self.fingerprint, self.settings = self.choice.fingerprint(), {"model": self.choice.settings()}

    def __repr__(self) -> str:
        return f"<{self.name}>"


def _packed(choice: ModelChoice, size: int) -> Generator:
    """A model that bitsandbytes packs, on the card and one part at a time, and that then waits as all others do."""
    from ..reflect_core.generators.offload import MANAGED
    from .memory import pack_room

    choice.device = pack_room(size)
    return choice.load(offload=MANAGED)


class ReflectLoadModel(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            "ReflectLoadModel", "models",
            [io.Combo.Input("model", options=_offered(), default=preset_names()[0]),
             rare(io.Combo, "lora", options=[OWN, *folder_paths.get_filename_list("loras")], default=OWN),
             rare(io.Combo, "dtype", options=list(DTYPES), default="auto"),
             rare(io.Combo, "offload", options=list(KEEP), default=KEEP[0]),
             rare(io.Combo, "text_join", options=[OWN, *TEXT_JOINS], default=OWN, optional=True),
             rare(io.Combo, "quantise", options=list(QUANTISE), default=QUANTISE[0], optional=True), tiling()],
            [Model.Output("reflect_model")],
            search_aliases=["reflectionflow", "reflect-dit", "flux corrector", "flux kontext", "qwen image edit"])

    @classmethod
    def fingerprint_inputs(cls, model: str = "", lora: str = OWN, **_: Any) -> str:
        """Loaded anew when a file has changed."""
        try:
            return stamp(find_choice(model, lora, "auto"))
        except UserError:
            return ""

    @classmethod
    def execute(cls, model: str, lora: str, dtype: str, offload: str, text_join: str = OWN,
                quantise: str = QUANTISE[0], vae_tiling: bool = False) -> io.NodeOutput:
        key = (model, lora, dtype, offload, text_join, quantise, vae_tiling, cls.fingerprint_inputs(model, lora))
        return io.NodeOutput(load("Load Reflective DiT", key, offload, lambda: find_choice(
            model, lora, dtype, text_join, quantise, vae_tiling)))


def tiling() -> io.Input:
    return rare(io.Boolean, "vae_tiling", default=False, optional=True)


def load(node: str, key: tuple, offload: str, choose: Callable[[], ModelChoice]) -> ReflectModel:
    """A model from its choice, or the one that was loaded for the same key and is still wanted; `node` is who asks."""
    loaded = _loaded.get(key)
    if loaded is None:
        with speaking_as(node):
            if offload not in KEEP:
                raise UserError(f"offload is {offload!r}; expected one of {', '.join(KEEP)}")
            loaded = _loaded[key] = ReflectModel(choose(), offload)
    return loaded


def stamp(choice: ModelChoice) -> str:
    """What changes when one of a model's files does."""
    return ";".join(f"{p.name} {p.stat().st_size} {p.stat().st_mtime_ns}" for p in choice.files())


def find_choice(model: str, lora: str, dtype: str, text_join: str = OWN, quantise: str = QUANTISE[0],
                vae_tiling: bool = False) -> ModelChoice:
    """The model that the widgets name. UserError, saying where to put it, for one that is not there."""
    lora_file, options = lora_and_options(lora, dtype, text_join, quantise, vae_tiling)
    if model in preset_names():
        return ModelChoice(model, lora_file, dtype=dtype, options=options)
    if model in published_names():
        try:
            return ModelChoice(model, lora_file, dtype=dtype, options=options, roots=comfy_roots())
        except NotHere as error:
            raise UserError(how_to_get(model, Path(folder_paths.models_dir))) from error
    folder = _folders().get(model)
    if folder is None:
        raise UserError(f"there is no model {model!r}; expected one that the list shows: a bundled or published model, "
                        "or a folder with a model_index.json below models/diffusers or models/reflect")
    return ModelChoice(str(folder), lora_file, dtype=dtype, options=options)


def lora_and_options(lora: str, dtype: str, text_join: str, quantise: str, vae_tiling: bool
                     ) -> tuple[str | None, dict[str, Any]]:
    """The LoRA's file, None for the model's own, and the options that the widgets say. UserError for wrong values."""
    for name, value, allowed in (("dtype", dtype, DTYPES), ("text join", text_join, (OWN, *TEXT_JOINS)),
                                 ("quantise", quantise, QUANTISE)):
        if value not in allowed:
            raise UserError(f"{name} is {value!r}; expected one of {', '.join(allowed)}")
    # Of these only what is asked for: not every family has them, and old records were made without.
    options: dict[str, Any] = {} if text_join == OWN else {"text_join": text_join}
    options |= {} if quantise == QUANTISE[0] else {"quantise": quantise}
    options |= {"vae_tiling": True} if vae_tiling else {}
    if lora == OWN:
        return None, options
    file = folder_paths.get_full_path("loras", lora)
    if file is None:
        raise UserError(f"there is no LoRA {lora!r} in models/loras; expected one that the list shows; try to "
                        "reload the page after putting the file there")
    return file, options


def comfy_roots() -> Roots:
    """ComfyUI's folders, those of extra_model_paths.yaml with them, and its own tokenizers."""
    known = folder_paths.folder_names_and_paths
    places = {kind: [Path(p) for p in folder_paths.get_folder_paths(kind)] for kind in PLACES if kind in known}
    return Roots.of(places, Path(folder_paths.__file__).parent)


def _offered() -> list[str]:
    return [*preset_names(), *published_names(), *_folders()]


def _folders() -> dict[str, Path]:
    """Models of our families in the registered folders, by the name of their folder."""
    found: dict[str, Path] = {}
    for kind in KINDS:
        for root in folder_paths.get_folder_paths(kind):
            for index in sorted(Path(root).glob("*/model_index.json")):
                if is_known_family(index.parent):
                    found.setdefault(index.parent.name, index.parent)
    return found
