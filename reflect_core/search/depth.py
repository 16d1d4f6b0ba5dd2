"""How often a picture was corrected: repeated edits drift, in tone, texture and identity, and soften detail.

So a search with an editor bounds the depth of its pictures: one that was corrected so often already may be the answer,
but nothing is drawn from it.
"""

from __future__ import annotations

from collections.abc import Iterable

from .run import Candidate, Run


def depth(run: Run, id: int) -> int:
    """Corrections between a candidate and the picture from noise, or from outside, that it goes back to."""
    corrections, candidate = 0, run.candidate(id)
    while candidate.request.context:
        corrections += 1
        # Of several pictures in view, the last one is the one that was corrected.
        before = candidate.request.context[-1].candidate
        if before is None:
            break
        candidate = run.candidate(before)
    return corrections


def above(run: Run, candidates: Iterable[Candidate], most: int | None) -> list[Candidate]:
    """Those that may be corrected once more, so that no picture is deeper than `most`; None: all of them."""
    return [c for c in candidates if most is None or depth(run, c.id) < most]
