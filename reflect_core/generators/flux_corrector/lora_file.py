"""A LoRA file's keys, shapes and strength, checked against the layers that it is for.

Two layouts are read. The published one has keys `transformer.<path>.lora_A.weight` and `.lora_B.weight`;
its alpha is in `.alpha` keys, in the metadata that newer diffusers writes, or unsaid, and then equal to the
rank. peft's own has the prefix `base_model.model.` and its alpha in an `adapter_config.json` beside the file.
A layer's strength is alpha / rank, or alpha / sqrt(rank) when the adapter is rank-stabilised.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ...model_files import read_json
from ...types import UserError
from .architecture import what_lora

LORA_FILE = "pytorch_lora_weights.safetensors"
PEFT_FILE = "adapter_model.safetensors"

_PUBLISHED, _PEFT = "transformer.", "base_model.model."
_EXPECTED = "expected keys like 'transformer.x_embedder.lora_A.weight'"
_OTHER = "the LoRA was made for another architecture. Try the LoRA that belongs to this model"

Table = dict[str, tuple[str, Tensor]]
"""Module path -> (key in the file, tensor)."""


def find_lora(path: str | Path) -> Path:
    """The LoRA file that a path names: the file itself, or the one in a folder under either layout's name."""
    path = Path(path)
    if not path.is_dir():
        return path
    for name in (LORA_FILE, PEFT_FILE):
        if (path / name).is_file():
            return path / name
    raise UserError(f"{path}: no such file as {LORA_FILE} or {PEFT_FILE} in this folder; expected a corrector's "
                    "LoRA; try the path of the file itself")


def read_adapter_config(file: Path) -> dict[str, Any] | None:
    """What peft wrote beside a LoRA file, or None. Raises UserError when it is not readable."""
    beside = file.parent / "adapter_config.json"
    return read_json(beside, "") if beside.is_file() else None


def read_lora(tensors: Mapping[str, Tensor], metadata: Mapping[str, str], adapter: dict[str, Any] | None,
              layers: Mapping[str, nn.Linear], source: str
              ) -> tuple[dict[str, tuple[Tensor, Tensor]], dict[str, float]]:
    """(path -> (A (rank, I), B (O, rank)), path -> alpha) of a file's tensors. Raises UserError.

    Args:
        metadata: the file's own; adapter: what peft wrote beside it, or None.
        layers: the linear layers that a corrector adapts, by path.
        source: what error messages call the file.
    """
    if other := what_lora(tensors):
        key, kind = other
        raise UserError(f"{source}: {kind}, as key {key!r} of shape {tuple(tensors[key].shape)} says; {_EXPECTED}, of "
                        "FLUX.1 and a reflection corrector; try FLUX-Corrector's pytorch_lora_weights.safetensors, or "
                        "one that the trainer made")
    downs, ups, stated, prefix = _sorted_keys(tensors, source)
    check_fit(layers, source, downs, ups)
    for path, (key, tensor) in stated.items():
        if path not in downs:
            raise UserError(f"{source}: {key} has shape {tuple(tensor.shape)} and no lora_A and lora_B; expected both; "
                            "the file is incomplete, try to download it again")
    for table in (downs, ups):
        for key, tensor in table.values():
            if not torch.isfinite(tensor.float()).all():
                raise UserError(f"{source}: {key} of shape {tuple(tensor.shape)} holds values that are not finite; "
                                "expected numbers; the training diverged, try an earlier checkpoint")
    config = _adapter_settings(metadata, source)
    if prefix == _PEFT and not config and not stated:
        if adapter is None or "lora_alpha" not in adapter:
            raise UserError(f"{source}: is in peft's layout (keys start with {_PEFT}), but beside it is no "
                            "adapter_config.json with a lora_alpha; expected that file too; try to copy the whole "
                            "folder")
        config = adapter
    default = _alpha_by_settings(config, source)
    alphas = {}
    for path, (_, down) in downs.items():
        value = _stated_alpha(*stated[path], source) if path in stated else default(path, down.shape[0])
        if value is not None:
            alphas[path] = value
    return {path: (downs[path][1], ups[path][1]) for path in downs}, alphas


