"""Where everything of a run's tree goes: rounds from left to right, a branch in each row.

One layout serves the PNG and the page, so both tell the same story. A first round of many pictures
is wrapped into a block whose last column holds the parents, each beside its branch; a run in which
nothing comes from anything else (best-of-n) is a plain grid. Units are pixels at scale 1.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count

from PIL import ImageFont

from ..search.run import Candidate, Run
from ..text import readable
from .audit import audit_words
from .words import role

THUMB = 128
"""Longer side of a thumbnail."""
LANE = 44
"""Between two columns, where lines turn."""
GUTTER = 20
"""Above a thumbnail, where lines pass that lead further than to the next column."""
SCORE_HEIGHT = 22
LINE_HEIGHT = 15
TEXT_SIZE = 12
TEXT_SPILL = 24
"""How far a text may reach into the lane; lines between rows pass behind it."""
TEXT_WIDTH = THUMB + TEXT_SPILL
MOST_LINES = 4
MARGIN = 28
HEADING = 26
GRID_ASPECT = 1.5
"""Columns to rows of a plain grid."""
BLOCK_ROWS = 4
"""A first round is not stacked higher than this, unless there are more branches."""


@dataclass(frozen=True)
class Node:
    """One candidate. (x, y) is its thumbnail's top left corner."""

    candidate: Candidate
    x: float
    y: float
    text: tuple[str, ...]
    """The reflection that it was drawn from, or what the judge said of it, in short lines."""
    told: bool
    """Whether the text is a reflection."""
    role: str = ""
    """'best' or 'chosen' for the run's answer, else empty."""
    audit: str = ""
    """A line of its own above the text: what a second judge said, which decided nothing."""

    @property
    def chosen(self) -> bool:
        return bool(self.role)

    @property
    def score_text(self) -> str:
        """Below the thumbnail's left corner. By the first verdict: that decides the answer."""
        return f"{self.candidate.score:.2f}" if self.candidate.judged else "not judged"

    @property
    def label(self) -> str:
        """Below its right corner. An accepted answer is marked as such already."""
        marked = self.chosen and not self.candidate.accepted
        return f"{self.role}, {self.candidate.id}" if marked else f"{self.candidate.id}"

    @property
    def thick(self) -> int:
        """Pixels of the frame around the thumbnail."""
        return 4 if self.chosen else 2 if self.candidate.accepted else 1


@dataclass(frozen=True)
class Link:
    """From a parent to its child: corners of a line of horizontal and vertical pieces."""

    parent: int
    child: int
    points: tuple[tuple[float, float], ...]
    chosen: bool
    """Whether it is on the way to the chosen candidate."""


@dataclass(frozen=True)
class Layout:
    width: float
    height: float
    thumb: tuple[int, int]
    """Width and height of every thumbnail."""
    nodes: tuple[Node, ...]
    links: tuple[Link, ...]
    headings: tuple[tuple[float, str], ...]
    """(x, words) above the columns in which a round begins."""


def font(size: float) -> ImageFont.FreeTypeFont:
    """Pillow's own font: there on every system."""
    return ImageFont.load_default(size)


def lay_out(run: Run, chosen: int | None = None, first_round: int = 0) -> Layout:
    """The tree of a run, with the way to the candidate `chosen` marked.

    `first_round` is the number of the first round: 0 where the pictures from noise are not counted, as on the
    command line, 1 where they are, as in a graph of nodes.
    """
    thumb = _thumb_size(run)
    places = _grid(run.candidates) if not _is_tree(run) else _columns(run)
    texts = {c.id: _text(run, c) for c in run.candidates}
    audits = {c.id: audit_words(c.verdict) for c in run.candidates}
    line = {c.id for c in run.lineage(chosen)} if chosen is not None else set()

    rows = 1 + max((row for _, row in places.values()), default=0)
    columns = 1 + max((column for column, _ in places.values()), default=0)
    # A row is as high as its longest text, so that runs with short reflections stay compact.
    lines = {id: len(texts[id][0]) + bool(audits[id]) for id in texts}
    tallest = [max((lines[id] for id, (_, r) in places.items() if r == row), default=0) for row in range(rows)]
    tops = [HEADING + GUTTER]
    for most in tallest:
        tops.append(tops[-1] + thumb[1] + SCORE_HEIGHT + most * LINE_HEIGHT + GUTTER + 8)
    pitch = max(thumb[0], TEXT_WIDTH - TEXT_SPILL) + LANE
    at = {id: (MARGIN + column * pitch, tops[row]) for id, (column, row) in places.items()}
    nodes = tuple(Node(c, *at[c.id], texts[c.id][0], texts[c.id][1], role(run, c) if c.id == chosen else "",
                       audits[c.id]) for c in run.candidates)
    links = tuple(Link(c.parent, c.id, _route(places[c.parent], places[c.id], at[c.parent], at[c.id], thumb),
                       c.id in line and c.parent in line)
                  for c in run.candidates if c.parent is not None)
    return Layout(2 * MARGIN + columns * pitch - LANE + 12, tops[-1], thumb, nodes,
                  tuple(sorted(links, key=lambda link: link.chosen)), _headings(run, places, at, first_round))


