"""Qwen-Image-Edit, the first release, 2509 and 2511 (Qwen/Qwen-Image-Edit...): 20 B parameters, Apache-2.0.

The flawed picture is seen twice: by Qwen2.5-VL together with the instruction, and as latents behind the picture's own,
always brought to about 1024 x 1024 pixels in its own proportions. A request's guidance is classifier-free: above 1 each
step takes two evaluations, and the outcome is brought back to the length of the guided one, as diffusers' pipelines
do. Equal to those with the same seed, see `qwen_text.py` for the one exception.

Without a picture the same weights draw by QwenImagePipeline's template, as the model does that this one was tuned
from. They were tuned for edits, so give `base`, another model for first pictures, if you have one.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from functools import partial
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from ...types import Request
from ..flux_corrector.latents import pack
from ..rgb import as_rgb
from .editor import Editor, Ready, Velocity, fitted
from .options import QwenOptions
from .qwen_folder import PLUS, check_folder, load_components
from .qwen_text import QwenTexts

AREA = 1024 * 1024
"""Pixels of a flawed picture."""
DEFAULTS = {"width": 1024, "height": 1024, "steps": 40, "guidance": 4.0}
"""What its makers' examples have; the first release's has 50 steps."""


def _scaled(latents: Tensor, config: Any) -> Tensor:
    mean, deviation = _statistics(latents, config)
    return (latents - mean) / deviation


def _unscaled(latents: Tensor, config: Any) -> Tensor:
    mean, deviation = _statistics(latents, config)
    return latents / (1.0 / deviation) + mean  # in diffusers' way, so that the last bit is the same


def _statistics(latents: Tensor, config: Any) -> tuple[Tensor, Tensor]:
    """Of each channel, (1, C, 1, 1)."""
    values = (config.latents_mean, config.latents_std)
    return tuple(torch.tensor(v).view(1, -1, 1, 1).to(latents.device, latents.dtype) for v in values)


class QwenEdit(Editor):
    """Edits pictures, and draws plain requests as well as it can. See `Generator`."""

    options: QwenOptions
    kind, check, load = QwenOptions, staticmethod(check_folder), staticmethod(load_components)
    scaled, unscaled = staticmethod(_scaled), staticmethod(_unscaled)
    free = Editor.free | {"negative_prompt"}

    def __init__(self, *, pipeline: str, transformer: nn.Module, vae: nn.Module, text_encoder: nn.Module,
                 tokenizer: Any, image_processor: Any, scheduler: Any, options: QwenOptions | None = None,
                 defaults: dict[str, Any] | None = None) -> None:
        """Take loaded components of one dtype. Most callers want `from_folder`. `pipeline`: the class in its index."""
        options = QwenOptions() if options is None else options
        own = DEFAULTS if pipeline == PLUS else DEFAULTS | {"steps": 50}
        super().__init__(transformer=transformer, vae=Stills(vae), scheduler=scheduler,
                         parts={"text_encoder": text_encoder, "vae": vae, "transformer": transformer},
                         scale=2 ** len(vae.config.temperal_downsample), options=options,
                         defaults=own | (defaults or {}))
        self.texts = QwenTexts(pipeline, tokenizer, image_processor, text_encoder, options.max_sequence_length,
                               options.text_cache, self.places)

    def evaluations(self, request: Request) -> int:
        return request.steps * (2 if request.guidance > 1 else 1)

    def batch_of(self, request: Request) -> None:
        """Texts differ in length and would have to be padded; one picture fills a device."""
        return None

    def ready(self, batches: Sequence[Sequence[Request]]) -> list[Ready]:
        requests = [request for (request,) in batches]
        pictures = [as_rgb(r.context[0].picture) if r.context else None for r in requests]
        texts = [[self.texts.states(text, picture) for text in self._told(r)] for r, picture in zip(requests, pictures)]
        made = []
        for request, picture, told in zip(requests, pictures, texts):
            seen, size = None, (0, 0)
            if picture is not None:
                size = fitted(picture.size, AREA, 32)
                seen = self.latents_of(picture, size)
            made.append(Ready([sum(new for _, new in told)], size[0] * size[1],
                              partial(self._velocity, request, [states for states, _ in told], seen)))
        return made

    def _told(self, request: Request) -> list[str]:
        """The instruction, and what guidance leads away from if there is any."""
        told = self.options.told(request).text
        return [told, self.options.negative_prompt] if request.guidance > 1 else [told]

    def _velocity(self, request: Request, states: list[Tensor], seen: Tensor | None, device: torch.device | str
                  ) -> Velocity:
        model, grids = self.transformer, [(1, request.height // self.patch, request.width // self.patch)]
        if seen is not None:
            grids.append((1, seen.shape[2] // 2, seen.shape[3] // 2))
            seen = pack(seen).to(device)
        states = [one[None].to(device) for one in states]
        lengths = "txt_seq_lens" in inspect.signature(model.forward).parameters  # diffusers up to 0.36
        guidance = None
        if model.config.guidance_embeds:
            guidance = torch.full([1], request.guidance, dtype=torch.float32, device=device)

        def one(latents: Tensor, when: Tensor, text: Tensor) -> Tensor:
            given = latents if seen is None else torch.cat([latents, seen], dim=1)
            extra = {"txt_seq_lens": [text.shape[1]]} if lengths else {}
            said = model(hidden_states=given, timestep=when, guidance=guidance, encoder_hidden_states=text,
                         img_shapes=[grids], return_dict=False, **extra)[0]
            return said[:, :latents.shape[1]]

        def velocity(latents: Tensor, when: Tensor) -> Tensor:
            told = one(latents, when, states[0])
            if len(states) == 1:
                return told
            without = one(latents, when, states[1])
            both = without + request.guidance * (told - without)
            return both * (told.norm(dim=-1, keepdim=True) / both.norm(dim=-1, keepdim=True))

        return velocity


class Stills:
    """Qwen-Image's autoencoder, which is one of videos, for single pictures: as an `AutoencoderKL` looks."""

    def __init__(self, vae: nn.Module) -> None:
        self.vae, self.config = vae, vae.config
        self.parameters, self.enable_tiling = vae.parameters, vae.enable_tiling

    @property
    def dtype(self) -> torch.dtype:
        return self.vae.dtype

    def encode(self, pixels: Tensor) -> Any:
        """(B, 3, H, W) to the distribution of latents (B, C, h, w), of which there is the mean."""
        mean = self.vae.encode(pixels[:, :, None]).latent_dist.mode()[:, :, 0]
        return SimpleNamespace(latent_dist=SimpleNamespace(mean=mean, mode=lambda: mean))

    def decode(self, latents: Tensor, return_dict: bool = False) -> tuple[Tensor]:
        """(B, C, h, w) to pixels (B, 3, H, W)."""
        return (self.vae.decode(latents[:, :, None], return_dict=False)[0][:, :, 0],)
