"""Reflect-DiT's released judge: a Qwen2.5-VL-3B, tuned to say in a sentence whether a picture is right and why not.

Its rule (Reflect-DiT notes, 4): right if the reply has the words "is correct"; otherwise the feedback is what
stands behind the reply's last full stop. A reply that ends with one leaves nothing: officially an empty
feedback is then shown to the model, here the reply's last sentence.
"""

from __future__ import annotations

from collections.abc import Sequence

from ..reflectors.refusal import refuses
from ..text import bounded
from ..types import Picture, UserError, Verdict
from ..vlm.chat import Answer, Asker, Chat, Question
from .match import not_judged

QUESTION = ("Please evaluate this generated image based on the following prompt: {prompt}. Focus on text alignment and "
            "compositionality.")
RIGHT = "is correct"
LONGEST = 300


class ReleasedVerifier(Asker):
    """Score 1 or 0, as the judge has no other. `details["feedback"]` is what `ReleasedReflector` hands on.

    Args:
        wording: the question, with {prompt} in it. The default says what the published one does; whoever runs the
            released weights gives the paper's own sentence (its table 7) here, which the weights were tuned on.
        guard: False: feedback exactly by the official rule, also where that is empty.
    """

    def __init__(self, chat: Chat, wording: str = QUESTION, guard: bool = True) -> None:
        super().__init__(chat)
        if "{prompt}" not in wording:
            raise UserError(f"option wording is {wording!r}; expected a text with {{prompt}} in it")
        self.wording, self.guard = wording, guard

    def judge(self, prompt: str, pictures: Sequence[Picture]) -> list[Verdict]:
        text = self.wording.replace("{prompt}", prompt)
        answers = self.ask([Question(text, picture, max_tokens=128) for picture in pictures])
        return [self._verdict(answer) for answer in answers]

    def _verdict(self, answer: Answer) -> Verdict:
        reply = answer.text
        if answer.error or refuses(reply):
            return not_judged(answer.error or f"the judge refuses ({reply})")
        if RIGHT in reply:
            return Verdict(1.0, True, reason=bounded(reply, LONGEST), details={"feedback": ""})
        feedback = reply.split(".")[-1].strip()
        if not feedback and self.guard:
            feedback = next((part.strip() for part in reversed(reply.split(".")) if part.strip()), "")
        feedback = bounded(feedback, LONGEST)
        return Verdict(0.0, False, reason=feedback or bounded(reply, LONGEST), details={"feedback": feedback})