def _thumb_size(run: Run) -> tuple[int, int]:
    width, height = run.request.width, run.request.height
    return max(1, round(THUMB * width / max(width, height))), max(1, round(THUMB * height / max(width, height)))


def _is_tree(run: Run) -> bool:
    return any(c.parent is not None for c in run.candidates)


def _grid(candidates: Sequence[Candidate]) -> dict[int, tuple[int, int]]:
    """(column, row) of each candidate, in reading order."""
    columns = max(math.ceil(math.sqrt(len(candidates) * GRID_ASPECT)), min(len(candidates), 4))
    return {c.id: (i % columns, i // columns) for i, c in enumerate(candidates)}


def _columns(run: Run) -> dict[int, tuple[int, int]]:
    """(column, row) of each candidate of a tree: a block for the first round, then a column a round."""
    first, later = run.in_round(0), [c for c in run.candidates if c.round > 0]
    branches = 1 + max(c.branch for c in later)
    height = max(branches, min(round(math.sqrt(len(first)) + 0.3), BLOCK_ROWS))
    # A run that was cut short, or a policy without a pool, has one picture a branch: no block to fill.
    width = math.ceil(len(first) / height)
    cells = [(column, row) for column in range(width) for row in range(height)]
    places: dict[int, tuple[int, int]] = {}
    for child in later:
        cell = (width - 1, child.branch)
        if child.parent is not None and run.candidate(child.parent).round == 0:
            if child.parent not in places and cell not in places.values():
                places[child.parent] = cell
    free = iter(cell for cell in cells if cell not in set(places.values()))
    for candidate in first:
        if candidate.id not in places:
            places[candidate.id] = next(free)
    for child in later:
        # A policy may draw several for one branch of a round: the next free row, then.
        column, taken = width - 1 + child.round, set(places.values())
        places[child.id] = next((column, row) for row in count(child.branch) if (column, row) not in taken)
    return places


def _route(parent: tuple[int, int], child: tuple[int, int], start: tuple[float, float], end: tuple[float, float],
           thumb: tuple[int, int]) -> tuple[tuple[float, float], ...]:
    """From the right of the parent to the left of the child, through lanes and gutters, past all others."""
    x0, y0 = start[0] + thumb[0], start[1] + thumb[1] / 2
    x1, y1 = end[0], end[1] + thumb[1] / 2
    if child[0] == parent[0] + 1:
        lane = x0 + TEXT_SPILL + 5
        return ((x0, y0), (x1, y1)) if y0 == y1 else ((x0, y0), (lane, y0), (lane, y1), (x1, y1))
    out, above = x0 + (LANE * 0.3 if y0 == y1 else TEXT_SPILL + 5), end[1] - GUTTER / 2
    back = x1 - LANE * 0.7
    return (x0, y0), (out, y0), (out, above), (back, above), (back, y1), (x1, y1)


def _headings(run: Run, places: dict[int, tuple[int, int]],
              at: dict[int, tuple[float, float]], first_round: int) -> tuple[tuple[float, str], ...]:
    if not run.candidates:
        return ()
    if not _is_tree(run):
        return ((MARGIN, "from noise"),)
    first: dict[int, float] = {}
    for c in run.candidates:
        first[c.round] = min(first.get(c.round, math.inf), at[c.id][0])
    return tuple((x, "from noise" if round + first_round == 0 else f"round {round + first_round}")
                 for round, x in sorted(first.items()))


def _text(run: Run, candidate: Candidate) -> tuple[tuple[str, ...], bool]:
    """What stands below a thumbnail, and whether it is a reflection."""
    told = [pair.feedback.strip() for pair in candidate.request.context if pair.feedback.strip()]
    if told:
        return wrap(told[-1]), True
    if candidate.request.original_prompt is not None:
        return wrap(f"prompt: {candidate.request.prompt}"), False
    return wrap(candidate.verdict.reason if candidate.verdict and not candidate.accepted else "", 3), False


def wrap(text: str, most: int = MOST_LINES, width: float = TEXT_WIDTH, size: float = TEXT_SIZE) -> tuple[str, ...]:
    """Lines of at most `width` pixels, cut with an ellipsis after `most` of them."""
    measure = font(size).getlength
    whole = " ".join(readable(text).split())
    # A letter is a pixel wide at least: what is behind these is never seen, however long the text.
    seen = whole[: most * math.ceil(width)]
    lines: list[str] = []
    rest = seen.split()
    while rest and len(lines) < most:
        line = rest.pop(0)
        if len(line) > 1 and measure(line) > width:
            # A single word that is too long is broken where it must be.
            cut = max(1, bisect_right(range(1, len(line)), width, key=lambda k: measure(line[:k])))  # noqa: B023
            rest.insert(0, line[cut:])
            line = line[:cut]
        while rest and measure(f"{line} {rest[0]}") <= width:
            line = f"{line} {rest.pop(0)}"
        lines.append(line)
    if rest or len(seen) < len(whole):
        while measure(f"{lines[-1]}...") > width and lines[-1]:
            lines[-1] = lines[-1][:-1]
        lines[-1] += "..."
    return tuple(lines)
