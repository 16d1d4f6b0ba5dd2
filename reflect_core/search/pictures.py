"""Where a run keeps its pictures: in memory, or in the folder of its record.

A picture is known by the SHA-256 of its pixels, not of its file: two Pillow versions may compress
the same pixels into different bytes. What comes back from a folder is checked against it.

The official search saves PNGs too, under names that carry a seed which is not the picture's
(spec 7, item 8), and cannot tell whether a file is still the one it judged.
"""

from __future__ import annotations

import hashlib
import os
from collections import OrderedDict
from pathlib import Path
from typing import Protocol

from PIL import Image

from ..types import Picture, UserError

CACHED_PICTURES = 32
"""Recent pictures that a folder store keeps decoded: a round's parents and children."""


def pixel_sha256(picture: Picture) -> str:
    """Hex digest over mode, size and raw pixels."""
    digest = hashlib.sha256(f"{picture.mode} {picture.width}x{picture.height}\n".encode())
    digest.update(picture.tobytes())
    return digest.hexdigest()


class PictureStore(Protocol):
    def put(self, candidate: int, picture: Picture) -> str:
        """Keep the picture and return its `pixel_sha256`."""
        ...

    def settle(self) -> None:
        """Return when all that was put would survive a power cut, where the store can do that."""
        ...

    def get(self, candidate: int, sha256: str) -> Picture:
        """The picture that was put. UserError if it is gone or is not the same any more."""
        ...

    def fork(self) -> PictureStore:
        """A store in memory that has the same pictures and goes its own way from here."""
        ...


class MemoryPictures:
    """Pictures of a run without a record. Those that it does not have itself come from `behind`."""

    def __init__(self, pictures: dict[int, Picture] | None = None, behind: PictureStore | None = None) -> None:
        self._pictures: dict[int, Picture] = dict(pictures or {})
        self._behind = behind

    def put(self, candidate: int, picture: Picture) -> str:
        self._pictures[candidate] = picture
        return pixel_sha256(picture)

    def settle(self) -> None:
        pass

    def get(self, candidate: int, sha256: str) -> Picture:
        if candidate not in self._pictures and self._behind is not None:
            return self._behind.get(candidate, sha256)
        return self._pictures[candidate]

    def fork(self) -> MemoryPictures:
        return MemoryPictures(self._pictures, self._behind)


class FolderPictures:
    """Pictures as `00000.png`, ... in a folder. A file is there whole or not at all."""

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder)
        self._recent: OrderedDict[int, Picture] = OrderedDict()

    def path(self, candidate: int) -> Path:
        return self.folder / f"{candidate:05d}.png"

    def put(self, candidate: int, picture: Picture) -> str:
        path = self.path(candidate)
        scratch = path.with_suffix(".tmp")
        try:
            with open(scratch, "wb") as file:
                # Level 1: three times as fast as the default for a few per cent more bytes.
                picture.save(file, format="PNG", compress_level=1)
                file.flush()
                os.fsync(file.fileno())
            os.replace(scratch, path)
        except OSError as error:
            raise UserError(f"the picture {path} cannot be written ({error}); expected room on the disk and "
                            "a folder to write to; try to make room, then resume") from error
        self._remember(candidate, picture)
        return pixel_sha256(picture)

    def settle(self) -> None:
        sync_folder(self.folder)

    def get(self, candidate: int, sha256: str) -> Picture:
        if candidate in self._recent:
            self._recent.move_to_end(candidate)
            return self._recent[candidate]
        picture = self.read(candidate, sha256)
        self._remember(candidate, picture)
        return picture

    def read(self, candidate: int, sha256: str) -> Picture:
        """From the disk, past the cache. UserError if missing, unreadable or changed."""
        path = self.path(candidate)
        try:
            with Image.open(path) as file:
                picture = file.copy()
        except FileNotFoundError:
            raise UserError(f"the picture {path} of candidate {candidate} is missing; expected it beside "
                            "the record; try to restore the folder from a copy") from None
        except (OSError, SyntaxError, ValueError) as error:
            raise UserError(f"the picture {path} of candidate {candidate} cannot be read ({error}); "
                            "expected a PNG; try to restore it from a copy") from error
        if pixel_sha256(picture) != sha256:
            raise UserError(f"the picture {path} was changed: its pixels have another SHA-256 than candidate "
                            f"{candidate} was recorded with; try to restore it from a copy")
        return picture

    def fork(self) -> MemoryPictures:
        return MemoryPictures(behind=self)

    def discard_from(self, first: int) -> None:
        """Remove what a kill left behind: pictures from `first` on, which no line speaks of."""
        for path in self.folder.iterdir():
            stray = path.suffix == ".png" and path.stem.isdigit() and int(path.stem) >= first
            if stray or (path.suffix == ".tmp" and path.stem.isdigit()):
                path.unlink()

    def _remember(self, candidate: int, picture: Picture) -> None:
        self._recent[candidate] = picture
        self._recent.move_to_end(candidate)
        while len(self._recent) > CACHED_PICTURES:
            self._recent.popitem(last=False)


def sync_folder(folder: Path) -> None:
    """Make renames in `folder` survive a power cut. Windows has no such call and needs none."""
    if os.name == "nt":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
