"""One question about each picture: does it show what the prompt says? The score is how sure the model is."""

from __future__ import annotations

from collections.abc import Sequence

from ..text import bounded
from ..types import Picture, Verdict
from ..vlm.chat import Asker, Chat, Question
from ..vlm.reading import read

SYSTEM = ("You check pictures that were made from a description. Be strict: every object, number, colour and place "
          "that the description names must be in the picture as it says. Answer with one word, yes or no.")
QUESTION = "Does this picture show exactly what this description says? Description: {prompt}\nAnswer yes or no."


class MatchVerifier(Asker):
    """Score p(yes) / (p(yes) + p(no)) of the first token, as in VQAScore (2404.01291) and SANA-1.5's verifier.

    `threshold`: the score from which a picture is accepted.
    """

    def __init__(self, chat: Chat, threshold: float = 0.5) -> None:
        super().__init__(chat)
        self.threshold = threshold

    def judge(self, prompt: str, pictures: Sequence[Picture]) -> list[Verdict]:
        text = QUESTION.format_map({"prompt": prompt})
        answers = self.ask([Question(text, picture, SYSTEM, max_tokens=8, yes_no=True) for picture in pictures])
        return [self._verdict(read(answer)) for answer in answers]

    def _verdict(self, reading) -> Verdict:
        if isinstance(reading, str):
            return not_judged(reading)
        details = {"how": reading.how, "mass": reading.mass, "logit": reading.logit}
        accepted = reading.p >= self.threshold
        return Verdict(reading.p, accepted, reason=f"the judge is {reading.p:.0%} sure that it "
                                                   "matches", details=details)


def not_judged(why: str) -> Verdict:
    """The verdict on a picture that nobody could judge."""
    return Verdict(0.0, False, reason=f"not judged: {bounded(why, 300)}", judged=False)
