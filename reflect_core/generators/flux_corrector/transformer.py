"""Our forward over a diffusers `FluxTransformer2DModel`, with a condition picture (arXiv 2504.16080).

The flawed picture's latent tokens run through the same frozen weights as the image, plus a LoRA
that acts on them alone, at timestep 0 and guidance 1 whatever the main ones are, and take part in
joint attention. Without a condition the result is the plain transformer's.

`prepare` does once what no step changes: text embedding, rotary tables, the condition's embedding
and all its modulations; `with_texts` does again what depends on the text. `denoise` is one step.
`flux_forward` is `prepare` and `denoise`, for training and tests.

What differs from the official code: no adapter is switched on and off, nothing is patched, and only
public modules of the transformer are used. `add_cond_attn` (false in everything published, possible
only with as many condition tokens as image tokens) is not offered. The timestep is rounded to the
dtype of the latents, as in diffusers without autocast; under autocast it stays fp32.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .blocks import (
    NO_DOUBLE,
    NO_SINGLE,
    DoubleDeltas,
    Joint,
    Modulation,
    SingleDeltas,
    adapted,
    double_block,
    last_single_block,
    modulation,
    single_block,
)
from .lora import ConditionLora, Delta


@dataclass(frozen=True)
class Condition:
    """A flawed picture as latent tokens (B, M, C) and their position ids (M, 3)."""

    tokens: Tensor
    ids: Tensor


@dataclass(frozen=True)
class LoraDeltas:
    """The corrector's LoRA by block, laid out for the forward. It serves as long as the weights do not change."""

    embedder: Delta | None
    doubles: tuple[DoubleDeltas, ...]
    singles: tuple[SingleDeltas, ...]

    @classmethod
    def of(cls, lora: ConditionLora, transformer: nn.Module) -> LoraDeltas:
        """In the dtype that the transformer computes in; differentiable."""
        dtype = transformer.dtype
        return cls(lora.delta("x_embedder", dtype),
                   tuple(DoubleDeltas.of(lora, f"transformer_blocks.{i}", dtype)
                         for i in range(len(transformer.transformer_blocks))),
                   tuple(SingleDeltas.of(lora, f"single_transformer_blocks.{i}", dtype)
                         for i in range(len(transformer.single_transformer_blocks))))


@dataclass(frozen=True)
class PreparedBlock:
    """What one block needs besides its weights."""

    deltas: DoubleDeltas | SingleDeltas
    mod: Modulation | None = None
    """The condition's modulation, which no step changes; None without a condition."""


@dataclass(frozen=True)
class Prepared:
    """What stays the same over the steps of one batch. Make it with `prepare`, and `with_texts` from another."""

    joint: Joint
    doubles: tuple[PreparedBlock, ...]
    singles: tuple[PreparedBlock, ...]
    condition: Tensor | None
    """(B, M, D), embedded, or None."""
    embedder: Delta | None
    everywhere: bool
    """The LoRA acts on text and image tokens too."""
    text: Tensor | None = None
    """(B, L, D)"""
    pooled: Tensor | None = None
    """(B, P)"""


def prepare(transformer: nn.Module, lora: ConditionLora | LoraDeltas | None, encoder_hidden_states: Tensor,
            pooled_projections: Tensor, img_ids: Tensor, txt_ids: Tensor, condition: Condition | None = None,
            *, union_cond_attn: bool = True, latent_lora: bool = False,
            condition_scale: float = 1.0) -> Prepared:
    """Do once what no step changes.

    Args:
        transformer: a `FluxTransformer2DModel`.
        lora: the corrector's LoRA, or what `LoraDeltas.of` made of it, or None for none.
        encoder_hidden_states: T5 states (B, L, width); pooled_projections: CLIP's (B, P).
        img_ids: (N, 3); txt_ids: (L, 3).
        condition: the flawed picture, or None for plain text-to-image.
        union_cond_attn: false cuts condition and rest off from each other, so that the output does
            not depend on the condition at all. Published: true.
        latent_lora: true puts the LoRA on text and image tokens too. Published: false.
        condition_scale: log(scale) is added to the attention between condition and rest. At 1, the
            published value, no bias tensor is made. Any other replaces the cut of `union_cond_attn`.
    """
    ids = [txt_ids, img_ids] + ([condition.ids] if condition is not None else [])
    main = txt_ids.shape[0] + img_ids.shape[0]
    bias = None
    if condition is not None and condition_scale != 1.0:
        bias = _scale_bias(main, condition.ids.shape[0], condition_scale, encoder_hidden_states)
    cos, sin = _rotary_tables(transformer.pos_embed, torch.cat(ids))
    separate = condition is not None and not union_cond_attn and bias is None

    if lora is None or (condition is None and not latent_lora):
        lora = LoraDeltas(None, (NO_DOUBLE,) * len(transformer.transformer_blocks),
                          (NO_SINGLE,) * len(transformer.single_transformer_blocks))
        latent_lora = False
    elif isinstance(lora, ConditionLora):
        lora = LoraDeltas.of(lora, transformer)
    tokens = None
    if condition is not None:
        tokens = adapted(transformer.x_embedder, condition.tokens, lora.embedder, 0)
    prepared = Prepared(Joint(main, cos, sin, separate, bias), tuple(map(PreparedBlock, lora.doubles)),
                        tuple(map(PreparedBlock, lora.singles)), tokens, lora.embedder, latent_lora)
    return with_texts(transformer, prepared, encoder_hidden_states, pooled_projections)


