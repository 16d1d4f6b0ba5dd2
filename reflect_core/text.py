"""Texts from outside, made fit to be shown."""

from __future__ import annotations

import unicodedata


def readable(text: str) -> str:
    """Text that can be printed anywhere: what language models hand over may hold halves of characters
    and commands to a terminal. White space becomes a space each, the rest of that a replacement mark."""
    return "".join(" " if c.isspace() else "\ufffd" if unicodedata.category(c) in ("Cc", "Cs") else c for c in text)
