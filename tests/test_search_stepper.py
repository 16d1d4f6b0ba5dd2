"""The stepper: order kept, contracts held, errors and interrupts survived, time accounted for."""

import time
from dataclasses import replace

import pytest
from fakes import SIZE, FakeGenerator, FakeRefiner, FakeReflector, FakeVerifier, quality_of

from reflect_core.search import (
    ActorError,
    BestOfN,
    Budget,
    Draw,
    Judge,
    NoisePromptScaling,
    Refine,
    Reflect,
    ReflectionFlow,
    Stop,
    load,
    resume,
    start,
)
from reflect_core.search.stepper import chunk_sizes
from reflect_core.types import Check, Cost, Pair, Request, UserError, Verdict

REQUEST = Request("two red circles", seed=3, width=SIZE, height=SIZE, steps=4)
FLOW = ReflectionFlow(4, 2, 3)


def test_every_verdict_is_on_its_own_picture():
    run = start(REQUEST, FLOW, FakeGenerator(), FakeVerifier(2), FakeReflector(), chunk=3).run()
    for c in run.candidates:
        assert c.score == quality_of(run.picture(c.id)) / 255
        assert run.reflection(c.id) in (None, f"better than {c.score:.4f}")


def test_refiners_get_each_branch_with_its_own_things():
    refiner = FakeRefiner()
    run = start(REQUEST, ReflectionFlow(4, 2, 3, refine=True), FakeGenerator(), FakeVerifier(2),
                FakeReflector(), refiner).run()
    for round, (currents, reflections) in enumerate(refiner.calls, start=1):
        parents = [run.candidate(c.parent) for c in run.in_round(round)]
        assert list(currents) == [p.request.prompt for p in parents]
        assert list(reflections) == [f"better than {p.score:.4f}" for p in parents]


def test_chunks_never_mix_what_a_batch_must_share():
    a, b = Request("a", 1, steps=4), Request("b", 2, steps=4, context=(Pair("x", 0),))
    c = Request("c", 3, steps=5)
    assert chunk_sizes([a, a, a, b, b, a, c], 2) == (2, 1, 2, 1, 1)
    assert chunk_sizes([a] * 7, 3) == (3, 3, 1) and chunk_sizes([], 3) == ()


@pytest.mark.parametrize("name, actor", [("generator", FakeGenerator), ("verifier", FakeVerifier),
                                         ("reflector", FakeReflector), ("refiner", FakeRefiner)])
@pytest.mark.parametrize("change", [lambda answers: answers[:-1], lambda answers: answers + answers[:1]])
def test_an_actor_that_loses_or_adds_an_answer(name, actor, change):
    """Spec 7 item 2: the official lists get shorter and everything after is misaligned."""
    method = {"generator": "draw", "verifier": "judge", "reflector": "reflect", "refiner": "refine"}[name]
    answer = getattr(actor, method)
    broken = type("Broken", (actor,), {method: lambda self, *args: change(list(answer(self, *args)))})
    actors = {"generator": FakeGenerator(), "verifier": FakeVerifier(2), "reflector": FakeReflector(),
              "refiner": FakeRefiner(), name: broken()}
    stepper = start(REQUEST, ReflectionFlow(2, 2, 1, refine=True), **actors)
    with pytest.raises(ActorError, match=f"the {name} returned"):
        stepper.run()


@pytest.mark.parametrize("verdict", [
    Verdict(float("nan"), False), Verdict(1.5, True), Verdict(-0.1, False),
    Verdict(0.5, False, details={"x": object()}), Verdict(0.5, False, details={"x": float("inf")}),
    Verdict("high", False), Verdict(0.5, False, reason=7), None])
def test_verdicts_that_cannot_be_kept_or_ranked(verdict):
    class Broken:
        def judge(self, prompt, pictures):
            return [verdict] * len(pictures)
    with pytest.raises(ActorError, match="verifier"):
        start(REQUEST, BestOfN(2), FakeGenerator(), Broken()).run()


def test_pictures_of_another_size_or_mode():
    class Grey(FakeGenerator):
        def picture(self, request, salt=b""):
            return super().picture(request, salt).convert("L")
    with pytest.raises(ActorError, match="expected RGB"):
        start(REQUEST, BestOfN(2), Grey(), FakeVerifier()).run()


def test_reflections_that_are_no_text():
    class Broken:
        def reflect(self, prompt, pictures, verdicts):
            return [None] * len(pictures)
    with pytest.raises(ActorError, match="expected text"):
        start(REQUEST, FLOW, FakeGenerator(), FakeVerifier(2), Broken()).run()


def test_details_are_the_same_before_and_after_a_resume():
    """A tuple becomes a list at once, not only when the record is read."""
    run = start(REQUEST, BestOfN(1), FakeGenerator(), FakeVerifier()).run()
    assert isinstance(run.candidate(0).verdict.details["pixel"], list)


