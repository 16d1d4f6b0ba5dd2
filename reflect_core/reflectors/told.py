"""A language model's reply made into a reflection: one line, bounded, without what models put around an answer.

The official code hands GPT-4o's reply to FLUX as it is, with its header and bullets, which training never had, and a
`None` where nothing was wrong (ReflectionFlow notes, 5).
"""

from __future__ import annotations

import re

from ..text import bounded

VERBS = ("add", "remove", "replace", "reposition", "move", "adjust", "change", "make", "turn", "put", "place", "swap",
         "delete", "draw", "enlarge", "shrink", "recolor", "recolour", "separate", "rotate", "set")
_BULLET = re.compile(r"^\s*(?:[-*\u2022\u2013]+|\(?\d{1,2}[.):]|\(?[a-h][.)])\s+")
_HEADER = re.compile(r"^\s*(?:#+.*|\**[\w /&-]{1,40}\**:\**|\*\*[^*]+\*\*|\d{1,2}[.)]\s*\**[\w /&-]{1,40}\**:\**)\s*$")
_LABEL = re.compile(r"^\s*\**(?:reflection|feedback|edits?|instructions?|answer|output)\**\s*:\s*\**\s*", re.IGNORECASE)
_NOTHING = re.compile(r"^\W*(?:none|n/?a|nothing|no (?:changes?|edits?|errors?|issues?|problems?|corrections?)\b.*|"
                      r"(?:the|this) (?:picture|image) (?:is (?:already )?(?:correct|right|fine|perfect)|matches)\b.*|"
                      r"nothing (?:is wrong|to (?:change|correct|say))\b.*)\W*$", re.IGNORECASE)


def lines(reply: str) -> list[str]:
    """The reply's statements, one each: without headers, bullets, numbers, quotes and what says that there is none."""
    found = []
    for line in reply.splitlines():
        if _HEADER.match(line):
            continue
        line = _LABEL.sub("", _BULLET.sub("", line)).replace("**", "").replace("`", "").strip().strip("\"'\u201c\u201d")
        if line.strip() and not _NOTHING.match(line):
            found.append(" ".join(line.split()))
    return list(dict.fromkeys(found))


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
    chosen = [bounded(line, most // max(1, min(limit, len(doable or said)))).rstrip(" .;") for line in
              (doable or said)[:limit]]
    return "; ".join(chosen)
