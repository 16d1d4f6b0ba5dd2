"""Many runs at once over one generator, in lock-step, each driven by its own stepper.

A small model is fast only in large batches, and a benchmark draws the same pictures again and again:
best-of-4 is the beginning of best-of-64, and ReflectionFlow's pool is the beginning of either. So the
steppers share a generator that knows what was drawn. Asked for something new it raises `NotDrawn`,
which a stepper lets through and takes up again at its next step (`Stepper.step`); when all runs wait,
what they want is drawn in one call. The runs are the ordinary ones and count what they would have
cost alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from ..search import Stepper, Stop
from ..search.pictures import pixel_sha256
from ..types import Drawn, Generator, Picture, Request, StepCallback, Verdict, Verifier


class NotDrawn(Exception):
    """These requests wait for a picture."""

    def __init__(self, requests: Sequence[Request]) -> None:
        super().__init__(f"{len(requests)} pictures are not drawn yet")
        self.requests = list(requests)


class SharedGenerator:
    """Hands out pictures that are drawn already, and draws the missing ones when told to."""

    def __init__(self, inner: Generator, beside: SharedGenerator | None = None) -> None:
        """`beside`: one whose generator draws the same as `inner` where there is no context; either hands out what the
        other drew so."""
        self.inner = inner
        self.max_context = inner.max_context
        self.pictures_drawn = 0
        """Really, by the inner generator."""
        self._told: dict[tuple, Drawn] = {}
        self._plain: dict[tuple, Drawn] = {} if beside is None else beside._plain

    def evaluations(self, request: Request) -> int:
        return self.inner.evaluations(request)

    def draw(self, requests: Sequence[Request], callback: StepCallback | None = None) -> list[Drawn]:
        """Raises `NotDrawn` if any of them is new."""
        missing = [r for r in requests if _key(r) not in self._known(r)]
        if missing:
            raise NotDrawn(missing)
        return [self._known(r)[_key(r)] for r in requests]

    def _known(self, request: Request) -> dict[tuple, Drawn]:
        return self._told if request.context else self._plain

    def draw_now(self, requests: Iterable[Request]) -> list[Drawn]:
        """Draw what is new of these in one call, in the order given, and return all of them."""
        requests = list(requests)
        new = {_key(r): r for r in requests if _key(r) not in self._known(r)}
        if new:
            for key, drawn in zip(new, self.inner.draw(list(new.values()))):
                self._known(new[key])[key] = drawn
            self.pictures_drawn += len(new)
        return [self._known(r)[_key(r)] for r in requests]

    def forget(self) -> None:
        self._told.clear()
        self._plain.clear()


class SharedVerifier:
    """Judges the same picture for the same prompt once; runs still count their calls."""

    def __init__(self, inner: Verifier) -> None:
        self.inner = inner
        self._verdicts: dict[tuple[str, str], Verdict] = {}

    def judge(self, prompt: str, pictures: Sequence[Picture]) -> list[Verdict]:
        keys = [(prompt, pixel_sha256(p)) for p in pictures]
        new = {key: p for key, p in zip(keys, pictures) if key not in self._verdicts}
        if new:
            self._verdicts.update(zip(new, self.inner.judge(prompt, list(new.values()))))
        return [self._verdicts[key] for key in keys]

    def forget(self) -> None:
        self._verdicts.clear()


def drive(steppers: Sequence[Stepper], generator: SharedGenerator,
          on_drawn: Callable[[int, int], None] | None = None) -> None:
    """Run every stepper to its end. All must draw with `generator`.

    What is drawn together depends on the runs alone and not on the clock, so the same set of runs
    gives the same batches. `on_drawn` is called with (runs that ended, of how many).
    """
    active = list(steppers)
    while active:
        wanted: list[Request] = []
        going = []
        for stepper in active:
            try:
                while not isinstance(stepper.step(), Stop):
                    pass
            except NotDrawn as waiting:
                wanted += waiting.requests
                going.append(stepper)
        active = going
        generator.draw_now(wanted)
        if on_drawn is not None:
            on_drawn(len(steppers) - len(active), len(steppers))


def _key(request: Request) -> tuple:
    context = tuple((pair.feedback, pixel_sha256(pair.picture)) for pair in request.context)
    return (request.prompt, request.original_prompt, request.seed, request.width, request.height, request.steps,
            request.guidance, context)
