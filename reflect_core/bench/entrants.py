"""Who takes part in the comparison: policies under the names of the table's rows, for each family of models."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..presets.load import EDITORS
from ..search import BestOfN, NoisePromptScaling, Policy, ReflectDiTSearch, ReflectionFlow
from ..search.registry import policy_for
from ..types import UserError


@dataclass(frozen=True)
class Entrant:
    name: str
    family: str
    """A line of the plot; an ablation has none."""
    policy: Policy
    see: str = "both"
    """What a picture is drawn with of its context: both, words or pictures."""
    shuffled: bool = False
    """It is told what is wrong with other prompts' pictures: whoever reads the words does worse."""

    @property
    def is_ablation(self) -> bool:
        return self.family == ABLATION


ONE, BEST_OF, NOISE_PROMPT, REFLECTION = "one picture", "best of n", "noise + prompt", "ReflectionFlow"
REFLECT_DIT, ABLATION = "Reflect-DiT", "ablation"
MOST = 20
"""Pictures that the compared policies may draw."""


def _best_of(*budgets: int) -> list[Entrant]:
    return [Entrant(ONE, BEST_OF, BestOfN(1)),
            *(Entrant(f"best of {n}", BEST_OF, BestOfN.for_budget(n)) for n in budgets)]


def _ablation(what: str, context: int = 3, **changes) -> Entrant:
    return Entrant(f"{REFLECT_DIT} {MOST}, {what}", ABLATION, ReflectDiTSearch(MOST, context), **changes)


def _reflection_flow(edits: bool) -> tuple[Entrant, ...]:
    """`edits`: of editors, the depth of whose pictures is bounded, as in `reflect run`."""
    return (*_best_of(4, 8, MOST, 64),
            Entrant(f"noise + prompt {MOST}", NOISE_PROMPT, NoisePromptScaling.for_budget(MOST)),
            *(Entrant(f"{REFLECTION} {n}", REFLECTION, policy_for(ReflectionFlow.name, n, edits=edits))
              for n in (4, 8, MOST)))


FLUX, EDITS = _reflection_flow(edits=False), _reflection_flow(edits=True)
SANA = (
    *_best_of(4, 8, MOST, 64),
    *(Entrant(f"{REFLECT_DIT} {n}", REFLECT_DIT, ReflectDiTSearch.for_budget(n)) for n in (4, 8, MOST)),
    _ablation("K = 2", 2), _ablation("K = 1", 1), _ablation("words only", see="words"),
    _ablation("pictures only", see="pictures"), _ablation("shuffled words", shuffled=True),
)
"""Each draws at most so many pictures and stops at the first accepted one. Reflect-DiT sees three of them (K = 3)
where nothing else is said."""
ENTRANTS = {**dict.fromkeys(EDITORS, EDITS), "FluxPipeline": FLUX, "SanaPipeline": SANA}
"""By a model's family, as its index names it."""
NAMES = tuple(dict.fromkeys(e.name for entrants in ENTRANTS.values() for e in entrants))


def choose_entrants(family: str, names: Sequence[str] | None = None, corrects: bool = True) -> tuple[Entrant, ...]:
    """Those of a family of these names, in the order of the table; None: all, but for a model without a corrector
    only those that draw anew. UserError for a name that no family has."""
    for name in names or ():
        if name not in NAMES:
            raise UserError(f"there is no policy {name!r} in the benchmark; expected some of "
                            f"{', '.join(map(repr, NAMES))}")
    entrants = ENTRANTS.get(family, FLUX)
    if names is not None:
        return tuple(e for e in entrants if e.name in names)
    return tuple(e for e in entrants if corrects or not e.policy.max_context)
