"""The context transformer: pictures and the feedback on them become tokens that SANA attends to (Reflect-DiT, 1.4-1.6).

The modules have the names of the released checkpoint. Pairs of a row follow one another, each as its
picture's tokens and then the valid ones of its feedback; a row that is dropped has zero vectors in their
place. Two or so blocks of full self-attention follow, modulated by SANA's time step, and a norm whose gain
starts at zero.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from diffusers.models.embeddings import PixArtAlphaTextProjection
from diffusers.models.normalization import RMSNorm
from torch import Tensor, nn

from ...types import UserError

DROPPED_TEXT = 4
"""Zero vectors that stand for the feedback of a dropped row, besides those of one picture."""
ROPE_BASE, ROPE_FACTOR, ROPE_LOW, ROPE_HIGH, ROPE_LENGTH = 500_000.0, 8.0, 1.0, 4.0, 2048


@dataclass(frozen=True)
class Pairs:
    """Pictures and the feedback on them, and whose they are."""

    images: Tensor
    """Of the picture encoder, pooled (P, T, V)."""
    texts: Tensor
    """Of the text encoder (P, L, D), padded on the right."""
    text_mask: Tensor
    """(P, L), 1 on real tokens."""
    rows: tuple[tuple[int, ...] | None, ...]
    """For each row of the batch its pairs in order; None: the row's context is dropped."""
    see: str = "both"
    """'words' or 'pictures': zero vectors stand in the place of the other, as they do in a dropped row."""

    def __post_init__(self) -> None:
        counts = len(self.images), len(self.texts), len(self.text_mask)
        if len(set(counts)) > 1:
            raise UserError(f"got {counts[0]} pictures, {counts[1]} feedback texts and masks of {counts[2]}; expected "
                            "as many of each: a pair has one of both")


