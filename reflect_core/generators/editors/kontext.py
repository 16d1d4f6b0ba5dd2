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

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ...types import Picture, Request
from ..flux_corrector.encoding import TextEncoders, vae_scale
from ..flux_corrector.folder import check_folder, load_components
from ..flux_corrector.latents import grid_ids, pack
from .editor import Editor, Ready, Velocity, fitted
from .options import KontextOptions

DEFAULTS = {"width": 1024, "height": 1024, "steps": 28, "guidance": 2.5}
"""What its makers' example has; a folder's reflect.json may say otherwise."""


class FluxKontext(Editor):
    """Draws plain requests as FLUX.1 does, and edits pictures. See `Generator`."""

    options: KontextOptions
    kind, check, load = KontextOptions, staticmethod(check_folder), staticmethod(load_components)
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

    def scaled(self, latents: Tensor) -> Tensor:
        return (latents - (self.vae.config.shift_factor or 0.0)) * self.vae.config.scaling_factor

    def unscaled(self, latents: Tensor) -> Tensor:
        return latents / self.vae.config.scaling_factor + (self.vae.config.shift_factor or 0.0)

    def ready(self, batch: Sequence[Request]) -> Ready:
        told = [self.options.told(r) for r in batch]
        # CLIP sees 77 tokens, so it is given the edits alone.
        branches = [[(t.short, t.text) for t in told]]
        if self.options.true_cfg_scale > 1:
            branches.append([("", "")] * len(batch))
        texts, calls = [], [0] * len(batch)
        for branch in branches:
            states, pooled, new = self._texts(branch)
            texts.append((states, pooled))
            calls = [a + b for a, b in zip(calls, new)]
        seen, pixels = None, 0
        if batch[0].context:
            sizes = [self._size(r.context[0].picture, r) for r in batch]
            seen = torch.cat([self.latents_of(r.context[0].picture, s) for r, s in zip(batch, sizes)])
            pixels = sizes[0][0] * sizes[0][1]
        return Ready(calls, pixels, lambda device: self._velocity(batch, texts, seen, device))

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

    def _texts(self, texts: Sequence[tuple[str, str]]) -> tuple[Tensor, Tensor, list[int]]:
        """T5's states (B, L, D) and CLIP's vectors (B, P) of (CLIP's, T5's) texts, and each pair's encoder calls."""
        made = [(self.texts.pooled(short), self.texts.states(whole)) for short, whole in texts]
        calls = [int(pooled[1]) + int(states[1]) for pooled, states in made]
        return torch.stack([states[0] for _, states in made]), torch.stack([pooled[0] for pooled, _ in made]), calls

    def _size(self, picture: Picture, request: Request) -> tuple[int, int]:
        """The (width, height) in which a flawed picture is seen."""
        size = request.width, request.height
        return size if picture.size == size else fitted(picture.size, size[0] * size[1], self.patch)
