"""What a server has and can, found out by asking before anything is drawn.

Two pictures whose answer is known tell whether it sees at all (some servers take pictures and drop them),
whether it says how sure it is, and whether it answers in the way that it is asked; a third question,
whether it keeps to a schema.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from PIL import Image

from ..types import UserError
from .chat import Answer, Question
from .reading import Reading, read
from .server import Server
from .structured import object_of, parse

SIDE = 224
QUESTION = "Is most of this picture red? Answer with one word, yes or no."
SCHEMA = object_of(colour={"type": "string", "enum": ["red", "green", "blue"]}, whole={"type": "boolean"})


@dataclass(frozen=True)
class Capabilities:
    model: str
    logprobs: bool
    """It says how sure it is of a token."""
    mass: float | None
    """Of 'yes' and 'no' as the first token, the smaller of two answers; None where it does not say."""
    schema: bool
    """It answers with JSON of a schema; False, too, where nobody asked."""
    dropped: tuple[str, ...]
    """Parameters that it does not take."""
    seconds: float
    """For one answer."""
    warnings: tuple[str, ...] = ()

    def summary(self) -> str:
        scores = "scores from the first token's probabilities" if self.logprobs else "scores from words alone"
        return f"the judge is {self.model}: {scores}, {self.seconds:.2f} s an answer"


def probe(server: Server, ask_ahead: Callable[[Sequence[Question]], list[Answer]] | None = None,
          ask: str = "checks") -> Capabilities:
    """Find the model where none is named, and ask it, by `ask_ahead` where somebody counts (`Asker.ask_ahead`). `ask`:
    how it is going to be asked, see `AskOptions`.

    UserError where it cannot judge: not there, no such model, no key, blind, or no answers that can be read.
    """
    _find_model(server)
    name, url = server.options.model, server.options.url
    pictures = [Image.new("RGB", (SIDE, SIDE), colour) for colour in ((220, 20, 30), (20, 40, 220))]
    ask_ahead = ask_ahead or server.ask
    began = time.monotonic()
    # One after the other: the first answer may wait for the model to be loaded.
    answers = [ask_ahead([Question(QUESTION, picture, max_tokens=8, yes_no=True)])[0] for picture in pictures]
    seconds = (time.monotonic() - began) / 2
    for answer in answers:
        if answer.error:
            raise UserError(f"the judge {name!r} at {url} did not answer a first question ({answer.error}); expected "
                            "yes or no to a red picture; try another model, or to look at what the server says")
    warnings = []
    readings = [read(answer) for answer in answers]
    if all(isinstance(reading, Reading) for reading in readings):
        if not readings[0].p > readings[1].p:
            raise UserError(f"the judge {name!r} at {url} does not see pictures: asked whether a red and a blue one "
                            f"are red, it is {readings[0].p:.0%} and {readings[1].p:.0%} sure; expected a model that "
                            "sees; try one with -VL in its name, llama-server's --mmproj, or a larger context, from "
                            "which a picture may have been cut")
    elif ask in ("checks", "match"):
        raise UserError(f"the judge {name!r} at {url} cannot be asked yes or no: "
                        f"{next(r for r in readings if isinstance(r, str))}; expected one of the two words; try a "
                        "model that does not think aloud, or option ask=rubric")
    masses = [reading.mass for reading in readings if isinstance(reading, Reading) and reading.mass is not None]
    logprobs = all(answer.yes is not None for answer in answers)
    if not logprobs and ask in ("checks", "match"):
        warnings.append("the judge's server does not say how sure it is, so that a score has few steps; vLLM, "
                        "llama.cpp, LM Studio, Ollama from 0.12.11 on and OpenAI do")
    schema = _keeps_to_schema(ask_ahead, pictures[0]) if ask in ("checks", "rubric") else False
    if server.dropped:
        warnings.append(f"the judge's server does not take {', '.join(sorted(server.dropped))}; they are left out")
    return Capabilities(name, logprobs, min(masses, default=None), schema, tuple(sorted(server.dropped)), seconds,
                        tuple(warnings))


def _find_model(server: Server) -> None:
    """Take the server's only model where none is named. UserError for none, several, or one that it has not."""
    names, options = server.models(), server.options
    if options.model:
        # A service may have more than it lists; only asking tells.
        return
    if len(names) != 1:
        have = f"it has {', '.join(names[:20])}" if names else "it does not say which it has"
        raise UserError(f"the judge's server {options.url} was asked for no model, and {have}; expected one; try "
                        "option model=NAME")
    server.options = replace(options, model=names[0])


def _keeps_to_schema(ask: Callable[[Sequence[Question]], list[Answer]], picture: Image.Image) -> bool:
    answer = ask([Question("What colour is this picture, and is all of it of that colour? Answer with a JSON "
                                  'object {"colour": "red, green or blue", "whole": true or false}.', picture,
                                  max_tokens=60, schema=SCHEMA)])[0]
    return not answer.error and isinstance(parse(answer.text, SCHEMA), dict)
