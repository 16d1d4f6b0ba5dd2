"""The small FLUX-family base: its transformer, trained from nothing or on from another base, over text encoders and an
autoencoder that stay as they are.

Rectified flow on latent tokens with logit-normal times. The last part of the run distils guidance into the guidance
embedding, as FLUX.1-dev has it: there the target at guidance g is v + (g - 1)(conditional - unconditional), from the
model itself. Some of the steps may be corrections, see `edits.py`.
"""

from __future__ import annotations

import copy
import shutil
from pathlib import Path

import numpy as np
import torch
from diffusers import FluxPipeline
from torch import Tensor

from reflect_core.generators.flux_corrector.folder import write_folder
from reflect_core.generators.flux_corrector.latents import grid_ids
from reflect_core.generators.flux_corrector.transformer import flux_forward

from ..bank import bank_key, cached
from ..config import TrainConfig
from ..identity import PROBE, digest, fingerprint, of_autoencoder, of_texts
from ..pictures import encode_pictures, save_sheet
from ..shapes import captioned, correction_figures, drawn_figures
from ..triplets import Triplet
from .common import CLIP_LENGTH, autocast, forget_places, provenance_of, token_ids, write_provenance
from .edits import correct_alone, encode_edits, held_out_edits
from .gelu import quicken
from .parts import build_scheduler, build_transformer, load_weights
from .text import load_text, pooled
from .vae import load_vae

DROP_TEXT = 0.1
"""Share of the texts that are left out, so that there is something for guidance to lead away from."""


