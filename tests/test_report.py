"""The picture and the page of a run: everything is on them, nothing from outside gets into them."""

import base64
import io
import re
from dataclasses import replace
from html.parser import HTMLParser
from xml.etree import ElementTree

import pytest
from fake_shapes import FakeShapesGenerator
from fakes import SIZE, FakeGenerator, FakeRefiner, FakeReflector, FakeVerifier
from PIL import Image, ImageDraw

from reflect_core.reflectors import ShapesReflector
from reflect_core.report import html_page, picture, tree_picture
from reflect_core.report.layout import MOST_LINES, TEXT_WIDTH, font, lay_out
from reflect_core.report.svg import tree_svg
from reflect_core.report.words import outcome
from reflect_core.search import BestOfN, NoisePromptScaling, ReflectionFlow, start
from reflect_core.types import Request
from reflect_core.verifiers import ShapesVerifier

PROMPT = "two red circles left of a blue star and a yellow square"
POLICIES = {
    "one": BestOfN(1, early_stop=False),
    "best of 64": BestOfN(64, early_stop=False),
    "prompts": NoisePromptScaling(2, 4, early_stop=False),
    "flow": ReflectionFlow.for_budget(20, early_stop=False),
    "flow 64": ReflectionFlow.for_budget(64, early_stop=False),
    "patient": ReflectionFlow(4, 3, 5, patience=1, early_stop=False),
    "best parents": ReflectionFlow(3, 2, 4, parents="best", early_stop=False),
    "official": ReflectionFlow.official(),
}


def finished(policy, prompt=PROMPT):
    request = Request(prompt, seed=3, width=SIZE, height=SIZE, steps=4)
    stepper = start(request, policy, FakeGenerator(), FakeVerifier(0.7), FakeReflector(), FakeRefiner())
    stepper.run()
    return stepper


@pytest.fixture(scope="module")
def steppers():
    return {name: finished(policy) for name, policy in POLICIES.items()}


@pytest.mark.parametrize("name", POLICIES)
def test_nothing_lies_on_anything_else(steppers, name):
    stepper = steppers[name]
    layout = lay_out(stepper.so_far, stepper.best.id)
    assert [n.candidate.id for n in layout.nodes] == list(range(len(stepper.so_far.candidates)))
    assert sum(n.chosen for n in layout.nodes) == 1
    width, height = layout.thumb
    boxes = {n.candidate.id: (n.x, n.y, n.x + width, n.y + height) for n in layout.nodes}
    for a, (x0, y0, x1, y1) in boxes.items():
        assert 0 <= x0 and x1 <= layout.width and 0 <= y0 and y1 <= layout.height
        for b, (u0, v0, u1, v1) in boxes.items():
            assert a == b or x1 < u0 or u1 < x0 or y1 < v0 or v1 < y0
    # Lines run level or upright, past all pictures, and end where they should.
    for link in layout.links:
        assert link.points[0][0] == boxes[link.parent][2] and link.points[-1][0] == boxes[link.child][0]
        for (xa, ya), (xb, yb) in zip(link.points, link.points[1:]):
            assert xa == xb or ya == yb
            for x0, y0, x1, y1 in boxes.values():
                assert max(xa, xb) <= x0 or min(xa, xb) >= x1 or max(ya, yb) <= y0 or min(ya, yb) >= y1


def test_links_are_the_tree_and_mark_the_way(steppers):
    stepper = steppers["flow"]
    run, layout = stepper.so_far, lay_out(stepper.so_far, stepper.best.id)
    assert {(k.parent, k.child) for k in layout.links} == {(c.parent, c.id) for c in run.candidates
                                                           if c.parent is not None}
    way = [c.id for c in run.lineage(stepper.best.id)]
    assert {(k.parent, k.child) for k in layout.links if k.chosen} == set(zip(way, way[1:]))


@pytest.mark.parametrize("name", POLICIES)
def test_a_picture_of_every_tree(steppers, name):
    picture = tree_picture(steppers[name].so_far, chosen=steppers[name].best, scale=1)
    assert picture.mode == "RGB"
    assert len(picture.getcolors(1 << 24)) > 100


