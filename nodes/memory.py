"""Every weight under ComfyUI's memory manager: one patcher for each part of a model.

ComfyUI then evicts the text encoders while the transformer draws, and the transformer while a judge
looks. `keep` says how a part is loaded: 'whole' forces a full load, because a partial one silently
leaves tensors of foreign modules behind; with 'streamed' a part may stay partly in main memory and is
moved layer by layer while it computes, see `streamed.py`.
Where ComfyUI leaves all weights in main memory (--novram), nothing can be loaded whole.
"""

from __future__ import annotations

import comfy.model_management as manager
import torch
from comfy.model_patcher import ModelPatcher
from torch import nn

from ..reflect_core.generators import quantise
from ..reflect_core.generators.tiling import SIDE
from ..reflect_core.types import UserError
from .streamed import move_the_rest, stream

TEXT_ROOM = {"text_encoder": 64 << 20, "text_encoder_2": 512 << 20}
"""Bytes to keep free while a published text encoder computes; a small one needs no more than it weighs."""
PIXEL_ROOM = {"vae": 2178, "transformer": 460, "image_encoder": 460, "judge": 300}
"""Bytes to keep free for each pixel and each byte of a number, as ComfyUI reckons for FLUX (comfy/sd.py; its
memory_usage_factor of 2.8)."""


class _Holder(nn.Module):
    """What a patcher holds: it wants to set `device`, which diffusers' and transformers' models refuse."""

    def __init__(self, modules: list[nn.Module]) -> None:
        super().__init__()
        self.held = nn.ModuleList(modules)
        self.device: torch.device | None = None


class Parts:
    """The parts of one model, each loaded when it is asked for."""

    def __init__(self, parts: dict[str, list[nn.Module]], keep: str = "whole") -> None:
        if manager.vram_state == manager.VRAMState.NO_VRAM:
            keep = "streamed"
        self.keep = keep
        self.patchers: dict[str, ModelPatcher] = {}
        for name, modules in parts.items():
            load, offload = _devices(name, modules)
            if keep == "streamed":
                for module in modules:
                    stream(module, load)
            self.patchers[name] = ModelPatcher(_Holder(modules).to(offload), load, offload)

    @property
    def device(self) -> str:
        """Where a judge computes, which has one part or several beside each other."""
        return str(next(iter(self.patchers.values())).load_device)

    def place(self, name: str, pixels: int = 0) -> torch.device:
        """Load a part, also when another node has had it evicted, with room for `pixels` at once, and say where it
        computes. Raises ComfyUI's own exception if somebody pressed Cancel."""
        manager.throw_exception_if_processing_interrupted()
        patcher, kind = self.patchers[name], name.rpartition(":")[2]
        # Of what it computes in: of packed weights those that are not packed say so.
        number = max(held.element_size() for held in patcher.model.parameters() if held.is_floating_point())
        if getattr(patcher.model.held[0], "use_tiling", False):
            pixels = min(pixels, SIDE**2)
        # A text encoder that sees has pixels, too.
        room = (min(TEXT_ROOM[kind], patcher.model_size()) + pixels * number * PIXEL_ROOM["image_encoder"]
                if kind in TEXT_ROOM else pixels * number * PIXEL_ROOM.get(kind.rpartition(".")[2], 460))
        manager.load_models_gpu([patcher], memory_required=room, force_full_load=self.keep == "whole")
        if self.keep == "streamed":
            move_the_rest(patcher.model, patcher.load_device)
        return patcher.load_device


def _devices(name: str, modules: list[nn.Module]) -> tuple[torch.device, torch.device]:
    """(where a part computes, where it waits). Before the name of one of two models' parts may stand whose it is."""
    name = name.rpartition(":")[2]
    # ComfyUI leaves text encoders to the CPU where the card is small; bitsandbytes packs for the card.
    on_card = any(hasattr(held, "quant_state") for module in modules for held in module.parameters())
    if name.startswith("text_encoder") and not on_card:
        return manager.text_encoder_device(), manager.text_encoder_offload_device()
    if name == "vae":
        return manager.vae_device(), manager.vae_offload_device()
    return manager.get_torch_device(), manager.unet_offload_device()


def pack_room(size: int) -> str:
    """The card, with room for weights of `size` bytes that bitsandbytes packs there. UserError where there is none."""
    card = manager.get_torch_device()
    if "nf4" in quantise.NEED_GPU and manager.is_device_cpu(card):
        raise UserError("quantise is 'nf4', which is offered on a GPU only, and ComfyUI computes on the CPU; expected "
                        "one of the others; try fp8")
    manager.free_memory(size / 2, card)  # a third of them will lie there
    return str(card)


def best_dtype(asked: str, parameters: int, in_fp16: bool = True) -> str:
    """The dtype that was asked for, or for 'auto' what the device computes well in; fp32 on a CPU. `in_fp16`: whether
    the model's numbers fit into fp16."""
    if asked != "auto":
        return asked
    device = manager.get_torch_device()
    if manager.is_device_cpu(device):
        return "float32"
    if manager.should_use_bf16(device, model_params=parameters):
        return "bfloat16"
    if not in_fp16:
        return "bfloat16"
    return "float16" if manager.should_use_fp16(device, model_params=parameters) else "float32"
