"""A run: the tree of candidates with their verdicts, reflections and refined prompts, and the ledger.

Pure data. A run is built by folding entries (`entries.py`) in order, live or from a record alike,
and everything that a policy may look at is in it. Verdicts, reflections and prompts are kept by the
candidate they belong to. The official search keeps parallel lists that get out of step: results in
completion order, shortened by failed calls, not re-sorted with their parents (spec 7, items 1-3).
Here there is no list to get out of step, so those three have no switch.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from math import inf

from ..types import Cost, Picture, Request, UserError, Verdict
from .entries import Drew, Entry, Judged, Plan, Planned, Refined, Reflected, Resumed, Stopped
from .ledger import Ledger
from .pictures import MemoryPictures, PictureStore


@dataclass(frozen=True)
class Candidate:
    """One picture of a run. The picture itself is `run.picture(id)`."""

    id: int
    """0, 1, ... in the order of drawing."""
    round: int
    """0 is the first draw; a correction belongs to a later one."""
    branch: int
    parent: int | None
    """The candidate it was made from, by correcting its picture or by rewriting its prompt."""
    request: Request
    cost: Cost
    """The generator's own account of this picture."""
    sha256: str
    verdict: Verdict | None = None
    """The first one. A policy that judges again finds the newest by `run.latest_verdict`."""
    notes: tuple[str, ...] = ()
    """What the generator did otherwise than asked, or who reflected on it or rewrote its prompt."""

    @property
    def score(self) -> float:
        """0 while unjudged."""
        return self.verdict.score if self.verdict else 0.0

    @property
    def accepted(self) -> bool:
        return self.verdict is not None and self.verdict.accepted

    @property
    def judged(self) -> bool:
        """Whether a judge has looked at it and could say."""
        return self.verdict is not None and self.verdict.judged


def rank(verdict: Verdict) -> tuple[bool, bool, float]:
    """What better means: accepted before not accepted, judged before not judged, then the higher score."""
    return verdict.accepted, verdict.judged, verdict.score


