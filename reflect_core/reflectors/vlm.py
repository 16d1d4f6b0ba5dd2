"""Reflections by a language model that looks at the picture: a sentence for Reflect-DiT, edits for ReflectionFlow.

Each is asked only of pictures that were not accepted. Where the model gives no answer there is nothing to
say, which the policies know what to do with. What it says in a script that the generator does not read is not handed
on, and noted on the picture that it is about: T5, of FLUX, has one and the same sign for nearly every letter that is
not Latin. Gemma 2, of SANA, and Qwen2.5-VL, of Qwen-Image-Edit, read much of the world's writing. A model is asked for
English; what it says in another language of Latin letters is handed on as it is, to all, since nothing here tells them
apart: T5 has French, German and Romanian words, too, but learned from English texts, and little may come of it.

Neither is a refusal handed on, nor, of a reply that was cut off, more than is whole: a model that thinks aloud without
a mark around it is cut off in its thoughts.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Sequence

from ..text import bounded
from ..types import Picture, Verdict
from ..verifiers.checklist import NO_ANSWER
from ..vlm.chat import Asker, Chat, Question
from .refusal import refuses
from .told import edits, is_command, latin, lines, sentence

LONGEST = 300
"""Characters of a reflection. The published ones are a sentence or a few short edits."""

SENTENCE = ("You look at a picture that was made from a description and say, in one short English sentence, what is "
            "most wrong with it: what is missing, too many, of the wrong colour or kind, or in the wrong place. Name "
            "the objects, and say what there is and what there should be. Only what the description asks for counts. "
            "If nothing is wrong, answer: None")
EDITS = ("You look at a picture that was made from a description and write the edits that would make it agree with the "
         "description. Go through the description part by part. Each edit is one short English line that begins with "
         "Add, Remove, Replace, Reposition or Adjust, names the object and where in the picture it is or should be, "
         "and can be done by somebody who sees the picture but not the description. The worst error first. No "
         "explanations, no headings, no vague words such as 'improve'. At most {limit} lines. If nothing is wrong, "
         "answer: None")

_ENDED = re.compile(r"(?:.*[.!?\n](?=\s|$))?", re.DOTALL)


class VlmReflector(Asker, ABC):
    """Shared: what a question tells, and who is asked. UserError where nobody can be asked."""

    system = ""

    def __init__(self, chat: Chat, scripts: str = "latin") -> None:
        """`scripts`: what the generator reads, 'latin' or 'any'."""
        super().__init__(chat)
        self.any_script = scripts == "any"
        self.notes: list[tuple[str, ...]] = []
        """On each picture of the last call, what of the reply was not handed on, see `search.actors.Actors`."""

    def reflect(self, prompt: str, pictures: Sequence[Picture], verdicts: Sequence[Verdict]) -> list[str]:
        """A reflection for each picture; empty where there is nothing to say, or no answer."""
        wrong = [k for k, verdict in enumerate(verdicts) if not verdict.accepted]
        answers = self.ask([Question(self._told(prompt, verdicts[k]), pictures[k], self.system, max_tokens=200)
                            for k in wrong])
        said, self.notes = [""] * len(pictures), [()] * len(pictures)
        for k, answer in zip(wrong, answers):
            if answer.error:
                continue
            if refuses(answer.text):
                self.notes[k] = (f"the judge refuses to say what is wrong: {bounded(answer.text, 300)}",)
                continue
            told, left = (answer.text, "") if self.any_script else latin(answer.text)
            said[k] = self._whole(told) if answer.cut else self._reflection(told)
            if left:
                self.notes[k] = (f"the model reads Latin letters alone; of what was said, left out: {left}",)
            elif answer.cut and not said[k]:
                self.notes[k] = (f"what was said was cut off, and left out: {bounded(answer.text, 300)}",)
        return said

    def _told(self, prompt: str, verdict: Verdict) -> str:
        failed = [check.target for check in verdict.checks if not check.passed
                  and not check.note.startswith(NO_ANSWER)]
        found = f"\nA first look said no to: {bounded('; '.join(failed), 1500)}" if failed else ""
        return f"Description: {prompt}{found}"

    @abstractmethod
    def _reflection(self, reply: str) -> str: ...

    def _whole(self, reply: str) -> str:
        """The reflection in a reply that was cut off. Whoever was asked for a sentence and has no end had none."""
        return ""


class SentenceReflector(VlmReflector):
    """One sentence on the worst flaw: the form of Reflect-DiT's feedback (notes, 3.1)."""

    system = SENTENCE

    def _reflection(self, reply: str) -> str:
        return sentence(reply, LONGEST)


class EditsReflector(VlmReflector):
    """A few edits on one line: the form of ReflectionFlow's reflections (notes, 5). `limit`: edits at most."""

    def __init__(self, chat: Chat, limit: int = 3, scripts: str = "latin") -> None:
        super().__init__(chat, scripts)
        self.limit, self.system = limit, EDITS.format(limit=limit)

    def _reflection(self, reply: str) -> str:
        return edits(reply, self.limit, LONGEST)

    def _whole(self, reply: str) -> str:
        return self._reflection("\n".join(line for line in lines(reply.rpartition("\n")[0]) if is_command(line)))


class TunedReflector(VlmReflector):
    """ReflectionFlow's Reflection-Generator: a Qwen2.5-VL-7B, tuned to answer a picture and its prompt with a
    reflection (notes, 2.3 and 5). `wording`: the question, with {prompt} in it."""

    def __init__(self, chat: Chat, wording: str = "{prompt}", scripts: str = "latin") -> None:
        super().__init__(chat, scripts)
        self.wording = wording

    def _told(self, prompt: str, verdict: Verdict) -> str:
        return self.wording.replace("{prompt}", prompt)

    def _reflection(self, reply: str) -> str:
        return sentence(reply, LONGEST)

    def _whole(self, reply: str) -> str:
        """It was tuned to say one thing after another, without thoughts: all but the last are whole."""
        return self._reflection(_ENDED.match(reply)[0])


class ReleasedReflector:
    """What `ReleasedVerifier` said of each picture, without asking again."""

    def reflect(self, prompt: str, pictures: Sequence[Picture], verdicts: Sequence[Verdict]) -> list[str]:
        return [bounded(str(verdict.details.get("feedback", "")), LONGEST) for verdict in verdicts]
