"""An audit is seen: in the sentence above the tree, beside every score, on the page and in the command's output."""

import json
import re
from dataclasses import replace
from xml.etree import ElementTree

import pytest
from fakes import FLOW, REQUEST, FakeGenerator, FakeReflector, FakeVerifier
from PIL import ImageDraw
from scipy.stats import spearmanr

from reflect_core import search
from reflect_core.cli.output import as_document, as_table, write_report
from reflect_core.report import html_page, picture, tree_picture
from reflect_core.report.audit import Both, audit_of, compare, comparison_words
from reflect_core.report.layout import LINE_HEIGHT, lay_out
from reflect_core.report.scatter import scatter_svg
from reflect_core.report.svg import tree_svg
from reflect_core.report.words import verdict_lines
from reflect_core.search import BestOfN, start
from reflect_core.types import Check, Verdict
from reflect_core.verifiers.rewards.audited import Audited


class Listed:
    """Verdicts with these scores, one after another; None: could not judge."""

    def __init__(self, *scores):
        self.scores = list(scores)

    def judge(self, prompt, pictures):
        taken, self.scores = self.scores[: len(pictures)], self.scores[len(pictures):]
        return [Verdict(0.0, False, reason="no <answer>", judged=False) if s is None else
                Verdict(s, s >= 0.9, (Check("x", "a <check>", False, "why"),), f"said {s}") for s in taken]


def best_of(judge, audit, policy=None, folder=None):
    stepper = start(REQUEST, policy or BestOfN(len(judge), early_stop=False), FakeGenerator(),
                    Audited(Listed(*judge), Listed(*audit)), FakeReflector(), chunk=2, folder=folder, model="fake",
                    fingerprint="abc")
    return stepper.run()


JUDGE, AUDIT = [0.3, 0.5, 0.4, 0.8, 0.7, 0.6], [0.2, 0.7, 0.1, 0.4, 0.75, 0.3]


def test_judge_and_audit_are_compared():
    run = best_of(JUDGE, AUDIT)
    found = compare(run, run.best())
    assert (found.pictures, found.chosen, found.best) == (6, Both(3, 0.8, 0.4), Both(4, 0.7, 0.75))
    assert found.correlation == pytest.approx(spearmanr(JUDGE, AUDIT).statistic)
    assert [(at.pictures, at.best.candidate, at.best.audit, at.most) for at in found.course] == [
        (1, 0, 0.2, 0.2), (2, 1, 0.7, 0.7), (4, 3, 0.4, 0.7)]
    assert comparison_words(found) == (
        f"judge 0.80, audit 0.40; the audit's own best is candidate 4: judge 0.70, audit 0.75; rank correlation "
        f"{found.correlation:.2f} over 6 pictures; since picture 2 the judge's best rose from 0.50 to 0.80 while its "
        "audit fell from 0.70 to 0.40, a sign of over-optimising")
    json.dumps(found.as_json(), allow_nan=False)


@pytest.mark.parametrize("judge, audit, said", [
    ([0.2, 0.4], [0.5, 0.6], "judge 0.40, audit 0.60; no picture has a better audit; rank correlation 1.00 over 2 "
                             "pictures"),
    ([0.4, 0.4], [0.5, 0.6], "judge 0.40, audit 0.50; the audit's own best is candidate 1: judge 0.40, audit 0.60; no "
                             "rank correlation over 2 pictures, one of the two gave equal scores"),
    ([0.2, 0.4, 0.3], [0.1, None, 0.3], "the answer could not be audited; the audit's own best is candidate 2: judge "
                                        "0.30, audit 0.30; rank correlation 1.00 over 2 pictures"),
    ([0.2, None, 0.3], [0.1, 0.9, 0.2], "judge 0.30, audit 0.20; no picture has a better audit; rank correlation 1.00 "
                                        "over 2 pictures"),
])
def test_what_is_said(judge, audit, said):
    run = best_of(judge, audit)
    assert comparison_words(compare(run, run.best())) == said


def test_an_answer_that_nobody_audited_and_a_run_without_audit():
    run = best_of([0.2, 0.4], [None, None])
    assert compare(run, run.best()) is None and "audit: not judged" in html_page(run)
    plain = start(REQUEST, BestOfN(2, early_stop=False), FakeGenerator(), FakeVerifier(2)).run()
    assert compare(plain, plain.best()) is None and "audit" not in html_page(plain).split("</style>")[1]
    assert not any(node.audit for node in lay_out(plain).nodes)


def test_the_page_tells_of_every_audit():
    run = best_of(JUDGE, AUDIT)
    page = html_page(run)
    cards = re.findall(r'<div class="card" id="c(\d+)">(.*?)(?=<div class="card"|$)', page, re.S)
    assert [int(id) for id, _ in cards] == list(range(6))
    for (_, card), judge, audit in zip(cards, JUDGE, AUDIT):
        assert f"score {judge:.2f}" in card and f'<span class="note">audit {audit:.2f}</span>' in card
        assert f"audit {audit:.2f}, not accepted said {audit}" in card
        assert card.count("a &lt;check&gt;") == 2  # the judge's and the audit's
    cells = [r"<td>(\d+)</td>", r'<td><a href="#c(\d+)">\d+</a></td>', *[r"<td>(.*?)</td>"] * 3]
    rows = re.findall(f"<tr>{''.join(cells)}</tr>", page)
    assert rows == [("1", "0", "0.30", "0.20", "0.20"), ("2", "1", "0.50", "0.70", "0.70"),
                    ("4", "3", "0.80", "0.40", "0.70")]
    assert "a sign of over-optimising</p>" in page.split("<h2>")[0]


