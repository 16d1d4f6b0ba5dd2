"""What a run may spend: limits that are never exceeded, and costs that are never lost."""

import time

import pytest
from fakes import SIZE, FakeGenerator, FakeRefiner, FakeReflector, FakeVerifier, SpendingReflector, SpendingVerifier
from hypothesis import given
from hypothesis import strategies as st

from reflect_core.search import BestOfN, Budget, NoisePromptScaling, ReflectionFlow, Stop, resume, start
from reflect_core.types import Cost, Request, UserError

REQUEST = Request("two red circles", seed=3, width=SIZE, height=SIZE, steps=4)
FLOW = ReflectionFlow(4, 2, 3)


@pytest.mark.parametrize("limit", ["pictures", "denoiser_evaluations", "judge_calls", "seconds"])
@pytest.mark.parametrize("value", [0, -1, True, "3", float("nan"), float("inf")])
def test_bad_budgets(limit, value):
    with pytest.raises(UserError, match=limit):
        Budget(**{limit: value})


def test_seconds_may_be_a_fraction_and_counts_may_not():
    assert Budget(seconds=0.5).seconds == 0.5
    with pytest.raises(UserError, match="whole"):
        Budget(pictures=1.5)


@given(n=st.integers(1, 12), chunk=st.integers(1, 5), pictures=st.none() | st.integers(1, 14),
       evaluations=st.none() | st.integers(1, 100), calls=st.none() | st.integers(1, 14),
       kind=st.sampled_from(["best", "flow", "official"]))
def test_no_budget_is_ever_exceeded(n, chunk, pictures, evaluations, calls, kind):
    policy = {"best": BestOfN(n, early_stop=False), "flow": ReflectionFlow.for_budget(n, early_stop=False),
              "official": ReflectionFlow(n, 2, 3, parents="last", judge_again=True, early_stop=False, pool_steps=5,
                                         corrector_steps=3)}[kind]
    budget = Budget(pictures, evaluations, calls)
    with start(REQUEST, policy, FakeGenerator(), FakeVerifier(), SpendingReflector(), chunk=chunk,
               budget=budget) as stepper:
        run = stepper.run()
    total = run.ledger.total
    assert pictures is None or total.pictures <= pictures
    assert evaluations is None or total.denoiser_evaluations <= evaluations
    assert calls is None or total.judge_calls <= calls
    # And a budget is used up as far as it goes, and the reason names the limit that was in the way.
    if kind == "best" and total.pictures < n:
        assert total.pictures == pictures or total.judge_calls == calls or total.denoiser_evaluations + 8 > evaluations
    if run.stopped.kind == "budget":
        assert any(f"{limit} {name}" in run.stopped.reason for limit, name in (
            (pictures, "pictures"), (evaluations, "denoiser evaluations"), (calls, "judge calls")))
    elif kind == "best":
        assert total.pictures == n


def test_a_draw_is_trimmed_and_the_reason_given():
    run = start(REQUEST, BestOfN(9), FakeGenerator(), FakeVerifier(2), budget=Budget(pictures=5)).run()
    assert len(run.candidates) == 5 and run.stopped.reason == "the budget of 5 pictures is spent"
    run = start(REQUEST, BestOfN(9), FakeGenerator(), FakeVerifier(2),
                budget=Budget(denoiser_evaluations=30)).run()
    assert len(run.candidates) == 3 and "30 denoiser evaluations is not enough" in run.stopped.reason
    run = start(REQUEST, BestOfN(9), FakeGenerator(), FakeVerifier(2), budget=Budget(judge_calls=4)).run()
    assert len(run.candidates) == 4 and run.stopped.kind == "budget"


def test_a_policy_that_is_done_says_so_even_if_the_budget_is_spent_as_well():
    run = start(REQUEST, BestOfN(5), FakeGenerator(), FakeVerifier(2), budget=Budget(pictures=5)).run()
    assert run.stopped.kind == "done"


