"""The model that somebody names: found and checked early, loaded late, known by a fingerprint."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ..generators.checking import DTYPES, check_device
from ..model_files import INDEX, read_json
from ..types import Generator, UserError
from .load import EDITORS, family_of, load_generator, preset_names, read_settings
from .locate import cached, is_repository, locate
from .published import PUBLISHED
from .roots import Roots, find_roots

ELSEWHERE = {"device": "--device", "dtype": "--dtype", "lora": "--lora", "path": "--model", "name_or_folder": "--model",
             "options": "one --option for each", "parts": "one --part for each"}
"""What loads a model takes these too, but not as options."""
WHOLE = 64 << 20
"""Files up to this size are hashed whole; of larger ones a sample of blocks."""
KINDS = (".safetensors", ".json", ".txt", ".model")
"""Files of a model that decide what it draws."""
IN_FP16 = ("FluxPipeline", "FluxKontextPipeline")
"""Families that compute in fp16 too."""
IN_PARTS = ("FluxPipeline", "SanaPipeline")
"""Families whose components may lie apart from each other."""
BLOCK, BLOCKS = 64 << 10, 256
BASE = "base:"
"""Before the names of the parts of an editor's other model, which draws the first pictures."""
NONE = "none"
"""As an option `base`: without the one that the editor's own reflect.json names."""
MOVABLE = ("base", "offload")
"""Options that a run may go on with another value of: where something is now, and how it is kept."""


