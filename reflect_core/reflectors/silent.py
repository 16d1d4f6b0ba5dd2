"""A reflector that has nothing to say: for those who say it themselves."""

from __future__ import annotations

from collections.abc import Sequence

from ..types import Picture, Verdict


class SilentReflector:
    """An empty reflection for every picture."""

    def reflect(self, prompt: str, pictures: Sequence[Picture], verdicts: Sequence[Verdict]) -> list[str]:
        return ["" for _ in pictures]
