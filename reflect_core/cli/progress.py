"""What a run says while it goes on: a line for each candidate, and in a terminal a bar below them.

Everything goes to stderr, so that stdout is the result alone.
"""

from __future__ import annotations

import sys
from typing import TextIO

from tqdm import tqdm

from ..report.words import readable
from ..search import Event, Run, Stepper

BAR = "{desc} |{bar:24}| {elapsed}"


class Progress:
    """An `on_event` callback. Give it the stepper before the first step; use it in a `with`."""

    def __init__(self, quiet: bool = False, stream: TextIO | None = None) -> None:
        self.stream = stream or sys.stderr
        self.quiet = quiet
        self.stepper: Stepper | None = None
        self._bar: tqdm | None = None
        self._best = ""
        self._whole = 0

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def say(self, text: str) -> None:
        """A line of its own, e.g. what is being loaded."""
        if self.quiet:
            return
        text = readable(text)
        if self._bar is not None:
            self._bar.write(text, file=self.stream)
        else:
            print(text, file=self.stream, flush=True)

    def __call__(self, event: Event) -> None:
        if self.quiet:
            return
        if event.kind == "judged":
            self._judged(event)
        elif event.kind == "planned":
            self._show(event.pictures, event.most_pictures, f"round {event.round}  drawing")
        elif event.kind == "step":
            chunk = len(self.stepper.so_far.next_chunk) if self.stepper else 1
            self._show(event.pictures + chunk * event.step / max(event.steps, 1), event.most_pictures,
                       f"round {event.round}  picture {event.pictures + 1}/{event.most_pictures}  "
                       f"step {event.step}/{event.steps}")
        elif event.kind in ("reflected", "refined"):
            self._show(event.pictures, event.most_pictures, f"round {event.round}  {event.kind}: {event.text}")
        elif event.kind == "stopped":
            self._show(event.pictures, event.most_pictures, event.text)

    def count(self, done: int, total: int, text: str) -> None:
        """So many of so many, for what is no search."""
        if not self.quiet:
            self._show(done, total, f"{text} {done}/{total}")

    def share(self, done: float, total: int, text: str) -> None:
        """So much of so many; without a terminal a line for each whole one."""
        if self.quiet:
            return
        self._show(done, total, f"{done:.1f} of {total}  {text}")
        if int(done) > self._whole and not self.stream.isatty():
            self._whole = int(done)
            self.say(f"{self._whole} of {total} done: {text}")

    def _judged(self, event: Event) -> None:
        run = self.stepper.so_far if self.stepper else None
        told = _reflection(run, event.candidate)
        word = "  accepted" if event.accepted else ""
        # A judge that looks again (official) says something new of an old picture.
        number = event.candidate + 1
        self.say(f"round {event.round}  picture {number}/{event.most_pictures}  score {event.score:.2f}{word}  "
                 f"{told or event.text}".rstrip())
        best = run.best() if run else None
        self._best = f"  best {best.score:.2f}" if best else ""
        self._show(event.pictures, event.most_pictures, f"round {event.round}  picture {number}/{event.most_pictures}")

    def _show(self, done: float, total: int, text: str) -> None:
        """Move the bar. Without a terminal there is none: the lines are enough for a log."""
        if not self.stream.isatty():
            return
        if self._bar is None:
            self._bar = tqdm(total=total, file=self.stream, bar_format=BAR, dynamic_ncols=True, leave=False,
                             mininterval=0)
        self._bar.n = min(done, total)
        self._bar.set_description_str(f"{readable(text)[:60]}{self._best}")


def _reflection(run: Run | None, candidate: int | None) -> str:
    """The words that a candidate was drawn from; empty for one from noise."""
    if run is None or candidate is None:
        return ""
    return "; ".join(pair.feedback for pair in run.candidate(candidate).request.context if pair.feedback)
