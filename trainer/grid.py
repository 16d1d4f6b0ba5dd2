"""Sample grids: many small pictures on one sheet, enlarged so that one can see them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image


def save_grid(path: Path, pictures: np.ndarray, columns: int, scale: int = 2) -> None:
    """Write (B, H, W, 3) uint8 pictures as rows of `columns`."""
    count, height, width, _ = pictures.shape
    rows = -(-count // columns)
    sheet = np.full((rows * (height + 2), columns * (width + 2), 3), 128, dtype=np.uint8)
    for k, picture in enumerate(pictures):
        y, x = k // columns * (height + 2), k % columns * (width + 2)
        sheet[y : y + height, x : x + width] = picture
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(sheet).resize((sheet.shape[1] * scale, sheet.shape[0] * scale), Image.NEAREST).save(path)
