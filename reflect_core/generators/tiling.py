"""Decoding a large picture tile by tile, for the autoencoder's activations are what needs most memory of a small GPU.

It is an approximation: a tile does not see what lies outside of it, so that colours may differ a little, and where
tiles overlap they are blended.
"""

from __future__ import annotations

from torch import nn

SIDE = 512
"""Pixels along a side of a tile."""


def tile(vae: nn.Module, scale: int, side: int | None = None) -> None:
    """Have an `AutoencoderKL` or `AutoencoderDC` work on tiles wherever a picture is larger than one.

    Args:
        scale: its pixels to one latent along a side.
        side: of a tile in pixels; an `AutoencoderKL`'s own would be the size that it was trained on, which is 1024 for
            FLUX.1-dev, and so no tiles at all.
    """
    side = SIDE if side is None else side
    if hasattr(vae, "tile_latent_min_size"):  # AutoencoderKL
        vae.enable_tiling()
        vae.tile_sample_min_size, vae.tile_latent_min_size = side, side // scale
    else:
        vae.enable_tiling(side, side, side * 7 // 8, side * 7 // 8)
