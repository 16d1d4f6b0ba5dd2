"""Fix rate and drift: what one correction is worth, beside drawing anew.

A flawed picture is corrected once with the reflector's words. Its correction is accepted or not (fix
rate), and so is a fresh picture of the same prompt (fresh rate): reflection pays only where the first is
clearly higher. Drift is what happens to objects that no instruction spoke of. Flaws are the base's own
failures, and corruptions of rendered scenes as the trainer makes them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ..reflectors import ShapesReflector
from ..search import derive_seed
from ..search.pictures import pixel_sha256
from ..shapes.corrupt import corrupt
from ..shapes.evaluation import EvaluationPrompt
from ..shapes.prompt import Requirement, parse
from ..shapes.repair import plan
from ..shapes.sample import sample_scene
from ..shapes.scene import Obj, render
from ..types import Pair, Picture, Request, Verdict
from ..verifiers.shapes import seen
from .lockstep import SharedGenerator, SharedVerifier

OWN, SYNTHETIC = "own", "synthetic"
LOOKED_AT, OWN_FLAWS = 4, 2
"""Of the first so many pictures of a prompt, up to so many flawed ones are corrected."""
NEAR = 3.0
"""Pixels within which an object is still where it was."""


@dataclass(frozen=True)
class _Flawed:
    source: str
    prompt: EvaluationPrompt
    requirement: Requirement
    picture: Picture
    verdict: Verdict
    request: Request


def measure_fixes(prompts: Sequence[EvaluationPrompt], requests: Sequence[Request], generator: SharedGenerator,
                  verifier: SharedVerifier) -> list[dict[str, Any]]:
    """A row for each flawed picture. `requests[i]` is the plain request of `prompts[i]`, its seed the run's."""
    reflector = ShapesReflector()
    flawed = [*_own_failures(prompts, requests, generator, verifier), *_corrupted(prompts, requests, verifier)]
    corrections, fresh = [], []
    for k, flaw in enumerate(flawed):
        words = reflector.reflect(flaw.request.prompt, [flaw.picture], [flaw.verdict])[0]
        corrections.append(replace(flaw.request, seed=derive_seed(flaw.request.seed, "fix", k),
                                   context=(Pair(words, picture=flaw.picture),)))
        fresh.append(replace(flaw.request, seed=derive_seed(flaw.request.seed, "fresh", k)))
    drawn = generator.draw_now([*corrections, *fresh])
    rows = []
    for k, flaw in enumerate(flawed):
        after, anew = verifier.judge(flaw.request.prompt, [drawn[k].picture, drawn[len(flawed) + k].picture])
        fixes = plan(seen(flaw.verdict), flaw.requirement)
        told = fixes[:reflector.limit]
        untouched = [o for o in seen(flaw.verdict) if all(fix.obj != o for fix in told)]
        rows.append({
            "source": flaw.source, "prompt": flaw.prompt.prompt, "task": flaw.prompt.task,
            "unseen": flaw.prompt.unseen, "kind": told[0].kind if told else None,
            "flaws": len(fixes), "fixed": after.accepted, "fresh": anew.accepted,
            "before": flaw.verdict.score, "after": after.score,
            "untouched": len(untouched), "kept": _kept(untouched, seen(after)),
        })
    return rows


class ShuffledReflector:
    """Says of a picture what is wrong with a corrupted scene of another of the prompts. See `Reflector`."""

    def __init__(self, prompts: Sequence[EvaluationPrompt], seed: int, verifier: SharedVerifier) -> None:
        requests = [Request(p.prompt, derive_seed(seed, f"shuffled {p.prompt}")) for p in prompts]
        flawed = _corrupted(prompts, requests, verifier)
        reflector = ShapesReflector()
        self.words = [(f.prompt.prompt, reflector.reflect(f.prompt.prompt, [f.picture], [f.verdict])[0])
                      for f in flawed]

    def reflect(self, prompt: str, pictures: Sequence[Picture], verdicts: Sequence[Verdict]) -> list[str]:
        others = [words for of, words in self.words if of != prompt and words]
        return ["" if verdict.accepted or not others else
                others[int(pixel_sha256(picture)[:8], 16) % len(others)]
                for picture, verdict in zip(pictures, verdicts)]


def _own_failures(prompts, requests, generator: SharedGenerator, verifier: SharedVerifier) -> list[_Flawed]:
    """The first failures of the base, from the noise with which every policy begins."""
    plain = [replace(r, seed=derive_seed(r.seed, "noise", i)) for r in requests for i in range(LOOKED_AT)]
    drawn = generator.draw_now(plain)
    found = []
    for p, (prompt, request) in enumerate(zip(prompts, requests)):
        pictures = [d.picture for d in drawn[p * LOOKED_AT:(p + 1) * LOOKED_AT]]
        bad = [(pic, v) for pic, v in zip(pictures, verifier.judge(prompt.prompt, pictures)) if not v.accepted]
        found += [_Flawed(OWN, prompt, parse(prompt.prompt), picture, verdict, request)
                  for picture, verdict in bad[:OWN_FLAWS]]
    return found


def _corrupted(prompts, requests, verifier: SharedVerifier) -> list[_Flawed]:
    """A right scene of each prompt with one flaw, or more where one does no harm."""
    found = []
    for prompt, request in zip(prompts, requests):
        requirement = parse(prompt.prompt)
        rng = np.random.default_rng(derive_seed(request.seed, "synthetic"))
        scene = sample_scene(requirement, rng)
        verdict = None
        while verdict is None or verdict.accepted:
            scene = corrupt(scene, requirement, rng)
            picture = render(scene)
            verdict = verifier.judge(prompt.prompt, [picture])[0]
        found.append(_Flawed(SYNTHETIC, prompt, requirement, picture, verdict, request))
    return found


def _kept(untouched: Sequence[Obj], after: Sequence[Obj]) -> int:
    """How many of these are still there: same look, near the old place, one for one."""
    free = list(after)
    kept = 0
    for obj in untouched:
        same = [o for o in free if (o.shape, o.colour) == (obj.shape, obj.colour)
                and math.hypot(o.x - obj.x, o.y - obj.y) <= NEAR]
        if same:
            free.remove(min(same, key=lambda o: math.hypot(o.x - obj.x, o.y - obj.y)))
            kept += 1
    return kept
