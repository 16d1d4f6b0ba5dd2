"""Find a model folder by name or path, check it before any weight is read, and load its generator.

A model folder is in diffusers layout: `model_index.json` and a folder for each component, weights in
safetensors. A pickle can run code when it is read, so a folder that holds one is refused, whatever
else is in it. Beside `model_index.json` may lie `reflect.json`, all of whose keys are optional:

    {"defaults": {"width": 64, "height": 64, "steps": 28, "guidance": 3.5},
     "options": {"condition_size": 64, "max_sequence_length": 64}}

`defaults` are what a request has when its maker does not say, `options` are the family's own
(`CorrectorOptions` for FLUX). Nothing heavy is imported until a model is loaded.
"""

from __future__ import annotations

import importlib
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..types import Generator, UserError

PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")

# A pipeline's class in model_index.json -> where its generator is. Each has `from_folder(path, **options)`.
FAMILIES = {
    "FluxPipeline": ("..generators.flux_corrector.pipeline", "FluxCorrector"),
}

_INDEX = ("a model folder in diffusers layout has one; try the folder above or below, or download the model "
          "again")


def preset_names() -> list[str]:
    """Names of the bundled models."""
    return sorted(p.parent.name for p in Path(__file__).parent.glob("*/model_index.json"))


def find_model(name_or_folder: str | Path) -> Path:
    """The folder of a bundled model by its name, or of any model by its path.

    A name wins over a folder of the same name in the current directory; write `./name` for that one.
    Raises UserError, with the names there are, when there is neither.
    """
    if str(name_or_folder) in preset_names():
        return Path(__file__).parent / str(name_or_folder)
    folder = Path(name_or_folder).expanduser()
    if not folder.is_dir():
        names = ", ".join(preset_names()) or "(no model is bundled)"
        raise UserError(f"{name_or_folder}: is neither a bundled model nor a folder; expected one of "
                        f"{names}, or a folder in diffusers layout")
    return folder


def load_generator(name_or_folder: str | Path, **options: Any) -> Generator:
    """The generator of a bundled model or a folder; options go to its `from_folder`."""
    folder = find_model(name_or_folder)
    kind = read_json(folder / "model_index.json", _INDEX).get("_class_name")
    if not isinstance(kind, str) or kind not in FAMILIES:
        raise UserError(f"{folder / 'model_index.json'}: _class_name is {kind!r}; expected one of "
                        f"{', '.join(FAMILIES)}; try a model of that family")
    module, name = FAMILIES[kind]
    return getattr(importlib.import_module(module, __package__), name).from_folder(folder, **options)


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


def check_model_folder(folder: str | Path, required: Sequence[str]) -> dict[str, Any]:
    """Check that a folder has every file that its required components need; returns its model index.

    Reads headers only. Raises UserError, naming the file, for a folder that misses a file, holds a
    pickle, or has a safetensors file that is cut short.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; expected a model in diffusers layout")
    index = read_json(folder / "model_index.json", _INDEX)
    for file in sorted(folder.rglob("*")):
        if file.suffix.lower() in PICKLES:
            raise UserError(f"{file}: is a pickle ({file.suffix}), which can run code when it is read; "
                            "expected only .safetensors weights; try to delete it if the folder has those "
                            "too, or another release of the model")
    for name in required:
        entry = index.get(name)
        if not isinstance(entry, list) or len(entry) != 2 or entry[0] not in ("diffusers", "transformers"):
            raise UserError(f"{folder / 'model_index.json'}: {name} is {entry!r}; expected a class of "
                            "diffusers or transformers; try a model of this family in its original layout")
        _check_component(folder / name, str(entry[1]))
    return index


def check_safetensors(path: str | Path) -> Path:
    """The path of a whole, readable safetensors file. Raises UserError for anything else."""
    with _opened(path):
        return Path(path)


def read_safetensors(path: str | Path) -> tuple[dict, dict[str, str]]:
    """All tensors of a file (CPU) and its metadata. Raises UserError for anything but safetensors."""
    with _opened(path) as file:
        return {key: file.get_tensor(key) for key in file.keys()}, file.metadata() or {}


def read_json(path: Path, why: str) -> dict[str, Any]:
    """A JSON object from a file. Raises UserError; `why` says what the file is for when it is missing."""
    if not path.is_file():
        raise UserError(f"{path}: no such file; {why}")
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise UserError(f"{path}: is not readable JSON ({error}); try to copy or download it "
                        "again") from error
    if not isinstance(value, dict):
        raise UserError(f"{path}: holds a {type(value).__name__}; expected a JSON object")
    return value


def _check_component(folder: Path, kind: str) -> None:
    again = f"the {kind} of the model needs it; try to copy or download the model again"
    if kind.endswith("Scheduler"):
        read_json(folder / "scheduler_config.json", again)
    elif "Tokenizer" in kind:
        read_json(folder / "tokenizer_config.json", again)
        _check_tokenizer(folder, kind, again)
    else:
        read_json(folder / "config.json", again)
        for file in _weight_files(folder, again):
            check_safetensors(file)


def _check_tokenizer(folder: Path, kind: str, again: str) -> None:
    """One of the sets of files that a tokenizer of this class is made from must be there and not empty."""
    sets = [("tokenizer.json",)]
    if kind.startswith("CLIP"):
        sets.append(("vocab.json", "merges.txt"))
    elif kind.startswith("T5"):
        sets.append(("spiece.model",))
    if not any(all((folder / f).is_file() and (folder / f).stat().st_size for f in files) for files in sets):
        other = "".join(f", nor {' with '.join(files)}" for files in sets[1:])
        raise UserError(f"{folder / 'tokenizer.json'}: no such file{other}, or an empty one; {again}")
    if (folder / "tokenizer.json").is_file():
        read_json(folder / "tokenizer.json", again)


def _weight_files(folder: Path, again: str) -> list[Path]:
    """The weight files of one component: one file, or the shards that its index lists."""
    for stem in ("diffusion_pytorch_model", "model"):
        shards = folder / f"{stem}.safetensors.index.json"
        if shards.is_file():
            names = read_json(shards, again).get("weight_map")
            if not isinstance(names, dict) or not names:
                raise UserError(f"{shards}: has no weight_map; {again}")
            for key, name in names.items():
                if not isinstance(name, str) or Path(name).name != name:
                    raise UserError(f"{shards}: weight_map has {name!r} for {key}; expected the name of a file "
                                    f"beside it; {again}")
            return [folder / name for name in sorted(set(names.values()))]
        if (folder / f"{stem}.safetensors").is_file():
            return [folder / f"{stem}.safetensors"]
    raise UserError(f"{folder}: has no weights; expected diffusion_pytorch_model.safetensors or "
                    f"model.safetensors; {again}")


def _opened(path: str | Path):
    from safetensors import safe_open  # torch comes with it: not at package import

    path = Path(path)
    if path.suffix.lower() in PICKLES:
        raise UserError(f"{path}: is a pickle ({path.suffix}), which can run code when it is read; expected "
                        "a .safetensors file; try a release of the model that has one")
    if not path.is_file():
        raise UserError(f"{path}: no such file; expected a .safetensors file; try another path, or download "
                        "the model again")
    try:
        return safe_open(str(path), framework="pt")
    except Exception as error:  # safetensors raises its own type, whose module has moved between versions
        raise UserError(f"{path}: is not a whole safetensors file ({error}); its size is "
                        f"{path.stat().st_size} bytes; try to copy or download it again") from error
