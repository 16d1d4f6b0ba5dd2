"""A generator of the shapes world without a model: draws rendered scenes with mistakes, mends what it is told.

So the bench, the report and the command line can be tested on runs that look like real ones, in
milliseconds. What comes out depends on the request alone, as with a real generator.
"""

from __future__ import annotations

import hashlib

import numpy as np

from reflect_core.shapes.corrupt import corrupt
from reflect_core.shapes.detector import detect
from reflect_core.shapes.prompt import parse
from reflect_core.shapes.repair import apply, plan
from reflect_core.shapes.sample import sample_scene
from reflect_core.shapes.scene import Obj, render, snap
from reflect_core.types import Cost, Drawn, Step


class FakeShapesGenerator:
    """Each object of a fresh scene is flawed with chance `flawed`; a told fix is done with chance `mends`,
    and with chance `spoils` a correction breaks something else."""

    max_context = 1

    def __init__(self, flawed: float = 0.35, mends: float = 0.7, spoils: float = 0.15) -> None:
        self.flawed, self.mends, self.spoils = flawed, mends, spoils
        self.defaults = {"width": 64, "height": 64, "steps": 4, "guidance": 2.5}
        self.batches: list[int] = []

    def evaluations(self, request):
        return request.steps

    def draw(self, requests, callback=None):
        self.batches.append(len(requests))
        drawn = [Drawn(self._picture(r), Cost(1, r.steps, 1, seconds=0.01)) for r in requests]
        for step in range(4 if callback else 0):
            callback(Step(step + 1, 4))
        return drawn

    def _picture(self, request):
        text = f"{request.prompt}|{request.seed}|{[p.feedback for p in request.context]}"
        rng = np.random.default_rng(int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big"))
        requirement = parse(request.prompt)
        if not request.context:
            scene = sample_scene(requirement, rng)
            return render(corrupt(scene, requirement, rng, int(rng.binomial(requirement.objects, self.flawed))))
        seen = detect(request.context[-1].picture)
        fixes = [fix for fix in plan(seen, requirement)[:3] if rng.random() < self.mends]
        mended = apply(seen, requirement, fixes, rng)
        scene = tuple(Obj(o.shape, o.colour, snap(o.x), snap(o.y), snap(o.r))
                      for o in (seen if mended is None else mended) if o.shape != "blob")
        return render(corrupt(scene, requirement, rng) if rng.random() < self.spoils else scene)


class FakeSana(FakeShapesGenerator):
    """Up to three pairs, and views that see pictures or words alone: without words it mends nothing."""

    max_context = 3

    def with_options(self, see):
        return FakeSana(self.flawed, self.mends if see != "pictures" else 0.0, self.spoils)
