"""FLUX.1 Kontext: FLUX that was tuned to edit a picture as it is told (black-forest-labs/FLUX.1-Kontext-dev).

The transformer, the texts and the autoencoder are FLUX.1's. The flawed picture's tokens have a position of their own:
the first of the three numbers, which is 0 for the picture that is drawn, is 1 for them. Without a picture it draws as
FLUX.1 does. Equal to diffusers' FluxKontextPipeline with the same seed and `_auto_resize=False`, whose class is not
needed, so that every diffusers with FLUX will do.

A flawed picture of the request's size is seen as it is; one from outside, of another size, is brought to as many
pixels in its own proportions. The pipeline's choice among sizes near 1024 x 1024 is for pictures of any size and would
show a small picture enlarged; at 1024 x 1024 the two are the same.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ...types import Picture, Request
from ..flux_corrector.encoding import TextEncoders, vae_scale
from ..flux_corrector.folder import check_folder, load_components
from ..flux_corrector.latents import grid_ids, pack, scaled, unscaled
from ..rgb import as_rgb
from .editor import Editor, Ready, Velocity, fitted
from .options import KontextOptions

DEFAULTS = {"width": 1024, "height": 1024, "steps": 28, "guidance": 2.5}
"""What its makers' example has; a folder's reflect.json may say otherwise."""


class FluxKontext(Editor):
    """Draws plain requests as FLUX.1 does, and edits pictures. See `Generator`."""

    options: KontextOptions
    kind, check, load = KontextOptions, staticmethod(check_folder), staticmethod(load_components)
    latin = True
    scaled, unscaled = staticmethod(scaled), staticmethod(unscaled)
    free = Editor.free | {"true_cfg_scale", "max_batch"}

    def __init__(self, *, transformer: nn.Module, vae: nn.Module, text_encoder: nn.Module, text_encoder_2: nn.Module,
                 tokenizer: Any, tokenizer_2: Any, scheduler: Any, options: KontextOptions | None = None,
                 defaults: dict[str, Any] | None = None) -> None:
        """Take loaded components of one dtype. Most callers want `from_folder`."""
        options = KontextOptions() if options is None else options
        parts = {"text_encoder": text_encoder, "text_encoder_2": text_encoder_2, "vae": vae,
                 "transformer": transformer}
        super().__init__(transformer=transformer, vae=vae, parts=parts, scheduler=scheduler, scale=vae_scale(vae),
                         options=options, defaults=DEFAULTS | (defaults or {}))
        self.texts = TextEncoders(tokenizer, text_encoder, tokenizer_2, text_encoder_2, options.max_sequence_length,
                                  options.text_cache, self.places)

    def evaluations(self, request: Request) -> int:
        return request.steps * (2 if self.options.true_cfg_scale > 1 else 1)

    def batch_of(self, request: Request) -> tuple:
        return (self._size(request.context[0].picture, request),) if request.context else ()

    def ready(self, batches: Sequence[Sequence[Request]]) -> list[Ready]:
        told = [[self.options.told(r) for r in batch] for batch in batches]
        # CLIP sees 77 tokens, so it is given the edits alone.
        pooled = [self._encoded_texts(self.texts.pooled, [t.short for t in batch]) for batch in told]
        states = [self._encoded_texts(self.texts.states, [t.text for t in batch]) for batch in told]
        made = []
        for batch, (vectors, calls), (sequences, more) in zip(batches, pooled, states):
            seen, pixels = None, 0
            if batch[0].context:
                sizes = [self._size(r.context[0].picture, r) for r in batch]
                seen = torch.cat([self.latents_of(r.context[0].picture, s) for r, s in zip(batch, sizes)])
                pixels = sizes[0][0] * sizes[0][1]
            made.append(Ready([a + b for a, b in zip(calls, more)], pixels,
                              partial(self._velocity, batch, list(zip(sequences, vectors)), seen)))
        return made

    def _encoded_texts(self, encode: Callable[[str], tuple[Tensor, bool]], texts: list[str]
                       ) -> tuple[list[Tensor], list[int]]:
        """What an encoder makes of a batch's texts, and of "" where that guides, a row for each; each one's calls."""
        branches = [texts, [""] * len(texts)] if self.options.true_cfg_scale > 1 else [texts]
        made = [[encode(text) for text in branch] for branch in branches]
        calls = [sum(new for _, new in one) for one in zip(*made)]
        return [torch.stack([vector for vector, _ in branch]) for branch in made], calls

    def _velocity(self, batch: Sequence[Request], texts: list[tuple[Tensor, Tensor]], seen: Tensor | None,
                  device: torch.device | str) -> Velocity:
        first, model = batch[0], self.transformer
        ids = grid_ids(first.height // self.patch, first.width // self.patch, device=device)
        if seen is not None:
            own = grid_ids(seen.shape[2] // 2, seen.shape[3] // 2, device=device)
            own[:, 0] = 1
            ids, seen = torch.cat([ids, own]), pack(seen).to(device)
        texts = [(states.to(device), pooled.to(device)) for states, pooled in texts]
        text_ids = ids.new_zeros(texts[0][0].shape[1], 3)
        guidance = None
        if model.config.guidance_embeds:
            guidance = torch.tensor([r.guidance for r in batch], dtype=torch.float32, device=device)

        def one(latents: Tensor, when: Tensor, states: Tensor, pooled: Tensor) -> Tensor:
            given = latents if seen is None else torch.cat([latents, seen], dim=1)
            said = model(hidden_states=given, timestep=when, guidance=guidance, pooled_projections=pooled,
                         encoder_hidden_states=states, txt_ids=text_ids, img_ids=ids, return_dict=False)[0]
            return said[:, :latents.shape[1]]

        def velocity(latents: Tensor, when: Tensor) -> Tensor:
            said = one(latents, when, *texts[0])
            if len(texts) == 1:
                return said
            without = one(latents, when, *texts[1])
            return without + self.options.true_cfg_scale * (said - without)

        return velocity

    def _size(self, picture: Picture, request: Request) -> tuple[int, int]:
        """The (width, height) in which a flawed picture is seen."""
        size, own = (request.width, request.height), as_rgb(picture).size  # a photograph may lie on its side
        return size if own == size else fitted(own, size[0] * size[1], self.patch)
