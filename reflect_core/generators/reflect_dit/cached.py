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
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..compiled import Run, directly
from .context import ContextEncoder

NEVER = float("-inf")


@dataclass(frozen=True)
class Group:
    """What some rows of a batch attend to: those with feedback in view, those without, or all of a plain batch."""

    rows: slice | list[int]
    prompts: Tensor
    """The prompts' keys and values in each of the N blocks (N, 2, b, H, L, d)."""
    context: Tensor | None
    """(S, b, M, C), for each of the S time steps; None for plain SANA."""
    bias: Tensor
    """(b, 1, 1, L + M), added to the logits of the cross-attention."""


@dataclass(frozen=True)
class Prepared:
    """What stays the same over the steps of one batch. Make it with `prepare`."""

    groups: tuple[Group, ...]
    modulation: Tensor
    """(S, 6 C)"""
    embedded: Tensor
    """(S, C)"""


def keys_values(transformer: nn.Module, states: Tensor) -> Tensor:
    """A prompt's states (L, D) to its keys and values in each of the N blocks (N, 2, H, L, d)."""
    words = transformer.caption_norm(transformer.caption_projection(states[None]))
    return torch.stack([torch.cat(_keys_values(block.attn2, words)) for block in transformer.transformer_blocks])


def prepare(transformer: nn.Module, context: ContextEncoder | None, timesteps: Tensor, prompts: Sequence[Tensor],
            contexts: Sequence[Tensor | None] | None = None, beside: Sequence[int] | None = None, *, dropped: int = 0,
            mask_last: bool = True, pad_context: bool = True, rotary_bf16: bool = True) -> Prepared:
    """Do once what no step changes.

    Args:
        timesteps: (S,) in 0..1000, all that `denoise` will be asked for.
        prompts: of each row what `keys_values` makes of it. Rows of one prompt should have one tensor.
        contexts: of each row its tokens (M, C), those of `ContextEncoder.tokens`; None for a row whose context is
            dropped. None altogether: plain SANA. Rows of one context should have one tensor.
        beside: for each row the one that it is led away from, or that is led away from it, by guidance: those two are
            one call of the official code, and the longer of them decides what is padded and masked. None: every row
            stands alone.
        dropped: how many tokens a dropped row has.
        mask_last: never attend to a row's last token, where it is the longer of the two. Official: true.
        pad_context: where a row is shorter than a dropped one, zeros fill it up in the context transformer. Official:
            true.
        rotary_bf16: see `ContextEncoder.forward`.
    """
    dtype = transformer.patch_embed.proj.weight.dtype
    modulation, embedded = transformer.time_embed(timesteps, batch_size=len(timesteps), hidden_dtype=dtype)

    def group(numbers: list[int], tokens: Tensor | None = None, more: Tensor | None = None) -> Group:
        words, bias = _together([prompts[number] for number in numbers])
        bias = bias if more is None else torch.cat([bias, more.to(bias)], dim=1)
        where = slice(numbers[0], numbers[-1] + 1) if numbers == list(range(numbers[0], numbers[-1] + 1)) else numbers
        return Group(where, words, tokens, bias[:, None, None])

    if contexts is None:
        return Prepared((group(list(range(len(prompts)))),), modulation, embedded)
    lengths = _lengths([dropped if tokens is None else len(tokens) for tokens in contexts], beside, mask_last)
    told = [number for number, tokens in enumerate(contexts) if tokens is not None]
    without = [number for number, tokens in enumerate(contexts) if tokens is None]
    groups = []
    if without:
        groups.append(group(without, *_nothing(context, [lengths[n] for n in without], modulation, rotary_bf16)))
    if told:
        groups.append(group(told, *_context(context, [contexts[n] for n in told], [lengths[n] for n in told],
                                            modulation, pad_context, rotary_bf16)))
    return Prepared(tuple(groups), modulation, embedded)


def denoise(transformer: nn.Module, prepared: Prepared, latents: Tensor, step: int, *, run: Run = directly) -> Tensor:
    """One evaluation: noisy latents (B, C, H, W) at the time step number `step` to SANA's prediction (B, C, H, W).
    `run`: how a block is run, see `compiled.py`."""
    patch = transformer.config.patch_size
    height, width = latents.shape[2] // patch, latents.shape[3] // patch
    tokens = transformer.patch_embed(latents)
    modulation = prepared.modulation[step].view(1, 6, -1)
    for number, block in enumerate(transformer.transformer_blocks):
        seen = tuple((group.rows, group.prompts[number], None if group.context is None else group.context[step],
                      group.bias) for group in prepared.groups)
        tokens = run(_block, block, tokens, modulation, seen, height, width)
    tokens = transformer.norm_out(tokens, prepared.embedded[step][None], transformer.scale_shift_table)
    tokens = transformer.proj_out(tokens).unflatten(1, (height, width)).unflatten(-1, (patch, patch, -1))
    return tokens.permute(0, 5, 1, 3, 2, 4).flatten(4, 5).flatten(2, 3)


@dataclass(frozen=True)
class _Length:
    """Context tokens of a row: its own, those of the longer of its pair, and those that are attended to."""

    own: int
    both: int
    seen: int


