"""Our forward over a diffusers `SanaTransformer2DModel` with context tokens beside the prompt's (Reflect-DiT, 1.7).

The blocks are diffusers' own. What is new is what they cross-attend to: prompt tokens, then context tokens.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .context import ContextEncoder, Pairs

CUT = -10000.0
"""Added to the attention of what is not attended to, as in SANA."""


def reflect_forward(transformer: nn.Module, context: ContextEncoder | None, hidden_states: Tensor,
                    encoder_hidden_states: Tensor, timestep: Tensor, encoder_attention_mask: Tensor,
                    pairs: Pairs | None = None, *, mask_last: bool = True, mask_context: bool = False,
                    rotary_bf16: bool = True) -> Tensor:
    """One evaluation: noisy latents (B, C, H, W) to what SANA predicts of them (B, C, H, W). Differentiable.

    Args:
        transformer: a `SanaTransformer2DModel`. context: what Reflect-DiT adds to it; None only without `pairs`.
        encoder_hidden_states: the prompts' states (B, L, D); encoder_attention_mask: (B, L).
        timestep: (B,) in 0..1000.
        pairs: the rows' contexts; None: plain SANA.
        mask_last: never attend to the last token of the longest row. Official: true.
        mask_context: leave padding out of the context transformer's attention. Official: false.
        rotary_bf16: see `ContextEncoder.forward`.
    """
    dtype = transformer.patch_embed.proj.weight.dtype
    modulation, embedded = transformer.time_embed(timestep, batch_size=len(hidden_states), hidden_dtype=dtype)
    words = transformer.caption_norm(transformer.caption_projection(encoder_hidden_states))
    keep = encoder_attention_mask.bool()
    if pairs is not None:
        tokens, real = context.tokens(pairs)
        tokens = context(tokens, modulation, real if mask_context else None, rotary_bf16=rotary_bf16)
        words, keep = torch.cat([words, tokens], dim=1), torch.cat([keep, real], dim=1)
        if mask_last:
            keep[:, -1] = False
    return blocks_forward(transformer, hidden_states, words, keep, modulation, embedded)


def blocks_forward(transformer: nn.Module, hidden_states: Tensor, words: Tensor, keep: Tensor, modulation: Tensor,
                   embedded: Tensor) -> Tensor:
    """Noisy latents (B, C, H, W) to what is predicted of them (B, C, H, W).

    Args: words (B, L, D) and keep (B, L), true where they are attended to; modulation (B, 6 D) and embedded (B, D), of
    the time step.
    """
    height, width = (side // transformer.config.patch_size for side in hidden_states.shape[2:])
    patch = transformer.config.patch_size
    latents = transformer.patch_embed(hidden_states)
    bias = torch.zeros_like(keep, dtype=latents.dtype).masked_fill(~keep, CUT)[:, None]
    for block in transformer.transformer_blocks:
        latents = block(latents, None, words, bias, modulation, height, width)
    latents = transformer.norm_out(latents, embedded, transformer.scale_shift_table)
    latents = transformer.proj_out(latents).unflatten(1, (height, width)).unflatten(-1, (patch, patch, -1))
    return latents.permute(0, 5, 1, 3, 2, 4).flatten(4, 5).flatten(2, 3)
