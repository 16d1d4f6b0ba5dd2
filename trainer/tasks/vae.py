"""The small picture autoencoder: diffusers' `AutoencoderKL`, 4x, trained on rendered scenes.

FLUX packs 2 x 2 latents into a token, so 4x here makes 64 tokens of a 64 x 64 picture.
"""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import AutoencoderKL
from torch import Tensor

from reflect_core.presets.load import check_safetensors, read_json

from ..config import TrainConfig
from ..identity import digest
from ..pictures import mode, save_sheet, to_pictures, to_tensor
from ..settings import VaeModel
from ..shapes import random_pictures
from .common import autocast, forget_places, write_provenance


def load_vae(folder: Path) -> AutoencoderKL:
    """A frozen autoencoder from the result folder of a run. Raises `UserError` for anything else."""
    read_json(folder / "config.json", "expected the result folder of a vae run; train that first")
    check_safetensors(folder / "diffusion_pytorch_model.safetensors")
    return AutoencoderKL.from_pretrained(folder, local_files_only=True).requires_grad_(False)


class VaeTask:
    """Trains the autoencoder. See `loop.Task`."""

    def __init__(self, config: TrainConfig) -> None:
        self.config, (model, data) = config, config.sections()
        self.vae = self.build(model)
        self.vae.to(config.device, memory_format=torch.channels_last)
        self.rebuild = torch.compile(self._rebuild) if config.compile else self._rebuild
        self.kl, self.scale = model.kl, 2 ** (len(model.channels) - 1)
        self.pictures = random_pictures(data.pictures, config.seed)
        self.held_out = to_tensor(random_pictures(16, config.seed + 1)).to(config.device)
        self.data = {"rendered_scenes": data.pictures, "pictures": digest(self.pictures)}

    def build(self, model: VaeModel) -> torch.nn.Module:
        return AutoencoderKL(
            in_channels=3, out_channels=3, block_out_channels=model.channels,
            down_block_types=["DownEncoderBlock2D"] * len(model.channels),
            up_block_types=["UpDecoderBlock2D"] * len(model.channels),
            layers_per_block=model.layers_per_block, norm_num_groups=8,
            latent_channels=model.latent_channels, sample_size=64,
            mid_block_add_attention=False, use_quant_conv=False, use_post_quant_conv=False)

    def named_parameters(self):
        return self.vae.named_parameters()

    def matrices(self) -> set[str]:
        return set()

    def _rebuild(self, x: Tensor, noise: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Pictures (B, 3, H, W) and noise (B, C, h, w) to rebuilt pictures, and mean and log-variance (B, C, h, w)."""
        posterior = self.vae.encode(x).latent_dist
        z = posterior.mean + posterior.std * noise
        return self.vae.decode(z).sample, posterior.mean, posterior.logvar

    def loss(self, step: int, generator: torch.Generator) -> Tensor:
        index = torch.randint(len(self.pictures), (self.config.batch,), generator=generator).numpy()
        x = to_tensor(self.pictures[index]).contiguous(memory_format=torch.channels_last).to(self.config.device)
        height, width = (side // self.scale for side in x.shape[2:])
        noise = torch.randn(len(x), self.vae.config.latent_channels, height, width, generator=generator)
        with autocast(self.config):
            out, mean, logvar = self.rebuild(x, noise.to(x.device))
        error = out.float() - x
        # The square keeps colours right, the absolute value keeps outlines sharp.
        rebuild = error.square().mean() + 0.2 * error.abs().mean()
        mean, logvar = mean.float(), logvar.float()
        return rebuild + self.kl * 0.5 * (mean.square() + logvar.exp() - 1 - logvar).mean()

    def sample(self, file: Path, step: int) -> dict[str, float]:
        """Rows of the sheet: held-out pictures, and the same rebuilt."""
        out = self.vae.decode(mode(self.vae, self.held_out)).sample
        save_sheet(file, [to_pictures(self.held_out), to_pictures(out)])
        return {"held_out_l1_of_255": float((out - self.held_out).abs().mean() * 127.5)}

    def scaling(self, z: Tensor) -> dict[str, float]:
        """What FLUX's pipeline finds in the config to bring latents (B, C, h, w) to zero mean and unit spread."""
        return {"shift_factor": float(z.mean()), "scaling_factor": float(1 / z.std())}

    def export(self, folder: Path, provenance: dict) -> None:
        x = to_tensor(random_pictures(512, self.config.seed + 2)).to(self.config.device)
        with torch.no_grad():
            z = torch.cat([mode(self.vae, part) for part in x.split(64)])
        self.vae.register_to_config(**self.scaling(z))
        self.vae.to(memory_format=torch.contiguous_format).save_pretrained(folder)
        forget_places(folder)
        write_provenance(folder, provenance)