def check_fit(layers: Mapping[str, nn.Linear], source: str, downs: Table, ups: Table) -> None:
    """Raise UserError naming the first key that does not fit the layers, with both shapes, or that is missing."""
    for path, key, tensor, down in _in_order(downs, ups):
        shape = tuple(tensor.shape)
        if path not in layers:
            raise UserError(f"{source}: {key} has shape {shape}, but this transformer has no such layer that a "
                            f"corrector adapts; {_OTHER}")
        layer = layers[path]
        if path not in (ups if down else downs):
            raise UserError(f"{source}: {key} has no partner lora_{'B' if down else 'A'}; expected both; the "
                            "file is incomplete, try to download it again")
        rank = tensor.shape[0 if down else -1] if tensor.ndim == 2 else 0
        expected = (rank, layer.in_features) if down else (layer.out_features, downs[path][1].shape[0])
        if shape != expected or rank < 1:
            raise UserError(f"{source}: {key} has shape {shape}, but this transformer needs {expected}; {_OTHER}")
        if not tensor.is_floating_point():
            raise UserError(f"{source}: {key} has dtype {str(tensor.dtype).removeprefix('torch.')}; expected float32, "
                            "float16 or bfloat16; try a release that is not quantised")
    blocks = {".".join(path.split(".")[:2]) for path in downs}
    for path, layer in layers.items():
        if path != "x_embedder" and ".".join(path.split(".")[:2]) not in blocks:
            rank = next(iter(downs.values()))[1].shape[0] if downs else 1
            raise UserError(f"{source}: has no {path}.lora_A.weight, for which this transformer expects the shape "
                            f"{(rank, layer.in_features)}, nor anything else of that block; the LoRA was made for a "
                            "shallower architecture or is incomplete. Try the LoRA that belongs to this model")


def _sorted_keys(tensors: Mapping[str, Tensor], source: str) -> tuple[Table, Table, Table, str]:
    """The tensors as (A matrices, B matrices, alphas), and the prefix of their keys."""
    downs, ups, alphas, prefix = {}, {}, {}, _PUBLISHED
    for key, tensor in tensors.items():
        found = next((p for p in (_PUBLISHED, _PEFT) if key.startswith(p)), None)
        for ending, table in ((".lora_A.weight", downs), (".lora_B.weight", ups), (".alpha", alphas)):
            if found is not None and key.endswith(ending):
                table[key[len(found):-len(ending)]] = (key, tensor)
                prefix = found
                break
        else:
            raise UserError(f"{source}: key {key!r} of shape {tuple(tensor.shape)} is not of a corrector LoRA; "
                            f"{_EXPECTED}; try a file saved by diffusers or peft")
    if not downs and not ups:
        raise UserError(f"{source}: holds no LoRA tensors; {_EXPECTED}; try another file")
    return downs, ups, alphas, prefix


def _in_order(downs: Table, ups: Table) -> Iterator[tuple[str, str, Tensor, bool]]:
    for path in sorted(set(downs) | set(ups)):
        for table, down in ((downs, True), (ups, False)):
            if path in table:
                yield path, *table[path], down


def _stated_alpha(key: str, tensor: Tensor, source: str) -> float:
    if tensor.numel() != 1:
        raise UserError(f"{source}: {key} has shape {tuple(tensor.shape)}; expected a single number")
    return _alpha(tensor.item(), f"{source}: {key}")


def _alpha(value: object, where: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < math.inf:
        raise UserError(f"{where} is {value!r}; expected an alpha, a number above 0; try to download the LoRA again")
    return float(value)


def _adapter_settings(metadata: Mapping[str, str], source: str) -> dict[str, Any]:
    """The transformer's part of the `lora_adapter_metadata` that newer diffusers writes; {} without it."""
    try:
        config = json.loads(metadata.get("lora_adapter_metadata", "{}"))
        return {k.removeprefix(_PUBLISHED): v for k, v in config.items() if k.startswith(_PUBLISHED)}
    except (ValueError, AttributeError) as error:
        raise UserError(f"{source}: its lora_adapter_metadata is not readable ({error}); expected JSON of the "
                        "adapter's settings; try to download the LoRA again") from error


def _alpha_by_settings(config: dict[str, Any], source: str) -> Callable[[str, int], float | None]:
    """The alpha that an adapter's settings give a path of some rank, as a function; None: unsaid."""
    if config.get("use_dora"):
        raise UserError(f"{source}: uses DoRA, which changes more than a corrector does; expected a plain LoRA; try "
                        "to train it without use_dora")
    default, patterns = config.get("lora_alpha"), config.get("alpha_pattern") or {}
    if not isinstance(patterns, dict):
        raise UserError(f"{source}: its alpha_pattern is {patterns!r}; expected an object from layer to alpha; try to "
                        "download the LoRA again")
    try:  # as peft matches them: a pattern is a regular expression for the end of a path
        compiled = [(re.compile(rf"(.*\.)?({pattern})$"), pattern, value) for pattern, value in patterns.items()]
    except re.error as error:
        raise UserError(f"{source}: its alpha_pattern has {error.pattern!r}, which is no pattern ({error}); try to "
                        "download the LoRA again") from error

    def of(path: str, rank: int) -> float | None:
        where, value = "lora_alpha", default
        for regex, pattern, given in compiled:
            if regex.match(path):
                where, value = f"alpha_pattern of {pattern}", given
                break
        if value is None:
            return None
        return _alpha(value, f"{source}: its {where}") * (math.sqrt(rank) if config.get("use_rslora") else 1.0)

    return of
