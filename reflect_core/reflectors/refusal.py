"""Whether a model says, in words, that it will not say anything: handed on, that would be drawn."""

from __future__ import annotations

import re

from .told import lines

SORRY = (r"(?:i['\u2019]?m|i am)?\s*(?:(?:very|so|really)\s+)?(?:sorry|afraid)|i apologi[sz]e|my apologies|"
         r"unfortunately")
ELSEWHERE = (r"(?:lo siento|lamento|(?:je suis )?d\u00e9sol\u00e9e?|(?:es )?tut mir leid|mi dispiace|desculpe)\b|"
             r"\u5f88?\u62b1\u6b49|\u5bf9\u4e0d\u8d77")
"""To be sorry in other languages; nobody is of a picture."""
CANNOT = (r"i(?:['\u2019]m| am)?\s+(?:can(?:['\u2019]?t|not| not)|won['\u2019]?t|will not|(?:un|not )able to|"
          r"not (?:allowed|permitted) to|must decline|decline to|refuse to|do not|don['\u2019]?t)")
HELP = (r"assist|help(?! notic)|comply|fulfil|provide|continue|engage|participate|discuss|support|respond|answer|"
        r"process|generate|create|write|rewrite|produce|do (?:that|this|so)|feel comfortable")
LOOK = (r"(?:describe|analy[sz]e|comment on|evaluate|judge|view|see|look at|access|open|interpret|identify)"
        r"(?:\s+\w+){0,3}?\s+(?:images?|pictures?|photos?|requests?|content|people|persons?)")
_REFUSAL = re.compile(
    rf"\W*(?:{ELSEWHERE}|(?:(?:{SORRY})\W+)?(?:(?:but|that|however)\W+)?(?:as an? (?:ai|language)\b[^.,]*[.,]?\s*)?"
    rf"{CANNOT}(?:\W*$|\W+(?:\w+\s+){{0,2}}?(?:{HELP}|{LOOK})\b)|(?:i )?must decline\b|"
    r"(?:this|your|the) request (?:violates|goes against)\b)", re.IGNORECASE)
"""'I can't assist with that.'; not 'I can't see a dog', which says what is missing."""


def refuses(reply: str) -> bool:
    """By its first words, without what stands around them."""
    return _REFUSAL.match(next(iter(lines(reply)), "")) is not None
