"""A run handed from hand to hand comes out as the same policy's in one piece, and earlier ones never change."""

from dataclasses import replace

import pytest
from fakes import REQUEST, SIZE, FakeGenerator, FakeRefiner, FakeReflector, FakeVerifier, quality_of
from PIL import Image

from reflect_core.judges import find_judge
from reflect_core.reflectors import SpokenReflector
from reflect_core.search import (
    BestOfN,
    Budget,
    NoisePromptScaling,
    ReflectDiTSearch,
    ReflectionFlow,
    keep,
    load,
    relay,
    replay,
    start,
)
from reflect_core.search.decision import decide, finish
from reflect_core.search.run import Run
from reflect_core.types import UserError


def rounds(count, n=2, threshold=2.0, reflector=True, refiner=False, generator=None, so_far=None, request=REQUEST):
    """A loop as a graph does it. Returns the runs after each verdict."""
    generator, verifier, after = generator or FakeGenerator(), FakeVerifier(threshold), []
    for _ in range(count):
        so_far = relay.judge(relay.draw(so_far, request, n, generator), verifier)
        after.append(so_far)
        if reflector:
            so_far = relay.reflect(so_far, FakeReflector())
        if refiner:
            so_far = relay.refine(so_far, FakeRefiner())
    return after


def drawn(run):
    return [(c.request, c.parent, c.round, c.branch, c.sha256, c.verdict) for c in run.candidates]


@pytest.mark.parametrize("n", [1, 2, 3])
@pytest.mark.parametrize("reflector, refiner, policy", [
    (True, False, lambda n: ReflectionFlow(n, n, 4, early_stop=False)),
    (True, True, lambda n: ReflectionFlow(n, n, 4, refine=True, early_stop=False)),
    (False, True, lambda n: NoisePromptScaling(n, 5, early_stop=False))])
def test_a_loop_draws_what_the_policy_draws(n, reflector, refiner, policy):
    whole = start(REQUEST, policy(n), FakeGenerator(), FakeVerifier(2), FakeReflector(), FakeRefiner(), chunk=n).run()
    assert drawn(rounds(5, n, reflector=reflector, refiner=refiner)[-1].run) == drawn(whole)


def test_a_loop_without_words_draws_the_noises_of_best_of_n():
    whole = start(REQUEST, BestOfN(6, early_stop=False), FakeGenerator(), FakeVerifier(2), chunk=2).run()
    mine = rounds(3, reflector=False)[-1].run
    assert [(c.request, c.sha256) for c in mine.candidates] == [(c.request, c.sha256) for c in whole.candidates]
    assert [c.round for c in mine.candidates] == [0, 0, 1, 1, 2, 2]


def test_earlier_runs_stay_as_they_were_and_can_be_gone_on_from():
    after = rounds(3)
    before = [drawn(one.run) for one in after]
    said = relay.reflect(after[0], FakeReflector())
    other = relay.draw(said, replace(REQUEST, seed=99), 2, FakeGenerator())
    assert [drawn(one.run) for one in after] == before
    assert [c.sha256 for c in other.run.candidates][:2] == [c.sha256 for c in after[0].run.candidates]
    assert [c.sha256 for c in other.run.candidates][2:] != [c.sha256 for c in after[1].run.candidates][2:]
    # Each has the pictures of its own future.
    assert other.run.picture(2).tobytes() != after[1].run.picture(2).tobytes()


def test_an_accepted_run_is_passed_on_as_it_is():
    generator = FakeGenerator()
    accepted = rounds(1, threshold=0.0, generator=generator)[0]
    for hand in (lambda: relay.draw(accepted, REQUEST, 2, None), lambda: relay.judge(accepted, None),
                 lambda: relay.reflect(accepted, None), lambda: relay.refine(accepted, None)):
        assert hand() is accepted
    assert len(generator.drawn) == 2


def test_seed_steps_and_number_may_change_on_the_way():
    so_far = relay.reflect(rounds(1, 3)[0], FakeReflector())
    after = relay.draw(so_far, replace(REQUEST, steps=9, guidance=1.5), 2, FakeGenerator())
    new = after.run.in_round(1)
    assert [c.request.steps for c in new] == [9, 9] and {c.request.guidance for c in new} == {1.5}
    assert all(c.request.context for c in new)


