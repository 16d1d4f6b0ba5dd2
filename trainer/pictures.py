"""Between pictures as arrays, tensors and latent tokens, and sheets of many pictures to look at."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from reflect_core.generators.flux_corrector.latents import pack

SHEET_SIDE = 256
"""Larger pictures are reduced to this on a sheet; those of at most half of it are enlarged twofold."""
_PIXELS_AT_ONCE = 64 * 64 * 64


def to_tensor(pictures: np.ndarray) -> Tensor:
    """(B, H, W, 3) uint8 to (B, 3, H, W) in [-1, 1]."""
    return torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 127.5 - 1


def to_pictures(x: Tensor) -> np.ndarray:
    """(B, 3, H, W) in [-1, 1] to (B, H, W, 3) uint8."""
    return ((x.float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()


def at_once(height: int, width: int) -> int:
    """How many pictures of a size go through the autoencoder together: 64 of 64 x 64, 1 of 512 x 512 or more."""
    return max(1, _PIXELS_AT_ONCE // (height * width))


def mode(vae, x: Tensor) -> Tensor:
    """Pictures (B, 3, H, W) in [-1, 1] to latents (B, C, h, w) as the autoencoder makes them, nothing sampled."""
    encoded = vae.encode(x)
    return encoded.latent if hasattr(encoded, "latent") else encoded.latent_dist.mode()


@torch.no_grad()
def encode_pictures(vae, pictures: np.ndarray) -> Tensor:
    """(B, H, W, 3) uint8 to packed, shifted and scaled latent tokens (B, N, 4 C) on the CPU, fp32; the mode of
    the autoencoder's posterior."""
    out = []
    for part in np.split(pictures, range(batch := at_once(*pictures.shape[1:3]), len(pictures), batch)):
        z = mode(vae, to_tensor(part).to(vae.device, vae.dtype))
        out.append(pack((z - (vae.config.shift_factor or 0.0)) * vae.config.scaling_factor).float().cpu())
    return torch.cat(out)


def resized(picture: np.ndarray, side: int) -> np.ndarray:
    """(H, W, 3) uint8 to (side, side, 3), bicubic; the same array where nothing is to be done."""
    if picture.shape[:2] == (side, side):
        return picture
    return np.asarray(Image.fromarray(picture).resize((side, side), Image.Resampling.BICUBIC))


def save_sheet(path: Path, rows: Sequence[Sequence[np.ndarray]]) -> None:
    """Write rows of square (S, S, 3) uint8 pictures as one sheet."""
    side = min(SHEET_SIDE, max(len(picture) for row in rows for picture in row))
    columns = max(map(len, rows))
    sheet = np.full((len(rows) * (side + 2), columns * (side + 2), 3), 128, dtype=np.uint8)
    for r, row in enumerate(rows):
        for c, picture in enumerate(row):
            y, x = r * (side + 2), c * (side + 2)
            sheet[y : y + side, x : x + side] = resized(picture, side)
    scale = 2 if 2 * side <= SHEET_SIDE else 1
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(sheet).resize((sheet.shape[1] * scale, sheet.shape[0] * scale), Image.NEAREST).save(path)
