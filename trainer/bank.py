"""Training data encoded once and kept on disk as tensors.

Encoding costs as much as a tenth of a training step; a bank of a hundred thousand pictures is encoded
in minutes and then serves every epoch. The file's name carries a hash of what made it, so that a
stale bank is never taken for a fresh one.
"""

from __future__ import annotations

import hashlib
import json
import os
import zlib
from collections.abc import Callable
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor, nn

from reflect_core.presets.load import read_safetensors
from reflect_core.types import UserError


def bank_key(settings: dict) -> str:
    """The hash of what a bank was made from."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]


def cached(folder: Path, settings: dict, make: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
    """The tensors that `make()` returns, from disk where they were made before with these settings."""
    path = folder / f"bank-{bank_key(settings)}.safetensors"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".partial")
        save_file(make(), partial, {"settings": json.dumps(settings, sort_keys=True)})
        os.replace(partial, path)
    try:
        return read_safetensors(path)[0]
    except UserError as error:
        raise UserError(f"the encoded data {path} is damaged ({error}). Delete it, and it is made again") from error


def fingerprint(module: nn.Module) -> str:
    """Tells one set of weights from another: a checksum of the first few."""
    value = 0
    for parameter in list(module.parameters())[:6]:
        value = zlib.crc32(parameter.detach().cpu().float().contiguous().numpy(), value)
    return f"{value:08x}"
