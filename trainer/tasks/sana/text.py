"""The small Gemma: transformers' own `Gemma2Model`, trained on sentences alone.

SANA takes a language model that has read much, and leaves it as it is. It reads from left to right, so what a word
can say is what stands before it: from each word's state a linear layer must tell the words before it, as far back as
a phrase, a relation and another phrase reach. See `tasks/text.py` for why nothing is learned without such states.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import AutoTokenizer, Gemma2Config, Gemma2Model

from reflect_core.generators.loading import load_part
from reflect_core.model_files import read_json
from reflect_core.shapes.prompt import WORDS
from reflect_core.shapes.repair import REFLECTION_WORDS
from reflect_core.shapes.tokenizer import write_word_tokenizer
from reflect_core.types import UserError

from ...config import TrainConfig
from ...identity import digest
from ...settings_sana import SanaTextModel
from ...shapes import prompts_and_feedback
from ..common import autocast, forget_places, write_provenance

BEFORE = 16
"""Words before its own that a word's state must tell."""


def words_known() -> list[str]:
    return sorted(WORDS | set(REFLECTION_WORDS))


def load_text(folder: Path) -> tuple[AutoTokenizer, Gemma2Model]:
    """Tokenizer and encoder, frozen, from the result folder of a run.

    Raises `UserError` for anything else, and for an encoder of another version of the shapes world's language.
    """
    read_json(folder / "tokenizer" / "tokenizer.json", "expected the result folder of a sana_text run; train that "
                                                       "first")
    tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer", local_files_only=True)
    missing = sorted(set(words_known()) - set(tokenizer.get_vocab()))
    if missing:
        raise UserError(f"{folder}: does not know {', '.join(missing[:5])}; expected every word of prompts and "
                        "feedback. Train the text encoder again")
    return tokenizer, load_part(folder, "text_encoder", ["transformers", "Gemma2Model"], torch.float32)


def text_ids(tokenizer, texts: list[str], length: int) -> Tensor:
    """(B, length), lower-cased and padded on the right as SanaPipeline does it. UserError for a text that is longer."""
    texts = [text.lower().strip() for text in texts]
    rows = tokenizer(texts, verbose=False).input_ids
    longest = max(range(len(rows)), key=lambda number: len(rows[number]))
    if len(rows[longest]) > length:
        raise UserError(f"{texts[longest][:80]!r} has {len(rows[longest])} tokens; expected at most "
                        f"model.text_length = {length}. Raise it, or shorten the text")
    ids = torch.full((len(rows), length), tokenizer.pad_token_id)
    for row, found in zip(ids, rows):
        row[: len(found)] = torch.tensor(found)
    return ids


def states(encoder: Gemma2Model, ids: Tensor) -> tuple[Tensor, Tensor]:
    """Ids (B, L) to states (B, L, D) and the mask (B, L) of real tokens."""
    ids = ids.to(encoder.device)
    mask = ids != encoder.config.pad_token_id
    return encoder(ids, attention_mask=mask.long()).last_hidden_state, mask


def build_text(m: SanaTextModel, folder: Path) -> tuple[AutoTokenizer, Gemma2Model]:
    """The encoder before training, and its tokenizer, which is written to `folder`."""
    vocabulary = write_word_tokenizer(folder / "tokenizer", words_known(), "gemma", m.text_length)
    head = m.width // m.heads
    encoder = Gemma2Model(Gemma2Config(
        vocab_size=len(vocabulary), hidden_size=m.width, intermediate_size=2 * m.width, num_hidden_layers=m.layers,
        num_attention_heads=m.heads, num_key_value_heads=m.heads, head_dim=head, query_pre_attn_scalar=head,
        max_position_embeddings=512, pad_token_id=0, eos_token_id=1, bos_token_id=2))
    return AutoTokenizer.from_pretrained(folder / "tokenizer"), encoder


def before(ids: Tensor) -> Tensor:
    """Ids (B, L) to those of the BEFORE places before each, the nearest first: (B, L, BEFORE), 0 outside the text."""
    padded = nn.functional.pad(ids, (BEFORE, 0))
    return torch.stack([padded[:, BEFORE - o: BEFORE - o + ids.shape[1]] for o in range(1, BEFORE + 1)], 2)


class SanaTextTask:
    """Trains the text encoder. See `loop.Task`."""

    def __init__(self, config: TrainConfig) -> None:
        self.config, (self.m, self.d) = config, config.sections()
        self.tokenizer, self.encoder = build_text(self.m, Path(config.out))
        self.size = len(self.tokenizer.get_vocab())
        self.trained = nn.ModuleDict({"text_encoder": self.encoder.train(), "tell": nn.Linear(
            self.m.width, BEFORE * self.size)}).to(config.device)
        self.ids, self.held_out = (text_ids(self.tokenizer, prompts_and_feedback(count, seed), self.m.text_length)
                                   for count, seed in ((self.d.sentences, config.seed), (256, config.seed + 1)))
        self.data = {"sentences": self.d.sentences, "texts": digest(self.ids)}

    def named_parameters(self):
        return self.trained.named_parameters()

    def matrices(self) -> set[str]:
        return set()

    def _told(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (..., V) and right words of what stands before each word; padding tells nothing."""
        ids = ids[:, : int((ids != 0).sum(1).max())].to(self.config.device)
        with autocast(self.config):
            told, mask = states(self.encoder, ids)
            logits = self.trained["tell"](told[mask])
        return logits.float().view(-1, self.size), before(ids)[mask].flatten()

    def loss(self, step: int, generator: torch.Generator) -> Tensor:
        pick = torch.randint(len(self.ids), (self.config.batch,), generator=generator)
        return nn.functional.cross_entropy(*self._told(self.ids[pick]))

    def sample(self, file: Path, step: int) -> dict[str, float]:
        """The share of the words before those of held-out texts that are told; there is nothing to look at."""
        logits, words = self._told(self.held_out)
        return {"before": float((logits.argmax(1) == words)[words != 0].float().mean())}

    def export(self, folder: Path, provenance: dict) -> None:
        """The encoder in fp32, and its tokenizer."""
        self.encoder.save_pretrained(folder / "text_encoder")
        shutil.copytree(Path(self.config.out) / "tokenizer", folder / "tokenizer")
        forget_places(folder)
        write_provenance(folder, provenance)
