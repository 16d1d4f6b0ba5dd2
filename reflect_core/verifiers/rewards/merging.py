"""Weights as peft and a plain `state_dict()` name them, brought to one naming, and LoRA added into them.

A model under peft has `base_model.model.` before every name, `.base_layer.` where a layer is adapted, and, in a whole
state dict, the adapter's name `default`. Qwen2.5-VL's own names changed with transformers 4.52: `visual.` is
`model.visual.` since, and `model.layers.` is `model.language_model.layers.`. Here all come out in the newer ones.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...model_files import read_json
from ...types import UserError

HEAD = "rm_head.weight"
EMBEDDING = "model.language_model.embed_tokens.weight"
_LORA = re.compile(r"(?P<path>.+)\.lora_(?P<embedding>embedding_)?(?P<which>[AB])(?:\.default)?(?:\.weight)?")


@dataclass
class Lora:
    """A change of one weight W (O, I): W + scale * B A; of an embedding (V, D): W + scale * (B A) transposed."""

    path: str
    embedding: bool = False
    a: Tensor | None = None
    """(rank, I), or (rank, V)"""
    b: Tensor | None = None
    """(O, rank), or (D, rank)"""

    @property
    def weight(self) -> str:
        """The name of the weight that it changes."""
        return f"{self.path}.weight"

    def delta(self) -> Tensor:
        """B A in fp32, in the shape of the weight."""
        change = self.b.to(torch.float32) @ self.a.to(torch.float32)
        return change.T if self.embedding else change


def sorted_out(tensors: Mapping[str, Tensor], where: str | Path) -> tuple[dict[str, Tensor], list[Lora]]:
    """(weights by name, LoRA) of a file's tensors. UserError for half a LoRA, or a kind that is not known."""
    weights: dict[str, Tensor] = {}
    loras: dict[str, Lora] = {}
    for key, tensor in tensors.items():
        name = _current(key)
        if ".original_module." in key:
            continue  # what `modules_to_save` took the place of
        match = _LORA.fullmatch(name)
        if match is not None:
            lora = loras.setdefault(match["path"], Lora(match["path"], match["embedding"] is not None))
            setattr(lora, match["which"].lower(), tensor)
        elif "lora_" in name:
            raise UserError(f"{where}: has {key}, which is more than a plain LoRA; expected lora_A and lora_B; try to "
                            "merge it with peft and to save the whole model")
        else:
            weights[name] = tensor
    for lora in loras.values():
        if lora.a is None or lora.b is None or lora.a.ndim != 2 or lora.b.shape[1:] != lora.a.shape[:1]:
            raise UserError(f"{where}: the LoRA of {lora.path} has no A and B that belong together; expected (rank, "
                            "in) and (out, rank); try to download it again")
    return weights, list(loras.values())


def merge(weights: Mapping[str, Tensor], loras: list[Lora], scales: Scales, where: str | Path) -> None:
    """Add each LoRA into its weight, in place, in fp32 and then rounded. UserError for one that does not fit."""
    for lora in loras:
        weight = weights.get(lora.weight)
        if weight is None or weight.shape != lora.delta().shape:
            got = "no such weight" if weight is None else f"a weight of the shape {tuple(weight.shape)}"
            raise UserError(f"{where}: has a LoRA for {lora.path}, and the base has {got}; expected an adapter of this "
                            "base; try the base that its model_config.json names")
        change = lora.delta().to(weight.device) * scales.of(lora)
        with torch.no_grad():
            weight.copy_(weight.to(torch.float32) + change)


@dataclass(frozen=True)
class Scales:
    """alpha / rank of each LoRA, or alpha / sqrt(rank) where it was trained so (rsLoRA, arXiv 2312.03732)."""

    alpha: float
    alphas: Mapping[str, float]
    """Where peft's `alpha_pattern` says otherwise: by the end of a path."""
    root: bool = False

    @classmethod
    def of_adapter(cls, folder: Path, trained: Mapping[str, Any]) -> Scales:
        """By peft's adapter_config.json in the folder or, without one, by the section of model_config.json, with its
        own names and defaults. UserError for settings that this merge does not know."""
        file = folder / "adapter_config.json"
        config = read_json(file, "") if file.is_file() else {
            "lora_alpha": trained.get("lora_alpha", 32), "use_rslora": trained.get("use_rslora", False)}
        kind = config.get("peft_type", "LORA")
        if kind != "LORA" or config.get("use_dora") or config.get("bias", "none") != "none":
            raise UserError(f"{file}: is of {kind}{' with DoRA' if config.get('use_dora') else ''}, bias "
                            f"{config.get('bias', 'none')!r}; expected a plain LoRA; try to merge it with peft and to "
                            "save the whole model")
        alpha, alphas = config.get("lora_alpha"), config.get("alpha_pattern") or {}
        if not all(isinstance(value, (int, float)) and value > 0 for value in (alpha, *alphas.values())):
            raise UserError(f"{file}: lora_alpha is {alpha!r}; expected a number above 0; try to download it again")
        return cls(float(alpha), alphas, bool(config.get("use_rslora", False)))

    def of(self, lora: Lora) -> float:
        rank = lora.a.shape[0]
        alpha = next((value for end, value in self.alphas.items()
                      if re.fullmatch(rf"(.*\.)?{end}", lora.path)), self.alpha)
        return alpha / (math.sqrt(rank) if self.root else rank)


def _current(key: str) -> str:
    """A tensor's name without peft's additions, as transformers has it now."""
    name = key.removeprefix("base_model.model.")
    name = name.replace(".base_layer.", ".").replace(".modules_to_save.default.", ".").replace(".modules_to_save.", ".")
    if name.startswith("visual."):
        return f"model.{name}"
    if name.startswith("model.") and not name.startswith(("model.visual.", "model.language_model.")):
        return f"model.language_model.{name.removeprefix('model.')}"
    return name
