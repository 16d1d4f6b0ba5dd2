"""A reflection as an instruction to an editor: pure text, no model.

Reflections come in many shapes: commands ('add a red circle'), numbered lists under a heading, sentences that say what
is wrong ('the circle is blue'). `reflectors/told.py` makes bare statements of them. An editor was taught short
commands: what to change, and that the rest stays. Makers of both families advise not to describe the whole picture,
which the editor sees; so the prompt is left out, unless the reflection says nothing (`target='silent'`) or it is asked
for (`'always'`).

Nothing is rewritten that might change its meaning: a command stays as it is, two plain patterns ('X is missing',
'there is no X') become 'Add X', a wish ('the cat should be left of the dog') stays a wish, and any other statement is
put behind 'Correct this:'. Words of other scripts are left alone.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from ...reflectors.told import is_command, lines, nothing

TARGETS = ("silent", "always")
KEEP = "Keep everything else unchanged."

_MISSING = re.compile(r"^(?P<what>.+?) (?:is|are) (?:missing|absent|not (?:there|visible|present|shown))"
                      r"(?: (?:from|in) (?:the|this) (?:picture|image|scene))?$", re.IGNORECASE)
_NONE_OF = re.compile(r"^there (?:is|are) no (?P<what>.+?)(?: (?:visible|present|shown))?"
                      r"(?: in (?:the|this) (?:picture|image|scene))?$", re.IGNORECASE)
_WISH = re.compile(r"\b(?:should|must|ought|needs?|has to|have to|instead of being)\b", re.IGNORECASE)
_CLAUSE = re.compile(r"[,;:]|\b(?:is|are|was|were|has|have|but|while|only|although|because|which|who|that)\b",
                     re.IGNORECASE)
"""What is no plain name of a thing: such a statement is left whole."""
_SMALL = frozenset("the a an there this these those that it its they their only one two three four five six some "
                   "no not both each every all another".split())
"""First words that need no capital within a sentence; others may be names."""


@dataclass(frozen=True)
class Instruction:
    """What an editor is told."""

    edits: str
    """What to change, and that the rest stays. Empty where there was nothing to say."""
    target: str = ""
    """What the picture should show then."""
    left_out: tuple[str, ...] = ()
    """Edits for which there was no room."""

    @property
    def text(self) -> str:
        return " ".join(part for part in (self.edits, self.target) if part)

    @property
    def short(self) -> str:
        """For an encoder of few words: the edits alone, where there are any."""
        return self.edits or self.target


def instruction(prompt: str, feedback: str, target: str = "silent", keep: bool = True, max_words: int = 120
                ) -> Instruction:
    """The instruction for a picture that should show `prompt` and on which a reflector said `feedback`.

    Args:
        target: 'silent' names the prompt only where the feedback has no edits in it, 'always' behind them, too.
        keep: say that everything else stays as it is.
        max_words: of all edits together; the first ones stand, since reflectors name the worst flaw first. The prompt
            is not counted and never cut.
    """
    told, left = _within(edits_of(feedback), max_words)
    shows = " ".join(prompt.split())
    if not told:
        return Instruction("", f"Change only what is needed for the picture to show this: {shows}" if shows else "")
    edits = " ".join([*told, KEEP] if keep else told)
    after = f"The picture should then show this: {shows}" if target == "always" and shows else ""
    return Instruction(edits, after, tuple(left))


def edits_of(feedback: str) -> list[str]:
    """The edits that a reflection asks for, each a sentence or a few, in its order and none twice."""
    edits: dict[str, str] = {}
    for line in lines(feedback):
        said = [as_edit(sentence) for sentence in re.split(r"(?<=[.!?])\s+", line)]
        if whole := " ".join(edit for edit in said if edit):
            edits.setdefault(whole.casefold(), whole)
    return list(edits.values())


def as_edit(sentence: str) -> str:
    """One sentence as something that can be done; empty if it says that there is nothing to do."""
    sentence = " ".join(sentence.split()).rstrip(" ,;:")
    if not any(c.isalnum() for c in sentence) or nothing(sentence):
        return ""
    sentence = re.sub(r"^please\s+", "", sentence, flags=re.IGNORECASE)
    core, end = re.fullmatch(r"(.*?)([.!?]*)", sentence, re.DOTALL).groups()
    end = end or ("." if core[-1:].isascii() else "")
    first = re.match(r"[^\W\d_]+", core)
    if first and first[0].isascii() and not is_command(core) and not _WISH.search(core):
        found = _MISSING.match(core) or _NONE_OF.match(core)
        if found and not _CLAUSE.search(found["what"]):
            return f"Add {_lowered(found['what'])}."
        return f"Correct this: {_lowered(core)}{end}"
    return core[:1].upper() + core[1:] + end


def _lowered(text: str) -> str:
    first = text.split(maxsplit=1)[0] if text.split() else ""
    return text[:1].lower() + text[1:] if first.lower() in _SMALL else text


def _within(edits: list[str], max_words: int) -> tuple[list[str], list[str]]:
    """(the first edits that fit, the others); of a first one that is too long, its beginning."""
    told: list[str] = []
    words = 0
    for number, edit in enumerate(edits):
        length = len(edit.split())
        if words + length > max_words:
            if told:
                return told, edits[number:]
            cut = edit.split()
            return [" ".join(cut[:max_words])], [" ".join(cut[max_words:]), *edits[1:]]
        told.append(edit)
        words += length
    return told, []
