"""A reflector whose words a person, or another program, gives: in place of a judge's or on top of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..text import readable
from ..types import Picture, Reflector, UserError, Verdict

SAY = ("replace", "add", "line by line")
MOST_WORDS = 2000
"""Characters that are told of a picture."""


class SpokenReflector:
    """`words` of all pictures alike; where there are none, what `inner` says.

    say: 'replace': the words alone. 'add': what `inner` says, then the words. 'line by line': the first line
    after the first round, the second after the second, and `inner` where there is no line; `round` is the
    number of the round that was judged, from 1 on. UserError for another `say`, or too many words.
    """

    def __init__(self, inner: Reflector, words: str, say: str = "replace", round: int = 1) -> None:
        if say not in SAY:
            raise UserError(f"say is {say!r}; expected one of {', '.join(SAY)}")
        if say == "line by line":
            words = "\n".join(words.splitlines()[round - 1:round])
        self.inner, self.add = inner, say == "add"
        self.words = " ".join(readable(words).split())
        if len(self.words) > MOST_WORDS:
            raise UserError(f"the words are {len(self.words)} characters long; expected {MOST_WORDS} at most")

    def __getattr__(self, name: str) -> Any:
        """What the inner one spent, asked and noted is what this one did, see `search.actors`."""
        if name in ("spent", "asked", "notes"):
            return getattr(self.inner, name)
        raise AttributeError(name)

    def reflect(self, prompt: str, pictures: Sequence[Picture], verdicts: Sequence[Verdict]) -> list[str]:
        if self.words and not self.add:
            return [self.words] * len(pictures)
        told = self.inner.reflect(prompt, pictures, verdicts)
        return [", ".join(text for text in (one, self.words) if text) for one in told]
