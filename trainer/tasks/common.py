"""What tasks share: precision, attention kernels, devices, and the note of where weights come from."""

from __future__ import annotations

import json
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path, PureWindowsPath
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from reflect_core.model_files import read_json
from reflect_core.types import UserError

from ..config import TrainConfig

ROOT = Path(__file__).resolve().parents[2]
CLIP_LENGTH = 77
"""FLUX always pads CLIP's text to this many tokens; only the pooled vector is used."""


def autocast(config: TrainConfig) -> AbstractContextManager:
    """bf16 matrix products while weights stay fp32, if the config says so."""
    if config.precision == "fp32":
        return nullcontext()
    return torch.autocast(torch.device(config.device).type, torch.bfloat16)


def attention(config: TrainConfig) -> AbstractContextManager:
    """On the CPU and for a few hundred tokens the plain kernel is the fastest that has a backward pass.

    To be entered around both passes: what is computed again in the backward pass must take the same kernel.
    """
    return sdpa_kernel(SDPBackend.MATH) if torch.device(config.device).type == "cpu" else nullcontext()


def check_device(name: str) -> None:
    """Raises `UserError` if torch cannot use the device here."""
    try:
        torch.zeros(1, device=name)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        said = str(error).strip().splitlines()[0]
        raise UserError(f"device is {name!r}, which cannot be used here ({said}); expected cpu, or an accelerator "
                        "that this build of torch knows") from error


def token_ids(tokenizer: Any, texts: list[str], length: int) -> torch.Tensor:
    """(B, length), padded and cut as FluxPipeline does it."""
    return tokenizer(texts, padding="max_length", max_length=length, truncation=True, return_tensors="pt").input_ids


def write_provenance(folder: Path, provenance: dict) -> None:
    """Beside weights or triplets, without the places of this machine, see `portable`."""
    (folder / "provenance.json").write_text(json.dumps(portable(provenance), indent=1) + "\n", encoding="utf-8")


def forget_places(folder: Path) -> None:
    """Take out of the configs of a model what diffusers notes there: the path that each part was once loaded from."""
    for file in folder.rglob("config.json"):
        config = read_json(file, "")
        if config.pop("_name_or_path", None) is not None:
            file.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def portable(value: Any) -> Any:
    """JSON whose absolute paths are relative to the repository, or names alone where they lie outside of it."""
    if isinstance(value, dict):
        return {key: portable(below) for key, below in value.items()}
    if isinstance(value, (list, tuple)):
        return [portable(below) for below in value]
    if not isinstance(value, str) or not (Path(value).is_absolute() or PureWindowsPath(value).is_absolute()):
        return value
    if Path(value).is_relative_to(ROOT):
        return Path(value).relative_to(ROOT).as_posix()
    return PureWindowsPath(value).name  # it knows both kinds of slashes


def provenance_of(folder: str | Path) -> dict | str:
    """What lies beside weights or triplets, or the folder's name if their maker left no such note."""
    return read_provenance(folder) or str(folder)


def read_provenance(folder: str | Path) -> dict | None:
    """What lies beside weights (their folder, or their file), or None if their maker left no such note."""
    folder = Path(folder)
    file = (folder.parent if folder.is_file() else folder) / "provenance.json"
    return read_json(file, "") if file.is_file() else None


def uncommitted(provenance: Any, where: str) -> str | None:
    """Where a provenance, or one inside of it, names a commit from which files differed; None if nowhere."""
    if not isinstance(provenance, dict):
        return None
    if any(word.endswith("-dirty") for word in str(provenance.get("commit", "")).split()):
        return where
    below = [(f"{where}.{key}", part) for key, value in provenance.items()
             for part in (value if isinstance(value, list) else [value])]
    return next((found for key, part in below if (found := uncommitted(part, key))), None)
