"""How often the detector reads rendered scenes right, clean and disturbed: `python tests/check_detector.py`."""

from __future__ import annotations

import argparse
import io
import sys
import time
from pathlib import Path

import numpy as np
from PIL import Image
from scipy import ndimage
from scipy.optimize import linear_sum_assignment

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from reflect_core.shapes.detector import detect
from reflect_core.shapes.sample import TASKS, sample_requirement, sample_scene
from reflect_core.shapes.scene import COLOURS, GAP, SHAPES, render_array

ALL_PAIRS = tuple((c, s) for c in COLOURS for s in SHAPES)
CENTRE_TOLERANCE = 1.5
BOUNDS = {"clean": 0.995, "noise": 0.98, "blur": 0.98, "jpeg": 0.98, "all": 0.98}
"""Least share of scenes that must be read exactly right."""


def noise(pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    sigma = rng.uniform(8, 10)
    return np.clip(np.rint(pixels + rng.normal(0, sigma, pixels.shape)), 0, 255).astype(np.uint8)


def blur(pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    sigma = rng.uniform(0.7, 0.9)
    return np.rint(ndimage.gaussian_filter(pixels.astype(np.float32), (sigma, sigma, 0))).astype(np.uint8)


def jpeg(pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=int(rng.integers(60, 76)))
    return np.asarray(Image.open(file).convert("RGB"))


def everything(pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return jpeg(noise(blur(pixels, rng), rng), rng)


DISTURBANCES = {"clean": lambda pixels, rng: pixels, "noise": noise, "blur": blur, "jpeg": jpeg, "all": everything}


def sample(rng: np.random.Generator):
    """A scene of a random task, any pair allowed, objects as near as the world allows."""
    task = TASKS[rng.integers(len(TASKS))]
    return sample_scene(sample_requirement(task, rng, ALL_PAIRS), rng, ALL_PAIRS, GAP)


def agrees(scene, found) -> bool:
    """The same shapes and colours, each with its centre in place."""
    if sorted(o.words for o in scene) != sorted(o.words for o in found):
        return False
    cost = np.array([[np.hypot(a.x - b.x, a.y - b.y) if a.words == b.words else 1e6 for b in found] for a in scene])
    rows, columns = linear_sum_assignment(cost)
    return bool((cost[rows, columns] <= CENTRE_TOLERANCE).all())


def measure(scenes: int, seed: int = 0, keep: list | None = None) -> dict[str, float]:
    """Share of scenes read exactly right for each disturbance; failures are added to `keep`."""
    rng = np.random.default_rng(seed)
    right = dict.fromkeys(DISTURBANCES, 0)
    for _ in range(scenes):
        scene = sample(rng)
        pixels = render_array(scene)
        for name, disturb in DISTURBANCES.items():
            picture = disturb(pixels, rng)
            found = detect(picture)
            right[name] += agrees(scene, found)
            if keep is not None and not agrees(scene, found):
                keep.append((name, scene, found, picture))
    return {name: count / scenes for name, count in right.items()}


def speed(pictures: int = 300, seed: int = 1) -> float:
    """Milliseconds a picture, on outlines already computed."""
    rng = np.random.default_rng(seed)
    batch = [everything(render_array(sample(rng)), rng) for _ in range(pictures)]
    for picture in batch:
        detect(picture)
    start = time.perf_counter()
    for picture in batch:
        detect(picture)
    return (time.perf_counter() - start) / pictures * 1000


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scenes", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    shares = measure(args.scenes, args.seed)
    print(f"scenes read exactly right (same objects, centres within {CENTRE_TOLERANCE} px), {args.scenes} scenes")
    for name, share in shares.items():
        print(f"  {name:6s} {100 * share:6.2f} %   (bound {100 * BOUNDS[name]:.1f} %)")
    print(f"speed    {speed():.2f} ms a picture")
    return 0 if all(share >= BOUNDS[name] for name, share in shares.items()) else 1


if __name__ == "__main__":
    sys.exit(main())
