"""Reflection tuning (Reflect-DiT, section 3): SANA learns to draw with its flawed pictures and their feedback in view.

Velocity MSE with logit-normal times. A row of a batch is a prompt, 1 to 3 flawed pictures of it in random order, each
with its feedback, and a good picture; the prompt and the context are each dropped now and then. All of SANA is trained
with the new parts, or low-rank changes of its attention; the new parts' last gain starts at zero.

What differs from the official code, each a setting with the published value as the default:
- `mend`: the good picture is the last flawed one, mended. Published: an independent picture that is right. A prompt of
  the shapes world says all that such a picture has to show, so that little is left to learn from feedback on others.
- `partial`: rows that see words or pictures alone, for the option `see`. Published: none.
- `edit_weight`: the error counts more where a mended picture differs from the flawed one. Published: everywhere alike.
- `guide`: at the start, a loss on where the picture looks. Published: none.
- `gain_lr`: the last gain learns faster. Published: as all else.
- `plain`: steps without any context, as the first picture of a search is drawn. Published: none, so that the first
  picture comes from a model that was never trained on such input.
And without one: all rows of a batch have as many pairs, where they are to be had; each row is masked as it is when it
is drawn alone; feedback has no prefix, as at inference; the optimiser is AdamW or Muon with a schedule, and an average
of the weights is kept.
"""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from reflect_core.generators.places import Places
from reflect_core.generators.reflect_dit.checkpoint import write_checkpoint
from reflect_core.generators.reflect_dit.context import ContextEncoder
from reflect_core.generators.reflect_dit.encoding import Pictures
from reflect_core.generators.reflect_dit.folder import load_components
from reflect_core.generators.reflect_dit.options import ReflectOptions
from reflect_core.generators.reflect_dit.pipeline import ReflectDiT
from reflect_core.generators.reflect_dit.sources import VISION
from reflect_core.generators.reflect_dit.transformer import reflect_forward
from reflect_core.types import Pair, Request, UserError

from ...bank import bank_key, cached_in_parts
from ...config import TrainConfig
from ...identity import digest, fingerprint, of_autoencoder, of_texts
from ...pictures import at_once, save_sheet
from ...shapes import correction_figures
from ...sources import Sources
from ...triplets import Triplet
from ..common import autocast, forget_places, provenance_of, write_provenance
from .base import encode_latents, trimmed
from .context import guided_forward, laid, tuned_forward
from .guide import own_places
from .lora import add_lora, merge_lora
from .parts import as_convolutions, as_matrices
from .text import states, text_ids

DIFFERS = 32
"""Of 255: pictures that are apart by less are alike there."""