def test_nothing_is_reflected_on_that_cannot_be_drawn():
    run = start(REQUEST, FLOW, FakeGenerator(), FakeVerifier(2), FakeReflector(),
                budget=Budget(pictures=4)).run()
    assert run.ledger.items["reflector"] == 0


def test_language_models_report_what_they_spent():
    run = start(REQUEST, FLOW, FakeGenerator(), FakeVerifier(2), SpendingReflector()).run()
    spent = run.ledger.by_actor["reflector"]
    assert (spent.judge_calls, spent.tokens) == (6, 600) and run.ledger.total.judge_calls == 10 + 6
    run = start(REQUEST, FLOW, FakeGenerator(), FakeVerifier(2), SpendingReflector(),
                budget=Budget(judge_calls=9)).run()
    assert run.ledger.total.judge_calls == 8 and "not enough for the reflector" in run.stopped.reason


def test_time_runs_out_between_chunks():
    generator = FakeGenerator(seconds=0.02)
    started = time.perf_counter()
    run = start(REQUEST, BestOfN(500), generator, FakeVerifier(2), chunk=1, budget=Budget(seconds=0.15)).run()
    assert run.stopped.kind == "budget" and "0.15 seconds" in run.stopped.reason
    assert 1 <= len(run.candidates) <= 8 and time.perf_counter() - started < 10
    assert all(c.verdict for c in run.candidates)
    assert run.next_chunk == () and run.unjudged == ()


def test_time_spent_before_a_resume_counts(tmp_path):
    budget = Budget(seconds=0.12)
    actors = (FakeGenerator(seconds=0.03), FakeVerifier(2), None, FakeRefiner())
    stepper = start(REQUEST, NoisePromptScaling(1, 500), *actors, budget=budget, folder=tmp_path / "run")
    stepper.step(), stepper.step(), stepper.step(), stepper.close()
    with resume(tmp_path / "run", *actors) as stepper:
        assert len(stepper.run().candidates) <= 5
        assert stepper.so_far.ledger.seconds >= 0.12


def test_the_flux_generator_keeps_its_budget_of_evaluations(tmp_path):
    """With true guidance a step takes two evaluations; a guess of one would draw twice as many."""
    from tiny_flux import write_tiny_flux

    from reflect_core.generators.flux_corrector.pipeline import FluxCorrector
    request = Request("a red circle", seed=3, width=32, height=32, steps=3)
    for scale, each, drawn in ((1.0, 3, 4), (2.0, 6, 2)):
        generator = FluxCorrector.from_folder(write_tiny_flux(tmp_path / str(scale)), true_cfg_scale=scale)
        assert generator.evaluations(request) == each
        run = start(request, BestOfN(8), generator, FakeVerifier(2), budget=Budget(denoiser_evaluations=14)).run()
        assert len(run.candidates) == drawn and run.ledger.total.denoiser_evaluations == each * drawn
        assert "14 denoiser evaluations" in run.stopped.reason


def test_a_generator_that_cannot_say_what_it_will_take():
    class Closed:
        max_context = 0
        draw = FakeGenerator.draw

    with pytest.raises(UserError, match="cannot say what a picture will take"):
        start(REQUEST, BestOfN(2), Closed(), FakeVerifier(), budget=Budget(denoiser_evaluations=100))
    start(REQUEST, BestOfN(2), Closed(), FakeVerifier(), budget=Budget(pictures=2))


# Judges that take more than one call.

@pytest.mark.parametrize("policy", [BestOfN(20), ReflectionFlow(20, 2, 0), NoisePromptScaling(4, 5)])
def test_a_dear_judge_is_reckoned_with_after_its_first_call(policy, tmp_path):
    def actors():
        return FakeGenerator(), SpendingVerifier(3), None, FakeRefiner()
    with start(REQUEST, policy, *actors(), chunk=2, budget=Budget(judge_calls=14), folder=tmp_path / "run") as stepper:
        run = stepper.run()
    assert len(run.candidates) == 4 and run.ledger.total.judge_calls == 12
    assert "what is left of 14 judge calls is not enough" in run.stopped.reason
    # What is known of the judge survives a resume.
    lines = (tmp_path / "run" / "run.jsonl").read_bytes().splitlines(keepends=True)
    (tmp_path / "run" / "run.jsonl").write_bytes(b"".join(lines[:4]))
    with resume(tmp_path / "run", *actors()) as stepper:
        assert stepper.run().ledger.total.judge_calls == 12