@pytest.mark.parametrize("hand, said", [
    (lambda run: relay.draw(run, REQUEST, 2, FakeGenerator()), "nobody has judged"),
    (lambda run: relay.reflect(run, FakeReflector()), "no verdicts to be reflected on"),
    (lambda run: relay.judge(replace(run, run=Run(REQUEST)), FakeVerifier()), "no pictures to judge"),
    (lambda run: relay.refine(run, FakeRefiner()), "no verdicts to be refined"),
    (lambda run: decide(run), "no verdicts to be decided on"),
    (lambda run: relay.draw(relay.judge(run, FakeVerifier(2)), replace(REQUEST, prompt="a cat"), 2, FakeGenerator()),
     "of the prompt 'two red circles'"),
    (lambda run: relay.with_pictures(run, []), "got 0 pictures for the 2"),
])
def test_what_comes_in_the_wrong_order_is_said(hand, said):
    with pytest.raises(UserError, match=said):
        hand(relay.draw(None, REQUEST, 2, FakeGenerator()))


def test_an_actor_that_fails_leaves_the_run_as_it_was():
    so_far = relay.reflect(rounds(1)[0], FakeReflector())
    before = drawn(so_far.run)
    with pytest.raises(RuntimeError):
        relay.draw(so_far, REQUEST, 2, FakeGenerator(fail_at=1))
    assert drawn(so_far.run) == before
    assert drawn(relay.judge(relay.draw(so_far, REQUEST, 2, FakeGenerator()), FakeVerifier(2)).run) == \
        drawn(rounds(2)[1].run)


def test_pictures_from_outside_can_be_judged_and_corrected():
    outside = [Image.new("RGB", (SIZE, SIZE), (red, 0, 0)) for red in (10, 200)]
    run = relay.judge(relay.from_pictures(REQUEST.prompt, outside), FakeVerifier(2))
    assert [c.score for c in run.run.candidates] == [10 / 255, 200 / 255]
    after = relay.draw(relay.reflect(run, FakeReflector()), REQUEST, 1, FakeGenerator())
    (new,) = after.run.in_round(1)
    assert new.parent == 1 and new.request.context[0].feedback == "better than 0.7843"
    assert abs(quality_of(after.run.picture(new.id)) - 200) <= 40
    with pytest.raises(UserError, match="sizes"):
        relay.from_pictures("x", [outside[0], Image.new("RGB", (4, 4))])


def test_pictures_that_somebody_worked_on_take_the_place_of_the_drawn_ones():
    so_far = relay.draw(None, REQUEST, 2, FakeGenerator())
    better = [Image.new("RGB", (2 * SIZE, 2 * SIZE), (red, 0, 0)) for red in (100, 150)]
    after = relay.judge(relay.with_pictures(so_far, better), FakeVerifier(2))
    assert [c.score for c in after.run.candidates] == [100 / 255, 150 / 255]
    assert [c.verdict for c in so_far.run.candidates] == [None, None]
    grown = relay.draw(relay.reflect(after, FakeReflector()), REQUEST, 1, FakeGenerator())
    assert quality_of(grown.run.picture(2)) != 0 and grown.run.candidate(2).parent == 1


def test_decisions():
    one, two, three = rounds(3)
    assert not decide(one, rounds=2).stop and decide(one, rounds=2).kind == "go on"
    assert decide(two, rounds=2).kind == "done" and decide(two, rounds=2).reason == "all 2 rounds are drawn"
    assert decide(two, rounds=9, pictures=5).kind == "budget"
    assert not decide(two, rounds=9, pictures=6).stop
    best = three.run.best()
    assert decide(three, threshold=best.score).kind == "accepted"
    assert decide(three, threshold=best.score).chosen == best
    assert decide(three, rounds=1, keep="last").chosen.round == 2
    good = [c for c in three.run.candidates if c.score >= 0.2]
    assert decide(three, threshold=0.2, keep="accepted").chosen == good[0]
    assert decide(three, keep="accepted").chosen == best
    judged = rounds(1, threshold=0.0)[0]
    assert decide(judged).kind == "accepted" and "the judge accepted" in decide(judged).reason


@pytest.mark.parametrize("settings", [{"threshold": 1.1}, {"threshold": -0.1}, {"threshold": float("nan")},
                                      {"rounds": 0}, {"pictures": 0}, {"keep": "first"}])
def test_settings_out_of_range(settings):
    with pytest.raises(UserError, match="expected"):
        decide(rounds(1)[0], **settings)


def test_saved_it_is_a_record_like_any_other(tmp_path):
    so_far = replace(rounds(3)[-1], model="fake", fingerprint="abc", settings={"judge": "fake"})
    keep.save(so_far, tmp_path / "run")
    header, run = load(tmp_path / "run")
    assert drawn(run) == drawn(so_far.run) and (header.model, header.fingerprint) == ("fake", "abc")
    assert replay(tmp_path / "run", FakeGenerator(), "abc").same
    loaded = keep.load_run(tmp_path / "run")
    on = relay.reflect(loaded, FakeReflector())
    assert drawn(relay.judge(relay.draw(on, REQUEST, 2, FakeGenerator()), FakeVerifier(2)).run) == \
        drawn(rounds(4)[-1].run)
    with pytest.raises(UserError, match="already holds a record"):
        keep.save(so_far, tmp_path / "run")


