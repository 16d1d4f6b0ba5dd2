"""Ensembles and audits: the arithmetic, the costs, and that an audit never changes a choice."""

import itertools
import json
import random

import pytest
from fakes import REQUEST, FakeGenerator, FakeReflector, FakeVerifier, SpendingVerifier, quality_of
from PIL import Image

from reflect_core.ranks import average_ranks, rank_correlation
from reflect_core.search import BestOfN, ReflectionFlow, start
from reflect_core.types import Check, Cost, UserError, Verdict
from reflect_core.verifiers.rewards.audited import Audited
from reflect_core.verifiers.rewards.ensemble import Ensemble

PICTURES = [Image.new("RGB", (8, 8), (red, 255 - red, 7)) for red in (200, 20, 120)]


class Fixed:
    """Gives these scores; None: could not judge."""

    def __init__(self, *scores, accept=2.0, reason="", checks=()):
        self.scores, self.accept, self.reason, self.checks, self.calls = scores, accept, reason, checks, []

    def judge(self, prompt, pictures):
        self.calls.append((prompt, [p.tobytes() for p in pictures]))
        return [Verdict(0.0, False, reason="no answer", judged=False) if s is None else
                Verdict(s, s >= self.accept, self.checks, self.reason, {"raw": s * 10}) for s in self.scores]


def scores(verdicts):
    return [verdict.score for verdict in verdicts]


def test_the_mean_is_weighted_and_weights_are_scaled():
    ensemble = Ensemble({"a": Fixed(0.2, 1.0, 0.5), "b": Fixed(0.8, 0.0, 0.5)}, {"a": 3, "b": 1})
    verdicts = ensemble.judge("p", PICTURES)
    assert scores(verdicts) == pytest.approx([0.35, 0.75, 0.5])
    assert verdicts[0].details["members"]["a"]["weight"] == 0.75
    assert [verdicts[0].details["members"][n]["score"] for n in "ab"] == [0.2, 0.8]
    assert verdicts[0].details["members"]["b"]["details"] == {"raw": 8.0} and verdicts[0].details["raw"] == 2.0
    assert verdicts[0].reason == "a 0.20, b 0.80"
    equal = Ensemble({"a": Fixed(0.2, 1.0, 0.5), "b": Fixed(0.8, 0.0, 0.5)})
    assert scores(equal.judge("p", PICTURES)) == pytest.approx([0.5, 0.5, 0.5])
    json.dumps([v.details for v in verdicts])


def test_ranks_do_not_care_for_spread():
    members = {"a": Fixed(0.51, 0.50, 0.52), "b": Fixed(0.1, 0.9, 0.1)}
    assert scores(Ensemble(members, mode="rank").judge("p", PICTURES)) == pytest.approx([0.375, 0.5, 0.625])
    alone = Ensemble({"a": Fixed(0.9), "b": Fixed(0.1)}, mode="rank")
    assert scores(alone.judge("p", PICTURES[:1])) == [0.5]


@pytest.mark.parametrize("accept, threshold, expected", [
    (0.5, None, [False, True, False]), (2.0, None, [False] * 3), (0.5, 0.55, [True, True, False]),
    (2.0, 0.55, [True, True, False])])
def test_all_accept_or_the_mean_does(accept, threshold, expected):
    members = {"a": Fixed(0.8, 0.9, 0.4, accept=accept), "b": Fixed(0.4, 0.6, 0.6, accept=accept)}
    verdicts = Ensemble(members, threshold=threshold).judge("p", PICTURES)
    assert [verdict.accepted for verdict in verdicts] == expected


@pytest.mark.parametrize("mode", ["mean", "rank"])
def test_a_member_that_could_not_judge(mode):
    members = {"a": Fixed(0.2, None, 0.6, accept=0.5), "b": Fixed(0.8, 0.9, 1.0, accept=0.5)}
    strict = Ensemble(members, mode=mode).judge("p", PICTURES)
    assert [v.judged for v in strict] == [True, False, True]
    assert (strict[1].score, strict[1].accepted) == (0.0, False)
    assert strict[1].reason == "not judged by a: no answer"
    rest = Ensemble(members, mode=mode, missing="others").judge("p", PICTURES)
    expected = {"mean": [0.5, 0.9, 0.8], "rank": [0.0, 0.5, 1.0]}[mode]
    assert scores(rest) == pytest.approx(expected)
    assert rest[1].accepted and "a not judged" in rest[1].reason
    nobody = Ensemble({"a": Fixed(None), "b": Fixed(None)}, missing="others").judge("p", PICTURES[:1])[0]
    assert nobody.reason == "not judged by a: no answer; b: no answer" and not nobody.accepted


def test_checks_and_reasons_are_all_members():
    red, blue = Check("object", "red", True), Check("object", "blue", False, "not there")
    first = Fixed(0.5, reason="no blue", checks=(red, blue))
    verdict = Ensemble({"a": first, "b": Fixed(0.7, checks=(red,))}).judge("p", PICTURES[:1])[0]
    assert verdict.checks == (red, blue, red) and verdict.reason == "no blue; a 0.50, b 0.70"