def with_texts(transformer: nn.Module, prepared: Prepared, encoder_hidden_states: Tensor,
               pooled_projections: Tensor) -> Prepared:
    """The same batch with other texts: T5 states (B, L, width) and CLIP vectors (B, P). The rest is kept."""
    doubles, singles = prepared.doubles, prepared.singles
    if prepared.condition is not None:
        zero = prepared.condition.new_zeros(prepared.condition.shape[0])
        vector = _vector(transformer, zero, zero + 1, pooled_projections)
        doubles = tuple(replace(own, mod=modulation(block.norm1, vector, own.deltas.norm))
                        for block, own in zip(transformer.transformer_blocks, doubles))
        singles = tuple(replace(own, mod=modulation(block.norm, vector, own.deltas.norm))
                        for block, own in zip(transformer.single_transformer_blocks, singles))
    return replace(prepared, doubles=doubles, singles=singles, pooled=pooled_projections,
                   text=transformer.context_embedder(encoder_hidden_states))


def denoise(transformer: nn.Module, prepared: Prepared, hidden_states: Tensor, timestep: Tensor,
            guidance: Tensor | None = None, *, checkpointing: bool = False, prune: bool = True) -> Tensor:
    """One evaluation of the transformer.

    Args:
        hidden_states: noisy latent tokens (B, N, C).
        timestep: (B,) in 0..1. guidance: (B,), 3.5 at published inference, 1 in training; left out
            of the model if it takes none.
        checkpointing: compute each block again in the backward pass instead of keeping its insides.
        prune: leave out of the last block what would be thrown away; false is for timing alone.

    Returns: the velocity (B, N, C).
    """
    p = prepared
    image = adapted(transformer.x_embedder, hidden_states, p.embedder if p.everywhere else None, 0)
    vector = _vector(transformer, timestep.to(hidden_states.dtype),
                     None if guidance is None else guidance.to(hidden_states.dtype), p.pooled)
    streams = [image] if p.condition is None else [image, p.condition]
    text, length, here = p.text, p.text.shape[1], image.shape[1]

    def run(function, *args):
        return checkpoint(function, *args, use_reentrant=False) if checkpointing else function(*args)

    def mods_of(own: PreparedBlock, norm: nn.Module) -> list[Modulation]:
        mine = modulation(norm, vector, own.deltas.norm if p.everywhere else None)
        return [mine] if own.mod is None else [mine, own.mod]

    start = 0 if p.everywhere else here
    for block, own in zip(transformer.transformer_blocks, p.doubles):
        text_mod = modulation(block.norm1_context, vector)
        text, streams = run(double_block, block, p.joint, text, streams, text_mod, mods_of(own, block.norm1),
                            own.deltas, start)

    streams = [torch.cat([text, streams[0]], dim=1), *streams[1:]]
    start = 0 if p.everywhere else length + here
    image_rows = slice(length, length + here)
    singles = list(zip(transformer.single_transformer_blocks, p.singles))
    last = singles.pop() if singles and prune and not p.everywhere else None
    for block, own in singles:
        streams = run(single_block, block, p.joint, streams, mods_of(own, block.norm), own.deltas, start)
    if last is None:
        image = streams[0][:, image_rows]
    else:
        block, own = last
        image = run(last_single_block, block, p.joint, streams, mods_of(own, block.norm), own.deltas, start,
                    image_rows)

    # norm_out wants the embedding before its own silu; it has scale first, then shift.
    scale, shift = transformer.norm_out.linear(vector).unsqueeze(1).chunk(2, dim=-1)
    image = torch.addcmul(shift, transformer.norm_out.norm(image), 1 + scale)
    return transformer.proj_out(image)


def flux_forward(transformer: nn.Module, lora: ConditionLora | None, hidden_states: Tensor,
                 encoder_hidden_states: Tensor, pooled_projections: Tensor, timestep: Tensor,
                 guidance: Tensor | None, img_ids: Tensor, txt_ids: Tensor,
                 condition_tokens: Tensor | None = None, condition_ids: Tensor | None = None, *,
                 union_cond_attn: bool = True, latent_lora: bool = False, condition_scale: float = 1.0,
                 checkpointing: bool = False) -> Tensor:
    """`prepare` and `denoise` in one call: latents (B, N, C) to velocity (B, N, C). Differentiable.

    condition_tokens (B, M, C) and condition_ids (M, 3) are the flawed picture's, or both None. The
    other arguments are those of `prepare` and `denoise`.
    """
    condition = None if condition_tokens is None else Condition(condition_tokens, condition_ids)
    prepared = prepare(transformer, lora, encoder_hidden_states, pooled_projections, img_ids, txt_ids,
                       condition, union_cond_attn=union_cond_attn, latent_lora=latent_lora,
                       condition_scale=condition_scale)
    return denoise(transformer, prepared, hidden_states, timestep, guidance, checkpointing=checkpointing)


def _vector(transformer: nn.Module, timestep: Tensor, guidance: Tensor | None, pooled: Tensor) -> Tensor:
    """silu of the time, guidance and pooled text embedding (B, D), which every modulation starts from."""
    if guidance is not None and transformer.config.guidance_embeds:
        embedding = transformer.time_text_embed(timestep * 1000, guidance * 1000, pooled)
    else:
        embedding = transformer.time_text_embed(timestep * 1000, pooled)
    return F.silu(embedding)


def _rotary_tables(pos_embed: nn.Module, ids: Tensor) -> tuple[Tensor, Tensor]:
    """cos and sin (1, S, 1, E) for ids (S, 3); the sine's sign alternates, for the swapped pairs."""
    cos, sin = pos_embed(ids)
    sign = sin.new_ones(sin.shape[-1])
    sign[0::2] = -1
    return cos[None, :, None, :], (sin * sign)[None, :, None, :]


def _scale_bias(main: int, condition: int, scale: float, like: Tensor) -> Tensor:
    bias = like.new_zeros(main + condition, main + condition)
    bias[:main, main:] = bias[main:, :main] = math.log(scale)
    return bias
