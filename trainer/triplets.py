"""Triplets (flawed picture, reflection, good picture): what a corrector is trained from.

A folder of one's own pictures is a `triplets.jsonl` with a line for each triplet,

    {"prompt": "a cat on a mat", "reflection": "remove the second cat", "flawed": "bad/1.png", "good": "good/1.png"}

with paths relative to the folder. Pictures may have any size: as in the paper's training, the flawed
one is brought to the size of the good one, both are reduced until the shorter side fits, and the same
square is cut out of both (here the middle one, so that it is encoded once).
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from reflect_core.generators.rgb import as_rgb
from reflect_core.types import UserError

MARKER = "[Reflexion]"
"""Between prompt and reflection in T5's text, as published."""
_KEYS = ("prompt", "reflection", "flawed", "good")
_EXPECTED = "expected one JSON object a line with the texts prompt, reflection, flawed, good"


@dataclass(frozen=True)
class Triplet:
    """Pictures are (H, W, 3) uint8, both of the same size."""

    prompt: str
    reflection: str
    flawed: np.ndarray
    good: np.ndarray

    @property
    def told(self) -> str:
        """T5's text, with the reflection if there is one."""
        reflection = self.reflection.strip()
        return f"{self.prompt} {MARKER} {reflection}" if reflection else self.prompt


@dataclass(frozen=True)
class Line:
    """One line of a folder's triplets.jsonl, pictures not yet read."""

    where: str
    """For messages: the file and the line's number."""
    folder: Path
    prompt: str
    reflection: str
    flawed: str
    good: str

    def read(self, size: int) -> Triplet:
        """The triplet, its pictures size x size. Raises `UserError` that names line and picture."""
        flawed, good = self._open(self.flawed), self._open(self.good)
        if flawed.size != good.size:
            flawed = flawed.resize(good.size, Image.Resampling.BICUBIC)
        return Triplet(self.prompt, self.reflection, _square(flawed, size), _square(good, size))

    def digest(self) -> bytes:
        """Of the texts and of the pictures' bytes: tells whether anything changed."""
        value = hashlib.sha256(json.dumps([self.prompt, self.reflection]).encode())
        for name in (self.flawed, self.good):
            try:
                value.update(hashlib.sha256((self.folder / name).read_bytes()).digest())
            except OSError as error:
                raise self._broken(name, error) from error
        return value.digest()

    def _open(self, name: str) -> Image.Image:
        try:
            with Image.open(self.folder / name) as image:
                return as_rgb(image)
        except Exception as error:  # Pillow's readers raise all kinds for a broken file
            raise self._broken(name, error) from error

    def _broken(self, name: str, error: Exception) -> UserError:
        said = getattr(error, "strerror", None) or " ".join(str(error).split())
        return UserError(f"{self.where}: cannot read the picture {self.folder / name}: {said}. Replace it, or take "
                         "its line out")


def read_lines(folder: Path, count: int | None = None) -> list[Line]:
    """The first `count` lines of a folder's triplets.jsonl. Raises `UserError` that names the bad one."""
    file = folder / "triplets.jsonl"
    try:
        text = file.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"cannot read {file}: {error.strerror}; {_EXPECTED}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{file} is not UTF-8 text ({error}); {_EXPECTED}") from error
    lines = []
    for number, line in enumerate(text.split("\n"), start=1):
        if count is not None and len(lines) == count:
            break
        if line.strip():
            lines.append(_parse(line, folder, f"{file}, line {number}"))
    if not lines:
        raise UserError(f"{file} holds no triplets; {_EXPECTED}")
    return lines


def _parse(line: str, folder: Path, where: str) -> Line:
    try:
        entry = json.loads(line)
    except ValueError as error:
        raise UserError(f"{where}: is not JSON ({error}); {_EXPECTED}") from error
    if not isinstance(entry, dict):
        raise UserError(f"{where}: is {line.strip()[:60]}; {_EXPECTED}")
    for key in _KEYS:
        if not isinstance(entry.get(key), str):
            raise UserError(f"{where}: {key} is {entry.get(key)!r}; expected text")
    return Line(where, folder, *(entry[key] for key in _KEYS))


def _square(image: Image.Image, size: int) -> np.ndarray:
    """The middle size x size (3 channels) of a picture whose shorter side is brought to `size`, bicubic."""
    if image.size != (size, size):
        scale = size / min(image.size)
        width, height = (max(size, round(side * scale)) for side in image.size)
        image = image.resize((width, height), Image.Resampling.BICUBIC)
        left, top = (width - size) // 2, (height - size) // 2
        image = image.crop((left, top, left + size, top + size))
    return np.asarray(image)
