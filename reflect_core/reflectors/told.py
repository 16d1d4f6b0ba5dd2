"""A language model's reply made into a reflection: one line, bounded, without what models put around an answer.

The official code hands GPT-4o's reply to FLUX as it is, with its header and bullets, which training never had, and a
`None` where nothing was wrong (ReflectionFlow notes, 5).
"""

from __future__ import annotations

import re
import unicodedata

from ..text import bounded

VERBS = ("add", "remove", "replace", "reposition", "move", "adjust", "change", "make", "turn", "put", "place", "swap",
         "delete", "draw", "enlarge", "shrink", "recolor", "recolour", "separate", "rotate", "set")
_BULLET = re.compile(r"^\s*(?:[-*\u2022\u2013]+|\(?\d{1,2}[.):]|\(?[a-h][.)])\s+")
_HEADER = re.compile(r"^\s*(?:#+.*|\**[\w /&-]{1,40}\**:\**|\*\*[^*]+\*\*|\d{1,2}[.)]\s*\**[\w /&-]{1,40}\**:\**)\s*$")
_LABEL = re.compile(r"^\s*\**(?:reflection|feedback|edits?|instructions?|answer|output|"
                    r"(?:(?:new|rewritten|refined|final) )?(?:description|prompt))\**\s*:\s*\**\s*", re.IGNORECASE)
_NOTHING = re.compile(r"^\W*(?:none|n/?a|nothing|yes|no|"
                      r"no (?:changes?|edits?|errors?|issues?|problems?|corrections?)\b.*|"
                      r"(?:the|this) (?:picture|image) (?:is (?:already )?(?:correct|right|fine|perfect)|matches)\b.*|"
                      r"nothing (?:is wrong|to (?:change|correct|say))\b.*)\W*$", re.IGNORECASE)
_THOUGH = re.compile(r"\b(?:but|except|however|although|though|only|apart from|other than)\b", re.IGNORECASE)
_QUOTES = ("\"\"", "''", "\u201c\u201d", "\u2018\u2019", "``")
LEAST = 24
"""Characters that an edit needs to be one."""
MOST_FOREIGN = 0.5
"""Share of letters that are not Latin: the models that are told read English."""


def lines(reply: str) -> list[str]:
    """The reply's statements, one each: without headers, bullets, numbers, quotes and what says that there is none."""
    found = []
    for line in reply.splitlines():
        if _HEADER.match(line):
            continue
        line = _unquoted(_LABEL.sub("", _BULLET.sub("", line)).replace("**", "").replace("`", "").strip())
        if line and not (_NOTHING.match(line) and not _THOUGH.search(line)):
            found.append(" ".join(line.split()))
    return list(dict.fromkeys(found))


def foreign(text: str) -> bool:
    """Whether a text is mostly of letters that are not Latin."""
    letters = [c for c in text if c.isalpha()]
    return sum(not unicodedata.name(c, "").startswith("LATIN") for c in letters) > MOST_FOREIGN * len(letters)


def _unquoted(line: str) -> str:
    """Without a pair of quotes around all of it."""
    if len(line) > 1 and line[0] + line[-1] in _QUOTES and line[0] not in line[1:-1]:
        line = line[1:-1].strip()
    return line


def sentence(reply: str, most: int) -> str:
    """Its first sentence, of `most` characters at most; empty where it says that nothing is wrong."""
    said = lines(reply)
    if not said:
        return ""
    first = re.match(r".+?[.!?](?=\s+\S)", said[0])
    return bounded(first[0] if first else said[0], most)


def edits(reply: str, limit: int, most: int) -> str:
    """Its first `limit` edits, as one line of `most` characters at most. Where some begin with a verb that says what to
    do, what does not is left out: it is talk about the picture, and nothing that can be done."""
    said = lines(reply)
    doable = [line for line in said if line.split()[0].strip(",.:").lower() in VERBS]
    chosen: list[str] = []
    for line in (doable or said)[:limit]:
        left = most - sum(len(one) + 2 for one in chosen)
        if left >= LEAST or not chosen:  # a stump is no edit
            chosen.append(bounded(line, left).rstrip(" .;"))
    return "; ".join(one for one in chosen if one)
