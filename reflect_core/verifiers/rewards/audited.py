"""Select by one judge, audit by another, so that over-optimising the first is seen.

The more pictures a search draws, the more its best one is the best by the judge's mistakes. A second judge that has no
say shows it: its score of the chosen picture stops rising, or falls, while the judge's still rises. The report sets the
two side by side (`report/audit.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from ...types import Picture, UserError, Verdict, Verifier
from .together import Together, brief

KEY = "audit"
"""Where in a verdict's details the audit is."""


class Audited(Together):
    """`verifier`'s verdicts, each with what `auditor` says of the same picture in `details["audit"]`.

    The audit has a score, whether it accepts, whether it could judge, a reason, its checks and its own details; nothing
    else in a verdict depends on it. The auditor sees the pictures of a call together, as the verifier does. An error of
    the auditor is an error: a run without its audit would not be told from one that was not over-optimised.
    """

    def __init__(self, verifier: Verifier, auditor: Verifier) -> None:
        if isinstance(verifier, Audited):
            raise UserError("the judge is audited already; expected one audit; try an ensemble as the auditor")
        super().__init__({"judge": verifier, KEY: auditor})

    def judge(self, prompt: str, pictures: Sequence[Picture]) -> list[Verdict]:
        verdicts, audits = (self.ask(name, prompt, pictures) for name in self.members)
        return [replace(verdict, details={**verdict.details, KEY: brief(audit)})
                for verdict, audit in zip(verdicts, audits)]
