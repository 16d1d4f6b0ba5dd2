"""Weights that are more than one tensor, of bitsandbytes, GGUF or torchao: a copy of them on another device.

A layer is given the copy for as long as it computes there, and its own back afterwards. Those have stayed where they
were, whole, so that nothing is copied back.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn


def copy_on(held: Tensor, device: torch.device) -> Tensor:
    """A parameter or buffer on a device. The one that it is copied from is left as it is."""
    state = getattr(held, "quant_state", None)
    if state is not None:
        # bitsandbytes moves the scales of a parameter in place, so the copy needs some of its own.
        held = copy.copy(held)
        held.quant_state = state = copy.copy(state)
        state.state2 = copy.copy(getattr(state, "state2", None))
    moved = held.to(device)
    return nn.Parameter(moved, requires_grad=False) if type(held) is nn.Parameter else moved


class Visit:
    """A layer's parameters and buffers on a device, until it is sent home."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.home: list[tuple[dict[str, Tensor | None], str, Tensor]] = []

    def begin(self, layer: nn.Module) -> None:
        # Not by setattr, which takes nothing for a parameter that is none, as diffusers leaves some behind.
        for kind in (layer._parameters, layer._buffers):
            for name, held in list(kind.items()):
                if held is not None and held.device != self.device:
                    kind[name] = copy_on(held, self.device)
                    self.home.append((kind, name, held))

    def end(self) -> None:
        for kind, name, held in self.home:
            kind[name] = held
        self.home.clear()
