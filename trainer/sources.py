"""The sources that a corrector's config names, as triplets to train on and triplets that are kept back."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterator
from pathlib import Path

from reflect_core.shapes.scene import SIZE
from reflect_core.types import UserError

from .identity import PROBE
from .settings import CorrectorData, Source
from .shapes import corrupted_triplets
from .triplets import Line, Triplet, read_lines

OTHER_SEED = 999
"""Added to the seed for corrupted scenes that are held out."""
FILES_PROBE = 2
"""Triplets of a folder that are probed: the bytes of all of them are in its identity, so this is about reading."""


class Sources:
    """Reads every triplets.jsonl at once, and pictures when they are asked for.

    Args: size, pixels of the good picture's side (the flawed one comes in the same size). whole_prompts: what is kept
    back of a folder shares no prompt with what is trained on.
    """

    def __init__(self, data: CorrectorData, seed: int, size: int, whole_prompts: bool = False) -> None:
        self.data, self.seed, self.size = data, seed, size
        self.sources = data.parsed()
        if size != SIZE and (data.sample_prompts or any(source.kind == "corrupted" for source in self.sources)):
            raise UserError(f"model.size is {size}; expected {SIZE} where the shapes world is trained on or judged "
                            "(kind: corrupted, data.sample_prompts)")
        back = 0 if data.eval is not None or data.sample_prompts else data.held_out
        self.lines: list[list[Line] | None] = []
        self.kept_back: list[Line] = []
        for source in self.sources:
            lines = read_lines(Path(source.path), source.count) if source.kind == "folder" else None
            if lines is not None and back:
                if len(lines) <= back:
                    raise UserError(f"{source.path} has {len(lines)} triplets, of which data.held_out = {back} are "
                                    "kept back; expected more. Lower data.held_out, or add triplets")
                self.kept_back += lines[-back:]
                apart = {line.prompt for line in lines[-back:]} if whole_prompts else set()
                lines = [line for line in lines[:-back] if line.prompt not in apart]
                if not lines:
                    raise UserError(f"all of {source.path} has the prompts of its last {back} lines, which are kept "
                                    "back (data.held_out); expected others too. Lower data.held_out, or add lines")
            self.lines.append(lines)

    def triplets(self, start: int = 0) -> Iterator[tuple[int, Triplet]]:
        """(index of the source, triplet) of everything that is trained on, once, from the `start`-th on."""
        for index, (source, lines) in enumerate(zip(self.sources, self.lines)):
            count = source.count if lines is None else len(lines)
            yield from zip(itertools.repeat(index), self._of(index, min(start, count)))
            start = max(0, start - count)

    def _of(self, index: int, start: int = 0) -> Iterator[Triplet]:
        source, lines = self.sources[index], self.lines[index]
        if lines is None:
            made = corrupted_triplets(self.seed, source.count, source.tasks, source.tries)
            return itertools.islice(made, start, None)
        return (line.read(self.size) for line in lines[start:])

    def probe(self) -> list[Triplet]:
        """The first few of each source, to tell whether what comes out is what came out before."""
        return [triplet for index, lines in enumerate(self.lines)
                for triplet in itertools.islice(self._of(index), PROBE if lines is None else FILES_PROBE)]

    def held_out(self) -> list[Triplet]:
        """What is never trained on: `eval`, or corrupted scenes, or the last triplets of each folder."""
        source = self.data.parsed_eval()
        if source is None and self.data.sample_prompts:
            source = Source("corrupted", count=self.data.sample_prompts)
        if source is None:
            return [line.read(self.size) for line in self.kept_back]
        if source.kind == "corrupted":
            return list(corrupted_triplets(self.seed + OTHER_SEED, source.count, source.tasks))
        return [line.read(self.size) for line in read_lines(Path(source.path), source.count)]

    def identity(self) -> list:
        """As JSON: the same for the same settings and files, wherever they lie. What the code makes of them is seen
        by `probe`."""
        return [{"seed": self.seed, "count": source.count, "tasks": source.tasks}
                | ({"tries": source.tries} if source.tries > 1 else {}) if lines is None else
                hashlib.sha256(b"".join(line.digest() for line in lines)).hexdigest()
                for source, lines in zip(self.sources, self.lines)]
