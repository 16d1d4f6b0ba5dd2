"""LoRA for reflection tuning where all of SANA is too much: low-rank changes of the blocks' linear layers.

The released layout has no place for them, so that they are added to the weights when the result is written.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn


class LoraLinear(nn.Module):
    """A frozen linear layer and a low-rank change, which is nothing at first."""

    def __init__(self, linear: nn.Linear, rank: int, generator: torch.Generator) -> None:
        super().__init__()
        self.linear, device = linear.requires_grad_(False), linear.weight.device
        # Drawn on the CPU: the same on every device.
        self.down = nn.Parameter((torch.randn(rank, linear.in_features, generator=generator) / rank).to(device))
        self.up = nn.Parameter(torch.zeros(linear.out_features, rank, device=device))

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x) + ((x.to(self.down.dtype) @ self.down.T) @ self.up.T).to(x.dtype)

    def merged(self) -> nn.Linear:
        linear = copy.deepcopy(self.linear)
        linear.weight.data = (linear.weight.float() + self.up @ self.down).to(linear.weight.dtype)
        return linear


def add_lora(transformer: nn.Module, rank: int, generator: torch.Generator) -> None:
    """Freeze a SANA transformer but for low-rank changes of its blocks' attention."""
    transformer.requires_grad_(False)
    for block in transformer.transformer_blocks:
        for attention in (block.attn1, block.attn2):
            for name in ("to_q", "to_k", "to_v"):
                setattr(attention, name, LoraLinear(getattr(attention, name), rank, generator))
            attention.to_out[0] = LoraLinear(attention.to_out[0], rank, generator)


def merge_lora(transformer: nn.Module) -> None:
    """Put plain linear layers in the place of those with changes."""
    for block in transformer.transformer_blocks:
        for attention in (block.attn1, block.attn2):
            for name in ("to_q", "to_k", "to_v"):
                if isinstance(layer := getattr(attention, name), LoraLinear):
                    setattr(attention, name, layer.merged())
            if isinstance(layer := attention.to_out[0], LoraLinear):
                attention.to_out[0] = layer.merged()
