"""The tree of a run as a picture: every candidate, what came from what, and why."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image, ImageDraw

from ..search.header import Header
from ..search.run import Candidate, Run
from .audit import compare, comparison_words
from .layout import LINE_HEIGHT, MARGIN, TEXT_SIZE, Layout, Link, Node, font, lay_out, wrap
from .words import outcome, setting, spent

PAPER, INK, GREY, RULE = (252, 252, 250), (32, 34, 38), (120, 124, 132), (206, 209, 214)
BLUE, GREEN = (36, 84, 190), (22, 136, 70)
MOST_PIXELS = 24_000_000
"""A tree that would be larger at twice the size is drawn at its plain size."""
TITLE_SIZE, LEAST_WIDTH = 22, 560


def tree_picture(run: Run, *, header: Header | None = None, chosen: Candidate | None = None,
                 scale: int | None = None, first_round: int = 0) -> Image.Image:
    """The tree as an RGB picture.

    `header` adds model and policy to the caption, `chosen` is the policy's answer (None: the run's best).
    `scale` 2 is for sharp text on fine screens; None chooses 2, or 1 for very large trees. `first_round` is the
    number of the first round, see `lay_out`.
    """
    chosen = chosen or run.best()
    layout = lay_out(run, None if chosen is None else chosen.id, first_round)
    width = max(layout.width, LEAST_WIDTH)
    title = wrap(run.prompt, most=3, width=width - 2 * MARGIN, size=TITLE_SIZE)
    audited = compare(run, chosen)
    under = [line for text in (outcome(run, chosen), *([] if audited is None else [comparison_words(audited)]),
                               f"{spent(run)}; {setting(run, header)}")
             for line in wrap(text, most=2 if audited is None else 4, width=width - 2 * MARGIN, size=14)]
    top = MARGIN + len(title) * 30 + len(under) * 20 + 14
    height = top + layout.height
    scale = scale or (2 if 4 * width * height <= MOST_PIXELS else 1)
    pen = _Pen(round(width), round(height), scale)
    for i, line in enumerate(title):
        pen.text((MARGIN, MARGIN + 30 * i), line, TITLE_SIZE, INK)
    for i, line in enumerate(under):
        colour = GREEN if i == 0 and chosen is not None and chosen.accepted else GREY
        pen.text((MARGIN, MARGIN + 30 * len(title) + 20 * i + 4), line, 14, colour)
    pen.down = top
    for x, words in layout.headings:
        pen.text((x, 0), words, 13, GREY)
    for link in layout.links:
        pen.link(link)
    for node in layout.nodes:
        pen.node(run, node, layout)
    return pen.canvas


class _Pen:
    """Draws in units of the layout, `down` units lower."""

    def __init__(self, width: int, height: int, scale: int) -> None:
        self.scale, self.down = scale, 0.0
        self.canvas = Image.new("RGB", (width * scale, height * scale), PAPER)
        self.draw = ImageDraw.Draw(self.canvas)

    def at(self, point: tuple[float, float]) -> tuple[float, float]:
        return point[0] * self.scale, (point[1] + self.down) * self.scale

    def text(self, point: tuple[float, float], words: str, size: float, colour, anchor: str = "la") -> None:
        self.draw.text(self.at(point), words, fill=colour, font=font(size * self.scale), anchor=anchor)

    def frame(self, x: float, y: float, size: tuple[int, int], thick: float, colour) -> None:
        """A frame of `thick` units around a box whose inside begins at (x, y)."""
        (left, top) = self.at((x - thick, y - thick))
        (right, bottom) = self.at((x + size[0] + thick, y + size[1] + thick))
        self.draw.rounded_rectangle((left, top, right - 1, bottom - 1), 3 * self.scale, outline=colour,
                                    width=round(thick * self.scale))

    def line(self, points: Sequence[tuple[float, float]], colour, width: float) -> None:
        self.draw.line([self.at(p) for p in points], fill=colour, width=round(width * self.scale), joint="curve")

    def link(self, link: Link) -> None:
        colour = GREEN if link.chosen else RULE
        (x, y) = link.points[-1]
        # The tip stays clear of the thickest frame.
        self.line((*link.points[:-1], (x - 10, y)), colour, 3 if link.chosen else 2)
        self.draw.polygon([self.at(p) for p in ((x - 5, y), (x - 13, y - 5), (x - 13, y + 5))], fill=colour)

    def node(self, run: Run, node: Node, layout: Layout) -> None:
        candidate, (width, height) = node.candidate, layout.thumb
        picture = run.picture(candidate.id)
        size = width * self.scale, height * self.scale
        # Whole multiples stay crisp; anything else, and anything that shrinks, is filtered.
        crisp = size[0] % picture.width == 0 and size[1] % picture.height == 0
        method = Image.Resampling.NEAREST if crisp else Image.Resampling.LANCZOS
        x, y = self.at((node.x, node.y))
        self.canvas.paste(picture.resize(size, method), (round(x), round(y)))
        frame = GREEN if candidate.accepted else BLUE if node.chosen else RULE
        self.frame(node.x, node.y, layout.thumb, node.thick, frame)
        if candidate.accepted:
            self._mark(node.x + width - 9, node.y + 9)
        under = node.y + height + 6
        self.text((node.x, under), node.score_text, 14, GREEN if candidate.accepted else INK)
        self.text((node.x + width, under + 1), node.label, 12, GREY, "ra")
        if node.audit:
            self.text((node.x, under + 20), node.audit, TEXT_SIZE, INK)
        first = under + 20 + LINE_HEIGHT * bool(node.audit)
        for i, line in enumerate(node.text):
            self.text((node.x, first + i * LINE_HEIGHT), line, TEXT_SIZE, BLUE if node.told else GREY)

    def _mark(self, x: float, y: float) -> None:
        """A tick in a disc."""
        (left, top), (right, bottom) = self.at((x - 11, y - 11)), self.at((x + 11, y + 11))
        self.draw.ellipse((left, top, right, bottom), fill=GREEN, outline=PAPER, width=2 * self.scale)
        self.line(((x - 5, y), (x - 1.5, y + 4), (x + 5, y - 4)), PAPER, 2.4)
