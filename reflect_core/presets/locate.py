"""A model by whatever name somebody has for it: where its parts lie on this machine. Nothing is downloaded.

A name is tried as a bundled model, a published set, a folder or file, and the id of a repository that is in the
Hugging Face cache. A published set is looked for in the folders that were named (`roots.py`), as folders in diffusers
layout or as the single files that ComfyUI takes, and then in that cache.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from pathlib import Path

from ..model_files import is_weight_file, why_no_file
from ..types import UserError
from .load import FAMILIES, find_bundled, preset_names
from .published import PUBLISHED, Published, Source, find_source, how_to_get, published_names
from .roots import KINDS, VARIABLE, Roots

_FILES = {
    "transformer": (("diffusion_models",), ("flux1-dev.safetensors", "flux1-dev.sft", "flux1-dev*bf16*.safetensors",
                                            "flux1-dev*fp8*.safetensors", "flux1-dev*.gguf", "flux1-dev*.safetensors")),
    "vae": (("vae",), ("ae.safetensors", "ae.sft", "flux*ae*.safetensors", "flux*vae*.safetensors")),
    "text_encoder": (("text_encoders",), ("clip_l.safetensors", "clip_l*.safetensors")),
    "text_encoder_2": (("text_encoders",), ("t5xxl_fp16.safetensors", "t5xxl*.safetensors", "t5-v1_1-xxl*.gguf",
                                            "t5xxl*.gguf"))}
"""Component of FLUX.1-dev -> the kinds of folder and the names of files that it has for ComfyUI, the best first."""
_CORRECTOR = ("FLUX-Corrector*.safetensors", "flux_corrector*.safetensors", "flux-corrector*.safetensors")
_NOT_DEV = re.compile(r"kontext|fill|canny|depth|redux|krea|lora|schnell|merge|hyper|turbo|distill", re.IGNORECASE)
"""Its relatives are called nearly the same, and none is taken that nobody has named (`flux_corrector/relatives.py`)."""
_KIND_NAMES = {name for names in KINDS.values() for name in names}
_REPOSITORY = re.compile(r"(?!\.+/)[\w.-]+/[\w.-]+")


class NotHere(UserError):
    """The weights of a published set are not on this machine, or not all of them."""


@dataclass(frozen=True)
class Located:
    """What loads a model."""

    path: Path
    """A folder in diffusers layout, or a file."""
    lora: Path | None = None
    parts: dict[str, Path] = field(default_factory=dict)


def locate(name: str, roots: Roots, lora: Path | None = None, corrects: bool = True) -> Located:
    """Where a model is. UserError, saying what there is to try.

    Args:
        lora: in place of a published set's own.
        corrects: False: of a published set only the base, which draws.
    """
    bundled = find_bundled(name)
    if bundled is not None:
        return Located(bundled)
    if name in PUBLISHED:
        wanted = PUBLISHED[name] if corrects else replace(PUBLISHED[name], corrector=None, others=())
        return _published(name, wanted, roots, lora)
    try:
        path = Path(name).expanduser()
    except RuntimeError:  # `~somebody` whom the system does not know
        path = Path(name)
    called = is_weight_file(path)
    if path.is_file() or path.is_dir() and (not called or (path / "model_index.json").is_file()):
        return Located(path)
    if called:
        raise UserError(f"{name}: {why_no_file(path)}; expected a file of weights; try to check the path")
    if _REPOSITORY.fullmatch(name):
        found = cached(name, "model_index.json")
        if found is not None:
            return Located(found)
        raise UserError(f"{name}: is no folder, and no repository of that name is in the Hugging Face cache; expected "
                        f"one that was downloaded before; try 'hf download {name}', HF_HOME if it lies elsewhere, or "
                        f"{_names()}")
    raise UserError(f"{name}: is neither a bundled model nor a folder; expected one of {_names()}, a folder in "
                    "diffusers layout, a file of weights, or the id of a repository in the Hugging Face cache")


def cached(repository: str, file: str) -> Path | None:
    """The folder in which a file of a repository lies in the Hugging Face cache, or None. Asks nobody."""
    from huggingface_hub import try_to_load_from_cache

    if not _REPOSITORY.fullmatch(repository):
        return None
    found = try_to_load_from_cache(repository, file)
    return Path(found).parent if isinstance(found, str) else None


def is_repository(name: str) -> bool:
    """Whether it reads as a repository's id."""
    return _REPOSITORY.fullmatch(name) is not None


