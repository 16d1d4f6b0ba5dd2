"""What a server has and can, found out by asking before anything is drawn.

Two pictures whose answer is known tell whether it sees at all (some servers take pictures and drop them),
whether it says how sure it is, and whether it answers in the way that it is asked; a third question,
whether it keeps to a schema.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from PIL import Image

from ..types import UserError
from .chat import ALL_THOUGHT, Answer, Chat, Question
from .reading import LEAST_MASS, Reading, read
from .server import Server
from .structured import object_of, parse

SIDE = 224
QUESTION = "Is most of this picture red? Answer with one word, yes or no."
WORDS = "Say in one short sentence what this picture shows."
ROOM = 1000
"""Tokens for an answer where nobody needs the first one alone: a model may think before it."""
SCHEMA = object_of(colour={"type": "string", "enum": ["red", "green", "blue"]}, whole={"type": "boolean"})
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
    warnings: tuple[str, ...] = ()

    def summary(self) -> str:
        scores = "" if self.logprobs is None else (
            " scores from the first token's probabilities," if self.logprobs else " scores from words alone,")
        return f"the judge is {self.model}:{scores} {self.seconds:.2f} s an answer"

    def record(self) -> dict[str, Any]:
        """For a run's settings: what holds from one day to the next."""
        return {"logprobs": self.logprobs, "schema": self.schema, "dropped": list(self.dropped)}


def probe(server: Server, ask_ahead: Ask | None = None, ask: str = "checks") -> Capabilities:
    """Find the model where none is named, and ask it, by `ask_ahead` where somebody counts (`Asker.ask_ahead`).

    `ask`: how it is going to be asked, see `AskOptions`, or 'words' if it is not to judge. UserError where it cannot do
    that: not there, no such model, no key, blind, or no answers that can be read.
    """
    _find_model(server)
    ask_ahead = ask_ahead or server.ask
    colours = _colours(SIDE)
    name = f"{server.options.model!r} at {server.options.url}"
    if ask in ("checks", "match"):
        found = replace(_yes_or_no(server, ask_ahead, colours, name, ask), model=server.options.model)
    else:
        found = _in_words(server, ask_ahead, colours[0], name)
    if ask in ("checks", "rubric"):
        found = replace(found, schema=_keeps_to_schema(ask_ahead, colours[0]))
    warnings = list(found.warnings)
    if found.schema is False:
        warnings.append("the judge does not keep to a schema; its JSON is looked for in its words")
    if server.dropped:
        warnings.append(f"the judge's server does not take {', '.join(sorted(server.dropped))}; they are left out")
    return replace(found, dropped=tuple(sorted(server.dropped)), warnings=tuple(warnings))


def answers_yes_or_no(chat: Chat, name: str, ask: Ask | None = None, side: int = SIDE) -> Capabilities:
    """Ask any chat whether a red and a blue picture are red, by `ask` where somebody counts (`Asker.ask_ahead`).

    UserError where it does not answer, cannot be read, or does not see; `warnings` where it hardly answers.
    """
    return _yes_or_no(chat, ask or chat.ask, _colours(side), name, "checks")


def _colours(side: int) -> list[Image.Image]:
    return [Image.new("RGB", (side, side), colour) for colour in ((220, 20, 30), (20, 40, 220))]


def _yes_or_no(chat: Chat, ask: Ask, pictures: Sequence[Image.Image], name: str, how: str) -> Capabilities:
    # One after the other: the first answer may wait for the model to be loaded.
    answers = [ask([Question(QUESTION, picture, max_tokens=8, yes_no=True)])[0] for picture in pictures]
    thinks = "try a model that does not think aloud, or option ask=rubric with option thinking=2000"
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


def _in_words(server: Server, ask: Ask, picture: Image.Image, name: str) -> Capabilities:
    answer = ask([Question(WORDS, picture, max_tokens=ROOM)])[0]
    if answer.error:
        cure = "try option thinking=4000" if answer.error == ALL_THOUGHT else \
            "try another model, or to look at what the server says"
        raise UserError(f"the judge {name} did not answer a first question ({answer.error}); expected words on a red "
                        f"picture; {cure}")
    return Capabilities(server.options.model, answer.seconds)


def _find_model(server: Server) -> None:
    """Take the server's only model where none is named. UserError for none, or several."""
    names, options = server.models(), server.options
    if options.model:
        # A service may have more than it lists; only asking tells.
        return
    if len(names) != 1:
        have = f"it has {', '.join(names[:20])}" if names else "it does not say which it has"
        raise UserError(f"the judge's server {options.url} was asked for no model, and {have}; expected one; try "
                        "option model=NAME")
    server.options = replace(options, model=names[0])


def _keeps_to_schema(ask: Ask, picture: Image.Image) -> bool:
    answer = ask([Question("What colour is this picture, and is all of it of that colour? Answer with a JSON object "
                           '{"colour": "red, green or blue", "whole": true or false}.', picture, max_tokens=60,
                           schema=SCHEMA)])[0]
    return not answer.error and isinstance(parse(answer.text, SCHEMA), dict)
