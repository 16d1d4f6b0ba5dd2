"""When a server is waited for, and when it is given up: decided once for all the threads that ask it.

A server that limits how often it is asked (429), or that still loads its model (503), tells every thread the
same. So all of them pause together, and that is no failure of a question. It is given up where nobody got an
answer for `BUSY` seconds; a server that says nothing, after `PATIENCE` questions in a row; one that refuses,
after as many refusals of one kind with no answer before them.
"""

from __future__ import annotations

import random
import re
import threading
import time

PATIENCE = 12
"""Questions in a row without an answer until the server is taken to be gone."""
BUSY = 120.0
"""Seconds that a server may be busy without answering anybody."""
MOST_PAUSE = 30.0
"""Seconds between two attempts, whatever the server says."""


class Patience:
    """`pause`: seconds after the first refusal to hurry; twice as long after each further one. Safe for threads."""

    def __init__(self, pause: float) -> None:
        self._pause = pause
        self._lock = threading.Lock()
        self._until, self._busy_since, self._times = 0.0, None, 0
        self._unanswered = 0
        self._seen: set[bool] = set()
        self._refused: dict[bool, tuple[str, int]] = {}

    def wait(self, stop: threading.Event) -> None:
        """Until somebody may ask again. Not all at the same moment: that may be what the server suffered from."""
        while (left := self._until - time.monotonic()) > 0 and not stop.wait(left * random.uniform(1.0, 1.25)):
            pass

    def busy(self, began: float, told: float) -> bool:
        """A request begun then was told to come later, in `told` seconds (0: nothing said). False: give up."""
        with self._lock:
            now = time.monotonic()
            if self._busy_since is None or now - self._until > BUSY:  # nobody asked in the meantime
                self._busy_since, self._times = now, 0
            if told > BUSY or now - self._busy_since >= BUSY:
                self._busy_since = None
                return False
            if began >= self._until:  # the others were under way when the pause was made
                self._until = now + min(max(told, self._pause * 2 ** self._times), MOST_PAUSE)
                self._times = min(self._times + 1, 10)
            else:
                self._until = max(self._until, now + min(told, MOST_PAUSE))
            return True

    def spoke(self) -> None:
        """The server is there, and has time."""
        with self._lock:
            self._busy_since, self._times, self._unanswered = None, 0, 0

    def answered(self, seeing: bool) -> None:
        """A question was answered; `seeing`: one about a picture."""
        with self._lock:
            self._seen.add(seeing)

    def unanswered(self, slow: bool) -> bool:
        """One was not. True: give up. To wait in vain takes long: half as many of those will do."""
        with self._lock:
            self._unanswered += 2 if slow else 1
            lost = self._unanswered >= PATIENCE
            self._unanswered = 0 if lost else self._unanswered
            return lost

    def refused(self, seeing: bool, reason: str) -> bool:
        """One was refused for that reason. True: give up, since all of its kind are."""
        kind = re.sub(r"\d+", "#", reason)
        with self._lock:
            last, times = self._refused.get(seeing, ("", 0))
            self._refused[seeing] = kind, times + 1 if kind == last else 1
            return seeing not in self._seen and self._refused[seeing][1] >= PATIENCE

    def begin(self) -> None:
        """From here on: what was answered to a probe says nothing on the run's questions."""
        with self._lock:
            self._seen.clear()
            self._refused.clear()
