"""A language model as the judge, from the command line: what is said, kept, resumed and refused."""

from __future__ import annotations

import json

import pytest
from command import inside, reflect
from fake_server import FakeServer
from tiny_vlm import write_tiny_qwen

from reflect_core.search import load

PROMPT = "two red circles left of a blue star"


@pytest.fixture
def quick():
    """The judge is never content, so that something is reflected on."""
    with FakeServer(words=lambda document, red: "Add a red circle." if "Add, Remove" in str(document) else None
                    ).running() as fake:
        yield fake


def test_a_run_with_a_server_and_what_its_record_holds(quick, tmp_path):
    folder = tmp_path / "run"
    ran = reflect("run", PROMPT, "--judge", quick.url, "--judge-option", "threshold=1", "--pictures", "4",
                  "--set", "refine=true", "--out", folder, "--json")
    assert ran.code == 3, ran.err
    told = json.loads(ran.out)
    assert "the judge is fake-vl" in ran.err and "each picture is asked: Is there a ball?" in ran.err
    header, run = load(folder)
    judge = header.settings["judge"]
    assert judge["name"] == "server" and judge["options"]["model"] == "fake-vl" and judge["options"]["url"] == quick.url
    assert judge["options"]["compiled"][0]["prompt"] == PROMPT
    corrected = [c for c in run.candidates if c.request.context]
    assert corrected and all(c.request.context[0].feedback == "Add a red circle" for c in corrected)
    asked = [one for entry in run.entries for one in getattr(entry, "asked", ())]
    # Every question of the run, the probe's and those that made the checks too, is on record, and counted.
    assert len(asked) == quick.number == told["judge_calls"] == run.ledger.total.judge_calls
    assert told["tokens"] == sum(one.tokens_in + one.tokens_out for one in asked) > 0
    shown = {name for one in asked for name in one.pictures}
    assert {c.sha256 for c in run.candidates} <= shown

    # A replay needs no judge, and a finished run none to be told of.
    before = quick.number
    assert reflect("replay", folder).code == 0
    assert reflect("resume", folder).code == 3
    assert quick.number == before


def test_resume_asks_the_same_questions_of_a_server_that_has_moved(tmp_path):
    """The judge goes away in the middle; the run goes on with another address, and does not make its checks anew."""
    folder = tmp_path / "run"
    with FakeServer(fault=lambda number: "500" if number > 8 else None).running() as fake:
        ran = reflect("run", PROMPT, "--judge", fake.url, "--judge-option", "threshold=1",
                      "--judge-option", "attempts=1", "--policy", "best_of_n", "--pictures", "12", "--out", folder)
        assert ran.code == 2 and "reflect resume" in ran.err and "does not answer" in ran.err
    _, run = load(folder)
    assert not run.stopped and run.candidates
    with FakeServer().running() as fake:
        ran = reflect("resume", folder, "--judge-option", f"url={fake.url}")
        assert ran.code == 3, ran.err
        assert not any("questions that somebody" in str(d) for d in fake.documents)
    _, run = load(folder)
    assert len(run.candidates) == 12 and run.stopped
    assert run.resumed[0][1].settings["judge"]["options"]["url"] == fake.url


def test_another_one_reflects(quick, tmp_path):
    with FakeServer(models=["small", "large"]).running() as other:
        ran = reflect("run", PROMPT, "--judge", quick.url, "--judge-option", "threshold=1", "--reflector", other.url,
                      "--reflector-option", "model=large", "--pictures", "2", "--out", tmp_path / "run")
        assert ran.code == 3, ran.err
        assert any("Add, Remove" in str(d) for d in other.documents)
    assert not any("Add, Remove" in str(d) for d in quick.documents)
    header, _ = load(tmp_path / "run")
    assert header.settings["reflector"]["options"]["model"] == "large"


def test_a_run_with_a_model_in_a_folder(tmp_path):
    model = write_tiny_qwen(tmp_path / "model", answers=True)
    options = ["--judge-option", 'checks=["Is it red?"]', "--judge-option", "threshold=1", "--pictures", "3"]
    ran = reflect("run", PROMPT, "--judge", model, *options, "--out", tmp_path / "run")
    assert ran.code == 3, ran.err
    header, run = load(tmp_path / "run")
    assert header.settings["judge"]["options"]["folder"] == str(model)
    assert len(run.candidates) == 3 and all(c.judged for c in run.candidates)
    again = reflect("run", PROMPT, "--judge", model, *options, "--out", tmp_path / "again")
    assert again.code == 3
    assert [c.verdict for c in load(tmp_path / "again")[1].candidates] == [c.verdict for c in run.candidates]


@pytest.mark.parametrize("arguments, said", [
    (["--judge", "nobody"], "there is no judge 'nobody'; expected shapes"),
    (["--judge-option", "ask=match"], "the judge 'shapes' has no option 'ask'"),
    (["--judge", "http://127.0.0.1:9/v1", "--judge-option", "attempts=1"], "does not answer"),
    (["--judge", "http://u:secret@127.0.0.1:9/v1"], "expected none, since records hold it"),
    (["--reflector-option", "ask=match"], "got --reflector-option without --reflector"),
    (["--reflector", "me"], "try --judge me"),
    (["--judge", "http://127.0.0.1:9/v1", "--judge-option", "key=abc"], "has no option 'key'"),
])
def test_wrong_judges(arguments, said, tmp_path, capsys):
    ran = inside(capsys, "run", PROMPT, *arguments, "--out", tmp_path / "run")
    assert ran.code == 2 and said in ran.err and "Traceback" not in ran.err
    assert "u:secret" not in ran.err
    assert not (tmp_path / "run").exists()
