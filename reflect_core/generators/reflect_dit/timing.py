"""What a Reflect-DiT step costs beside a plain SANA step (Reflect-DiT, section 8).

Both at guidance, that is two rows, on prompts that fill all places; ours with K = 3 pictures and feedback in view,
through `denoise`, with its share of what is prepared once for all steps; theirs diffusers' own forward. Two small
models of the released width are timed, and what their blocks differ by is carried on to the released twenty: what is
done once for all blocks would count too much else.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any

import torch

from ..clock import seconds_of
from .cached import Prepared, denoise, keys_values, prepare
from .checkpoint import build
from .context import DROPPED_TEXT

FEEDBACK = (11, 9, 14)
"""Tokens of the three texts."""
TIMED, RELEASED = (1, 3), 20
"""Blocks of the two models, and of the released one."""
STEPS = 20
"""Of one picture, as published: that many share what is prepared."""


def step_ratio(side: int, *, heads: int = 70, prompt: int = 300, repeats: int = 5,
               dtype: torch.dtype = torch.float32, device: str = "cpu") -> dict[str, Any]:
    """A Reflect-DiT step over a plain SANA step, side x side latent tokens, random weights, interleaved runs.

    Returns: `ratio` (for twenty blocks), `reflect_seconds` and `plain_seconds` (a step of twenty blocks, from
    medians), `prepared_seconds` (once for a picture; a twentieth of it is in `reflect_seconds`), and the settings.
    """
    work = [one for blocks in TIMED for one in _steps(side, blocks, heads, prompt, dtype, device)]
    with torch.inference_mode():
        for one in work:
            one()
        rounds = [[seconds_of(one, device) for one in work] for _ in range(repeats)]
    medians = list(map(statistics.median, zip(*rounds)))
    ours, plain, before = (few + (RELEASED - TIMED[0]) * (more - few) / (TIMED[1] - TIMED[0])
                           for few, more in zip(medians[:3], medians[3:]))
    ours += before / STEPS
    return {"ratio": ours / plain, "reflect_seconds": ours, "plain_seconds": plain, "prepared_seconds": before,
            "tokens": side * side, "prompt_tokens": prompt, "pairs": len(FEEDBACK), "width": 32 * heads,
            "blocks": RELEASED, "timed_blocks": list(TIMED), "repeats": repeats,
            "dtype": str(dtype).removeprefix("torch."), "device": str(device)}


def _steps(side: int, blocks: int, heads: int, prompt: int, dtype: torch.dtype, device: str
           ) -> tuple[Callable[[], None], Callable[[], None], Callable[[], None]]:
    """Our step, diffusers' own, and what ours prepares for all steps, of one model."""
    transformer, context = build({
        "num_attention_heads": heads, "attention_head_dim": 32, "num_layers": blocks,
        "num_cross_attention_heads": heads * 2 // 7, "cross_attention_head_dim": 112, "cross_attention_dim": 32 * heads,
        "caption_channels": 2304, "reflection": True, "vision_feature_dim": 1024,
        "num_reflection_transformer_layers": 2})
    if dtype != torch.float32:
        transformer, context = transformer.to(dtype), context.to(dtype)
    transformer, context = transformer.to(device), context.to(device)
    random = torch.Generator().manual_seed(0)

    def noise(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=random).to(device, dtype)

    latents, states = noise(2, 32, side, side), noise(2, prompt, 2304)
    mask, when = torch.ones(2, prompt, dtype=torch.long, device=device), torch.tensor([500.0], device=device)
    seen = [(noise(64, 1024), noise(length, 2304)) for length in FEEDBACK]

    def before(steps: int = STEPS) -> Prepared:
        told = [part for shown, said in seen for part in (context.adapted_picture(shown), context.adapted_text(said))]
        return prepare(transformer, context, when.expand(steps), [keys_values(transformer, one) for one in states],
                       [None, torch.cat(told)], [1, 0], dropped=64 + DROPPED_TEXT)
    with torch.inference_mode():
        prepared = before(1)
    return (lambda: denoise(transformer, prepared, latents, 0),
            lambda: transformer(latents, states, when.expand(2), encoder_attention_mask=mask, return_dict=False),
            before)