class ModelChoice:
    """A model folder with what goes on top of it. UserError at once if there is no such folder or file."""

    def __init__(self, name: str, lora: str | None = None, device: str = "auto", dtype: str = "auto",
                 options: dict[str, Any] | None = None, parts: Mapping[str, str] | None = None,
                 roots: Roots | None = None, corrects: bool = True) -> None:
        """
        Args:
            parts: components that come from elsewhere, by name, each a folder or a file; those of an editor's other
                model with `base:` before the name.
            roots: where to look for a published set; None: where the environment says.
            corrects: False for a model that only draws, so that nobody looks for a corrector's weights.
        """
        self.name = name
        roots = find_roots(None) if roots is None else roots
        self.lora = None if lora is None else Path(lora)
        if self.lora is not None and not self.lora.exists():
            raise UserError(f"{lora}: no such file; expected a corrector's LoRA; try to check the path")
        found = locate(name, roots, self.lora, corrects)
        self.folder = found.path
        """In diffusers layout, or the file that a model's transformer is in."""
        self.lora = found.lora if self.lora is None else self.lora
        own = {part: path for part, path in (parts or {}).items() if not part.startswith(BASE)}
        others = {part.removeprefix(BASE): path for part, path in (parts or {}).items() if part.startswith(BASE)}
        self.parts = found.parts | {part: Path(path).expanduser() for part, path in own.items()}
        for part, path in self.parts.items():
            if path.exists():
                continue
            there = (cached(path.as_posix(), file) for file in ("model_index.json", "config.json"))
            self.parts[part] = next(filter(None, there), path)  # a repository in the Hugging Face cache
            if not self.parts[part].exists():
                raise UserError(f"--part {part}={path}: no such file or folder; try to check the path")
        self.device, self.dtype = device, dtype
        self.options = dict(options or {})
        for name in self.options:
            if name in ELSEWHERE:
                raise UserError(f"--option {name} is no option of a model; try {ELSEWHERE[name]}")
        self.defaults, self.folder_options = read_settings(self.folder)
        if self.lora is not None:
            # A LoRA may bring the options that it was trained with, on top, see `FluxCorrector.from_folder`.
            self.folder_options |= read_settings(self.lora if self.lora.is_dir() else self.lora.parent)[1]
        self.base: ModelChoice | None = None
        """The other model of an editor."""
        self.own_base = self.options.get("base") is None
        """Whether the editor's reflect.json names it."""
        if corrects and ("base" in self.options or "base" in self.folder_options) and self.edits:
            self.base = find_base(self.folder, self.options.get("base"), self.folder_options.get("base"), others, roots)
        if self.base is not None:
            self.defaults = self.base.defaults  # see `DrawAndEdit`
        elif others:
            raise UserError(f"--part {BASE}{next(iter(others))}={next(iter(others.values()))}: the model {name} has no "
                            "base; expected an editor, and --option base=MODEL too")

    @property
    def family(self) -> str:
        """As the folder's index names it, such as FluxPipeline."""
        if self.folder.is_file():
            return family_of(self.folder)
        return str(read_json(self.folder / "model_index.json", INDEX).get("_class_name"))

    @property
    def in_context(self) -> bool:
        """Whether it is of the SANA family and has Reflect-DiT's weights, in its folder or beside it."""
        if self.family != "SanaPipeline":
            return False
        if self.lora is not None:
            return True
        place = self.parts.get("transformer", self.folder)
        place = place / "transformer" if (place / "model_index.json").is_file() else place
        config = read_json(place / "config.json", "expected the config of a SANA transformer")
        return bool(config.get("reflection"))

    @property
    def edits(self) -> bool:
        """Whether it is an editor, which needs no corrector's weights."""
        return self.family in EDITORS

    @property
    def scripts(self) -> str:
        """What its text encoders read: 'latin' letters, as FLUX's CLIP and T5, or nearly 'any', as Gemma and Qwen."""
        return "any" if self.family.startswith(("Sana", "Qwen")) else "latin"

    @property
    def policy(self) -> str:
        """The search of the paper that the family is of."""
        if self.family != "SanaPipeline":
            return "reflection_flow"
        return "reflect_dit" if self.in_context else "best_of_n"

    def load(self, **options: Any) -> Generator:
        """The generator. `options` go on top of the choice's own and are not part of it."""
        import torch

        if self.device == "auto":
            self.device = "cuda" if torch.cuda.is_available() else "cpu"
        check_device("--device ", self.device)
        if self.dtype == "auto":
            self.dtype = auto_dtype(self.device, self.family)
        check_device("--option encoder_device=", self.options.get("encoder_device"))
        extra: dict[str, Any] = {} if self.lora is None else {"lora": self.lora}
        if self.parts:
            if self.family not in IN_PARTS:
                part = next(iter(self.parts))
                raise UserError(f"--part {part}={self.parts[part]}: a {self.family} is a folder in diffusers layout; "
                                "expected no --part; try the folder of the model")
            extra["parts"] = self.parts
        options = {**self.options, **options, **({} if self.base is None else {"base": self.base})}
        return load_generator(self.folder, device=self.device, dtype=getattr(torch, self.dtype), **extra, **options)

    def settings(self) -> dict[str, Any]:
        """What a record must know to load the same model again; call it after `load`."""
        lora = None if self.lora is None else str(self.lora.absolute())
        # A bundled model keeps its name: another installation has it in another place.
        folder = self.name if self.name in preset_names() else str(self.folder.absolute())
        known = {"folder": folder, "lora": lora, "device": self.device, "dtype": self.dtype, "options": self.options}
        parts = {name: str(path.absolute()) for name, path in self.parts.items()}
        if self.base is not None:
            base = self.base.settings()
            known["options"] = {**self.options, "base": base["folder"]}
            parts |= {BASE + name: path for name, path in base.get("parts", {}).items()}
            known["base"] = {"fingerprint": self.base.fingerprint(), "own": self.own_base}
        if parts:
            known["parts"] = parts
        return known

    def fingerprint(self) -> str:
        """SHA-256 over everything that decides the pictures: weights, configurations, tokenizers, options."""
        digest = hashlib.sha256()
        options = {**self.folder_options, **self.options}
        for name in MOVABLE:  # these decide no picture
            options.pop(name, None)
        digest.update(json.dumps(options, sort_keys=True, default=str).encode())
        if self.base is not None:  # it draws the first pictures, wherever it lies
            digest.update(f"\n{BASE}{self.base.fingerprint()}".encode())
        for name, path in self._files():
            digest.update(f"\n{name} {path.stat().st_size}\n".encode())
            for block in _blocks(path):
                digest.update(block)
        return digest.hexdigest()

    def base_differs(self, settings: Any) -> str:
        """How a record's base was another one than this; '' if it was not. `settings`: as for `from_settings`."""
        known = settings.get("base") if isinstance(settings, dict) else None
        before = known.get("fingerprint") if isinstance(known, dict) else None
        now = None if self.base is None else self.base.fingerprint()
        if now == before:
            return ""
        if now is None:
            return "another model, a base, drew the run's first pictures, and now there is none"
        if before is None:
            return f"the run had no base, and now there is one, {self.base.folder}"
        return (f"the base, {self.base.folder}, is not the model that drew the run's first pictures: its fingerprint "
                f"was {str(before)[:16]!r} and is {now[:16]!r}")

    def _files(self) -> Iterator[tuple[str, Path]]:
        """(name, path) of what is loaded: the folder's components, and the LoRA wherever it lies."""
        if self.folder.is_file():
            yield "model", self.folder
        else:
            yield "model_index.json", self.folder / "model_index.json"
            elsewhere = set(self.parts)
            if self.lora is not None:  # of the SANA family it is a whole transformer
                elsewhere |= {"transformer" if self.family == "SanaPipeline" else "lora"}
            for path in sorted(self.folder.glob("*/**/*")):
                name = path.relative_to(self.folder)
                if path.is_file() and path.suffix in KINDS and name.parts[0] not in elsewhere:
                    yield name.as_posix(), path
        for part, where in sorted(self.parts.items()):
            yield from ((f"{part}/{path.relative_to(where).as_posix()}", path) for path in part_files(part, where))
        if self.lora is not None:
            yield from (("lora/" + path.name, path) for path in self.lora_files())

    def files(self, component: str | None = None) -> list[Path]:
        """All that is read, an editor's other model with it, or the weights of one component."""
        if component is None:
            settings = self.folder / "reflect.json"
            others = [] if self.base is None else self.base.files()
            return [path for _, path in self._files()] + ([settings] if settings.is_file() else []) + others
        where = self.parts.get(component, self.folder if self.folder.is_file() else self.folder / component)
        return [path for path in part_files(component, where) if path.suffix != ".json"]

    def lora_files(self) -> list[Path]:
        """What is read of the corrector's weights: a file, those of a folder, or a whole checkpoint with its config."""
        if self.lora is None or not self.lora.is_dir():
            return [] if self.lora is None else [self.lora]
        if (self.lora / "config.json").is_file():
            return sorted(p for p in self.lora.rglob("*") if p.is_file() and p.suffix in (*KINDS, ".bin"))
        return sorted(self.lora.glob("*.safetensors"))


