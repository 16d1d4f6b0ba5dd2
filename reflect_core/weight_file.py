"""One file of weights, safetensors or GGUF: what is in it, and its tensors one by one.

Opening reads headers only, so that a file of another model or half of a download is told before anything
large is read. A safetensors file may hold fp8 with a scale beside each matrix, as ComfyUI's `fp8_scaled`
files do; `read` then gives the numbers that are meant. A GGUF file's packed matrices come as they are from
`packed` and unpacked from `read`. What a file is shows in its first bytes, not in its name: `.sft` is
safetensors by another name, and a pickle by any name is refused.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .model_files import PICKLES, why_no_file
from .types import UserError

FLOATS = {"F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2"}
"""Kinds of tensors that hold plain numbers, as safetensors calls them."""
SCALES = ("scale_weight", "weight_scale")
"""What an fp8 matrix's scale is called, by older and newer versions of ComfyUI."""
Rows = Sequence[tuple[int, int]]
"""Ranges of a tensor's rows, in order."""
_AGAIN = "try to copy or download it again"


class WeightFile:
    """An open file. UserError for one that is missing, cut short, a pickle or neither safetensors nor GGUF."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.shapes: dict[str, tuple[int, ...]] = {}
        """Of every tensor; of a packed one, what it unpacks to."""
        self.kinds: dict[str, str] = {}
        """As the format names them: F32, BF16, F8_E4M3, Q8_0."""
        self.about: dict[str, str] = {}
        """What its header says of it, by safetensors' or GGUF's own names; of GGUF's what is text."""
        self.gguf = _first_bytes(self.path) == b"GGUF"
        if self.gguf:
            self._read_gguf()
        else:
            self._read_safetensors()

    def read(self, key: str, dtype: torch.dtype | None = None, rows: Rows = ()) -> Tensor:
        """A tensor's numbers on the CPU, in `dtype`, or in the file's own where there are plain ones.

        `rows`: ranges of its rows to read and join; () for all.
        """
        if self.gguf:
            tensor = self._plain_gguf(key, rows)
        elif rows:
            part = self._file.get_slice(key)
            tensor = _joined([part[start:end] for start, end in rows])
        else:
            tensor = self._file.get_tensor(key)
        scale = self.scale_of(key)
        if scale is not None:
            factor = self._file.get_tensor(scale).float().flatten()
            if factor.numel() > 1:  # one for each row
                factor = _picked(factor, rows).reshape(-1, *[1] * (tensor.ndim - 1))
            tensor = tensor.float() * factor
        return tensor if dtype is None else tensor.to(dtype)

    def scale_of(self, key: str) -> str | None:
        """The key of an fp8 matrix's scale, or None."""
        if not self.kinds[key].startswith("F8_"):
            return None
        stem = key.removesuffix("weight")
        return next((stem + name for name in SCALES if stem + name in self.shapes), None)

    def is_packed(self, key: str) -> bool:
        """Whether it is a matrix that only GGUF's own arithmetic can read."""
        return self.gguf and self.kinds[key] not in FLOATS

    def check_unpacks(self, key: str) -> None:
        """UserError for a packed matrix of a kind that the package gguf only knows by name."""
        import gguf

        kind = self._file[key].tensor_type
        try:
            gguf.quants.dequantize(np.zeros((1, gguf.GGML_QUANT_SIZES[kind][1]), np.uint8), kind)
        except NotImplementedError as error:
            raise UserError(f"{self.path}: {key} is packed as {kind.name}, which the package 'gguf' cannot unpack; "
                            "expected Q8_0, Q4_K or another common kind; try such a release of it") from error

    def packed(self, key: str, rows: Rows = ()) -> tuple[Tensor, Any]:
        """A packed matrix's bytes (rows, bytes of a row), or those of some rows, and its GGUF type."""
        tensor = self._file[key]
        return _taken(tensor.data, rows), tensor.tensor_type

    def _plain_gguf(self, key: str, rows: Rows) -> Tensor:
        import gguf

        data, kind = self._file[key].data, self._file[key].tensor_type
        if self.is_packed(key):
            return _picked(torch.from_numpy(gguf.quants.dequantize(data, kind)), rows)
        tensor = _taken(data, rows)
        return tensor.view(torch.bfloat16) if kind == gguf.GGMLQuantizationType.BF16 else tensor

    def _read_safetensors(self) -> None:
        from safetensors import safe_open

        try:
            self._file: Any = safe_open(str(self.path), framework="pt")
        except Exception as error:  # safetensors raises its own type, whose module has moved between versions
            raise UserError(_broken(self.path, error)) from error
        self.about = dict(self._file.metadata() or {})
        for key in self._file.keys():
            tensor = self._file.get_slice(key)
            self.shapes[key], self.kinds[key] = tuple(tensor.get_shape()), str(tensor.get_dtype())

    def _read_gguf(self) -> None:
        try:
            import gguf
        except ImportError as error:
            raise UserError(f"{self.path}: is a GGUF file; {lacking(['gguf', *lacked('accelerate')])}") from error
        try:
            reader = gguf.GGUFReader(self.path)
            tensors = reader.tensors
            self.about = {key: bytes(field.parts[-1]).decode("utf-8", "replace") for key, field in reader.fields.items()
                          if field.types == [gguf.GGUFValueType.STRING]}
            self._file = {tensor.name: tensor for tensor in tensors}
            whole = max((int(t.data_offset + t.n_bytes) for t in tensors), default=0)
        except Exception as error:  # numpy's and gguf's own, of whatever type, where the file ends too soon
            raise UserError(f"{self.path}: is not a whole GGUF file ({_said(error)}); its size is "
                            f"{self.path.stat().st_size} bytes; {_AGAIN}") from error
        if whole > self.path.stat().st_size:
            raise UserError(f"{self.path}: is half of a download: it has {self.path.stat().st_size} bytes; expected "
                            f"{whole}; {_AGAIN}")
        for name, tensor in self._file.items():
            self.shapes[name] = tuple(int(n) for n in reversed(tensor.shape.tolist()))
            self.kinds[name] = tensor.tensor_type.name


