"""The search: policies, the stepper that drives them, budgets, runs and their records.

    stepper = start(Request("a red circle", seed=7), BestOfN(8), generator, verifier)
    stepper.run()
    stepper.best
"""

from .actors import ActorError
from .best_of_n import BestOfN
from .budget import Budget
from .events import Event
from .header import Header
from .ledger import Ledger
from .noise_prompt import NoisePromptScaling
from .policy import Action, Draw, Judge, Policy, Refine, Reflect, Stop, derive_seed
from .record import Record, load
from .reflect_dit import ReflectDiTSearch
from .reflection_flow import ReflectionFlow
from .registry import POLICIES, policy_from_json
from .replay import ReplayReport, replay
from .run import Candidate, Run
from .start import resume, start
from .stepper import Stepper

__all__ = [
    "Action", "ActorError", "BestOfN", "Budget", "Candidate", "Draw", "Event", "Header", "Judge", "Ledger",
    "NoisePromptScaling", "POLICIES", "Policy", "Record", "Refine", "Reflect",
    "ReflectDiTSearch", "ReflectionFlow", "ReplayReport", "Run", "Stepper", "Stop", "derive_seed", "load",
    "policy_from_json", "replay", "resume", "start",
]
