"""The run as data: order, ties, the ledger, and what cannot follow what."""

import pytest
from fakes import SIZE, FakeGenerator, FakeRefiner, FakeReflector, FakeVerifier
from hypothesis import given
from hypothesis import strategies as st

from reflect_core.search import BestOfN, ReflectionFlow, Run, start
from reflect_core.search.entries import Drew, Judged, Plan, Planned, Reflected, Stopped
from reflect_core.types import Cost, Pair, Request, UserError, Verdict

REQUEST = Request("two red circles", seed=3, width=SIZE, height=SIZE, steps=4)


def judged(*verdicts):
    """A run of plain candidates with these verdicts."""
    run = Run(REQUEST)
    n = len(verdicts)
    run.apply(Plan(0, tuple(Planned(REQUEST, i) for i in range(n)), (n,)))
    run.apply(Drew(0, ("",) * n, (Cost(pictures=1),) * n))
    run.apply(Judged(tuple(range(n)), verdicts))
    return run


@given(st.lists(st.tuples(st.integers(0, 3), st.booleans()), min_size=1, max_size=12))
def test_best_is_accepted_then_highest_then_earliest(words):
    run = judged(*(Verdict(score / 3, accepted) for score, accepted in words))
    expected = min(range(len(words)), key=lambda i: (not words[i][1], -words[i][0], i))
    assert run.best().id == expected
    assert [c.id for c in run.ranked()] == sorted(range(len(words)),
                                                  key=lambda i: (not words[i][1], -words[i][0], i))
    first = next((i for i, (_, accepted) in enumerate(words) if accepted), None)
    assert (run.accepted.id if run.accepted else None) == first


def test_best_among_some():
    run = judged(Verdict(0.2, False), Verdict(0.9, False), Verdict(0.5, False))
    assert run.best(run.candidates[:1]).id == 0
    assert run.best([]) is None and Run(REQUEST).best() is None


def test_tree():
    with start(REQUEST, ReflectionFlow(pool=2, branches=1, rounds=3, parents="last", early_stop=False),
               FakeGenerator(), FakeVerifier(), FakeReflector()) as stepper:
        run = stepper.run()
    line = run.lineage(4)
    assert [c.id for c in line] == [line[0].id, 2, 3, 4] and line[0].round == 0
    assert [c.id for c in run.children(2)] == [3]
    assert run.candidate(4).request.context[0].candidate == 3
    assert run.reflection(3) == run.candidate(4).request.context[0].feedback == run.reflection(3, round=3)
    assert run.reflection(3, round=1) is None and run.reflection(4) is None
    assert run.rounds == 4 and [c.id for c in run.in_round(0)] == [0, 1]


def test_a_second_verdict_orders_parents_but_not_the_answer():
    run = judged(Verdict(0.5, False), Verdict(0.4, False))
    run.apply(Judged((1,), (Verdict(0.9, False),)))
    assert run.best().id == 0 and run.candidate(1).score == 0.4
    assert run.ranked(latest=True)[0].id == 1 and len(run.verdicts(1)) == 2


def test_ledger_adds_up_by_actor():
    with start(REQUEST, ReflectionFlow(pool=3, branches=2, rounds=2, refine=True, early_stop=False),
               FakeGenerator(), FakeVerifier(), FakeReflector(), FakeRefiner()) as stepper:
        run = stepper.run()
    ledger = run.ledger
    assert ledger.items == {"generator": 7, "verifier": 7, "reflector": 4, "refiner": 4}
    assert ledger.by_actor["generator"].denoiser_evaluations == 7 * 4 * 2
    assert ledger.total.pictures == 7 and ledger.total.judge_calls == 7
    assert ledger.seconds == pytest.approx(ledger.total.seconds + ledger.overhead_seconds)
    assert 0 < ledger.overhead_share < 1
    assert ledger.copy() == ledger and ledger.copy() is not ledger


PLAN = Plan(0, (Planned(REQUEST), Planned(REQUEST, 1)), (2,))


@pytest.mark.parametrize("entries, words", [
    ([Drew(0, ("",), (Cost(),))], "no plan"),
    ([PLAN, PLAN], "before the one before"),
    ([Plan(0, (Planned(REQUEST),), (2,))], "do not add up"),
    ([Plan(0, (Planned(REQUEST),), (1, 0))], "do not add up"),
    ([Plan(0, (Planned(Request("x", 1, context=(Pair("f", 0),))),), (1,))], "no candidate 0"),
    ([Plan(0, (Planned(REQUEST, 0, 4),), (1,))], "no candidate 4"),
    ([PLAN, Drew(0, ("",), (Cost(),))], "expected 2 from 0"),
    ([PLAN, Drew(1, ("", ""), (Cost(), Cost()))], "expected 2 from 0"),
    ([PLAN, Drew(0, ("", ""), (Cost(), Cost())), Judged((0,), (Verdict(1, True),))], r"expected \(0, 1\)"),
    ([PLAN, Drew(0, ("", ""), (Cost(), Cost())), Judged((0, 1), (Verdict(1, True),))], "1 answers for 2"),
    ([Judged((), ())], "nothing"),
    ([Reflected(1, (0,), ("x",))], "no candidate 0"),
    ([Stopped("done", ""), PLAN], "after the stop"),
])
def test_entries_that_cannot_follow(entries, words):
    run = Run(REQUEST)
    with pytest.raises(UserError, match=words):
        for entry in entries:
            run.apply(entry)


@pytest.mark.parametrize("changes", [
    {"prompt": ""}, {"prompt": "  \n"}, {"prompt": None}, {"seed": -1}, {"seed": 1.5}, {"seed": True},
    {"width": 0}, {"steps": -3}, {"height": 1.0}, {"width": True}, {"height": True}, {"steps": True},
    {"guidance": float("nan")}, {"guidance": float("inf")}, {"guidance": "3"}, {"guidance": True}, {"guidance": -1},
    {"guidance": None}, {"prompt": "half \ud83d"}, {"context": (Pair("x"),)}, {"original_prompt": "x"}])
def test_requests_that_cannot_start_a_run(changes, tmp_path):
    request = Request(**{"prompt": "x", "seed": 1, **changes})
    with pytest.raises(UserError, match="expected|must be"):
        Run(request)
    # Nor one on record, which would be refused as damaged later.
    with pytest.raises(UserError):
        start(request, BestOfN(1), FakeGenerator(), FakeVerifier(), folder=tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("chunk", [0, -1, 2.0, True])
def test_bad_chunks(chunk):
    with pytest.raises(UserError, match="chunk"):
        Run(REQUEST, chunk)


def test_unknown_candidate():
    with pytest.raises(UserError, match="no candidate 5"):
        Run(REQUEST).candidate(5)