class ContextEncoder(nn.Module):
    """What Reflect-DiT adds to SANA: 29 tensors, 132,941,760 numbers in the released size."""

    def __init__(self, dim: int, vision_dim: int, text_dim: int, heads: int, head_dim: int, layers: int,
                 mlp_ratio: float = 2.5) -> None:
        super().__init__()
        self.head_dim = head_dim
        self.clip_projection = PixArtAlphaTextProjection(vision_dim, dim)
        self.clip_norm = RMSNorm(dim, eps=1e-5, elementwise_affine=True)
        self.reflection_text_projection = PixArtAlphaTextProjection(text_dim, dim)
        self.reflection_text_norm = RMSNorm(dim, eps=1e-5, elementwise_affine=True)
        self.reflection_transformer = nn.ModuleList(
            ContextBlock(dim, heads, head_dim, int(mlp_ratio * dim)) for _ in range(layers))
        self.reflection_norm = RMSNorm(dim, eps=1e-5, elementwise_affine=True)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """As at the start of the paper's training: small normal weights, and a last gain of zero."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        nn.init.zeros_(self.reflection_norm.weight)

    def adapted_picture(self, states: Tensor) -> Tensor:
        """Of the picture encoder (..., V) to tokens (..., C)."""
        return self.clip_norm(self.clip_projection(states))

    def adapted_text(self, states: Tensor) -> Tensor:
        """Of the text encoder (..., D) to tokens (..., C)."""
        return self.reflection_text_norm(self.reflection_text_projection(states))

    def tokens(self, pairs: Pairs) -> tuple[Tensor, Tensor]:
        """Tokens (B, L, C) of the rows, padded with zeros on the right, and the mask (B, L) of real ones.

        They depend on no time step: make them once.
        """
        images, texts = self.adapted_picture(pairs.images), self.adapted_text(pairs.texts)
        images = torch.zeros_like(images) if pairs.see == "words" else images
        texts = torch.zeros_like(texts) if pairs.see == "pictures" else texts
        lengths = pairs.text_mask.sum(dim=1).tolist()
        dropped = images.new_zeros(images.shape[1] + DROPPED_TEXT, images.shape[2])
        rows = [dropped if row is None else
                torch.cat([part for pair in row for part in (images[pair], texts[pair, :lengths[pair]])])
                for row in pairs.rows]
        tokens = nn.utils.rnn.pad_sequence(rows, batch_first=True)
        places = torch.arange(tokens.shape[1], device=tokens.device)
        return tokens, places < torch.tensor([[len(row)] for row in rows], device=tokens.device)

    def forward(self, tokens: Tensor, modulation: Tensor, mask: Tensor | None = None, *,
                rotary_bf16: bool = True) -> Tensor:
        """Context tokens (B, L, C) for SANA's cross-attention.

        Args:
            tokens: of `tokens` (B, L, C).
            modulation: SANA's projected time step (B, 6 C).
            mask: (B, L); padding takes no part in the attention. None, the official way: it does.
            rotary_bf16: round the rotary frequencies to bf16, as the official scripts do by casting the model.
        """
        return self.reflection_norm(self.mixed(tokens, modulation, mask, rotary_bf16=rotary_bf16))

    def mixed(self, tokens: Tensor, modulation: Tensor, mask: Tensor | None = None, *,
              rotary_bf16: bool = True) -> Tensor:
        """The same before the last norm."""
        cos, sin = rotary(tokens.shape[1], self.head_dim, rotary_bf16, tokens.device)
        cos, sin = cos.to(tokens.dtype), sin.to(tokens.dtype)
        keep = None if mask is None else mask[:, None, None, :]
        for block in self.reflection_transformer:
            tokens = block(tokens, modulation, cos, sin, keep)
        return tokens


class ContextBlock(nn.Module):
    """Self-attention and SwiGLU, each between a modulation and a gate that come from the time step."""

    def __init__(self, dim: int, heads: int, head_dim: int, hidden: int) -> None:
        super().__init__()
        self.scale_shift_table = nn.Parameter(torch.randn(6, dim) / dim**0.5)
        self.attn1 = ContextAttention(dim, heads, head_dim)
        self.ff = SwiGLU(dim, hidden)

    def forward(self, tokens: Tensor, modulation: Tensor, cos: Tensor, sin: Tensor, keep: Tensor | None) -> Tensor:
        mods = self.scale_shift_table + modulation.view(len(modulation), 6, -1)
        shift_attn, scale_attn, gate_attn, shift_ff, scale_ff, gate_ff = mods.chunk(6, dim=1)
        normed = F.layer_norm(tokens, tokens.shape[-1:], eps=1e-6) * (1 + scale_attn) + shift_attn
        tokens = tokens + gate_attn * self.attn1(normed, cos, sin, keep)
        normed = F.layer_norm(tokens, tokens.shape[-1:], eps=1e-6) * (1 + scale_ff) + shift_ff
        return tokens + gate_ff * self.ff(normed)


class ContextAttention(nn.Module):
    """Full self-attention with rotary positions over the whole row."""

    def __init__(self, dim: int, heads: int, head_dim: int) -> None:
        super().__init__()
        self.heads, inner = heads, heads * head_dim
        self.to_q, self.to_k, self.to_v = (nn.Linear(dim, inner, bias=False) for _ in range(3))
        self.to_out = nn.ModuleList([nn.Linear(inner, dim)])

    def forward(self, tokens: Tensor, cos: Tensor, sin: Tensor, keep: Tensor | None) -> Tensor:
        query, key, value = (project(tokens).unflatten(-1, (self.heads, -1)).transpose(1, 2)
                             for project in (self.to_q, self.to_k, self.to_v))
        out = F.scaled_dot_product_attention(_rotated(query, cos, sin), _rotated(key, cos, sin), value, attn_mask=keep)
        return self.to_out[0](out.transpose(1, 2).flatten(2))


class SwiGLU(nn.Module):
    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.gate_proj, self.up_proj = (nn.Linear(dim, hidden, bias=False) for _ in range(2))
        self.down_proj = nn.Linear(hidden, dim, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(tokens)) * self.up_proj(tokens))


def rotary(length: int, head_dim: int, bf16: bool, device: torch.device | None = None) -> tuple[Tensor, Tensor]:
    """cos and sin (length, head_dim) in fp32 of positions 0, 1, ...: Llama 3.1's frequencies, each for two halves."""
    frequencies = ROPE_BASE ** -(torch.arange(0, head_dim, 2, dtype=torch.float32, device=device) / head_dim)
    wavelengths = 2 * math.pi / frequencies
    blend = ((ROPE_LENGTH / wavelengths - ROPE_LOW) / (ROPE_HIGH - ROPE_LOW)).clamp(0, 1)
    frequencies = (1 - blend) * frequencies / ROPE_FACTOR + blend * frequencies
    if bf16:
        frequencies = frequencies.bfloat16().float()
    angles = torch.outer(torch.arange(length, dtype=torch.float32, device=device), frequencies)
    angles = torch.cat([angles, angles], dim=-1)
    return angles.cos(), angles.sin()


def _rotated(heads: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """(B, H, L, D)"""
    first, second = heads.chunk(2, dim=-1)
    return heads * cos + torch.cat([-second, first], dim=-1) * sin


def rows_of(owner: Sequence[int], batch: int, keep: Sequence[int] | None = None) -> tuple[tuple[int, ...] | None, ...]:
    """Rows for `Pairs`, from the row that each pair belongs to; `keep` is 0 where a row's context is dropped."""
    rows = tuple(tuple(pair for pair, row in enumerate(owner) if row == number) for number in range(batch))
    return tuple(row if keep is None or keep[number] else None for number, row in enumerate(rows))