class BaseTask:
    """Trains the transformer. See `loop.Task`."""

    def __init__(self, config: TrainConfig) -> None:
        self.config, (self.m, self.d) = config, config.sections()
        out = Path(config.out)
        self.vae = load_vae(Path(self.m.vae)).to(config.device)
        text = {k: part.to(config.device) if isinstance(part, torch.nn.Module) else part
                for k, part in load_text(Path(self.m.text)).items()}
        self.t5, self.clip = text["text_encoder_2"], text["text_encoder"]
        self.origin = {"vae": provenance_of(self.m.vae), "text": provenance_of(self.m.text)}  # before the training
        self.transformer = build_transformer(self.m, self.vae, self.t5.config.d_model, self.clip.config.hidden_size)
        if self.m.start is not None:
            self.origin["start"] = provenance_of(self.m.start)
            load_weights(self.transformer, Path(self.m.start))
        self.parts = {**text, "transformer": self.transformer.to(config.device), "vae": self.vae,
                      "scheduler": build_scheduler(self.m)}
        if config.compile and torch.device(config.device).type == "cpu":
            quicken(self.transformer)
        self.length, side = self.m.text_length, self.m.side
        self.ids = grid_ids(side, side, device=config.device), torch.zeros(self.length, 3, device=config.device)
        self.condition_ids = grid_ids(side, side, tuple(self.m.condition_offset), config.device)
        settings = self._bank_settings()
        self.bank = cached(out, settings, self._make_bank)
        self.data = {"bank": bank_key(settings), "rendered_scenes": len(self.bank["latents"]),
                     "text": fingerprint(self.clip, self.t5)}
        if self.m.start is not None:
            self.data["start"] = fingerprint(self.transformer)
        self.held_out: list[Triplet] = []
        if self.d.triplets:
            self.data["triplets"] = len(self.bank["edit_good"])
            self.held_out = held_out_edits(4 * self.d.sample_prompts, config.seed, self.d.tasks)
        self.empty = self._tokens([""])
        self.forward = torch.compile(self._forward, dynamic=False) if config.compile else self._forward
        self.distil_from = round(config.steps * (1 - self.m.distil))

    def _tokens(self, texts: list[str]) -> tuple[Tensor, Tensor]:
        """CLIP ids (B, 77) and T5 ids (B, L), padded as FluxPipeline pads them."""
        return (token_ids(self.parts["tokenizer"], texts, CLIP_LENGTH),
                token_ids(self.parts["tokenizer_2"], texts, self.length))

    def _bank_settings(self) -> dict:
        """What decides the bank, as JSON."""
        pictures, texts = captioned(min(PROBE, self.d.bank), self.config.seed, self.d.tasks)
        tokens = self._tokens([t for two in texts for t in two])
        settings = {"bank": self.d.bank, "tasks": self.d.tasks, "seed": self.config.seed,
                    "vae": of_autoencoder(self.vae), "length": self.length, "precision": self.config.precision,
                    "probe": digest(pictures, texts),
                    "texts": of_texts(tokens, self.parts["tokenizer"], self.parts["tokenizer_2"])}
        if self.d.triplets:
            probe = held_out_edits(PROBE, self.config.seed, self.d.tasks)
            settings |= {"triplets": self.d.triplets, "edits": digest(*(
                part for t in probe for part in (t.told, t.flawed, t.good)))}
        return settings

    def _make_bank(self) -> dict[str, Tensor]:
        """Latent tokens (S, N, C) of S scenes, and the ids of two texts of each: (S, 2, 77) and (S, 2, L)."""
        pictures, texts = captioned(self.d.bank, self.config.seed, self.d.tasks)
        clip, t5 = self._tokens([t for two in texts for t in two])
        bank = {"latents": self._latents(pictures),
                "clip": clip.view(len(texts), 2, -1).short(), "t5": t5.view(len(texts), 2, -1).short()}
        if self.d.triplets:
            bank |= encode_edits(self._latents, self._tokens, self.d.triplets, self.config.seed, self.d.tasks)
        return bank

    def _latents(self, pictures: np.ndarray) -> Tensor:
        with autocast(self.config):
            return encode_pictures(self.vae, pictures).half()

    def named_parameters(self):
        return self.transformer.named_parameters("transformer")

    def matrices(self) -> set[str]:
        return {n for n, p in self.named_parameters()
                if p.ndim == 2 and "transformer_blocks" in n and "norm" not in n}

    @torch.no_grad()
    def _encode(self, clip_ids: Tensor, t5_ids: Tensor) -> tuple[Tensor, Tensor]:
        """Ids (B, 77) and (B, L) to T5's states (B, L, D) and CLIP's pooled vectors (B, P)."""
        return self.t5(t5_ids.to(self.config.device)).last_hidden_state, pooled(self.clip, clip_ids)

    def _forward(self, x, states, pooled, t, guidance, condition=None):
        """Noisy tokens (B, N, C), and a flawed picture's (B, N, C) or None, to velocities (B, N, C)."""
        return flux_forward(self.transformer, None, x, states, pooled, t, guidance, *self.ids, condition,
                            None if condition is None else self.condition_ids)

    def _scenes(self, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor, Tensor, None]:
        """Latent tokens (B, N, C), ids of their texts, which texts were dropped (B,), and no flawed picture."""
        n = self.config.batch
        pick = torch.randint(len(self.bank["latents"]), (n,), generator=generator)
        drop = torch.rand(n, generator=generator) < DROP_TEXT
        which = torch.randint(2, (n,), generator=generator)
        clip_ids, t5_ids = self.bank["clip"][pick, which].long(), self.bank["t5"][pick, which].long()
        clip_ids[drop], t5_ids[drop] = self.empty[0], self.empty[1]
        return self.bank["latents"][pick].float(), clip_ids, t5_ids, drop, None

    def _edits(self, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """The same of corrections, with their flawed pictures (B, N, C)."""
        n = self.config.batch
        pick = torch.randint(len(self.bank["edit_good"]), (n,), generator=generator)
        drop = torch.rand(n, generator=generator) < DROP_TEXT
        clip_ids, t5_ids = self.bank["edit_clip"][pick].long(), self.bank["edit_t5"][pick].long()
        clip_ids[drop], t5_ids[drop] = self.empty[0], self.empty[1]
        return self.bank["edit_good"][pick].float(), clip_ids, t5_ids, drop, self.bank["edit_flawed"][pick].float()

    def loss(self, step: int, generator: torch.Generator) -> Tensor:
        n, device = self.config.batch, self.config.device
        edit = float(torch.rand((), generator=generator)) < self.m.edits
        x0, clip_ids, t5_ids, drop, condition = (self._edits if edit else self._scenes)(generator)
        noise = torch.randn(x0.shape, generator=generator)
        t = torch.sigmoid(torch.randn(n, generator=generator) + self.m.time_mean)
        x = torch.lerp(x0, noise, t[:, None, None]).to(device)
        target, guidance = (noise - x0).to(device), torch.ones(n)
        condition = None if condition is None else condition.to(device)
        with autocast(self.config):
            states, pooled = self._encode(clip_ids, t5_ids)
            if step >= self.distil_from:
                target, guidance = self._guided(target, x, t.to(device), states, pooled, drop, condition, generator)
            out = self.forward(x, states, pooled, t.to(device), guidance.to(device), condition)
        return (out.float() - target).square().mean()

    @torch.no_grad()
    def _guided(self, target, x, t, states, pooled, drop, condition, generator):
        """Targets (B, N, C) and guidance (B,), at random guidance for the first half of the batch; the other
        half stays at 1. Guidance is away from no text; a flawed picture stays in view on both sides."""
        half = len(x) // 2
        guidance = torch.ones(len(x))
        guidance[:half] = 1 + 3.5 * torch.rand(half, generator=generator)
        guidance[drop] = 1.0
        empty_states, empty_pooled = self._encode(*self.empty)
        both = self.forward(
            torch.cat([x[:half]] * 2), torch.cat([states[:half], empty_states.expand(half, -1, -1)]),
            torch.cat([pooled[:half], empty_pooled.expand(half, -1)]), torch.cat([t[:half]] * 2),
            torch.ones(2 * half, device=x.device),
            None if condition is None else torch.cat([condition[:half]] * 2))
        with_text, without = both.float().chunk(2)
        target = target.clone()
        target[:half] += (guidance[:half, None, None].to(x.device) - 1) * (with_text - without)
        return target, guidance

    def pipeline(self) -> FluxPipeline:
        """diffusers' own, over the parts as they are now."""
        pipe = FluxPipeline(**self.parts)
        pipe.set_progress_bar_config(disable=True)
        return pipe

    def sample(self, file: Path, step: int) -> dict[str, float]:
        """Draw held-out prompts of every task; the sheet's rows are tasks and, if corrections are learned,
        flawed pictures, corrected and target. Rates are by the detector."""
        guidance = self.m.sample_guidance if step > self.distil_from else 1.0
        rows, figures = drawn_figures(lambda prompts: self.draw(prompts, guidance), self.d.sample_prompts)
        if self.held_out:
            drawn = correct_alone(self.parts, self.held_out, tuple(self.m.condition_offset), self.length, guidance)
            figures |= correction_figures(self.held_out, drawn)
            shown = self.held_out[: self.d.sample_prompts]
            rows += [[t.flawed for t in shown], drawn[: len(shown)], [t.good for t in shown]]
        save_sheet(file, rows)
        return figures

    def draw(self, prompts: list[str], guidance: float, steps: int = 20) -> np.ndarray:
        """(B, 64, 64, 3) uint8."""
        generators = [torch.Generator().manual_seed(1000 + k) for k in range(len(prompts))]
        images = self.pipeline()(prompts, height=64, width=64, num_inference_steps=steps, guidance_scale=guidance,
                                 max_sequence_length=self.length, generator=generators, output_type="np").images
        return np.rint(images * 255).astype(np.uint8)

    def export(self, folder: Path, provenance: dict) -> None:
        """A model folder; transformer and text encoders in bf16, as FLUX.1-dev's, the autoencoder as it came."""
        parts = {k: part for k, part in self.parts.items() if not k.startswith("tokenizer")}
        # torch's own `to`, for diffusers' warns about modules that are to stay fp32, of which FLUX has none.
        parts |= {k: torch.nn.Module.to(copy.deepcopy(part), torch.bfloat16) for k, part in parts.items()
                  if k in ("transformer", "text_encoder", "text_encoder_2")}
        write_folder(folder, **parts)
        for name in ("tokenizer", "tokenizer_2"):
            shutil.copytree(Path(self.m.text) / name, folder / name)
        forget_places(folder)
        write_provenance(folder, {**provenance, **self.origin})
