"""The small SANA-family base: its transformer, trained from nothing over an encoder and an autoencoder that stay.

Rectified flow on latents with logit-normal times, as SANA is trained; the text is left out now and then, for guidance.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from reflect_core.generators.reflect_dit.folder import write_folder
from reflect_core.generators.reflect_dit.options import ReflectOptions
from reflect_core.generators.reflect_dit.pipeline import ReflectDiT
from reflect_core.generators.reflect_dit.transformer import reflect_forward
from reflect_core.types import Request

from ...bank import bank_key, cached
from ...config import TrainConfig
from ...identity import PROBE, digest, fingerprint, of_autoencoder, of_texts
from ...pictures import at_once, mode, save_sheet, to_tensor
from ...shapes import captioned, drawn_figures
from ..common import autocast, forget_places, provenance_of, write_provenance
from .parts import as_convolutions, as_matrices, build_scheduler, build_transformer
from .text import load_text, states, text_ids
from .vae import load_autoencoder

SIDE = 64


@torch.no_grad()
def encode_latents(vae, pictures: np.ndarray) -> Tensor:
    """(B, H, W, 3) uint8 to scaled latents (B, C, h, w) on the CPU, fp32."""
    out = []
    for part in np.split(pictures, range(batch := at_once(*pictures.shape[1:3]), len(pictures), batch)):
        z = mode(vae, to_tensor(part).to(vae.device, vae.dtype))
        out.append((z * vae.config.scaling_factor).float().cpu().contiguous())
    return torch.cat(out)


def trimmed(ids: Tensor) -> Tensor:
    """Ids (S, L) without the places that are padding in all of them."""
    return ids[:, : int((ids != 0).sum(1).max())]


class SanaBaseTask:
    """Trains the transformer. See `loop.Task`."""

    def __init__(self, config: TrainConfig) -> None:
        self.config, (self.m, self.d) = config, config.sections()
        self.vae = load_autoencoder(Path(self.m.vae)).to(config.device)
        self.tokenizer, self.text_encoder = load_text(Path(self.m.text))
        self.text_encoder.to(config.device)
        self.origin = {"vae": provenance_of(self.m.vae), "text": provenance_of(self.m.text)}  # before the training
        self.transformer = build_transformer(self.m, self.vae, self.text_encoder.config.hidden_size).to(config.device)
        as_matrices(self.transformer)
        settings = self._bank_settings()
        self.bank = cached(Path(config.out), settings, self._make_bank)
        self.bank["ids"] = trimmed(self.bank["ids"].flatten(0, 1)).unflatten(0, (-1, 2))
        self.data = {"bank": bank_key(settings), "rendered_scenes": len(self.bank["latents"]),
                     "text": fingerprint(self.text_encoder)}
        self.empty = text_ids(self.tokenizer, [""], self.bank["ids"].shape[2]).to(self.bank["ids"])
        self.forward = torch.compile(self._forward, dynamic=False) if config.compile else self._forward

    def _bank_settings(self) -> dict:
        """What decides the bank, as JSON."""
        pictures, texts = captioned(min(PROBE, self.d.bank), self.config.seed, self.d.tasks)
        tokens = text_ids(self.tokenizer, [t for two in texts for t in two], self.m.text_length)
        return {"bank": self.d.bank, "tasks": self.d.tasks, "seed": self.config.seed,
                "vae": of_autoencoder(self.vae), "length": self.m.text_length, "precision": self.config.precision,
                "probe": digest(pictures, texts), "texts": of_texts([tokens], self.tokenizer)}

    def _make_bank(self) -> dict[str, Tensor]:
        """Latents (S, C, h, w) of S scenes and the ids of two texts of each (S, 2, L)."""
        pictures, texts = captioned(self.d.bank, self.config.seed, self.d.tasks)
        ids = text_ids(self.tokenizer, [t for two in texts for t in two], self.m.text_length)
        with autocast(self.config):
            latents = encode_latents(self.vae, pictures).half().contiguous()
        return {"latents": latents, "ids": ids.view(len(texts), 2, -1).short()}

    def named_parameters(self):
        return self.transformer.named_parameters("transformer")

    def matrices(self) -> set[str]:
        return {n for n, p in self.named_parameters()
                if p.ndim == 2 and "transformer_blocks" in n and not n.endswith("scale_shift_table")}

    def _forward(self, x: Tensor, words: Tensor, keep: Tensor, t: Tensor) -> Tensor:
        """Noisy latents (B, C, h, w), text states (B, L, D) and their mask at times t (B,) to velocities."""
        when = 1000 * self.transformer.config.timestep_scale * t
        return reflect_forward(self.transformer, None, x, words, when, keep)

    def loss(self, step: int, generator: torch.Generator) -> Tensor:
        n, device = self.config.batch, self.config.device
        pick = torch.randint(len(self.bank["latents"]), (n,), generator=generator)
        which = torch.randint(2, (n,), generator=generator)
        dropped = torch.rand(n, generator=generator) < self.m.drop_text
        x0, ids = self.bank["latents"][pick].float(), self.bank["ids"][pick, which]
        ids = torch.where(dropped[:, None], self.empty, ids).long()
        noise = torch.randn(x0.shape, generator=generator)
        t = torch.sigmoid(torch.randn(n, generator=generator) + self.m.time_mean)
        x = torch.lerp(x0, noise, t[:, None, None, None])
        with autocast(self.config):
            with torch.no_grad():
                words, keep = states(self.text_encoder, ids)
            out = self.forward(x.to(device), words, keep, t.to(device))
        return (out.float() - (noise - x0).to(device)).square().mean()

    def generator(self) -> ReflectDiT:
        """Plain SANA as users run it, with the weights as they are now."""
        return ReflectDiT(transformer=self.transformer, vae=self.vae, text_encoder=self.text_encoder,
                          tokenizer=self.tokenizer, scheduler=build_scheduler(self.m.shift),
                          options=ReflectOptions(prompt_instruction="", max_sequence_length=self.m.text_length,
                                                 max_batch=32))

    def draw(self, prompts: list[str]) -> np.ndarray:
        """(B, 64, 64, 3) uint8."""
        requests = [Request(prompt, 1000 + k, SIDE, SIDE, self.m.sample_steps, self.m.sample_guidance)
                    for k, prompt in enumerate(prompts)]
        with autocast(self.config):
            return np.stack([np.asarray(drawn.picture) for drawn in self.generator().draw(requests)])

    def sample(self, file: Path, step: int) -> dict[str, float]:
        """Draw held-out prompts, a row of the sheet for each task. Rates are by the detector."""
        rows, figures = drawn_figures(self.draw, self.d.sample_prompts)
        save_sheet(file, rows)
        return figures

    def export(self, folder: Path, provenance: dict) -> None:
        """A model folder of plain SANA; transformer and text encoder in bf16, the autoencoder as it came."""
        write_folder(folder, transformer=as_convolutions(self.transformer).to(torch.bfloat16), vae=self.vae,
                     text_encoder=self.text_encoder.to(torch.bfloat16), scheduler=build_scheduler(self.m.shift),
                     tokenizer=Path(self.m.text) / "tokenizer",
                     settings={"defaults": {"width": SIDE, "height": SIDE, "steps": self.m.sample_steps,
                                            "guidance": self.m.sample_guidance},
                               "options": {"prompt_instruction": "", "max_sequence_length": self.m.text_length}})
        forget_places(folder)
        write_provenance(folder, {**provenance, **self.origin})
