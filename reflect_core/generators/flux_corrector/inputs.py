"""What the other parts make of requests before the transformer draws: noise, texts, condition pictures.

It is made for all batches of a call, a part at a time: first all that CLIP reads, then all that T5 reads, then all
condition pictures. Whoever moves parts to a device and away again moves each of them once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ...types import Request
from ..clock import Stopwatch
from .encoding import ConditionEncoder, TextEncoders
from .latents import grid_ids, request_noise
from .options import CorrectorOptions
from .transformer import Condition


@dataclass
class Batch:
    """Requests that are drawn together, and what they are drawn from, on the CPU."""

    requests: list[Request]
    states: Tensor | None = None
    """T5's (B, L, D)"""
    pooled: Tensor | None = None
    """CLIP's (B, P)"""
    negative: tuple[Tensor, Tensor] | None = None
    """(states, pooled) of the text "", with `true_cfg_scale`"""
    noise: Tensor | None = None
    """(B, N, C)"""
    condition: Condition | None = None
    calls: list[int] = field(default_factory=list)
    """Of the text encoders, for each request."""
    watch: Stopwatch = field(default_factory=Stopwatch)


def encode(batches: Sequence[Batch], texts: TextEncoders, conditions: ConditionEncoder, options: CorrectorOptions, *,
           channels: int, patch: int, dtype: torch.dtype) -> None:
    """Fill the batches.

    Args:
        channels: of a latent, before four of them become a token; patch: pixels to a token along a side.
    """
    for batch in batches:
        batch.calls = [0] * len(batch.requests)
    guided = options.true_cfg_scale > 1
    pooled = [_made(batch, texts.pooled, 0, options, guided) for batch in batches]
    states = [_made(batch, texts.states, 1, options, guided) for batch in batches]
    for batch, (pooled_own, pooled_empty), (states_own, states_empty) in zip(batches, pooled, states):
        batch.pooled, batch.states = pooled_own, states_own
        batch.negative = (states_empty, pooled_empty) if guided else None
    for batch in batches:
        with batch.watch:
            first = batch.requests[0]
            pairs = [request_noise(r, channels, first.height // patch, first.width // patch, dtype)
                     for r in batch.requests]
            batch.noise = torch.cat([noise for noise, _ in pairs])
            if first.context:
                # The generator that made the noise goes on.
                tokens = torch.cat([conditions.tokens(r.context[0].picture, generator)
                                    for r, (_, generator) in zip(batch.requests, pairs)])
                batch.condition = Condition(tokens, condition_ids(options, patch))


def condition_ids(options: CorrectorOptions, patch: int) -> Tensor:
    """Position ids (M, 3) of a condition picture."""
    side = options.condition_size // patch
    return grid_ids(side, side, options.condition_offset or (0, -side))


def _made(batch: Batch, encode_one: Callable[[str], tuple[Tensor, bool]], which: int, options: CorrectorOptions,
          guided: bool) -> tuple[Tensor, Tensor | None]:
    """What one encoder makes of a batch's texts and, if it is guided, of "", one row for each request."""

    def rows(said: Sequence[str]) -> Tensor:
        found: list[Any] = []
        for number, text in enumerate(said):
            vector, new = encode_one(text)
            batch.calls[number] += int(new)
            found.append(vector)
        return torch.stack(found)

    with batch.watch:
        own = rows([options.texts(r)[which] for r in batch.requests])
        return own, rows([""] * len(batch.requests)) if guided else None
