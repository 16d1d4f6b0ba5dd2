"""The generator of the FLUX family: plain pictures, and pictures corrected by a reflection (ReflectionFlow).

Without context a request comes out as from diffusers' own FluxPipeline with the same seed. With one
(picture, feedback) pair the flawed picture enters as extra tokens and the feedback joins the prompt.

What differs from the official code: requests are drawn in batches, with and without context in one
call; texts, condition pictures, embeddings and modulations are computed once; every random number
comes from the request's seed; and plain pictures need no adapter to be switched off, because the LoRA
never touches text and image tokens.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from diffusers.image_processor import VaeImageProcessor
from torch import Tensor, nn

from ...presets.load import read_settings
from ...types import Cost, Drawn, Picture, Request, Step, StepCallback, UserError
from ..memory import enough_memory
from ..places import Places
from ..preview import Previews
from ..quantise import check_quantise
from ..requests import check_request
from .encoding import ConditionEncoder, TextEncoders, vae_scale
from .folder import folder_lora, load_components, load_outlines, lora_options
from .latents import grid_ids, request_noise, schedule, unpack
from .lora import ConditionLora
from .options import CorrectorOptions
from .transformer import Condition, LoraDeltas, denoise, prepare, with_texts

DEFAULTS = {"width": 1024, "height": 1024, "steps": 28, "guidance": 3.5}
"""What the published search asks for; a folder's reflect.json may say otherwise."""


