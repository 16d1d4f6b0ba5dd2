"""One JSON document to a server and one back, whatever the network does on the way.

Retried with growing pauses: no connection, one that is cut, a timeout, 429 and 5xx (and as long as `Retry-After`
says), and what is no answer: a page of HTML, another kind of JSON, nothing, or more than fits. The official code
retries one kind of call out of three, and there for nothing (ReflectionFlow notes, 5).
"""

from __future__ import annotations

import json
import random
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import requests
import urllib3

from ..text import bounded

R = TypeVar("R")
MOST_BYTES = 1 << 20
"""Of a reply: a thousand times what a judge has to say."""
MOST_PAUSE = 30.0
"""Seconds, whatever `Retry-After` says."""
RETRIED = (408, 425, 429, 500, 502, 503, 504, 520, 522, 524, 529)


class NoAnswer(Exception):
    """Nothing that can be used came back. `status`: HTTP's, or None where there was none; `slow`: it was waited for."""

    def __init__(self, reason: str, status: int | None = None, pause: float = 0.0, slow: bool = False) -> None:
        super().__init__(reason)
        self.reason, self.status, self.pause, self.slow = reason, status, pause, slow
        self.attempts = 1


class Refused(NoAnswer):
    """The server understood, and will not: asking again is of no use."""


@dataclass(frozen=True)
class Timing:
    """How patient to be with a server."""

    timeout: float = 120.0
    """Seconds for one request, all in all."""
    attempts: int = 4
    pause: float = 0.5
    """Seconds before the second attempt; twice as long before each further one."""


class Transport:
    """Requests to one server. Safe to be used by several threads at once."""

    def __init__(self, url: str, key: str | None, timing: Timing, connections: int) -> None:
        self.url, self.timing = url, timing
        self._key = key
        self.session = requests.Session()
        self.session.headers["Accept-Encoding"] = "identity"  # nothing that swells when it is unpacked
        adapter = requests.adapters.HTTPAdapter(pool_connections=1, pool_maxsize=connections)
        self.session.mount("http://", adapter)
        self.session.mount("https://", adapter)

    def __repr__(self) -> str:
        return f"<server {self.url}>"

    def close(self) -> None:
        self.session.close()

    def send(self, path: str, document: dict[str, Any] | None, read: Callable[[Any], R],
             stop: threading.Event | None = None) -> tuple[R, int]:
        """(what `read` makes of the reply, attempts). `document` None: a GET. `read` raises ValueError for a reply
        that it cannot use. NoAnswer after the last attempt, Refused at once."""
        stop = stop or threading.Event()
        for attempt in range(1, self.timing.attempts + 1):
            try:
                return read(self._once(path, document)), attempt
            except Refused as error:
                error.attempts = attempt
                raise
            except (NoAnswer, ValueError, TypeError, KeyError, AttributeError, OverflowError) as error:
                failed = error if isinstance(error, NoAnswer) else NoAnswer(f"the reply is no answer: {error}")
            if attempt == self.timing.attempts or stop.is_set():
                failed.attempts = attempt
                raise failed
            # Not all at the same moment: that may be what the server suffered from.
            pause = self.timing.pause * 2 ** (attempt - 1) * random.uniform(0.5, 1.0)
            stop.wait(min(max(pause, failed.pause), MOST_PAUSE))
        raise AssertionError("unreachable")

    def _once(self, path: str, document: dict[str, Any] | None) -> Any:
        ends = time.monotonic() + self.timing.timeout
        try:
            with self.session.request("GET" if document is None else "POST", self.url + path, json=document,
                                      timeout=self.timing.timeout, stream=True, allow_redirects=False,
                                      auth=self._sign) as response:
                body = self._clean(self._body(response, ends))
        except requests.Timeout:
            raise NoAnswer(f"no answer within {self.timing.timeout:g} s", slow=True) from None
        except requests.RequestException as error:
            raise NoAnswer(f"the connection failed ({_root(error)})") from None
        return self._read(response, body)

    def _body(self, response: requests.Response, ends: float) -> bytes:
        body = b""
        for part in _parts(response):
            body += part
            if len(body) > MOST_BYTES:
                raise NoAnswer(f"the reply is longer than {MOST_BYTES >> 20} MiB", response.status_code)
            if time.monotonic() > ends:  # a byte every now and then is no answer either
                raise NoAnswer(f"no answer within {self.timing.timeout:g} s", response.status_code, slow=True)
        return body

    def _read(self, response: requests.Response, body: bytes) -> Any:
        status = response.status_code
        if status in RETRIED:
            raise NoAnswer(f"HTTP {status}: {_said(body)}", status, _pause(response))
        if status != 200:
            raise Refused(f"HTTP {status}: {_said(body)}", status)
        if not body.strip():
            raise NoAnswer("the reply is empty", status)
        try:
            return json.loads(body)
        except (ValueError, RecursionError):
            kind = "a page of HTML" if body.lstrip()[:1] == b"<" else "no JSON"
            raise NoAnswer(f"the reply is {kind}", status) from None

    def _sign(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        """An object of our own, so that no password from ~/.netrc takes the key's place."""
        if self._key is not None:
            request.headers["Authorization"] = f"Bearer {self._key}"
        return request

    def _clean(self, body: bytes) -> bytes:
        """Without the key, should a server repeat it."""
        return body.replace(self._key.encode(), b"(the key)") if self._key else body


def _parts(response: requests.Response) -> Iterator[bytes]:
    """The reply as it comes in."""
    read = getattr(response.raw, "read1", None)
    if read is None:  # urllib3 1: a part is handed on when it is full
        yield from response.iter_content(256)
        return
    try:
        while part := read(1 << 16):
            yield part
    except (urllib3.exceptions.ReadTimeoutError, TimeoutError) as error:
        raise requests.Timeout(error) from None
    except (urllib3.exceptions.HTTPError, OSError) as error:
        raise requests.ConnectionError(error) from None


def _pause(response: requests.Response) -> float:
    """What `Retry-After` says, in seconds; 0 where it says nothing, or a date."""
    try:
        return max(0.0, float(response.headers.get("Retry-After", "0")))
    except ValueError:
        return 0.0


def _said(body: bytes) -> str:
    """A server's own words on what is wrong, in a line."""
    text = body[:4096].decode("utf-8", "replace")
    try:
        data = json.loads(text)
        error = data.get("error", data) if isinstance(data, dict) else data
        text = error.get("message") or error.get("detail") or text if isinstance(error, dict) else str(error)
    except (ValueError, RecursionError):
        pass
    return bounded(str(text), 300) or "nothing said"


def _root(error: BaseException) -> str:
    """The innermost cause's words: the outer ones hold addresses of objects."""
    while error.args and isinstance(error.args[-1], BaseException):
        error = error.args[-1]
    reason = getattr(error, "reason", None)
    if isinstance(reason, BaseException):
        return _root(reason)
    return " ".join(str(error).split("object at")[-1].split())[:200] or type(error).__name__
