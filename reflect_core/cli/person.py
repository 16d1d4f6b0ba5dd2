"""The judge 'me': the person at the terminal, for any model and any prompt.

It looks at each picture, says how good it is and, of the ones that are to be corrected, what should
change. What was said is on the record, so a run that is interrupted goes on without asking again.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TextIO

from ..types import Picture, UserError, Verdict

LOOK = "look.png"
"""In the run's folder: the picture that is asked about. Image viewers show it anew when it changes."""
RIGHT, MOST = "y", 9


class Person:
    """Verifier and reflector over two streams of text lines.

    Args: folder, where the pictures to look at go; answers are read from `answers` and questions
    written to `questions` (default: the terminal's stdin and stderr).
    """

    def __init__(self, folder: Path, answers: TextIO | None = None, questions: TextIO | None = None) -> None:
        self.folder = folder
        self.answers, self.questions = answers or sys.stdin, questions or sys.stderr

    def judge(self, prompt: str, pictures: Sequence[Picture]) -> list[Verdict]:
        """A verdict for each: `y` accepts with score 1, a digit d gives d / 10. UserError at the end of input."""
        verdicts = []
        for number, picture in enumerate(pictures, start=1):
            self._show(picture)
            verdicts.append(self._score(f"picture {number} of {len(pictures)}: is it '{prompt}'? "
                                        f"{RIGHT} if it is right, else 0 (nothing) to {MOST} (nearly): "))
        return verdicts

    def reflect(self, prompt: str, pictures: Sequence[Picture], verdicts: Sequence[Verdict]) -> list[str]:
        """What should change in each; an empty line means that there is nothing to say."""
        words = []
        for picture, verdict in zip(pictures, verdicts, strict=True):
            self._show(picture)
            words.append(self._ask(f"this one got {verdict.score:.1f}: what should change? "))
        return words

    def _show(self, picture: Picture) -> None:
        path = self.folder / LOOK
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            picture.save(path)
        except OSError as error:
            raise UserError(f"the picture to look at cannot be written to {path} ({error}); try another --out"
                            ) from error
        print(f"\nlook at {path}", file=self.questions)

    def _score(self, question: str) -> Verdict:
        while True:
            answer = self._ask(question).lower()
            if answer in (RIGHT, "yes"):
                return Verdict(1.0, True, reason="right")
            if answer.isascii() and answer.isdigit() and int(answer) <= MOST:
                return Verdict(int(answer) / 10, False, reason=f"{answer} of 10")
            print(f"got {answer!r}; expected {RIGHT} or a digit from 0 to {MOST}", file=self.questions)

    def _ask(self, question: str) -> str:
        print(question, end="", file=self.questions, flush=True)
        line = self.answers.readline()
        if not line:
            raise UserError("the judge 'me' got no answer: the input has ended; try to run it in a terminal")
        return line.strip()
