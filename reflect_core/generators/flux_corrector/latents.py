"""Between pictures, latents and tokens: packing, position ids, noise, and the schedule of FLUX.

FLUX cuts the autoencoder's latent into squares of 2 x 2 and makes a token of each. A token's position
is (0, row, column) in that grid; the condition's grid lies directly to the left of the picture's
(ReflectionFlow, section 1.3).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...types import Request


def pack(latents: Tensor) -> Tensor:
    """Latents (B, C, H, W) to tokens (B, H/2 * W/2, 4C)."""
    b, c, h, w = latents.shape
    squares = latents.view(b, c, h // 2, 2, w // 2, 2).permute(0, 2, 4, 1, 3, 5)
    return squares.reshape(b, h // 2 * (w // 2), 4 * c)


def unpack(tokens: Tensor, rows: int, columns: int) -> Tensor:
    """Tokens (B, rows * columns, 4C) to latents (B, C, 2 * rows, 2 * columns)."""
    b, _, c = tokens.shape
    grid = tokens.view(b, rows, columns, c // 4, 2, 2).permute(0, 3, 1, 4, 2, 5)
    return grid.reshape(b, c // 4, 2 * rows, 2 * columns)


def scaled(latents: Tensor, config: Any) -> Tensor:
    """An autoencoder's latents, of any shape, as the transformer knows them. `config`: the autoencoder's."""
    return (latents - (config.shift_factor or 0.0)) * config.scaling_factor


def unscaled(latents: Tensor, config: Any) -> Tensor:
    """The other way."""
    return latents / config.scaling_factor + (config.shift_factor or 0.0)


def grid_ids(rows: int, columns: int, offset: tuple[int, int] = (0, 0),
             device: torch.device | str = "cpu") -> Tensor:
    """Position ids (rows * columns, 3) of a grid whose first token is at `offset` (row, column)."""
    ids = torch.zeros(rows, columns, 3)
    ids[..., 1] = torch.arange(rows)[:, None] + offset[0]
    ids[..., 2] = torch.arange(columns)[None, :] + offset[1]
    return ids.view(rows * columns, 3).to(device)


def request_noise(request: Request, channels: int, rows: int, columns: int,
                  dtype: torch.dtype) -> tuple[Tensor, torch.Generator]:
    """A request's first latents as tokens (1, rows * columns, 4 * channels), and its generator after them.

    Drawn on the CPU from the request's own seed: the same on every device and in every batch.
    """
    generator = torch.Generator("cpu").manual_seed(request.seed)
    noise = torch.randn(1, channels, 2 * rows, 2 * columns, generator=generator, dtype=dtype)
    return pack(noise), generator


def schedule(config: dict, steps: int, tokens: int, device: torch.device | str):
    """A fresh FlowMatchEulerDiscreteScheduler set to FLUX's sigmas for a picture of so many tokens.

    The sigmas are evenly spaced from 1 to 1/steps and shifted the more, the more tokens there are,
    on a line through the two points in the scheduler's config.
    """
    import numpy as np
    from diffusers import FlowMatchEulerDiscreteScheduler

    scheduler = FlowMatchEulerDiscreteScheduler.from_config(config)
    values = scheduler.config
    base, most = values.get("base_image_seq_len", 256), values.get("max_image_seq_len", 4096)
    low, high = values.get("base_shift", 0.5), values.get("max_shift", 1.15)
    # In diffusers' order of operations, so that the sigmas are equal to the last bit.
    slope = (high - low) / (most - base)
    mu = tokens * slope + (low - slope * base)
    if values.get("use_flow_sigmas"):
        scheduler.set_timesteps(steps, device=device, mu=mu)
    else:
        scheduler.set_timesteps(sigmas=np.linspace(1.0, 1 / steps, steps), device=device, mu=mu)
    scheduler.set_begin_index(0)
    return scheduler
