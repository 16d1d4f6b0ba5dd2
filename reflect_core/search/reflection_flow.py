"""ReflectionFlow: a pool from noise, then rounds of reflecting on pictures and correcting them.

arXiv 2504.16080, spec section 4.2 step B. Draw a pool, take the best `branches` as parents; each
round a reflector says what is wrong with each parent, a refiner may rewrite its prompt, and the
corrector draws a child with the parent's picture and the reflection in view.

Where the official script has a quirk there is a setting here (spec 4.2, 4.3, 7), and
`ReflectionFlow.official()` has them all as published. Our own defaults differ in that they

- stop at the first accepted picture (official: all rounds, solved or not);
- keep a branch's best picture as its parent (`parents='chain'`; official `'last'`: a bad child
  replaces a good parent);
- let the pool take part in the final choice (official: the answer is always a correction);
- judge every picture once (official: every child twice, `judge_again`);
- do not correct without a word to correct by (`silent='redraw'`);
- correct with the run's own steps and guidance (official: 28 and 3.5, whatever is configured).

Not kept and without a switch: answers attached to the wrong picture (items 1-3), two equal scores
that pick the same picture twice and ties that go to the faster answer (item 4: here a tie goes to
the earlier picture), the crash when only one of reflection and refinement is on (item 6: all four
combinations work), a child that joins every chain with its parent in it (item 7: here it has a
branch of its own), and file names with a wrong seed (item 8). How prompt and reflection are joined
into one text is the generator's option, not the policy's: the official search goes with
`text_join='search'` (spec 1.8).

The corrector may also be an editor that was never trained on reflections. Repeated edits drift, so the depth of its
pictures is bounded (`max_depth`, see `EDITING`), and `parents='chain'` has each edit start from a branch's best
picture and not from the last edit, if that was worse.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from ..types import Pair, UserError
from .depth import above
from .entries import Planned
from .policy import (
    Action,
    Draw,
    Judge,
    Policy,
    Refine,
    Reflect,
    Stop,
    accepted_stop,
    check_choice,
    check_count,
    check_number,
    derive_seed,
    noise_request,
)
from .run import Candidate, Run, rank

POOL_SHARE = 4
"""`for_budget`: one picture in so many goes into the pool ..."""
MOST_POOL = 8
"""... up to this many (the remainder of the last round comes on top)."""
POOL_PER_BRANCH = 2
"""`for_budget`: a parent is the better of so many, ..."""
MOST_BRANCHES = 4
"""... and no more branches than this: at equal cost deeper beats wider (spec 6.4)."""

OFFICIAL_OPTIONS = {"text_join": "search"}
"""How the published search joins prompt and reflection: an option of the generator that goes with `official()`."""

EDITING = {"max_depth": 3, "patience": 3}
"""Our settings for editors, in place of the defaults. Not measured on published weights; RAISE has 2 to 4 rounds."""
# Against a simulated editor on 60 `compose` prompts, 12 pictures each, that spoils the more the deeper it goes: 0.90
# solved, with one of the two 0.82 and 0.77, with neither 0.78. Where it does not, 0.90, 0.87, 0.87 and 0.87.

PARENTS = ("chain", "best", "last")
SILENT = ("redraw", "correct")


@dataclass(frozen=True)
class ReflectionFlow(Policy):
    """See the module. UserError if a setting is out of range."""

    name: ClassVar[str] = "reflection_flow"

    pool: int = 4
    """Pictures from noise to start with (round 0)."""
    branches: int = 2
    """Corrections a round."""
    rounds: int = 6
    reflect: bool = True
    """Off: the corrector gets the picture with an empty feedback."""
    refine: bool = False
    """Have a refiner rewrite the prompt before each correction (official: on)."""
    parents: str = "chain"
    """Which pictures a round corrects. 'chain': each branch its best so far; a child that is worse
    than its parent is dropped and the parent is tried again with new noise, an equal one is taken.
    'best': the best of all so far. 'last': the children of the round before, good or bad."""
    early_stop: bool = True
    """Stop after the chunk that holds the first accepted picture."""
    pool_in_choice: bool = True
    """Whether a picture of the pool may be the answer."""
    judge_again: bool = False
    """Judge every child a second time before the next round; that verdict orders the parents and is
    shown to the reflector, the first one decides the answer."""
    silent: str = "redraw"
    """What a branch draws when the reflector had nothing to say about its parent. 'redraw': a picture
    from fresh noise, with a parent only if its prompt was rewritten from that one's. 'correct': a
    correction with an empty feedback."""
    reflect_again: bool = True
    """Ask for a new reflection when a parent is tried again; off: use the one that is there."""
    patience: int | None = None
    """Only with 'chain': give a parent up after so many children in a row that were worse, or too deep
    to take its place, and let the branch start anew from noise. None: never."""
    max_depth: int | None = None
    """Corrections in a row that a picture may have behind it. One that has as many may be the answer, but
    the next correction starts from the best that has fewer. None: no bound (official)."""
    repeat_parents: bool = True
    """With fewer pictures than branches, let them serve several branches each. Off: fewer branches."""
    pool_steps: int | None = None
    """Denoising steps of the pool; None: the run's."""
    corrector_steps: int | None = None
    """Denoising steps of corrections (and redraws); None: the run's."""
    corrector_guidance: float | None = None
    """Guidance of corrections (and redraws); None: the run's."""

    def __post_init__(self) -> None:
        for name in ("pool", "branches"):
            check_count(self.name, name, getattr(self, name), 1)
        check_count(self.name, "rounds", self.rounds, 0)
        for name in ("patience", "max_depth", "pool_steps", "corrector_steps"):
            check_count(self.name, name, getattr(self, name), 1, none=True)
        for name in ("reflect", "refine", "early_stop", "pool_in_choice", "judge_again", "reflect_again",
                     "repeat_parents"):
            check_choice(self.name, name, getattr(self, name), (True, False))
        check_choice(self.name, "parents", self.parents, PARENTS)
        check_choice(self.name, "silent", self.silent, SILENT)
        if self.corrector_guidance is not None:
            check_number(self.name, "corrector_guidance", self.corrector_guidance)
        if self.patience is not None and self.parents != "chain":
            raise UserError(f"patience of {self.name} must be None with parents={self.parents!r}, which has no chain "
                            f"to give up; got {self.patience!r}; try parents='chain'")

    @classmethod
    def official(cls) -> ReflectionFlow:
        """The published script: 32 + 16 x 2 pictures a prompt, 32 reflections, 32 refined prompts,
        94 verdicts, pool with 30 steps and the run's guidance, corrections with 28 steps and guidance
        3.5 whatever the configuration says (item 11)."""
        return cls(pool=32, branches=2, rounds=16, refine=True, parents="last", early_stop=False,
                   pool_in_choice=False, judge_again=True, silent="correct", pool_steps=30,
                   corrector_steps=28, corrector_guidance=3.5)

    @classmethod
    def for_budget(cls, n: int, **settings) -> ReflectionFlow:
        """A sensible split of `n` pictures, which it draws exactly if nothing is accepted before.

        A quarter of them is the pool (1 to 8), half as many branches (1 to 4), the rest goes into
        rounds, and what does not fill a last round goes into the pool: 4 = 1 + 3 x 1, 8 = 2 + 6 x 1,
        16 = 4 + 6 x 2, 32 = 8 + 6 x 4. `settings` are passed on. UserError unless n is 1 or more.
        """
        # Against a simulated corrector on `compose` prompts, a weak and a good one, this was within
        # noise of the best of eight splits at 8, 16 and 32 pictures; `parents='best'` was up to 8
        # points worse than 'chain'. The bundled model, 20 pictures, 35 prompts of six objects that are in
        # no evaluation: 0.83 solved; as 4 + 4 x 4 0.83, as 5 + 15 x 1 0.74, with parents='best' 0.80.
        check_count(cls.name, "n", n, 1)
        pool = min(max(n // POOL_SHARE, 1), MOST_POOL)
        branches = min(max(pool // POOL_PER_BRANCH, 1), MOST_BRANCHES)
        rounds = (n - pool) // branches
        return cls(pool=n - rounds * branches, branches=branches, rounds=rounds, **settings)

    @property
    def max_context(self) -> int:
        return 1 if self.rounds else 0

    @property
    def needs(self) -> frozenset[str]:
        wanted = {"reflector"} if self.reflect else set()
        wanted |= {"refiner"} if self.refine else set()
        return frozenset(wanted) if self.rounds else frozenset()

    @property
    def most_pictures(self) -> int:
        return self.pool + self.branches * self.rounds

    def choose(self, run: Run) -> Candidate | None:
        """The best correction, or the best of all where the pool takes part or is all there is."""
        corrections = [] if self.pool_in_choice else [c for c in run.candidates if c.request.context]
        return run.best(corrections or None)

    def next(self, run: Run) -> Action:
        if self.early_stop and (stop := accepted_stop(run)):
            return stop
        if not run.candidates:
            steps = self.pool_steps or run.request.steps
            pool = tuple(Planned(noise_request(run, i, steps=steps), branch=i) for i in range(self.pool))
            return Draw(0, pool, until_accepted=self.early_stop)
        round = run.rounds
        if round > self.rounds:
            what = {0: "the pool is drawn", 1: "the round is drawn"}
            return Stop("done", what.get(self.rounds, f"all {self.rounds} rounds are drawn"))
        if self.judge_again and round > 1:
            once = tuple(c.id for c in run.in_round(round - 1) if len(run.verdicts(c.id)) < 2)
            if once:
                return Judge(once)
        parents = self.parents_of(run, round)
        known = list(dict.fromkeys(p for p in parents if p is not None))
        if self.reflect and (wanted := tuple(p for p in known if self._reflection(run, p, round) is None)):
            return Reflect(round, wanted)
        if self.refine and (wanted := tuple(p for p in known if run.refinement(p, round) is None)):
            return Refine(round, wanted)
        planned = tuple(self._child(run, round, branch, parent) for branch, parent in enumerate(parents))
        return Draw(round, planned, until_accepted=self.early_stop)

    def parents_of(self, run: Run, round: int) -> list[int | None]:
        """The parent of each branch in `round` (from 1 on); None: start the branch from noise."""
        if self.parents == "chain":
            # A graph may draw fresh rounds in between, whose pictures are no branch of these.
            fresh = [c for c in run.candidates if c.round == 0 or c.branch >= self.branches]
            firsts = self._spread(run.ranked(above(run, fresh, self.max_depth), latest=True))
            return [self._incumbent(run, branch, first, round) for branch, first in enumerate(firsts)]
        among = run.candidates if self.parents == "best" else run.in_round(round - 1)
        # The pool is never too deep.
        among = above(run, among, self.max_depth) or above(run, run.candidates, self.max_depth)
        return list(self._spread(run.ranked(among, latest=True)))

    def _spread(self, ranked: list[Candidate]) -> list[int]:
        best = [c.id for c in ranked[: self.branches]]
        if len(best) < self.branches and self.repeat_parents:
            best = [best[i % len(best)] for i in range(self.branches)]
        return best

    def _incumbent(self, run: Run, branch: int, first: int, round: int) -> int | None:
        """Who leads a branch before `round`: told anew from its children each time, not remembered."""
        leader: int | None = first
        failures = 0
        for child in run.candidates:
            if child.branch != branch or not 1 <= child.round < round:
                continue
            better = leader is None or rank(run.latest_verdict(child.id)) >= rank(run.latest_verdict(leader))
            if better and above(run, [child], self.max_depth):
                leader, failures = child.id, 0
            else:
                failures += 1
            if self.patience is not None and failures >= self.patience:
                leader, failures = None, 0
        return leader

    def _reflection(self, run: Run, parent: int, round: int) -> str | None:
        return run.reflection(parent, round if self.reflect_again else None)

    def _child(self, run: Run, round: int, branch: int, parent: int | None) -> Planned:
        guidance = run.request.guidance if self.corrector_guidance is None else float(self.corrector_guidance)
        request = replace(run.request, seed=derive_seed(run.seed, "correction", round, branch),
                          steps=self.corrector_steps or run.request.steps, guidance=guidance)
        if parent is None:
            return Planned(request, branch)
        if self.refine:
            # The prompt that goes on is the parent's own; official lists forget to move it (item 3).
            prompt = run.next_prompt(parent, round)
            request = replace(request, prompt=prompt,
                              original_prompt=run.prompt if prompt != run.prompt else None)
        feedback = self._reflection(run, parent, round).strip() if self.reflect else ""
        if self.reflect and not feedback and self.silent == "redraw":
            # Its picture comes from noise, but a rewritten prompt comes from the parent.
            return Planned(request, branch, None if request.original_prompt is None else parent)
        return Planned(replace(request, context=(Pair(feedback, parent),)), branch, parent)
