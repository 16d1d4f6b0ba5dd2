"""The small SigLIP: transformers' own `SiglipVisionModel`, trained on rendered scenes and their captions.

SigLIP's loss: each pair of a picture and a text is a yes or no of its own. Half the pictures of a batch are the
scenes' corrupted twins, wrong for every caption, so that number, colour and place count and not only what there is.

Reflect-DiT looks at the tokens of the places and not at the pooled vector. SigLIP's know what lies where from billions
of pictures; captions of twenty thousand scenes do not teach that. So each place is matched too, with the words of the
object that lies there, 'red circle', or with none.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers.models.embeddings import get_2d_sincos_pos_embed
from torch import Tensor, nn
from transformers import SiglipVisionConfig, SiglipVisionModel

from reflect_core.generators.reflect_dit.folder import VISION, published_vision_names
from reflect_core.shapes.scene import SIZE
from reflect_core.types import UserError

from ...config import TrainConfig
from ...identity import digest, fingerprint
from ...pictures import to_tensor
from ...shapes import PHRASES, twins
from ..common import autocast, forget_places, provenance_of, write_provenance
from .text import load_text, states, text_ids


def places(model: SiglipVisionModel, pictures: Tensor, side: int) -> tuple[Tensor, Tensor]:
    """Pictures (B, 3, H, W) in [-1, 1] to the tokens (B, side * side, C) of a square of places, pooled as Reflect-DiT
    does it, and to SigLIP's pooled vectors (B, C)."""
    out = model(pictures)
    grid = round(out.last_hidden_state.shape[1] ** 0.5)
    tokens = out.last_hidden_state.transpose(1, 2).unflatten(2, (grid, grid))
    return F.avg_pool2d(tokens, grid // side).flatten(2).transpose(1, 2), out.pooler_output


def place_by_waves(encoder: SiglipVisionModel) -> None:
    """Let the positions start as sines and cosines of row and column, as loud as the patches.

    They start as faint noise otherwise, and nothing in captions of small scenes makes a token say where it is: of the
    tokens so trained a linear layer told the place of one in three, and nothing of which places are neighbours. What
    is drawn with them in view has to know.
    """
    (table,) = (p for name, p in encoder.named_parameters() if name.endswith("position_embedding.weight"))
    side = round(len(table) ** 0.5)
    waves = get_2d_sincos_pos_embed(table.shape[1], side, output_type="pt")
    with torch.no_grad():
        table.copy_(0.5 * waves)


class SanaVisionTask:
    """Trains the picture encoder. See `loop.Task`."""

    def __init__(self, config: TrainConfig) -> None:
        self.config, (self.m, self.d) = config, config.sections()
        if config.batch % 2:
            raise UserError(f"batch is {config.batch}; expected an even number: half of it are corrupted twins")
        self.origin = {"text": provenance_of(self.m.text)}
        self.tokenizer, self.text_encoder = load_text(Path(self.m.text))
        self.text_encoder.to(config.device)
        width = self.text_encoder.config.hidden_size
        self.encoder = SiglipVisionModel(SiglipVisionConfig(
            hidden_size=self.m.width, intermediate_size=2 * self.m.width, num_hidden_layers=self.m.layers,
            num_attention_heads=self.m.heads, image_size=SIZE, patch_size=self.m.patch))
        place_by_waves(self.encoder)
        self.trained = nn.ModuleDict({
            "image_encoder": self.encoder.train(), "text": nn.Linear(width, self.m.width),
            "phrase": nn.Linear(width, self.m.width)})
        # SigLIP's start: a temperature of 10, and so low a bias that most pairs begin as the noes that they are.
        self.trained.register_parameter("logit_scale", nn.Parameter(torch.tensor(10.0).log()))
        self.trained.register_parameter("logit_bias", nn.Parameter(torch.tensor(-10.0)))
        self.trained.register_parameter("place_scale", nn.Parameter(torch.tensor(10.0).log()))
        self.trained.to(config.device)
        self.phrases = self._last(list(PHRASES))
        self.bank = self._bank(self.d.pictures, config.seed)
        self.held_out = self._bank(256, config.seed + 1)
        self.data = {"rendered_scenes": 2 * self.d.pictures, "pictures": digest(self.bank["good"]),
                     "text": fingerprint(self.text_encoder)}
        self.forward = torch.compile(self._forward, dynamic=False) if config.compile else self._forward

    def _bank(self, count: int, seed: int) -> dict[str, np.ndarray | Tensor]:
        """Pictures of scenes and of their corrupted twins, what lies at each place, and the captions' last states."""
        good, bad, lies, captions = twins(count, seed, self.d.tasks, self.m.places)
        return {"good": good, "bad": bad, "lies": torch.from_numpy(lies), "captions": self._last(captions)}

    @torch.no_grad()
    def _last(self, texts: list[str]) -> Tensor:
        """States (B, D) of the texts' last words: those have read everything."""
        out = []
        for start in range(0, len(texts), 512):
            told, mask = states(self.text_encoder, text_ids(self.tokenizer, texts[start:start + 512],
                                                            self.m.text_length))
            out.append(told[torch.arange(len(told)), mask.sum(1) - 1].cpu())
        return torch.cat(out)

    def named_parameters(self):
        return self.trained.named_parameters()

    def matrices(self) -> set[str]:
        return {n for n, p in self.named_parameters() if p.ndim == 2 and "encoder.layers" in n}

    def _forward(self, pictures: Tensor) -> tuple[Tensor, Tensor]:
        return places(self.encoder, pictures, self.m.places)

    def _logits(self, bank: dict, rows: Tensor, forward) -> tuple[Tensor, Tensor]:
        """Of pictures (2 B: right ones, then twins) against captions (2 B, B), and of places against phrases and
        nothing (2 B, N, P)."""
        pictures = np.concatenate([bank["good"][rows], bank["bad"][rows]])
        with autocast(self.config):
            tokens, pooled = forward(to_tensor(pictures).to(self.config.device))
            texts = self.trained["text"](bank["captions"][rows].to(self.config.device))
            phrases = self.trained["phrase"](self.phrases.to(self.config.device))
        scale, bias = self.trained.logit_scale.exp(), self.trained.logit_bias
        whole = scale * F.normalize(pooled.float(), dim=-1) @ F.normalize(texts.float(), dim=-1).T + bias
        near = F.normalize(tokens.float(), dim=-1) @ F.normalize(phrases.float(), dim=-1).T
        return whole, self.trained.place_scale.exp() * near

    def loss(self, step: int, generator: torch.Generator) -> Tensor:
        n = self.config.batch // 2
        rows = torch.randint(len(self.bank["good"]), (n,), generator=generator)
        whole, near = self._logits(self.bank, rows, self.forward)
        signs = torch.cat([2 * torch.eye(n) - 1, -torch.ones(n, n)]).to(whole)
        lies = self.bank["lies"][rows].transpose(0, 1).flatten(0, 1).flatten().long().to(near.device)
        return -F.logsigmoid(signs * whole).sum() / (2 * n) + F.cross_entropy(near.flatten(0, 1), lies)

    def sample(self, file: Path, step: int) -> dict[str, float]:
        """Of 256 held-out scenes: the share whose own caption is the nearest of all, the share that fit it better than
        their twin does, and the shares of the places, with an object and without, that are told."""
        rows = torch.arange(len(self.held_out["good"]))
        whole, near = (logits.cpu() for logits in self._logits(self.held_out, rows, self._forward))
        right, twin = whole.chunk(2)
        lies = self.held_out["lies"].transpose(0, 1).flatten(0, 1)
        told, there = near.argmax(-1) == lies, lies > 0
        return {"caption_found": float((right.argmax(1) == rows).float().mean()),
                "above_twin": float((right.diag() > twin.diag()).float().mean()),
                "objects_told": float(told[there].float().mean()), "empty_told": float(told[~there].float().mean())}

    def export(self, folder: Path, provenance: dict) -> None:
        """The picture encoder in fp32; what it was matched with is not needed any more."""
        self.encoder.save_pretrained(folder / VISION)
        published_vision_names(folder / VISION / "model.safetensors")
        forget_places(folder)
        write_provenance(folder, {**provenance, **self.origin})
