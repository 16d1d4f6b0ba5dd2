"""Find a model folder by name or path, check it before any weight is read, and load its generator.

A model folder is in diffusers layout, see `reflect_core.model_files`. Beside `model_index.json` may lie
`reflect.json`, all of whose keys are optional:

    {"defaults": {"width": 64, "height": 64, "steps": 28, "guidance": 3.5},
     "options": {"condition_size": 64, "max_sequence_length": 64}}

`defaults` are what a request has when its maker does not say, `options` are the family's own
(`CorrectorOptions` for FLUX). Nothing heavy is imported until a model is loaded.
"""

from __future__ import annotations

import importlib
import math
from pathlib import Path
from typing import Any

from ..model_files import INDEX, PICKLES, check_model_folder, check_safetensors, read_json, read_safetensors
from ..types import Generator, UserError

__all__ = ["PICKLES", "check_model_folder", "check_safetensors", "find_model", "load_generator", "preset_names",
           "read_json", "read_safetensors", "read_settings"]

# A pipeline's class in model_index.json -> where its generator is. Each has `from_folder(path, **options)`.
FAMILIES = {
    "FluxPipeline": ("..generators.flux_corrector.pipeline", "FluxCorrector"),
    "SanaPipeline": ("..generators.reflect_dit.pipeline", "ReflectDiT"),
    "FluxKontextPipeline": ("..generators.editors.kontext", "FluxKontext"),
    "QwenImageEditPipeline": ("..generators.editors.qwen", "QwenEdit"),
    "QwenImageEditPlusPipeline": ("..generators.editors.qwen", "QwenEdit"),
}
EDITORS = ("FluxKontextPipeline", "QwenImageEditPipeline", "QwenImageEditPlusPipeline")
"""Families that edit pictures as they are told, without weights of a corrector."""


def preset_names() -> list[str]:
    """Names of the bundled models."""
    return sorted(p.parent.name for p in Path(__file__).parent.glob("*/model_index.json"))


def find_bundled(name: str | Path) -> Path | None:
    """The folder of a bundled model by its name, or None."""
    return Path(__file__).parent / str(name) if str(name) in preset_names() else None


def find_model(name_or_folder: str | Path) -> Path:
    """The folder of a bundled model by its name, or of any model by its path; or a single file of weights.

    A name wins over a folder of the same name in the current directory; write `./name` for that one.
    Raises UserError, with the names there are, when there is neither. For more ways to name one see `locate.py`.
    """
    if (bundled := find_bundled(name_or_folder)) is not None:
        return bundled
    try:
        folder = Path(name_or_folder).expanduser()
    except RuntimeError:  # `~somebody` whom the system does not know
        folder = Path(name_or_folder)
    if not folder.exists():
        names = ", ".join(preset_names()) or "(no model is bundled)"
        raise UserError(f"{name_or_folder}: is neither a bundled model nor a folder; expected one of "
                        f"{names}, a folder in diffusers layout, or a single file of weights")
    return folder


def family_of(path: str | Path) -> str:
    """A model's pipeline class, one of `FAMILIES`: as a folder's index names it; a single file is of FLUX.

    Reads no weights. Raises UserError for a family that there is no generator for.
    """
    path = Path(path)
    if path.is_file():
        return "FluxPipeline"
    kind = read_json(path / "model_index.json", INDEX).get("_class_name")
    if not isinstance(kind, str) or kind not in FAMILIES:
        raise UserError(f"{path / 'model_index.json'}: _class_name is {kind!r}; expected one of "
                        f"{', '.join(FAMILIES)}; try a model of that family")
    return kind


def load_generator(name_or_folder: str | Path, **options: Any) -> Generator:
    """The generator of a bundled model, a folder or a file; options go to its `from_folder`."""
    folder = find_model(name_or_folder)
    module, name = FAMILIES[family_of(folder)]
    return getattr(importlib.import_module(module, __package__), name).from_folder(folder, **options)


def is_known_family(folder: str | Path) -> bool:
    """Whether a folder holds a model of a family that there is a generator for. Reads its index only."""
    try:
        return read_json(Path(folder) / "model_index.json", INDEX).get("_class_name") in list(FAMILIES)
    except UserError:
        return False


def read_settings(folder: str | Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """(defaults, options) of a folder's `reflect.json`; both empty when there is none."""
    file = Path(folder) / "reflect.json"
    if not file.exists():
        return {}, {}
    settings = read_json(file, "")
    defaults, options = settings.get("defaults", {}), settings.get("options", {})
    for name, value in (("defaults", defaults), ("options", options)):
        if not isinstance(value, dict):
            raise UserError(f"{file}: {name} is {value!r}; expected a JSON object, {{}} for none")
    unknown = sorted(set(settings) - {"defaults", "options", "about"})
    unknown += sorted(set(defaults) - {"width", "height", "steps", "guidance"})
    if unknown:
        raise UserError(f"{file}: has unknown {', '.join(unknown)}; expected 'defaults' (width, height, "
                        "steps, guidance), 'options' and 'about'")
    for name, value in defaults.items():
        whole = name != "guidance"
        kind, least = (int, 1) if whole else ((int, float), 0)
        if isinstance(value, bool) or not isinstance(value, kind) or not least <= value < math.inf:
            raise UserError(f"{file}: defaults has {name} {value!r}; expected a "
                            f"{'whole number of 1' if whole else 'number of 0'} or more")
    return dict(defaults), dict(options)
