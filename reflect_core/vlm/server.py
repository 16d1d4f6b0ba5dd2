"""A language model behind an OpenAI-compatible server: OpenAI, vLLM, llama.cpp, LM Studio, Ollama and others.

Many questions at a time, answers in their order. What a server cannot do is found out once (`probe.py`)
or where it refuses (`refusals.py`): a parameter that it does not know is left out.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any
from urllib.parse import urlsplit

from ..generators.checking import is_number, is_whole, one_of
from ..types import UserError
from . import refusals
from .chat import ALL_THOUGHT, Answer, Question
from .failures import NoAnswer, Refused
from .keys import check_url, find_key
from .transport import Timing, Transport
from .wire import TOP, data_url, from_reply, to_document
from .workers import in_order

FEWER = 5
"""Alternatives of the first token, where a server does not give `wire.TOP` of them."""


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
    extra: dict[str, Any] = field(default_factory=dict)
    """What is sent besides, such as that the model should not think."""
    folds: bool = False
    """It takes no system turn: its words go with the first question."""
    settled: bool = False
    """What it can do is on record: from now on a refused parameter is left out of that one question."""

    def __post_init__(self) -> None:
        options = self.options
        self.transport = Transport(options.url, find_key(options.url),
                                   Timing(options.timeout, options.attempts, options.pause), options.concurrency)
        self.patience = self.transport.patience
        self._lock = threading.Lock()
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

    def settle(self) -> None:
        """What was found out by now is what the server can do."""
        self.settled = True
        self.patience.begin()

    def models(self) -> list[str]:
        """Names of the models that the server has; empty where it does not say. UserError where it is not there.

        An address without a path (http://127.0.0.1:1234) becomes that with /v1, where the models are there.
        """
        url, bare = self.options.url, not urlsplit(self.options.url).path
        names = self._listed(maybe=bare)
        if bare and not names:
            self.transport.url = f"{url}/v1"
            if names := self._listed(maybe=True):
                self.options = replace(self.options, url=self.transport.url)
            else:
                self.transport.url = url
        return names

    def _listed(self, maybe: bool) -> list[str]:
        """`maybe`: the address may be wrong."""
        def listed(reply: Any) -> list[Any]:
            data = reply.get("data") if isinstance(reply, dict) else None
            return data if isinstance(data, list) else []

        try:
            ((data, _),) = in_order([None], lambda _, stop: self.transport.send("/models", None, listed, stop), 1,
                                    self.on_wait)
        except Refused as error:
            if wrong := refusals.of_all(error.status, error.reason, self.options.url):
                raise wrong from None
            return []
        except NoAnswer as error:
            if maybe and error.status is not None and not error.busy:
                return []
            raise self._lost(error) from None
        return [one["id"] for one in data if isinstance(one, dict) and isinstance(one.get("id"), str)]

    def _answer(self, question: Question, urls: _Urls, stop: threading.Event) -> Answer:
        began, sent = time.monotonic(), 0
        url, seeing = None if question.picture is None else urls.of(question.picture), question.picture is not None
        mine: set[str] = set()
        while True:
            document = self._document(question, url, mine)
            try:
                answer, attempts = self.transport.send("/chat/completions", document, from_reply, stop)
            except Refused as error:
                sent += error.attempts
                if self._without(error.reason, question, document, mine):
                    continue
                self._give_up_at(error, seeing)
                said = ALL_THOUGHT if refusals.used_up(error.reason) else error.reason
                return Answer(error=said, attempts=sent, seconds=time.monotonic() - began)
            except NoAnswer as error:
                if not sent + error.attempts:
                    raise
                if error.busy or self.patience.unanswered(error.slow):
                    raise self._lost(error) from None
                return Answer(error=error.reason, attempts=sent + error.attempts, seconds=time.monotonic() - began)
            if answer.error == ALL_THOUGHT and self.patience.refused(seeing, answer.error):
                raise refusals.of_everything(answer.error, self.name)
            if not answer.error:
                self.patience.answered(seeing)
                self._saw = self._saw or seeing
            return replace(answer, attempts=sent + attempts, seconds=time.monotonic() - began)

    def _document(self, question: Question, url: str | None, mine: set[str]) -> dict[str, Any]:
        options = self.options
        document = to_document(question, url, options.model, options.temperature, options.seed, self._top,
                               options.thinking, self.folds)
        with self._lock:
            out = self.dropped | mine
        sent = {name: value for name, value in document.items() if name not in out} | self.extra
        if "max_tokens" in out:
            sent["max_completion_tokens"] = document["max_tokens"]
        return sent

    def _without(self, reason: str, question: Question, document: dict[str, Any], mine: set[str]) -> bool:
        """Whether the question can be asked in another way than was refused: with less, from now on."""
        if question.system and not self.folds and refusals.takes_no_system(reason):
            self.folds = True
            return True
        name = refusals.parameter(reason, document, self.options.model)
        if name is None or refusals.used_up(reason):
            return False
        if "logprobs" in name and document["top_logprobs"] > FEWER:
            self._top = FEWER
            return True
        names = {"logprobs", "top_logprobs"} if "logprobs" in name else {name}
        mine |= names
        if not self.settled:
            with self._lock:
                self.dropped |= names
        return True

    def _lost(self, error: NoAnswer) -> UserError:
        return (refusals.limited if error.busy else refusals.gone)(error.reason, self.options.url)

    def _give_up_at(self, error: Refused, seeing: bool) -> None:
        """UserError for a refusal that every other question would meet too."""
        status, reason, options = error.status, error.reason, self.options
        wrong = refusals.of_all(status, reason, options.url) or \
            refusals.of_model(status, reason, options.url, options.model, self._known)
        if wrong is None and not refusals.used_up(reason):
            every = self.patience.refused(seeing, reason)
            # Where it has answered about a picture, what it refuses now is this question alone, or all of a larger one.
            if not self._saw or every:
                wrong = refusals.of_pictures(reason, self.name, seeing)
            if every:
                wrong = wrong or refusals.of_everything(reason, self.name)
        if wrong is not None:
            raise wrong from None

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
