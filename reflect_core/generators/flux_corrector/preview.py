"""What is being drawn, roughly: latents to small pictures by one linear map, fitted to the autoencoder.

Cheap enough for every step, whatever the autoencoder. Only colours are fitted, so edges and textures
are as coarse as the latents are.
"""

from __future__ import annotations

import itertools

import torch
from PIL import Image
from torch import Tensor

from ...types import Picture

LEVELS = (-1.0, 0.0, 1.0)
"""Of each channel of the flat colours that the map is fitted to: 27 of them."""
LATENTS = 8
"""Latents along a side of a flat picture; the outer ones see its edge and are left out."""


class LatentPreview:
    """Latents (B, C, H, W) of one autoencoder to pictures of H x W pixels."""

    def __init__(self, vae, scale: int) -> None:
        """`vae` is an `AutoencoderKL`, used once where it is; `scale` its pixels to one latent along a side."""
        weight = next(vae.parameters())
        colours = torch.tensor(list(itertools.product(LEVELS, repeat=3)))
        side = LATENTS * scale
        with torch.no_grad():
            means = []
            for colour in colours:
                flat = colour.view(1, 3, 1, 1).expand(1, 3, side, side).to(weight.device, weight.dtype)
                mean = vae.encode(flat).latent_dist.mean.float().cpu()
                means.append(mean[0, :, 2:-2, 2:-2].mean(dim=(1, 2)))
        known = torch.cat([torch.stack(means), torch.ones(len(colours), 1)], dim=1)
        # A pseudoinverse: more latent channels than colours, or unused ones, are no obstacle.
        self.map = torch.linalg.pinv(known, rtol=1e-4) @ colours
        """(C + 1, 3), the last row for the constant."""

    def pictures(self, latents: Tensor) -> list[Picture]:
        """As the autoencoder would decode them: before its scaling is taken off, do so."""
        latents = latents.float().cpu().movedim(1, -1)
        rgb = latents @ self.map[:-1] + self.map[-1]
        pixels = ((rgb.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
        return [Image.fromarray(one.numpy()) for one in pixels]