def test_a_chosen_one_is_not_called_the_best_and_rounds_are_counted_as_asked(steppers):
    run = next(s.so_far for s in steppers.values() if any(c.parent is not None for c in s.so_far.candidates))
    best = run.best()
    other = next(c for c in run.candidates if c.id != best.id and not c.accepted)
    layout = lay_out(run, other.id, first_round=1)
    assert [n.label for n in layout.nodes if n.chosen] == [f"chosen, {other.id}"]
    assert [words for _, words in layout.headings] == [f"round {r + 1}" for r in range(run.rounds)]
    assert re.search(rf"the chosen one (so far )?is candidate {other.id} ", outcome(run, other))


def words_of(run, candidate, chosen):
    """What must stand below a candidate: score, number, and its reflection or prompt, in whole words."""
    end = f"best, {candidate.id}" if candidate.id == chosen.id and not chosen.accepted else f"{candidate.id}"
    if candidate.request.context:
        text = candidate.request.context[-1].feedback
    elif candidate.request.original_prompt is not None:
        text = f"prompt: {candidate.request.prompt}"
    else:
        text = "" if candidate.accepted else candidate.verdict.reason
    return [f"{candidate.score:.2f}", end], text


def check_lines(lines, text):
    """Each line fits, and together they are the text, or its beginning where there is too much of it."""
    assert len(lines) <= MOST_LINES and all(font(12).getlength(line) <= TEXT_WIDTH for line in lines)
    shown = " ".join(lines)
    assert shown == text or shown.endswith("...") and text.startswith(shown[:-3]), (shown, text)
    assert bool(lines) == bool(text)


@pytest.mark.parametrize("name", POLICIES)
def test_the_page_s_tree_says_all_of_every_candidate(steppers, name):
    stepper = steppers[name]
    run, chosen = stepper.so_far, stepper.best
    layout = lay_out(run, chosen.id)
    svg = ElementTree.fromstring(tree_svg(run, layout))
    tag = "{http://www.w3.org/2000/svg}"
    links = svg.findall(f"{tag}a")
    assert [a.get("href") for a in links] == [f"#c{c.id}" for c in run.candidates]
    for a, candidate, node in zip(links, run.candidates, layout.nodes):
        texts = [text.text for text in a.findall(f"{tag}text")]
        expected, told = words_of(run, candidate, chosen)
        assert texts[:2] == expected
        check_lines(texts[2:], told)
        image, frame = a.find(f"{tag}image"), a.find(f"{tag}rect")
        assert (float(image.get("x")), float(image.get("y"))) == (round(node.x), round(node.y))
        drawn = Image.open(io.BytesIO(base64.b64decode(image.get("href").split(",")[1])))
        assert drawn.tobytes() == run.picture(candidate.id).tobytes()
        assert ("chosen" in frame.get("class")) == (candidate.id == chosen.id)
        assert ("accepted" in frame.get("class")) == candidate.accepted == (a.find(f"{tag}g") is not None)
    drawn = {(line.get("class"), line.get("points").split(" ")[0]) for line in svg.findall(f"{tag}polyline")}
    assert len(svg.findall(f"{tag}polyline")) == sum(c.parent is not None for c in run.candidates)
    for link in layout.links:
        x, y = link.points[0]
        assert ("way" if link.chosen else "link", f"{x:.1f},{y:.1f}") in drawn
    headings = [text.text for text in svg.findall(f"{tag}text")]
    rounds = run.rounds if any(c.parent is not None for c in run.candidates) else 1
    assert headings == ["from noise", *(f"round {r}" for r in range(1, rounds))]


class Notes(ImageDraw.ImageDraw):
    """Draws as ever, and notes texts and lines with their places."""

    def __init__(self, canvas):
        super().__init__(canvas)
        self.texts, self.lines = [], []
        Notes.last = self

    def text(self, at, words, **settings):
        self.texts.append((at, words))
        super().text(at, words, **settings)

    def line(self, points, **settings):
        self.lines.append((tuple(points), settings["fill"]))
        super().line(points, **settings)


