"""Rendered training scenes with their captions, encoded once and kept on disk.

Encoding costs as much as a tenth of a training step; a bank of a hundred thousand scenes is encoded
in minutes and then serves every epoch. The file's name carries a hash of what made it, so that a
stale bank is never taken for a fresh one.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from reflect_core.generators.flux_corrector.latents import pack
from reflect_core.shapes.corrupt import corrupt
from reflect_core.shapes.repair import plan, words
from reflect_core.shapes.sample import TASKS, sample_prompt, sample_scene
from reflect_core.shapes.scene import render_array

MARKER = " [Reflexion] "


def task_weights(weights: dict[str, float] | None) -> np.ndarray:
    values = np.array([(weights or {}).get(task, 1.0) for task in TASKS], dtype=float)
    return values / values.sum()


def make_captioned(count: int, seed: int, weights: dict[str, float] | None) -> tuple[np.ndarray, list[list[str]]]:
    """`count` pictures (count, 64, 64, 3) and for each three texts: two captions, and a caption with
    an instruction behind it, in the language that the corrector will hear."""
    rng = np.random.default_rng(seed)
    chances = task_weights(weights)
    pictures = np.empty((count, 64, 64, 3), dtype=np.uint8)
    texts = []
    for k in range(count):
        task = TASKS[rng.choice(len(TASKS), p=chances)]
        prompt, requirement = sample_prompt(task, rng)
        scene = sample_scene(requirement, rng)
        pictures[k] = render_array(scene)
        second = sample_same(task, requirement, rng)
        flawed = corrupt(scene, requirement, rng, int(rng.integers(1, 4)))
        told = words(plan(flawed, requirement), requirement)
        texts.append([prompt, second, prompt + MARKER + told if told else prompt])
    return pictures, texts


def sample_same(task: str, requirement, rng: np.random.Generator) -> str:
    """Another sentence with the same meaning that is not held out."""
    from reflect_core.shapes.evaluation import is_held_out
    from reflect_core.shapes.sample import sample_sentence

    while True:
        text = sample_sentence(requirement, rng)
        if not is_held_out(task, text):
            return text


def cached(folder: Path, settings: dict, make) -> dict[str, Tensor]:
    """The tensors that `make()` returns, from disk where they were made before with these settings."""
    key = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]
    path = folder / f"bank-{key}.safetensors"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        tensors = make()
        partial = path.with_suffix(".partial")
        save_file(tensors, partial, {"settings": json.dumps(settings, sort_keys=True)})
        partial.rename(path)
    return load_file(path)


@torch.no_grad()
def encode_pictures(vae, pictures: np.ndarray, batch: int = 64) -> Tensor:
    """(B, H, W, 3) uint8 to packed, shifted and scaled latent tokens (B, N, 4 C), posterior mode."""
    from .tasks.vae import to_tensor

    out = []
    for start in range(0, len(pictures), batch):
        z = vae.encode(to_tensor(pictures[start : start + batch])).latent_dist.mode()
        out.append(pack((z - vae.config.shift_factor) * vae.config.scaling_factor))
    return torch.cat(out)
