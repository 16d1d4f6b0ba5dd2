"""The transformer and the scheduler of a small FLUX-family model before it is trained: diffusers' own, small."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, FluxTransformer2DModel

from reflect_core.model_files import read_safetensors
from reflect_core.types import UserError

from ..settings import BaseModel


def build_transformer(m: BaseModel, vae: AutoencoderKL, text_width: int, pooled_width: int) -> FluxTransformer2DModel:
    """Random, but that it predicts nothing yet and every block starts as the identity."""
    third = m.head_dim // 8 * 3
    transformer = FluxTransformer2DModel(
        in_channels=4 * vae.config.latent_channels, num_layers=m.double_blocks,
        num_single_layers=m.single_blocks, attention_head_dim=m.head_dim, num_attention_heads=m.heads,
        joint_attention_dim=text_width, pooled_projection_dim=pooled_width, guidance_embeds=True,
        axes_dims_rope=(m.head_dim - 2 * third, third, third))
    for block in (*transformer.transformer_blocks, *transformer.single_transformer_blocks):
        for name, module in block.named_modules():
            if name in ("norm1.linear", "norm1_context.linear", "norm.linear"):
                torch.nn.init.zeros_(module.weight)  # adaLN-zero
    torch.nn.init.zeros_(transformer.proj_out.weight)
    return transformer


def build_scheduler(m: BaseModel) -> FlowMatchEulerDiscreteScheduler:
    return FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, shift=m.shift)


def load_weights(transformer: FluxTransformer2DModel, folder: Path) -> None:
    """Those of the model in `folder`. UserError if it is of another size, or there is none."""
    file = folder / "transformer" / "diffusion_pytorch_model.safetensors"
    weights, _ = read_safetensors(file)
    mine = transformer.state_dict()
    for name in {**mine, **weights}:
        theirs, ours = (tuple(held[name].shape) if name in held else None for held in (weights, mine))
        if theirs != ours:
            raise UserError(f"model.start {folder}: {name} is {theirs}; expected {ours}, as this config's heads and "
                            "blocks make it. Choose the same sizes as there, or train from nothing")
    transformer.load_state_dict(weights)
