"""ReflectionFlow's rules, each of its settings, and the official script's numbers."""

from dataclasses import replace

import pytest
from fakes import REQUEST, FakeGenerator, FakeRefiner, FakeReflector, FakeVerifier, quality_of, search
from hypothesis import given
from hypothesis import strategies as st

from reflect_core.search import Draw, Reflect, ReflectionFlow, Stop, start
from reflect_core.search.run import rank


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
    # Item 11: corrections go with 28 steps and guidance 3.5 whatever is asked for.
    run = start(replace(REQUEST, steps=7, guidance=5.0), ReflectionFlow.official(), FakeGenerator(), FakeVerifier(2),
                FakeReflector(), FakeRefiner()).run()
    assert {(c.round > 0, c.request.steps, c.request.guidance) for c in run.candidates} == {(False, 30, 5.0),
                                                                                           (True, 28, 3.5)}
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


def test_a_redraw_with_a_rewritten_prompt_comes_from_its_parent():
    """Its picture does not, but its prompt does: in the tree it hangs where that was rewritten."""
    silent = FakeReflector(silent_below=9)
    _, run = search(ReflectionFlow(3, 2, 2, refine=True), reflector=silent)
    for c in run.candidates[3:]:
        assert c.request.context == () and c.request.original_prompt == "two red circles"
        assert c.request.prompt == run.refinement(c.parent, c.round)


def test_a_redraw_is_no_correction_to_choose():
    """`pool_in_choice=False` asks for a correction, and a redraw in a later round is none."""
    class Mute(FakeReflector):
        def reflect(self, prompt, pictures, verdicts):
            return ["", *super().reflect(prompt, pictures, verdicts)[1:]]

    class Worse(FakeGenerator):
        def picture(self, request, salt=b""):
            image = super().picture(request, salt)
            if request.context:
                image.putpixel((0, 0), (0, 0, 0))
            return image
    stepper, run = search(ReflectionFlow(3, 2, 2, pool_in_choice=False), reflector=Mute(), generator=Worse())
    assert any(c.round and not c.request.context and c.score > stepper.best.score for c in run.candidates)
    assert stepper.best.request.context


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


def test_actions_come_in_the_order_of_the_paper():
    stepper = start(REQUEST, ReflectionFlow(2, 1, 1, refine=True), FakeGenerator(), FakeVerifier(2),
                    FakeReflector(), FakeRefiner())
    names = [type(stepper.step()).__name__ for _ in range(5)]
    assert names == ["Draw", "Reflect", "Refine", "Draw", "Stop"]
    assert isinstance(stepper.step(), Stop)
    assert Draw and Reflect