def test_a_dear_reflector_and_a_second_look_are_reckoned_with():
    def spent(calls, **settings):
        policy = ReflectionFlow(2, 2, 9, parents="last", early_stop=False, **settings)
        run = start(REQUEST, policy, FakeGenerator(), SpendingVerifier(2), SpendingReflector(4),
                    budget=Budget(judge_calls=calls)).run()
        return run.ledger.total.judge_calls, run.stopped.reason
    # 2 pictures 4, 2 reflections 8, 2 pictures 4: 16; the next reflections would make it 24.
    assert spent(23)[0] == 16 and "not enough for the reflector" in spent(23)[1]
    assert spent(24)[0] == 24
    # A second look at the two takes 4 more.
    assert spent(19, judge_again=True)[0] == 16 and "not enough for the verifier" in spent(19, judge_again=True)[1]


def test_a_first_call_is_taken_at_face_value():
    run = start(REQUEST, BestOfN(9), FakeGenerator(), SpendingVerifier(5), chunk=2, budget=Budget(judge_calls=7)).run()
    assert run.ledger.total.judge_calls == 10 and run.stopped.reason == "the budget of 7 judge calls is spent"


# Calls that fail.

@pytest.mark.parametrize("fault", ["raises", "is interrupted", "loses an answer", "answers nonsense"])
def test_what_a_failed_call_spent_is_not_lost(fault):
    class Failing(SpendingReflector):
        def reflect(self, prompt, pictures, verdicts):
            answers = super().reflect(prompt, pictures, verdicts)
            if len(self.calls) > 1:
                return answers
            if fault == "raises":
                raise RuntimeError("rate limit")
            if fault == "is interrupted":
                raise KeyboardInterrupt
            return answers[1:] if fault == "loses an answer" else [None] * len(answers)

    stepper = start(REQUEST, ReflectionFlow(4, 2, 1), FakeGenerator(), FakeVerifier(2), Failing())
    with pytest.raises(BaseException, match="rate limit|^$|1 answers|expected text"):
        stepper.run()
    assert stepper.so_far.ledger.by_actor["reflector"] == Cost()
    spent = stepper.run().ledger.by_actor["reflector"]
    assert (spent.judge_calls, spent.tokens) == (4, 400)


def test_what_failed_calls_spent_counts_against_the_budget():
    class Failing(SpendingReflector):
        def reflect(self, prompt, pictures, verdicts):
            super().reflect(prompt, pictures, verdicts)
            raise RuntimeError("rate limit")

    stepper = start(REQUEST, ReflectionFlow(4, 2, 9), FakeGenerator(), FakeVerifier(2), Failing(),
                    budget=Budget(judge_calls=9))
    for _ in range(2):
        with pytest.raises(RuntimeError, match="rate limit"):
            stepper.run()
    # 4 pictures and twice 2 reflections: the one call left is not enough for 2 more.
    assert stepper.run().stopped.reason == "what is left of 9 judge calls is not enough for the reflector"
    assert len(stepper._actors._by_name["reflector"].calls) == 2


def test_two_runs_share_an_actor_and_pay_each_for_their_own():
    reflector = SpendingReflector()
    steppers = [start(REQUEST, ReflectionFlow(2, 1, 3), FakeGenerator(), FakeVerifier(2), reflector) for _ in "ab"]
    while not all([isinstance(stepper.step(), Stop) for stepper in steppers]):
        pass
    for stepper in steppers:
        assert stepper.run().ledger.by_actor["reflector"].judge_calls == 3
