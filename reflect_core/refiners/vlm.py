"""The same picture in other words, by a language model that sees what the present words gave (prompt-level scaling)."""

from __future__ import annotations

from collections.abc import Sequence

from ..reflectors.refusal import refuses
from ..reflectors.told import foreign, lines
from ..text import bounded
from ..types import Picture, Verdict
from ..vlm.chat import Answer, Asker, Chat, Question

LONGEST = 1200
"""Characters; some 300 tokens of the 512 that FLUX reads."""
SYSTEM = ("You rewrite the description from which a picture is made, so that the next picture agrees better with what "
          "the user asked for. You see the user's own description, the present one, and the picture that it gave. Keep "
          "everything that the user asked for exactly: objects, numbers, colours, places, words. Say more plainly what "
          "the picture got wrong, and add subject, scene, light, style or composition only where the user left them "
          "open. Do not speak of the picture or of changes: describe the wanted picture itself. Answer with the new "
          "description alone, in one paragraph of at most 120 words.")


class VlmRefiner(Asker):
    def __init__(self, chat: Chat, scripts: str = "latin") -> None:
        """`scripts`: what the generator reads, 'latin' or 'any'."""
        super().__init__(chat)
        self.any_script = scripts == "any"
        self.notes: list[tuple[str, ...]] = []
        """On each picture of the last call, see `search.actors.Actors`."""

    def refine(self, prompt: str, currents: Sequence[str], pictures: Sequence[Picture],
               verdicts: Sequence[Verdict], reflections: Sequence[str]) -> list[str]:
        """The next prompt for each picture; its present one where the model gives none that is whole, or refuses, or
        gives one in letters that the generator does not read, which is noted. Whose own prompt is in such letters is
        answered in them."""
        answers = self.ask([Question(_told(prompt, *one), picture, SYSTEM, max_tokens=400)
                            for picture, *one in zip(pictures, currents, verdicts, reflections, strict=True)])
        found = [self._found(answer, foreign(prompt)) for answer in answers]
        self.notes = [noted for _, noted in found]
        return [one or current for (one, _), current in zip(found, currents)]

    def _found(self, answer: Answer, any_script: bool) -> tuple[str, tuple[str, ...]]:
        """The new prompt in an answer, '' for none, and what is to be noted."""
        if answer.error:
            return "", ()
        said = bounded(" ".join(lines(answer.text)), LONGEST)
        why = ""
        if answer.cut:
            why = "the new prompt was cut off"
        elif refuses(answer.text):
            why = "the judge refuses to write another prompt"
        elif foreign(said) and not (any_script or self.any_script):
            why = "the model reads Latin letters alone"
        if not why:
            return said, ()
        return "", (f"{why}, so that the present one stays; left out: {bounded(answer.text, 300)}",)


def _told(prompt: str, current: str, verdict: Verdict, reflection: str) -> str:
    told = [f"The user's description: {prompt}"]
    # The official instruction, too, passes over a present description that is the user's own (notes, 5).
    told += [f"The present description: {current}"] if current != prompt else []
    told += [f"What a judge said of the picture: {bounded(verdict.reason, 600)}"] if verdict.reason else []
    told += [f"What is to change: {bounded(reflection, 300)}"] if reflection else []
    return "\n".join(told)
