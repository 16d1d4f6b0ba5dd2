"""A record: a run on disk, written as it happens, from which it resumes, replays and becomes data.

    run.jsonl           one JSON object a line: a header, then the entries of `entries.py` in order
    pictures/00000.png  the picture of candidate 0, and so on
    .lock               who is writing

Safe at any moment. The header is written aside and renamed, so it is whole or absent. After that
lines are only ever appended, each flushed to the disk before the run goes on. A chunk's pictures
are on the disk, under their names, before the one line that speaks of them: a chunk is on record
with all its pictures and costs, or it is not, and is then drawn again whole, in the same batch. A
kill in the middle of a write leaves a last line without its line end; it is ignored when reading
and cut off when resuming. Any other damage is an error that names the line.

The official search appends to logs that it never reads; running it again adds more pictures to the
same folder (spec 7, engineering).
"""

from __future__ import annotations

import json
import os
from pathlib import Path

from ..types import UserError
from . import codec
from .entries import Entry, entry_from_json, entry_to_json
from .header import Header, header_from_json, header_to_json
from .lock import RecordLock
from .pictures import FolderPictures, sync_folder
from .run import Run

LINES = "run.jsonl"
PICTURES = "pictures"


class TornRecord(UserError):
    """Half a line is on the disk and cannot be taken back: the record must be opened anew."""


class Record:
    """A record open for writing. Use `create` or `resume`, and `close` it (or `with`)."""

    def __init__(self, folder: Path, header: Header, run: Run, lock: RecordLock) -> None:
        self.folder = folder
        self.header = header
        self.run = run
        self._lock = lock
        self._torn = False
        # Unbuffered: what append() has written is with the operating system, or it raised.
        self._file = open(folder / LINES, "ab", buffering=0)

    @classmethod
    def create(cls, folder: str | os.PathLike, header: Header) -> Record:
        """Start a record. UserError if the folder cannot be written or holds a record already."""
        folder = Path(folder)
        pictures = folder / PICTURES
        run = Run(header.request, header.chunk, FolderPictures(pictures))
        text = codec.dumps(header_to_json(header)).encode("ascii") + b"\n"
        try:
            pictures.mkdir(parents=True, exist_ok=True)
            lock = RecordLock(folder)
        except (OSError, ValueError) as error:
            if isinstance(error, UserError):
                raise
            # ValueError: a path that no system takes, with a zero byte in it.
            raise _unwritable(folder, error) from error
        try:
            if (folder / LINES).exists() or any(pictures.iterdir()):
                raise UserError(f"{folder} already holds a record or pictures; expected an empty or a new "
                                "folder; try to resume it, or choose another folder")
            _write_whole(folder / LINES, text)
            sync_folder(pictures)
            return cls(folder, header, run, lock)
        except OSError as error:
            lock.release()
            raise _unwritable(folder, error) from error
        except BaseException:
            lock.release()
            raise

    @classmethod
    def resume(cls, folder: str | os.PathLike, fingerprint: str | None = None) -> Record:
        """Open a record to go on with it. Cuts a torn last line off.

        `fingerprint`: of the model that will draw; None leaves it unchecked. UserError if there is
        no record, it is damaged, a picture is missing or changed, another process is writing it, or
        the model is another one.
        """
        folder = Path(folder)
        _expect_record(folder)
        try:
            lock = RecordLock(folder)
        except OSError as error:
            raise _unwritable(folder, error) from error
        try:
            header, run, whole = _read(folder)
            if fingerprint is not None and fingerprint != header.fingerprint:
                raise UserError(f"the record in {folder} was drawn by the model {header.model!r} with the "
                                f"fingerprint {header.fingerprint[:16]!r}; got {fingerprint[:16]!r}; try to "
                                "resume with the same weights, or start a new run")
            check_pictures(folder, run)
            # A record of no picture yet may have lost the empty folder on its way here.
            (folder / PICTURES).mkdir(exist_ok=True)
            run.pictures.discard_from(len(run.candidates))
            if whole < (folder / LINES).stat().st_size:
                with open(folder / LINES, "r+b") as file:
                    file.truncate(whole)
                    os.fsync(file.fileno())
            return cls(folder, header, run, lock)
        except OSError as error:
            lock.release()
            raise _unwritable(folder, error) from error
        except BaseException:
            lock.release()
            raise

    def append(self, entry: Entry) -> None:
        """Write one line and return when it is on the disk.

        If the write fails (UserError: no room on the disk, say) or is interrupted, what it left of
        the line is cut off again, and the same entry can be appended later. TornRecord if that failed
        too, then and for every later entry: a line after half a line would damage the record for good.
        """
        if self._torn:
            raise self._cannot_go_on()
        line = codec.dumps(entry_to_json(entry)).encode("ascii") + b"\n"
        start = os.fstat(self._file.fileno()).st_size
        try:
            done = 0
            while done < len(line):
                done += self._file.write(line[done:])
            os.fsync(self._file.fileno())
        except BaseException as error:
            self._torn = True
            try:
                os.ftruncate(self._file.fileno(), start)
            except OSError:
                raise self._cannot_go_on() from error
            self._torn = False
            if isinstance(error, OSError):
                raise _unwritable(self.folder, error) from error
            raise

    def _cannot_go_on(self) -> TornRecord:
        return TornRecord(f"a line of {self.folder / LINES} could neither be written nor taken back; try to make the "
                          "disk writable again, then resume the run from its folder")

    def close(self) -> None:
        self._file.close()
        self._lock.release()

    def __enter__(self) -> Record:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def load(folder: str | os.PathLike) -> tuple[Header, Run]:
    """Read a record, finished or not, without touching it. A torn last line is left out.

    Pictures are read and checked when `run.picture(id)` asks for them. UserError if there is no
    record or it is damaged.
    """
    folder = Path(folder)
    _expect_record(folder)
    header, run, _ = _read(folder)
    return header, run