@pytest.mark.parametrize("make, said", [
    (lambda: Ensemble({}), "no judges"),
    (lambda: Ensemble({"a": Fixed(1)}, {"b": 1}), "one for each of a"),
    (lambda: Ensemble({"a": Fixed(1)}, {"a": 0}), "above 0"),
    (lambda: Ensemble({"a": Fixed(1)}, {"a": float("nan")}), "above 0"),
    (lambda: Ensemble({"a": Fixed(1)}, mode="median"), "'mean' or 'rank'"),
    (lambda: Ensemble({"a": Fixed(1)}, missing="zero"), "'unjudged' or 'others'"),
    (lambda: Ensemble({"a": Fixed(1)}, threshold=1.5), "from 0 to 1"),
    (lambda: Ensemble({"a": Fixed(1)}, mode="rank", threshold=0.5), "mode 'rank'"),
    (lambda: Ensemble({"a": Fixed(1, 1)}).judge("p", PICTURES), "2 verdicts on 3 pictures"),
    (lambda: Audited(Audited(Fixed(1), Fixed(1)), Fixed(1)), "audited already")])
def test_what_makes_no_sense_is_refused(make, said):
    with pytest.raises(UserError, match=said):
        make()


def test_costs_are_those_of_all_members():
    inner = Ensemble({"x": SpendingVerifier(3), "y": FakeVerifier()})
    audited = Audited(inner, SpendingVerifier(2))
    assert audited.spent == Cost()
    audited.judge("p", PICTURES)
    assert audited.spent == Cost(judge_calls=3 * 3 + 3 + 2 * 3)
    stepper = start(REQUEST, BestOfN(4, early_stop=False), FakeGenerator(), audited, chunk=2)
    assert stepper.run().ledger.total.judge_calls == 4 * (3 + 1 + 2)


def test_what_a_member_spent_before_another_failed_is_counted():
    class Fails:
        def judge(self, prompt, pictures):
            raise RuntimeError("no")
    ensemble = Ensemble({"a": SpendingVerifier(3), "b": FakeVerifier(), "c": Fails()})
    with pytest.raises(RuntimeError):
        ensemble.judge("p", PICTURES)
    assert ensemble.spent.judge_calls == 9 + 3


def test_what_members_asked_is_handed_on():
    class Asks(FakeVerifier):
        def __init__(self):
            super().__init__()
            self.asked = []

        def judge(self, prompt, pictures):
            self.asked += [f"{prompt}?"] * len(pictures)
            return super().judge(prompt, pictures)
    member = Asks()
    audited = Audited(FakeVerifier(), Ensemble({"a": member, "b": FakeVerifier()}))
    audited.judge("p", PICTURES)
    assert audited.asked == ["p?"] * 3 and not member.asked


class Contrary(FakeVerifier):
    """Likes what the fake judge does not."""

    def verdict(self, picture):
        return Verdict(1 - quality_of(picture) / 255, True, (Check("x", "y", True),), "contrary")


@pytest.mark.parametrize("policy", [BestOfN(6), ReflectionFlow(4, 2, 4)])
def test_an_audit_never_changes_the_run(policy):
    def run(verifier):
        return start(REQUEST, policy, FakeGenerator(), verifier, FakeReflector(), chunk=3).run()
    plain, audited = run(FakeVerifier(0.7)), run(Audited(FakeVerifier(0.7), Contrary()))
    assert [c.sha256 for c in plain.candidates] == [c.sha256 for c in audited.candidates]
    for a, b in zip(plain.candidates, audited.candidates):
        found = dict(b.verdict.details)
        audit = found.pop("audit")
        assert (a.verdict.score, a.verdict.accepted, a.verdict.reason, a.verdict.checks, a.verdict.details) == (
            b.verdict.score, b.verdict.accepted, b.verdict.reason, b.verdict.checks, found)
        assert audit["score"] == pytest.approx(1 - a.score) and audit["reason"] == "contrary" and audit["judged"]
        assert audit["checks"] == [{"kind": "x", "target": "y", "passed": True, "note": ""}]


def test_the_auditor_sees_the_same_pictures_in_one_call():
    auditor = Fixed(0.1, 0.2, 0.3)
    Audited(Fixed(1, 1, 1), auditor).judge("p", PICTURES)
    assert auditor.calls == [("p", [p.tobytes() for p in PICTURES])]


@pytest.mark.parametrize("seed", range(5))
def test_ranks_are_those_of_scipy(seed):
    from scipy.stats import rankdata, spearmanr
    rng = random.Random(seed)
    a, b = ([rng.randrange(6) / 5 for _ in range(12)] for _ in "ab")
    assert average_ranks(a) == list(rankdata(a))
    assert rank_correlation(a, b) == pytest.approx(spearmanr(a, b).statistic)


def test_a_rank_correlation_there_is_not():
    assert rank_correlation([1, 1, 1], [1, 2, 3]) is None and rank_correlation([1], [2]) is None
    assert rank_correlation([1, 2, 3], [3, 2, 1]) == pytest.approx(-1)
    for order in itertools.permutations([0.1, 0.2, 0.3]):
        assert sorted(average_ranks(order)) == [1, 2, 3]
