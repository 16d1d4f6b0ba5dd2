"""python tests/browser/thumbnails.py SHOTS: thumbnails of the workflows, from the pages that the browser test took.

SHOTS holds NAME-classic.png; each is cut to its groups and written to workflows/NAME.jpg.
"""

import sys
from pathlib import Path

import numpy as np
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
WIDTH, QUALITY = 1280, 82
CANVAS = (160, 100, 2700, 1000)
"""Pixels of the page that hold nothing but the graph: left, top, right, bottom."""


def cut(page: Image.Image) -> Image.Image:
    """The part of the page that is no plain canvas."""
    left, top, right, bottom = CANVAS
    pixels = np.asarray(page.convert("RGB")).astype(int)[top:, left:right]
    canvas = np.median(pixels.reshape(-1, 3), axis=0)
    # The minimap and the buttons lie in the lower corners, outside of the graph's columns.
    seen = np.abs(pixels - canvas).sum(axis=2) > 24
    seen[bottom - top :, : 300] = seen[bottom - top :, -700:] = False
    rows, columns = np.flatnonzero(seen.mean(axis=1) > 0.05), np.flatnonzero(seen.mean(axis=0) > 0.05)
    return page.crop((left + columns[0] - 8, top + rows[0] - 8, left + columns[-1] + 9, top + rows[-1] + 9))


for path in sorted((ROOT / "workflows").glob("*.json")):
    picture = cut(Image.open(Path(sys.argv[1]) / f"{path.stem}-classic.png")).convert("RGB")
    picture = picture.resize((WIDTH, round(picture.height * WIDTH / picture.width)), Image.Resampling.LANCZOS)
    picture.save(path.with_suffix(".jpg"), quality=QUALITY, optimize=True)
    print(path.stem, picture.size, path.with_suffix(".jpg").stat().st_size)
