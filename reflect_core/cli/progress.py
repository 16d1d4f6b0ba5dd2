"""What a run says while it goes on: a line for each candidate, and in a terminal a bar below them.

Everything goes to stderr, so that stdout is the result alone.
"""

from __future__ import annotations

import sys
import time
import warnings
from typing import TextIO

from tqdm import tqdm

from ..search import Event, Run, Stepper
from ..text import readable

BAR = "{desc} |{bar:24}| {n:.0f}/{total} {elapsed}"

LEAST_SECONDS = 10
"""After less than this nothing is said about how long the rest will take."""


class Progress:
    """An `on_event` callback. Give it the stepper before the first step; use it in a `with`."""

    def __init__(self, quiet: bool = False, stream: TextIO | None = None) -> None:
        self.stream = stream or sys.stderr
        self.quiet = quiet
        self.stepper: Stepper | None = None
        self._bar: tqdm | None = None
        self._best = ""
        self._whole = 0
        self._begun: tuple[float, float] | None = None
        self._show_warning = warnings.showwarning

    def __enter__(self) -> Progress:
        warnings.showwarning = self._warn
        return self

    def __exit__(self, *_: object) -> None:
        warnings.showwarning = self._show_warning
        self.close()

    def close(self) -> None:
        """Take the bar away, so that the result can be printed."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def _warn(self, message: Warning | str, *_: object) -> None:
        """A warning in one line, above the bar; Python's own way shows the line of code that gave it."""
        self.say(f"warning: {message}", always=True)

    def say(self, text: str, always: bool = False) -> None:
        """A line of its own, e.g. what is being loaded. `always`: said even to who wants no progress."""
        if self.quiet and not always:
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
            # Candidates are called by the numbers that they have in the tree and on the disk: from 0 on.
            chunk = len(self.stepper.so_far.next_chunk) if self.stepper else 1
            first, last = event.pictures, event.pictures + chunk - 1
            which = f"candidate {first}" if first == last else f"candidates {first}-{last}"
            self._show(event.pictures + chunk * event.step / max(event.steps, 1), event.most_pictures,
                       f"round {event.round}  {which}  step {event.step}/{event.steps}")
        elif event.kind in ("reflected", "refined"):
            self._show(event.pictures, event.most_pictures, f"round {event.round}  {event.kind}: {event.text}")
        elif event.kind == "stopped":
            self._show(event.pictures, event.most_pictures, event.text)

    def count(self, done: int, total: int, text: str) -> None:
        """So many of so many, for what is no search."""
        if not self.quiet:
            self._show(done, total, text)

    def share(self, done: float, total: int, text: str) -> None:
        """So much of so many; without a terminal a line for each whole one."""
        if self.quiet:
            return
        left = self._left(done, total)
        self._show(done, total, f"{text}{left}")
        if int(done) > self._whole and not self.stream.isatty():
            self._whole = int(done)
            self.say(f"{self._whole} of {total} done: {text}{left}")

    def _left(self, done: float, total: int) -> str:
        """How long the rest takes if it goes on as since the start, which may have been in the middle."""
        now = time.monotonic()
        self._begun = self._begun or (now, done)
        since, already = now - self._begun[0], done - self._begun[1]
        if already <= 0 or since < LEAST_SECONDS or done >= total:
            return ""
        return f", about {duration(since / already * (total - done))} left"

    def _judged(self, event: Event) -> None:
        run = self.stepper.so_far if self.stepper else None
        told = _reflection(run, event.candidate)
        word = "  accepted" if event.accepted else ""
        candidate = run.candidate(event.candidate) if run and event.candidate is not None else None
        score = f"score {event.score:.2f}{word}" if candidate is None or candidate.judged else "not judged"
        # A judge that looks again (official) says something new of an old picture.
        self.say(f"round {event.round}  candidate {event.candidate} ({event.candidate + 1} of {event.most_pictures})  "
                 f"{score}  {event.text if score == 'not judged' else told or event.text}".rstrip())
        best = run.best() if run else None
        self._best = f"  best {best.score:.2f}" if best else ""
        self._show(event.pictures, event.most_pictures, f"round {event.round}  candidate {event.candidate}")

    def _show(self, done: float, total: int, text: str) -> None:
        """Move the bar. Without a terminal there is none: the lines are enough for a log."""
        if not self.stream.isatty():
            return
        if self._bar is None:
            self._bar = tqdm(total=total, file=self.stream, bar_format=BAR, dynamic_ncols=True, leave=False,
                             mininterval=0)
        self._bar.n = min(done, total)
        self._bar.set_description_str(f"{readable(text)[:60]}{self._best}")


def duration(seconds: float) -> str:
    """For people: '40 s', '12 min' or '3.5 h'."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _reflection(run: Run | None, candidate: int | None) -> str:
    """The words that a candidate was drawn from; empty for one from noise."""
    if run is None or candidate is None:
        return ""
    return "; ".join(pair.feedback for pair in run.candidate(candidate).request.context if pair.feedback)
