"""What a server means when it will not answer: a parameter, its key, its bill, its limits, its context.

Servers of one protocol say it in words and numbers of their own: OpenAI refuses `logprobs` with the status of a
wrong key, Google spells it `Logprobs` and answers a missing key with the status of a wrong request, Groq names
the parameter beside its message, llama.cpp has 500 for a template that takes no system turn.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from ..types import UserError
from .keys import key_variable

OPTIONAL = ("logprobs", "top_logprobs", "seed", "temperature", "response_format", "max_tokens")
"""What a request can do without. A newer word for the last is `max_completion_tokens`."""
_BUSY = re.compile(r"\bloading\b|overloaded|\bcapacity\b|high demand|too many requests|rate.?limit|\bbusy\b")
_SYSTEM = re.compile(r"system (role|message|prompt|instruction|turn)s?\b.{0,40}\bnot\b|roles must alternate|"
                     r"developer instructions? (is|are) not enabled")
_CONTEXT = re.compile(r"context\b.*(length|size|window|exceed|maximum)|(length|size|window|exceed|maximum).*context")
_KEY = re.compile(r"\bapi.?key\b.*\b(not (valid|found)|invalid|missing|required)|"
                  r"\b(invalid|missing|incorrect|no)\b.*(api.?key|authori[sz]ation header)")
_MODERATED = re.compile(r"moderation|flagged|content.polic|safety|guardrail")
_MODEL = re.compile(r"model.*(not found|does not exist)|(invalid|unknown) model|not a valid model")
_USED_UP = re.compile(r"could not finish the message because max_tokens")
_TIME = re.compile(r"(?:try again|retry) (?:in|after) (?=[\d.])(?:(\d+)h)?(?:(\d+)m(?!s))?(?:([\d.]+) ?(ms|s))?", re.I)


def parameter(reason: str, document: Mapping[str, Any], model: str) -> str | None:
    """The parameter of the request that a refusal names, whatever it puts between its words; None if none."""
    said = _without_name(reason, model)
    for name in OPTIONAL:
        # A whole word: the name of a model, such as seed-1.6, is none.
        spelled = rf"(?<![\w/-]){name.replace('_', '[ _-]?')}(?![\w-])"
        if name in document and re.search(spelled, said):
            return name
    return None


def takes_no_system(reason: str) -> bool:
    """Its template has no place for a system turn."""
    return bool(_SYSTEM.search(reason.lower()))


def used_up(reason: str) -> bool:
    """All of its tokens went into thoughts, which OpenAI calls a wrong request."""
    return bool(_USED_UP.search(reason.lower()))


def understood(reason: str) -> bool:
    """A server's error of its own (5xx) that would come again: it is a refusal."""
    return takes_no_system(reason) or "context size" in reason.lower()


def is_busy(status: int | None, reason: str, told: float) -> bool:
    """It would answer later: it limits how often it is asked, has too much to do, or still loads its model."""
    return status in (429, 529) or status == 503 and (told > 0 or bool(_BUSY.search(reason.lower())))


def wants_money(status: int | None, reason: str, told: float) -> bool:
    """Not for want of time: Google says the same of a limit, and for how long."""
    return status == 402 or status == 429 and ("insufficient_quota" in reason
                                               or "exceeded your current quota" in reason.lower() and not told)


def seconds_told(text: str) -> float:
    """Of "try again in 1m2.5s", or 20ms; 0 where nothing is said."""
    found = _TIME.search(text)
    if not found:
        return 0.0
    hours, minutes, rest, unit = found.groups()
    try:
        rest = float(rest or 0) * (0.001 if unit == "ms" else 1)
    except ValueError:
        rest = 0.0
    return 3600.0 * int(hours or 0) + 60.0 * int(minutes or 0) + rest


def of_all(status: int | None, reason: str, url: str) -> UserError | None:
    """The error for a refusal that says nothing of the question: a key, or a bill. None for any other."""
    low = reason.lower()
    if status == 402:
        return UserError(f"the judge's server {url} wants to be paid ({reason}); try to top the account up")
    if status == 401 or status == 403 and not _MODERATED.search(low) or status == 400 and _KEY.search(low):
        return UserError(f"the judge's server {url} wants another key ({reason}); expected it in the environment "
                         f"variable {key_variable(url)}; try to set that and start again")
    return None


def of_model(status: int | None, reason: str, url: str, model: str, known: Callable[[], str]) -> UserError | None:
    """The error for a model, or a place, that the server does not have."""
    low = reason.lower()
    if status == 404 and ("unexpected endpoint" in low or "model" not in low and "endpoints" not in low):
        return UserError(f"the judge's server has nothing at {url} ({reason}); expected the address of an "
                         "OpenAI-compatible server; most end in /v1")
    if _MODEL.search(low) or status == 404 and "image input" not in low:
        return UserError(f"the judge's server {url} has no model {model!r} ({reason}); expected {known()}; try option "
                         "model=NAME")
    return None


def of_pictures(reason: str, name: str, picture: bool) -> UserError | None:
    """The error for a model that cannot take what it is asked about."""
    low = _without_name(reason, name)
    if _CONTEXT.search(low):
        return UserError(f"the picture and its question do not fit into the context of {name!r} ({reason}); "
                         "expected some 2,000 tokens of room; try a smaller side, or a larger context "
                         "(vLLM --max-model-len, llama.cpp -c, OLLAMA_CONTEXT_LENGTH)")
    if picture and any(word in low for word in ("image", "multimodal", "mmproj", "vision")):
        return UserError(f"the model {name!r} takes no pictures ({reason}); expected one that sees; try a model with "
                         "-VL in its name, or llama-server's --mmproj")
    return None


def of_everything(reason: str, name: str) -> UserError:
    return UserError(f"the judge {name!r} leaves one question after the other without an answer ({reason}); expected "
                     "answers; try another model, option thinking=4000 for one that thinks, or to look at what its "
                     "server says")


def gone(reason: str, url: str) -> UserError:
    return UserError(f"the judge's server {url} does not answer ({reason}); expected an OpenAI-compatible server; try "
                     "to start it, to check the address (most end in /v1), or a longer timeout")


def limited(reason: str, url: str) -> UserError:
    return UserError(f"the judge's server {url} takes no more questions for now ({reason}); expected that it has time; "
                     "try again later, with option concurrency=1, or a larger pause")


def _without_name(reason: str, model: str) -> str:
    """In small letters, and without the model's name, which may hold any word."""
    low = reason.lower()
    return low.replace(model.lower(), "") if model else low