def auto_dtype(device: str, family: str) -> str:
    """fp32 on a CPU, and bf16 elsewhere. NVIDIA's cards before Ampere compute in bf16 slowly and with far more memory;
    there FLUX has fp16, in which the numbers of other families grow too large."""
    import torch

    if torch.device(device).type == "cpu":
        return "float32"
    old = (torch.device(device).type == "cuda" and torch.version.hip is None
           and torch.cuda.get_device_capability(device) < (8, 0))
    return "float16" if old and family in IN_FP16 else "bfloat16"


def part_files(name: str, where: Path) -> list[Path]:
    """What is read of a component that lies elsewhere: a file, or those of its folder, which may be a whole model's."""
    if where.is_file():
        return [where]
    own = where / name if (where / "model_index.json").is_file() else where
    return sorted(path for path in own.rglob("*") if path.is_file() and path.suffix in KINDS)


def find_base(folder: Path, given: Any, own: Any = None, parts: Mapping[str, str] | None = None,
              roots: Roots | None = None) -> ModelChoice | None:
    """The model that draws an editor's first pictures, by any name that a model has; None for none.

    Args:
        folder: the editor's.
        given: as somebody says it, a `ModelChoice` too; None for `own`.
        own: as the reflect.json in that folder says it, whose paths are relative to it.
        parts: components of it that come from elsewhere.

    Raises UserError for what is no such model, and for an editor that has a base itself.
    """
    if isinstance(given, ModelChoice):
        return given
    base, where = (own, f"{folder / 'reflect.json'}: option base") if given is None else (given, "option base")
    if base is None or base == NONE:
        return None
    if not isinstance(base, (str, Path)) or not str(base).strip():
        raise UserError(f"{where} is {base!r}; expected a model's name, folder or file; try {NONE!r} for no base")
    try:
        found = ModelChoice(str(base) if given is not None else _beside(folder, base), parts=parts, roots=roots,
                            corrects=False)
    except UserError as error:
        raise UserError(f"{where}: {error}".replace("--part ", f"--part {BASE}")) from error
    if found.folder.resolve() == folder.resolve():
        raise UserError(f"{where} is {base}, the editor itself; expected another model; try it without, or {NONE!r}")
    if found.edits and (behind := found.folder_options.get("base")) not in (None, NONE):
        raise UserError(f"{where} is {base}, an editor with a base of its own ({behind}); expected a model that draws "
                        f"by itself; try another one, or take 'base' out of {found.folder / 'reflect.json'}")
    return found


