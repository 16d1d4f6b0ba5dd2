"""Which prompts training must never draw: the rule that keeps it away from what is evaluated.

A task with few meanings ('a circle', 'two stars') cannot hold a meaning back, so there a sentence is
held out; for `color_attr` and `compose`, which have hundreds of meanings, every sentence of a
held-out meaning is. Whether a prompt is held out follows from its hash.
"""

from __future__ import annotations

import hashlib

from .prompt import parse

HELD_OUT_SHARE = 6
"""One in this many sentences, or meanings, is held out. One in eight would leave `single_object`,
which has 456 sentences, with fewer than sixty."""
BY_MEANING = ("color_attr", "compose")
"""Tasks whose prompts are held out by what they ask for; the others by their sentence."""


def is_held_out(task: str, prompt: str) -> bool:
    """Whether training must never draw this prompt for this task.

    Raises `UserError` for a prompt that is not of the grammar, when the task is held out by meaning.
    """
    key = parse(prompt).canonical() if task in BY_MEANING else " ".join(prompt.lower().split())
    digest = hashlib.sha256(f"{task}\n{key}".encode()).digest()
    return int.from_bytes(digest[:8], "big") % HELD_OUT_SHARE == 0
