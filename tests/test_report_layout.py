"""Where things go: odd sizes, odd trees, and texts of any length."""

import time

import pytest
from fakes import SIZE, FakeVerifier
from PIL import Image

from reflect_core.report import html_page, tree_picture
from reflect_core.report.layout import MOST_LINES, TEXT_WIDTH, font, lay_out, wrap
from reflect_core.search import BestOfN, Run, start
from reflect_core.search.entries import Drew, Judged, Plan, Planned
from reflect_core.types import Cost, Drawn, Request, Verdict


class Blank:
    """Draws the same picture whatever it is told, and does not look at the words."""

    max_context = 1

    def draw(self, requests, callback=None):
        return [Drawn(Image.new("RGB", (r.width, r.height)), Cost(1, r.steps)) for r in requests]


def test_several_of_one_branch_do_not_lie_on_each_other():
    """As a policy from elsewhere may draw them."""
    request = Request("a star", seed=3, width=SIZE, height=SIZE, steps=4)
    run = Run(request)
    for round, branches in enumerate(((0, 0), (0, 0, 1), (1, 0, 0))):
        first = len(run.candidates)
        planned = tuple(Planned(request, b, None if round == 0 else first - 1) for b in branches)
        run.apply(Plan(round, planned, (len(planned),)))
        shas = tuple(run.pictures.put(first + i, Image.new("RGB", (SIZE, SIZE))) for i in range(len(planned)))
        run.apply(Drew(first, shas, (Cost(1),) * len(planned)))
        run.apply(Judged(tuple(range(first, first + len(planned))), (Verdict(0.5, False),) * len(planned)))
    layout = lay_out(run)
    assert len({(node.x, node.y) for node in layout.nodes}) == len(run.candidates) == 8
    assert all(node.y + layout.thumb[1] <= layout.height for node in layout.nodes)
    tree_picture(run)


@pytest.mark.parametrize("size", [(1, 512), (512, 1)])
def test_very_narrow_pictures(size):
    request = Request("a line", seed=1, width=size[0], height=size[1], steps=1)
    run = start(request, BestOfN(2), Blank(), FakeVerifier(2)).run()
    assert min(lay_out(run).thumb) == 1
    tree_picture(run)
    assert 'alt="candidate 1"' in html_page(run)


def test_long_words_are_wrapped_in_no_time():
    """A language model that repeats itself hands over what no reader wants, and must not stop the report."""
    begun = time.process_time()
    for text in ("x" * 20_000, "ab " * 20_000, "\u200d" * 20_000, "x" * 600 + " y" * 9_000):
        lines = wrap(text)
        assert len(lines) <= MOST_LINES and lines[-1].endswith("...")
    assert time.process_time() - begun < 1
    assert wrap("x" * 30)[0] + wrap("x" * 30)[1] == "x" * 30


def test_wrapping():
    measure = font(12).getlength
    for text in ("", "short", "word " * 60, "x" * 400, "a " + "y" * 90 + " b"):
        lines = wrap(text)
        assert len(lines) <= MOST_LINES and all(measure(line) <= TEXT_WIDTH for line in lines)
    assert wrap("add a red circle") == ("add a red circle",)
    assert wrap("word " * 60)[-1].endswith("...")
