"""The fixed evaluation prompts of the shapes world, which training never draws (`held_out.py`).

The prompts themselves lie in `evaluation.json`, so that scores stay comparable when the sampling changes.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from .held_out import is_held_out as is_held_out
from .prompt import Requirement
from .sample import TASKS, sample_prompt, sample_requirement, sample_sentence
from .scene import COLOURS, SHAPES, UNSEEN_PAIRS

UNSEEN_TASKS = ("colors", "color_attr", "compose")
"""Tasks that name colours, in which pairs that training never shows are asked for."""
PROMPTS_A_TASK, UNSEEN_PROMPTS = 60, 60
COMPOSE_EVALUATED = ((3, 3), (2, 4), (1, 1, 4), (1, 2, 3), (2, 2, 2), (1, 1, 1, 3), (1, 1, 2, 2))
"""Objects per phrase in the evaluated `compose` prompts: six, in every way that they go into two, three or four
phrases. The bundled base draws about 0.07 of them right at once, as FLUX does of the paper's hard prompts."""
SEED = 20503
DATA = Path(__file__).with_name("evaluation.json")
_ALL_PAIRS = tuple((colour, shape) for colour in COLOURS for shape in SHAPES)


@dataclass(frozen=True)
class EvaluationPrompt:
    """One prompt of the fixed set. `unseen`: it names a colour-shape pair that training never shows."""

    task: str
    prompt: str
    unseen: bool = False


def names_unseen(requirement: Requirement) -> bool:
    """Whether the requirement names a colour-shape pair that training never shows."""
    return any((group.colour, group.shape) in UNSEEN_PAIRS for group in requirement.groups)


def evaluation_prompts(task: str | None = None, unseen: bool | None = None) -> tuple[EvaluationPrompt, ...]:
    """The fixed set, or its part for one task, with or without the unseen pairs.

    Raises ValueError for a task that does not exist.
    """
    if task is not None and task not in TASKS:
        raise ValueError(f"got task {task!r}; expected one of {', '.join(TASKS)}")
    prompts = (EvaluationPrompt(**entry) for entry in json.loads(DATA.read_text("utf-8"))["prompts"])
    return tuple(p for p in prompts if task in (None, p.task) and unseen in (None, p.unseen))


def make_evaluation_prompts(seed: int = SEED) -> tuple[EvaluationPrompt, ...]:
    """Draw the set anew: sixty sentences for each task, then sixty with unseen pairs, all different."""
    rng = np.random.default_rng(seed)
    prompts: dict[str, EvaluationPrompt] = {}
    for task in TASKS:
        goal = len(prompts) + PROMPTS_A_TASK
        while len(prompts) < goal:
            text, _ = sample_prompt(task, rng, held_out=True, compose=COMPOSE_EVALUATED)
            prompts.setdefault(text, EvaluationPrompt(task, text))
    for task in UNSEEN_TASKS:
        goal = len(prompts) + UNSEEN_PROMPTS // len(UNSEEN_TASKS)
        while len(prompts) < goal:
            requirement = sample_requirement(task, rng, _ALL_PAIRS, COMPOSE_EVALUATED)
            if names_unseen(requirement):
                text = sample_sentence(requirement, rng)
                prompts.setdefault(text, EvaluationPrompt(task, text, unseen=True))
    return tuple(prompts.values())


def as_json(prompts: tuple[EvaluationPrompt, ...], seed: int = SEED) -> str:
    """The text of `evaluation.json`, one prompt a line, for prompts that were drawn with `seed`."""
    lines = ",\n".join("  " + json.dumps(asdict(prompt)) for prompt in prompts)
    return f'{{"seed": {seed}, "prompts": [\n{lines}\n]}}\n'
