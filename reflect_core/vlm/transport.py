"""One JSON document to a server and one back, whatever the network does on the way.

Retried with growing pauses: no connection, one that is cut, a timeout, 5xx, and what is no answer: a page of HTML,
another kind of JSON, nothing, or more than fits. A server that has no time (429, and 503 while it loads) is waited
for by all, as long as it says (`patience.py`). The official code retries one kind of call out of three, and there
for nothing (ReflectionFlow notes, 5).
"""

from __future__ import annotations

import ipaddress
import json
import random
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar
from urllib.parse import urlsplit

import requests
import urllib3

from ..text import bounded
from .failures import NoAnswer, Refused, failed
from .keys import echo_of
from .patience import MOST_PAUSE, Patience

R = TypeVar("R")
MOST_BYTES = 1 << 20
"""Of a reply: a thousand times what a judge has to say."""


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
        self.patience = Patience(timing.pause)
        self._key = key
        self._echo = None if key is None else echo_of(key)
        # None: through no proxy, also where the environment names one.
        self._proxies = {"http": None, "https": None, "all": None} if is_near(url) else None
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
        sent = failures = 0
        missed = NoAnswer("it was stopped before it was sent")
        missed.attempts = 0
        while True:
            self.patience.wait(stop)
            if stop.is_set():
                raise missed
            began, sent = time.monotonic(), sent + 1
            try:
                result = read(self._once(path, document))
                self.patience.spoke()
                return result, sent
            except Refused as error:
                self.patience.spoke()
                error.attempts = sent
                raise
            except (NoAnswer, ValueError, TypeError, KeyError, AttributeError, OverflowError) as error:
                missed = error if isinstance(error, NoAnswer) else NoAnswer(f"the reply is no answer: {error}", 200)
            missed.attempts = sent
            if missed.busy:  # which is not a failure of this question
                if not self.patience.busy(began, missed.pause):
                    raise missed
                continue
            failures += 1
            if failures == self.timing.attempts:
                raise missed
            # Not all at the same moment: that may be what the server suffered from.
            pause = self.timing.pause * 2 ** (failures - 1) * random.uniform(0.5, 1.0)
            stop.wait(min(max(pause, missed.pause), MOST_PAUSE))

    def _once(self, path: str, document: dict[str, Any] | None) -> Any:
        ends = time.monotonic() + self.timing.timeout
        try:
            with self.session.request("GET" if document is None else "POST", self.url + path, json=document,
                                      timeout=self.timing.timeout, stream=True, allow_redirects=False,
                                      auth=self._sign, proxies=self._proxies) as response:
                body = self._clean(self._body(response, ends))
        except requests.Timeout:
            raise NoAnswer(f"no answer within {self.timing.timeout:g} s", slow=True) from None
        except requests.exceptions.InvalidURL:  # whose words repeat it, with a proxy's password
            raise NoAnswer("the connection failed (its address, or that of a proxy, cannot be read)") from None
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
        return _unpacked(response, body)

    def _read(self, response: requests.Response, body: bytes) -> Any:
        status = response.status_code
        if status != 200:
            raise failed(status, body, response)
        if not body.strip():
            raise NoAnswer("the reply is empty", status)
        try:
            data = json.loads(body)
        except (ValueError, RecursionError):
            kind = "a page of HTML" if body.lstrip()[:1] == b"<" else "no JSON"
            raise NoAnswer(f"the reply is {kind}", status) from None
        if isinstance(data, dict) and data.get("error") and not data.get("choices") and "data" not in data:
            # OpenRouter's way to say what went wrong later on, and LM Studio's to say that there is no such address.
            code = data["error"].get("code") if isinstance(data["error"], dict) else None
            if "unexpected endpoint" in str(data["error"]).lower():
                code = 404
            raise failed(code if isinstance(code, int) and 400 <= code <= 599 else 500, body, response)
        return data

    def _sign(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        """An object of our own, so that no password from ~/.netrc takes the key's place."""
        if self._key is not None:
            request.headers["Authorization"] = f"Bearer {self._key}"
        return request

    def _clean(self, body: bytes) -> bytes:
        """Without the key, should a server repeat it."""
        return body if self._echo is None else self._echo.sub(b"(the key)", body)


def _parts(response: requests.Response) -> Iterator[bytes]:
    """The reply as it comes in."""
    read = getattr(response.raw, "read1", None)
    if read is None:  # urllib3 1: a part is handed on when it is full
        yield from response.raw.stream(256, decode_content=False)
        return
    try:
        while part := read(1 << 16):
            yield part
    except (urllib3.exceptions.ReadTimeoutError, TimeoutError) as error:
        raise requests.Timeout(error) from None
    except (urllib3.exceptions.HTTPError, OSError) as error:
        raise requests.ConnectionError(error) from None


def _unpacked(response: requests.Response, body: bytes) -> bytes:
    """Some proxies pack what was to come as it is. No more than fits comes out."""
    packing = response.headers.get("Content-Encoding", "identity").strip().lower()
    if packing in ("", "identity"):
        return body
    try:
        if packing not in ("gzip", "x-gzip", "deflate"):
            raise zlib.error
        body = zlib.decompressobj(32 + zlib.MAX_WBITS).decompress(body, MOST_BYTES + 1)
    except zlib.error:
        raise NoAnswer(f"the reply is packed as {bounded(packing, 20)}", response.status_code) from None
    if len(body) > MOST_BYTES:
        raise NoAnswer(f"the reply is longer than {MOST_BYTES >> 20} MiB", response.status_code)
    return body


def is_near(url: str) -> bool:
    """An address of this machine or of a private network: no proxy leads there, and none need see what goes there."""
    host = (urlsplit(url).hostname or "").lower().rstrip(".")
    try:
        return not ipaddress.ip_address(host.partition("%")[0]).is_global
    except ValueError:
        return "." not in host or host.endswith((".localhost", ".local", ".internal", ".lan", ".home.arpa"))


def _root(error: BaseException) -> str:
    """The innermost cause's words: the outer ones hold addresses of objects."""
    while error.args and isinstance(error.args[-1], BaseException):
        error = error.args[-1]
    reason = getattr(error, "reason", None)
    if isinstance(reason, BaseException):
        return _root(reason)
    return " ".join(str(error).split("object at")[-1].split())[:200] or type(error).__name__
