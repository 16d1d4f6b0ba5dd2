"""What all editors share: requests to batches, noise, the way from noise to a picture, costs and previews.

Diffusers' own pipelines compute where their first weight lies and want text encoder, autoencoder and transformer in one
place. A memory manager or a small GPU does not have them there, so pictures are made in stages here, each part asked
for before it is used (`Places`): texts, flawed pictures, all steps, the decoder. Each stage is done for all batches of
a call before the next one, so that whoever moves parts moves each of them once. What comes out is what diffusers'
pipeline of the family draws with the same seed and a CPU generator; tests compare the two.

The flawed picture's latents stand behind the picture's own, as tokens without noise; after each step their part of what
the transformer says is thrown away.
"""

from __future__ import annotations

import copy
import hashlib
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import torch
from diffusers.image_processor import VaeImageProcessor
from torch import Tensor, nn

from ...presets.choice import ModelChoice, find_base
from ...presets.load import read_settings
from ...reflectors.told import foreign
from ...text import bounded
from ...types import Cost, Drawn, Generator, Picture, Request, Step, StepCallback, UserError
from ..checking import LOADING as OF_ALL
from ..checking import options_of
from ..clock import Stopwatch
from ..flux_corrector.decoding import Decoder
from ..flux_corrector.latents import request_noise, schedule
from ..kept import Kept
from ..memory import enough_memory
from ..offload import HOME, Offload, check_offload
from ..places import Places
from ..quantise import check_quantise
from ..requests import check_request
from ..rgb import as_rgb
from ..tiling import tile
from .draw_and_edit import DrawAndEdit
from .options import EditOptions

LOADING = ("base", *OF_ALL)
"""What can be said where an editor is loaded, besides its options."""
Velocity = Callable[[Tensor, Tensor], Tensor]
"""(tokens (B, N, C), times (B,) from 1 to 0) -> where they go, (B, N, C)."""


@dataclass(frozen=True)
class Ready:
    """All that a batch needs besides noise and transformer, made by the other parts, on the CPU."""

    calls: list[int]
    """Each request's text-encoder calls."""
    seen: int
    """Pixels of a flawed picture, as the transformer sees it; 0 without."""
    velocity_on: Callable[[torch.device | str], Velocity]
    """The transformer with those inputs, on the device where it computes."""


