"""Deterministic actors with 8 x 8 pictures, so that the search can be tested without a model.

A picture is a hash of its request (prompt, seed, steps, context with the context pictures' pixels),
so two pictures are equal only if they were asked for in the same way. Its top-left pixel's red
channel is its "quality", 0 to 255: the fake judge's score is that quality / 255. A correction is
its parent's quality plus a small step that depends on the hash and may be negative.
"""

from __future__ import annotations

import hashlib
import time
from dataclasses import replace
from pathlib import Path

from hypothesis import settings
from PIL import Image

from reflect_core.search import ReflectionFlow, start
from reflect_core.types import Check, Cost, Drawn, Request, Step, Verdict

SIZE = 8

# The tests share their machine with trainings: a slow example is no failure.
settings.register_profile("shared machine", deadline=None)
settings.load_profile("shared machine")


def digest(request) -> bytes:
    h = hashlib.sha256(repr((request.prompt, request.seed, request.steps, request.guidance,
                             request.original_prompt)).encode())
    for pair in request.context:
        h.update(pair.feedback.encode())
        h.update(pair.picture.tobytes())
    return h.digest()


class FakeGenerator:
    """`batch_matters`: a picture also depends on who shares its batch, as it does on real devices.
    `log`: a file that gets one line for each picture drawn. `fail_at`: raises at that picture."""

    def __init__(self, max_context=1, batch_matters=False, seconds=0.0, log=None, fail_at=None, top=200):
        self.max_context = max_context
        self.batch_matters = batch_matters
        self.seconds = seconds
        self.log = Path(log) if log else None
        self.fail_at = fail_at
        self.top = top
        self.drawn = []
        self.batches = []

    def evaluations(self, request):
        return request.steps * 2

    def draw(self, requests, callback=None):
        self.batches.append(len(requests))
        out = []
        together = hashlib.sha256(b"".join(digest(r) for r in requests)).digest()
        for i, request in enumerate(requests):
            if self.fail_at is not None and len(self.drawn) == self.fail_at:
                raise RuntimeError("the fake generator fails here")
            if self.seconds:
                time.sleep(self.seconds)
            picture = self.picture(request, together if self.batch_matters else b"")
            out.append(Drawn(picture, Cost(pictures=1, denoiser_evaluations=self.evaluations(request),
                                           text_encoder_calls=1, seconds=self.seconds)))
            self.drawn.append(request)
            if self.log:
                with open(self.log, "a") as file:
                    file.write(f"{request.seed} {len(request.context)}\n")
            if callback:
                callback(Step(i + 1, len(requests)))
        return out

    def picture(self, request, salt=b""):
        h = hashlib.sha256(digest(request) + salt).digest()
        if request.context:
            quality = quality_of(request.context[-1].picture) + h[0] % 64 - 24
        else:
            quality = h[0] * self.top // 255
        pixels = bytearray((h * 6)[: SIZE * SIZE * 3])
        pixels[0] = max(0, min(255, quality))
        image = Image.frombytes("RGB", (SIZE, SIZE), bytes(pixels))
        if (request.width, request.height) != (SIZE, SIZE):
            big = Image.new("RGB", (request.width, request.height))
            big.paste(image, (0, 0))
            image = big
        return image


def quality_of(picture) -> int:
    return picture.getpixel((0, 0))[0]


class FakeVerifier:
    """Accepts from `threshold` on. `levels`: scores are rounded to so many steps, so that they tie."""

    def __init__(self, threshold=0.9, levels=None):
        self.threshold = threshold
        self.levels = levels
        self.judged = 0

    def judge(self, prompt, pictures):
        self.judged += len(pictures)
        return [self.verdict(p) for p in pictures]

    def verdict(self, picture):
        score = quality_of(picture) / 255
        if self.levels:
            score = round(score * self.levels) / self.levels
        ok = score >= self.threshold
        return Verdict(score, ok, (Check("quality", "picture", ok, f"{score:.2f}"),), f"score {score:.2f}",
                       {"pixel": picture.getpixel((0, 0)), "note": "tuple on purpose"})


class FakeReflector:
    """Names the score it was shown. `silent_below`: has nothing to say about scores below it."""

    def __init__(self, silent_below=-1.0):
        self.silent_below = silent_below
        self.calls = []

    def reflect(self, prompt, pictures, verdicts):
        self.calls.append([v.score for v in verdicts])
        return ["" if v.score < self.silent_below else f"better than {v.score:.4f}" for v in verdicts]


class FakeRefiner:
    """Appends a word to the branch's prompt."""

    def __init__(self):
        self.calls = []

    def refine(self, prompt, currents, pictures, verdicts, reflections):
        self.calls.append((tuple(currents), tuple(reflections)))
        return [f"{current}, refined at {v.score:.4f}" for current, v in zip(currents, verdicts)]


class SpendingReflector(FakeReflector):
    """A reflector that is a language model: reports what its calls cost, `each` for a candidate."""

    def __init__(self, each=1):
        super().__init__()
        self.each = each
        self.spent = Cost()

    def reflect(self, prompt, pictures, verdicts):
        calls = self.each * len(pictures)
        self.spent = self.spent + Cost(judge_calls=calls, tokens=100 * calls)
        return super().reflect(prompt, pictures, verdicts)


class SpendingVerifier(FakeVerifier):
    """A judge that is a language model and asks `each` questions of a picture. Accepts nothing."""

    def __init__(self, each):
        super().__init__(2)
        self.each = each
        self.spent = Cost()

    def judge(self, prompt, pictures):
        self.spent = self.spent + Cost(judge_calls=self.each * len(pictures))
        return super().judge(prompt, pictures)


# A run that most tests of records are about.

REQUEST = Request("two red circles", seed=3, width=SIZE, height=SIZE, steps=4)
FLOW = ReflectionFlow(4, 2, 3)


def actors():
    return FakeGenerator(batch_matters=True), FakeVerifier(2), FakeReflector()


def finished_record(folder):
    """The folder, with a record of `FLOW` in it: 10 pictures in chunks of at most 3."""
    with start(REQUEST, FLOW, *actors(), chunk=3, folder=folder, model="fake", fingerprint="abc") as stepper:
        stepper.run()
    return folder


def lines_of(folder):
    return (folder / "run.jsonl").read_bytes().splitlines(keepends=True)


def search(policy, seed=3, threshold=2.0, levels=None, chunk=4, reflector=None, generator=None):
    """(stepper, run) of a policy run to its end, by default with a judge that accepts nothing."""
    stepper = start(replace(REQUEST, seed=seed), policy, generator or FakeGenerator(), FakeVerifier(threshold, levels),
                    reflector or FakeReflector(), FakeRefiner(), chunk=chunk)
    return stepper, stepper.run()
