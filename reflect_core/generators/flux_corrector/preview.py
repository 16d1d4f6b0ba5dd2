"""What is being drawn, roughly: latents to small pictures by one linear map, fitted to the autoencoder.

Cheap enough for every step, whatever the autoencoder. The fit is to pictures of coloured patches; what
is finer than a latent is lost.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from ...types import Picture

PICTURES, PATCHES = 16, 6
"""Pictures that the map is fitted to, and coloured patches in each."""
LATENTS = 16
"""Latents along a side of them."""
FITTED = LATENTS**2
"""Latents of one, which the autoencoder is given at once."""


class LatentPreview:
    """Latents (B, C, H, W) of one autoencoder to pictures of H x W pixels."""

    def __init__(self, vae, scale: int) -> None:
        """`vae` is an `AutoencoderKL`, used once where it is; `scale` its pixels to one latent along a side."""
        weight = next(vae.parameters())
        pictures = _patchwork(LATENTS * scale)
        with torch.no_grad():
            means = [vae.encode(one[None].to(weight.device, weight.dtype)).latent_dist.mean.float().cpu()
                     for one in pictures]
        latents = torch.cat(means).movedim(1, -1).flatten(0, 2)
        colours = F.avg_pool2d(pictures, scale).movedim(1, -1).flatten(0, 2)
        known = torch.cat([latents, torch.ones(len(latents), 1)], dim=1)
        # A pseudoinverse: channels that are never used are no obstacle.
        self.map = torch.linalg.pinv(known, rtol=1e-4) @ colours
        """(C + 1, 3), the last row for the constant."""

    def pictures(self, latents: Tensor) -> list[Picture]:
        """Of latents as the autoencoder decodes them, its scaling taken off."""
        latents = latents.float().cpu().movedim(1, -1)
        rgb = latents @ self.map[:-1] + self.map[-1]
        pixels = ((rgb.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
        return [Image.fromarray(one.numpy()) for one in pixels]


def _patchwork(side: int) -> Tensor:
    """Pictures (B, 3, side, side) in -1..1: rectangles of random colours on random backgrounds, always the same."""
    random = torch.Generator().manual_seed(0)
    pictures = torch.empty(PICTURES, 3, side, side)
    for picture in pictures:
        picture[:] = _colour(random)
        for _ in range(PATCHES):
            left, top = (torch.rand(2, generator=random) * side * 0.8).long().tolist()
            width, height = (torch.rand(2, generator=random) * side * 0.4 + side / 8).long().tolist()
            picture[:, top : top + height, left : left + width] = _colour(random)
    return pictures


def _colour(random: torch.Generator) -> Tensor:
    """(3, 1, 1); bright and dark ones are as frequent as those in between."""
    return (torch.rand(3, 1, 1, generator=random) * 3 - 1.5).clamp(-1, 1)