class FluxCorrector:
    """Draws requests with a FLUX model and, given a LoRA, corrects pictures. See `Generator`."""

    def __init__(self, *, transformer: nn.Module, vae: nn.Module, text_encoder: nn.Module,
                 text_encoder_2: nn.Module,
                 tokenizer: Any, tokenizer_2: Any, scheduler: Any, lora: ConditionLora | None = None,
                 options: CorrectorOptions | None = None, defaults: dict[str, Any] | None = None):
        """Take loaded components of one dtype. Most callers want `from_folder`.

        Transformer, autoencoder and LoRA are on one device, the text encoders where they like. Raises
        UserError for components that do not go together, or a LoRA of another model.
        """
        self.options = options = CorrectorOptions() if options is None else options
        _check_parts(transformer, vae=vae, text_encoder=text_encoder, text_encoder_2=text_encoder_2, lora=lora)
        _check_condition_size(options, vae)
        self.transformer, self.vae, self.lora = transformer, vae, lora
        self.parts = {"text_encoder": text_encoder, "text_encoder_2": text_encoder_2, "vae": vae,
                      "transformer": transformer}
        self.companions = {} if lora is None else {"transformer": [lora]}
        """What must be where a part is."""
        self.places = Places(self.parts)
        """Asked before a part is used; a memory manager sets `places.manager`."""
        self.schedule_config = dict(scheduler.config)
        self.defaults = DEFAULTS | (defaults or {})
        self.texts = TextEncoders(tokenizer, text_encoder, tokenizer_2, text_encoder_2,
                                  options.max_sequence_length, options.text_cache, self.places)
        self.conditions = ConditionEncoder(vae, options.condition_size, options.posterior,
                                           options.condition_cache, self.places)
        self._deltas: LoraDeltas | None = None
        self.previews = Previews(vae, vae_scale(vae), self.places)
        self.patch = vae_scale(vae) * 2
        self.processor = VaeImageProcessor(vae_scale_factor=self.patch)

    @classmethod
    def from_folder(cls, path: str | Path, lora: str | Path | ConditionLora | None = None,
                    dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu",
                    encoder_device: str | torch.device | None = None,
                    options: CorrectorOptions | None = None, parts: Mapping[str, str | Path] | None = None,
                    quantise: str = "none", **changes: Any) -> FluxCorrector:
        """Load a model folder or single files, without network. What is wrong is said before any weight is read.

        Args:
            path: a folder in diffusers layout, see `folder.py`, or a single file, see `sources.py`.
            lora: the corrector's weights, as a file, a folder or loaded. What a reflect.json beside the file
                says of the options it was trained with comes on top of the model's own. None: the folder's
                LoRA, if it has one; without any the generator draws plain pictures only (`max_context` is
                0). A loaded one is copied.
            dtype: fp32, bf16 or fp16, for all components.
            encoder_device: where the text encoders are kept; None: with the rest. FLUX.1-dev's take 10 GB in
                bf16 and are needed only once a text, so "cpu" spares a GPU that much.
            options: all switches at once, instead of those in the folder's reflect.json.
            parts: components that come from elsewhere, by name, each a folder or a single file.
            quantise: fewer bits for transformer and T5, see `generators/quantise.py`.
            changes: single switches, on top of either.

        Raises UserError for a folder, LoRA or option that cannot be used.
        """
        defaults, settings = read_settings(path)
        if isinstance(lora, (str, Path)):
            settings |= lora_options(lora)
        settings = changes if options is not None else settings | changes
        known = {f.name for f in fields(CorrectorOptions)}
        unknown = sorted(set(settings) - known)
        if unknown:
            raise UserError(f"{path}: a FLUX corrector has no option {unknown[0]!r}; expected one of "
                            f"{', '.join(sorted(known))}")
        options = replace(options or CorrectorOptions(), **settings)
        check_quantise(quantise, device)
        outlines = load_outlines(path, parts)
        _check_condition_size(options, outlines["vae"])
        lora = folder_lora(path) if lora is None else lora
        if isinstance(lora, ConditionLora):
            lora.check(outlines["transformer"])
            lora = copy.deepcopy(lora)
        elif lora is not None:
            lora = ConditionLora.load(lora, outlines["transformer"])
        loaded = load_components(path, dtype, device, encoder_device, parts, quantise)
        if lora is not None:
            lora = lora.to(device, dtype).requires_grad_(False)
        return cls(**loaded, lora=lora, options=options, defaults=defaults)

    def with_options(self, **changes: Any) -> FluxCorrector:
        """The same model, its weights and encoders shared, with other options, of those that no encoder has to do
        with. UserError for any other."""
        free = {"text_join", "condition_scale", "union_cond_attn", "latent_lora", "true_cfg_scale", "max_batch"}
        if fixed := sorted(set(changes) - free):
            raise UserError(f"the option {fixed[0]!r} cannot be changed once a model is loaded; expected one of "
                            f"{', '.join(sorted(free))}")
        other = copy.copy(self)
        other.options = replace(self.options, **changes)
        return other

    @property
    def max_context(self) -> int:
        """1 with a corrector LoRA, 0 without."""
        return 0 if self.lora is None else 1

    def evaluations(self, request: Request) -> int:
        """Denoiser evaluations that drawing `request` costs: one a step and guidance branch."""
        return request.steps * (2 if self.options.true_cfg_scale > 1 else 1)

    def draw(self, requests: Sequence[Request], callback: StepCallback | None = None) -> list[Drawn]:
        """Draw every request; the results are in the order of the requests.

        Requests of equal size, steps and kind (with or without context) go together, up to
        `max_batch` at a time, in the order given. A picture is the same whatever it was batched with,
        up to fp32 rounding (1e-5), and to the last bit when the same requests are drawn again.
        `callback` is called after each step of each batch and may raise to cancel.
        """
        made = self._made(requests, callback, self._decode)
        return [Drawn(picture, Cost(pictures=1, denoiser_evaluations=self.evaluations(request),
                                    text_encoder_calls=encoded, seconds=seconds))
                for request, (picture, encoded, seconds) in zip(requests, made)]

    def draw_latents(self, requests: Sequence[Request], callback: StepCallback | None = None) -> list[Tensor]:
        """As `draw`, but the final latent tokens (N, C) of each request, before the autoencoder."""
        return [latents for latents, _, _ in self._made(requests, callback, lambda latents, request: latents)]

    def _made(self, requests: Sequence[Request], callback: StepCallback | None,
              finish: Callable[[Tensor, Request], Sequence]) -> list[tuple[Any, int, float]]:
        """Each request's result, its text-encoder calls and its share of the seconds.

        finish: the results of latent tokens (B, N, C) that go together, given one of their requests.
        """
        for request in requests:
            check_request(request, self.patch, self.max_context)
        made: list = [None] * len(requests)
        for rows in self._batches(requests):
            batch = [requests[row] for row in rows]
            start = time.perf_counter()
            with torch.no_grad(), enough_memory():
                latents, calls = self._sample(batch, callback)
                results = finish(latents, batch[0])
            seconds = (time.perf_counter() - start) / len(batch)
            for row, result, encoded in zip(rows, results, calls):
                made[row] = result, encoded, seconds
        return made

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
        dtype = model.dtype  # of what it computes in: packed weights are of another
        pairs = [request_noise(r, model.config.in_channels // 4, rows, columns, dtype) for r in batch]
        # Everything that other parts make comes first, so that a memory manager loads each part once.
        options, scale = self.options, self.options.true_cfg_scale
        states, pooled, calls = self._texts([options.texts(r) for r in batch])
        no_states = no_pooled = None
        if scale > 1:
            no_states, no_pooled, more = self._texts([("", "")] * len(batch))
            calls = [a + b for a, b in zip(calls, more)]
        condition = self._condition(batch, [generator for _, generator in pairs])
        if callback is not None:
            self.previews.prepare(first)

        seen = first.width * first.height + (0 if condition is None else options.condition_size**2)
        device = self.places("transformer", len(batch) * seen)
        latents = torch.cat([noise for noise, _ in pairs]).to(device)
        ids = grid_ids(rows, columns, device=device)
        text_ids = ids.new_zeros(states.shape[1], 3)
        if condition is not None:
            condition = Condition(condition.tokens.to(device), condition.ids.to(device))
        prepared = prepare(model, self._laid_out(), states.to(device), pooled.to(device), ids, text_ids, condition,
                           union_cond_attn=options.union_cond_attn, latent_lora=options.latent_lora,
                           condition_scale=options.condition_scale)
        negative = None
        if no_states is not None:
            negative = with_texts(model, prepared, no_states.to(device), no_pooled.to(device))

        guidance = torch.tensor([r.guidance for r in batch], dtype=torch.float32, device=device)
        scheduler = schedule(self.schedule_config, first.steps, latents.shape[1], device)
        for step, t in enumerate(scheduler.timesteps, start=1):
            # diffusers rounds the 0..1000 time to the latents' dtype and only then divides.
            when = t.expand(len(batch)).to(latents.dtype) / 1000
            velocity = denoise(model, prepared, latents, when, guidance)
            if negative is not None:
                without = denoise(model, negative, latents, when, guidance)
                velocity = without + scale * (velocity - without)
            before = latents
            latents = scheduler.step(velocity, t, latents, return_dict=False)[0].to(dtype)
            if callback is not None:
                # Where the straight way from before the step leads to.
                straight = partial(torch.sub, before, t / 1000 * velocity)
                callback(Step(step, first.steps, lambda end=straight: self._preview(end(), first)))
        return latents, calls

    def _laid_out(self) -> LoraDeltas | ConditionLora | None:
        """The LoRA as the forward wants it: laid out once where it stays in its place. Where a manager may move it,
        what is laid out would be a second copy that nobody moves."""
        if self.lora is None or self.places.manager is not None:
            return self.lora
        if self._deltas is None:
            self._deltas = LoraDeltas.of(self.lora, self.transformer)
        return self._deltas

    def _preview(self, latents: Tensor, request: Request) -> list[Picture]:
        """Tokens (B, N, C) to small pictures."""
        return self.previews.made(self._unpacked(latents, request), request, self._picture)

    def _texts(self, texts: Sequence[tuple[str, str]]) -> tuple[Tensor, Tensor, list[int]]:
        """T5's states (B, L, D) and CLIP's vectors (B, P) of (CLIP's, T5's) texts, and each pair's encoder calls."""
        pooled, states, calls = [], [], []
        for clip_text, t5_text in texts:
            vector, new_vector = self.texts.pooled(clip_text)
            state, new_state = self.texts.states(t5_text)
            pooled.append(vector)
            states.append(state)
            calls.append(int(new_vector) + int(new_state))
        return torch.stack(states), torch.stack(pooled), calls

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
        pixels = request.width * request.height
        return [self._picture(row[None], self.places("vae", pixels)) for row in self._unpacked(latents, request)]

    def _picture(self, latents: Tensor, device: torch.device | str) -> Picture:
        """Latents (1, C, H, W) through the decoder."""
        image = self.vae.decode(latents.to(device), return_dict=False)[0]
        return self.processor.postprocess(image, output_type="pil")[0]

    def _unpacked(self, latents: Tensor, request: Request) -> Tensor:
        """Tokens (B, N, C) to what the autoencoder decodes (B, C / 4, H, W)."""
        config = self.vae.config
        latents = unpack(latents, request.height // self.patch, request.width // self.patch)
        return latents / config.scaling_factor + (config.shift_factor or 0.0)


def _check_parts(transformer: nn.Module, **parts: nn.Module | None) -> None:
    """Raise UserError for a part on another device or of another dtype, or a LoRA that does not fit."""
    device, dtype = transformer.device, transformer.dtype
    for name, part in parts.items():
        if isinstance(part, ConditionLora):  # of any dtype: one that is being trained is fp32
            part.check(transformer)
        elif part is not None and part.dtype != dtype:
            raise UserError(f"{name} is {part.dtype} and the transformer {dtype}; expected one dtype for all")
        where = device if part is None else next(part.parameters()).device
        if where != device and not name.startswith("text_encoder"):
            raise UserError(f"{name} is on {where} and the transformer on {device}; expected one device; only the "
                            "text encoders may be elsewhere; try to move it with .to")


def _check_condition_size(options: CorrectorOptions, vae: nn.Module) -> None:
    patch = vae_scale(vae) * 2
    if options.condition_size % patch:
        raise UserError(f"option condition_size is {options.condition_size}; expected a multiple of "
                        f"{patch}, the pixels to one token")