class ReflectTask:
    """Trains SANA and what Reflect-DiT adds to it. See `loop.Task`."""

    def __init__(self, config: TrainConfig, report: Callable[[str], None] = lambda line: None) -> None:
        self.config, self.report, (self.m, self.d) = config, report, config.sections()
        sources = Sources(self.d, config.seed, self.m.size, whole_prompts=True)
        # Read now: what is broken is to be said before the training.
        self.origin = {"base": provenance_of(self.m.base), "vision": provenance_of(self.m.vision),
                       "sources": [provenance_of(s.path) if s.kind == "folder" else s.kind for s in sources.sources]}
        if self.m.checkpoint is not None:
            self.origin["checkpoint"] = provenance_of(self.m.checkpoint)
        if self.m.weights == "bf16" and config.precision == "fp32":
            raise UserError("model.weights is 'bf16' and precision 'fp32'; expected bf16 for both, or fp32 for both")
        base = self._load()
        self._check_lengths(sources)
        settings = self._bank_settings(sources)
        self.bank = cached_in_parts(Path(config.out), settings, lambda start: self._encoded(sources, start))
        for name in ("prompt", "feedback"):
            self.bank[name] = trimmed(self.bank[name])
        self.rows = torch.cat([(self.bank["source"] == index).nonzero()[:, 0].repeat(source.repeat)
                               for index, source in enumerate(sources.sources)])
        self.others = _others(self.bank["prompt"])
        self.lengths = (self.bank["feedback"] != 0).sum(dim=1).tolist()
        self.data = {"bank": bank_key(settings), "triplets": len(self.bank["good"]), "base": base}
        self.held_out = sources.held_out()
        self.empty = self._ids([""])[:, : self.bank["prompt"].shape[1]].to(self.bank["prompt"])
        self.forward = torch.compile(tuned_forward, dynamic=False) if config.compile else tuned_forward
        self.guided = torch.compile(guided_forward, dynamic=False) if config.compile else guided_forward
        self.plain = torch.compile(reflect_forward, dynamic=False) if config.compile else reflect_forward

    def _load(self) -> str:
        """The parts on the device, those that are trained set up for it. Returns the checksum of what they were."""
        m, device = self.m, self.config.device
        dtype = torch.bfloat16 if m.weights == "bf16" else torch.float32
        self.parts = load_components(m.base, m.checkpoint, dtype, device, {VISION: m.vision})
        self.transformer, vision = self.parts["transformer"], self.parts["image_encoder"]
        made = self.transformer.config
        if "context" not in self.parts:
            self.parts["context"] = ContextEncoder(
                made.num_attention_heads * made.attention_head_dim, vision.config.hidden_size, made.caption_channels,
                made.num_cross_attention_heads, made.cross_attention_head_dim, m.context_layers, made.mlp_ratio)
        layers, width = (len(self.parts["context"].reflection_transformer),
                         self.parts["context"].clip_projection.linear_1.in_features)
        if layers != m.context_layers:
            raise UserError(f"model.context_layers is {m.context_layers}; expected {layers}, as in the checkpoint")
        if width != vision.config.hidden_size:
            raise UserError(f"{m.vision} is {vision.config.hidden_size} wide; expected {width}: the picture encoder "
                            "that the checkpoint was trained with")
        found = fingerprint(self.transformer, self.parts["text_encoder"], vision)
        self.context = self.parts["context"].to(device, torch.float32).requires_grad_(True)
        if m.rank is None:
            self.transformer.requires_grad_(True)
            as_matrices(self.transformer)
        else:
            add_lora(self.transformer, m.rank, torch.Generator().manual_seed(self.config.seed))
        options = self.options()
        self.places = Places({"image_encoder": self.parts["image_encoder"]})
        self.pictures = Pictures(self.parts["image_encoder"], options.image_tokens, 1, self.places)
        token = 2 ** (len(self.parts["vae"].config.encoder_block_out_channels) - 1) * made.patch_size
        if m.size % token:
            raise UserError(f"model.size is {m.size}; expected a multiple of {token}, the pixels to one token")
        self.side = m.size // token  # tokens along a picture's side
        return found

    def _check_lengths(self, sources: Sources) -> None:
        """UserError for the first text of a folder that is too long, before hours of encoding."""
        for line in itertools.chain.from_iterable(lines for lines in sources.lines if lines is not None):
            for name in ("prompt", "reflection"):
                try:
                    self._ids([getattr(line, name)])
                except UserError as error:
                    raise UserError(f"{line.where}: the {name} {error}") from error

    def options(self) -> ReflectOptions:
        """Those with which a picture is drawn as it was trained."""
        return ReflectOptions(max_context=self.m.pairs, image_tokens=self.m.image_tokens, prompt_instruction="",
                              max_sequence_length=self.m.text_length,
                              max_batch=max(1, at_once(self.m.size, self.m.size) // 2))

    def _bank_settings(self, sources: Sources) -> dict:
        """What decides the bank, as JSON."""
        probe = sources.probe()
        texts = [self._ids([getattr(t, name) for t in probe]) for name in ("prompt", "reflection")]
        return {"sources": sources.identity(), "size": self.m.size, "length": self.m.text_length,
                "tokens": self.m.image_tokens, "edits": DIFFERS, "vae": of_autoencoder(self.parts["vae"]),
                "vision": fingerprint(self.parts["image_encoder"]), "precision": self.config.precision,
                "texts": of_texts(texts, self.parts["tokenizer"]),
                "probe": digest(*(part for t in probe for part in (t.prompt, t.reflection, t.flawed, t.good)))}

    def _ids(self, texts: list[str]) -> Tensor:
        return text_ids(self.parts["tokenizer"], texts, self.m.text_length)

    @torch.no_grad()
    def _encoded(self, sources: Sources, start: int) -> Iterator[dict[str, Tensor]]:
        """Of the triplets from the `start`-th on: the flawed picture's tokens (T, N, V), the good one's latents
        (T, C, h, w), at which of these the two pictures differ (T, h, w), the ids of prompt and feedback (T, L), and
        which source (T,) each is of."""
        triplets, done, told = sources.triplets(start), start, time.monotonic()
        while chunk := list(itertools.islice(triplets, 8 * at_once(self.m.size, self.m.size))):
            found = [triplet for _, triplet in chunk]
            with autocast(self.config):
                flawed = [self.pictures.pooled([Image.fromarray(t.flawed) for t in found[k:k + 64]])
                          for k in range(0, len(found), 64)]
                good = encode_latents(self.parts["vae"], np.stack([t.good for t in found]))
            edit = differing(*(np.stack([getattr(t, side) for t in found]) for side in ("flawed", "good")),
                             *good.shape[2:])
            yield {"flawed": torch.cat(flawed).half().contiguous(), "good": good.half().contiguous(), "edit": edit,
                   "prompt": self._ids([t.prompt for t in found]).int(),
                   "feedback": self._ids([t.reflection for t in found]).int(),
                   "source": torch.tensor([index for index, _ in chunk], dtype=torch.int32)}
            done += len(chunk)
            if time.monotonic() - told > 10:
                told = time.monotonic()
                self.report(f"{done} triplets encoded")

    def named_parameters(self):
        yield from self.transformer.named_parameters("transformer")
        if not self.m.sft:
            yield from self.context.named_parameters("context")

    def matrices(self) -> set[str]:
        return {n for n, p in self.named_parameters() if p.ndim == 2 and not n.endswith("scale_shift_table")
                and ("transformer_blocks" in n or "reflection_transformer" in n)}

    def rates(self) -> dict[str, float]:
        """Multiples of the learning rate, by parameter."""
        return {"context.reflection_norm.weight": self.m.gain_lr}

    def _texts(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            return states(self.parts["text_encoder"], ids.long())

    def loss(self, step: int, generator: torch.Generator) -> Tensor:
        n, m, bank, device = self.config.batch, self.m, self.bank, self.config.device
        last = self.rows[torch.randint(len(self.rows), (n,), generator=generator)]
        chance = torch.rand(4, n, generator=generator)
        pairs = int(torch.randint(1, m.pairs + 1, (1,), generator=generator))
        context = [self._pairs(int(row), pairs, generator) for row in last]
        target = self._targets(last, chance[2], generator)
        x0 = bank["good"][target].float()
        noise = torch.randn(x0.shape, generator=generator)
        t = torch.sigmoid(torch.randn(n, generator=generator) + m.time_mean)
        x = torch.lerp(x0, noise, t[:, None, None, None]).to(device)
        ids = torch.where((chance[0] < m.drop_text)[:, None], self.empty, bank["prompt"][last])
        when = 1000 * self.transformer.config.timestep_scale * t.to(device)
        velocity = (noise - x0).to(device)
        with autocast(self.config):
            words, keep = self._texts(ids)
            if m.sft or float(torch.rand((), generator=generator)) < m.plain:
                out = self.plain(self.transformer, None, x, words, when, keep)
                return (out.float() - velocity).square().mean()
            sees = self._sees(chance[1].tolist(), chance[3].tolist())
            lengths = [[self.lengths[k] for k in row] for row in context]
            # Rows that see the very picture that is mended.
            mends = (target == last) & torch.tensor([seen in ("both", "pictures") for seen in sees])
            given = (self.transformer, self.context, x, words, keep, when, *self._beside(context, lengths, sees))
            if guide := m.guide * max(0.0, 1 - step / m.guide_steps):
                patch = self.transformer.config.patch_size
                at = own_places(lengths, keep.shape[1], bank["flawed"].shape[1], *(s // patch for s in x.shape[2:]))
                out, near = self.guided(at.to(device), *given)
                pull = guide * (near * mends.to(device)).sum() / max(1, int(mends.sum()))
            else:
                out, pull = self.forward(*given), 0.0
        weight = torch.where(bank["edit"][last].bool() & mends[:, None, None], m.edit_weight, 1.0).to(device)[:, None]
        return (weight * (out.float() - velocity).square()).mean() / weight.mean() - pull

    def _targets(self, last: Tensor, chance: Tensor, generator: torch.Generator) -> Tensor:
        """Rows of the bank whose good pictures are drawn: of `last` itself, or of any row with its prompt."""
        target = last.clone()
        for number, row in enumerate(last.tolist()):
            if chance[number] >= self.m.mend:
                group = self.others[row]
                target[number] = group[int(torch.randint(len(group), (1,), generator=generator))]
        return target

    def _pairs(self, last: int, pairs: int, generator: torch.Generator) -> list[int]:
        """Rows of the bank with the same prompt, up to `pairs` in random order, `last` behind the others."""
        others = [row for row in self.others[last] if row != last]
        order = torch.randperm(len(others), generator=generator)[: pairs - 1].tolist()
        return [*(others[k] for k in order), last]

    def _sees(self, dropped: list[float], partial: list[float]) -> list[str]:
        """What each row sees of its pairs, from two random numbers."""
        share = self.m.partial
        return ["nothing" if drop < self.m.drop_context else "words" if part < share / 2 else
                "pictures" if part < share else "both" for drop, part in zip(dropped, partial)]

    def _beside(self, context: list[list[int]], lengths: list[list[int]], sees: list[str]) -> tuple[Tensor, ...]:
        """What `tuned_forward` takes of the pairs: pictures' tokens, feedback's states, and what `laid` says."""
        most, device = max(map(len, context)), self.config.device
        rows = torch.tensor([[*row, *[row[-1]] * (most - len(row))] for row in context]).flatten()
        ids = self.bank["feedback"][rows]
        places = laid(lengths, sees, most, self.bank["flawed"].shape[1], ids.shape[1])
        texts, _ = self._texts(ids)
        return self.bank["flawed"][rows].float().to(device), texts, *(part.to(device) for part in places)

    def generator(self) -> ReflectDiT:
        """Reflect-DiT as users run it, with the weights as they are now."""
        parts = dict(self.parts)
        if self.m.sft:
            parts.pop("context"), parts.pop("image_encoder")
        return ReflectDiT(**parts, options=self.options())

    def draw(self, requests: list[Request]) -> list[np.ndarray]:
        with autocast(self.config):
            return [np.asarray(drawn.picture) for drawn in self.generator().draw(requests)]

    def _requests(self, triplets: list[Triplet], told: list[str] | None) -> list[Request]:
        """One picture for each triplet, with its flawed picture and `told` of it in view; None: with nothing."""
        m = self.m
        return [Request(t.prompt, 1000 + k, m.size, m.size, m.sample_steps, m.sample_guidance,
                        () if told is None else (Pair(told[k], picture=Image.fromarray(t.flawed)),))
                for k, t in enumerate(triplets)]

    def sample(self, file: Path, step: int) -> dict[str, float]:
        """Correct what is held out, one pair in view. Rows of the sheet: flawed, corrected, target. `fresh` is of
        pictures without context, `shuffled` with the feedback of other pictures."""
        if not self.held_out:
            return {}
        judged, figures = self.d.sample_prompts, {}
        triplets = self.held_out[: judged or self.d.grid]
        told = [t.reflection for t in triplets]
        drawn = self.draw(self._requests(triplets, None if self.m.sft else told))
        if judged:
            fresh = drawn if self.m.sft else self.draw(self._requests(triplets, None))
            figures = {"fresh_rate": correction_figures(triplets, fresh)["fix_rate"]}
            if not self.m.sft:
                figures |= correction_figures(triplets, drawn)
                shuffled = self.draw(self._requests(triplets, told[1:] + told[:1]))
                figures["shuffled_fix_rate"] = correction_figures(triplets, shuffled)["fix_rate"]
        shown = 16 if judged else self.d.grid
        save_sheet(file, [[t.flawed for t in triplets[:shown]], drawn[:shown], [t.good for t in triplets[:shown]]])
        return figures

    def trained_options(self) -> dict[str, Any]:
        m = self.m
        return {"max_context": m.pairs, "image_tokens": m.image_tokens, "prompt_instruction": "",
                "max_sequence_length": m.text_length}

    def export(self, folder: Path, provenance: dict) -> None:
        """A checkpoint in the released layout in bf16 and how to draw with it; after `sft` that of plain SANA."""
        merge_lora(self.transformer)
        made = as_convolutions(self.transformer) if self.m.rank is None else self.transformer
        folder.mkdir(parents=True, exist_ok=True)
        made = torch.nn.Module.to(made, torch.bfloat16)
        if self.m.sft:
            made.save_pretrained(folder)
        else:
            write_checkpoint(folder, made, self.context.to(torch.bfloat16))
        (folder / "reflect.json").write_text(json.dumps({"options": self.trained_options()}, indent=2) + "\n")
        forget_places(folder)
        write_provenance(folder, {**provenance, **self.origin})


def differing(flawed: np.ndarray, good: np.ndarray, height: int, width: int) -> Tensor:
    """At which of height x width places pictures (T, H, W, 3) differ by more than `DIFFERS`: (T, height, width)."""
    apart = np.abs(flawed.astype(np.int16) - good).max(axis=-1)
    return (F.adaptive_max_pool2d(torch.from_numpy(apart)[:, None].float(), (height, width))[:, 0] > DIFFERS).byte()


def _others(prompts: Tensor) -> list[list[int]]:
    """For each row of ids (T, L) all rows that are equal to it."""
    groups: dict[bytes, list[int]] = {}
    keys = [row.numpy().tobytes() for row in prompts]
    for number, key in enumerate(keys):
        groups.setdefault(key, []).append(number)
    return [groups[key] for key in keys]