def test_a_finished_record_of_another_policy_can_be_gone_on_with(tmp_path):
    with start(REQUEST, BestOfN(4), FakeGenerator(), FakeVerifier(2), folder=tmp_path / "run") as stepper:
        stepper.run()
    so_far = keep.load_run(tmp_path / "run")
    assert so_far.run.stopped is not None
    after = relay.draw(relay.reflect(so_far, FakeReflector()), REQUEST, 2, FakeGenerator())
    assert [c.parent for c in after.run.in_round(1)] == [c.id for c in so_far.run.ranked()[:2]]


def test_in_short_it_has_every_candidate_and_no_picture():
    short = keep.compact(replace(rounds(3)[-1], model="fake"))
    assert short["prompt"] == REQUEST.prompt and short["model"] == "fake" and len(short["candidates"]) == 6
    assert short["candidates"][4]["reflection"].startswith("better than") and "parent" in short["candidates"][4]


def test_a_pool_is_larger_than_the_rounds_after_it():
    so_far = relay.draw(None, REQUEST, 2, FakeGenerator(), first=5)
    for _ in range(3):
        so_far = relay.reflect(relay.judge(so_far, FakeVerifier(2)), FakeReflector())
        so_far = relay.draw(so_far, REQUEST, 2, FakeGenerator())
    mine = relay.judge(so_far, FakeVerifier(2)).run
    whole = start(REQUEST, ReflectionFlow(5, 2, 3, early_stop=False), FakeGenerator(), FakeVerifier(2),
                  FakeReflector(), chunk=5).run()
    assert drawn(mine) == drawn(whole)
    assert len(mine.ledger.items) and mine.ledger.items["reflector"] == 6


def test_a_model_without_a_corrector_draws_fresh_pictures_but_corrects_none():
    plain = FakeGenerator(max_context=0)
    assert len(rounds(3, reflector=False, generator=plain)[-1].run.candidates) == 6
    with pytest.raises(UserError, match="it takes 0"):
        rounds(2, generator=plain)


def test_refining_comes_after_reflecting():
    refined = relay.refine(rounds(1, reflector=False)[0], FakeRefiner())
    with pytest.raises(UserError, match="the Reflector first"):
        relay.reflect(refined, FakeReflector())


def test_the_end_is_on_record_with_the_policy_that_comes_nearest(tmp_path):
    so_far = rounds(3)[-1]
    done = finish(so_far, decide(so_far, rounds=3))
    assert done.run.stopped.reason == "all 3 rounds are drawn" and done.chosen == so_far.run.best().id
    keep.save(done, tmp_path / "run")
    header, run = load(tmp_path / "run")
    assert header.policy == ReflectionFlow(2, 2, 2).to_json() and run.stopped == done.run.stopped
    assert so_far.run.stopped is None
    on = relay.draw(relay.reflect(done, FakeReflector()), REQUEST, 2, FakeGenerator())
    assert on.run.stopped is None and len(on.run.candidates) == 8


def test_a_long_loop_holds_each_picture_once():
    """32 rounds of 1024 x 1024, all runs on the way kept, as ComfyUI's cache keeps them: 32 pictures, 96 MB."""
    after = rounds(32, n=1, request=replace(REQUEST, width=1024, height=1024))
    held = {id(one.run.picture(c.id)): one.run.picture(c.id) for one in after for c in one.run.candidates}
    assert len(after[-1].run.candidates) == 32
    assert sum(len(picture.tobytes()) for picture in held.values()) == 32 * 1024 * 1024 * 3


def test_with_nobody_to_judge_nothing_is_accepted_and_only_a_person_speaks():
    actors = find_judge("none").actors()
    so_far = relay.judge(relay.draw(None, REQUEST, 2, FakeGenerator()), actors.verifier)
    assert {(c.score, c.accepted) for c in so_far.run.candidates} == {(0.0, False)}
    silent = relay.draw(relay.reflect(so_far, actors.reflector), REQUEST, 2, FakeGenerator())
    assert all(not c.request.context for c in silent.run.in_round(1)), "nothing was said, so these are fresh"


def test_more_rounds_than_any_policy_counts_with_are_still_corrections():
    so_far = rounds(70, n=1)[-1]
    assert len(so_far.run.candidates) == 70
    assert all(c.parent is not None and c.request.context for c in so_far.run.candidates[1:])


