"""What differs between the versions of transformers and diffusers that are supported, in one place.

transformers 4.57 to 5.x, diffusers from 0.33 on. What can tell by itself is asked, and not its version number.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn


def image_processor(folder: Any) -> Any:
    """The model's image processor, by Pillow. By torchvision, the default where it is installed (always since 5.4), a
    resized picture differs in its last bits."""
    from transformers import AutoImageProcessor

    return AutoImageProcessor.from_pretrained(folder, local_files_only=True, use_fast=False)


def positions(model: nn.Module, ids: Tensor, beside: Mapping[str, Tensor]) -> Tensor:
    """Position ids of a whole sequence (1, L): (1, L), or (3, 1, L) of the models with positions in three dimensions.

    `beside`: the processor's other outputs, of which `get_rope_index` takes other ones in each version.
    """
    length = ids.shape[1]
    plain = torch.arange(length, device=ids.device)[None]
    rope = getattr(getattr(model, "model", None), "get_rope_index", None)
    if rope is None:
        return plain
    if not any(name.endswith("grid_thw") for name in beside):
        return plain[None].expand(3, 1, length)
    takes = inspect.signature(rope).parameters
    given = {name: value for name, value in beside.items() if name in takes}
    return rope(ids, **given, attention_mask=torch.ones_like(ids))[0]
