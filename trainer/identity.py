"""Checksums that tell models and data apart: in the names of banks, in checkpoints, in provenance.

Settings alone do not tell what a source gives, for the code, the grammar and the tokenizers behind them change. So
the first few things that come out are part of the checksum.
"""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

PROBE = 64
"""Things of a source that are looked at: all tasks of the shapes world are among them."""


def digest(*things: np.ndarray | Tensor | Any) -> str:
    """Of arrays, tensors (on the CPU) and JSON."""
    value = hashlib.sha256()
    for thing in things:
        if isinstance(thing, Tensor):
            thing = thing.numpy()
        if isinstance(thing, np.ndarray):
            value.update(f"{thing.dtype} {thing.shape}".encode())
            value.update(np.ascontiguousarray(thing))
        else:
            value.update(json.dumps(thing, sort_keys=True).encode())
    return value.hexdigest()[:16]


def vocabulary(*tokenizers: Any) -> str:
    """Of every token and its number."""
    return digest(*(sorted(tokenizer.get_vocab().items()) for tokenizer in tokenizers))


def fingerprint(*modules: nn.Module) -> str:
    """Of every parameter, in the dtype that it has. About a second for a gigabyte."""
    value = 0
    for module in modules:
        for parameter in module.parameters():
            raw = parameter.detach().cpu().contiguous().flatten().view(torch.uint8)
            value = zlib.crc32(raw.numpy(), zlib.crc32(str(tuple(parameter.shape)).encode(), value))
    return f"{value:08x}"


def of_autoencoder(vae: nn.Module) -> list:
    """What decides the latent tokens of a picture: its weights and the numbers of its config; DC-AE has no shift."""
    return [fingerprint(vae), vae.config.get("shift_factor"), vae.config.scaling_factor]


def of_texts(tokens: Sequence[Tensor], *tokenizers: Any) -> str:
    """What decides the ids of texts: the tokens of the first few, and the whole vocabularies."""
    return digest(*tokens, vocabulary(*tokenizers))
