"""What a generator can be asked to draw: every field of a request is checked before the first is drawn."""

from __future__ import annotations

from PIL import Image

from ..types import Request, UserError
from .checking import is_number, is_whole


def check_request(request: Request, patch: int, max_context: int, guidance: float) -> None:
    """Raise UserError for a request that cannot be drawn.

    Args:
        patch: pixels to one token along a side; width and height are multiples of it.
        max_context: pairs that the model sees at most: 0 plain, 1 ReflectionFlow, 3 Reflect-DiT.
        guidance: what the model has by default.
    """
    _check_text("prompt", request.prompt)
    if request.original_prompt is not None:
        _check_text("original_prompt", request.original_prompt)
    for name in ("width", "height"):
        value = getattr(request, name)
        if not is_number(value):
            raise UserError(f"{name} is {value!r}; expected a multiple of {patch} pixels")
        if not isinstance(value, int) or value < patch or value % patch:
            raise UserError(f"{name} is {value!r}; expected a multiple of {patch} pixels; try "
                            f"{max(patch, round(value / patch) * patch)}")
    if not is_whole(request.steps) or request.steps < 1:
        raise UserError(f"steps is {request.steps!r}; expected a whole number of 1 or more")
    if not is_number(request.guidance) or request.guidance < 0:
        raise UserError(f"guidance is {request.guidance!r}; expected a number of 0 or more; try {guidance:g}, "
                        "which this model has by default")
    if not is_whole(request.seed) or not 0 <= request.seed < 2**64:
        raise UserError(f"seed is {request.seed!r}; expected a whole number from 0 to 2**64 - 1")
    _check_context(request, max_context)


def _check_context(request: Request, max_context: int) -> None:
    if request.context and not max_context:
        raise UserError("a request has a picture to correct, but this model has no corrector; expected a plain "
                        "request, or a model with one; try to load it with a corrector's weights")
    if len(request.context) > max_context:
        raise UserError(f"a request has {len(request.context)} context pairs; expected at most {max_context}, which "
                        "is all that this model sees; try the latest")
    for pair in request.context:
        _check_text("feedback", pair.feedback)
        if pair.picture is None:
            raise UserError("a request's context has no picture; expected the flawed picture in Pair.picture")
        if not isinstance(pair.picture, Image.Image):
            raise UserError(f"a request's context has a {type(pair.picture).__name__} for a picture; expected a "
                            "PIL image; try PIL.Image.open, or Image.fromarray for an array")


def _check_text(name: str, text: object) -> None:
    if not isinstance(text, str):
        raise UserError(f"the {name} is {text!r}; expected text")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise UserError(f"the {name} {text[:60]!r} has half a character at place {error.start}; expected proper "
                        "Unicode text; try to type it again") from error
