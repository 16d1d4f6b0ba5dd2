"""Layers that may stay in main memory while their part is in use, and come to the device as they compute.

Plain layers get ComfyUI's own casting classes. A packed one, in fp8, GGUF or bitsandbytes' nf4, has a forward of its
own, which such a class would take the place of; so it is moved as what it is, packed and with its scales, for one
call, and unpacks itself there. ComfyUI's partial load knows both by the same attributes, and decides which of them it
can keep on the card. The weights in main memory stay where they are, so nothing is copied back. The results are the
same, to the bit.
"""

from __future__ import annotations

import comfy.ops
import torch
from torch import Tensor, nn

from ..reflect_core.generators.packed import Visit

# No embeddings: ComfyUI's class wants an attribute that only its own constructor sets.
_CASTING = {nn.Linear: comfy.ops.manual_cast.Linear, nn.Conv2d: comfy.ops.manual_cast.Conv2d,
            nn.LayerNorm: comfy.ops.manual_cast.LayerNorm, nn.GroupNorm: comfy.ops.manual_cast.GroupNorm}


def stream(part: nn.Module, device: torch.device) -> None:
    """Have a part's layers come to `device` while they compute; in place."""
    for layer in part.modules():
        if is_packed(layer):
            visit = Visit(device)
            layer.register_forward_pre_hook(lambda layer, arguments, visit=visit: visit.begin(layer))
            layer.register_forward_hook(lambda layer, arguments, made, visit=visit: visit.end(), always_call=True)
            # What ComfyUI asks a layer for before it leaves it in main memory, see its ModelPatcher.load.
            layer.comfy_cast_weights, layer.weight_function, layer.bias_function = True, [], []
        elif type(layer) in _CASTING:
            layer.__class__ = _CASTING[type(layer)]


def is_packed(layer: nn.Module) -> bool:
    """Whether a layer unpacks its weights itself: by a hook of diffusers in place of its forward, or because they are
    no plain parameters."""
    own = list(layer.parameters(recurse=False))
    leaf = not any(True for _ in layer.children())
    plain = all(type(held) in (nn.Parameter, Tensor) for held in own)
    return leaf and bool(own) and ("forward" in vars(layer) or not plain)


def move_the_rest(part: nn.Module, device: torch.device) -> None:
    """Parameters and buffers outside of such layers, which a partial load leaves behind."""
    for layer in part.modules():
        if hasattr(layer, "comfy_cast_weights"):
            continue
        for held in (*layer.parameters(recurse=False), *layer.buffers(recurse=False)):
            held.data = held.data.to(device)
