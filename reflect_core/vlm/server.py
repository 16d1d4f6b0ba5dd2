"""A language model behind an OpenAI-compatible server: OpenAI, vLLM, llama.cpp, LM Studio, Ollama and others.

Many questions at a time, answers in their order. What a server cannot do is found out once (`probe.py`)
or where it refuses: a parameter that it does not know is left out from then on.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from ..generators.checking import is_number, is_whole, one_of
from ..types import UserError
from .chat import Answer, Question
from .keys import check_url, find_key, key_variable
from .transport import NoAnswer, Refused, Timing, Transport
from .wire import TOP, data_url, from_reply, to_document
from .workers import in_order

PATIENCE = 12
"""Questions in a row without an answer until the server is taken to be gone."""
FEWER = 5
"""Alternatives of the first token, where a server does not give `wire.TOP` of them."""
OPTIONAL = ("logprobs", "top_logprobs", "seed", "temperature", "response_format", "max_tokens")
"""What a request can do without. A newer word for the last is `max_completion_tokens`."""


@dataclass(frozen=True)
class ServerOptions:
    """How a server is asked. UserError for values that make no sense."""

    url: str
    """Such as http://127.0.0.1:1234/v1."""
    model: str = ""
    """The server's name for it; empty: the only one that it has."""
    concurrency: int = 8
    """Questions that are under way at once."""
    timeout: float = 120.0
    attempts: int = 4
    pause: float = 0.5
    """These three as in `transport.Timing`."""
    side: int = 1024
    """Pixels of a picture's longer side at most: what it costs in tokens. A smaller picture is sent as it is."""
    picture_format: str = "jpeg"
    """'jpeg', of quality 95 and without subsampling, or 'png', to the bit and several times as large."""
    temperature: float = 0.0
    seed: int = 0
    thinking: int = 0
    """Tokens on top of each answer's, for a model that thinks before it. It cannot be asked for the first token."""

    def __post_init__(self) -> None:
        if not isinstance(self.url, str):
            raise UserError(f"option url is {self.url!r}; expected an address such as http://127.0.0.1:1234/v1")
        object.__setattr__(self, "url", check_url(self.url))
        one_of("picture_format", self.picture_format, ("jpeg", "png"))
        for name, least, most in (("concurrency", 1, 256), ("attempts", 1, 20), ("side", 28, 8192), ("seed", 0, 2**31),
                                  ("thinking", 0, 100_000)):
            value = getattr(self, name)
            if not is_whole(value) or not least <= value <= most:
                raise UserError(f"option {name} is {value!r}; expected a whole number from {least} to {most}")
        for name, most in (("timeout", 3600.0), ("pause", 60.0), ("temperature", 2.0)):
            value = getattr(self, name)
            if not is_number(value) or not 0 <= value <= most or (name == "timeout" and value == 0):
                raise UserError(f"option {name} is {value!r}; expected a number from 0 to {most:g}")
        if not isinstance(self.model, str):
            raise UserError(f"option model is {self.model!r}; expected the server's name for it")


