"""What somebody said of a picture, made into clean statements: without what models and people put around an answer.

The one place that knows bullets, headings, labels, verbs and the many ways to say that nothing is wrong. The judges'
reflections are made of it here, an editor's instructions in `generators/editors/instruction.py`.

The official code hands GPT-4o's reply to FLUX as it is, with its header and bullets, which training never had, and a
`None` where nothing was wrong (ReflectionFlow notes, 5).
"""

from __future__ import annotations

import re
import unicodedata

from ..text import bounded

VERBS = frozenset(
    "add adjust align arrange blur brighten bring center centre change clean clear colour color convert correct crop "
    "cut darken decrease delete detach draw drop emphasize emphasise enhance enlarge ensure erase exchange expand "
    "extend fill fix flip focus get give highlight improve include increase insert join keep let lift lighten lower "
    "make merge mirror move open paint place position put raise recolor recolour redraw reduce refine reformat "
    "relocate remove render reorder repaint replace reposition reshape resize restore rotate scale separate set "
    "shift show shrink simplify soften space split straighten swap switch take tilt transform turn unify use widen "
    "write zoom close correctly clearly slightly".split())
"""First words of a command; adverbs that often stand before one are in, too."""
_COMMAND = re.compile(r"(?:please\s+)?([^\W\d_]+)(?:\s+([^\W\d_]+))?", re.IGNORECASE)
_AFTER_A_NOUN = frozenset("is are was were has have of looks look seems seem should must does do".split())
"""'Color is wrong', 'Position of the cat': such a first word is a thing, and commands nothing."""

_MARK = re.compile(r"^(?:(?:[-*\u2022\u00b7\u2013\u2014>]+|\(?\d{1,2}[.):]|\(?[a-h][.)])\s+|#+\s*)+")
_LABEL = re.compile(r"^(?:prompt following|prompt adherence|aesthetics?|visual quality|overall|reflections?|feedback|"
                    r"suggestions?|corrections?|changes?|edits?|instructions?|answer|output|"
                    r"(?:(?:new|rewritten|refined|final) )?(?:description|prompt))(?:\s*:\s*|$)", re.IGNORECASE)
_TOPIC = re.compile(r"\*\*([\w /&-]{1,40})(?::\*\*|\*\*:)\s*(.+)")
_BOLD = re.compile(r"\*\*[^*]+\*\*")
_SAYS = re.compile(r"\b(?:is|are|was|were|has|have|should|must|needs?)\b", re.IGNORECASE)
_ASKS = re.compile(r"(?:what|which|how|where|why|things?|parts?|errors?|issues?|problems?)\b", re.IGNORECASE)
_QUOTES = ("\"\"", "''", "\u201c\u201d", "\u2018\u2019", "``")

_NOTHING = re.compile(
    r"\W*(?:there (?:is|are) )?(?:(?:none|n/?a|nothing(?: else)?|yes|no)\W*$|"
    r"(?:no (?:further |other |more )?(?:changes?|edits?|errors?|issues?|problems?|corrections?|defects?|flaws?)|"
    r"nothing (?:else )?(?:is |are )?(?:wrong|missing|to (?:change|fix|improve|correct|report|say))|"
    r"(?:the|this) (?:picture|image) (?:is (?:already )?(?:correct|right|fine|perfect)|matches))\b(?P<rest>.*))",
    re.IGNORECASE | re.DOTALL)
_THOUGH = re.compile(r"\b(?:but|except|however|although|though|only|apart from|other than)\b", re.IGNORECASE)
_FLAW = re.compile(r"\b(?:missing|absent|wrong|instead)\b", re.IGNORECASE)

LEAST = 24
"""Characters that an edit needs to be one."""
MOST_FOREIGN = 0.5
"""Share of letters that are not Latin, in what a model for Latin letters is still told."""