def _names() -> str:
    return ", ".join([*preset_names(), *published_names()])


def _published(name: str, wanted: Published, roots: Roots, lora: Path | None) -> Located:
    if wanted.family not in FAMILIES:
        raise NotHere(how_to_get(name, Path("models")))
    files: Located | None = None
    base = _source(wanted.base, roots)
    if base is None and wanted.family == "FluxPipeline":
        files = _flux_files(roots)
    if lora is None and wanted.corrector is not None:
        lora = _corrector(wanted, roots)
    parts = {Path(other.name).name: place for other in wanted.others if (place := _source(other, roots)) is not None}
    missing = [other for other in wanted.others if Path(other.name).name not in parts]
    missing += [wanted.corrector] if lora is None and wanted.corrector is not None else []
    if base is None and files is None:
        missing.insert(0, wanted.base)
    if missing:
        looked = ", ".join(map(str, roots.named)) or f"no folder, as neither --models nor {VARIABLE} names one"
        raise NotHere(f"the weights of {name!r} are not all here; missing: "
                      f"{'; and '.join(f'{part.said} ({part.size}; {part.licence})' for part in missing)}; looked in "
                      f"{looked}, and in the Hugging Face cache; try 'reflect download {name}', --models with the "
                        f"folder of your ComfyUI, or the model {wanted.small!r}, which comes with the pack")
    return Located(base, lora, parts) if files is None else Located(files.path, lora, files.parts)


def _source(source: Source, roots: Roots) -> Path | None:
    found = find_source(source, roots.places(source.kind))
    if found is None:
        inside = f"{source.inside}/" if source.inside else ""
        found = cached(source.repository, inside + source.file)
    return found


def _corrector(wanted: Published, roots: Roots) -> Path | None:
    """The corrector's file, or the folder of a whole checkpoint."""
    folder = _source(wanted.corrector, roots)
    if folder is not None:
        return folder if wanted.corrector.file == "config.json" else folder / wanted.corrector.file
    return _first(roots, ("loras",), _CORRECTOR) if wanted.family == "FluxPipeline" else None


def flux_parts(roots: Roots) -> dict[str, Path]:
    """What there is of FLUX.1-dev in single files, by component; tokenizers as ComfyUI carries them."""
    found = {name: _first(roots, *where) for name, where in _FILES.items()}
    found |= {name: roots.tokenizer(name) for name in ("tokenizer", "tokenizer_2")}
    return {name: path for name, path in found.items() if path is not None}


def _flux_files(roots: Roots) -> Located | None:
    """FLUX.1-dev from single files, or None where one is missing."""
    found = flux_parts(roots)
    tokenizers = {name: found[name] for name in ("tokenizer", "tokenizer_2") if name in found}
    if len(tokenizers) < 2:
        return None
    transformer = found.pop("transformer", None)
    if transformer is not None and len(found) == 5:
        return Located(transformer, parts=found)
    whole = _first(roots, ("checkpoints",), ("flux1-dev*.safetensors",))  # an all-in-one checkpoint brings the rest
    return None if whole is None else Located(whole, parts=tokenizers)


def _first(roots: Roots, kinds: tuple[str, ...], patterns: tuple[str, ...]) -> Path | None:
    for pattern in patterns:
        for kind in kinds:
            for place in roots.places(kind):
                # One folder down as well: people sort their files.
                found = [*place.glob(pattern), *place.glob(f"*/{pattern}")]
                # A root that is named is a place of every kind; its folders of other kinds are none.
                for file in sorted(one for one in found if one.parent == place or one.parent.name in KINDS[kind]
                                   or one.parent.name not in _KIND_NAMES):
                    if file.is_file() and (kind == "loras" or not _NOT_DEV.search(file.name)):
                        return file
    return None
