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
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ...presets.load import read_settings
from ...types import Cost, Drawn, Request, Step, StepCallback, UserError
from ..checking import options_of
from ..compiled import Compiled, check_compile, directly
from ..memory import enough_memory
from ..offload import HOME, Offload, check_offload
from ..places import Places
from ..quantise import check_quantise
from ..requests import check_request
from ..tiling import tile
from .decoding import Decoder
from .encoding import ConditionEncoder, TextEncoders, vae_scale
from .folder import folder_lora, load_components, load_outlines, lora_options
from .inputs import Batch, encode
from .latents import grid_ids, schedule, unscaled
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
        self.run = Compiled(self.places) if options.compile else directly
        """How a block of the transformer is run."""
        if options.vae_tiling:
            tile(vae, vae_scale(vae))
        self.schedule_config = dict(scheduler.config)
        self.defaults = DEFAULTS | (defaults or {})
        self.texts = TextEncoders(tokenizer, text_encoder, tokenizer_2, text_encoder_2,
                                  options.max_sequence_length, options.text_cache, self.places)
        self.conditions = ConditionEncoder(vae, options.condition_size, options.posterior,
                                           options.condition_cache, self.places)
        self._deltas: LoraDeltas | None = None
        self.patch = vae_scale(vae) * 2
        self.decoder = Decoder(vae, self.patch, self.places, unscaled)

    @classmethod
    def from_folder(cls, path: str | Path, lora: str | Path | ConditionLora | None = None,
                    dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu",
                    encoder_device: str | torch.device | None = None, offload: str = "none",
                    options: CorrectorOptions | None = None, parts: Mapping[str, str | Path] | None = None,
                    quantise: str = "none", pack_on: str | torch.device | None = None,
                    **changes: Any) -> FluxCorrector:
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
            offload: 'none', all parts on `device`; 'component', one at a time; 'layers', two blocks of it at a time;
                see `offload.py`. The pictures are the same.
            options: all switches at once, instead of those in the folder's reflect.json.
            parts: components that come from elsewhere, by name, each a folder or a single file.
            quantise: fewer bits for transformer and T5, see `generators/quantise.py`.
            pack_on: where bitsandbytes packs them, if they are kept elsewhere; None: where they compute.
            changes: single switches, on top of either.

        Raises UserError for a folder, LoRA or option that cannot be used.
        """
        check_offload(offload)
        defaults, settings = read_settings(path)
        if isinstance(lora, (str, Path)):
            settings |= lora_options(lora)
        options = options_of(CorrectorOptions, "a FLUX corrector", path, options, settings, changes)
        pack_on = device if pack_on is None and offload != "none" else pack_on
        check_quantise(quantise, device if pack_on is None else pack_on, offload, encoder_device)
        check_compile(options.compile, quantise)
        outlines = load_outlines(path, parts)
        _check_condition_size(options, outlines["vae"])
        lora = folder_lora(path) if lora is None else lora
        if isinstance(lora, ConditionLora):
            lora.check(outlines["transformer"])
            lora = copy.deepcopy(lora)
        elif lora is not None:
            lora = ConditionLora.load(lora, outlines["transformer"])
        home, encoder_home = (device, encoder_device) if offload == "none" else (HOME, None)
        loaded = load_components(path, dtype, home, encoder_home, parts, quantise, pack_on)
        if lora is not None:
            lora = lora.to(home, dtype).requires_grad_(False)
        made = cls(**loaded, lora=lora, options=options, defaults=defaults)
        if offload != "none":
            own = {} if encoder_device is None else dict.fromkeys(("text_encoder", "text_encoder_2"), encoder_device)
            Offload.manage(made, device, offload, own)
        return made

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
        made = self._made(requests, callback, self.decoder.pictures)
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
            check_request(request, self.patch, self.max_context, self.defaults["guidance"])
        made: list = [None] * len(requests)
        rows = self._batches(requests)
        batches = [Batch([requests[row] for row in numbers]) for numbers in rows]
        with torch.no_grad(), enough_memory(), self.places.turn():
            # Everything that other parts make comes before and after the transformer's turn, so that a memory manager
            # loads each part once.
            encode(batches, self.texts, self.conditions, self.options, patch=self.patch,
                   channels=self.transformer.config.in_channels // 4, dtype=self.transformer.dtype)
            for batch in batches if callback is not None else ():
                with batch.watch:
                    self.decoder.prepare(batch.requests[0])
            latents = []
            for batch in batches:
                with batch.watch:
                    latents.append(self._sample(batch, callback))
            for numbers, batch, tokens in zip(rows, batches, latents):
                with batch.watch:
                    results = finish(tokens, batch.requests[0])
                for row, result, calls in zip(numbers, results, batch.calls):
                    made[row] = result, calls, batch.watch.seconds / len(numbers)
        return made

    def _batches(self, requests: Sequence[Request]) -> list[list[int]]:
        groups: dict[tuple, list[int]] = {}
        for row, r in enumerate(requests):
            groups.setdefault((r.width, r.height, r.steps, bool(r.context)), []).append(row)
        most = self.options.max_batch
        return [rows[i:i + most] for rows in groups.values() for i in range(0, len(rows), most)]

    def _sample(self, batch: Batch, callback: StepCallback | None) -> Tensor:
        """Latent tokens (B, N, C) of a batch that is encoded, where the transformer computes."""
        first, model, options, scale = batch.requests[0], self.transformer, self.options, self.options.true_cfg_scale
        count, dtype, condition = len(batch.requests), batch.noise.dtype, batch.condition
        seen = first.width * first.height + (0 if condition is None else options.condition_size**2)
        device = self.places("transformer", count * seen)
        latents, states, pooled = (x.to(device) for x in (batch.noise, batch.states, batch.pooled))
        ids = grid_ids(first.height // self.patch, first.width // self.patch, device=device)
        text_ids = ids.new_zeros(states.shape[1], 3)
        if condition is not None:
            condition = Condition(condition.tokens.to(device), condition.ids.to(device))
        prepared = prepare(model, self._laid_out(), states, pooled, ids, text_ids, condition,
                           union_cond_attn=options.union_cond_attn, latent_lora=options.latent_lora,
                           condition_scale=options.condition_scale)
        negative = None
        if batch.negative is not None:
            negative = with_texts(model, prepared, *(x.to(device) for x in batch.negative))

        guidance = torch.tensor([r.guidance for r in batch.requests], dtype=torch.float32, device=device)
        scheduler = schedule(self.schedule_config, first.steps, latents.shape[1], device)
        for step, t in enumerate(scheduler.timesteps, start=1):
            # diffusers rounds the 0..1000 time to the latents' dtype and only then divides.
            when = t.expand(count).to(latents.dtype) / 1000
            velocity = denoise(model, prepared, latents, when, guidance, run=self.run)
            if negative is not None:
                without = denoise(model, negative, latents, when, guidance, run=self.run)
                velocity = without + scale * (velocity - without)
            before = latents
            latents = scheduler.step(velocity, t, latents, return_dict=False)[0].to(dtype)
            if callback is not None:
                # Where the straight way from before the step leads to.
                straight = partial(torch.sub, before, t / 1000 * velocity)
                callback(Step(step, first.steps, lambda end=straight: self.decoder.preview(end(), first)))
        return latents

    def _laid_out(self) -> LoraDeltas | ConditionLora | None:
        """The LoRA as the forward wants it: laid out once where it stays in its place. Where a manager may move it,
        what is laid out would be a second copy that nobody moves."""
        if self.lora is None or self.places.manager is not None:
            return self.lora
        if self._deltas is None:
            self._deltas = LoraDeltas.of(self.lora, self.transformer)
        return self._deltas


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