class Editor(ABC):
    """See `Generator`. A family has its options and folders, its autoencoder's scaling, `ready`, `evaluations` and
    `batch_of`."""

    max_context = 1
    latin = False
    """Whether its text encoders read Latin letters alone."""
    edits = True
    """Its corrections are edits of a picture, and repeated edits drift: searches bound their depth (`EDITING`)."""
    kind: ClassVar[type[EditOptions]]
    check: ClassVar[Callable[..., Any]]
    """UserError for a folder that is not whole, or of another family; reads no weights."""
    load: ClassVar[Callable[..., dict[str, Any]]]
    """(folder, dtype, device, encoder_device, *, quantise, pack_on) -> what the constructor takes."""
    scaled: ClassVar[Callable[[Tensor, Any], Tensor]]
    """(the autoencoder's latents (B, C, h, w), its config) -> latents as the transformer knows them."""
    unscaled: ClassVar[Callable[[Tensor, Any], Tensor]]
    """The other way."""
    free: ClassVar[frozenset[str]] = frozenset({"target", "keep", "max_words"})
    """Options that can be changed once a model is loaded."""

    def __init__(self, *, transformer: nn.Module, vae: Any, parts: dict[str, nn.Module], scheduler: Any, scale: int,
                 options: EditOptions, defaults: dict[str, Any]) -> None:
        """
        Args:
            vae: encodes pixels (B, 3, H, W) and decodes latents (B, C, h, w), as an `AutoencoderKL` does.
            parts: every module with weights, by its diffusers name.
            scale: pixels to one latent along a side.
        """
        self.transformer, self.vae, self.options, self.defaults = transformer, vae, options, defaults
        self.parts, self.companions = parts, {}
        self.places = Places(parts)
        """Asked before a part is used; a memory manager sets `places.manager`."""
        self.schedule_config = dict(scheduler.config)
        self.patch = scale * 2
        self.processor = VaeImageProcessor(vae_scale_factor=self.patch)
        self.decoder = Decoder(vae, self.patch, self.places, self.unscaled)
        self.seen = Kept(options.picture_cache)
        if options.vae_tiling:
            tile(vae, scale)

    @classmethod
    def from_folder(cls, path: str | Path, lora: str | Path | None = None, dtype: torch.dtype = torch.float32,
                    device: str | torch.device = "cpu", encoder_device: str | torch.device | None = None,
                    offload: str = "none", base: str | Path | ModelChoice | None = None,
                    options: EditOptions | None = None, quantise: str = "none",
                    pack_on: str | torch.device | None = None, **changes: Any) -> Generator:
        """Load a model folder in diffusers layout, without network. What is wrong is said before any weight is read.

        Args:
            lora: refused; an editor is a corrector by itself.
            encoder_device: where the text encoders are kept; None: with the rest.
            offload: 'none', all parts on `device`; 'component', one at a time; 'layers', two blocks of it at a time;
                see `generators/offload.py`. The pictures are the same.
            base: another model, which draws what has no flawed picture, by any name that a model has; see
                `DrawAndEdit`. None: what reflect.json says; 'none': none.
            options: all switches at once, instead of those in the folder's reflect.json.
            quantise: fewer bits for the transformer and the large text encoder, see `generators/quantise.py`, of the
                base too, where that is not packed already.
            pack_on: where bitsandbytes packs them, if they are kept elsewhere; None: where they compute.
            changes: single switches, on top of either.

        Raises UserError for a folder or option that cannot be used.
        """
        if lora is not None:
            raise UserError(f"{lora}: an editor takes no corrector's LoRA; expected the editor's folder alone; try it "
                            "without --lora, or FLUX.1-dev's folder with it")
        defaults, settings = read_settings(path)
        own_base = settings.pop("base", None)
        options = options_of(cls.kind, "this editor", path, options, settings, changes, LOADING)
        cls.check(path)
        check_offload(offload)
        pack_on = device if pack_on is None and offload != "none" else pack_on
        check_quantise(quantise, device if pack_on is None else pack_on, offload, encoder_device)
        chosen = find_base(Path(path), base, own_base)
        home, encoder_home = (device, encoder_device) if offload == "none" else (HOME, None)
        packed = {"quantise": quantise, "pack_on": pack_on}
        drawer = None if chosen is None else DrawAndEdit.load_drawer(chosen, dtype, home, encoder_home, **packed)
        loaded = cls.load(path, dtype, home, encoder_home, **packed)
        editor = cls(**loaded, options=options, defaults=defaults)
        made = editor if drawer is None else DrawAndEdit(drawer, editor)
        if offload != "none":
            encoders = [name for name in made.parts if name.rpartition(":")[2].startswith("text_encoder")]
            own = {} if encoder_device is None else dict.fromkeys(encoders, encoder_device)
            Offload.manage(made, device, offload, own)
        return made

    @abstractmethod
    def evaluations(self, request: Request) -> int:
        """Denoiser evaluations that drawing `request` costs: one a step and guidance branch."""

    @abstractmethod
    def ready(self, batches: Sequence[Sequence[Request]]) -> list[Ready]:
        """Texts and flawed pictures of each batch, encoded or found again: a part after another, for all batches."""

    @abstractmethod
    def batch_of(self, request: Request) -> tuple | None:
        """What requests must have in common, besides size and steps, to go together; None: each goes alone."""

    @property
    def most(self) -> int:
        """Requests in one batch."""
        return getattr(self.options, "max_batch", 1)

    def with_options(self, **changes: Any) -> Editor:
        """The same model, all its parts shared, with other options, of those in `free`. UserError for any other."""
        if fixed := sorted(set(changes) - self.free):
            raise UserError(f"the option {fixed[0]!r} cannot be changed once an editor is loaded; expected one of "
                            f"{', '.join(sorted(self.free))}")
        other = copy.copy(self)
        other.options = replace(self.options, **changes)
        return other

    def draw(self, requests: Sequence[Request], callback: StepCallback | None = None) -> list[Drawn]:
        """Draw every request; the results are in the order of the requests.

        A picture is the same whatever it was batched with, up to fp32 rounding (1e-5), and to the last bit when the
        same requests are drawn again. `callback` is called after each step of each batch and may raise to cancel.
        """
        made = self._made(requests, callback, self.decoder.pictures)
        return [Drawn(picture, Cost(pictures=1, denoiser_evaluations=self.evaluations(request),
                                    text_encoder_calls=encoded, seconds=seconds), self._notes(request))
                for request, (picture, encoded, seconds) in zip(requests, made)]

    def draw_latents(self, requests: Sequence[Request]) -> list[Tensor]:
        """As `draw`, but the final latent tokens (N, C) of each request, before the autoencoder."""
        return [latents for latents, _, _ in self._made(requests, None, lambda latents, request: latents)]

    def _made(self, requests: Sequence[Request], callback: StepCallback | None,
              finish: Callable[[Tensor, Request], Sequence]) -> list[tuple[Any, int, float]]:
        """Each request's result, its text-encoder calls and its share of the seconds.

        finish: the results of latent tokens (B, N, C) that go together, given one of their requests.
        """
        for request in requests:
            self._check(request)
        made: list = [None] * len(requests)
        rows = self._batches(requests)
        batches = [[requests[row] for row in numbers] for numbers in rows]
        before, watches = Stopwatch(), [Stopwatch() for _ in batches]
        with torch.no_grad(), enough_memory(), self.places.turn():
            with before:
                ready = self.ready(batches)
                for batch in batches if callback is not None else ():
                    self.decoder.prepare(batch[0])
            latents = []
            for batch, one, watch in zip(batches, ready, watches):
                with watch:
                    latents.append(self._sample(batch, one, callback))
            for numbers, batch, one, tokens, watch in zip(rows, batches, ready, latents, watches):
                with watch:
                    results = finish(tokens, batch[0])
                seconds = watch.seconds / len(batch) + before.seconds / len(requests)
                for row, result, calls in zip(numbers, results, one.calls):
                    made[row] = result, calls, seconds
        return made

    def latents_of(self, picture: Picture, size: tuple[int, int]) -> Tensor:
        """A flawed picture, brought to (width, height), as latents (1, C, h, w) on the CPU; they are kept."""
        picture = as_rgb(picture)
        key = (picture.size, size, hashlib.sha256(picture.tobytes()).digest())
        return self.seen.get(key, lambda: self._encoded(picture, size))[0]

    def _check(self, request: Request) -> None:
        check_request(request, self.patch, self.max_context, self.defaults["guidance"])
        if request.steps < 2 and self.schedule_config.get("shift_terminal"):
            raise UserError(f"steps is {request.steps}; expected 2 or more, for this model's schedule stretches from "
                            "the first to the last")

    def _encoded(self, picture: Picture, size: tuple[int, int]) -> Tensor:
        width, height = size
        pixels = self.processor.preprocess(self.processor.resize(picture, height, width), height, width)
        device = self.places("vae", width * height)
        latents = self.vae.encode(pixels.to(device, self.vae.dtype)).latent_dist.mode()
        return self.scaled(latents, self.vae.config).to("cpu", self.transformer.dtype)

    def _batches(self, requests: Sequence[Request]) -> list[list[int]]:
        groups: dict[tuple, list[int]] = {}
        for row, r in enumerate(requests):
            common = self.batch_of(r)
            groups.setdefault((r.width, r.height, r.steps, (row,) if common is None else common), []).append(row)
        return [rows[i:i + self.most] for rows in groups.values() for i in range(0, len(rows), self.most)]

    def _sample(self, batch: Sequence[Request], ready: Ready, callback: StepCallback | None) -> Tensor:
        """Latent tokens (B, N, C) of requests that go together, where the transformer computes."""
        first, dtype = batch[0], self.transformer.dtype
        rows, columns = first.height // self.patch, first.width // self.patch
        noise = [request_noise(r, self.transformer.config.in_channels // 4, rows, columns, dtype)[0] for r in batch]
        device = self.places("transformer", len(batch) * (first.width * first.height + ready.seen))
        velocity_of, latents = ready.velocity_on(device), torch.cat(noise).to(device)
        scheduler = schedule(self.schedule_config, first.steps, latents.shape[1], device)
        for step, t in enumerate(scheduler.timesteps, start=1):
            # diffusers rounds the 0..1000 time to the latents' dtype and only then divides.
            velocity = velocity_of(latents, t.expand(len(batch)).to(dtype) / 1000)
            before = latents
            latents = scheduler.step(velocity, t, latents, return_dict=False)[0].to(dtype)
            if callback is not None:
                # Where the straight way from before the step leads to.
                straight = partial(torch.sub, before, t / 1000 * velocity)
                callback(Step(step, first.steps, lambda end=straight: self.decoder.preview(end(), first)))
        return latents

    def _notes(self, request: Request) -> tuple[str, ...]:
        said = request.context[0].feedback if request.context else request.prompt
        notes = []
        if left := self.options.told(request).left_out:
            notes.append(f"the instruction takes {self.options.max_words} words; left out: {' '.join(left)}")
        if self.latin and foreign(said):
            notes.append(f"the model reads Latin letters alone, and most of this is in others: {bounded(said, 100)}")
        return tuple(notes)


def fitted(size: tuple[int, int], area: int, multiple: int) -> tuple[int, int]:
    """The (width, height) nearest to so many pixels with the proportions of `size`, as multiples of `multiple`."""
    ratio = size[0] / size[1]
    width = math.sqrt(area * ratio)
    return tuple(max(multiple, round(side / multiple) * multiple) for side in (width, width / ratio))
