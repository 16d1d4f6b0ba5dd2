"""The forward of reflection tuning: rows of a batch with as many places for pairs each, so that it compiles.

Each row comes out as it is drawn alone at inference (tested): its tokens stand without gaps from position 0 on, what
pads it to the batch's length takes no part in the context's attention, and its own last token is never attended to.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reflect_core.generators.reflect_dit.context import DROPPED_TEXT, ContextEncoder
from reflect_core.generators.reflect_dit.transformer import blocks_forward

from .guide import guided


def laid(lengths: Sequence[Sequence[int]], sees: Sequence[str], pairs: int, tokens: int, stride: int
         ) -> tuple[Tensor, Tensor, Tensor]:
    """Where the tokens of each row come from (B, M), which take part in the context's attention (B, M), and which are
    attended to by the picture (B, M).

    Args:
        lengths: of each row the tokens of its pairs' feedback, in order.
        sees: what the row sees of its pairs: both, words, pictures, or nothing; zero vectors stand for the rest.
        pairs: places for them that each row has; those that it lacks are not pointed at.
        tokens: of one picture. stride: places for the tokens of one feedback.

    An index counts into: one zero vector, all pictures' tokens, all feedback's.
    """
    dropped = tokens + DROPPED_TEXT
    rows, places = len(lengths), max(pairs * (tokens + stride), dropped)
    index = torch.zeros(rows, places, dtype=torch.long)
    words, inside, seen = 1 + rows * pairs * tokens, [], []
    for number, row in enumerate(lengths):
        order = []
        for k, length in enumerate(row if sees[number] != "nothing" else (), start=number * pairs):
            picture, said = 1 + k * tokens, words + k * stride
            order += [0] * tokens if sees[number] == "words" else range(picture, picture + tokens)
            order += [0] * length if sees[number] == "pictures" else range(said, said + length)
        index[number, : len(order)] = torch.tensor(order, dtype=torch.long)
        # As it is drawn alone, beside a row of nothing: zeros fill it up to that one's length; its last token is never
        # attended to where it is the longer of the two.
        own = len(order) or dropped
        inside.append(max(own, dropped))
        seen.append(own - int(bool(order) and own >= dropped))
    at = torch.arange(places)
    return index, at < torch.tensor(inside)[:, None], at < torch.tensor(seen)[:, None]


def tuned_forward(transformer: nn.Module, context: ContextEncoder, x: Tensor, words: Tensor, keep: Tensor, t: Tensor,
                  images: Tensor, texts: Tensor, index: Tensor, inside: Tensor, seen: Tensor,
                  rotary_bf16: bool = True) -> Tensor:
    """Noisy latents (B, C, h, w) at time steps t (B,) in 0..1000 to velocities, with pairs in view.

    Args: words (B, L, D) and keep (B, L) of the prompts; images (P, T, V) and texts (P, L, D) of the pairs; index,
    inside and seen (B, M), see `laid`.
    """
    return blocks_forward(transformer, x, *_joined(transformer, context, words, keep, t, images, texts, index, inside,
                                                   seen, rotary_bf16))


def guided_forward(at: Tensor, transformer: nn.Module, context: ContextEncoder, x: Tensor, words: Tensor, keep: Tensor,
                   t: Tensor, images: Tensor, texts: Tensor, index: Tensor, inside: Tensor, seen: Tensor
                   ) -> tuple[Tensor, Tensor]:
    """The same, and for each row (B,) the mean log share of attention on the keys `at` (B, N), see `guide.py`."""
    joined = _joined(transformer, context, words, keep, t, images, texts, index, inside, seen)
    with guided(transformer, at) as near:
        velocity = blocks_forward(transformer, x, *joined)
    return velocity, torch.stack(near).mean(dim=0)


def told_forward(head: nn.Module, at: Tensor, transformer: nn.Module, context: ContextEncoder, t: Tensor,
                 images: Tensor, texts: Tensor, index: Tensor, inside: Tensor) -> Tensor:
    """What `head` (C to D) makes of the context's tokens at the places `at` (B, N), before the last gain: (B, N, D).
    Of the transformer only the time step's modulation takes part, as it is."""
    dtype = transformer.patch_embed.proj.weight.dtype
    with torch.no_grad():
        modulation, _ = transformer.time_embed(t, batch_size=len(at), hidden_dtype=dtype)
    tokens = context.mixed(_tokens(context, images, texts, index), modulation, inside)
    tokens = tokens.gather(1, at[..., None].expand(-1, -1, tokens.shape[-1]))
    return head(F.rms_norm(tokens, tokens.shape[-1:], eps=context.reflection_norm.eps))


def _joined(transformer: nn.Module, context: ContextEncoder, words: Tensor, keep: Tensor, t: Tensor, images: Tensor,
            texts: Tensor, index: Tensor, inside: Tensor, seen: Tensor, rotary_bf16: bool = True
            ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """What `blocks_forward` takes beside the latents: prompt and context in one, what is attended to of it, the time
    step's modulation and embedding."""
    dtype = transformer.patch_embed.proj.weight.dtype
    modulation, embedded = transformer.time_embed(t, batch_size=len(words), hidden_dtype=dtype)
    words = transformer.caption_norm(transformer.caption_projection(words))
    tokens = context(_tokens(context, images, texts, index), modulation, inside, rotary_bf16=rotary_bf16)
    return torch.cat([words, tokens], dim=1), torch.cat([keep, seen], dim=1), modulation, embedded


def _tokens(context: ContextEncoder, images: Tensor, texts: Tensor, index: Tensor) -> Tensor:
    """What goes into the context's blocks (B, M, C)."""
    images = context.clip_norm(context.clip_projection(images)).flatten(0, 1)
    texts = context.reflection_text_norm(context.reflection_text_projection(texts)).flatten(0, 1)
    return torch.cat([torch.zeros_like(images[:1]), images, texts.to(images)])[index]
