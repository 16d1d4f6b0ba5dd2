"""No judge: every picture is as good as any other, and none is accepted."""

from __future__ import annotations

from collections.abc import Sequence

from ..types import Picture, Verdict


class NoVerifier:
    """A score of 0 for every picture, so that the first one is the best."""

    def judge(self, prompt: str, pictures: Sequence[Picture]) -> list[Verdict]:
        return [Verdict(0.0, False, reason="nobody judged this picture") for _ in pictures]
