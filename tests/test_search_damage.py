"""Disks that fail, files that are torn, changed or gone: one clear error, and nothing made worse."""

import os
import shutil
from pathlib import Path

import pytest
from fakes import FLOW, REQUEST, FakeGenerator, actors, finished_record, lines_of
from PIL import Image

from reflect_core.search import BestOfN, load, record, replay, resume, start
from reflect_core.search.entries import Stopped
from reflect_core.types import UserError


@pytest.fixture
def folder(tmp_path):
    return finished_record(tmp_path / "run")


# While it is written.

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


def test_a_torn_line_that_cannot_be_taken_back_ends_the_writing(tmp_path, monkeypatch):
    stepper = start(REQUEST, FLOW, *actors(), chunk=2, folder=tmp_path / "run")
    stepper.step()
    real = stepper.record._file

    class Broken:
        """Writes half a line, then nothing; the disk takes nothing back either."""
        def __init__(self):
            self.half = True

        def write(self, data):
            if not self.half:
                raise OSError(5, "Input/output error")
            self.half = False
            return real.write(data[: len(data) // 2])

        def __getattr__(self, name):
            return getattr(real, name)
    stepper.record._file = Broken()
    with monkeypatch.context() as patch:
        patch.setattr(os, "ftruncate", lambda *_: (_ for _ in ()).throw(OSError(5, "Input/output error")))
        with pytest.raises(UserError, match="neither be written nor taken back"):
            stepper.run()
    torn = (tmp_path / "run" / "run.jsonl").read_bytes()
    assert not torn.endswith(b"\n")
    # The disk is well again, but nothing may follow half a line.
    stepper.record._file = real
    with pytest.raises(UserError, match="neither be written nor taken back"):
        stepper.record.append(Stopped("done", ""))
    with pytest.raises(UserError, match="resume it from its folder"):
        stepper.run()
    assert (tmp_path / "run" / "run.jsonl").read_bytes() == torn
    stepper.close()
    with resume(tmp_path / "run", *actors()) as stepper:
        assert len(stepper.run().candidates) == 10


def test_no_room_for_a_picture(tmp_path, monkeypatch):
    stepper = start(REQUEST, FLOW, *actors(), folder=tmp_path / "run")
    full = OSError(28, "No space left on device")
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(full))
    with pytest.raises(UserError, match="make room"):
        stepper.run()
    monkeypatch.undo()
    assert len(stepper.run().candidates) == 10


# When it is read.

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


# When it is opened again.

def test_a_record_without_its_folder_of_pictures(folder):
    lines = lines_of(folder)
    shutil.rmtree(folder / "pictures")
    with pytest.raises(UserError, match="00000.png of candidate 0 is missing"):
        resume(folder, *actors())
    # Before the first picture there is nothing in it, and some ways of copying leave it out.
    (folder / "run.jsonl").write_bytes(b"".join(lines[:2]))
    with resume(folder, *actors()) as stepper:
        assert len(stepper.run().candidates) == 10


@pytest.mark.parametrize("call", ["open", "unlink", "truncate", "mkdir"])
def test_a_folder_that_cannot_be_written_any_more(folder, monkeypatch, call):
    (folder / "run.jsonl").write_bytes(b"".join(lines_of(folder)[:6]) + b"torn")
    before = (folder / "run.jsonl").read_bytes()

    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied")
    if call == "open":
        real = open
        monkeypatch.setattr(record, "open", raising=False,
                            value=lambda path, mode, **more: refuse() if mode == "ab" else real(path, mode, **more))
    elif call == "truncate":
        monkeypatch.setattr(record, "open", refuse, raising=False)
    else:
        monkeypatch.setattr(Path, call, refuse)
    with pytest.raises(UserError, match="cannot be written .*Permission denied"):
        resume(folder, *actors())
    monkeypatch.undo()
    assert call == "open" or (folder / "run.jsonl").read_bytes() == before
    resume(folder, *actors()).close()


def test_a_record_that_cannot_be_read(folder, monkeypatch):
    monkeypatch.setattr(Path, "read_bytes", lambda path: (_ for _ in ()).throw(PermissionError(13, "denied")))
    for call in (load, lambda f: resume(f, *actors())):
        with pytest.raises(UserError, match="run.jsonl cannot be read .*denied"):
            call(folder)
