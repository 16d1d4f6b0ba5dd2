"""FLUX's two kinds of block with a condition stream beside the image (ReflectionFlow, section 1.4 and 1.7).

Streams: text (B, L, D), image (B, N, D), condition (B, M, D). In a double block image and condition
go through the image-stream layers together, one matrix product for both; in a single block
[text, image, condition] do. Each stream keeps its own residual, modulation and gate, and the LoRA's
delta is added on the tokens from `start` on, which are the condition's. Attention is joint over
[text, image, condition] and has no mask tensor.

What differs from the official code: it runs the condition as calls of its own through the same
layers, and computes the LoRA on every token to multiply it by zero on most. The numbers are the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .lora import ConditionLora, Delta

Modulation = tuple[Tensor, ...]
"""(shift, 1 + scale, gate) once (single block) or twice (double block), each (B, 1, D)."""
WRITTEN_OUT = 1024
"""Up to so many tokens attention may be written out, with a tensor of tokens x tokens for each head."""


@dataclass(frozen=True)
class Deltas:
    """The LoRA of several layers that read the same tokens: their A matrices as one product."""

    down: Tensor
    """(sum of ranks, I)"""
    ranks: tuple[int, ...]
    ups: tuple[Tensor | None, ...]
    """(O, rank) of each layer, or None where the LoRA leaves it alone."""

    @classmethod
    def of(cls, lora: ConditionLora, paths: Sequence[str], dtype: torch.dtype) -> Deltas | None:
        """The LoRA's part for the layers at `paths`; None where it adapts none of them."""
        found = [lora.delta(path, dtype) for path in paths]
        downs = [d.down for d in found if d is not None]
        if not downs:
            return None
        return cls(torch.cat(downs), tuple(0 if d is None else d.down.shape[0] for d in found),
                   tuple(None if d is None else d.up for d in found))


@dataclass(frozen=True)
class Joint:
    """What every block's attention needs: sizes, rotary tables and how condition and rest see each other."""

    main: int
    """L + N, the tokens that are not the condition's."""
    cos: Tensor
    """(1, L + N + M, 1, E), E the head width"""
    sin: Tensor
    """as cos; its sign alternates"""
    separate: bool = False
    """The condition and the rest attend only to themselves (`union_cond_attn` false)."""
    bias: Tensor | None = None
    """(S, S) additive, log of the condition scale; None when the scale is 1."""

    def attend(self, q: Tensor, k: Tensor, v: Tensor, rows: slice = slice(None)) -> Tensor:
        """Attention of the tokens in `rows` to all: q (B, R, H, E), k and v (B, S, H, E) -> (B, R, H * E).

        Queries and keys come normed but not rotated.
        """
        q, k, v = (x.transpose(1, 2) for x in (self._rotate(q, rows), self._rotate(k), v))
        if not self.separate:
            bias = None if self.bias is None else self.bias[rows].to(q.dtype)
            out = attention(q, k, v, bias)
        else:
            # Two calls are the same as one with a block-diagonal mask, without its (S, S) tensor.
            # Rows that are not all of the tokens are never the condition's.
            n = self.main
            out = attention(q[:, :, :n], k[:, :, :n], v[:, :, :n])
            if rows == slice(None):
                rest = attention(q[:, :, n:], k[:, :, n:], v[:, :, n:])
                out = torch.cat([out, rest], dim=2)
        return out.transpose(1, 2).flatten(2)

    def _rotate(self, x: Tensor, rows: slice = slice(None)) -> Tensor:
        """Turn each pair of channels (B, R, H, E) by its position's angle, in fp32 as diffusers does."""
        wide = x.float()
        swapped = wide.unflatten(-1, (-1, 2)).flip(-1).flatten(-2)
        return torch.addcmul(wide * self.cos[:, rows], swapped, self.sin[:, rows]).to(x.dtype)


def attention(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None) -> Tensor:
    """softmax(q k^T / sqrt(E) + bias) v for q (B, H, R, E), k and v (B, H, S, E) and bias (R, S) -> (B, H, R, E)."""
    learning = torch.is_grad_enabled() and any(x.requires_grad for x in (q, k, v))
    if not (learning and q.device.type == "cpu" and k.shape[2] <= WRITTEN_OUT):
        return F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
    # Training on a CPU: none of torch's kernels has a fast backward pass there. Written out, and compiled, forward and
    # backward of 168 tokens in bf16 take 0.4 of the time.
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)
    if bias is not None:
        scores = scores + bias
    return scores.float().softmax(-1).to(v.dtype) @ v


