"""A lock on a record, so that two processes do not write the same one.

The operating system's own file lock: it is let go when its process dies, however it dies, and no
number of a dead process can come back to life as another one's. Where the file system has no such
locks (some network drives), a file that only one process can create holds the owner's id; it is
taken over when that process is gone. It is linked into place with the id in it, so that a kill
cannot leave one that names nobody.
"""

from __future__ import annotations

import os
import socket
import uuid
from pathlib import Path

from ..types import UserError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]
    try:
        import msvcrt
    except ImportError:
        msvcrt = None  # type: ignore[assignment]

_FAR = 1 << 20
"""Windows locks bytes and makes them unreadable: lock one behind the owner's name."""


class Busy(Exception):
    """Somebody else holds it: whoever the file of this path names."""


class RecordLock:
    """Held from construction until `release`. UserError if another process holds it."""

    def __init__(self, folder: Path) -> None:
        self._path = Path(folder) / ".lock"
        self._handle: int | None = None
        self._created: Path | None = None
        self._process = os.getpid()
        try:
            self._acquire()
        except Busy as busy:
            path = busy.args[0]
            raise UserError(f"the record in {folder} is being written by another process ({self._owner(path)}, as "
                            f"{path} says); expected to be the only one; try to wait for it, to end it, or another "
                            "folder; if there is no such process any more, remove that file") from None

    def release(self) -> None:
        """Let go. The lock file stays: deleting it would open a gap for two new owners.

        In a forked child this only forgets the lock: it is the parent's.
        """
        mine = self._process == os.getpid()
        if self._handle is not None:
            try:
                if mine:
                    # Not by closing alone: a forked child has the file open too, and would keep the lock.
                    _system_unlock(self._handle)
            finally:
                os.close(self._handle)
                self._handle = None
        if self._created is not None:
            if mine:
                self._created.unlink(missing_ok=True)
            self._created = None

    def _acquire(self) -> None:
        handle = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            _system_lock(handle)
        except BlockingIOError:
            os.close(handle)
            raise Busy(self._path) from None
        except OSError:
            os.close(handle)
            self._acquire_by_creating()
            return
        self._handle = handle
        try:
            os.ftruncate(handle, 0)
            os.write(handle, _me())
        except BaseException:
            self.release()
            raise

    def _acquire_by_creating(self) -> None:
        path = self._path.with_name(".lock.owner")
        mine = self._path.with_name(f".lock.{uuid.uuid4().hex}")
        try:
            mine.write_bytes(_me())
            for _ in range(2):
                try:
                    os.link(mine, path)
                except FileExistsError:
                    if not self._take_away(path):
                        raise Busy(path) from None
                    continue
                self._created = path
                return
            raise Busy(path)
        finally:
            mine.unlink(missing_ok=True)

    def _take_away(self, path: Path) -> bool:
        """Remove the lock file of a dead process; False if its owner lives."""
        owner = self._owner(path)
        pid, _, host = owner.removeprefix("process ").partition(" on ")
        # A process of another machine cannot be asked, so it lives.
        if not pid.isdigit() or host != socket.gethostname() or _alive(int(pid)):
            return False
        # Renamed before it is removed: of two that find it dead, one gets it. The other one may have
        # got hold of the first one's new lock instead, and puts it back.
        aside = path.with_name(f".lock.owner.{os.getpid()}")
        try:
            os.replace(path, aside)
        except FileNotFoundError:
            return True
        stale = self._owner(aside) == owner
        if not stale:
            os.link(aside, path)
        aside.unlink()
        return stale

    @staticmethod
    def _owner(path: Path) -> str:
        try:
            return path.read_text(encoding="utf-8").strip() or "unknown"
        except (OSError, UnicodeDecodeError):
            return "unknown"


def _system_lock(handle: int) -> None:
    """BlockingIOError if held by another; OSError where there are no such locks."""
    if fcntl is not None:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    elif msvcrt is not None:
        os.lseek(handle, _FAR, os.SEEK_SET)
        try:
            msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)
        except PermissionError:
            raise BlockingIOError from None
        finally:
            os.lseek(handle, 0, os.SEEK_SET)
    else:
        raise OSError("no file locks here")


def _system_unlock(handle: int) -> None:
    if fcntl is not None:
        fcntl.flock(handle, fcntl.LOCK_UN)
    else:
        os.lseek(handle, _FAR, os.SEEK_SET)
        msvcrt.locking(handle, msvcrt.LK_UNLCK, 1)


def _alive(pid: int) -> bool:
    if os.name == "nt":
        # os.kill(pid, 0) would end the process on Windows; when in doubt it lives.
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _me() -> bytes:
    return f"process {os.getpid()} on {socket.gethostname()}".encode()