def check_pictures(folder: Path, run: Run) -> None:
    """UserError naming the first picture that is missing or is not the one on record."""
    store = FolderPictures(Path(folder) / PICTURES)
    for candidate in run.candidates:
        store.read(candidate.id, candidate.sha256)


def _read(folder: Path) -> tuple[Header, Run, int]:
    """Header, run and the number of bytes in whole lines."""
    try:
        content = (folder / LINES).read_bytes()
    except OSError as error:
        raise UserError(f"{folder / LINES} cannot be read ({error}); expected a file that you may read; try to "
                        "check its rights") from error
    whole = content.rfind(b"\n") + 1
    lines = content[:whole].split(b"\n")[:-1]
    if not lines:
        raise UserError(f"{folder / LINES} has no whole line; expected a header; nothing was drawn, so try "
                        "to remove the folder and start anew")
    header = run = None
    for number, line in enumerate(lines, start=1):
        try:
            data = json.loads(line)
            if header is None:
                header = header_from_json(data)
                run = Run(header.request, header.chunk, FolderPictures(folder / PICTURES))
            else:
                run.apply(entry_from_json(data))
        except (ValueError, TypeError, RecursionError) as error:
            raise UserError(f"line {number} of {folder / LINES} is damaged: {error}; expected what Reflect "
                            "wrote; try a copy of the record, or cut the file before that line and resume"
                            ) from error
    return header, run, whole


def _expect_record(folder: Path) -> None:
    if not (folder / LINES).is_file():
        raise UserError(f"there is no record in {folder}: {LINES} is missing; expected the folder of a run; "
                        "try to check the path")


def _unwritable(folder: Path, error: Exception) -> UserError:
    return UserError(f"the output folder {folder} cannot be written ({error}); expected a folder to write to "
                     "and room on its disk; try to make room, or another folder")


def _write_whole(path: Path, content: bytes) -> None:
    scratch = path.with_suffix(".tmp")
    with open(scratch, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(scratch, path)
    sync_folder(path.parent)
