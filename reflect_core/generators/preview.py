"""What is being drawn, roughly: latents to small pictures.

Small pictures go through the autoencoder itself. For larger ones that takes too long, and one linear map that is
fitted to it does: cheap enough for every step. The fit is to pictures of coloured patches; what is finer than a latent
is lost.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from ..types import Picture, Request
from .places import Places

DECODED = 128 * 128
"""Pixels of a picture up to which a preview goes through the autoencoder."""

PICTURES, PATCHES = 16, 6
"""Pictures that the map is fitted to, and coloured patches in each."""
LATENTS = 16
"""Latents along a side of them."""
FITTED = LATENTS**2
"""Latents of one, which the autoencoder is given at once."""


class Previews:
    """Of one model's pictures."""

    def __init__(self, vae, scale: int, places: Places) -> None:
        """`scale`: the autoencoder's pixels to one latent along a side."""
        self.vae, self.scale, self.places = vae, scale, places
        self.fitted: LatentPreview | None = None

    def prepare(self, request: Request) -> None:
        """Before the first step of a batch like this; asks for the autoencoder where it is needed."""
        if request.width * request.height > DECODED and self.fitted is None:
            self.places("vae", FITTED * self.scale**2)
            with torch.no_grad():
                self.fitted = LatentPreview(self.vae, self.scale)

    def made(self, latents: Tensor, request: Request, decode: Callable[[Tensor, torch.device], Picture]
             ) -> list[Picture]:
        """Latents (B, C, H, W) as the autoencoder decodes them to small pictures: of the first one only, by
        `decode(latents, place)`, where the autoencoder itself is quick; none while a memory manager has it half moved
        away."""
        with torch.no_grad():
            if request.width * request.height > DECODED:
                return self.fitted.pictures(latents)
            where = self.places.now("vae")
            return [] if where is None else [decode(latents[:1], where)]


class LatentPreview:
    """Latents (B, C, H, W) of one autoencoder to pictures of H x W pixels."""

    def __init__(self, vae, scale: int) -> None:
        """`vae`, an `AutoencoderKL` or an `AutoencoderDC`, is used once where it is."""
        weight = next(vae.parameters())
        pictures = _patchwork(LATENTS * scale)
        with torch.no_grad():
            means = [_mean(vae.encode(one[None].to(weight.device, weight.dtype))).float().cpu() for one in pictures]
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


def _mean(encoded) -> Tensor:
    return encoded.latent if hasattr(encoded, "latent") else encoded.latent_dist.mean


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
