"""The sources that a corrector's config names, as triplets to train on and triplets that are kept back."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterator
from pathlib import Path

from reflect_core.types import UserError

from .settings import CorrectorData, Source
from .shapes import corrupted_triplets
from .triplets import Line, Triplet, read_lines

OTHER_SEED = 999
"""Added to the seed for corrupted scenes that are held out."""


class Sources:
    """Reads every triplets.jsonl at once, and pictures when they are asked for.

    Args: size, pixels of the good picture's side (the flawed one comes in the same size).
    """

    def __init__(self, data: CorrectorData, seed: int, size: int) -> None:
        self.data, self.seed, self.size = data, seed, size
        self.sources = data.parsed()
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
                lines = lines[:-back]
            self.lines.append(lines)

    def triplets(self) -> Iterator[tuple[int, Triplet]]:
        """(index of the source, triplet) of everything that is trained on, once."""
        for index, (source, lines) in enumerate(zip(self.sources, self.lines)):
            found = corrupted_triplets(self.seed, source.count, source.tasks) if lines is None else (
                line.read(self.size) for line in lines)
            yield from zip(itertools.repeat(index), found)

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
        """As JSON: the same if and only if the same triplets come out, wherever they lie."""
        return [{"seed": self.seed, "count": source.count, "tasks": source.tasks} if lines is None else
                hashlib.sha256(b"".join(line.digest() for line in lines)).hexdigest()
                for source, lines in zip(self.sources, self.lines)]