def _lengths(own: Sequence[int], beside: Sequence[int] | None, mask_last: bool) -> list[_Length]:
    both = [max(own[n], own[n if beside is None else beside[n]]) for n in range(len(own))]
    return [_Length(a, most, a - int(mask_last and a == most)) for a, most in zip(own, both)]


def _together(prompts: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Prompts (N, 2, H, L, d) of several lengths as (N, 2, b, H, L, d), and the bias (b, L) that hides the padding."""
    longest = max(prompt.shape[3] for prompt in prompts)
    lengths = prompts[0].new_tensor([prompt.shape[3] for prompt in prompts], dtype=torch.long)
    hides = _never(torch.arange(longest, device=lengths.device) >= lengths[:, None], prompts[0].dtype)
    if all(prompt is prompts[0] for prompt in prompts):
        return prompts[0][:, :, None].expand(-1, -1, len(prompts), -1, -1, -1), hides
    return torch.stack([F.pad(prompt, (0, 0, 0, longest - prompt.shape[3])) for prompt in prompts], dim=2), hides


def _nothing(encoder: ContextEncoder, lengths: list[_Length], modulation: Tensor, rotary_bf16: bool
             ) -> tuple[Tensor, Tensor]:
    """Context (S, b, 1, C) and bias (b, 1) of dropped rows. Zeros alone stay alike: one of them is all of them."""
    zero = modulation.new_zeros(len(modulation), 1, encoder.reflection_norm.weight.shape[0])
    context = encoder(zero, modulation, rotary_bf16=rotary_bf16)[:, None].expand(-1, len(lengths), -1, -1)
    return context, torch.tensor([[math.log(length.seen)] for length in lengths]).to(modulation)


def _context(encoder: ContextEncoder, contexts: Sequence[Tensor], lengths: list[_Length], modulation: Tensor,
             pad_context: bool, rotary_bf16: bool) -> tuple[Tensor, Tensor]:
    """Context (S, b, M, C) and bias (b, M) of rows with feedback, each different one made once."""
    wanted = [(id(tokens), length.both if pad_context else length.own) for tokens, length in zip(contexts, lengths)]
    different = {one: tokens for one, tokens in zip(wanted, contexts)}
    inside = [long for _, long in different]
    tokens = torch.stack([F.pad(one, (0, 0, 0, max(inside) - len(one))) for one in different.values()])
    steps, places = len(modulation), torch.arange(max(inside), device=tokens.device)
    made = encoder(tokens.repeat(steps, 1, 1), modulation.repeat_interleave(len(inside), dim=0),
                   (places < places.new_tensor(inside)[:, None]).repeat(steps, 1), rotary_bf16=rotary_bf16)
    seen = max(length.seen for length in lengths)
    bias = _never(places[:seen] >= places.new_tensor([length.seen for length in lengths])[:, None], made.dtype)
    order = list(different)
    return made.unflatten(0, (steps, len(inside)))[:, [order.index(one) for one in wanted], :seen], bias


def _never(where: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.zeros(where.shape, dtype=dtype, device=where.device).masked_fill(where, NEVER)


def _keys_values(attention: nn.Module, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """(B, L, C) to keys and values (B, H, L, D) of a cross-attention."""
    key, value = attention.to_k(tokens), attention.to_v(tokens)
    if attention.norm_k is not None:
        key = attention.norm_k(key)
    return tuple(x.unflatten(-1, (attention.heads, -1)).transpose(1, 2) for x in (key, value))


Seen = tuple[slice | list[int], Tensor, Tensor | None, Tensor]
"""What a block sees of a `Group`: rows, prompts (2, b, H, L, d), context (b, M, C), bias."""


def _block(block: nn.Module, tokens: Tensor, modulation: Tensor, groups: Sequence[Seen], height: int, width: int
           ) -> Tensor:
    """A `SanaTransformerBlock` whose cross-attention is given the prompts' keys and values."""
    mods = block.scale_shift_table[None] + modulation
    shift_attn, scale_attn, gate_attn, shift_ff, scale_ff, gate_ff = mods.chunk(6, dim=1)
    tokens = tokens + gate_attn * block.attn1(block.norm1(tokens) * (1 + scale_attn) + shift_attn)
    cross = block.attn2
    query = cross.to_q(tokens)
    if cross.norm_q is not None:
        query = cross.norm_q(query)
    query = query.unflatten(-1, (cross.heads, -1)).transpose(1, 2)
    seen = torch.empty_like(query)
    for rows, (keys, values), context, bias in groups:
        if context is not None:
            more = _keys_values(cross, context)
            keys, values = torch.cat([keys, more[0]], dim=2), torch.cat([values, more[1]], dim=2)
        seen[rows] = F.scaled_dot_product_attention(query[rows], keys, values, attn_mask=bias)
    tokens = tokens + cross.to_out[0](seen.transpose(1, 2).flatten(2)) / cross.rescale_output_factor
    normed = (block.norm2(tokens) * (1 + scale_ff) + shift_ff).unflatten(1, (height, width)).permute(0, 3, 1, 2)
    return tokens + gate_ff * block.ff(normed).flatten(2).transpose(1, 2)
