"""Our forward over a diffusers `FluxTransformer2DModel`, with a condition picture (arXiv 2504.16080).

The flawed picture's latent tokens run through the same frozen weights as the image, plus a LoRA
that acts on them alone, at timestep 0 and guidance 1 whatever the main ones are, and take part in
joint attention. Without a condition the result is the plain transformer's.

`prepare` does once what no step changes: text embedding, rotary tables, the condition's embedding
and all its modulations. `denoise` is one step. `flux_forward` is both, for training and tests.

What differs from the official code: no adapter is switched on and off, nothing is patched, and only
public modules of the transformer are used. `add_cond_attn` (false in everything published, possible
only with as many condition tokens as image tokens) is not offered. The timestep is rounded to the
dtype of the latents, as in diffusers without autocast; under autocast it stays fp32.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

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
class MainDeltas:
    """The LoRA's parts for text and image tokens; there only when `latent_lora` is true."""

    embedder: Delta | None
    norms: tuple[Delta | None, ...]


@dataclass(frozen=True)
class Prepared:
    """What stays the same over the steps of one batch. Make it with `prepare`."""

    text: Tensor
    """(B, L, D)"""
    pooled: Tensor
    """(B, P)"""
    joint: Joint
    condition: Tensor | None
    """(B, M, D), embedded, or None."""
    mods: tuple[Modulation, ...]
    """The condition's modulation in every block, double ones first; empty without a condition."""
    deltas: tuple[DoubleDeltas | SingleDeltas, ...]
    """The LoRA of every block; empty when no token gets one."""
    main: MainDeltas | None = None


def prepare(transformer: nn.Module, lora: ConditionLora | None, encoder_hidden_states: Tensor,
            pooled_projections: Tensor, img_ids: Tensor, txt_ids: Tensor, condition: Condition | None = None,
            *, union_cond_attn: bool = True, latent_lora: bool = False,
            condition_scale: float = 1.0) -> Prepared:
    """Do once what no step changes.

    Args:
        transformer: a `FluxTransformer2DModel`.
        lora: the corrector's LoRA, or None for none.
        encoder_hidden_states: T5 states (B, L, width); pooled_projections: CLIP's (B, P).
        img_ids: (N, 3); txt_ids: (L, 3).
        condition: the flawed picture, or None for plain text-to-image.
        union_cond_attn: false cuts condition and rest off from each other, so that the output does
            not depend on the condition at all. Published: true.
        latent_lora: true puts the LoRA on text and image tokens too. Published: false.
        condition_scale: log(scale) is added to the attention between condition and rest. At 1, the
            published value, no bias tensor is made. Any other replaces the cut of `union_cond_attn`.
    """
    dtype = transformer.x_embedder.weight.dtype
    ids = [txt_ids, img_ids] + ([condition.ids] if condition is not None else [])
    main = txt_ids.shape[0] + img_ids.shape[0]
    bias = None
    if condition is not None and condition_scale != 1.0:
        bias = _scale_bias(main, condition.ids.shape[0], condition_scale, encoder_hidden_states)
    cos, sin = _rotary_tables(transformer.pos_embed, torch.cat(ids))
    separate = condition is not None and not union_cond_attn and bias is None
    joint = Joint(main, cos, sin, separate, bias)

    deltas, main_deltas = (), None
    if lora is not None and (condition is not None or latent_lora):
        deltas = (*(DoubleDeltas.of(lora, path, dtype) for path, _ in _doubles(transformer)),
                  *(SingleDeltas.of(lora, path, dtype) for path, _ in _singles(transformer)))
    norms = tuple((block.norm1, f"{path}.norm1.linear") for path, block in _doubles(transformer))
    norms += tuple((block.norm, f"{path}.norm.linear") for path, block in _singles(transformer))
    changes = tuple(lora.delta(path, dtype) if deltas else None for _, path in norms)
    embedder = lora.delta("x_embedder", dtype) if deltas else None
    if latent_lora and deltas:
        main_deltas = MainDeltas(embedder, changes)

    tokens, mods = None, ()
    if condition is not None:
        tokens = adapted(transformer.x_embedder, condition.tokens, embedder, 0)
        zero = condition.tokens.new_zeros(condition.tokens.shape[0])
        vector = _vector(transformer, zero, zero + 1, pooled_projections)
        mods = tuple(modulation(norm, vector, change) for (norm, _), change in zip(norms, changes))
    text = transformer.context_embedder(encoder_hidden_states)
    return Prepared(text, pooled_projections, joint, tokens, mods, deltas, main_deltas)


def denoise(transformer: nn.Module, prepared: Prepared, hidden_states: Tensor, timestep: Tensor,
            guidance: Tensor | None = None, *, checkpointing: bool = False) -> Tensor:
    """One evaluation of the transformer.

    Args:
        hidden_states: noisy latent tokens (B, N, C).
        timestep: (B,) in 0..1. guidance: (B,), 3.5 at published inference, 1 in training; left out
            of the model if it takes none.
        checkpointing: compute each block again in the backward pass instead of keeping its insides.

    Returns: the velocity (B, N, C).
    """
    p, extra = prepared, prepared.main
    image = adapted(transformer.x_embedder, hidden_states, extra and extra.embedder, 0)
    vector = _vector(transformer, timestep.to(hidden_states.dtype),
                     None if guidance is None else guidance.to(hidden_states.dtype), p.pooled)
    streams = [image] if p.condition is None else [image, p.condition]
    text, length, here = p.text, p.text.shape[1], image.shape[1]
    blocks = [block for _, block in _doubles(transformer)]
    singles = [block for _, block in _singles(transformer)]

    def run(function, *args):
        return checkpoint(function, *args, use_reentrant=False) if checkpointing else function(*args)

    def mods_of(index: int, norm: nn.Module) -> list[Modulation]:
        mine = modulation(norm, vector, extra and extra.norms[index])
        return [mine] if p.condition is None else [mine, p.mods[index]]

    for index, block in enumerate(blocks):
        start = 0 if extra else here
        text_mod = modulation(block.norm1_context, vector)
        deltas = p.deltas[index] if p.deltas else NO_DOUBLE
        text, streams = run(double_block, block, p.joint, text, streams, text_mod,
                            mods_of(index, block.norm1), deltas, start)
    streams = [torch.cat([text, streams[0]], dim=1), *streams[1:]]
    image_rows = slice(length, length + here)
    for index, block in enumerate(singles, start=len(blocks)):
        start = 0 if extra else length + here
        last = index == len(blocks) + len(singles) - 1 and not extra
        streams = run(single_block, block, p.joint, streams, mods_of(index, block.norm),
                      p.deltas[index] if p.deltas else NO_SINGLE, start, image_rows if last else None)
    image = streams[0] if streams[0].shape[1] == here else streams[0][:, image_rows]

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


def _doubles(transformer: nn.Module) -> list[tuple[str, nn.Module]]:
    return [(f"transformer_blocks.{i}", b) for i, b in enumerate(transformer.transformer_blocks)]


def _singles(transformer: nn.Module) -> list[tuple[str, nn.Module]]:
    blocks = transformer.single_transformer_blocks
    return [(f"single_transformer_blocks.{i}", b) for i, b in enumerate(blocks)]


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
