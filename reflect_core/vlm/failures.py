"""A reply that is an error: what it says, whether to ask again, and when."""

from __future__ import annotations

import json
import time
from email.utils import parsedate_to_datetime

import requests

from ..text import bounded
from .refusals import is_busy, seconds_told, understood, wants_money

RETRIED = (408, 425, 429, 500, 502, 503, 504, 520, 522, 524, 529)


class NoAnswer(Exception):
    """Nothing that can be used came back. `status`: HTTP's, or None where there was none; `pause`: seconds until when
    the server wants to be left alone; `slow`: it was waited for; `busy`: it would answer later."""

    def __init__(self, reason: str, status: int | None = None, pause: float = 0.0, slow: bool = False,
                 busy: bool = False) -> None:
        super().__init__(reason)
        self.reason, self.status, self.pause, self.slow, self.busy = reason, status, pause, slow, busy
        self.attempts = 1


class Refused(NoAnswer):
    """The server understood, and will not: asking again is of no use."""


def failed(status: int, body: bytes, response: requests.Response) -> NoAnswer:
    """What a reply that is an error is to be raised as."""
    said, told = _said(body), _pause(response) or seconds_told(body[:16384].decode("utf-8", "replace"))
    reason = f"HTTP {status}: {said}"
    if wants_money(status, said, told):
        return Refused(reason, 402)
    if status not in RETRIED or status >= 500 and understood(said):
        return Refused(reason, status)
    return NoAnswer(reason, status, told, busy=is_busy(status, said, told))


def _pause(response: requests.Response) -> float:
    """What `Retry-After` says, in seconds; 0 where it says nothing. A date is read by the server's own clock."""
    said = response.headers.get("Retry-After", "0")
    try:
        return min(max(0.0, float(said)), 1e6)
    except ValueError:
        pass
    try:
        date = response.headers.get("Date")
        now = parsedate_to_datetime(date).timestamp() if date else time.time()
        return min(max(0.0, parsedate_to_datetime(said).timestamp() - now), 1e6)
    except (ValueError, TypeError, OverflowError):
        return 0.0


def _said(body: bytes) -> str:
    """A server's own words on what is wrong, in a line, with the parameter and the code that it names beside them."""
    text = body[:16384].decode("utf-8", "replace")
    beside: list[str] = []
    try:
        data = json.loads(text)
        data = data[0] if isinstance(data, list) and data else data  # Google's
        error = data.get("error", data) if isinstance(data, dict) else data
        if isinstance(error, dict):
            text = str(error.get("message") or error.get("detail") or text)
            metadata = error.get("metadata")  # OpenRouter's: what the provider behind it said
            kind = error.get("type")
            beside = [error.get("param"), error.get("code"), kind if "quota" in str(kind) else None,
                      metadata.get("raw") if isinstance(metadata, dict) else None]
        else:
            text = str(error)
    except (ValueError, RecursionError):
        pass
    more = ", ".join(dict.fromkeys(one for one in beside if isinstance(one, str) and one and one not in text))
    return (bounded(text, 300) or "nothing said") + (f" [{bounded(more, 200)}]" if more else "")
