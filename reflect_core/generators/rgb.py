"""A picture from outside as the RGB of eight bits that models see."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageOps

from ..types import Picture

TRANSPARENT = ("RGBA", "LA", "PA", "RGBa", "La")


def as_rgb(picture: Picture) -> Picture:
    """As somebody sees it: turned as its EXIF data say, and over white where it is transparent.

    Grey of 16 and of 32 bits (`I;16`, `I`) counts to 65,535, as in PNG files, and `F` to 1; beyond that it is white.
    """
    picture = ImageOps.exif_transpose(picture)
    if picture.mode == "F" or picture.mode.startswith("I"):
        grey = np.asarray(picture, dtype=np.float32) * (255 if picture.mode == "F" else 1 / 257)
        picture = Image.fromarray(np.rint(np.nan_to_num(grey).clip(0, 255)).astype(np.uint8))
    elif picture.mode in TRANSPARENT or "transparency" in picture.info:
        picture = picture.convert("LA" if picture.mode == "La" else "RGBA").convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
    return picture.convert("RGB")
