"""The rules of each policy, against fake actors."""

import pytest
from fakes import SIZE, FakeGenerator, FakeRefiner, FakeReflector, FakeVerifier, quality_of
from hypothesis import given
from hypothesis import strategies as st

from reflect_core.search import (
    BestOfN,
    Draw,
    NoisePromptScaling,
    Reflect,
    ReflectionFlow,
    Run,
    Stop,
    derive_seed,
    start,
)
from reflect_core.search.run import rank
from reflect_core.types import Request, UserError

REQUEST = Request("two red circles", seed=3, width=SIZE, height=SIZE, steps=4)


def search(policy, seed=3, threshold=2.0, levels=None, chunk=4, reflector=None, generator=None):
    stepper = start(Request("two red circles", seed=seed, width=SIZE, height=SIZE, steps=4), policy,
                    generator or FakeGenerator(), FakeVerifier(threshold, levels),
                    reflector or FakeReflector(), FakeRefiner(), chunk=chunk)
    return stepper, stepper.run()


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
            from dataclasses import replace
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


# ReflectionFlow.

def test_a_correction_sees_its_parent_and_its_reflection():
    generator = FakeGenerator()
    _, run = search(ReflectionFlow(4, 2, 3), generator=generator)
    corrections = [c for c in run.candidates if c.round]
    assert len(corrections) == 6
    for c in corrections:
        (pair,) = c.request.context
        parent = run.candidate(c.parent)
        assert pair.candidate == c.parent and pair.picture is None
        assert pair.feedback == f"better than {parent.score:.4f}"
        assert c.request.prompt == "two red circles" and c.request.original_prompt is None
    seen = [r.context[0].picture for r in generator.drawn if r.context]
    assert [quality_of(p) for p in seen] == [quality_of(run.picture(c.parent)) for c in corrections]


def test_the_first_parents_are_the_best_of_the_pool():
    _, run = search(ReflectionFlow(6, 2, 1))
    pool = sorted(run.in_round(0), key=lambda c: (-c.score, c.id))
    assert [c.parent for c in run.in_round(1)] == [c.id for c in pool[:2]]


@given(st.integers(0, 999), st.sampled_from([None, 8]), st.sampled_from([None, 1, 2]))
def test_chain_keeps_the_best_of_each_branch(seed, levels, patience):
    policy = ReflectionFlow(4, 2, 6, patience=patience)
    _, run = search(policy, seed=seed, levels=levels)
    for branch in range(2):
        leader = run.ranked(run.in_round(0))[branch]
        failures = 0
        for round in range(1, 7):
            child = next(c for c in run.in_round(round) if c.branch == branch)
            assert child.parent == (leader.id if leader else None)
            if leader is None or rank(child.verdict) >= rank(leader.verdict):
                leader, failures = child, 0
            else:
                failures += 1
            if patience and failures >= patience:
                leader, failures = None, 0
    if patience is None:
        # Elitism: the parents never get worse.
        for branch in range(2):
            scores = [run.candidate(c.parent).score for c in run.candidates if c.round and c.branch == branch]
            assert scores == sorted(scores)


@given(st.integers(0, 999))
def test_best_takes_the_best_so_far(seed):
    _, run = search(ReflectionFlow(4, 2, 4, parents="best"), seed=seed)
    for round in range(1, 5):
        before = [c for c in run.candidates if c.round < round]
        assert [c.parent for c in run.in_round(round)] == [c.id for c in run.ranked(before)[:2]]


@given(st.integers(0, 999))
def test_last_takes_the_last_children_whatever_they_are(seed):
    _, run = search(ReflectionFlow(4, 2, 4, parents="last"), seed=seed)
    for round in range(2, 5):
        assert [c.parent for c in run.in_round(round)] == [c.id for c in run.ranked(run.in_round(round - 1))]


def test_official_counts():
    """Spec 4.2: 64 pictures, 64 language-model calls for reflecting and refining, 94 verdicts."""
    stepper, run = search(ReflectionFlow.official(), threshold=0.2)
    assert run.ledger.items == {"generator": 64, "verifier": 94, "reflector": 32, "refiner": 32}
    assert run.ledger.total.denoiser_evaluations == 2 * (32 * 30 + 32 * 28)
    assert stepper.best.round > 0
    assert run.stopped.kind == "done"
    # Bug 3: prompts travel with their parents here.
    for c in run.candidates:
        if c.round:
            assert c.request.prompt.startswith(run.candidate(c.parent).request.prompt + ", refined at ")


def test_the_pool_in_the_choice():
    def drop(policy):
        class Worse(FakeGenerator):
            def picture(self, request, salt=b""):
                image = super().picture(request, salt)
                if request.context:
                    image.putpixel((0, 0), (0, 0, 0))
                return image
        return search(policy, generator=Worse())[0].best.round
    assert drop(ReflectionFlow(4, 2, 2)) == 0
    assert drop(ReflectionFlow(4, 2, 2, pool_in_choice=False)) > 0
    # With nothing else to choose from, the pool it is.
    assert drop(ReflectionFlow(4, 2, 0, pool_in_choice=False)) == 0


