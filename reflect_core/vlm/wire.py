"""Questions as documents of the OpenAI-compatible chat protocol, and answers out of its replies."""

from __future__ import annotations

import base64
import io
import math
import re
from collections.abc import Mapping
from typing import Any

from PIL import Image

from ..generators.rgb import as_rgb
from ..text import bounded
from ..types import Picture
from .chat import ALL_THOUGHT, Answer, Question, without_thoughts

TOP = 20
"""Alternatives of the first token that are asked for: the most that the protocol has."""
_OPENING, _CLOSING = re.compile(r"\s*<think(?:ing)?>", re.I), re.compile(r"</think(?:ing)?>", re.I)
JPEG = {"quality": 95, "subsampling": 0}


def data_url(picture: Picture, side: int, kind: str) -> str:
    """The picture, no side longer than `side`, as a data URL of `kind` 'jpeg' or 'png'."""
    picture = as_rgb(picture)
    if max(picture.size) > side:
        scale = side / max(picture.size)
        size = tuple(max(1, round(length * scale)) for length in picture.size)
        picture = picture.resize(size, Image.Resampling.LANCZOS)
    file = io.BytesIO()
    picture.save(file, kind, **(JPEG if kind == "jpeg" else {}))
    return f"data:image/{kind};base64,{base64.b64encode(file.getvalue()).decode()}"


def to_document(question: Question, url: str | None, model: str, temperature: float, seed: int, top: int = TOP,
                thinking: int = 0, folds: bool = False) -> dict[str, Any]:
    """The request for a question; `url` of its picture; `top`: alternatives of the first token; `thinking`: tokens on
    top of the answer's; `folds`: no system turn, its words go before the first question's. The picture comes first, so
    that a server that keeps what it has read reads it once for all questions about it."""
    system = question.system
    messages: list[dict[str, Any]] = [{"role": "system", "content": system}] if system and not folds else []
    turns = [*(text for turn in question.before for text in turn), question.text]
    if system and folds:
        turns[0] = f"{system}\n\n{turns[0]}"
    for place, text in enumerate(turns):
        content: Any = text
        if place == 0 and url is not None:
            content = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": text}]
        messages.append({"role": "assistant" if place % 2 else "user", "content": content})
    document = {"model": model, "messages": messages, "max_tokens": question.max_tokens + thinking,
                "temperature": temperature, "seed": seed, "stream": False}
    if question.yes_no:
        document |= {"logprobs": True, "top_logprobs": top}
    if question.schema is not None:
        document["response_format"] = {"type": "json_schema", "json_schema": {
            "name": "answer", "strict": True, "schema": question.schema}}
    return document


def from_reply(reply: Any) -> Answer:
    """The answer in a server's reply. ValueError, saying what is missing, for any other document."""
    choice = _first(_member(reply, "choices", list), "choices")
    message = _member(choice, "message", dict)
    text, why = message.get("content"), choice.get("finish_reason")
    thought = isinstance(message.get("reasoning_content") or message.get("reasoning"), str)
    refusal = message.get("refusal")
    if text is None and (thought or refusal or why in ("length", "content_filter")):
        text = ""
    if isinstance(text, list):  # some servers answer in parts, as they are asked
        parts = [part.get("text") for part in text if isinstance(part, dict)]
        text = "".join(part for part in parts if isinstance(part, str))
    if not isinstance(text, str):
        raise ValueError(f"it says {_error(choice)}" if choice.get("error") else "it has no text")
    yes, no = first_token(choice.get("logprobs"))
    text, cut = without_thoughts(text), why == "length"
    usage = reply.get("usage")
    usage = usage if isinstance(usage, dict) else {}
    spent = {"tokens_in": _count(usage.get("prompt_tokens")), "tokens_out": _count(usage.get("completion_tokens")),
             "model": str(reply.get("model") or "")[:200]}
    if not text and yes is None:
        # To ask again would be paid for again, and answered alike.
        if refusal or why == "content_filter":
            said = bounded(str(refusal), 200) if refusal else "its provider's filter keeps the answer back"
            return Answer(error=f"the model refuses: {said}", **spent)
        if cut:
            return Answer(error=ALL_THOUGHT, cut=True, **spent)
        raise ValueError(f"it says {_error(choice)}" if choice.get("error") else "it is empty")
    return Answer(text, yes, no, cut, **spent)


def first_token(logprobs: Any) -> tuple[float | None, float | None]:
    """Probabilities of 'yes' and 'no' as the first token of the answer, over all their spellings; None, None if nothing
    is said. What a model thinks, or does not but puts tags for it, comes before the answer."""
    content = logprobs.get("content") if isinstance(logprobs, dict) else None
    content = [one for one in content if isinstance(one, dict)] if isinstance(content, list) else []
    tokens = [one["token"] if isinstance(one.get("token"), str) else "" for one in content]
    first = content[0] if content else None
    if closing := list(_CLOSING.finditer("".join(tokens))):
        ends, at = closing[-1].end(), 0
        first = None
        for one, token in zip(content, tokens):
            if at >= ends and token.strip():
                first = one
                break
            at += len(token)
    elif _OPENING.match("".join(tokens)):
        first = None
    top = first.get("top_logprobs") if first is not None else None
    if not isinstance(top, list) or not top:
        return None, None
    mass = {"yes": 0.0, "no": 0.0}
    seen = set()
    for entry in top:
        token, logprob = (entry.get("token"), entry.get("logprob")) if isinstance(entry, dict) else (None, None)
        if not isinstance(token, str) or not isinstance(logprob, (int, float)) or token in seen:
            continue
        seen.add(token)
        word = spelling(token)
        if word in mass and logprob == logprob:
            mass[word] += math.exp(min(float(logprob), 0.0))
    return min(mass["yes"], 1.0), min(mass["no"], 1.0)


def _error(choice: Mapping[str, Any]) -> str:
    """What went wrong at a server behind the server."""
    error = choice["error"]
    return bounded(str(error.get("message") or error) if isinstance(error, dict) else str(error), 200)


def spelling(token: str) -> str:
    """A token without what tokenizers and habits put around a word, in small letters."""
    return token.strip().strip("\u0120\u2581 \"'*.").lower()


def _member(data: Any, name: str, kind: type) -> Any:
    value = data.get(name) if isinstance(data, Mapping) else None
    if not isinstance(value, kind):
        raise ValueError(f"it has no {name}")
    return value


def _first(items: list, name: str) -> dict[str, Any]:
    if not items or not isinstance(items[0], dict):
        raise ValueError(f"its {name} are empty")
    return items[0]


def _count(value: Any) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else 0