def lines(reply: str) -> list[str]:
    """The reply's statements, one each and none twice: without headings, bullets, numbers, labels and quotes, and
    without what says that there is nothing to say. What comes out would come out again."""
    found: dict[str, str] = {}
    for line in reply.splitlines():
        bare = _bare(line)
        if bare and not nothing(bare):
            found.setdefault(bare.casefold(), bare)
    return list(found.values())


def nothing(text: str) -> bool:
    """Whether a statement says that there is nothing to change. 'No issues, but the dog is missing' does not."""
    found = _NOTHING.match(text)
    if found is None or _THOUGH.search(text):
        return False
    clauses = re.split(r"[.!?;:,]\s+", found["rest"] or "")
    return not any(is_command(clause) or index and _FLAW.search(clause) and not nothing(clause)
                   for index, clause in enumerate(map(str.strip, clauses)))


def is_command(text: str) -> bool:
    """Whether a statement says what to do: it begins with one of `VERBS`, used as one."""
    found = _COMMAND.match(text)
    return found is not None and found[1].lower() in VERBS and (found[2] or "").lower() not in _AFTER_A_NOUN


def latin(text: str) -> tuple[str, str]:
    """(the lines of a text that are mostly of Latin letters, what the others say on one line)."""
    kept, left = [], []
    for line in text.splitlines():
        (left if foreign(line) else kept).append(line)
    return "\n".join(kept), bounded("; ".join(left), 300)


def foreign(text: str) -> bool:
    """Whether a text is mostly of letters that are not Latin."""
    letters = [c for c in text if c.isalpha()]
    return sum(not unicodedata.name(c, "").startswith("LATIN") for c in letters) > MOST_FOREIGN * len(letters)


def sentence(reply: str, most: int) -> str:
    """Its first sentence that says something, of `most` characters at most; empty where nothing is wrong."""
    said = (one for line in lines(reply) for one in re.split(r"(?<=[.!?])\s+", line) if not nothing(one))
    return bounded(next(said, ""), most)


def edits(reply: str, limit: int, most: int) -> str:
    """Its first `limit` edits, as one line of `most` characters at most. Where some begin with a verb that says what to
    do, what does not is left out: it is talk about the picture, and nothing that can be done."""
    said = lines(reply)
    chosen: list[str] = []
    for line in ([line for line in said if is_command(line)] or said)[:limit]:
        left = most - sum(len(one) + 2 for one in chosen)
        if left >= LEAST or not chosen:  # a stump is no edit
            chosen.append(bounded(line, left).rstrip(" .;"))
    return "; ".join(one for one in chosen if one)


def _bare(line: str) -> str:
    """A line without what stands around its statement; '' if there is none, as in a heading."""
    line = " ".join(line.split())
    heading, bare = line.startswith("#") or _BOLD.fullmatch(line) is not None, ""
    while bare != line:
        bare, line = line, _stripped(line)
    if line.endswith((":", "\uff1a")) or heading and not _is_statement(line):
        return ""
    return line


def _stripped(line: str) -> str:
    """Without a mark, a label, the signs of bold print and of code, and a pair of quotes around all of it."""
    line = _MARK.sub("", line)
    topic = _TOPIC.fullmatch(line)
    if topic and (is_command(topic[2]) or not is_command(topic[1])):
        line = topic[2]
    line = line.replace("**", "").replace("`", "").strip()
    line = _LABEL.sub("", line).strip()
    if len(line) > 1 and line[0] + line[-1] in _QUOTES and line[0] not in line[1:-1]:
        line = line[1:-1].strip()
    return line


def _is_statement(heading: str) -> bool:
    """Whether what is printed as a heading is none: 'Add a dog', 'The dog is missing', but not 'What is wrong'."""
    words = heading.split()
    if is_command(heading) and len(words) > 2 and words[1].lower() not in ("and", "or", "&"):
        return True
    return heading.endswith((".", "!")) or _SAYS.search(heading) is not None and not _ASKS.match(heading)
