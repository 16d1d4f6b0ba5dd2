"""The transformer and the scheduler of a small SANA model before it is trained, and its convolutions as matrices."""

from __future__ import annotations

import copy

import torch.nn.functional as F
from diffusers import AutoencoderDC, DPMSolverMultistepScheduler, SanaTransformer2DModel
from torch import Tensor, nn

from ...settings_sana import SanaBaseModel


def build_transformer(m: SanaBaseModel, vae: AutoencoderDC, text_width: int) -> SanaTransformer2DModel:
    """Random, but that it predicts nothing yet and its cross-attention adds nothing."""
    width = m.heads * m.head_dim
    transformer = SanaTransformer2DModel(
        in_channels=vae.config.latent_channels, out_channels=vae.config.latent_channels, num_layers=m.blocks,
        num_attention_heads=m.heads, attention_head_dim=m.head_dim, cross_attention_dim=width,
        num_cross_attention_heads=m.cross_heads, cross_attention_head_dim=width // m.cross_heads,
        caption_channels=text_width, mlp_ratio=2.5, sample_size=m.side, patch_size=1, interpolation_scale=1)
    for linear in (transformer.proj_out, *(block.attn2.to_out[0] for block in transformer.transformer_blocks)):
        nn.init.zeros_(linear.weight)
        nn.init.zeros_(linear.bias)
    return transformer


def build_scheduler(shift: float) -> DPMSolverMultistepScheduler:
    """SANA's."""
    return DPMSolverMultistepScheduler(algorithm_type="dpmsolver++", solver_order=2, prediction_type="flow_prediction",
                                       use_flow_sigmas=True, flow_shift=shift)


class Pointwise(nn.Module):
    """A 1 x 1 convolution whose weight is a matrix (out, in), as Muon takes it."""

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.weight = nn.Parameter(conv.weight.detach()[:, :, 0, 0].clone())
        self.bias = None if conv.bias is None else nn.Parameter(conv.bias.detach().clone())

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight[:, :, None, None], self.bias)


def as_matrices(transformer: nn.Module) -> None:
    """Put `Pointwise` in the place of the 1 x 1 convolutions of the blocks. The same function, and the same names."""
    for block in transformer.transformer_blocks:
        block.ff.conv_inverted, block.ff.conv_point = Pointwise(block.ff.conv_inverted), Pointwise(block.ff.conv_point)


def as_convolutions(transformer: nn.Module) -> nn.Module:
    """A copy with diffusers' own convolutions again."""
    made = copy.deepcopy(transformer)
    for block in made.transformer_blocks:
        for name in ("conv_inverted", "conv_point"):
            flat = getattr(block.ff, name)
            conv = nn.Conv2d(flat.weight.shape[1], flat.weight.shape[0], 1, bias=flat.bias is not None)
            conv.load_state_dict({"weight": flat.weight[:, :, None, None]} | (
                {} if flat.bias is None else {"bias": flat.bias}))
            setattr(block.ff, name, conv)
    return made