def adapted(layer: nn.Module, x: Tensor, delta: Delta | None, start: int) -> Tensor:
    """layer(x) for x (B, S, I), with the LoRA's delta on the tokens from `start` on -> (B, S, O)."""
    y = layer(x)
    if delta is not None:
        y[:, start:].add_(F.linear(F.linear(x[:, start:], delta.down), delta.up))
    return y


def projected(layers: Sequence[nn.Module | None], x: Tensor, deltas: Deltas | None,
              start: int) -> list[Tensor | None]:
    """Several layers over the same x (B, S, I), each with its delta on the tokens from `start` on -> (B, S, O_i).

    A layer that is None is left out and gives None.
    """
    outs = [layer if layer is None else layer(x) for layer in layers]
    if deltas is not None:
        low = F.linear(x[:, start:], deltas.down).split(deltas.ranks, dim=-1)
        for y, part, up in zip(outs, low, deltas.ups):
            if y is not None and up is not None:
                y[:, start:].add_(F.linear(part, up))
    return outs


def modulation(norm: nn.Module, vector: Tensor, delta: Delta | None = None) -> Modulation:
    """An adaptive norm's shifts, scales and gates, three or six (B, 1, D), from silu(embedding) (B, D)."""
    values = norm.linear(vector)
    if delta is not None:
        values = values + F.linear(F.linear(vector, delta.down), delta.up)
    parts = values.unsqueeze(1).chunk(values.shape[-1] // norm.linear.in_features, dim=-1)
    return tuple(1 + p if i % 3 == 1 else p for i, p in enumerate(parts))


def modulated(norm: nn.Module, streams: Sequence[Tensor], mods: Sequence[Modulation], at: int = 0) -> Tensor:
    """Norm each stream (B, S_i, D), shift and scale it by its own modulation, and join them: (B, sum of S_i, D)."""
    parts = [torch.addcmul(mod[at], norm(x), mod[at + 1]) for x, mod in zip(streams, mods)]
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)


def gated(streams: Sequence[Tensor], mods: Sequence[Modulation], update: Tensor, at: int = 2) -> list[Tensor]:
    """Each stream's residual (B, S_i, D) plus its own gate times its part of `update` (B, sum of S_i, D)."""
    parts = update.split([x.shape[1] for x in streams], dim=1)
    return [torch.addcmul(x, mod[at], part) for x, mod, part in zip(streams, mods, parts)]


@dataclass(frozen=True)
class DoubleDeltas:
    """One double block's LoRA."""

    norm: Delta | None
    qkv: Deltas | None
    out: Delta | None
    ff: Delta | None

    @classmethod
    def of(cls, lora: ConditionLora, path: str, dtype: torch.dtype) -> DoubleDeltas:
        """The LoRA's part for the block at `path`, in the dtype of the block's weights."""
        return cls(lora.delta(f"{path}.norm1.linear", dtype),
                   Deltas.of(lora, [f"{path}.attn.to_{n}" for n in "qkv"], dtype),
                   lora.delta(f"{path}.attn.to_out.0", dtype), lora.delta(f"{path}.ff.net.2", dtype))


@dataclass(frozen=True)
class SingleDeltas:
    """One single block's LoRA."""

    norm: Delta | None
    inner: Deltas | None
    out: Delta | None

    @classmethod
    def of(cls, lora: ConditionLora, path: str, dtype: torch.dtype) -> SingleDeltas:
        """The LoRA's part for the block at `path`, in the dtype of the block's weights."""
        names = ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp")
        return cls(lora.delta(f"{path}.norm.linear", dtype), Deltas.of(lora, [f"{path}.{n}" for n in names], dtype),
                   lora.delta(f"{path}.proj_out", dtype))


NO_DOUBLE, NO_SINGLE = DoubleDeltas(None, None, None, None), SingleDeltas(None, None, None)


