"""Records on disk: what is written, what is read back, and what is refused before anything is drawn."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from fakes import FLOW, REQUEST, FakeGenerator, FakeReflector, FakeVerifier, actors, finished_record, lines_of

from reflect_core.search import (
    BestOfN,
    Budget,
    Header,
    Record,
    ReflectionFlow,
    load,
    replay,
    resume,
    start,
)
from reflect_core.types import UserError

ROOT = Path(__file__).parents[1]
@pytest.fixture
def folder(tmp_path):
    return finished_record(tmp_path / "run")


# Writing and reading.

def test_what_is_loaded_is_what_was_run(tmp_path):
    with start(REQUEST, FLOW, *actors(), chunk=3, folder=tmp_path / "run", budget=Budget(pictures=9),
               settings={"reflector": "rules"}) as stepper:
        run = stepper.run()
    header, loaded = load(tmp_path / "run")
    assert loaded.candidates == run.candidates and loaded.chunks == run.chunks
    assert loaded.ledger == run.ledger and loaded.stopped == run.stopped
    assert (header.request, header.budget, header.chunk) == (REQUEST, Budget(pictures=9), 3)
    assert header.policy == FLOW.to_json() and header.settings == {"reflector": "rules"}
    assert "pillow" in header.versions
    for c in run.candidates:
        assert loaded.picture(c.id).tobytes() == run.picture(c.id).tobytes()


def test_a_chunk_is_one_line_and_so_are_its_verdicts(folder):
    kinds = [json.loads(line)["line"] for line in lines_of(folder)]
    assert kinds[:6] == ["header", "plan", "drawn", "judged", "drawn", "judged"]
    assert kinds[6:10] == ["reflected", "plan", "drawn", "judged"] and kinds[-1] == "stopped"
    assert sorted(p.name for p in (folder / "pictures").iterdir()) == [f"{i:05d}.png" for i in range(10)]


def test_nothing_heavy_is_imported():
    code = ("import sys, reflect_core.search; "
            "print([m for m in ('torch', 'numpy', 'diffusers', 'transformers') if m in sys.modules])")
    out = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


def test_no_environment_in_a_record(tmp_path, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-very-secret")
    with start(REQUEST, FLOW, *actors(), folder=tmp_path / "run") as stepper:
        stepper.run()
    assert b"sk-very-secret" not in (tmp_path / "run" / "run.jsonl").read_bytes()


@pytest.mark.parametrize("settings", [
    {"api_key": "x"}, {"judge": {"OPENAI_API_KEY": "x"}}, {"password": ""}, {"hf_token": "x"},
    {"Authorization": "Bearer"}, {"judges": [{"x-api-key": "x"}]}, {"judges": ({"a": [{"apiKey": "x"}]},)},
    {"access-token": "x"}, {"accessToken": "x"}, {"token": "x"}])
def test_settings_that_look_like_secrets_are_refused(tmp_path, settings):
    with pytest.raises(UserError, match="secret"):
        start(REQUEST, FLOW, *actors(), folder=tmp_path / "run", settings=settings)
    assert not (tmp_path / "run").exists()
    start(REQUEST, FLOW, *actors(), folder=tmp_path / "run", settings={"max_tokens": [5]}).close()


# Folders that will not do, found out before any drawing.

@pytest.mark.parametrize("bad", ["file/run", "file", "/proc/run", "/dev/null/run", "nul\0byte"])
def test_folders_that_cannot_be_written(tmp_path, bad):
    (tmp_path / "file").write_text("a file where a folder should be")
    generator, *rest = actors()
    with pytest.raises(UserError, match="cannot be written"):
        start(REQUEST, FLOW, generator, *rest, folder=tmp_path / bad).run()
    assert not generator.drawn


def test_a_record_is_never_overwritten(folder):
    before = {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    with pytest.raises(UserError, match="already holds"):
        start(REQUEST, BestOfN(1), *actors(), folder=folder)
    assert {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()} == before


def test_pictures_of_somebody_else_are_not_overwritten(tmp_path):
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "00000.png").write_bytes(b"precious")
    with pytest.raises(UserError, match="already holds"):
        start(REQUEST, FLOW, *actors(), folder=tmp_path)
    assert (tmp_path / "pictures" / "00000.png").read_bytes() == b"precious"


def test_a_start_that_was_killed_before_its_header_can_be_started_again(tmp_path):
    (tmp_path / "run" / "pictures").mkdir(parents=True)
    (tmp_path / "run" / "run.tmp").write_text('{"line":"hea')
    with pytest.raises(UserError, match="no record"):
        resume(tmp_path / "run", *actors())
    with start(REQUEST, FLOW, *actors(), folder=tmp_path / "run") as stepper:
        stepper.run()
    load(tmp_path / "run")


@pytest.mark.parametrize("call", [load, lambda f: resume(f, *actors()), lambda f: replay(f, FakeGenerator())])
def test_no_record_there(tmp_path, call):
    with pytest.raises(UserError, match="no record"):
        call(tmp_path / "nowhere")
    assert not (tmp_path / "nowhere").exists()


# Opening and closing.

def test_whole_numbers_for_guidance_are_the_same_before_and_after_a_resume(tmp_path):
    request, policy = replace(REQUEST, guidance=2), ReflectionFlow(2, 1, 3, corrector_guidance=3)
    with start(request, policy, *actors(), folder=tmp_path / "run") as stepper:
        run = stepper.run()
    lines = lines_of(tmp_path / "run")
    assert b'"guidance":2.0' in lines[0] and b'"guidance":2,' not in b"".join(lines)
    (tmp_path / "run" / "run.jsonl").write_bytes(b"".join(lines[:8]))
    with resume(tmp_path / "run", *actors()) as stepper:
        assert [c.sha256 for c in stepper.run().candidates] == [c.sha256 for c in run.candidates]


def test_a_failed_resume_lets_go_of_the_lock(folder):
    with pytest.raises(UserError):
        resume(folder, *actors(), fingerprint="xyz")
    with pytest.raises(UserError):
        resume(folder, FakeGenerator(max_context=0), FakeVerifier(), FakeReflector())
    resume(folder, *actors()).close()


def test_closing_twice_does_no_harm(folder):
    stepper = resume(folder, *actors())
    stepper.close()
    stepper.close()


def test_create_and_resume_by_hand(tmp_path):
    header = Header(REQUEST, BestOfN(2).to_json())
    with Record.create(tmp_path / "run", header) as opened:
        assert opened.run.request == REQUEST
    with Record.resume(tmp_path / "run") as opened:
        assert opened.header == header
