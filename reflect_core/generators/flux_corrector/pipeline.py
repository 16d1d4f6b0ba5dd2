"""The generator of the FLUX family: plain pictures, and pictures corrected by a reflection (ReflectionFlow).

Without context a request comes out as from diffusers' own FluxPipeline with the same seed. With one
(picture, feedback) pair the flawed picture enters as extra tokens and the feedback joins the prompt.

What differs from the official code: requests are drawn in batches, with and without context in one
call; texts, condition pictures, embeddings and modulations are computed once; every random number
comes from the request's seed; and plain pictures need no adapter to be switched off, because the LoRA
never touches text and image tokens.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import torch
from diffusers.image_processor import VaeImageProcessor
from torch import Tensor, nn

from ...presets.load import read_settings
from ...types import Cost, Drawn, Picture, Request, StepCallback, UserError
from .encoding import ConditionEncoder, TextEncoders, vae_scale
from .folder import folder_lora, load_components
from .latents import grid_ids, request_noise, schedule, unpack
from .lora import ConditionLora
from .options import CorrectorOptions
from .transformer import Condition, Prepared, denoise, prepare

DEFAULTS = {"width": 1024, "height": 1024, "steps": 28, "guidance": 3.5}
"""What the published search asks for; a folder's reflect.json may say otherwise."""


