"""`reflect bench speed`: it watches a real run and says what came out. How fast is not tested."""

import itertools
import json

import pytest
from command import inside, write_tiny_model

from reflect_core.bench import speed
from reflect_core.generators.reflect_dit import timing
from reflect_core.types import UserError


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_tiny_model(tmp_path_factory.mktemp("model") / "tiny")


def test_it_measures_a_run_from_the_outside(model, capsys):
    result = inside(capsys, "bench", "speed", "--model", model, "--pictures", 3, "--prompt", "a circle", "--repeats", 1,
                    "--json")
    document = json.loads(result.out)
    run = document["run"]
    assert result.code == 0 and run["pictures"] == 3
    assert 0 < run["first_seconds"] <= run["last_seconds"] < run["whole_seconds"]
    assert run["peak_mib"] is None or 100 < run["peak_mib"] < 5000
    assert 0 < run["overhead_share"] < 1 and run["seconds_by_actor"]["generator"] > 0
    assert document["steps"]["large"]["total_tokens"] == 1408 and document["steps"]["small"]["total_tokens"] == 144
    assert "candidate 2 (3 of 3)" in result.err
    text = speed.report(run, document["steps"], document["machine"])
    assert "itself" in text and "for starting, loading and the report" in text
    assert run["search_seconds"] == pytest.approx(sum(run["seconds_by_actor"].values()) + run["overhead_seconds"],
                                                  abs=0.01)
    assert run["overhead_share"] == pytest.approx(run["overhead_seconds"] / run["search_seconds"], rel=0.05)
    assert "first picture" in text and "corrector step / plain, 144 tokens" in text and "goal 15: " in text


def test_a_run_that_fails_is_an_error():
    with pytest.raises(UserError, match="exit code 2.*'dogs'"):
        speed.time_run("two dogs", 3)


def test_a_reflect_dit_step_has_its_share_of_what_is_prepared(monkeypatch):
    """With a clock that gives our step one second a block, diffusers' two, and what is prepared twenty."""
    clock = itertools.cycle([1.0, 2.0, 20.0, 3.0, 6.0, 60.0])
    monkeypatch.setattr(timing, "seconds_of", lambda work, device: (work(), next(clock))[1])
    found = timing.step_ratio(4, heads=7, prompt=8, repeats=2)
    assert found["prepared_seconds"] == 20 * 20 and found["plain_seconds"] == 2 * 20
    assert found["reflect_seconds"] == 20 + 20 and found["ratio"] == 1.0
