"""The small text encoders: transformers' own T5 and CLIP classes, trained on sentences alone.

FLUX takes text encoders that have read much, and leaves them as they are. What it needs of T5 is that the state of a
word says which words stand around it, for FLUX gives texts no places of their own: a base whose T5 was trained with
it, from nothing, learned which words there are and neither what belongs together nor what is left of what (after half
a million pictures 'red' made no difference to the 'circle' behind it). So that is what is trained here: from a word's
state a linear layer tells the words in the places around it, and from CLIP's pooled vector the words of the sentence.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import AutoTokenizer, CLIPTextConfig, CLIPTextModel, T5Config, T5EncoderModel

from reflect_core.generators.flux_corrector.folder import load_text_encoder, save_text_encoder
from reflect_core.model_files import read_json
from reflect_core.shapes.prompt import WORDS
from reflect_core.shapes.repair import REFLECTION_WORDS
from reflect_core.shapes.tokenizer import write_word_tokenizer
from reflect_core.types import UserError

from ..config import TrainConfig
from ..identity import digest
from ..settings import TextModel
from ..shapes import sentences
from .common import CLIP_LENGTH, autocast, forget_places, token_ids, write_provenance

AROUND = (*range(-6, 0), *range(1, 9))
"""Places, from a word's own, whose words its state must tell: a phrase before it, a relation and a phrase behind."""
SENTENCE = 24
"""Words of a sentence that CLIP's pooled vector must tell."""
NEIGHBOURS = (-1, -2, -3, 1, 2, 3, 4, None)
"""Where each of T5's heads looks at first; the last one everywhere."""
HEADS = len(NEIGHBOURS)
FOCUS = 5.0
"""How much more, in logits: four fifths of the weight among forty tokens. Without it, training takes twice as
long and more."""
BUCKETS = 16
"""Of distances in one direction, for T5's attention; the first half of them are exact."""
_ENCODERS, _TOKENIZERS = ("text_encoder", "text_encoder_2"), ("tokenizer", "tokenizer_2")


def load_text(folder: Path) -> dict:
    """Encoders, frozen, and tokenizers from the result folder of a run, by diffusers' names.

    Raises `UserError` for anything else, and for encoders of another version of the shapes world's language.
    """
    parts = {}
    for name in _TOKENIZERS:
        read_json(folder / name / "tokenizer.json", "expected the result folder of a text run; train that first")
        parts[name] = AutoTokenizer.from_pretrained(folder / name, local_files_only=True)
        missing = sorted(set(_words()) - set(parts[name].get_vocab()))
        if missing:
            raise UserError(f"{folder / name}: does not know {', '.join(missing[:5])}; expected every word of prompts "
                            "and reflections. Train the text encoders again")
    return parts | {name: load_text_encoder(folder, name) for name in _ENCODERS}


def _words() -> list[str]:
    return sorted(WORDS | set(REFLECTION_WORDS))


def build_text(m: TextModel, folder: Path) -> dict:
    """Encoders before training, and tokenizers, which are written to `folder`."""
    clip_words = write_word_tokenizer(folder / "tokenizer", _words(), "clip", CLIP_LENGTH)
    t5_words = write_word_tokenizer(folder / "tokenizer_2", _words(), "t5", m.text_length)
    t5 = T5EncoderModel(T5Config(
        vocab_size=len(t5_words), d_model=m.width, d_kv=m.width // HEADS, d_ff=2 * m.width, num_layers=m.layers,
        num_heads=HEADS, feed_forward_proj="gated-gelu", dropout_rate=0.0, pad_token_id=0, eos_token_id=1,
        relative_attention_num_buckets=2 * BUCKETS, relative_attention_max_distance=64))
    table = t5.encoder.block[0].layer[0].SelfAttention.relative_attention_bias.weight  # (2 * BUCKETS, HEADS)
    with torch.no_grad():
        for head, place in enumerate(NEIGHBOURS):
            if place is not None:
                table[-place if place < 0 else BUCKETS + place, head] += FOCUS
    return {
        "text_encoder": CLIPTextModel(CLIPTextConfig(
            vocab_size=len(clip_words), hidden_size=m.width, intermediate_size=2 * m.width, projection_dim=m.width,
            num_hidden_layers=m.layers, num_attention_heads=HEADS, max_position_embeddings=CLIP_LENGTH,
            bos_token_id=2, eos_token_id=3, pad_token_id=0)),
        "text_encoder_2": t5,
        "tokenizer": AutoTokenizer.from_pretrained(folder / "tokenizer"),
        "tokenizer_2": AutoTokenizer.from_pretrained(folder / "tokenizer_2")}


