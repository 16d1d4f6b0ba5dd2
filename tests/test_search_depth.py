"""The bound on corrections in a row: no picture is deeper, and what is corrected instead."""

from dataclasses import replace

import pytest
from fakes import REQUEST, FakeGenerator, FakeReflector, FakeVerifier, search
from hypothesis import given
from hypothesis import strategies as st

from reflect_core.search import ReflectionFlow, policy_from_json, relay
from reflect_core.search.depth import above, depth
from reflect_core.search.reflection_flow import EDITING
from reflect_core.search.registry import official_options, policy_for
from reflect_core.search.run import rank
from reflect_core.types import Pair, UserError


class Better(FakeGenerator):
    """Each correction is better than its parent, so that a search without a bound goes ever deeper."""

    def picture(self, request, salt=b""):
        image = super().picture(request, salt)
        if request.context:
            before = request.context[-1].picture.getpixel((0, 0))[0]
            image.putpixel((0, 0), (min(before + 2, 255), 0, 0))
        return image


@given(st.integers(0, 999), st.sampled_from(["chain", "best", "last"]), st.integers(1, 3), st.sampled_from([None, 8]),
       st.sampled_from([None, 1, 2]))
def test_no_picture_is_deeper(seed, parents, most, levels, patience):
    policy = ReflectionFlow(3, 2, 7, parents=parents, max_depth=most, patience=patience if parents == "chain" else None)
    _, run = search(policy, seed=seed, levels=levels)
    depths = [depth(run, c.id) for c in run.candidates]
    assert len(depths) == policy.most_pictures and max(depths) <= most
    for c, deep in zip(run.candidates, depths):
        assert deep == (depths[c.parent] + 1 if c.request.context else 0)
    assert [c.id for c in above(run, run.candidates, most)] == [k for k, deep in enumerate(depths) if deep < most]


@pytest.mark.parametrize("parents", ["chain", "best", "last"])
def test_a_bound_that_is_never_reached_changes_nothing(parents):
    for seed in range(5):
        free, bound = (search(ReflectionFlow(4, 2, 6, parents=parents, max_depth=most), seed=seed)[1]
                       for most in (None, 6))
        assert [(c.sha256, c.parent) for c in free.candidates] == [(c.sha256, c.parent) for c in bound.candidates]
    _, run = search(ReflectionFlow(1, 1, 6), generator=Better())
    assert [depth(run, c.id) for c in run.candidates] == list(range(7))


def test_the_bound_is_reached_and_the_best_shallower_one_is_tried_again():
    _, run = search(ReflectionFlow(1, 1, 6, max_depth=2), generator=Better())
    assert [depth(run, c.id) for c in run.candidates] == [0, 1, 2, 2, 2, 2, 2]
    assert [c.parent for c in run.candidates] == [None, 0, 1, 1, 1, 1, 1]
    assert len({c.sha256 for c in run.candidates}) == 7, "each time from other noise"
    # And the deepest may be the answer.
    assert depth(run, run.best().id) == 2


def test_patience_lets_a_branch_at_the_bound_start_anew():
    _, run = search(ReflectionFlow(1, 1, 8, max_depth=2, patience=2), generator=Better())
    assert [depth(run, c.id) for c in run.candidates] == [0, 1, 2, 2, 0, 1, 2, 2, 0]
    assert [c.parent for c in run.candidates] == [None, 0, 1, 1, None, 4, 5, 5, None]


@given(st.integers(0, 999), st.integers(1, 3))
def test_chain_corrects_a_branchs_best_that_may_be_corrected(seed, most):
    _, run = search(ReflectionFlow(4, 2, 6, max_depth=most), seed=seed)
    for branch in range(2):
        line = [run.ranked(run.in_round(0))[branch]]
        for round in range(1, 7):
            child = next(c for c in run.in_round(round) if c.branch == branch)
            may = [c for c in line if depth(run, c.id) < most]
            best = max(rank(c.verdict) for c in may)
            assert rank(run.candidate(child.parent).verdict) == best
            line.append(child)


def test_last_goes_back_when_all_of_its_round_are_too_deep():
    _, run = search(ReflectionFlow(3, 2, 2, parents="last", max_depth=1), generator=Better())
    pool = [c.id for c in run.ranked(run.in_round(0))[:2]]
    assert [c.parent for c in run.in_round(1)] == [c.parent for c in run.in_round(2)] == pool


def test_a_redraw_and_a_picture_from_outside_are_no_corrections():
    _, run = search(ReflectionFlow(1, 1, 3, max_depth=1), reflector=FakeReflector(silent_below=9))
    assert [depth(run, c.id) for c in run.candidates] == [0] * 4
    run.candidates[1] = replace(run.candidates[1], request=replace(
        REQUEST, context=(Pair("add", picture=run.picture(0)),)))
    assert depth(run, 1) == 1


def test_records_from_before_have_no_bound():
    old = {k: v for k, v in ReflectionFlow(4, 2, 3).to_json().items() if k != "max_depth"}
    assert policy_from_json(old) == ReflectionFlow(4, 2, 3)
    with pytest.raises(UserError, match="max_depth of reflection_flow must be a whole number from 1 on"):
        ReflectionFlow(max_depth=0)


def test_an_editors_own_search():
    edits = policy_for("reflection_flow", 20, edits=True)
    assert edits == ReflectionFlow.for_budget(20, **EDITING) and edits.max_depth == 3 and edits.patience == 3
    assert policy_for("reflection_flow", 20) == ReflectionFlow.for_budget(20)
    official = policy_for("official", None, edits=True)
    assert official == replace(ReflectionFlow.official(), max_depth=3)
    assert official_options("reflection_flow", edits=True) == {} != official_options("reflection_flow")
    assert policy_for("best_of_n", 8, edits=True) == policy_for("best_of_n", 8)


@pytest.mark.parametrize("edits", [True, False])
def test_a_graph_has_the_bound_too(edits):
    generator = Better()
    generator.edits = edits
    judge, reflector = FakeVerifier(2), FakeReflector()
    so_far = None
    for _ in range(7):
        so_far = relay.judge(relay.draw(so_far, REQUEST, 1, generator), judge)
        so_far = relay.reflect(so_far, reflector)
    depths = [depth(so_far.run, c.id) for c in so_far.run.candidates]
    assert depths == ([0, 1, 2, 3, 3, 3, 3] if edits else list(range(7)))
    assert so_far.policy_drawn().max_depth == (3 if edits else None)