def test_the_best_of_fresh_rounds_is_what_is_corrected():
    """Fresh rounds first, reflected on only then: a round from noise is as good a parent as the first one."""
    fresh = rounds(5, n=1, reflector=False)[-1]
    best = fresh.run.best()
    assert best.round > 0, "else the test shows nothing"
    said = relay.reflect(fresh, FakeReflector())
    (child,) = relay.draw(said, REQUEST, 1, FakeGenerator()).run.in_round(5)
    assert child.parent == best.id


def test_what_a_stopped_run_had_planned_is_not_drawn_later():
    whole = start(REQUEST, ReflectionFlow(6, 2, 3), FakeGenerator(), FakeVerifier(2), FakeReflector(), chunk=2,
                  budget=Budget(2)).run()
    assert len(whole.candidates) == 2 and whole.stopped
    said = relay.reflect(relay.RunSoFar(whole, 2), FakeReflector())
    after = relay.draw(said, REQUEST, 2, FakeGenerator())
    assert [c.round for c in after.run.candidates] == [0, 0, 1, 1] and all(c.parent in (0, 1) for c in
                                                                          after.run.candidates[2:])


def test_more_candidates_than_were_reflected_on_are_told_how_many_there_are():
    pool = relay.judge(relay.draw(None, REQUEST, 1, FakeGenerator(), first=4), FakeVerifier(2))
    said = relay.reflect(pool, FakeReflector())
    with pytest.raises(UserError, match="try candidates 1"):
        relay.draw(said, REQUEST, 3, FakeGenerator())


def test_no_run_at_all():
    with pytest.raises(UserError, match="there is no run yet"):
        relay.expect_run(None)


@pytest.mark.parametrize("say, round, expected", [
    ("replace", 1, "one two"), ("add", 2, "more, one two"), ("line by line", 1, "one"), ("line by line", 2, "two"),
    ("line by line", 3, "more")])
def test_words_of_a_person(say, round, expected):
    class Judge:
        def reflect(self, prompt, pictures, verdicts):
            return ["more"] * len(pictures)

    assert SpokenReflector(Judge(), "one\ntwo", say, round).reflect("a star", [None], [None]) == [expected]


@pytest.mark.parametrize("words, say, told", [("x" * 2001, "replace", "2001 characters"), ("x", "shout", "say is 'sh")])
def test_words_that_cannot_be_told(words, say, told):
    with pytest.raises(UserError, match=told):
        SpokenReflector(None, words, say)


def test_a_run_that_goes_on_with_another_model_says_so(tmp_path):
    def on(so_far, model):
        return relay.judge(relay.draw(so_far, REQUEST, 2, FakeGenerator(), model=model, fingerprint=f"print of {model}",
                                      settings={"model": {"folder": model}}), FakeVerifier(2))

    run = on(on(on(None, "one"), "two"), "two")
    keep.save(run, tmp_path / "run")
    header, told = load(tmp_path / "run")
    assert (header.model, header.fingerprint, header.settings) == ("one", "print of one", {"model": {"folder": "one"}})
    assert [(first, entry.settings["model"]) for first, entry in told.resumed] == [(2, {"folder": "two"})]
    assert not on(on(None, "one"), "one").run.resumed


@pytest.mark.parametrize("count", [3, 6])
def test_a_model_that_sees_several_pictures_is_shown_them(count, tmp_path):
    whole = start(REQUEST, ReflectDiTSearch(count, early_stop=False), FakeGenerator(max_context=3), FakeVerifier(2),
                  FakeReflector(), chunk=1).run()
    mine = rounds(count, n=1, generator=FakeGenerator(max_context=3))[-1]
    assert drawn(mine.run) == drawn(whole)
    assert [len(c.request.context) for c in mine.run.candidates][:3] == [0, 1, 2]
    keep.save(mine, tmp_path / "run")
    header, _ = load(tmp_path / "run")
    assert header.policy == ReflectDiTSearch(count).to_json()
    again = keep.load_run(tmp_path / "run")
    on = relay.draw(relay.reflect(again, FakeReflector()), REQUEST, 1, FakeGenerator(max_context=3))
    assert len(on.run.candidates[-1].request.context) == 3


def test_with_several_candidates_a_round_each_is_shown_one(tmp_path):
    run = rounds(3, n=2, generator=FakeGenerator(max_context=3))[-1].run
    assert {len(c.request.context) for c in run.candidates} == {0, 1}


def test_a_model_that_sees_several_pictures_takes_no_refined_prompt():
    told = relay.reflect(rounds(2, n=1, generator=FakeGenerator(max_context=3))[-1], FakeReflector())
    with pytest.raises(UserError, match="leave the Prompt Refiner out"):
        relay.refine(told, FakeRefiner())
