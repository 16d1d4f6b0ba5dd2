"""Reflection tuning (ReflectionFlow, section 3): a LoRA that corrects a flawed picture as it is told.

Velocity MSE with logit-normal times at guidance 1; the reflection, the picture and the text are each
dropped now and then. As published, CLIP sees the prompt and T5 the prompt, a marker and the reflection;
the LoRA acts on the flawed picture's tokens alone, so the base's own drawing stays what it was.
"""

from __future__ import annotations

import itertools
import json
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from reflect_core.generators.flux_corrector.folder import load_components
from reflect_core.generators.flux_corrector.latents import grid_ids
from reflect_core.generators.flux_corrector.lora import ConditionLora
from reflect_core.generators.flux_corrector.options import CorrectorOptions
from reflect_core.generators.flux_corrector.pipeline import FluxCorrector
from reflect_core.generators.flux_corrector.transformer import flux_forward
from reflect_core.shapes.detector import detect
from reflect_core.shapes.prompt import parse
from reflect_core.shapes.repair import plan
from reflect_core.types import Pair, Request, UserError

from ..bank import MARKER, cached, encode_pictures
from ..config import TrainConfig
from ..grid import save_grid
from ..triplets import corrupted_triplets, read_triplets


class CorrectorTask:
    def __init__(self, config: TrainConfig) -> None:
        self.config, m = config, config.model
        self.base = Path(m["base"])
        self.parts = load_components(self.base)
        for part in ("transformer", "vae", "text_encoder", "text_encoder_2"):
            self.parts[part].requires_grad_(False)
        self.transformer = self.parts["transformer"]
        self.lora = ConditionLora.fresh(self.transformer, m.get("rank", 32), m.get("alpha"),
                                        generator=torch.Generator().manual_seed(config.seed))
        self.size, self.length = m.get("size", 64), m["text_length"]
        out = Path(config.out)
        settings = {"data": config.data, "seed": config.seed, "size": self.size,
                    "base": [float(p.double().abs().sum()) for p in list(self.parts["vae"].parameters())[:6]]}
        self.bank = cached(out, settings, self._make_bank)
        side = int(self.bank["good"].shape[1] ** 0.5)
        self.ids = grid_ids(side, side), torch.zeros(self.length, 3), grid_ids(side, side, (0, -side))
        self.empty = self._t5_ids([""])
        black = np.zeros((1, self.size, self.size, 3), dtype=np.uint8)
        self.black = encode_pictures(self.parts["vae"], black)
        self.forward = torch.compile(self._forward, dynamic=False) if config.compile else self._forward
        count = config.data.get("sample_prompts", 96)
        self.held_out = list(itertools.islice(corrupted_triplets(config.seed + 999), count))

    def _sources(self):
        for source in self.config.data["sources"]:
            count = source["count"]
            if source["kind"] == "corrupted":
                yield from itertools.islice(corrupted_triplets(self.config.seed, source.get("tasks")), count)
            elif source["kind"] == "folder":
                found = list(itertools.islice(read_triplets(Path(source["path"]), self.size), count))
                yield from (found * source.get("repeat", 1))
            else:
                raise UserError(f"data.sources: kind is {source['kind']!r}; expected corrupted or folder")

    def _make_bank(self) -> dict[str, Tensor]:
        """Latents of both pictures, and the tokens of the text with and without the reflection."""
        columns: dict[str, list[Tensor]] = {k: [] for k in ("flawed", "good", "told", "untold", "clip")}
        triplets = iter(self._sources())
        while chunk := list(itertools.islice(triplets, 512)):
            columns["flawed"].append(encode_pictures(self.parts["vae"], np.stack([t.flawed for t in chunk])).half())
            columns["good"].append(encode_pictures(self.parts["vae"], np.stack([t.good for t in chunk])).half())
            columns["told"].append(self._t5_ids([t.prompt + MARKER + t.reflection for t in chunk]).int())
            columns["untold"].append(self._t5_ids([t.prompt for t in chunk]).int())
            tokenizer = self.parts["tokenizer"]
            clip = tokenizer([t.prompt for t in chunk], padding="max_length", truncation=True,
                             max_length=tokenizer.model_max_length, return_tensors="pt")
            columns["clip"].append(clip.input_ids.int())
        return {name: torch.cat(parts) for name, parts in columns.items()}

    def _t5_ids(self, texts: list[str]) -> Tensor:
        return self.parts["tokenizer_2"](texts, padding="max_length", max_length=self.length, truncation=True,
                                         return_tensors="pt").input_ids

    def named_parameters(self):
        return self.lora.named_parameters()

    def matrices(self) -> set[str]:
        return {n for n, p in self.named_parameters() if p.ndim == 2}

    def _forward(self, x, states, pooled, t, guidance, condition):
        return flux_forward(self.transformer, self.lora, x, states, pooled, t, guidance, self.ids[0], self.ids[1],
                            condition, self.ids[2])

    def loss(self, step: int, generator: torch.Generator) -> Tensor:
        n, drops = self.config.batch, self.config.model
        pick = torch.randint(len(self.bank["good"]), (n,), generator=generator)
        x0, condition = self.bank["good"][pick].float(), self.bank["flawed"][pick].float()
        noise = torch.randn(x0.shape, generator=generator)
        t = torch.sigmoid(torch.randn(n, generator=generator))
        chance = torch.rand(3, n, generator=generator)
        no_picture = chance[1] < drops.get("drop_image", 0.1)
        no_reflection = (chance[0] < drops.get("drop_reflection", 0.1)) | no_picture
        no_text = chance[2] < drops.get("drop_text", 0.1)
        t5_ids = torch.where(no_reflection[:, None], self.bank["untold"][pick], self.bank["told"][pick]).long()
        t5_ids = torch.where(no_text[:, None], self.empty, t5_ids)
        condition = torch.where(no_picture[:, None, None], self.black, condition)
        guidance = torch.full((n,), float(drops.get("guidance", 1.0)))
        with torch.no_grad():
            clip_ids = self.bank["clip"][pick].long()
            pooled = self.parts["text_encoder"](clip_ids).pooler_output
            states = self.parts["text_encoder_2"](t5_ids).last_hidden_state
        precision = torch.autocast("cpu", torch.bfloat16) if self.config.precision == "bf16" else nullcontext()
        with precision, sdpa_kernel(SDPBackend.MATH):
            out = self.forward(torch.lerp(x0, noise, t[:, None, None]), states, pooled, t, guidance, condition)
        return (out.float() - (noise - x0)).square().mean()

    def generator(self) -> FluxCorrector:
        """The corrector as users run it, with the weights as they are now."""
        options = CorrectorOptions(condition_size=self.size, max_sequence_length=self.length, posterior="mode",
                                   max_batch=32)
        return FluxCorrector(**self.parts, lora=self.lora, options=options)

    def sample(self, folder: Path, step: int) -> dict[str, float]:
        """Correct held-out flawed pictures. Rows of the grid: flawed, corrected, target."""
        guidance = self.config.model.get("sample_guidance", 2.5)
        requests = [Request(t.prompt, 1000 + k, self.size, self.size, 16, guidance,
                            (Pair(t.reflection, picture=Image.fromarray(t.flawed)),))
                    for k, t in enumerate(self.held_out)]
        drawn = [np.asarray(d.picture) for d in self.generator().draw(requests)]
        fixed, kept = [], []
        for triplet, picture in zip(self.held_out, drawn):
            seen, wanted = detect(picture), detect(triplet.good)
            fixed.append(not plan(seen, parse(triplet.prompt)))
            stay = [o for o in detect(triplet.flawed) if any(_same(o, w) for w in wanted)]
            kept += [any(_same(o, s) for s in seen) for o in stay]
        rows = [t.flawed for t in self.held_out[:16]] + drawn[:16] + [t.good for t in self.held_out[:16]]
        save_grid(folder / f"{step:07d}.png", np.stack(rows), 16)
        return {"fix_rate": float(np.mean(fixed)), "kept": float(np.mean(kept))}

    def export(self, folder: Path, provenance: dict) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.lora.to(torch.bfloat16)
        self.lora.save(folder)
        self.lora.to(torch.float32)
        base = self.base / "provenance.json"
        provenance = {**provenance, "base": json.loads(base.read_text()) if base.exists() else str(self.base)}
        (folder / "provenance.json").write_text(json.dumps(provenance, indent=1) + "\n")


def _same(a, b, pixels: float = 3.0) -> bool:
    """Whether two objects look alike and stand in the same place."""
    return (a.shape, a.colour) == (b.shape, b.colour) and abs(a.x - b.x) <= pixels and abs(a.y - b.y) <= pixels


