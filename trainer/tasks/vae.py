"""The small picture autoencoder: diffusers' `AutoencoderKL`, 4x, trained on rendered scenes.

FLUX packs 2 x 2 latents into a token, so 4x here makes 64 tokens of a 64 x 64 picture.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch import Tensor

from reflect_core.shapes.sample import TASKS, sample_requirement, sample_scene
from reflect_core.shapes.scene import render_array

from ..config import TrainConfig
from ..grid import save_grid


def random_pictures(count: int, seed: int) -> np.ndarray:
    """Rendered training scenes as (count, 64, 64, 3) uint8."""
    rng = np.random.default_rng(seed)
    scenes = (sample_scene(sample_requirement(TASKS[k % len(TASKS)], rng), rng) for k in range(count))
    return np.stack([render_array(scene) for scene in scenes])


def to_tensor(pictures: np.ndarray) -> Tensor:
    """(B, H, W, 3) uint8 to (B, 3, H, W) in [-1, 1]."""
    return torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 127.5 - 1


def to_pictures(x: Tensor) -> np.ndarray:
    """(B, 3, H, W) in [-1, 1] to (B, H, W, 3) uint8."""
    return ((x.float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()


class VaeTask:
    def __init__(self, config: TrainConfig) -> None:
        self.config = config
        channels = config.model.get("channels", [32, 48, 64])
        self.vae = AutoencoderKL(
            in_channels=3, out_channels=3, block_out_channels=channels,
            down_block_types=["DownEncoderBlock2D"] * len(channels),
            up_block_types=["UpDecoderBlock2D"] * len(channels),
            layers_per_block=config.model.get("layers_per_block", 1), norm_num_groups=8,
            latent_channels=config.model.get("latent_channels", 4), sample_size=64,
            mid_block_add_attention=False, use_quant_conv=False, use_post_quant_conv=False)
        self.vae.to(memory_format=torch.channels_last)
        self.rebuild = torch.compile(self._rebuild) if config.compile else self._rebuild
        self.kl = config.model.get("kl", 5e-4)
        self.pictures = random_pictures(config.data.get("pictures", 8000), config.seed)
        self.held_out = to_tensor(random_pictures(16, config.seed + 1))

    def named_parameters(self):
        return self.vae.named_parameters()

    def matrices(self) -> set[str]:
        return set()

    def _rebuild(self, x: Tensor, noise: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        posterior = self.vae.encode(x).latent_dist
        z = posterior.mean + posterior.std * noise
        return self.vae.decode(z).sample, posterior.mean, posterior.logvar

    def loss(self, step: int, generator: torch.Generator) -> Tensor:
        index = torch.randint(len(self.pictures), (self.config.batch,), generator=generator).numpy()
        x = to_tensor(self.pictures[index]).contiguous(memory_format=torch.channels_last)
        with torch.autocast("cpu", torch.bfloat16, enabled=self.config.precision == "bf16"):
            height, width = (side // 2 ** (len(self.vae.config.block_out_channels) - 1) for side in x.shape[2:])
            noise = torch.randn(len(x), self.vae.config.latent_channels, height, width, generator=generator)
            out, mean, logvar = self.rebuild(x, noise)
        error = out.float() - x
        # The square keeps colours right, the absolute value keeps outlines sharp.
        rebuild = error.square().mean() + 0.2 * error.abs().mean()
        mean, logvar = mean.float(), logvar.float()
        return rebuild + self.kl * 0.5 * (mean.square() + logvar.exp() - 1 - logvar).mean()

    def sample(self, folder: Path, step: int) -> dict[str, float]:
        out = self.vae.decode(self.vae.encode(self.held_out).latent_dist.mode()).sample
        save_grid(folder / f"{step:07d}.png", np.concatenate([to_pictures(self.held_out), to_pictures(out)]), 16)
        return {"held_out_l1_of_255": float((out - self.held_out).abs().mean() * 127.5)}

    def export(self, folder: Path, provenance: dict) -> None:
        x = to_tensor(random_pictures(512, self.config.seed + 2))
        with torch.no_grad():
            z = torch.cat([self.vae.encode(part).latent_dist.mode() for part in x.split(64)])
        # FLUX shifts and scales latents to zero mean and unit spread by two numbers of the VAE's config.
        self.vae.register_to_config(shift_factor=float(z.mean()), scaling_factor=float(1 / z.std()))
        self.vae.to(memory_format=torch.contiguous_format).save_pretrained(folder)
        (folder / "provenance.json").write_text(json.dumps(provenance, indent=1) + "\n")
