"""From tokens to pictures through the autoencoder, at the end and, roughly, in between.

Whoever draws in FLUX's latent space has one: the corrector and the editors.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from diffusers.image_processor import VaeImageProcessor
from torch import Tensor

from ...types import Picture, Request
from ..checking import check_finite
from ..places import Places
from ..preview import Previews
from .latents import unpack


class Decoder:
    """Of one model's tokens."""

    def __init__(self, vae: Any, patch: int, places: Places, unscaled: Callable[[Tensor, Any], Tensor]) -> None:
        """
        Args:
            vae: decodes latents (B, C, h, w), as an `AutoencoderKL` does.
            patch: pixels to a token along a side.
            unscaled: (latents, the autoencoder's config) -> latents as the autoencoder knows them.
        """
        self.vae, self.patch, self.places, self.unscaled = vae, patch, places, unscaled
        self.previews = Previews(vae, patch // 2, places)
        self.processor = VaeImageProcessor(vae_scale_factor=patch)

    def prepare(self, request: Request) -> None:
        """Before the first step of a batch like this, if there are to be previews."""
        self.previews.prepare(request)

    def preview(self, tokens: Tensor, request: Request) -> list[Picture]:
        """Tokens (B, N, C) to small pictures."""
        return self.previews.made(self._latents(tokens, request), request, self._picture)

    def pictures(self, tokens: Tensor, request: Request) -> list[Picture]:
        """Tokens (B, N, C) to pictures, one at a time: the decoder's activations are large."""
        pixels = request.width * request.height
        return [self._picture(row[None], self.places("vae", pixels)) for row in self._latents(tokens, request)]

    def _latents(self, tokens: Tensor, request: Request) -> Tensor:
        """Tokens (B, N, C) to what the autoencoder decodes (B, C / 4, h, w)."""
        latents = unpack(tokens, request.height // self.patch, request.width // self.patch)
        return self.unscaled(latents.to(self.vae.dtype), self.vae.config)

    def _picture(self, latents: Tensor, device: torch.device | str) -> Picture:
        """Latents (1, C, h, w) through the decoder."""
        image = self.vae.decode(latents.to(device), return_dict=False)[0]
        check_finite(image)
        return self.processor.postprocess(image, output_type="pil")[0]
