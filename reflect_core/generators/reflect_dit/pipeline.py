"""The generator of the SANA family: plain pictures, and pictures drawn with flawed ones in view (Reflect-DiT).

Without context a request comes out as from diffusers' own SanaPipeline with the same seed. With up to K
(picture, feedback) pairs their tokens stand beside the prompt's. Several prompts and tries go in one batch and
come out as one at a time; every random number comes from the request's seed.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from diffusers import DPMSolverMultistepScheduler
from diffusers.image_processor import PixArtImageProcessor
from torch import Tensor, nn

from ...presets.load import read_settings
from ...types import Cost, Drawn, Picture, Request, Step, StepCallback, UserError
from ..checking import check_finite, options_of
from ..clock import Stopwatch
from ..compiled import Compiled, check_compile, directly
from ..memory import enough_memory
from ..offload import HOME, Offload, check_offload
from ..places import Places
from ..preview import Previews
from ..quantise import check_quantise
from ..requests import check_request
from ..tiling import tile
from .cached import Prepared, denoise, prepare
from .context import DROPPED_TEXT, ContextEncoder
from .encoding import Pictures, Texts, pooled_side
from .folder import ENCODERS, load_components
from .inputs import Encoded, Inputs
from .options import ReflectOptions
from .sources import VISION, find_sources

DEFAULTS = {"width": 1024, "height": 1024, "steps": 20, "guidance": 4.5}
"""What the paper draws with."""


class ReflectDiT:
    """Draws requests with a SANA model and, with Reflect-DiT's weights, with flawed pictures in view. See
    `Generator`."""

    def __init__(self, *, transformer: nn.Module, vae: nn.Module, text_encoder: nn.Module, tokenizer: Any,
                 scheduler: Any, context: ContextEncoder | None = None, image_encoder: nn.Module | None = None,
                 options: ReflectOptions | None = None, defaults: dict[str, Any] | None = None) -> None:
        """Take loaded components of one dtype. Most callers want `from_folder`."""
        self.options = options = ReflectOptions() if options is None else options
        if (context is None) != (image_encoder is None):
            raise UserError("got only one of Reflect-DiT's context and a picture encoder; expected both, or plain SANA")
        self.transformer, self.context, self.vae = transformer, context, vae
        self.parts = {"text_encoder": text_encoder, "vae": vae, "transformer": transformer}
        if image_encoder is not None:
            self.parts["image_encoder"] = image_encoder
        self.companions = {} if context is None else {"transformer": [context]}
        """What must be where a part is."""
        self.places = Places(self.parts)
        """Asked before a part is used; a memory manager sets `places.manager`."""
        self.run = Compiled(self.places) if options.compile else directly
        """How a block of the transformer is run."""
        self.schedule_config = dict(scheduler.config)
        self.defaults = DEFAULTS | (defaults or {})
        self.texts = Texts(tokenizer, text_encoder, options.max_sequence_length, options.text_cache, self.places)
        self.pictures = None if image_encoder is None else Pictures(image_encoder, options.image_tokens,
                                                                    options.picture_cache, self.places)
        self.inputs = Inputs(transformer, context, self.texts, self.pictures, options)
        self.patch = 2 ** (len(vae.config.encoder_block_out_channels) - 1) * transformer.config.patch_size
        self.processor = PixArtImageProcessor(vae_scale_factor=self.patch)
        scale = self.patch // transformer.config.patch_size
        if options.vae_tiling:
            tile(vae, scale)
        self.previews = Previews(vae, scale, self.places)

    @classmethod
    def from_folder(cls, path: str | Path, lora: str | Path | None = None, dtype: torch.dtype = torch.float32,
                    device: str | torch.device = "cpu", encoder_device: str | torch.device | None = None,
                    offload: str = "none", options: ReflectOptions | None = None,
                    parts: Mapping[str, str | Path] | None = None, quantise: str = "none",
                    pack_on: str | torch.device | None = None, **changes: Any) -> ReflectDiT:
        """Load a model folder, without network. What is wrong is said before any weight of the model is read.

        Args:
            path: a SANA model in diffusers layout, see `folder.py`.
            lora: the folder of a Reflect-DiT checkpoint, in place of the model's own transformer. The options in its
                reflect.json go on top of the model's.
            encoder_device: where the text and the picture encoder are kept; None: with the rest. Gemma takes 5 GB in
                bf16 and is needed only once a text.
            offload: 'none', all parts on `device`; 'component', one at a time; 'layers', two blocks of it at a time;
                see `offload.py`. The pictures are the same.
            options: all switches at once, instead of those in the folder's reflect.json.
            parts: components that come from elsewhere, by name, each a folder; see `sources.py`.
            quantise: fewer bits for the transformer and Gemma, see `generators/quantise.py`. Reflect-DiT's own layers
                stay as they are.
            pack_on: where bitsandbytes packs them, if they are kept elsewhere; None: where they compute.
            changes: single switches, on top of either.

        Raises UserError for a folder, checkpoint or option that cannot be used.
        """
        check_offload(offload)
        defaults, settings = read_settings(path)
        if lora is not None:  # what it was trained with
            settings |= read_settings(lora if Path(lora).is_dir() else Path(lora).parent)[1]
        options = options_of(ReflectOptions, "Reflect-DiT", path, options, settings, changes)
        pack_on = device if pack_on is None and offload != "none" else pack_on
        check_quantise(quantise, device if pack_on is None else pack_on, offload, encoder_device)
        check_compile(options.compile, quantise)
        sources = find_sources(path, lora, parts)
        if VISION in sources:
            seen = sources[VISION].config
            pooled_side(options.image_tokens, seen.get("image_size", 224) // seen.get("patch_size", 16))
        home, encoder_home = (device, encoder_device) if offload == "none" else (HOME, None)
        loaded = load_components(path, lora, dtype, home, parts, encoder_home, quantise, pack_on)
        made = cls(**loaded, options=options, defaults=defaults)
        if offload != "none":
            own = {} if encoder_device is None else dict.fromkeys(ENCODERS, encoder_device)
            Offload.manage(made, device, offload, own)
        return made

    def with_options(self, **changes: Any) -> ReflectDiT:
        """The same model with another `see`; it shares everything, what is kept of texts and pictures too.

        UserError for other options: they are fixed once a model is loaded.
        """
        if other := sorted(set(changes) - {"see"}):
            raise UserError(f"a model of the SANA family has no option {other[0]!r} that can be changed once it is "
                            "loaded; expected 'see'")
        same = copy.copy(self)
        same.options = replace(self.options, **changes)
        return same

    @property
    def max_context(self) -> int:
        """K with Reflect-DiT's weights, 0 with plain SANA."""
        return 0 if self.context is None else self.options.max_context

    def evaluations(self, request: Request) -> int:
        """Denoiser evaluations that drawing `request` costs: one a step and guidance branch."""
        return request.steps * (2 if request.guidance > 1 else 1)

    def draw(self, requests: Sequence[Request], callback: StepCallback | None = None) -> list[Drawn]:
        """Draw every request; the results are in the order of the requests.

        Requests of equal size and steps, with guidance or without, with context or without, go together, up to
        `max_batch` at a time, in the order given. `callback` is called after each step of each batch and may raise
        to cancel.
        """
        for request in requests:
            check_request(request, self.patch, self.max_context, self.defaults["guidance"])
            if request.steps > self.schedule_config["num_train_timesteps"]:
                raise UserError(f"steps is {request.steps}; expected at most the "
                                f"{self.schedule_config['num_train_timesteps']} that the model was trained with")
        made: list = [None] * len(requests)
        rows = self._batches(requests)
        batches, watches = [[requests[n] for n in numbers] for numbers in rows], [Stopwatch() for _ in rows]
        with torch.no_grad(), enough_memory(), self.places.turn():
            # All batches go through one part before the next, so that whoever manages memory loads each part once.
            encoding = Stopwatch()
            with encoding:
                encoded = self.inputs.encode(batches)
                for batch in batches if callback is not None else ():
                    self.previews.prepare(batch[0])
            latents = []
            for batch, watch, one in zip(batches, watches, encoded):
                with watch:
                    latents.append(self._sample(batch, one, callback))
            for numbers, batch, watch, one, drawn in zip(rows, batches, watches, encoded, latents):
                with watch:
                    pictures = [self._picture(row[None], batch[0]) for row in drawn]
                seconds = watch.seconds / len(batch) + encoding.seconds / len(requests)
                for n, picture, calls, noted in zip(numbers, pictures, one.calls, one.notes):
                    made[n] = Drawn(picture, Cost(pictures=1, denoiser_evaluations=self.evaluations(requests[n]),
                                                  text_encoder_calls=calls, seconds=seconds), tuple(noted))
        return made

    def _batches(self, requests: Sequence[Request]) -> list[list[int]]:
        groups: dict[tuple, list[int]] = {}
        for number, r in enumerate(requests):
            groups.setdefault((r.width, r.height, r.steps, r.guidance > 1, bool(r.context)), []).append(number)
        most = self.options.max_batch
        return [numbers[i:i + most] for numbers in groups.values() for i in range(0, len(numbers), most)]

    def _sample(self, batch: Sequence[Request], encoded: Encoded, callback: StepCallback | None = None) -> Tensor:
        """Latents (B, C, H, W) in fp32 of requests that go together."""
        first, dtype = batch[0], self.transformer.dtype
        shape = (1, self.transformer.config.in_channels, first.height // self.patch, first.width // self.patch)
        noise = [torch.randn(shape, generator=torch.Generator("cpu").manual_seed(r.seed)) for r in batch]
        guided = first.guidance > 1
        pixels = first.width * first.height * len(encoded.prompts)
        device = self.places("transformer", pixels)
        scheduler = DPMSolverMultistepScheduler.from_config(self.schedule_config)
        scheduler.set_timesteps(first.steps, device=device)
        prepared = self._prepare(scheduler.timesteps, encoded, device)
        latents = torch.cat(noise).to(device)
        guidance = torch.tensor([r.guidance for r in batch], device=device).view(-1, 1, 1, 1)
        for step, t in enumerate(scheduler.timesteps):
            given = (torch.cat([latents, latents]) if guided else latents).to(dtype)
            velocity = denoise(self.transformer, prepared, given, step, run=self.run).float()
            if guided:
                without, told = velocity.chunk(2)
                velocity = without + guidance * (told - without)
            before = latents
            latents = scheduler.step(velocity, t, latents, return_dict=False)[0]
            if callback is not None:
                # Where the straight way from before the step leads to.
                straight = partial(torch.sub, before, t / 1000 * velocity)
                callback(Step(step + 1, first.steps, lambda end=straight: self._preview(end(), first)))
        return latents

    def _prepare(self, timesteps: Tensor, encoded: Encoded, device: torch.device | str) -> Prepared:
        options, half = self.options, len(encoded.prompts) // 2
        prompts, contexts = self.inputs.rows(encoded, device, options.see)
        guided = len(prompts) > len(encoded.calls)
        beside = [*range(half, 2 * half), *range(half)] if guided else None
        scaled = timesteps * self.transformer.config.timestep_scale
        return prepare(self.transformer, self.context, scaled, prompts, contexts, beside,
                       dropped=options.image_tokens + DROPPED_TEXT, mask_last=options.mask_last,
                       pad_context=options.pad_context, rotary_bf16=options.rotary_bf16)

    def _preview(self, latents: Tensor, request: Request) -> list[Picture]:
        """Latents (B, C, H, W) to small pictures."""
        return self.previews.made(latents / self.vae.config.scaling_factor, request, self._decoded)

    def _picture(self, latents: Tensor, request: Request) -> Picture:
        device = self.places("vae", request.width * request.height)
        return self._decoded(latents.to(device, self.vae.dtype) / self.vae.config.scaling_factor, device)

    def _decoded(self, latents: Tensor, device: torch.device) -> Picture:
        """Latents (1, C, H, W) with their scaling taken off."""
        image = self.vae.decode(latents.to(device, self.vae.dtype), return_dict=False)[0]
        check_finite(image)
        return self.processor.postprocess(image, output_type="pil")[0]
