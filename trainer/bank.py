"""Training data encoded once and kept on disk as tensors.

Encoding costs as much as a tenth of a training step; a bank of a hundred thousand pictures is encoded
in minutes and then serves every epoch. The file's name carries a hash of what made it, so that a
stale bank is never taken for a fresh one. What takes hours is encoded in parts, each on disk as soon as it is
made: a process that was killed goes on behind the last.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from reflect_core.presets.load import read_safetensors
from reflect_core.types import UserError

Rows = dict[str, Tensor]
"""Tensors by name with as many rows each."""
_PART = re.compile(r"(\d+)-(\d+)\.safetensors")


def bank_key(settings: dict) -> str:
    """The hash of what a bank was made from."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]


def cached(folder: Path, settings: dict, make: Callable[[], Rows]) -> Rows:
    """The tensors that `make()` returns, from disk where they were made before with these settings."""
    path = folder / f"bank-{bank_key(settings)}.safetensors"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        _save(make(), path, {"settings": json.dumps(settings, sort_keys=True)})
    return _read(path, path)


def cached_in_parts(folder: Path, settings: dict, encode: Callable[[int], Iterator[Rows]]) -> Rows:
    """The same of all the rows that `encode(start)` yields, part by part, from row `start` on."""
    parts = folder / f"bank-{bank_key(settings)}.parts"
    bank = cached(folder, settings, lambda: _joined(parts, encode))
    if parts.exists():
        shutil.rmtree(parts)
    return bank


def _joined(folder: Path, encode: Callable[[int], Iterator[Rows]]) -> Rows:
    folder.mkdir(parents=True, exist_ok=True)
    for left in folder.glob("*.partial"):
        left.unlink()
    found = {int(m[1]): (int(m[2]), file) for file in folder.iterdir() if (m := _PART.fullmatch(file.name))}
    files, count = [], 0
    while count in found:
        end, file = found[count]
        files, count = [*files, (count, end, file)], end
    for part in encode(count):
        end = count + len(next(iter(part.values())))
        file = folder / f"{count}-{end}.safetensors"
        _save(part, file)
        files, count = [*files, (count, end, file)], end
    # Filled part by part: the whole is in memory once, not twice.
    bank: Rows = {}
    for start, end, file in files:
        for name, rows in _read(file, folder).items():
            if name not in bank:
                bank[name] = torch.empty(count, *rows.shape[1:], dtype=rows.dtype)
            bank[name][start:end] = rows
    return bank


def _save(rows: Rows, path: Path, metadata: dict[str, str] | None = None) -> None:
    partial = path.with_suffix(".partial")
    save_file(rows, partial, metadata)
    with open(partial, "r+b") as handle:
        os.fsync(handle.fileno())
    os.replace(partial, path)


def _read(path: Path, blamed: Path) -> Rows:
    try:
        return read_safetensors(path)[0]
    except UserError as error:
        raise UserError(f"the encoded data {blamed} is damaged ({error}). Delete it, and it is made again") from error
