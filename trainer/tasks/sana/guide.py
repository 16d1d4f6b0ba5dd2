"""Guided attention: for the first steps each place of the picture is drawn towards its own place in the flawed one.

What is drawn finds the tokens of a flawed picture by attention alone, over 64 of them and the words. As long as it
looks at all alike, each tells a hundredth of what it knows, and nearly nothing is learned of where to look. In 300
steps of the small model the true pictures lowered the error at time 0.95 by 0.003 (by 0.007 in 164 steps with one
picture and the prompt dropped in every second row); in 300 such steps with a loss on the attention itself, by 0.7. The
loss is that of Tachibana et al. 2017 (arXiv 1710.08969), who taught a speech model so that it reads from left to
right, but on the logarithm; it fades out, and what attention is used for is then up to the picture.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class GuidedAttention:
    """diffusers' cross-attention of SANA, written out, that notes how much each place looks where it is told to."""

    def __init__(self, at: Tensor) -> None:
        self.at, self.near = at, []

    def __call__(self, attn: nn.Module, hidden_states: Tensor, encoder_hidden_states: Tensor, attention_mask: Tensor
                 ) -> Tensor:
        query, key, value = (attn.to_q(hidden_states), attn.to_k(encoder_hidden_states),
                             attn.to_v(encoder_hidden_states))
        query = query if attn.norm_q is None else attn.norm_q(query)
        key = key if attn.norm_k is None else attn.norm_k(key)
        query, key, value = (part.unflatten(-1, (attn.heads, -1)).transpose(1, 2) for part in (query, key, value))
        scores = query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5
        share = (scores + attention_mask[:, None]).float().softmax(dim=-1)
        looked = share.gather(-1, self.at[:, None, :, None].expand(-1, attn.heads, -1, -1))[..., 0]
        # One head that looks is enough: the others are free.
        self.near.append(looked.mean(dim=1).clamp_min(1e-6).log().mean(dim=1))
        return attn.to_out[0]((share.to(value.dtype) @ value).transpose(1, 2).flatten(2))


@contextmanager
def guided(transformer: nn.Module, at: Tensor) -> Iterator[list[Tensor]]:
    """While it is entered, each block notes for each row (B,) the mean log share of its attention that lies on the key
    `at` (B, N) of each of its N places."""
    noting, was = GuidedAttention(at), [block.attn2.processor for block in transformer.transformer_blocks]
    for block in transformer.transformer_blocks:
        block.attn2.processor = noting
    try:
        yield noting.near
    finally:
        for block, processor in zip(transformer.transformer_blocks, was):
            block.attn2.processor = processor


def own_places(lengths: Sequence[Sequence[int]], words: int, tokens: int, height: int, width: int) -> Tensor:
    """The keys (B, height * width) at which each place finds itself in its row's last picture.

    Args:
        lengths: of each row the tokens of its pairs' feedback, in order.
        words: keys of the prompt, which come first. tokens: of one picture, a square.
    """
    side = round(tokens ** 0.5)
    rows, columns = torch.arange(height) * side // height, torch.arange(width) * side // width
    place = (rows[:, None] * side + columns).flatten()
    first = [words + sum(row[:-1]) + tokens * (len(row) - 1) for row in lengths]
    return torch.tensor(first)[:, None] + place