def test_half_a_character_does_not_stop_a_run_for_good(tmp_path):
    """Half of a surrogate pair is what a language model that ran into its token limit hands over, and
    what no text encoder takes."""
    half, mended = "move it \ud83d", "move it \ufffd"

    class Strange(FakeVerifier):
        def verdict(self, picture):
            return replace(super().verdict(picture), reason=half, checks=(Check("x", half, False, half),),
                           details={half: [half, {"whole": "\ud83d\ude00"}]})

    class Speaker(FakeReflector):
        def reflect(self, prompt, pictures, verdicts):
            for verdict in verdicts:
                assert verdict.reason == mended
                assert verdict.details == {mended: [mended, {"whole": "\U0001f600"}]}
            return [half] * len(pictures)

    class Writer(FakeRefiner):
        def refine(self, prompt, currents, pictures, verdicts, reflections):
            assert set(reflections) == {mended}
            return [half] * len(currents)

    said = []
    with start(REQUEST, ReflectionFlow(2, 1, 2, refine=True), FakeGenerator(), Strange(2), Speaker(), Writer(),
               folder=tmp_path / "run", on_event=lambda event: said.append(event.text)) as stepper:
        run = stepper.run()
    assert len(run.candidates) == 4 and mended in said and half not in said
    assert run.candidate(3).request.prompt == run.candidate(3).request.context[0].feedback == mended
    assert run.candidate(3).verdict.checks[0] == Check("x", mended, False, mended)
    assert load(tmp_path / "run")[1].candidates == run.candidates


@pytest.mark.parametrize("action", [Draw(0, ()), Judge(()), Reflect(0, ()), Refine(0, ()), None])
def test_a_policy_that_asks_for_nothing(action):
    class Idle(BestOfN):
        name = "idle"

        def next(self, run):
            return action

    with pytest.raises(ActorError, match="the policy 'idle' returned .*expected something to draw"):
        start(REQUEST, Idle(3), FakeGenerator(), FakeVerifier(), FakeReflector(), FakeRefiner()).run()


@pytest.mark.parametrize("folder", [None, "run"])
def test_an_error_leaves_a_run_that_goes_on(tmp_path, folder):
    folder = folder and tmp_path / folder
    generator = FakeGenerator(fail_at=5)
    stepper = start(REQUEST, FLOW, generator, FakeVerifier(2), FakeReflector(), chunk=2, folder=folder)
    with pytest.raises(RuntimeError, match="fails here"):
        stepper.run()
    assert len(stepper.so_far.candidates) == 4
    with pytest.raises(RuntimeError, match="fails here"):
        stepper.step()
    if folder:
        assert len(load(folder)[1].candidates) == 4
    generator.fail_at = None
    run = stepper.run()
    whole = start(REQUEST, FLOW, FakeGenerator(), FakeVerifier(2), FakeReflector(), chunk=2).run()
    assert [c.sha256 for c in run.candidates] == [c.sha256 for c in whole.candidates]


@pytest.mark.parametrize("kind", ["planned", "step", "drawn", "judged", "reflected", "refined", "stopped"])
@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_a_callback_that_interrupts_leaves_a_resumable_record(tmp_path, kind, error):
    """ComfyUI's cancel button raises from the progress callback; so may Ctrl-C, anywhere."""
    policy, seen = ReflectionFlow(4, 2, 2, refine=True), [0]

    def interrupt(event):
        if event.kind == kind:
            seen[0] += 1
            if seen[0] == 2 or kind == "stopped":
                raise error
    actors = (FakeGenerator(batch_matters=True), FakeVerifier(2), FakeReflector(), FakeRefiner())
    with start(REQUEST, policy, *actors, chunk=3, folder=tmp_path / "run", on_event=interrupt) as stepper:
        with pytest.raises(error):
            stepper.run()
    with resume(tmp_path / "run", *actors) as stepper:
        resumed = stepper.run()
    whole = start(REQUEST, policy, *actors, chunk=3).run()
    assert [c.sha256 for c in resumed.candidates] == [c.sha256 for c in whole.candidates]
    assert [c.verdict for c in resumed.candidates] == [c.verdict for c in whole.candidates]


@pytest.mark.parametrize("folder, words", [(None, "must be started anew"), ("run", "resume it from its folder")])
def test_interrupted_between_record_and_run(tmp_path, folder, words):
    """The one moment when they differ: the stepper refuses to go on, the record does not."""
    stepper = start(REQUEST, BestOfN(4), FakeGenerator(), FakeVerifier(2), chunk=2,
                    folder=folder and tmp_path / folder)
    apply = stepper.so_far.apply
    stepper.so_far.apply = lambda entry: (_ for _ in ()).throw(KeyboardInterrupt)
    with pytest.raises(KeyboardInterrupt):
        stepper.step()
    stepper.so_far.apply = apply
    with pytest.raises(UserError, match=words):
        stepper.step()
    stepper.close()
    if folder is None:
        return
    with resume(tmp_path / "run", FakeGenerator(), FakeVerifier(2)) as stepper:
        assert len(stepper.run().candidates) == 4


