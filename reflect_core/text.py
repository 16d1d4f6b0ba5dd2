"""Texts from outside, made fit to be shown, and to be handed to another model."""

from __future__ import annotations

import re
import unicodedata


def readable(text: str) -> str:
    """Text that can be printed anywhere: what language models hand over may hold halves of characters
    and commands to a terminal. White space becomes a space each, the rest of that a replacement mark."""
    return "".join(" " if c.isspace() else "\ufffd" if unicodedata.category(c) in ("Cc", "Cs") else c for c in text)


def bounded(text: str, most: int) -> str:
    """A language model's words on one line: no control characters, no invisible ones that turn or hide text, runs of
    spaces as one, and `most` characters at most, cut behind a sentence or a word."""
    shown = "".join(" " if c.isspace() else c for c in text if c.isspace() or unicodedata.category(c) not in _HIDDEN)
    shown = " ".join(shown.split())
    if len(shown) <= most:
        return shown
    cut = shown[:most]
    sentence = re.match(r".*[.!?](?= )", shown[:most + 1])
    if sentence and len(sentence[0]) > most // 2:
        return sentence[0]
    return (cut if shown[most] == " " else cut.rpartition(" ")[0] or cut).rstrip(" ,;:-")


_HIDDEN = ("Cc", "Cs", "Cf", "Co", "Cn")
