"""Records on disk: what is refused, what is found out, locks, and replay."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from fakes import SIZE, FakeGenerator, FakeReflector, FakeVerifier
from PIL import Image

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
from reflect_core.types import Request, UserError

ROOT = Path(__file__).parents[1]
REQUEST = Request("two red circles", seed=3, width=SIZE, height=SIZE, steps=4)
FLOW = ReflectionFlow(4, 2, 3)


def actors():
    return FakeGenerator(batch_matters=True), FakeVerifier(2), FakeReflector()


@pytest.fixture
def folder(tmp_path):
    """A finished record."""
    with start(REQUEST, FLOW, *actors(), chunk=3, folder=tmp_path / "run", model="fake",
               fingerprint="abc") as stepper:
        stepper.run()
    return tmp_path / "run"


def lines_of(folder):
    return (folder / "run.jsonl").read_bytes().splitlines(keepends=True)


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


@pytest.mark.parametrize("settings", [{"api_key": "x"}, {"judge": {"OPENAI_API_KEY": "x"}}, {"password": ""},
                                      {"hf_token": "x"}, {"Authorization": "Bearer"}])
def test_settings_that_look_like_secrets_are_refused(tmp_path, settings):
    with pytest.raises(UserError, match="secret"):
        start(REQUEST, FLOW, *actors(), folder=tmp_path / "run", settings=settings)
    assert not (tmp_path / "run").exists()
    start(REQUEST, FLOW, *actors(), folder=tmp_path / "run", settings={"max_tokens": 5}).close()


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


def test_a_full_disk_is_a_user_error_and_takes_back_the_torn_line(tmp_path, monkeypatch):
    stepper = start(REQUEST, FLOW, *actors(), chunk=2, folder=tmp_path / "run")

    class Full:
        """Writes half of what it gets, then has no room."""
        def __init__(self, file):
            self.file, self.calls = file, 0

        def write(self, data):
            self.calls += 1
            if self.calls == 4:
                return self.file.write(data[: len(data) // 2])
            if self.calls == 5:
                raise OSError(28, "No space left on device")
            return self.file.write(data)

        def __getattr__(self, name):
            return getattr(self.file, name)
    stepper.record._file = Full(stepper.record._file)
    with pytest.raises(UserError, match="No space left"):
        stepper.run()
    assert all(line.endswith(b"}\n") for line in lines_of(tmp_path / "run"))
    # Room was made: the same stepper goes on.
    run = stepper.run()
    stepper.close()
    assert load(tmp_path / "run")[1].candidates == run.candidates
    whole = start(REQUEST, FLOW, *actors(), chunk=2).run()
    assert [c.sha256 for c in run.candidates] == [c.sha256 for c in whole.candidates]


def test_no_room_for_a_picture(tmp_path, monkeypatch):
    stepper = start(REQUEST, FLOW, *actors(), folder=tmp_path / "run")
    full = OSError(28, "No space left on device")
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(full))
    with pytest.raises(UserError, match="make room"):
        stepper.run()
    monkeypatch.undo()
    assert len(stepper.run().candidates) == 10


# Damage.

@pytest.mark.parametrize("tail", [b'{"line":"dra', b"\x00" * 40, b'{"line":"judged"}', b"\xff\xfe"])
def test_a_torn_last_line_is_ignored_and_cut_off(folder, tail):
    path = folder / "run.jsonl"
    before = path.read_bytes()
    path.write_bytes(before + tail)
    assert len(load(folder)[1].candidates) == 10
    assert path.read_bytes() == before + tail
    resume(folder, *actors()).close()
    assert path.read_bytes() == before


@pytest.mark.parametrize("number", [1, 2, 3, 4, 7, 8])
@pytest.mark.parametrize("damage", [
    lambda line: b"\n", lambda line: line[:-9] + b"\n", lambda line: b"\x00" * len(line) + b"\n",
    lambda line: b"7\n", lambda line: line.replace(b'{"line":"', b'{"line":"x'),
    lambda line: line.replace(b"sha256", b"sha257") + b"{}\n",
    lambda line: b"[" * 100000 + b"\n", lambda line: b"\xff\n"])
def test_other_damage_names_the_line(folder, number, damage):
    lines = lines_of(folder)
    lines[number - 1] = damage(lines[number - 1])
    (folder / "run.jsonl").write_bytes(b"".join(lines))
    before = (folder / "run.jsonl").read_bytes()
    for call in (load, lambda f: resume(f, *actors())):
        # A damage that adds a line is found there.
        with pytest.raises(UserError, match=f"line ({number}|{number + 1}) of .* is damaged"):
            call(folder)
    assert (folder / "run.jsonl").read_bytes() == before


@pytest.mark.parametrize("remove", [1, 2, 3, 4, 5, 7, 8])
def test_a_line_that_is_gone(folder, remove):
    lines = lines_of(folder)
    del lines[remove]
    (folder / "run.jsonl").write_bytes(b"".join(lines))
    with pytest.raises(UserError, match="is damaged"):
        load(folder)


def test_another_format_is_said(folder):
    lines = lines_of(folder)
    lines[0] = lines[0].replace(b'"format":1', b'"format":2')
    (folder / "run.jsonl").write_bytes(b"".join(lines))
    with pytest.raises(UserError, match="format 2; expected 1"):
        load(folder)


def change_pixel(path):
    image = Image.open(path).copy()
    r, g, b = image.getpixel((2, 2))
    image.putpixel((2, 2), (r ^ 8, g, b))
    image.save(path)


@pytest.mark.parametrize("damage, words", [
    (lambda p: p.unlink(), "missing"), (change_pixel, "was changed"),
    (lambda p: p.write_bytes(b""), "cannot be read"),
    (lambda p: p.write_bytes(p.read_bytes()[:60]), "cannot be read"),
    (lambda p: p.write_text("x"), "cannot be read"),
    (lambda p: (p.unlink(), p.mkdir()), "cannot be read")])
def test_damaged_pictures(folder, damage, words):
    damage(folder / "pictures" / "00002.png")
    _, run = load(folder)
    run.picture(1)
    for call in (lambda: run.picture(2), lambda: resume(folder, *actors()),
                 lambda: replay(folder, FakeGenerator(batch_matters=True))):
        with pytest.raises(UserError, match=f"00002.png .*{words}|00002.png {words}"):
            call()


def test_a_picture_compressed_anew_is_the_same_picture(folder):
    path = folder / "pictures" / "00002.png"
    Image.open(path).copy().save(path, compress_level=9)
    resume(folder, *actors()).close()


def test_another_model_is_refused(folder):
    with pytest.raises(UserError, match="fingerprint 'abc'; got 'xyz'"):
        resume(folder, *actors(), fingerprint="xyz")
    resume(folder, *actors(), fingerprint="abc").close()


def test_another_policy_is_refused(folder):
    with pytest.raises(UserError, match="was made by the policy"):
        resume(folder, *actors(), policy=BestOfN(3))
    resume(folder, *actors(), policy=FLOW).close()


def test_what_a_kill_left_behind_is_removed_on_resume(folder):
    stray = [folder / "pictures" / name for name in ("00010.png", "00004.tmp")]
    kept = folder / "pictures" / "notes.txt"
    for path in (*stray, kept):
        path.write_bytes(b"x")
    resume(folder, *actors()).close()
    assert not any(p.exists() for p in stray) and kept.exists()


# Opening and closing.

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