@dataclass
class Server:
    """A `Chat` with a server. The key is read from the environment, see `keys.py`."""

    options: ServerOptions
    on_wait: Callable[[], Any] | None = None
    """Called every now and then while answers are waited for; may raise to cancel."""
    dropped: set[str] = field(default_factory=set)
    """Parameters that the server does not take."""

    def __post_init__(self) -> None:
        options = self.options
        self.transport = Transport(options.url, find_key(options.url),
                                   Timing(options.timeout, options.attempts, options.pause), options.concurrency)
        self._lock = threading.Lock()
        self._unanswered = 0
        self._top, self._saw = TOP, False

    @property
    def name(self) -> str:
        return self.options.model or self.options.url

    def close(self) -> None:
        self.transport.close()

    def ask(self, questions: Sequence[Question]) -> list[Answer]:
        """As `Chat.ask`."""
        options = self.options
        urls = _Urls(options.side, options.picture_format)
        answers: list[Answer | None] = []
        try:
            return in_order(questions, lambda question, stop: self._answer(question, urls, stop), options.concurrency,
                            self.on_wait, answers)
        except BaseException as error:
            error.answers = list(answers)  # what had come by then, see `Asker`
            raise

    def models(self) -> list[str]:
        """Names of the models that the server has; empty where it does not say. UserError where it is not there."""
        def listed(reply: Any) -> list[Any]:
            data = reply.get("data") if isinstance(reply, dict) else None
            return data if isinstance(data, list) else []

        try:
            ((data, _),) = in_order([None], lambda _, stop: self.transport.send("/models", None, listed, stop), 1,
                                    self.on_wait)
        except Refused as error:
            self._give_up_at(error)
            return []
        except NoAnswer as error:
            raise self._gone(error) from None
        return [one["id"] for one in data if isinstance(one, dict) and isinstance(one.get("id"), str)]

    def _answer(self, question: Question, urls: _Urls, stop: threading.Event) -> Answer:
        began = time.monotonic()
        url = None if question.picture is None else urls.of(question.picture)
        options = self.options
        document = to_document(question, url, options.model, options.temperature, options.seed, self._top,
                               options.thinking)
        sent = 0
        while True:
            with self._lock:
                dropped = set(self.dropped)
            try:
                answer, attempts = self.transport.send("/chat/completions", _without(document, dropped), from_reply,
                                                       stop)
                self._unanswered = 0
                self._saw = self._saw or question.picture is not None
                return replace(answer, attempts=sent + attempts, seconds=time.monotonic() - began)
            except Refused as error:
                sent += error.attempts
                self._give_up_at(error, question)
                if "logprobs" in error.reason and document.get("top_logprobs", 0) > FEWER:
                    self._top = document["top_logprobs"] = FEWER
                    continue
                name = next((n for n in OPTIONAL if n in error.reason and n in document and n not in dropped), None)
                if name is None:
                    self._unanswered = 0
                    return Answer(error=error.reason, attempts=sent, seconds=time.monotonic() - began)
                with self._lock:
                    self.dropped |= {"logprobs", "top_logprobs"} if "logprobs" in name else {name}
            except NoAnswer as error:
                with self._lock:
                    # To wait in vain takes long: half as many of those will do.
                    self._unanswered += 2 if error.slow else 1
                    lost = self._unanswered >= PATIENCE
                    self._unanswered = 0 if lost else self._unanswered
                if lost:
                    raise self._gone(error) from None
                return Answer(error=error.reason, attempts=sent + error.attempts, seconds=time.monotonic() - began)

    def _gone(self, error: NoAnswer) -> UserError:
        return UserError(f"the judge's server {self.options.url} does not answer ({error.reason}); expected an "
                         "OpenAI-compatible server; try to start it, to check the address (most end in /v1), or a "
                         "longer timeout")

    def _give_up_at(self, error: Refused, question: Question | None = None) -> None:
        """UserError for a refusal that every other question would meet too."""
        url, reason = self.options.url, error.reason
        if error.status in (401, 403):
            raise UserError(f"the judge's server {url} wants another key ({reason}); expected it in the environment "
                            f"variable {key_variable(url)}; try to set that and start again") from None
        if error.status == 402:
            raise UserError(f"the judge's server {url} wants to be paid ({reason}); try to top the account "
                            "up") from None
        low = reason.lower()
        if question is None:
            return
        if error.status == 404 or ("model" in low and ("not found" in low or "does not exist" in low)):
            raise UserError(f"the judge's server {url} has no model {self.options.model!r} ({reason}); expected "
                            f"{self._known()}; try option model=NAME") from None
        if self._saw:
            # It has answered about a picture: what it refuses now is this question alone.
            return
        if "context" in low and any(word in low for word in ("length", "size", "window", "exceed", "maximum")):
            raise UserError(f"the picture and its question do not fit into the context of {self.name!r} ({reason}); "
                            "expected some 2,000 tokens of room; try a smaller side, or a larger context "
                            "(vLLM --max-model-len, llama.cpp -c, OLLAMA_CONTEXT_LENGTH)") from None
        if question.picture is not None and any(word in low for word in ("image", "multimodal", "mmproj", "vision")):
            raise UserError(f"the model {self.name!r} takes no pictures ({reason}); expected one that sees; try a "
                            "model with -VL in its name, or llama-server's --mmproj") from None

    def _known(self) -> str:
        try:
            names = self.models()
        except UserError:
            names = []
        return f"one of {', '.join(names[:12])}" if names else "a model that it has loaded"


class _Urls:
    """Data URLs of pictures, each made once though many questions are asked about it."""

    def __init__(self, side: int, kind: str) -> None:
        self._side, self._kind, self._made = side, kind, {}
        self._lock = threading.Lock()

    def of(self, picture: Any) -> str:
        with self._lock:
            one = self._made.setdefault(id(picture), (picture, threading.Lock(), []))
        _, lock, url = one
        with lock:
            if not url:
                url.append(data_url(picture, self._side, self._kind))
            return url[0]


def _without(document: dict[str, Any], dropped: set[str]) -> dict[str, Any]:
    sent = {name: value for name, value in document.items() if name not in dropped}
    if "max_tokens" in dropped:
        sent["max_completion_tokens"] = document["max_tokens"]
    return sent
