"""ComfyUI's pictures and ours: IMAGE is float32 (B, H, W, 3) in 0..1 on the CPU, ours are 8-bit PIL pictures."""

from __future__ import annotations

from collections.abc import Sequence

from ..reflect_core.types import Picture, UserError


def to_image(pictures: Sequence[Picture]):
    """One IMAGE batch of pictures of one size."""
    import numpy as np
    import torch

    return torch.from_numpy(np.stack([np.asarray(p.convert("RGB")) for p in pictures])).float().div_(255)


def from_image(image) -> list[Picture]:
    """The pictures of a batch. UserError for what is no IMAGE."""
    import torch
    from PIL import Image

    if not isinstance(image, torch.Tensor) or image.ndim != 4 or image.shape[-1] not in (3, 4) or not len(image):
        got = tuple(image.shape) if isinstance(image, torch.Tensor) else type(image).__name__
        raise UserError(f"the image is {got}; expected a batch (B, height, width, 3)")
    pixels = (image[..., :3].float().nan_to_num() * 255).round().clamp(0, 255).to(torch.uint8).cpu().numpy()
    return [Image.fromarray(one) for one in pixels]
