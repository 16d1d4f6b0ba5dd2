"""A score out of ten for each of a few aspects, and an overall one, with the reason before the number.

The aspects are GenEval's six tasks' (ReflectionFlow notes, 5) or general ones. The words are ours.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..text import bounded
from ..types import Check, Picture, Verdict
from ..vlm.chat import Asker, Chat, Question
from ..vlm.structured import ask_for_json, object_of
from .match import not_judged

ASPECTS: dict[str, dict[str, str]] = {
    "general": {"accuracy_to_prompt": "does it show everything that the description says, and nothing against it",
                "creativity_and_originality": "is it more than the obvious picture",
                "visual_quality_and_realism": "is it sharp, well lit, and free of things that cannot be",
                "consistency_and_cohesion": "do its parts, styles and proportions belong together",
                "emotional_or_thematic_resonance": "does it carry the description's mood"},
    "single_object": {"object_completeness": "is the object there, whole and with all its parts",
                      "detectability": "is it told apart from everything else at a glance",
                      "occlusion_handling": "does nothing hide what matters of it"},
    "two_object": {"separation_clarity": "are the two objects clearly two, neither melted into the other",
                   "individual_completeness": "is each of them whole, with all its parts",
                   "relationship_accuracy": "do they go together as the description says, in sensible proportions"},
    "counting": {"count_accuracy": "is the number of objects exactly the one that is asked for",
                 "object_uniformity": "are all of them of the kind that is asked for",
                 "spatial_legibility": "can each be told from the others and counted"},
    "colors": {"color_fidelity": "has the object exactly the colour that is asked for",
               "contrast_effectiveness": "does the colour stand out against what is around it",
               "multi_object_consistency": "has nothing else taken the colour, and the object no second one"},
    "position": {"position_accuracy": "are the objects placed to one another as the description says",
                 "occlusion_management": "can their places be seen, neither hidden behind the other",
                 "perspective_consistency": "do depth and perspective agree with those places"},
    "color_attr": {"attribute_binding": "has each object its own colour, not the other's",
                   "contrast_effectiveness": "are the colours told apart at a glance",
                   "material_consistency": "do colour and material look right on each object"},
}
TAGS = tuple(ASPECTS)
_MARK = object_of(explanation={"type": "string"}, score={"type": "integer", "minimum": 0, "maximum": 10})


class RubricVerifier(Asker):
    """Score: the overall mark / 10. Accepted from `threshold` on. Each aspect is a check, passed from the same mark on.

    `tag`: one of `TAGS`; 'general' for any prompt.
    """

    def __init__(self, chat: Chat, tag: str = "general", threshold: float = 0.9) -> None:
        super().__init__(chat)
        self.tag, self.threshold = tag, threshold

    def judge(self, prompt: str, pictures: Sequence[Picture]) -> list[Verdict]:
        aspects = ASPECTS[self.tag]
        schema = object_of(**dict.fromkeys((*aspects, "overall_score"), _MARK))
        questions = [Question(f"Description: {prompt}", picture, told(self.tag), max_tokens=1000, schema=schema)
                     for picture in pictures]
        return [self._verdict(result) for result in ask_for_json(self.ask, questions)]

    def _verdict(self, result: dict[str, Any] | str) -> Verdict:
        if isinstance(result, str):
            return not_judged(result)
        # What was asked for alone, and each explanation bounded: a reply has as many members as a model likes.
        marks = {name: {"explanation": bounded(result[name]["explanation"], 300), "score": result[name]["score"]}
                 for name in (*ASPECTS[self.tag], "overall_score")}
        checks = tuple(Check("aspect", name.replace("_", " "), marks[name]["score"] >= 10 * self.threshold,
                             bounded(f"{marks[name]['score']} of 10: {marks[name]['explanation']}", 300))
                       for name in ASPECTS[self.tag])
        overall = marks["overall_score"]
        score = overall["score"] / 10
        return Verdict(score, score >= self.threshold, checks, overall["explanation"], {"marks": marks})


def told(tag: str) -> str:
    """What the model is told before it sees a picture."""
    aspects = "\n".join(f'- "{name}": {asks}?' for name, asks in ASPECTS[tag].items())
    return ("You judge a picture that was made from a description. Give each of these aspects a whole mark from 0, "
            f"wholly wrong, to 10, nothing to better:\n{aspects}\n"
            '- "overall_score": all in all; what the description asks for counts most.\n'
            "First explain in one or two sentences what you see, then give the mark. Answer with a JSON object that "
            "has "
            'for each of these names an object {"explanation": "...", "score": 0}.')