def test_events_tell_the_story():
    events = []
    run = start(REQUEST, ReflectionFlow(3, 1, 1, refine=True), FakeGenerator(), FakeVerifier(2),
                FakeReflector(), FakeRefiner(), chunk=2, budget=Budget(pictures=4),
                on_event=events.append).run()
    kinds = [e.kind for e in events]
    assert kinds == ["planned", "step", "step", "drawn", "drawn", "judged", "judged", "step", "drawn",
                     "judged", "reflected", "refined", "planned", "step", "drawn", "judged", "stopped"]
    assert [e.candidate for e in events if e.kind == "judged"] == [0, 1, 2, 3]
    assert [e.score for e in events if e.kind == "judged"] == [c.score for c in run.candidates]
    assert [(e.step, e.steps) for e in events if e.kind == "step"] == [(1, 2), (2, 2), (1, 1), (1, 1)]
    assert all(e.most_pictures == 4 for e in events) and events[-1].pictures == 4
    assert [e.text for e in events if e.kind == "reflected"] == [run.candidate(3).request.context[0].feedback]
    assert events[-1].text == run.stopped.reason and events[-1].round == 1


def test_a_stopped_run_stays_stopped():
    stepper = start(REQUEST, BestOfN(1), FakeGenerator(), FakeVerifier())
    run = stepper.run()
    assert stepper.step() == Stop("done", run.stopped.reason)
    assert stepper.run() is run and len(run.candidates) == 1


def test_one_step_is_one_action():
    stepper = start(REQUEST, ReflectionFlow(3, 1, 1), FakeGenerator(), FakeVerifier(2), FakeReflector(), chunk=2)
    action = stepper.step()
    assert isinstance(action, Draw) and len(action.requests) == len(stepper.so_far.candidates) == 3
    assert [len(c) for c in stepper.so_far.chunks] == [2, 1]


# The ledger's clock.

def test_wall_time_is_split_between_actors_and_overhead(tmp_path):
    class Slow(FakeVerifier):
        def judge(self, prompt, pictures):
            time.sleep(0.01)
            return super().judge(prompt, pictures)
    started = time.perf_counter()
    with start(REQUEST, BestOfN(8), FakeGenerator(seconds=0.01), Slow(2), folder=tmp_path / "run") as stepper:
        run = stepper.run()
    wall, ledger = time.perf_counter() - started, run.ledger
    assert ledger.by_actor["generator"].seconds >= 0.08 and ledger.by_actor["verifier"].seconds >= 0.02
    assert ledger.seconds <= wall
    assert load(tmp_path / "run")[1].ledger.seconds == pytest.approx(ledger.seconds)


def test_time_between_steps_is_the_callers():
    stepper = start(REQUEST, NoisePromptScaling(1, 3), FakeGenerator(), FakeVerifier(2), refiner=FakeRefiner())
    while not isinstance(stepper.step(), Stop):
        time.sleep(0.1)
    assert stepper.so_far.ledger.overhead_seconds < 0.3


def test_the_search_is_a_small_part_of_the_wall_time(tmp_path):
    """With a record, at 64 x 64: 5 % of the 100 ms that the small models take for a picture. In
    processor time, because the tests share their machine; the disk's share is in the ledger."""
    request = Request("two red circles", seed=3, width=64, height=64, steps=4)
    with start(request, ReflectionFlow.for_budget(24), FakeGenerator(seconds=0.002), FakeVerifier(2),
               FakeReflector(), folder=tmp_path / "run") as stepper:
        before = time.process_time()
        stepper.run()
        assert (time.process_time() - before) / 24 < 0.005


def test_costs_of_a_generator_that_counts_no_pictures():
    class Silent(FakeGenerator):
        def draw(self, requests, callback=None):
            return [replace(d, cost=Cost()) for d in super().draw(requests, callback)]
    run = start(REQUEST, BestOfN(3), Silent(), FakeVerifier(2)).run()
    assert run.ledger.total.pictures == 3


def test_prompts_of_noise_prompt_scaling_reach_the_judge_as_the_users():
    prompts = set()

    class Notes(FakeVerifier):
        def judge(self, prompt, pictures):
            prompts.add(prompt)
            return super().judge(prompt, pictures)
    start(REQUEST, NoisePromptScaling(2, 3), FakeGenerator(), Notes(2), refiner=FakeRefiner()).run()
    assert prompts == {"two red circles"}