class Run:
    """See the module. `request` carries the user's prompt, the run's seed, size, steps and guidance;
    `chunk` is how many requests one generator call gets. UserError if they make no sense."""

    def __init__(self, request: Request, chunk: int = 4, pictures: PictureStore | None = None) -> None:
        _check(request, chunk)
        # 2 and 2.0 are the same guidance, and must be the same request before and after a resume.
        self.request = replace(request, guidance=float(request.guidance))
        self.chunk = chunk
        self.pictures = pictures if pictures is not None else MemoryPictures()
        self.candidates: list[Candidate] = []
        self.ledger = Ledger()
        self.plan: Plan | None = None
        self.stopped: Stopped | None = None
        self.resumed: list[tuple[int, Resumed]] = []
        """What changed when the run was resumed, each with the id of the first candidate drawn after it."""
        self.entries: list[Entry] = []
        """All that was taken in, in order: what a record holds after its header."""
        self.chunks: list[tuple[Candidate, ...]] = []
        """Candidates as they were drawn: one tuple for each call of the generator, without verdicts."""
        self._planned: list[tuple[Planned, ...]] = []
        self._unjudged: tuple[int, ...] = ()
        self._verdicts: dict[int, list[Verdict]] = {}
        self._reflections: dict[tuple[int, int], str] = {}
        self._refinements: dict[tuple[int, int], str] = {}

    # What a policy looks at.

    @property
    def prompt(self) -> str:
        return self.request.prompt

    @property
    def seed(self) -> int:
        return self.request.seed

    @property
    def rounds(self) -> int:
        """Rounds begun: 0 before anything is drawn."""
        return self.candidates[-1].round + 1 if self.candidates else 0

    def candidate(self, id: int) -> Candidate:
        if not 0 <= id < len(self.candidates):
            raise UserError(f"the run has no candidate {id}; expected 0 to {len(self.candidates) - 1}")
        return self.candidates[id]

    def picture(self, id: int) -> Picture:
        """UserError if a record's file is missing or was changed."""
        return self.pictures.get(id, self.candidate(id).sha256)

    def with_pictures(self, request: Request) -> Request:
        """The request with the pictures that its context names by candidate: what a generator gets."""
        context = tuple(p if p.candidate is None else replace(p, picture=self.picture(p.candidate))
                        for p in request.context)
        return replace(request, context=context)

    def in_round(self, round: int) -> list[Candidate]:
        return [c for c in self.candidates if c.round == round]

    def children(self, id: int) -> list[Candidate]:
        return [c for c in self.candidates if c.parent == id]

    def lineage(self, id: int) -> list[Candidate]:
        """From the first ancestor to the candidate itself."""
        line = [self.candidate(id)]
        while line[0].parent is not None:
            line.insert(0, self.candidate(line[0].parent))
        return line

    def verdicts(self, id: int) -> tuple[Verdict, ...]:
        """All verdicts on a candidate, oldest first."""
        return tuple(self._verdicts.get(id, ()))

    def latest_verdict(self, id: int) -> Verdict | None:
        verdicts = self._verdicts.get(id)
        return verdicts[-1] if verdicts else None

    def reflection(self, id: int, round: int | None = None) -> str | None:
        """What was said about a candidate for `round`, or the newest word on it; None if nothing."""
        return _look_up(self._reflections, id, round)

    def refinement(self, id: int, round: int | None = None) -> str | None:
        """The prompt rewritten from a candidate for `round`, or the newest; None if there is none."""
        return _look_up(self._refinements, id, round)

    def next_prompt(self, id: int, round: int) -> str:
        """The prompt that goes on from a candidate into `round`: the one rewritten for it, or the
        candidate's own if there is none or the refiner answered nothing."""
        return (self.refinement(id, round) or "").strip() or self.candidate(id).request.prompt

    @property
    def not_judged(self) -> list[Candidate]:
        """Those that the judge was asked about and gave no answer on."""
        return [c for c in self.candidates if c.verdict is not None and not c.verdict.judged]

    @property
    def accepted(self) -> Candidate | None:
        """The first accepted candidate."""
        return next((c for c in self.candidates if c.accepted), None)

    def best(self, among: Iterable[Candidate] | None = None) -> Candidate | None:
        """The best judged candidate by its first verdict, or None. Accepted before not accepted,
        then the higher score, then the earlier candidate: never an accident of order."""
        ordered = self.ranked(among)
        return ordered[0] if ordered else None

    def ranked(self, among: Iterable[Candidate] | None = None, latest: bool = False) -> list[Candidate]:
        """The judged candidates, best first, by their first (or latest) verdict."""
        keyed = []
        for candidate in self.candidates if among is None else among:
            verdict = self.latest_verdict(candidate.id) if latest else candidate.verdict
            if verdict is not None:
                accepted, judged, score = rank(verdict)
                keyed.append(((not accepted, not judged, -score, candidate.id), candidate))
        return [candidate for _, candidate in sorted(keyed, key=lambda item: item[0])]

    # What the stepper has left to do of the present draw.

    @property
    def unjudged(self) -> tuple[int, ...]:
        """The candidates that were drawn and wait for their verdicts: those of one chunk, or of several
        where the plan does not look for an accepted one between them."""
        return self._unjudged

    @property
    def next_chunk(self) -> tuple[Planned, ...]:
        """What the generator draws next in one call; empty when the plan is done."""
        return self._planned[0] if self._planned else ()

    # The fold.

    def fork(self, entries: Iterable[Entry] | None = None, pictures: PictureStore | None = None) -> Run:
        """A run of its own that is as this one is now, its pictures shared, and not stopped.

        `entries` and `pictures`: others in place of this one's.
        """
        twin = Run(self.request, self.chunk, self.pictures.fork() if pictures is None else pictures)
        for entry in self.entries if entries is None else entries:
            if not isinstance(entry, Stopped):
                twin.apply(entry)
        if self.stopped is not None:
            twin._planned = []  # what was not drawn when this one stopped is not to be drawn by that one
        return twin

    def apply(self, entry: Entry) -> None:
        """Take one entry in. UserError if it cannot follow what is there (a damaged record)."""
        if self.stopped is not None:
            raise UserError("an entry after the stop")
        self._APPLY[type(entry)](self, entry)
        self.entries.append(entry)
        self.ledger.overhead_seconds += entry.overhead

    def _apply_plan(self, entry: Plan) -> None:
        if self._planned or self._unjudged:
            raise UserError("a plan before the one before it was done")
        if sum(entry.chunks) != len(entry.planned) or any(size < 1 for size in entry.chunks):
            raise UserError(f"chunks {entry.chunks} do not add up to {len(entry.planned)} requests")
        self._known(p.candidate for planned in entry.planned for p in planned.request.context)
        self._known(planned.parent for planned in entry.planned)
        self.plan = entry
        starts = [sum(entry.chunks[:i]) for i in range(len(entry.chunks))]
        self._planned = [entry.planned[a:a + size] for a, size in zip(starts, entry.chunks)]

    def _apply_drew(self, entry: Drew) -> None:
        if not self._planned or (self._unjudged and self.plan.until_accepted):
            raise UserError("pictures were drawn that no plan asked for")
        chunk, count = self._planned[0], len(self.candidates)
        if entry.first != count or not len(chunk) == len(entry.sha256) == len(entry.costs):
            raise UserError(f"drew {len(entry.sha256)} pictures from candidate {entry.first} on; "
                            f"expected {len(chunk)} from {count} on")
        if entry.notes and len(entry.notes) != len(chunk):
            raise UserError(f"notes on {len(entry.notes)} pictures; expected as many as were drawn, {len(chunk)}")
        for planned, sha256, cost, notes in zip(chunk, entry.sha256, entry.costs,
                                                entry.notes or ((),) * len(chunk)):
            self.candidates.append(Candidate(len(self.candidates), self.plan.round, planned.branch,
                                             planned.parent, planned.request, cost, sha256, notes=notes))
            # The ledger's seconds are measured around the call, not what the generator says.
            self.ledger.add("generator", replace(cost, seconds=0.0), 1)
        self.ledger.add("generator", Cost(seconds=entry.seconds), 0)
        self._planned.pop(0)
        self.chunks.append(tuple(self.candidates[count:]))
        self._unjudged += tuple(range(count, count + len(chunk)))

    def _apply_judged(self, entry: Judged) -> None:
        self._known(entry.candidates, len(entry.verdicts))
        if not entry.candidates:
            raise UserError("a verdict on nothing")
        if self._unjudged and entry.candidates != self._unjudged:
            raise UserError(f"verdicts on {entry.candidates}; expected {self._unjudged} first")
        for id, verdict in zip(entry.candidates, entry.verdicts):
            self._verdicts.setdefault(id, []).append(verdict)
            if self.candidates[id].verdict is None:
                self.candidates[id] = replace(self.candidates[id], verdict=verdict)
        self.ledger.add("verifier", entry.cost, len(entry.candidates))
        self._unjudged = ()
        if self.plan.until_accepted and any(v.accepted for v in entry.verdicts):
            self._planned = []

    def _apply_reflected(self, entry: Reflected) -> None:
        self._known(entry.candidates, len(entry.reflections))
        self._note(entry)
        self._reflections.update({(id, entry.round): t for id, t in zip(entry.candidates, entry.reflections)})
        self.ledger.add("reflector", entry.cost, len(entry.candidates))

    def _apply_refined(self, entry: Refined) -> None:
        self._known(entry.candidates, len(entry.prompts))
        self._note(entry)
        self._refinements.update({(id, entry.round): t for id, t in zip(entry.candidates, entry.prompts)})
        self.ledger.add("refiner", entry.cost, len(entry.candidates))

    def _note(self, entry: Reflected | Refined) -> None:
        if entry.notes:
            self._known(entry.candidates, len(entry.notes))
        for id, notes in zip(entry.candidates, entry.notes):
            candidate = self.candidates[id]
            self.candidates[id] = replace(candidate, notes=tuple(dict.fromkeys((*candidate.notes, *notes))))

    def _apply_stopped(self, entry: Stopped) -> None:
        self.stopped = entry
        self._planned = []

    def _apply_resumed(self, entry: Resumed) -> None:
        self.resumed.append((len(self.candidates), entry))

    _APPLY = {Plan: _apply_plan, Drew: _apply_drew, Judged: _apply_judged, Reflected: _apply_reflected,
              Refined: _apply_refined, Stopped: _apply_stopped, Resumed: _apply_resumed}

    def _known(self, ids: Iterable[int | None], expected: int | None = None) -> None:
        ids = tuple(ids)
        if expected is not None and len(ids) != expected:
            raise UserError(f"{expected} answers for {len(ids)} candidates")
        for id in ids:
            if id is not None and not 0 <= id < len(self.candidates):
                raise UserError(f"there is no candidate {id} yet")


