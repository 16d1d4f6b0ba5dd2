"""Several judges as one: the weighted mean of their scores, or of their rankings.

Verifiers disagree and each has its blind spots; a search over many pictures finds those of one verifier sooner than
those that several share (arXiv 2501.09732 averages ranks for that reason).

mode 'mean': scores are averaged as they are, so a judge whose scores spread more counts for more.
mode 'rank': of the pictures judged in one call the best gets 1 from a member and the worst 0, ties the mean of their
places, and those are averaged. Scores then say nothing beyond their own call: only for policies that compare the
pictures of one call, and never with an early stop by the score. A picture judged alone gets 0.5.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ...generators.checking import is_number
from ...ranks import average_ranks
from ...types import Picture, UserError, Verdict, Verifier
from .together import Together, brief
from .verdicts import checked_threshold

MODES = ("mean", "rank")
MISSING = ("unjudged", "others")


class Ensemble(Together):
    """See the module.

    Args:
        members: verifiers by name, as they are called in verdicts.
        weights: above 0, by name; None (the default): all alike. They are scaled to add up to 1.
        threshold: the score from which on a picture is accepted, in mode 'mean'; None (the default): a picture is
            accepted when all members accept it.
        missing: of a picture that a member could not judge, 'unjudged' (the default): neither has the ensemble;
            'others': the rest of the members decide.

    `details["members"]` has each member's weight and verdict. Checks are all members', and the rest of `details` is
    theirs together, the first member's first, so that a reflector that reads it can go with it.
    """

    def __init__(self, members: Mapping[str, Verifier], weights: Mapping[str, float] | None = None, mode: str = "mean",
                 threshold: float | None = None, missing: str = "unjudged") -> None:
        super().__init__(members)
        for name, value, known in (("mode", mode, MODES), ("missing", missing, MISSING)):
            if value not in known:
                raise UserError(f"{name} is {value!r}; expected {' or '.join(map(repr, known))}")
        if mode == "rank" and threshold is not None:
            raise UserError(f"threshold is {threshold!r} in the mode 'rank', whose scores only compare the pictures "
                            "of one call; expected none; try the mode 'mean', or thresholds of the members")
        self.mode, self.missing, self.threshold = mode, missing, checked_threshold(threshold)
        self.weights = _normalised(self.members, weights)

    def judge(self, prompt: str, pictures: Sequence[Picture]) -> list[Verdict]:
        by_member = {name: self.ask(name, prompt, pictures) for name in self.members}
        values = {name: _values(verdicts, self.mode) for name, verdicts in by_member.items()}
        return [self._one({name: verdicts[i] for name, verdicts in by_member.items()},
                          {name: value[i] for name, value in values.items()}) for i in range(len(pictures))]

    def _one(self, verdicts: Mapping[str, Verdict], values: Mapping[str, float | None]) -> Verdict:
        """The verdict on one picture; `values` are what the weights apply to, None where a member could not judge."""
        able = [name for name, value in values.items() if value is not None]
        first = next(iter(verdicts.values()))
        others = {key: value for verdict in reversed(verdicts.values()) for key, value in verdict.details.items()}
        details = {**others, **first.details, "members": {
            name: {"weight": self.weights[name], **brief(verdict)} for name, verdict in verdicts.items()}}
        said = ", ".join(f"{name} {verdicts[name].score:.2f}" if name in able else f"{name} not judged"
                         for name in verdicts)
        if not able or (len(able) < len(verdicts) and self.missing == "unjudged"):
            why = "; ".join(f"{name}: {verdicts[name].reason}" for name in verdicts if name not in able)
            return Verdict(0.0, False, reason=f"not judged by {why}", details=details, judged=False)
        total = sum(self.weights[name] for name in able)
        score = min(max(sum(self.weights[name] * values[name] for name in able) / total, 0.0), 1.0)
        accepted = (score >= self.threshold if self.threshold is not None else
                    all(verdicts[name].accepted for name in able))
        checks = tuple(check for verdict in verdicts.values() for check in verdict.checks)
        # A reward's reason is its number, which is said already.
        reasons = [verdicts[name].reason for name in able
                   if verdicts[name].reason and "reward" not in verdicts[name].details]
        return Verdict(score, accepted, checks, "; ".join([*reasons, said]), details)


def _normalised(members: Mapping[str, Verifier], weights: Mapping[str, float] | None) -> dict[str, float]:
    """A weight for each member; they add up to 1."""
    weights = dict.fromkeys(members, 1.0) if weights is None else dict(weights)
    if set(weights) != set(members):
        raise UserError(f"weights are for {', '.join(weights) or 'nobody'}; expected one for each of "
                        f"{', '.join(members)}")
    for name, weight in weights.items():
        if not is_number(weight) or weight <= 0:
            raise UserError(f"the weight of {name!r} is {weight!r}; expected a number above 0; try to leave it out "
                            "instead")
    total = sum(weights.values())
    return {name: weights[name] / total for name in members}


def _values(verdicts: Sequence[Verdict], mode: str) -> list[float | None]:
    """What of a member is averaged: its scores, or its places, 0 to 1, the best; None where it could not judge."""
    able = [index for index, verdict in enumerate(verdicts) if verdict.judged]
    scores = [verdicts[index].score for index in able]
    if mode == "rank":
        scores = [(rank - 1) / (len(able) - 1) if len(able) > 1 else 0.5 for rank in average_ranks(scores)]
    found = dict(zip(able, scores))
    return [found.get(index) for index in range(len(verdicts))]