def double_block(block: nn.Module, joint: Joint, text: Tensor, streams: list[Tensor], text_mod: Modulation,
                 mods: list[Modulation], deltas: DoubleDeltas, start: int) -> tuple[Tensor, list[Tensor]]:
    """One double block.

    Args:
        text: (B, L, D). streams: [image (B, N, D)] or [image, condition (B, M, D)].
        text_mod: the text's modulation; mods: each stream's, both of six tensors (B, 1, D).
        start: the LoRA acts from this token on, counted in the joined streams.

    Returns: text and streams, of the same shapes.
    """
    attn, heads = block.attn, (block.attn.heads, -1)
    h = modulated(block.norm1.norm, streams, mods)
    q, k, v = projected([attn.to_q, attn.to_k, attn.to_v], h, deltas.qkv, start)
    q, k, v = (x.unflatten(-1, heads) for x in (q, k, v))
    t = modulated(block.norm1_context.norm, [text], [text_mod])
    tq, tk, tv = (f(t).unflatten(-1, heads) for f in (attn.add_q_proj, attn.add_k_proj, attn.add_v_proj))
    out = joint.attend(torch.cat([attn.norm_added_q(tq), attn.norm_q(q)], dim=1),
                       torch.cat([attn.norm_added_k(tk), attn.norm_k(k)], dim=1),
                       torch.cat([tv, v], dim=1))
    text_out, image_out = out.split([text.shape[1], h.shape[1]], dim=1)

    streams = gated(streams, mods, adapted(attn.to_out[0], image_out, deltas.out, start))
    h = block.ff.net[0](modulated(block.norm2, streams, mods, at=3))
    streams = gated(streams, mods, adapted(block.ff.net[2], h, deltas.ff, start), at=5)

    text, = gated([text], [text_mod], attn.to_add_out(text_out))
    t = block.ff_context(modulated(block.norm2_context, [text], [text_mod], at=3))
    text, = gated([text], [text_mod], t, at=5)
    return _within_half(text), streams


def single_block(block: nn.Module, joint: Joint, streams: list[Tensor], mods: list[Modulation],
                 deltas: SingleDeltas, start: int) -> list[Tensor]:
    """One single block.

    Args:
        streams: [text and image (B, L + N, D)] or [text and image, condition (B, M, D)].
        mods: each stream's modulation, three tensors (B, 1, D).
        start: the LoRA acts from this token on, counted in the joined streams.

    Returns: streams of the same shapes.
    """
    attn, h = block.attn, modulated(block.norm.norm, streams, mods)
    q, k, v, mlp = projected([attn.to_q, attn.to_k, attn.to_v, block.proj_mlp], h, deltas.inner, start)
    out = adapted(block.proj_out, _attended(block, joint, q, k, v, mlp), deltas.out, start)
    return [_within_half(x) for x in gated(streams, mods, out)]


def last_single_block(block: nn.Module, joint: Joint, streams: list[Tensor], mods: list[Modulation],
                      deltas: SingleDeltas, start: int, rows: slice) -> Tensor:
    """The last single block, for those tokens of the first stream that are wanted: (B, R, D).

    None of them has a LoRA. Every token still gives its key and value; what else it would become is
    thrown away. For the arguments see `single_block`.
    """
    attn, h = block.attn, modulated(block.norm.norm, streams, mods)
    _, k, v, _ = projected([None, attn.to_k, attn.to_v, None], h, deltas.inner, start)
    wanted = h[:, rows]
    out = block.proj_out(_attended(block, joint, attn.to_q(wanted), k, v, block.proj_mlp(wanted), rows))
    image, = gated([streams[0][:, rows]], mods[:1], out)
    return _within_half(image)


def _attended(block: nn.Module, joint: Joint, q: Tensor, k: Tensor, v: Tensor, mlp: Tensor,
              rows: slice = slice(None)) -> Tensor:
    """What `proj_out` of a single block reads, (B, R, D + F), for q (B, R, D), k and v (B, S, D), mlp (B, R, F)."""
    attn, heads = block.attn, (block.attn.heads, -1)
    out = joint.attend(attn.norm_q(q.unflatten(-1, heads)), attn.norm_k(k.unflatten(-1, heads)),
                       v.unflatten(-1, heads), rows)
    return torch.cat([out, block.act_mlp(mlp)], dim=-1)


def _within_half(x: Tensor) -> Tensor:
    """Keep fp16 residuals (B, S, D) finite, where diffusers does."""
    return x.clip(-65504, 65504) if x.dtype == torch.float16 else x
