"""The forward of reflection tuning: rows of a batch with as many places for pairs each, so that it compiles.

The same as `reflect_forward` of each row alone (tested): a row's tokens stand without gaps from position 0 on, its
padding takes no part in the context's attention, and its own last token is never attended to.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from reflect_core.generators.reflect_dit.context import DROPPED_TEXT, ContextEncoder
from reflect_core.generators.reflect_dit.transformer import blocks_forward


def laid(lengths: Sequence[Sequence[int]], sees: Sequence[str], pairs: int, tokens: int, stride: int
         ) -> tuple[Tensor, Tensor]:
    """Where the tokens of each row come from, and which are real: (B, M) indices and (B, M) booleans.

    Args:
        lengths: of each row the tokens of its pairs' feedback, in order.
        sees: what the row sees of its pairs: both, words, pictures, or nothing; zero vectors stand for the rest.
        pairs: places for them that each row has; those that it lacks are not pointed at.
        tokens: of one picture. stride: places for the tokens of one feedback.

    An index counts into: one zero vector, all pictures' tokens, all feedback's.
    """
    rows, places = len(lengths), max(pairs * (tokens + stride), tokens + DROPPED_TEXT)
    index = torch.zeros(rows, places, dtype=torch.long)
    real = torch.zeros(rows, places, dtype=torch.bool)
    words = 1 + rows * pairs * tokens
    for number, row in enumerate(lengths):
        if sees[number] == "nothing":
            real[number, : tokens + DROPPED_TEXT] = True
            continue
        order = []
        for k, length in enumerate(row, start=number * pairs):
            picture, said = 1 + k * tokens, words + k * stride
            order += [0] * tokens if sees[number] == "words" else range(picture, picture + tokens)
            order += [0] * length if sees[number] == "pictures" else range(said, said + length)
        index[number, : len(order)] = torch.tensor(order)
        real[number, : len(order)] = True
    return index, real


def tuned_forward(transformer: nn.Module, context: ContextEncoder, x: Tensor, words: Tensor, keep: Tensor, t: Tensor,
                  images: Tensor, texts: Tensor, index: Tensor, real: Tensor, rotary_bf16: bool = True) -> Tensor:
    """Noisy latents (B, C, h, w) at time steps t (B,) in 0..1000 to velocities, with pairs in view.

    Args: words (B, L, D) and keep (B, L) of the prompts; images (P, T, V) and texts (P, L, D) of the pairs; index and
    real (B, M), see `laid`.
    """
    dtype = transformer.patch_embed.proj.weight.dtype
    modulation, embedded = transformer.time_embed(t, batch_size=len(x), hidden_dtype=dtype)
    words = transformer.caption_norm(transformer.caption_projection(words))
    images = context.clip_norm(context.clip_projection(images)).flatten(0, 1)
    texts = context.reflection_text_norm(context.reflection_text_projection(texts)).flatten(0, 1)
    tokens = torch.cat([torch.zeros_like(images[:1]), images, texts.to(images)])[index]
    tokens = context(tokens, modulation, real, rotary_bf16=rotary_bf16)
    last = real & ~torch.cat([real[:, 1:], torch.zeros_like(real[:, :1])], dim=1)
    return blocks_forward(transformer, x, torch.cat([words, tokens], dim=1), torch.cat([keep, real & ~last], dim=1),
                          modulation, embedded)