class FluxCorrector:
    """Draws requests with a FLUX model and, given a LoRA, corrects pictures. See `Generator`."""

    def __init__(self, *, transformer: nn.Module, vae: nn.Module, text_encoder: nn.Module,
                 text_encoder_2: nn.Module,
                 tokenizer: Any, tokenizer_2: Any, scheduler: Any, lora: ConditionLora | None = None,
                 options: CorrectorOptions | None = None, defaults: dict[str, Any] | None = None):
        """Take loaded components, all on one device and of one dtype. Most callers want `from_folder`."""
        self.options = options = CorrectorOptions() if options is None else options
        self.transformer, self.vae, self.lora = transformer, vae, lora
        self.schedule_config = dict(scheduler.config)
        self.defaults = DEFAULTS | (defaults or {})
        self.texts = TextEncoders(tokenizer, text_encoder, tokenizer_2, text_encoder_2,
                                  options.max_sequence_length, options.text_cache)
        self.conditions = ConditionEncoder(vae, options.condition_size, options.posterior,
                                           options.condition_cache)
        self.patch = vae_scale(vae) * 2
        self.processor = VaeImageProcessor(vae_scale_factor=self.patch)
        if options.condition_size % self.patch:
            raise UserError(f"option condition_size is {options.condition_size}; expected a multiple of "
                            f"{self.patch}, the pixels to one token")

    @classmethod
    def from_folder(cls, path: str | Path, lora: str | Path | ConditionLora | None = None,
                    dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu",
                    options: CorrectorOptions | None = None, **changes: Any) -> FluxCorrector:
        """Load a model folder, without network.

        Args:
            path: a folder in diffusers layout, see `folder.py`.
            lora: the corrector's weights, as a file, a folder or loaded. None: the folder's own, if it
                has one; without any the generator draws plain pictures only (`max_context` is 0).
            dtype: fp32, bf16 or fp16, for all components.
            options: all switches at once, instead of those in the folder's reflect.json.
            changes: single switches, on top of either.

        Raises UserError for a folder, LoRA or option that cannot be used.
        """
        defaults, settings = read_settings(path)
        settings = changes if options is not None else settings | changes
        known = {f.name for f in fields(CorrectorOptions)}
        unknown = sorted(set(settings) - known)
        if unknown:
            raise UserError(f"{path}: a FLUX corrector has no option {unknown[0]!r}; expected one of "
                            f"{', '.join(sorted(known))}")
        options = replace(options or CorrectorOptions(), **settings)
        parts = load_components(path, dtype)
        for name in ("transformer", "vae", "text_encoder", "text_encoder_2"):
            parts[name] = parts[name].to(device)
        if lora is None:
            lora = folder_lora(path)
        if lora is not None and not isinstance(lora, ConditionLora):
            lora = ConditionLora.load(lora, parts["transformer"])
        if lora is not None:
            lora = lora.to(device, dtype).requires_grad_(False)
        return cls(**parts, lora=lora, options=options, defaults=defaults)

    @property
    def max_context(self) -> int:
        """1 with a corrector LoRA, 0 without."""
        return 0 if self.lora is None else 1

    def draw(self, requests: Sequence[Request], callback: StepCallback | None = None) -> list[Drawn]:
        """Draw every request; the results are in the order of the requests.

        Requests of equal size, steps and kind (with or without context) go together, up to
        `max_batch` at a time, in the order given. A picture is the same whatever it was batched with,
        up to fp32 rounding (1e-5), and to the last bit when the same requests are drawn again.
        `callback(step, steps)` is called after each step of each batch and may raise to cancel.
        """
        for request in requests:
            self._check(request)
        drawn: list[Drawn | None] = [None] * len(requests)
        for rows in self._batches(requests):
            batch = [requests[row] for row in rows]
            start = time.perf_counter()
            with torch.no_grad():
                latents, calls = self._sample(batch, callback)
                pictures = self._decode(latents, batch[0])
            seconds = (time.perf_counter() - start) / len(batch)
            passes = 2 if self.options.true_cfg_scale > 1 else 1
            for row, request, picture, encoded in zip(rows, batch, pictures, calls):
                cost = Cost(pictures=1, denoiser_evaluations=request.steps * passes,
                            text_encoder_calls=encoded, seconds=seconds)
                drawn[row] = Drawn(picture, cost)
        return drawn

    def draw_latents(self, requests: Sequence[Request], callback: StepCallback | None = None) -> list[Tensor]:
        """As `draw`, but the final latent tokens (N, C) of each request, before the autoencoder."""
        for request in requests:
            self._check(request)
        latents: list[Tensor | None] = [None] * len(requests)
        for rows in self._batches(requests):
            with torch.no_grad():
                batch, _ = self._sample([requests[row] for row in rows], callback)
            for row, value in zip(rows, batch):
                latents[row] = value
        return latents

    def _batches(self, requests: Sequence[Request]) -> list[list[int]]:
        groups: dict[tuple, list[int]] = {}
        for row, r in enumerate(requests):
            groups.setdefault((r.width, r.height, r.steps, bool(r.context)), []).append(row)
        most = self.options.max_batch
        return [rows[i:i + most] for rows in groups.values() for i in range(0, len(rows), most)]

    def _sample(self, batch: Sequence[Request], callback: StepCallback | None) -> tuple[Tensor, list[int]]:
        """Latent tokens (B, N, C) of requests that go together, and each one's text-encoder calls."""
        first, model = batch[0], self.transformer
        rows, columns = first.height // self.patch, first.width // self.patch
        device, dtype = model.x_embedder.weight.device, model.x_embedder.weight.dtype
        pairs = [request_noise(r, model.config.in_channels // 4, rows, columns, dtype) for r in batch]
        latents = torch.cat([noise for noise, _ in pairs]).to(device)
        condition = self._condition(batch, [generator for _, generator in pairs])
        ids = grid_ids(rows, columns, device=device)

        texts = [self.options.texts(r) for r in batch]
        prepared, calls = self._prepared(texts, ids, condition)
        scale, negative = self.options.true_cfg_scale, None
        if scale > 1:
            negative, more = self._prepared([("", "")] * len(batch), ids, condition)
            calls = [a + b for a, b in zip(calls, more)]

        guidance = torch.tensor([r.guidance for r in batch], dtype=torch.float32, device=device)
        scheduler = schedule(self.schedule_config, first.steps, latents.shape[1], device)
        for step, t in enumerate(scheduler.timesteps, start=1):
            # diffusers rounds the 0..1000 time to the latents' dtype and only then divides.
            when = t.expand(len(batch)).to(latents.dtype) / 1000
            velocity = denoise(model, prepared, latents, when, guidance)
            if negative is not None:
                without = denoise(model, negative, latents, when, guidance)
                velocity = without + scale * (velocity - without)
            latents = scheduler.step(velocity, t, latents, return_dict=False)[0].to(dtype)
            if callback is not None:
                callback(step, first.steps)
        return latents, calls

    def _prepared(self, texts: Sequence[tuple[str, str]], ids: Tensor,
                  condition: Condition | None) -> tuple[Prepared, list[int]]:
        pooled, states, calls = [], [], []
        for clip_text, t5_text in texts:
            vector, new_vector = self.texts.pooled(clip_text)
            state, new_state = self.texts.states(t5_text)
            pooled.append(vector)
            states.append(state)
            calls.append(int(new_vector) + int(new_state))
        text_ids = ids.new_zeros(states[0].shape[0], 3)
        options = self.options
        prepared = prepare(self.transformer, self.lora, torch.stack(states), torch.stack(pooled), ids,
                           text_ids, condition, union_cond_attn=options.union_cond_attn,
                           latent_lora=options.latent_lora, condition_scale=options.condition_scale)
        return prepared, calls

    def _condition(self, batch: Sequence[Request], generators: Sequence[torch.Generator]) -> Condition | None:
        if not batch[0].context:
            return None
        pictures = [r.context[0].picture for r in batch]
        tokens = torch.cat([self.conditions.tokens(p, g) for p, g in zip(pictures, generators)])
        side = self.options.condition_size // self.patch
        offset = self.options.condition_offset or (0, -side)
        return Condition(tokens, grid_ids(side, side, offset, tokens.device))

    def _decode(self, latents: Tensor, request: Request) -> list[Picture]:
        """Tokens (B, N, C) to pictures, one at a time: the decoder's activations are large."""
        config = self.vae.config
        latents = unpack(latents, request.height // self.patch, request.width // self.patch)
        latents = latents / config.scaling_factor + (config.shift_factor or 0.0)
        images = [self.vae.decode(row[None], return_dict=False)[0] for row in latents]
        return [self.processor.postprocess(image, output_type="pil")[0] for image in images]

    def _check(self, request: Request) -> None:
        if not isinstance(request.prompt, str):
            raise UserError(f"the prompt is {request.prompt!r}; expected text")
        for name in ("width", "height"):
            value = getattr(request, name)
            if not isinstance(value, int) or value < self.patch or value % self.patch:
                raise UserError(f"{name} is {value!r}; expected a multiple of {self.patch} pixels; try "
                                f"{max(self.patch, round(float(value) / self.patch) * self.patch)}")
        if not isinstance(request.steps, int) or request.steps < 1:
            raise UserError(f"steps is {request.steps!r}; expected a whole number of 1 or more")
        if not isinstance(request.seed, int) or not 0 <= request.seed < 2**64:
            raise UserError(f"seed is {request.seed!r}; expected a whole number from 0 to 2**64 - 1")
        if request.context and self.lora is None:
            raise UserError("a request has a picture to correct, but this model has no corrector LoRA; "
                            "expected a plain request, or a model with one; try to load it with lora=")
        if len(request.context) > 1:
            raise UserError(f"a request has {len(request.context)} context pairs; expected at most 1, which "
                            "is all that a FLUX corrector sees; try the latest")
        if request.context and request.context[0].picture is None:
            raise UserError("a request's context has no picture; expected the flawed picture in Pair.picture")
