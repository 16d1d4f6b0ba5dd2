"""The same forward with all that no step changes done once: exact, tested against the plain one (Reflect-DiT, 8).

- the prompts' keys and values of every block once for all steps; padded tokens are left out;
- the adapters once, the context transformer for all time steps in one call;
- all of a dropped row's context tokens are alike, whatever the row: one key, its logit raised by the log of their
  number;
- rows of several prompts come out as alone: each row's padding ends where it would end by itself.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .context import DROPPED_TEXT, ContextEncoder, Pairs

NEVER = float("-inf")


@dataclass(frozen=True)
class Prepared:
    """What stays the same over the steps of one batch of B rows. Make it with `prepare`."""

    prompts: tuple[tuple[Tensor, Tensor], ...]
    """Of each block the prompts' keys and values (B, H, L, D)."""
    context: Tensor | None
    """(S, B, M, C), for each of the S time steps; None for plain SANA."""
    bias: Tensor
    """(B, 1, 1, L + M), added to the logits of the cross-attention."""
    modulation: Tensor
    """(S, 6 C)"""
    embedded: Tensor
    """(S, C)"""


@dataclass(frozen=True)
class Rows:
    """Prompt states (B, L, D) and their mask (B, L)."""

    states: Tensor
    mask: Tensor


def prepare(transformer: nn.Module, context: ContextEncoder | None, timesteps: Tensor, rows: Rows,
            pairs: Pairs | None = None, beside: Sequence[int] | None = None, *, mask_last: bool = True,
            pad_context: bool = True, rotary_bf16: bool = True) -> Prepared:
    """Do once what no step changes.

    Args:
        timesteps: (S,) in 0..1000, all that `denoise` will be asked for.
        pairs: the rows' contexts; None: plain SANA. A dropped row (None in `pairs.rows`) has that of no feedback.
        beside: for each row the one that it is led away from, or that is led away from it, by guidance: those two are
            one call of the official code, and the longer of them decides what is padded and masked. None: every row
            stands alone.
        mask_last: never attend to a row's last token, where it is the longer of the two. Official: true.
        pad_context: where a row is shorter than a dropped one, zeros fill it up in the context transformer. Official:
            true.
        rotary_bf16: see `ContextEncoder.forward`.
    """
    dtype = transformer.patch_embed.proj.weight.dtype
    modulation, embedded = transformer.time_embed(timesteps, batch_size=len(timesteps), hidden_dtype=dtype)
    longest = int(rows.mask.sum(dim=1).max())
    words = transformer.caption_norm(transformer.caption_projection(rows.states[:, :longest]))
    bias = _never(rows.mask[:, :longest] == 0, dtype)
    tokens = None
    if pairs is not None:
        tokens, more = _context(context, pairs, beside, modulation, mask_last, pad_context, rotary_bf16)
        bias = torch.cat([bias, more], dim=1)
    prompts = tuple(_keys_values(block.attn2, words) for block in transformer.transformer_blocks)
    return Prepared(prompts, tokens, bias[:, None, None], modulation, embedded)


def denoise(transformer: nn.Module, prepared: Prepared, latents: Tensor, step: int) -> Tensor:
    """One evaluation: noisy latents (B, C, H, W) at the time step number `step` to SANA's prediction (B, C, H, W)."""
    patch = transformer.config.patch_size
    height, width = latents.shape[2] // patch, latents.shape[3] // patch
    tokens = transformer.patch_embed(latents)
    modulation = prepared.modulation[step].view(1, 6, -1)
    context = None if prepared.context is None else prepared.context[step]
    for block, prompt in zip(transformer.transformer_blocks, prepared.prompts):
        tokens = _block(block, tokens, modulation, prompt, context, prepared.bias, height, width)
    tokens = transformer.norm_out(tokens, prepared.embedded[step][None], transformer.scale_shift_table)
    tokens = transformer.proj_out(tokens).unflatten(1, (height, width)).unflatten(-1, (patch, patch, -1))
    return tokens.permute(0, 5, 1, 3, 2, 4).flatten(4, 5).flatten(2, 3)


