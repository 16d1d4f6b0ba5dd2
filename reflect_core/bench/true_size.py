"""The published models in their true size on the meta device, their weights kept in any of the ways there are.

`nf4` and `int8` are bitsandbytes': of the transformer and the large text encoder, linear layers' weights alone, in
blocks of 64 with one fp32 scale each, or with one scale for a row. Biases, norms, embeddings and convolutions stay as
they are, and of T5 the layers named `wo`, which transformers never quantises. `nf4-double` has its scales quantised
too: 8 bits each, and one fp32 for 256 of them. `fp8` is diffusers' layerwise casting, which leaves whatever has `norm`
in its name as it is, so FLUX's modulations too.
"""

from __future__ import annotations

import math
from typing import Any

import diffusers
import torch
import torch.nn.functional as F
import transformers
from diffusers.hooks import apply_layerwise_casting
from torch import Tensor, nn

from ..generators.flux_corrector.lora import ConditionLora
from ..generators.quantise import TEXT_WHOLE
from ..generators.reflect_dit.checkpoint import build
from ..presets.architectures import FLUX, FLUX_RANK, REFLECT, SANA, Part

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
WAYS = (*DTYPES, "fp8", "int8", "nf4", "nf4-double")
"""How weights are kept. All but the first compute in bf16."""
LARGE = {"flux": ("transformer", "text_encoder_2"), "sana": ("transformer", "text_encoder")}
"""The parts whose weights can be kept in fewer bits."""
WHOLE = ("wo",)


class Packed(nn.Module):
    """A linear layer with quantised weights: as many bytes as they take, and what its forward makes."""

    def __init__(self, layer: nn.Linear, way: str) -> None:
        super().__init__()
        self.in_features, self.out_features = layer.in_features, layer.out_features
        self.bias, self.way = layer.bias, way
        self.weight = nn.Parameter(layer.weight.new_empty(0))  # its dtype is that of the computation
        self.register_buffer("packed", torch.empty(packed_bytes(layer, way), dtype=torch.uint8, device="meta"))

    def forward(self, x: Tensor) -> Tensor:
        if self.way == "int8":  # LLM.int8: rows are quantised, and the products are whole numbers first
            torch.empty_like(x, dtype=torch.int8)
            sums = x.new_empty(*x.shape[:-1], self.out_features, dtype=torch.int32)
            return sums.to(x.dtype)
        return F.linear(x, x.new_empty(self.out_features, self.in_features), self.bias)


def packed_bytes(layer: nn.Linear, way: str) -> int:
    """Of a layer's weight, scales included."""
    if way == "int8":
        return layer.weight.numel() + 4 * layer.out_features
    blocks = math.ceil(layer.weight.numel() / 64)
    scales = blocks + 4 * math.ceil(blocks / 256) if way == "nf4-double" else 4 * blocks
    return math.ceil(layer.weight.numel() / 2) + scales


def true_size(family: str, way: str = "bfloat16") -> tuple[dict[str, nn.Module], nn.Module]:
    """Parts by name, and what goes with the transformer: the LoRA or the context transformer."""
    dtype = DTYPES.get(way, torch.bfloat16)
    with torch.device("meta"):
        if family == "flux":
            parts = {name: _made(part) for name, part in FLUX.items()}
            beside = ConditionLora.fresh(parts["transformer"], FLUX_RANK)
        else:
            parts = {name: _made(part) for name, part in SANA.items() if name != "transformer"}
            parts["transformer"], beside = build({**SANA["transformer"].config, **REFLECT})
    for module in (*parts.values(), beside):
        nn.Module.to(module, dtype).eval().requires_grad_(False)
    if way not in DTYPES:
        for name in LARGE[family]:
            _keep(parts[name], way)
    return parts, beside


def _made(part: Part) -> nn.Module:
    if part.library == "diffusers":
        return getattr(diffusers, part.kind)(**part.config)
    kind = getattr(transformers, part.kind)
    return kind(kind.config_class(**part.config))


def _keep(module: nn.Module, way: str) -> None:
    """Keep a part's weights in fewer bits, in place."""
    if way == "fp8":
        storage: dict[str, Any] = {"storage_dtype": torch.float8_e4m3fn, "compute_dtype": torch.bfloat16}
        if isinstance(module, diffusers.ModelMixin):
            module.enable_layerwise_casting(**storage)
        else:
            apply_layerwise_casting(module, skip_modules_pattern=TEXT_WHOLE, **storage)
        return
    for name, layer in list(module.named_modules()):
        if type(layer) is nn.Linear and name.rpartition(".")[2] not in WHOLE:
            parent, _, own = name.rpartition(".")
            setattr(module.get_submodule(parent), own, Packed(layer, way))
