"""What a stepper tells while it goes on, for progress bars. The run itself has everything else."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from ..types import Picture


@dataclass(frozen=True)
class Event:
    """Something happened."""

    kind: str
    """'planned', 'step', 'drawn', 'judged', 'reflected', 'refined' or 'stopped'."""
    round: int
    candidate: int | None = None
    """For 'drawn', 'judged', 'reflected' and 'refined': one event for each candidate."""
    score: float | None = None
    accepted: bool | None = None
    step: int = 0
    """For 'step': denoising step `step` of `steps` of the chunk that is being drawn."""
    steps: int = 0
    preview: Callable[[], list[Picture]] | None = field(default=None, compare=False, repr=False)
    """For 'step', see `types.Step`."""
    pictures: int = 0
    """Pictures drawn so far, of at most `most_pictures`."""
    most_pictures: int = 0
    text: str = ""
    """The judge's reason, the reflection, the refined prompt, or why the run stopped."""


EventCallback = Callable[[Event], None]