@pytest.mark.parametrize("name", POLICIES)
def test_the_picture_says_all_of_every_candidate(steppers, name, monkeypatch):
    stepper = steppers[name]
    run, chosen = stepper.so_far, stepper.best
    monkeypatch.setattr(picture.ImageDraw, "Draw", Notes)
    canvas = tree_picture(run, chosen=chosen, scale=1)
    notes, layout = Notes.last, lay_out(run, chosen.id)
    down = next(at[1] for at, words in notes.texts if words == "from noise")
    for candidate, node in zip(run.candidates, layout.nodes):
        left, right = node.x, node.x + layout.thumb[0]
        below = [(at, words) for at, words in notes.texts
                 if left <= at[0] <= right and 0 < at[1] - down - node.y - layout.thumb[1] < 90]
        expected, told = words_of(run, candidate, chosen)
        assert [words for _, words in below[:2]] == expected and [at[0] for at, _ in below[:2]] == [left, right]
        check_lines([words for _, words in below[2:]], told)
        x, y = round(node.x), round(node.y + down)
        there = canvas.crop((x + 2, y + 100, x + 100, y + 126))
        expect = run.picture(candidate.id).resize(layout.thumb, Image.Resampling.NEAREST).crop((2, 100, 100, 126))
        assert there.tobytes() == expect.tobytes()
    ways = [(points, colour) for points, colour in notes.lines if colour in (picture.RULE, picture.GREEN)]
    assert len(ways) == len(layout.links) == sum(c.parent is not None for c in run.candidates)
    for link, (points, colour) in zip(layout.links, ways):
        assert points[:-1] == tuple((x, y + down) for x, y in link.points[:-1])
        assert colour == (picture.GREEN if link.chosen else picture.RULE)
    said = " ".join(words for _, words in notes.texts)
    assert PROMPT in said and f"score of {chosen.score:.2f}" in said and "guidance 3.5" in said


def test_a_run_cut_short_has_a_picture_and_a_page_too():
    request = Request(PROMPT, seed=3, width=SIZE, height=SIZE, steps=4)
    empty = start(request, BestOfN(4), FakeGenerator(), FakeVerifier())
    tree_picture(empty.so_far)
    assert "nothing is judged yet" in html_page(empty.so_far)
    stepper = start(request, ReflectionFlow(4, 2, 4, early_stop=False), FakeGenerator(fail_at=7), FakeVerifier(2),
                    FakeReflector())
    with pytest.raises(RuntimeError):
        stepper.run()
    tree_picture(stepper.so_far)
    assert "not finished" in html_page(stepper.so_far)


class Elements(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.found = []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))

    def all(self, tag):
        return [attributes for name, attributes in self.found if name == tag]


def test_the_page_needs_nothing_else(steppers):
    stepper = steppers["flow"]
    page = html_page(stepper.so_far, chosen=stepper.best)
    elements = Elements(page)
    assert not {"script", "link", "iframe", "object"} & {tag for tag, _ in elements.found}
    # The name of SVG's namespace is the one address on it, and is never fetched.
    assert set(re.findall(r"https?://[^\"]+", page)) == {"http://www.w3.org/2000/svg"}
    assert "@import" not in page and "url(" not in page
    run = stepper.so_far
    assert len(elements.all("image")) == len(run.candidates)
    assert [c["id"] for c in elements.all("div") if "id" in c] == [f"c{c.id}" for c in run.candidates]
    for source in [i["src"] for i in elements.all("img")] + [i["href"] for i in elements.all("image")]:
        assert source.startswith("data:image/png;base64,")
    last = elements.all("img")[-1]["src"].split(",")[1]
    assert Image.open(io.BytesIO(base64.b64decode(last))).tobytes() == run.picture(19).tobytes()


def test_large_pictures_are_reduced():
    request = Request("big", seed=1, width=1024, height=768, steps=1)
    stepper = start(request, BestOfN(2, early_stop=False), FakeGenerator(), FakeVerifier(2))
    page = html_page(stepper.run())
    assert len(page) < 100_000 and "data:image/jpeg" in page
    assert lay_out(stepper.so_far).thumb == (128, 96)
    tree_picture(stepper.so_far)