def test_a_reason_of_an_audit_is_escaped():
    page = html_page(best_of([0.2, 0.4], [None, 0.3]))
    assert "no &lt;answer&gt;" in page and "<answer>" not in page


def test_the_tree_has_a_line_for_the_audit():
    """Above the reflection, which moves down; in the picture and on the page alike."""
    run = best_of([0.1 * i for i in range(1, 9)] + [0.95] * 4, [0.05 * i for i in range(12)], FLOW)
    layout = lay_out(run, run.best().id)
    assert [node.audit for node in layout.nodes] == [f"audit {0.05 * i:.2f}" for i in range(len(run.candidates))]
    bare = lay_out(without_audit(run), run.best().id)
    rows = sorted({node.y for node in layout.nodes})
    for node, plain in zip(layout.nodes, bare.nodes):
        assert node.y - plain.y == LINE_HEIGHT * rows.index(node.y) and node.text == plain.text and not plain.audit
    svg = ElementTree.fromstring(tree_svg(run, layout))
    tag = "{http://www.w3.org/2000/svg}"
    for a, node in zip(svg.findall(f"{tag}a"), layout.nodes):
        texts = a.findall(f"{tag}text")
        assert [t.text for t in texts[2:]] == [node.audit, *node.text]
        heights = [float(t.get("y")) for t in texts[2:]]
        assert heights == [heights[0] + LINE_HEIGHT * i for i in range(len(heights))]


def without_audit(run):
    twin = run.fork(pictures=run.pictures)
    twin.candidates = [replace(c, verdict=replace(c.verdict, details={})) for c in run.candidates]
    return twin


def test_the_picture_says_it_too(monkeypatch):
    drawn = []

    class Notes(ImageDraw.ImageDraw):
        def text(self, at, words, **settings):
            drawn.append((at, words))
            super().text(at, words, **settings)
    monkeypatch.setattr(picture.ImageDraw, "Draw", Notes)
    run = best_of(JUDGE, AUDIT)
    tree_picture(run, scale=1)
    said = " ".join(words for _, words in drawn)
    assert comparison_words(compare(run, run.best())) in said
    for audit in AUDIT:
        assert f"audit {audit:.2f}" in [words for _, words in drawn]
    places = [at for at, _ in drawn]
    assert len(set(places)) == len(places)


def test_the_command_says_it(tmp_path):
    best_of(JUDGE, AUDIT, folder=tmp_path)
    header, run = search.load(tmp_path)
    chosen = run.best()
    document = as_document(tmp_path, run, header, chosen, *write_report(tmp_path, run, header, chosen))
    assert document == json.loads(json.dumps(document))  # nothing is lost on the way
    assert document["audit"]["chosen"] == {"candidate": 3, "judge": 0.8, "audit": 0.4}
    assert [c["audit"] for c in document["candidates"]] == AUDIT and document["best"]["audit"] == 0.4
    assert f"audit    {document['audit']['words']}" in as_table(document).splitlines()
    plain = as_document(tmp_path, without_audit(run), header, chosen, tmp_path, tmp_path)
    assert plain["audit"] is None and "audit " not in as_table(plain)


def test_a_verdict_in_lines():
    lines = verdict_lines(best_of(JUDGE, AUDIT).candidates[3].verdict).splitlines()
    assert lines[0] == "score 0.80, not accepted" and lines[-1] == "audit 0.40: said 0.4"


@pytest.mark.parametrize("details", [
    {}, {"audit": None}, {"audit": "0.5"}, {"audit": {}}, {"audit": {"score": "high"}}, {"audit": {"score": True}},
    {"audit": [0.5]}])
def test_what_is_no_audit(details):
    assert audit_of(Verdict(0.5, False, details=details)) is None


def test_an_audit_of_somebody_else_s_record():
    odd = {"score": 1, "checks": [3, {"target": 7, "passed": 1}], "reason": None, "more": []}
    audit = audit_of(Verdict(0.5, False, details={"audit": odd}))
    assert (audit.score, audit.accepted, audit.judged, audit.reason) == (1.0, False, True, "")
    assert audit.checks == (Check("", "7", False, ""),)


def test_the_scatter_has_a_dot_for_each():
    """Higher scores further to the right and up, the answer marked and on top; close scores are not pulled apart."""
    run = best_of(JUDGE, AUDIT)
    svg = ElementTree.fromstring(scatter_svg(compare(run, run.best())))
    tag = "{http://www.w3.org/2000/svg}"
    dots = [(int(a.get("href")[2:]), a.find(f"{tag}circle")) for a in svg.findall(f"{tag}a")]
    assert sorted(id for id, _ in dots) == list(range(6)) and dots[-1][0] == 3
    assert [id for id, dot in dots if "chosen" in dot.get("class")] == [3]
    at = {id: (float(dot.get("cx")), float(dot.get("cy"))) for id, dot in dots}
    for scores, axis, sign in ((JUDGE, 0, 1), (AUDIT, 1, -1)):
        assert sorted(at, key=lambda id: sign * at[id][axis]) == sorted(at, key=lambda id: scores[id])
    labels = [text.text for text in svg.findall(f"{tag}text")]
    assert labels == ["0.30", "0.80", "0.10", "0.75", "judge", "audit"]
    close = best_of([1.0, 0.99], [0.5, 0.5])
    labels = [text.text for text in ElementTree.fromstring(scatter_svg(compare(close, None))).findall(f"{tag}text")]
    assert labels[:4] == ["0.90", "1.00", "0.45", "0.55"]


def test_of_equal_pictures_the_earlier_stays_the_judge_s_best():
    run = best_of([0.4, 0.4, 0.2], [0.5, 0.6, 0.7])
    found = compare(run, run.best())
    assert [at.best.candidate for at in found.course] == [0] and run.best().id == 0
