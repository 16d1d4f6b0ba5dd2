"""Reflection tuning (ReflectionFlow, section 3): a LoRA that corrects a flawed picture as it is told.

Velocity MSE with logit-normal times at guidance 1; the reflection, the picture and the text are each
dropped now and then. As published, CLIP sees the prompt and T5 the prompt, a marker and the reflection;
the LoRA acts on the flawed picture's tokens alone, so the base's own drawing stays what it was.

What differs from the official code: pictures are encoded once, by the mode of the autoencoder's
posterior and from one cut-out in the middle, not anew for each step, sampled and from a random one; the
optimiser is AdamW or Muon with a schedule, not Prodigy; the LoRA's weights are fp32 with an average kept,
not bf16 without; sources are mixed in fixed shares, without the task warm-up; and a reflection counts as
none when it is empty, not when it has less than five characters. The README has the whole list.
"""

from __future__ import annotations

import copy
import itertools
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from reflect_core.generators.flux_corrector.encoding import vae_scale
from reflect_core.generators.flux_corrector.folder import load_components
from reflect_core.generators.flux_corrector.latents import grid_ids
from reflect_core.generators.flux_corrector.lora import ConditionLora
from reflect_core.generators.flux_corrector.options import CorrectorOptions
from reflect_core.generators.flux_corrector.pipeline import FluxCorrector
from reflect_core.generators.flux_corrector.transformer import flux_forward
from reflect_core.model_files import read_json
from reflect_core.types import Pair, Request, UserError

from ..bank import bank_key, cached_in_parts
from ..config import TrainConfig
from ..folder import write_whole
from ..identity import digest, fingerprint, of_autoencoder, of_texts
from ..pictures import at_once, encode_pictures, resized, save_sheet
from ..shapes import correction_figures, is_right
from ..sources import Sources
from ..triplets import Triplet
from .common import attention, autocast, provenance_of, token_ids, write_provenance
from .gelu import quicken

EVAL_TIMES = (0.1, 0.3, 0.5, 0.7, 0.9)
"""Times at which the evaluation loss is taken: the training loss is too noisy to be a curve."""
EVAL_SEED = 250416080