def _context(encoder: ContextEncoder, pairs: Pairs, beside: Sequence[int] | None, modulation: Tensor, mask_last: bool,
             pad_context: bool, rotary_bf16: bool) -> tuple[Tensor, Tensor]:
    """Context tokens (S, B, M, C) and the bias (B, M) of their logits."""
    steps, rows, width = len(modulation), pairs.rows, encoder.reflection_norm.weight.shape[0]
    counts = pairs.text_mask.sum(dim=1).tolist()
    dropped = pairs.images.shape[1] + DROPPED_TEXT
    own = [dropped if row is None else sum(pairs.images.shape[1] + counts[pair] for pair in row) for row in rows]
    both = [max(own[n], own[n if beside is None else beside[n]]) for n in range(len(rows))]
    seen = [length - int(mask_last and length == most) for length, most in zip(own, both)]

    told = [number for number, row in enumerate(rows) if row is not None]
    without = [number for number, row in enumerate(rows) if row is None]
    padded = max((both[n] if pad_context else own[n] for n in told), default=1)
    context = modulation.new_zeros(steps, len(rows), padded, width)
    bias = modulation.new_full((len(rows), padded), NEVER)
    if without:
        # Zeros alone stay alike: one of them is all of them.
        zero = modulation.new_zeros(steps, 1, width)
        context[:, without, :1] = encoder(zero, modulation, rotary_bf16=rotary_bf16)[:, None]
        bias[without, 0] = torch.tensor([math.log(seen[n]) for n in without]).to(bias)
    if told:
        tokens, _ = encoder.tokens(replace(pairs, rows=tuple(rows[n] for n in told)))
        tokens = F.pad(tokens, (0, 0, 0, padded - tokens.shape[1]))
        places = torch.arange(padded, device=tokens.device)
        inside = places < places.new_tensor([both[n] if pad_context else own[n] for n in told])[:, None]
        made = encoder(tokens.repeat(steps, 1, 1), modulation.repeat_interleave(len(told), dim=0),
                       inside.repeat(steps, 1), rotary_bf16=rotary_bf16)
        context[:, told] = made.unflatten(0, (steps, len(told)))
        bias[told] = _never(places >= places.new_tensor([seen[n] for n in told])[:, None], bias.dtype)
    return context, bias


def _never(where: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.zeros(where.shape, dtype=dtype, device=where.device).masked_fill(where, NEVER)


def _keys_values(attention: nn.Module, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """(B, L, C) to keys and values (B, H, L, D) of a cross-attention."""
    key, value = attention.to_k(tokens), attention.to_v(tokens)
    if attention.norm_k is not None:
        key = attention.norm_k(key)
    return tuple(x.unflatten(-1, (attention.heads, -1)).transpose(1, 2) for x in (key, value))


def _block(block: nn.Module, tokens: Tensor, modulation: Tensor, prompt: tuple[Tensor, Tensor],
           context: Tensor | None, bias: Tensor, height: int, width: int) -> Tensor:
    """A `SanaTransformerBlock` whose cross-attention is given the prompt's keys and values."""
    mods = block.scale_shift_table[None] + modulation
    shift_attn, scale_attn, gate_attn, shift_ff, scale_ff, gate_ff = mods.chunk(6, dim=1)
    tokens = tokens + gate_attn * block.attn1(block.norm1(tokens) * (1 + scale_attn) + shift_attn)
    cross = block.attn2
    query = cross.to_q(tokens)
    if cross.norm_q is not None:
        query = cross.norm_q(query)
    keys, values = prompt
    if context is not None:
        more = _keys_values(cross, context)
        keys, values = torch.cat([keys, more[0]], dim=2), torch.cat([values, more[1]], dim=2)
    query = query.unflatten(-1, (cross.heads, -1)).transpose(1, 2)
    out = F.scaled_dot_product_attention(query, keys, values, attn_mask=bias)
    tokens = tokens + cross.to_out[0](out.transpose(1, 2).flatten(2)) / cross.rescale_output_factor
    normed = (block.norm2(tokens) * (1 + scale_ff) + shift_ff).unflatten(1, (height, width)).permute(0, 3, 1, 2)
    return tokens + gate_ff * block.ff(normed).flatten(2).transpose(1, 2)
