"""The files of a model: JSON and safetensors, and whether a folder has all that its components need.

A model folder is in diffusers layout: `model_index.json` and a folder for each component, weights in
safetensors. A pickle can run code when it is read, so a folder that holds one is refused, whatever
else is in it. Nothing heavy is imported until a safetensors file is opened.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .types import UserError

PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")

INDEX = ("a model folder in diffusers layout has one; try the folder above or below, or download the model "
         "again")
"""What a missing model_index.json is told with."""


def check_model_folder(folder: str | Path, required: Sequence[str]) -> dict[str, Any]:
    """Check that a folder has every file that its required components need; returns its model index.

    Reads headers only. Raises UserError, naming the file, for a folder that misses a file, holds a
    pickle, or has a safetensors file that is cut short.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; expected a model in diffusers layout")
    index = read_json(folder / "model_index.json", INDEX)
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
        check_component(folder / name, str(entry[1]))
    return index


def check_weights(folder: Path) -> None:
    """UserError, naming the file, unless a component's weights are there and whole. Reads headers only."""
    for file in _weight_files(folder, "try to copy or download the model again"):
        check_safetensors(file)


def check_safetensors(path: str | Path) -> Path:
    """The path of a whole, readable safetensors file. Raises UserError for anything else."""
    with _opened(path):
        return Path(path)


def read_safetensors(path: str | Path) -> tuple[dict, dict[str, str]]:
    """All tensors of a file (CPU) and its metadata. Raises UserError for anything but safetensors."""
    with _opened(path) as file:
        return {key: file.get_tensor(key) for key in file.keys()}, file.metadata() or {}


def is_weight_file(path: str | Path) -> bool:
    """Whether a path looks like a single file of weights, be it there or not, or one that somebody takes for it."""
    return Path(path).suffix.lower() in (".safetensors", ".sft", ".gguf", *PICKLES)


def why_no_file(path: Path) -> str:
    """What is wrong with a path at which a file was expected: nothing there, a link to nothing, or a folder."""
    if path.is_dir():
        return "is a folder"
    if path.is_symlink():
        return f"is a link to {path.readlink()}, where there is nothing"
    return "no such file"


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


def check_component(folder: Path, kind: str) -> None:
    """UserError, naming the file, unless a folder has what a component of this class needs. Reads headers only."""
    again = f"the {kind} of the model needs it; try to copy or download the model again"
    if kind.endswith("Scheduler"):
        read_json(folder / "scheduler_config.json", again)
    elif kind.endswith("Processor"):
        read_json(folder / "preprocessor_config.json", again)
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
    if kind.startswith(("CLIP", "Qwen2")):
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
