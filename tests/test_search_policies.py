"""The rules of each policy, against fake actors."""

from dataclasses import replace

import pytest
from fakes import REQUEST, SIZE, FakeGenerator, FakeRefiner, FakeReflector, FakeVerifier, search
from hypothesis import given
from hypothesis import strategies as st

from reflect_core.search import (
    BestOfN,
    NoisePromptScaling,
    ReflectionFlow,
    Run,
    derive_seed,
    start,
)
from reflect_core.types import Request, UserError

# Seeds.

def test_seeds_are_this_function_for_good():
    assert derive_seed(7, "noise", 0) == 3869842402
    assert derive_seed(7, "correction", 2, 1) == 3651233412
    assert derive_seed(7, "noise", 11) != derive_seed(71, "noise", 1)


def test_policies_share_the_noise_of_the_first_pictures():
    seeds = [[c.request.seed for c in search(policy)[1].candidates][:4]
             for policy in (BestOfN(4), ReflectionFlow(pool=4), NoisePromptScaling(2, 2))]
    assert seeds[0] == seeds[1] == seeds[2]


@given(st.integers(0, 2**64), st.integers(1, 24))
def test_no_two_pictures_of_a_run_share_a_seed(seed, n):
    _, run = search(ReflectionFlow.for_budget(n), seed=seed)
    assert len({c.request.seed for c in run.candidates}) == len(run.candidates)


# Purity.

@given(st.sampled_from([BestOfN(6), NoisePromptScaling(2, 3), ReflectionFlow.for_budget(12),
                        ReflectionFlow(3, 2, 3, refine=True, patience=1), ReflectionFlow(3, 2, 3, parents="best"),
                        ReflectionFlow(3, 2, 3, parents="last", judge_again=True)]), st.integers(0, 99))
def test_next_is_a_pure_function_of_the_run(policy, seed):
    """An equal policy that has seen nothing before says the same at every step."""
    run = Run(Request("x", seed, SIZE, SIZE, 4), chunk=3)
    from reflect_core.search import Stepper
    stepper = Stepper(run, policy, FakeGenerator(), FakeVerifier(0.9), FakeReflector(), FakeRefiner())
    while run.stopped is None:
        expected = type(policy)(**{k: v for k, v in policy.to_json().items() if k != "name"}).next(run)
        assert policy.next(run) == expected
        assert stepper.step() == expected


# Best of n.

def test_best_of_n_draws_n_and_takes_the_best():
    stepper, run = search(BestOfN(10), chunk=4)
    assert len(run.candidates) == 10 and run.stopped.kind == "done"
    assert [len(c) for c in run.chunks] == [4, 4, 2]
    assert stepper.best.score == max(c.score for c in run.candidates)


def test_best_of_n_stops_after_the_chunk_with_an_accepted_picture():
    stepper, run = search(BestOfN(40), threshold=0.6, chunk=3)
    assert run.stopped.kind == "accepted" and stepper.best.accepted
    assert len(run.candidates) == (run.accepted.id // 3 + 1) * 3
    _, full = search(BestOfN(40, early_stop=False), threshold=0.6, chunk=3)
    assert len(full.candidates) == 40
    assert [c.sha256 for c in full.candidates][:len(run.candidates)] == [c.sha256 for c in run.candidates]


def test_an_accepted_picture_wins_over_a_higher_score():
    class Odd(FakeVerifier):
        def verdict(self, picture):
            verdict = super().verdict(picture)
            return replace(verdict, accepted=0.3 < verdict.score < 0.5)
    stepper = start(REQUEST, BestOfN(16, early_stop=False), FakeGenerator(), Odd())
    run = stepper.run()
    assert stepper.best.accepted and stepper.best.score < max(c.score for c in run.candidates)


# Noise and prompt scaling.

def test_prompt_chains_stay_their_own():
    """Each branch's prompt grows from its own picture's verdict; spec 7 item 1 is not reproduced."""
    _, run = search(NoisePromptScaling(3, 4))
    assert len(run.candidates) == 12
    for c in run.candidates:
        assert c.request.context == ()
        if c.round:
            parent = run.candidate(c.parent)
            assert (parent.branch, parent.round) == (c.branch, c.round - 1)
            assert c.request.prompt == f"{parent.request.prompt}, refined at {parent.score:.4f}"
            assert c.request.original_prompt == "two red circles"
        else:
            assert c.request.original_prompt is None and c.parent is None


def test_the_last_round_is_not_refined_for_nothing():
    _, run = search(NoisePromptScaling.official(), threshold=0.1)
    assert run.ledger.items == {"generator": 32, "verifier": 32, "reflector": 0, "refiner": 30}


def test_a_refiner_that_answers_nothing_leaves_the_prompt():
    class Mute:
        def refine(self, prompt, currents, *_):
            return [" \n"] * len(currents)
    run = start(REQUEST, NoisePromptScaling(2, 3), FakeGenerator(), FakeVerifier(2), refiner=Mute()).run()
    assert {c.request.prompt for c in run.candidates} == {"two red circles"}
    assert {c.request.original_prompt for c in run.candidates} == {None}


@given(st.integers(1, 100))
def test_for_budget_is_exact(n):
    for cls in (BestOfN, NoisePromptScaling, ReflectionFlow):
        assert cls.for_budget(n).most_pictures == n


# What does not fit.

def test_what_is_missing_is_said_before_drawing():
    generator = FakeGenerator(max_context=0)
    with pytest.raises(UserError, match="needs a reflector"):
        start(REQUEST, ReflectionFlow(), generator, FakeVerifier())
    with pytest.raises(UserError, match="needs a refiner"):
        start(REQUEST, NoisePromptScaling(), generator, FakeVerifier())
    with pytest.raises(UserError, match="takes 0"):
        start(REQUEST, ReflectionFlow(), generator, FakeVerifier(), FakeReflector())
    assert not generator.drawn


@pytest.mark.parametrize("make", [
    lambda: BestOfN(0), lambda: BestOfN(-4), lambda: BestOfN(2.5),
    lambda: BestOfN(4, early_stop=None), lambda: NoisePromptScaling(0, 1), lambda: NoisePromptScaling(1, 0),
    lambda: ReflectionFlow(pool=0), lambda: ReflectionFlow(rounds=-1), lambda: ReflectionFlow(silent="shout"),
    lambda: ReflectionFlow(corrector_steps=0), lambda: ReflectionFlow(early_stop="yes"),
    lambda: ReflectionFlow(corrector_guidance=float("nan")), lambda: ReflectionFlow(corrector_guidance="3"),
    lambda: ReflectionFlow(corrector_guidance=True), lambda: ReflectionFlow(corrector_guidance=-1),
    lambda: ReflectionFlow(patience=2, parents="best"), lambda: ReflectionFlow(patience=1, parents="last"),
    lambda: ReflectionFlow.for_budget(0), lambda: NoisePromptScaling.for_budget(-2)])
def test_settings_out_of_range(make):
    with pytest.raises(UserError, match="must be"):
        make()
