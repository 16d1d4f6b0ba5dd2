"""What tasks share: precision, attention kernels, devices, and the note of where weights come from."""

from __future__ import annotations

import json
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from reflect_core.types import UserError

from ..config import TrainConfig

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
    (folder / "provenance.json").write_text(json.dumps(provenance, indent=1) + "\n", encoding="utf-8")


def read_provenance(folder: str | Path) -> dict | None:
    """What lies beside weights, or None if their maker left no such note."""
    file = Path(folder) / "provenance.json"
    if not file.is_file():
        return None
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{file} is not JSON ({error}); expected the note of a training run") from error
