"""The small SANA-family autoencoder: diffusers' `AutoencoderDC`, 8x, so that a 64 x 64 picture has 8 x 8 latents.

DC-AE has no posterior to sample from. Noise of a fixed spread takes its place while it is trained, and a pull towards
zero keeps the latents from growing out of its reach: without both they would hold more than can be denoised.
"""

from __future__ import annotations

import math
from pathlib import Path

import torch
from diffusers import AutoencoderDC
from torch import Tensor

from reflect_core.presets.load import check_safetensors, read_json

from ...settings_sana import SanaVaeModel
from ..vae import VaeTask


def load_autoencoder(folder: Path) -> AutoencoderDC:
    """A frozen autoencoder from the result folder of a run. Raises `UserError` for anything else."""
    read_json(folder / "config.json", "expected the result folder of a sana_vae run; train that first")
    check_safetensors(folder / "diffusion_pytorch_model.safetensors")
    return AutoencoderDC.from_pretrained(folder, local_files_only=True).requires_grad_(False)


class SanaVaeTask(VaeTask):
    """Trains the autoencoder. See `loop.Task`."""

    def build(self, model: SanaVaeModel) -> AutoencoderDC:
        self.noise, stages = model.noise, len(model.channels)
        return AutoencoderDC(
            latent_channels=model.latent_channels, encoder_block_types="ResBlock", decoder_block_types="ResBlock",
            encoder_block_out_channels=tuple(model.channels), decoder_block_out_channels=tuple(model.channels),
            encoder_layers_per_block=tuple(model.layers_per_block),
            decoder_layers_per_block=tuple(model.layers_per_block),
            encoder_qkv_multiscales=((),) * stages, decoder_qkv_multiscales=((),) * stages)

    def _rebuild(self, x: Tensor, noise: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        z = self.vae.encode(x).latent
        return self.vae.decode(z + self.noise * noise).sample, z, torch.full_like(z, 2 * math.log(self.noise))

    def scaling(self, z: Tensor) -> dict[str, float]:
        """SANA's pipeline scales latents and does not shift them; the pull has left their mean near zero."""
        return {"scaling_factor": float(1 / z.square().mean().sqrt())}