def test_texts_are_escaped():
    evil = '<script>alert("x")</script> & <b>'

    class Evil(FakeReflector):
        def reflect(self, prompt, pictures, verdicts):
            return [evil] * len(pictures)

    request = Request(evil, seed=1, width=SIZE, height=SIZE, steps=1)
    stepper = start(request, ReflectionFlow(2, 1, 2, early_stop=False), FakeGenerator(), FakeVerifier(2), Evil())
    page = html_page(stepper.run())
    assert "<script" not in page and "&lt;script&gt;" in page
    tree_picture(stepper.so_far)


def test_shapes_are_told_and_checked_on_the_page():
    stepper = start(Request(PROMPT, seed=5), ReflectionFlow.for_budget(20), FakeShapesGenerator(flawed=1.0),
                    ShapesVerifier(), ShapesReflector())
    run = stepper.run()
    assert len(run.candidates) > 6, "pick a seed whose pool holds no good picture"
    page = html_page(run, chosen=stepper.best)
    for candidate in run.candidates:
        for pair in candidate.request.context:
            assert pair.feedback in page
    assert "accepted" in page and "nothing else" in page


class Twice(FakeVerifier):
    """Scores the same picture lower the second time."""

    def __init__(self):
        super().__init__(2)
        self.seen = set()

    def verdict(self, picture):
        verdict, again = super().verdict(picture), picture.tobytes() in self.seen
        self.seen.add(picture.tobytes())
        return replace(verdict, score=verdict.score / 2, reason="worse than I thought") if again else verdict


def test_a_second_verdict_is_on_the_page():
    request = Request(PROMPT, seed=3, width=SIZE, height=SIZE, steps=4)
    policy = ReflectionFlow(2, 1, 2, parents="last", judge_again=True)
    run = start(request, policy, FakeGenerator(), Twice(), FakeReflector()).run()
    page = html_page(run)
    first, second = run.verdicts(2)
    assert page.count("judged again") == 1
    assert f"judged again: score {second.score:.2f}, not accepted worse than I thought" in page
    assert f"score {first.score:.2f}" in page


def arrows(run, chosen):
    return re.findall(r'<div class="arrow told">(.*?)</div>', html_page(run, chosen=chosen))


def test_the_way_says_what_made_each_child():
    """Words, another prompt, or neither: a correction without a word is no new prompt."""
    request = Request(PROMPT, seed=3, width=SIZE, height=SIZE, steps=4)
    silent = FakeReflector(silent_below=9)
    told = start(request, ReflectionFlow(2, 1, 1), FakeGenerator(), FakeVerifier(2), FakeReflector()).run()
    assert arrows(told, told.candidate(2)) == [told.reflection(told.candidate(2).parent)]
    mute = start(request, ReflectionFlow(2, 1, 1, silent="correct"), FakeGenerator(), FakeVerifier(2), silent).run()
    assert arrows(mute, mute.candidate(2)) == ["no words"]
    for policy in (NoisePromptScaling(1, 2), ReflectionFlow(2, 1, 1, refine=True),
                   ReflectionFlow(2, 1, 1, refine=True, silent="correct")):
        run = start(request, policy, FakeGenerator(), FakeVerifier(2), silent, FakeRefiner()).run()
        assert arrows(run, run.candidates[-1]) == ["a new prompt"]


def test_texts_that_are_no_proper_text():
    """Half a surrogate pair is what a language model that ran into its token limit can hand over."""
    class Strange(FakeReflector):
        def reflect(self, prompt, pictures, verdicts):
            return ["half \ud83d pair\n红色 \x00 \x1b[31m\ttab " + "long" * 80] * len(pictures)

    request = Request("红色的圆 and \x07", seed=1, width=SIZE, height=SIZE, steps=1)
    stepper = start(request, ReflectionFlow(2, 1, 2, early_stop=False), FakeGenerator(), FakeVerifier(2), Strange())
    run = stepper.run()
    tree_picture(run)
    page = html_page(run)
    page.encode("utf-8")
    assert "half" in page and not set("\x00\x07\x1b") & set(page)
