"""What a server has and can, found out by asking before anything is drawn.

Two pictures whose answer is known tell whether it sees at all (some servers take pictures and drop them),
whether it says how sure it is, and whether it answers in the way that it is asked; a third question,
whether it keeps to a schema.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from PIL import Image

from ..types import UserError
from .chat import ALL_THOUGHT, Answer, Chat, Question
from .reading import LEAST_MASS, Reading, read
from .server import Server
from .structured import object_of, parse

SIDE, MOST_SIDE = 224, 1024
"""Pixels of the pictures: as large as a run's are sent, that they fit is to be known; no more than that is drawn."""
SYSTEM = "You look at pictures with great care, and answer what you are asked about them."
"""A run's questions have such a turn too."""
QUESTION = "Is most of this picture red? Answer with one word, yes or no."
WORDS = "Say in one short sentence what this picture shows."
ROOM = 1000
"""Tokens for an answer where nobody needs the first one alone: a model may think before it."""
SCHEMA = object_of(colour={"type": "string", "enum": ["red", "green", "blue"]}, whole={"type": "boolean"})
NO_THINKING: tuple[dict[str, Any], ...] = ({"chat_template_kwargs": {"enable_thinking": False}},
                                           {"reasoning_effort": "none"}, {"reasoning_effort": "minimal"},
                                           {"enable_thinking": False})
"""How a model is told not to think, by who is told so: vLLM, SGLang and llama.cpp; Ollama, Google and OpenAI from
GPT-5.1 on; GPT-5; Alibaba."""
Ask = Callable[[Sequence[Question]], "list[Answer]"]


@dataclass(frozen=True)
class Capabilities:
    model: str
    seconds: float
    """For one answer, once the model is loaded."""
    logprobs: bool | None = None
    """It says how sure it is of a token; None where nobody asked."""
    mass: float | None = None
    """Of 'yes' and 'no' as the first token, the smaller of two answers; None where it does not say."""
    schema: bool | None = None
    """It answers with JSON of a schema; None where nobody asked."""
    dropped: tuple[str, ...] = ()
    """Parameters that it does not take."""
    extra: Mapping[str, Any] = field(default_factory=dict)
    """What it is told besides, so that it does not think."""
    folds: bool = False
    """It takes no system turn."""
    warnings: tuple[str, ...] = ()

    def summary(self) -> str:
        scores = "" if self.logprobs is None else (
            " scores from the first token's probabilities," if self.logprobs else " scores from words alone,")
        return f"the judge is {self.model}:{scores} {self.seconds:.2f} s an answer"

    def record(self) -> dict[str, Any]:
        """For a run's settings: what holds from one day to the next."""
        found = {"logprobs": self.logprobs, "schema": self.schema, "dropped": list(self.dropped)}
        return found | ({"extra": dict(self.extra)} if self.extra else {}) | ({"folds": True} if self.folds else {})


def probe(server: Server, ask_ahead: Ask | None = None, ask: str = "checks") -> Capabilities:
    """Find the model where none is named, and ask it, by `ask_ahead` where somebody counts (`Asker.ask_ahead`).

    `ask`: how it is going to be asked, see `AskOptions`, or 'words' if it is not to judge. UserError where it cannot do
    that: not there, no such model, no key, blind, or no answers that can be read.
    """
    ask_ahead, url = ask_ahead or server.ask, server.options.url
    names = _find_model(server)
    colours = _colours(min(server.options.side, MOST_SIDE))
    name = f"{server.options.model!r} at {server.options.url}"
    if ask in ("checks", "match"):
        begun = _begin(server, ask_ahead, _is_red(colours[0]))
        found = _yes_or_no(server, ask_ahead, colours, name, ask, begun)
    else:
        begun = _begin(server, ask_ahead, Question(WORDS, colours[0], SYSTEM, max_tokens=ROOM))
        found = _in_words(begun, name)
    if ask in ("checks", "rubric"):
        found = replace(found, schema=_keeps_to_schema(ask_ahead, colours[0]))
    server.settle()
    warnings = list(found.warnings)
    if found.schema is False:
        warnings.append("the judge does not keep to a schema; its JSON is looked for in its words")
    if server.dropped:
        warnings.append(f"the judge's server does not take {', '.join(sorted(server.dropped))}; they are left out")
    if server.folds:
        warnings.append("the judge's model takes no system turn; its words go before the first question")
    if server.extra:
        told = ", ".join(f"{name}={json.dumps(value)}" for name, value in server.extra.items())
        warnings.append(f"the judge thinks before each answer unless it is told not to, so it is ({told})")
    if server.options.url != url:
        warnings.append(f"the judge's server is at {server.options.url}; that is where it is asked")
    if other := _another(server.options.model, names, begun.model):
        warnings.append(f"the judge is to be {server.options.model!r}, and {other}; some servers take any name and "
                        "answer with what they have loaded; try option model=NAME")
    return replace(found, model=server.options.model, dropped=tuple(sorted(server.dropped)),
                   extra=dict(server.extra), folds=server.folds, warnings=tuple(warnings))


def _begin(server: Server, ask: Ask, question: Question) -> Answer:
    """The first answer. A model that thinks instead is told not to, in every way there is until one helps."""
    answer = ask([question])[0]
    if server.options.thinking or not _thinks(answer, question):
        return answer
    for extra in NO_THINKING:
        server.extra = dict(extra)
        again = ask([question])[0]
        if not again.error and not _thinks(again, question):
            return again
    server.extra = {}
    return answer


