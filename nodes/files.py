"""Load FLUX Files: FLUX.1 from the single files that ComfyUI's own loaders read, under its memory manager."""

from __future__ import annotations

from pathlib import Path

import folder_paths
from comfy_api.latest import io

from ..reflect_core.presets.choice import DTYPES, ModelChoice
from ..reflect_core.presets.locate import flux_parts
from ..reflect_core.types import UserError
from .model import KEEP, OWN, QUANTISE, TEXT_JOINS, comfy_roots, load, lora_and_options, stamp, tiling
from .schema import Model, rare, schema

USUAL = "the usual one"
"""Of a part: what came in the same file, or the first file with one of its usual names."""
NONE = "none"
PARTS = {"vae": "vae", "text_encoder": "text_encoders", "text_encoder_2": "text_encoders"}
"""Components that a file of the transformer needs beside it, and ComfyUI's kinds of folder for them."""


class ReflectLoadFiles(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            "ReflectLoadFiles", "models",
            [io.Combo.Input("transformer", options=_listed("diffusion_models") or [NONE]),
             *(io.Combo.Input(part, options=[USUAL, *_listed(kind)], default=USUAL) for part, kind in PARTS.items()),
             io.Combo.Input("lora", options=[OWN, *folder_paths.get_filename_list("loras")], default=OWN),
             io.Combo.Input("quantise", options=list(QUANTISE), default=QUANTISE[0]),
             rare(io.Combo, "dtype", options=list(DTYPES), default="auto"),
             rare(io.Combo, "offload", options=list(KEEP), default=KEEP[0]),
             rare(io.Combo, "text_join", options=[OWN, *TEXT_JOINS], default=OWN), tiling()],
            [Model.Output("reflect_model")],
            search_aliases=["reflectionflow", "flux corrector", "gguf", "fp8"])

    @classmethod
    def fingerprint_inputs(cls, transformer: str = "", lora: str = OWN, **others: str) -> str:
        """Loaded anew when a file has changed."""
        try:
            return stamp(find_files(transformer, {part: others.get(part, USUAL) for part in PARTS}, lora))
        except UserError:
            return ""

    @classmethod
    def execute(cls, transformer: str, vae: str, text_encoder: str, text_encoder_2: str, lora: str, quantise: str,
                dtype: str, offload: str, text_join: str, vae_tiling: bool = False) -> io.NodeOutput:
        parts = {"vae": vae, "text_encoder": text_encoder, "text_encoder_2": text_encoder_2}
        key = (transformer, *parts.values(), lora, quantise, dtype, offload, text_join, vae_tiling,
               cls.fingerprint_inputs(transformer, lora, **parts))
        return io.NodeOutput(load("Load FLUX Files", key, offload, lambda: find_files(
            transformer, parts, lora, quantise, dtype, text_join, vae_tiling)))


def find_files(transformer: str, parts: dict[str, str], lora: str = OWN, quantise: str = QUANTISE[0],
               dtype: str = "auto", text_join: str = OWN, vae_tiling: bool = False) -> ModelChoice:
    """The model that the widgets name. UserError for a file that is not there, or of which no header can be read."""
    from ..reflect_core.generators.flux_corrector.single_files import file_parts

    lora_file, options = lora_and_options(lora, dtype, text_join, quantise, vae_tiling)
    file = _file("diffusion_models", transformer)
    held = file_parts(file)
    usual = flux_parts(comfy_roots())
    chosen = {name: path for name, path in usual.items() if name not in (*held, "transformer")}
    chosen |= {name: _file(PARTS[name], said) for name, said in parts.items() if said != USUAL}
    return ModelChoice(str(file), lora_file, dtype=dtype, options=options,
                       parts={name: str(path) for name, path in chosen.items()})


def _listed(kind: str) -> list[str]:
    """The files of weights of a kind, GGUF too, which ComfyUI itself does not list."""
    found = [name for name in folder_paths.get_filename_list(kind) if name.endswith((".safetensors", ".sft"))]
    return found + sorted(path.relative_to(root).as_posix() for root in map(Path, folder_paths.get_folder_paths(kind))
                          for path in [*root.glob("*.gguf"), *root.glob("*/*.gguf")] if path.is_file())


def _file(kind: str, name: str) -> Path:
    """The path of a file that the list shows, and of no other."""
    if name in _listed(kind):
        for root in map(Path, folder_paths.get_folder_paths(kind)):
            if (root / name).is_file():
                return root / name
    raise UserError(f"there is no file {name!r} in models/{kind}; expected one that the list shows; try to reload the "
                    "page after putting the file there")