def _beside(folder: Path, name: str) -> str:
    """A model's name in a folder's reflect.json: a path is relative to that folder, wherever the command runs."""
    if name in preset_names() or name in PUBLISHED or name.startswith("~"):
        return name
    path = (folder / name).resolve()
    if not path.exists() and is_repository(name):
        there = cached(name, "model_index.json")
        return name if there is None and not Path(name).exists() else str(there or path)
    return str(path)


def from_settings(settings: Any, model: str | None = None, lora: str | None = None, device: str | None = None,
                  parts: Mapping[str, str] | None = None, roots: Roots | None = None,
                  options: Mapping[str, Any] | None = None) -> ModelChoice:
    """The model of a record, or where it is now if that is said. UserError if it is not there.

    Args:
        settings: as `ModelChoice.settings` made them, or anything, where something else made the record.
        options: some of `MOVABLE`, with what they are now.
    """
    if other := sorted(set(options or {}) - set(MOVABLE)):
        raise UserError(f"--option {other[0]}: a run goes on with the options that it has; expected one of "
                        f"{', '.join(MOVABLE)}, which decide no picture; try a new run")
    known = settings if isinstance(settings, dict) else {}
    folder = model or known.get("folder")
    if not isinstance(folder, str):
        raise UserError("the record does not say which model drew it; it was not made by this command; try --model")
    before = {"device": known.get("device", "auto"), "dtype": known.get("dtype", "auto"), "lora": known.get("lora"),
              "options": known.get("options") or {}, "parts": known.get("parts") or {}}
    right = {"device": isinstance(before["device"], str), "dtype": before["dtype"] in DTYPES,
             "lora": before["lora"] is None or isinstance(before["lora"], str),
             "options": isinstance(before["options"], dict),
             "parts": isinstance(before["parts"], dict) and all(isinstance(p, str) for p in before["parts"].values())}
    for name, good in right.items():
        if not good:
            raise UserError(f"the record says that its model's {name} was {before[name]!r}; expected what Reflect "
                            "wrote; try a copy of the record")
    of_base = {name: path for name, path in before["parts"].items() if name.startswith(BASE)}
    own = {name: path for name, path in before["parts"].items() if name not in of_base}
    if model in PUBLISHED:
        # By its name it brings its own LoRA and parts, wherever they are now.
        before["lora"], own = None, {}
    own_base = isinstance(known.get("base"), dict) and known["base"].get("own") is True
    if model is not None and own_base:
        # The editor's folder names its base, and does so still where it is now.
        before["options"] = {name: value for name, value in before["options"].items() if name != "base"}
    if "base" in (options or {}) or model is not None and own_base:
        of_base = {}
    choice = ModelChoice(folder, lora or before["lora"], device or before["device"],
                         before["dtype"] if device is None else "auto", {**before["options"], **(options or {})},
                         {**own, **of_base, **(parts or {})}, roots)
    choice.own_base = own_base and "base" not in (options or {})
    return choice


def _blocks(path: Path) -> Iterator[bytes]:
    """The whole file, or, of tens of gigabytes, its ends and blocks spread evenly in between."""
    size = path.stat().st_size
    with open(path, "rb") as file:
        if size <= WHOLE:
            while block := file.read(1 << 20):
                yield block
            return
        for i in range(BLOCKS):
            file.seek((size - BLOCK) * i // (BLOCKS - 1))
            yield file.read(BLOCK)