def _thinks(answer: Answer, question: Question) -> bool:
    """Also where a server hands the thoughts on as if they were the answer."""
    return answer.error == ALL_THOUGHT or question.yes_no and not answer.error and isinstance(read(answer), str)


def _another(model: str, names: Sequence[str], answered: str) -> str | None:
    """In words, what speaks for another model than was asked for; None if nothing does. A name may lack its maker
    ("models/"), its size (":8b") or its date."""
    if names and not any(_same(model, one) for one in names):
        return f"its server has {', '.join(names[:12])}"
    return f"{answered!r} answered" if answered and not _same(model, answered) else None


def _same(one: str, other: str) -> bool:
    one, other = (name.lower().rpartition("/")[2].partition(":")[0] for name in (one, other))
    return one.startswith(other) or other.startswith(one)


def answers_yes_or_no(chat: Chat, name: str, ask: Ask | None = None, side: int = SIDE) -> Capabilities:
    """Ask any chat whether a red and a blue picture are red, by `ask` where somebody counts (`Asker.ask_ahead`).

    UserError where it does not answer, cannot be read, or does not see; `warnings` where it hardly answers.
    """
    return _yes_or_no(chat, ask or chat.ask, _colours(side), name, "checks")


def _is_red(picture: Image.Image) -> Question:
    return Question(QUESTION, picture, SYSTEM, max_tokens=8, yes_no=True)


def _colours(side: int) -> list[Image.Image]:
    return [Image.new("RGB", (side, side), colour) for colour in ((220, 20, 30), (20, 40, 220))]


def _yes_or_no(chat: Chat, ask: Ask, pictures: Sequence[Image.Image], name: str, how: str,
               first: Answer | None = None) -> Capabilities:
    """`first`: the answer about the first picture, where there is one already. It may wait for the model to be loaded,
    so that the second is asked after it."""
    answers = [first or ask([_is_red(pictures[0])])[0]]
    if not answers[0].error:
        answers += ask([_is_red(pictures[1])])
    thinks = ("try a model that does not think aloud (of Ollama's, one with -instruct in its name), or option "
              "ask=rubric with option thinking=2000")
    for answer in answers:
        if answer.error:
            cure = thinks if answer.error == ALL_THOUGHT else "try another model, or to look at what the server says"
            raise UserError(f"the judge {name} did not answer a first question ({answer.error}); expected yes or no to "
                            f"a plain picture; {cure}")
    readings = [read(answer) for answer in answers]
    if unread := [reading for reading in readings if isinstance(reading, str)]:
        raise UserError(f"the judge {name} cannot be asked yes or no: {unread[0]}; expected one of the two words; "
                        f"{thinks}")
    red, blue = readings
    if not red.p > blue.p:
        raise UserError(f"the judge {name} does not see pictures: asked whether a red and a blue one are red, it is "
                        f"{red.p:.0%} and {blue.p:.0%} sure; expected a model that sees; try one with -VL in its name, "
                        "llama-server's --mmproj, or a larger context, from which a picture may have been cut")
    masses = [reading.mass for reading in (red, blue) if isinstance(reading, Reading) and reading.mass is not None]
    warnings = []
    if answers[0].yes is None and how in ("checks", "match"):
        warnings.append("the judge's server does not say how sure it is, so that a score has few steps; vLLM, "
                        "llama.cpp, LM Studio, Ollama from 0.12.11 on and OpenAI do")
    if masses and min(masses) < LEAST_MASS:
        warnings.append(f"the judge hardly answers: 'yes' and 'no' have {min(masses):.2f} together as its first token; "
                        "its scores are worth as much")
    return Capabilities(name, answers[1].seconds, answers[0].yes is not None,
                        min(masses, default=None), warnings=tuple(warnings))


def _in_words(answer: Answer, name: str) -> Capabilities:
    if answer.error:
        cure = "try option thinking=4000" if answer.error == ALL_THOUGHT else \
            "try another model, or to look at what the server says"
        raise UserError(f"the judge {name} did not answer a first question ({answer.error}); expected words on a red "
                        f"picture; {cure}")
    return Capabilities(name, answer.seconds)


def _find_model(server: Server) -> list[str]:
    """Take the server's only model where none is named; the names of all. UserError for none, or several."""
    names = server.models()
    options = server.options
    if options.model:
        # A service may have more than it lists; only asking tells.
        return names
    if len(names) != 1:
        have = f"it has {', '.join(names[:20])}" if names else "it does not say which it has"
        raise UserError(f"the judge's server {options.url} was asked for no model, and {have}; expected one; try "
                        "option model=NAME, or another address: most end in /v1")
    server.options = replace(options, model=names[0])
    return names


def _keeps_to_schema(ask: Ask, picture: Image.Image) -> bool:
    answer = ask([Question("What colour is this picture, and is all of it of that colour? Answer with a JSON object "
                           '{"colour": "red, green or blue", "whole": true or false}.', picture, SYSTEM, max_tokens=60,
                           schema=SCHEMA)])[0]
    return not answer.error and isinstance(parse(answer.text, SCHEMA), dict)