def pooled(clip: CLIPTextModel, ids: Tensor) -> Tensor:
    """CLIP's pooled vectors (B, P) of ids (B, 77).

    Nothing else of CLIP is used, and its attention is causal: what stands behind the last end token has no say, so the
    shortest common length gives the same vector.
    """
    return clip(ids[:, : int((ids != 0).sum(1).max())].to(clip.device)).pooler_output


def around(ids: Tensor) -> Tensor:
    """Ids (B, L) to those of the places AROUND each: (B, L, len(AROUND)), 0 outside of the text."""
    before, behind = -min(AROUND), max(AROUND)
    padded = nn.functional.pad(ids, (before, behind))
    return torch.stack([padded[:, before + o: before + o + ids.shape[1]] for o in AROUND], 2)


class TextTask:
    """Trains both text encoders. See `loop.Task`."""

    def __init__(self, config: TrainConfig) -> None:
        self.config, (self.m, self.d) = config, config.sections()
        self.parts = build_text(self.m, Path(config.out))
        self.t5, self.clip = self.parts["text_encoder_2"], self.parts["text_encoder"]
        self.sizes = [len(self.parts[name].get_vocab()) for name in ("tokenizer", "tokenizer_2")]
        self.trained = nn.ModuleDict({
            "text_encoder": self.clip, "text_encoder_2": self.t5,
            "tell_sentence": nn.Linear(self.m.width, SENTENCE * self.sizes[0]),
            "tell_around": nn.Linear(self.m.width, len(AROUND) * self.sizes[1])}).to(config.device)
        self.ids = self._ids(self.d.sentences, config.seed)
        self.held_out = self._ids(256, config.seed + 1)
        self.data = {"sentences": self.d.sentences, "texts": digest(*self.ids)}

    def _ids(self, count: int, seed: int) -> tuple[Tensor, Tensor]:
        """CLIP's (S, 77) and T5's (S, L): of every other text T5 hears a reflection too, which CLIP never does."""
        prompts, told = sentences(count, seed)
        both = [with_words if k % 2 else prompt for k, (prompt, with_words) in enumerate(zip(prompts, told))]
        return (token_ids(self.parts["tokenizer"], prompts, CLIP_LENGTH),
                token_ids(self.parts["tokenizer_2"], both, self.m.text_length))

    def named_parameters(self):
        return self.trained.named_parameters()

    def matrices(self) -> set[str]:
        return set()

    def _told(self, clip_ids: Tensor, t5_ids: Tensor) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
        """Logits (..., V) and right words, of sentences and of what is around each word."""
        device = self.config.device
        words = t5_ids.flatten().nonzero().squeeze(1)  # the rest is padding, which is read but tells nothing
        with autocast(self.config):
            sentence = self.trained["tell_sentence"](pooled(self.clip, clip_ids))
            states = self.t5(t5_ids.to(device)).last_hidden_state.flatten(0, 1)
            near = self.trained["tell_around"](states[words.to(device)])
        return ((sentence.float().view(-1, self.sizes[0]), clip_ids[:, 1: 1 + SENTENCE].flatten().to(device)),
                (near.float().view(-1, self.sizes[1]), around(t5_ids).flatten(0, 1)[words].flatten().to(device)))

    def loss(self, step: int, generator: torch.Generator) -> Tensor:
        pick = torch.randint(len(self.ids[0]), (self.config.batch,), generator=generator)
        sentence, near = self._told(self.ids[0][pick], self.ids[1][pick])
        return nn.functional.cross_entropy(*sentence) + nn.functional.cross_entropy(*near)

    def sample(self, file: Path, step: int) -> dict[str, float]:
        """Shares of the words of held-out texts that are told; there is nothing to look at."""
        (sentence, words), (near, neighbours) = self._told(*self.held_out)
        there = words != 0
        return {"sentence": float((sentence.argmax(1) == words)[there].float().mean()),
                "around": float((near.argmax(1) == neighbours).float().mean())}

    def export(self, folder: Path, provenance: dict) -> None:
        """The encoders in fp32, and their tokenizers."""
        for name in _ENCODERS:
            save_text_encoder(folder, name, self.parts[name])
        for name in _TOKENIZERS:
            shutil.copytree(Path(self.config.out) / name, folder / name)
        forget_places(folder)
        write_provenance(folder, provenance)