class CorrectorTask:
    """Trains the LoRA. See `loop.Task`."""

    def __init__(self, config: TrainConfig, report: Callable[[str], None] = lambda line: None) -> None:
        self.config, self.report, (self.m, self.d) = config, report, config.sections()
        self.size, self.condition_size = self.m.size, self.m.condition_size or self.m.size
        sources = Sources(self.d, config.seed, self.size)
        # Read now: what is broken is to be said before the training.
        self.origin = {"base": provenance_of(self.m.base),
                       "sources": [provenance_of(s.path) if s.kind == "folder" else s.kind for s in sources.sources]}
        if self.m.lora is not None:
            self.origin["lora"] = provenance_of(self.m.lora)
        self._load()
        settings = self._bank_settings(sources)
        self.bank = cached_in_parts(Path(config.out), settings, lambda start: self._encoded(sources, start))
        self._warn_of_long_texts()
        self.rows = torch.cat([(self.bank["source"] == index).nonzero()[:, 0].repeat(source.repeat)
                               for index, source in enumerate(sources.sources)])
        self.data = {"bank": bank_key(settings), "triplets": len(self.bank["good"]), "base": fingerprint(
            *(self.parts[k] for k in ("transformer", "text_encoder", "text_encoder_2")))}
        self.held_out = sources.held_out()
        self.held_bank = self._encode(self.held_out) if self.held_out else None

        patch, device = vae_scale(self.parts["vae"]) * 2, config.device
        side, left = self.size // patch, self.condition_size // patch
        self.offset = (0, -left) if self.m.condition_offset is None else tuple(self.m.condition_offset)
        self.ids = (grid_ids(side, side, device=device), torch.zeros(self.m.text_length, 3, device=device),
                    grid_ids(left, left, self.offset, device))
        self.empty = self._t5_ids([""])
        black = np.zeros((1, self.condition_size, self.condition_size, 3), dtype=np.uint8)
        self.black = encode_pictures(self.parts["vae"], black)
        self.forward = torch.compile(self._forward, dynamic=False) if config.compile else self._forward

    def _load(self) -> None:
        """The frozen base and the LoRA, on the device."""
        m, config = self.m, self.config
        self.parts = load_components(m.base, torch.bfloat16 if m.weights == "bf16" else torch.float32)
        patch = vae_scale(self.parts["vae"]) * 2
        for key in ("size", "condition_size"):
            if getattr(self, key) % patch:
                raise UserError(f"model.{key} is {getattr(self, key)}; expected a multiple of {patch}, the pixels to "
                                "one token")
        for name in ("transformer", "vae", "text_encoder", "text_encoder_2"):
            self.parts[name] = self.parts[name].to(config.device).requires_grad_(False)
        self.transformer = self.parts["transformer"]
        if config.compile and torch.device(config.device).type == "cpu":
            quicken(self.transformer)
        if m.lora is None:
            self.lora = ConditionLora.fresh(self.transformer, m.rank, m.alpha,
                                            generator=torch.Generator().manual_seed(config.seed))
        else:
            self.lora = ConditionLora.load(m.lora, self.transformer)
        self.lora = self.lora.to(config.device, torch.float32).requires_grad_(True)

    def _bank_settings(self, sources: Sources) -> dict:
        """What decides the bank, as JSON."""
        probe, texts = sources.probe(), [self.parts["tokenizer"], self.parts["tokenizer_2"]]
        return {"sources": sources.identity(), "size": self.size, "condition_size": self.condition_size,
                "length": self.m.text_length, "vae": of_autoencoder(self.parts["vae"]),
                "precision": self.config.precision, "texts": of_texts(list(self._ids(probe).values()), *texts),
                "probe": digest(*(part for t in probe for part in (t.prompt, t.reflection, t.flawed, t.good)))}

    def _encoded(self, sources: Sources, start: int) -> Iterator[dict[str, Tensor]]:
        """`_encode` of the triplets that are trained on, from the `start`-th, some at a time, and which source (T,)
        each is of."""
        triplets, done, told = sources.triplets(start), start, time.monotonic()
        while chunk := list(itertools.islice(triplets, 8 * at_once(self.size, self.size))):
            source = torch.tensor([index for index, _ in chunk], dtype=torch.int32)
            yield {**self._encode([triplet for _, triplet in chunk]), "source": source}
            done += len(chunk)
            if time.monotonic() - told > 10:
                told = time.monotonic()
                self.report(f"{done} triplets encoded")

    def _warn_of_long_texts(self) -> None:
        told = self.bank["told"]
        full = int((told[:, -1] != self.parts["tokenizer_2"].pad_token_id).sum())
        if full:
            self.report(f"{full} of {len(told)} texts fill all {self.m.text_length} tokens and may have been cut: see "
                        "model.text_length")

    def _encode(self, triplets: list[Triplet]) -> dict[str, Tensor]:
        """Latent tokens of both pictures, flawed (T, M, 4 C) and good (T, N, 4 C), and the ids of the texts: T5's
        with the reflection (told) and without, (T, L), and CLIP's, (T, 77)."""
        vae = self.parts["vae"]
        flawed, good = [resized(t.flawed, self.condition_size) for t in triplets], [t.good for t in triplets]
        with autocast(self.config):
            tokens = [encode_pictures(vae, np.stack(pictures)).half() for pictures in (flawed, good)]
        return {"flawed": tokens[0], "good": tokens[1], **self._ids(triplets)}

    def _ids(self, triplets: list[Triplet]) -> dict[str, Tensor]:
        prompts, clip = [t.prompt for t in triplets], self.parts["tokenizer"]
        return {"told": self._t5_ids([t.told for t in triplets]).int(), "untold": self._t5_ids(prompts).int(),
                "clip": token_ids(clip, prompts, clip.model_max_length).int()}

    def _t5_ids(self, texts: list[str]) -> Tensor:
        return token_ids(self.parts["tokenizer_2"], texts, self.m.text_length)

    def named_parameters(self):
        return self.lora.named_parameters()

    def matrices(self) -> set[str]:
        return {n for n, p in self.named_parameters() if p.ndim == 2}

    def _forward(self, x, states, pooled, t, guidance, condition):
        """Noisy tokens (B, N, 4 C) and the flawed picture's (B, M, 4 C) to velocities (B, N, 4 C)."""
        return flux_forward(self.transformer, self.lora, x, states, pooled, t, guidance, self.ids[0], self.ids[1],
                            condition, self.ids[2], checkpointing=self.m.checkpointing)

    @torch.no_grad()
    def _texts(self, clip_ids: Tensor, t5_ids: Tensor) -> tuple[Tensor, Tensor]:
        """T5's states (B, L, D) and CLIP's pooled vectors (B, P)."""
        device = self.config.device
        pooled = self.parts["text_encoder"](clip_ids.long().to(device)).pooler_output
        return self.parts["text_encoder_2"](t5_ids.long().to(device)).last_hidden_state, pooled

    def _error(self, forward, x0: Tensor, noise: Tensor, t: Tensor, texts: tuple[Tensor, Tensor],
               condition: Tensor) -> Tensor:
        """Mean square of what the velocity is off, for good pictures x0 and noise (B, N, 4 C) at times t (B,)."""
        like = {"device": self.config.device, "dtype": self.transformer.dtype}
        guidance = torch.full((len(t),), float(self.m.guidance)).to(self.config.device)
        x = torch.lerp(x0, noise, t[:, None, None])
        with autocast(self.config):
            out = forward(x.to(**like), *texts, t.to(self.config.device), guidance, condition.to(**like))
        return (out.float() - (noise - x0).to(self.config.device)).square().mean()

    def loss(self, step: int, generator: torch.Generator) -> Tensor:
        n, m, bank = self.config.batch, self.m, self.bank
        pick = self.rows[torch.randint(len(self.rows), (n,), generator=generator)]
        x0, condition = bank["good"][pick].float(), bank["flawed"][pick].float()
        noise = torch.randn(x0.shape, generator=generator)
        t = torch.sigmoid(torch.randn(n, generator=generator) + self.m.time_mean)
        chance = torch.rand(3, n, generator=generator)
        no_picture = chance[1] < m.drop_image
        no_reflection = (chance[0] < m.drop_reflection) | no_picture
        no_text = chance[2] < m.drop_text
        t5_ids = torch.where(no_reflection[:, None], bank["untold"][pick], bank["told"][pick])
        t5_ids = torch.where(no_text[:, None], self.empty, t5_ids)
        condition = torch.where(no_picture[:, None, None], self.black, condition)
        return self._error(self.forward, x0, noise, t, self._texts(bank["clip"][pick], t5_ids), condition)

    @torch.no_grad()
    def evaluation_loss(self) -> dict[str, float]:
        """The loss on what is held out at fixed times, with fixed noise and nothing dropped."""
        bank, n = self.held_bank, self.config.batch
        noise = torch.randn(bank["good"].shape, generator=torch.Generator().manual_seed(EVAL_SEED))
        sums = dict.fromkeys(EVAL_TIMES, 0.0)
        for rows in torch.arange(len(noise)).split(n):
            texts = self._texts(bank["clip"][rows], bank["told"][rows])
            for at in EVAL_TIMES:
                with attention(self.config):
                    error = self._error(self._forward, bank["good"][rows].float(), noise[rows],
                                        torch.full((len(rows),), at), texts, bank["flawed"][rows].float())
                sums[at] += float(error) * len(rows)
        losses = {f"eval_loss_{at}": value / len(noise) for at, value in sums.items()}
        return {"eval_loss": sum(losses.values()) / len(losses), **losses}

    def trained_options(self) -> dict[str, Any]:
        """The options under which a picture is drawn as it was trained, as JSON."""
        return {"condition_size": self.condition_size, "condition_offset": self.m.condition_offset,
                "max_sequence_length": self.m.text_length, "posterior": "mode"}

    def generator(self) -> FluxCorrector:
        """The corrector as users run it, with the weights as they are now."""
        options = CorrectorOptions(**self.trained_options(), max_batch=max(1, at_once(self.size, self.size) // 2))
        return FluxCorrector(**self.parts, lora=self.lora, options=options)

    def draw(self, triplets: list[Triplet], told: bool = True) -> list[np.ndarray]:
        """The flawed pictures as they are drawn anew, or (not told) pictures from the prompts alone, each
        (size, size, 3) uint8."""
        m = self.m
        requests = [Request(t.prompt, 1000 + k, self.size, self.size, m.sample_steps, m.sample_guidance,
                            (Pair(t.reflection, picture=Image.fromarray(t.flawed)),) if told else ())
                    for k, t in enumerate(triplets)]
        return [np.asarray(d.picture) for d in self.generator().draw(requests)]

    def fresh_rate(self, triplets: list[Triplet]) -> float:
        """Share of the prompts that the base draws right at one try: what a correction has to beat.

        The base is frozen, so it is found out once in a run.
        """
        m, file = self.m, Path(self.config.out) / "fresh_rate.json"
        key = digest(self.data, [t.prompt for t in triplets], m.sample_steps, m.sample_guidance)
        if file.exists() and (known := read_json(file, "")).get("of") == key:
            return known["fresh_rate"]
        drawn = self.draw(triplets, told=False)
        rate = float(np.mean([is_right(picture, t.prompt) for picture, t in zip(drawn, triplets)]))
        write_whole(file, json.dumps({"of": key, "fresh_rate": rate}) + "\n")
        return rate

    def sample(self, file: Path, step: int) -> dict[str, float]:
        """Correct what is held out. Rows of the sheet: flawed, corrected, target."""
        if not self.held_out:
            return {}
        judged = self.d.sample_prompts
        triplets = self.held_out[: judged or self.d.grid]
        drawn = self.draw(triplets)
        columns = 16 if judged else self.d.grid
        save_sheet(file, [[t.flawed for t in triplets[:columns]], drawn[:columns],
                          [t.good for t in triplets[:columns]]])
        figures = {}
        if judged:
            figures = {**correction_figures(triplets, drawn), "fresh_rate": self.fresh_rate(triplets)}
        return {**figures, **self.evaluation_loss()}

    def export(self, folder: Path, provenance: dict) -> None:
        """The LoRA in bf16, under the published names, and how to draw with it."""
        copy.deepcopy(self.lora).to(torch.bfloat16).save(folder)
        (folder / "reflect.json").write_text(json.dumps({"options": self.trained_options()}, indent=2) + "\n")
        write_provenance(folder, {**provenance, **self.origin})