@pytest.mark.parametrize("reflect", [True, False])
@pytest.mark.parametrize("refine", [True, False])
def test_all_four_combinations_work(reflect, refine):
    """Spec 7 item 6: two of them crash in the official script."""
    _, run = search(ReflectionFlow(3, 2, 2, reflect=reflect, refine=refine))
    assert len(run.candidates) == 7
    for c in run.candidates[3:]:
        assert bool(c.request.context[0].feedback) == reflect
        assert (c.request.original_prompt is not None) == refine
    assert run.ledger.items["reflector"] == (4 if reflect else 0)
    assert run.ledger.items["refiner"] == (4 if refine else 0)


def test_a_silent_reflector():
    silent = FakeReflector(silent_below=9)
    _, run = search(ReflectionFlow(3, 2, 2), reflector=silent)
    assert all(c.request.context == () and c.parent is None for c in run.candidates)
    assert len({c.sha256 for c in run.candidates}) == 7
    _, run = search(ReflectionFlow(3, 2, 2, silent="correct"), reflector=silent)
    assert all(c.request.context[0].feedback == "" for c in run.candidates[3:])


def test_a_branch_that_was_redrawn_goes_on_from_the_better_one():
    class Once(FakeReflector):
        def reflect(self, prompt, pictures, verdicts):
            texts = super().reflect(prompt, pictures, verdicts)
            return texts if len(self.calls) > 1 else [""] * len(texts)
    _, run = search(ReflectionFlow(2, 1, 2), reflector=Once())
    first, redrawn = run.ranked(run.in_round(0))[0], run.in_round(1)[0]
    assert redrawn.parent is None
    assert run.in_round(2)[0].parent == (redrawn if redrawn.score >= first.score else first).id


def test_reflections_are_asked_for_again_or_not():
    class Worse(FakeGenerator):
        def picture(self, request, salt=b""):
            image = super().picture(request, salt)
            if request.context:
                image.putpixel((0, 0), (0, 0, 0))
            return image
    _, run = search(ReflectionFlow(2, 2, 3), generator=Worse())
    assert run.ledger.items["reflector"] == 6
    _, run = search(ReflectionFlow(2, 2, 3, reflect_again=False), generator=Worse())
    assert run.ledger.items["reflector"] == 2
    assert all(c.request.context[0].feedback for c in run.candidates[2:])


def test_fewer_pictures_than_branches():
    _, run = search(ReflectionFlow(1, 3, 2))
    assert [c.parent for c in run.in_round(1)] == [0, 0, 0] and run.ledger.items["reflector"] <= 4
    _, run = search(ReflectionFlow(1, 3, 2, repeat_parents=False))
    assert len(run.in_round(1)) == len(run.in_round(2)) == 1


def test_early_stop_in_the_pool_and_in_a_round():
    _, run = search(ReflectionFlow(8, 2, 9), threshold=0.3, chunk=2)
    assert run.stopped.kind == "accepted" and run.rounds == 1 and len(run.candidates) < 8
    stepper, run = search(ReflectionFlow(2, 1, 40), threshold=0.95)
    assert run.stopped.kind == "accepted" and run.rounds > 1 and stepper.best is run.candidates[-1]


def test_judge_again_uses_the_second_verdict_for_the_order():
    class Fickle(FakeVerifier):
        """Scores the same picture differently the second time, as a language model may."""
        def __init__(self):
            super().__init__(2)
            self.seen = set()

        def verdict(self, picture):
            from dataclasses import replace
            verdict, again = super().verdict(picture), picture.tobytes() in self.seen
            self.seen.add(picture.tobytes())
            return replace(verdict, score=1 - verdict.score) if again else verdict
    policy = ReflectionFlow(4, 2, 3, parents="last", judge_again=True, early_stop=False)
    run = start(REQUEST, policy, FakeGenerator(), Fickle(), FakeReflector()).run()
    for round in (2, 3):
        children = run.in_round(round - 1)
        assert all(len(run.verdicts(c.id)) == 2 for c in children)
        assert [c.parent for c in run.in_round(round)] == [
            c.id for c in sorted(children, key=lambda c: (c.score, c.id))]
    assert all(len(run.verdicts(c.id)) == 1 for c in run.in_round(0) + run.in_round(3))


def test_no_rounds_is_best_of_pool_and_needs_nobody():
    policy = ReflectionFlow(5, 2, 0)
    assert not policy.needs and policy.max_context == 0
    run = start(REQUEST, policy, FakeGenerator(max_context=0), FakeVerifier(2)).run()
    assert len(run.candidates) == 5


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
    lambda: ReflectionFlow.for_budget(0), lambda: NoisePromptScaling.for_budget(-2)])
def test_settings_out_of_range(make):
    with pytest.raises(UserError, match="must be"):
        make()


def test_actions_come_in_the_order_of_the_paper():
    stepper = start(REQUEST, ReflectionFlow(2, 1, 1, refine=True), FakeGenerator(), FakeVerifier(2),
                    FakeReflector(), FakeRefiner())
    names = [type(stepper.step()).__name__ for _ in range(5)]
    assert names == ["Draw", "Reflect", "Refine", "Draw", "Stop"]
    assert isinstance(stepper.step(), Stop)
    assert Draw and Reflect
