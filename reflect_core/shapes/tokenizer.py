"""A word-level tokenizer over a small vocabulary, in files that transformers loads by itself.

The real models' tokenizers have tens of thousands of pieces, which a small text encoder has no use
for. This one has a token for each word of the shapes world and stands in their place: `tokenizer/`
(kind "clip") and `tokenizer_2/` (kind "t5") of a model folder, or Gemma's `tokenizer/` (kind "gemma"). It is an
ordinary `PreTrainedTokenizerFast`, so nothing in the library knows the difference.

Text is lower-cased; words are runs without white space and without `, . : ; ! ? ( ) "`, each of which
is a token of its own, as is the marker `[reflexion]`. A word that is not in the vocabulary is `<unk>`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path

PUNCTUATION = (",", ".", ":", ";", "!", "?", "(", ")", '"')
MARKER = "[reflexion]"

_MARKS = re.escape("".join(PUNCTUATION))
PATTERN = rf"\[reflexion\]|[^\s\[\]{_MARKS}]+|[\[\]{_MARKS}]"

SPECIALS = {
    # No end token may have id 2: transformers takes that for an old CLIP, which pools at the largest id.
    "clip": ("<pad>", "<unk>", "<|startoftext|>", "<|endoftext|>"),
    "t5": ("<pad>", "</s>", "<unk>"),
    "gemma": ("<pad>", "<eos>", "<bos>", "<unk>"),
}


def split_words(text: str) -> list[str]:
    """The tokens of a text, as the tokenizer sees them, whether in its vocabulary or not."""
    return re.findall(PATTERN, text.lower())


def write_word_tokenizer(folder: str | Path, words: Iterable[str], kind: str,
                         max_length: int = 77) -> dict[str, int]:
    """Write `tokenizer.json` and `tokenizer_config.json` into a folder, which is made if need be.

    Args:
        words: words or whole sentences; every token in them enters the vocabulary, in order of first
            appearance. Punctuation and the reflection marker are always in.
        kind: "clip" puts `<|startoftext|>` before and `<|endoftext|>` after a text; "t5" puts `</s>` after;
            "gemma" puts `<bos>` before.
        max_length: tokens to which FLUX pads the "clip" kind; the "t5" kind's length comes from the
            caller of the model.

    Returns: the vocabulary, token to id. A text encoder over it needs `vocab_size` = its length and,
    for CLIP, `bos_token_id` 2, `eos_token_id` 3 and `pad_token_id` 0.
    """
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors

    if kind not in SPECIALS:
        raise ValueError(f"kind is {kind!r}; expected one of {', '.join(SPECIALS)}")
    vocab: dict[str, int] = {}
    for token in (*SPECIALS[kind], MARKER, *PUNCTUATION, *(t for w in words for t in split_words(w))):
        vocab.setdefault(token, len(vocab))

    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(PATTERN), behavior="removed", invert=True)
    special = {"pad_token": "<pad>", "unk_token": "<unk>"}
    if kind == "clip":
        special |= {"bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>"}
        template = "<|startoftext|> $A <|endoftext|>"
    elif kind == "gemma":
        special |= {"bos_token": "<bos>", "eos_token": "<eos>"}
        template = "<bos> $A"
    else:
        special |= {"eos_token": "</s>"}
        template = "$A </s>"
    around = [t for t in template.split() if t != "$A"]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=template, special_tokens=[(t, vocab[t]) for t in around])

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    # Written by hand: save_pretrained of transformers 5 names a class that transformers 4 lacks.
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": max_length,
              "model_input_names": ["input_ids", "attention_mask"], "clean_up_tokenization_spaces": False,
              **special}
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")
    return vocab