def lacked(*packages: str) -> list[str]:
    """Those that are not installed."""
    return [name for name in packages if find_spec(name) is None]


def lacking(packages: list[str]) -> str:
    """What to say to somebody who has a GGUF file and not all the packages that it takes."""
    are = "packages {} are" if len(packages) > 1 else "package {} is"
    return (f"{are.format(' and '.join(map(repr, packages)))} needed for it and not installed; try 'pip install "
            f"{' '.join(packages)}', or a .safetensors file of the model")


def _picked(tensor: Tensor, rows: Rows) -> Tensor:
    return _joined([tensor[start:end] for start, end in rows]) if rows else tensor


def _taken(data: Any, rows: Rows) -> Tensor:
    """Rows of an array that may lie in a file, in memory of their own."""
    return torch.from_numpy(np.concatenate([data[start:end] for start, end in rows or ((0, len(data)),)]))


def _joined(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _first_bytes(path: Path) -> bytes:
    if path.suffix.lower() in PICKLES:
        raise UserError(f"{path}: is a pickle ({path.suffix}), which can run code when it is read; expected a "
                        ".safetensors or .gguf file; try a release of the model that has one")
    try:
        with open(path, "rb") as file:
            first = file.read(4)
    except OSError as error:
        why = f"cannot be read ({error})" if path.is_file() else why_no_file(path)
        raise UserError(f"{path}: {why}; expected a .safetensors or .gguf file; try another path") from error
    if first[:2] in (b"PK", b"\x80\x02"):
        raise UserError(f"{path}: is a pickle by another name, which can run code when it is read; expected a "
                        ".safetensors or .gguf file; try a release of the model that has one")
    return first


def _broken(path: Path, error: Exception) -> str:
    """Why a file is no safetensors file: empty, a page of HTML, half of a download, or something else."""
    size = path.stat().st_size
    if not size:
        return f"{path}: is empty; expected a .safetensors or .gguf file; {_AGAIN}"
    with open(path, "rb") as file:
        first = file.read(8)
        length = int.from_bytes(first, "little")
        if 2 <= length <= min(size - 8, 100 << 20):
            try:
                header = json.loads(file.read(length))
                whole = 8 + length + max(entry["data_offsets"][1] for name, entry in header.items()
                                         if name != "__metadata__")
                if whole > size:
                    return (f"{path}: is half of a download: it has {size} bytes and its header says {whole}; expected "
                            f"the whole file; {_AGAIN}")
            except (ValueError, KeyError, TypeError, AttributeError, IndexError):
                pass
    if first == b"version ":
        return (f"{path}: is git's note of where the weights are (LFS), not the weights; expected a .safetensors file; "
                "try 'git lfs pull' where it comes from, or to download it from its page")
    if path.suffix.lower() == ".gguf":
        return f"{path}: is not a GGUF file, whatever it is called; its size is {size} bytes; {_AGAIN}"
    if first[:1] == b"<":
        return f"{path}: is a web page, not weights; expected a .safetensors file; try to download it after signing in"
    return f"{path}: is not a whole safetensors file ({_said(error)}); its size is {size} bytes; {_AGAIN}"


def _said(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