def _look_up(texts: dict[tuple[int, int], str], id: int, round: int | None) -> str | None:
    if round is not None:
        return texts.get((id, round))
    rounds = [r for candidate, r in texts if candidate == id]
    return texts[id, max(rounds)] if rounds else None


def _check(request: Request, chunk: int) -> None:
    if not isinstance(request.prompt, str) or not request.prompt.strip():
        raise UserError(f"the prompt is empty; got {request.prompt!r}; expected some text")
    try:
        request.prompt.encode("utf-8")
    except UnicodeEncodeError as error:
        raise UserError(f"the prompt {request.prompt!r} has half a character at place {error.start}; expected proper "
                        "Unicode text; try to type it again") from error
    for name in ("width", "height", "steps"):
        if not _is_whole(getattr(request, name), 1):
            raise UserError(f"{name} must be a whole number from 1 on; got {getattr(request, name)!r}")
    if not _is_whole(request.seed, 0):
        raise UserError(f"the seed must be a whole number from 0 on; got {request.seed!r}")
    guidance = request.guidance
    if isinstance(guidance, bool) or not isinstance(guidance, (int, float)) or not 0 <= guidance < inf:
        raise UserError(f"the guidance must be a number from 0 on; got {guidance!r}; try the model's own")
    if request.context or request.original_prompt is not None:
        raise UserError("the request that starts a run must be a plain one; got one with a context or a "
                        "rewritten prompt; expected those to come from the policy")
    if not _is_whole(chunk, 1):
        raise UserError(f"chunk must be a whole number from 1 on; got {chunk!r}")


def _is_whole(value: object, least: int) -> bool:
    """A bool is an int in Python, but `True` pixels is a mistake."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= least
