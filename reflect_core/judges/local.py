"""The judge 'local': a language model in this process, through transformers."""

from __future__ import annotations

from ..types import UserError
from ..vlm.chat import ALL_THOUGHT, Asker, Chat
from ..vlm.local import Local, LocalOptions
from ..vlm.probe import answers_yes_or_no
from .language import LanguageJudge


class LocalJudge(LanguageJudge):
    name = "local"
    kind = LocalOptions

    def _open(self) -> Chat:
        return Local.from_folder(self.own)

    def _connect(self, judges: bool) -> list[str]:
        told = self.chat.check()  # which brings it to where it computes
        comes = " while it answers" if self.chat.places.manager is not None else ""
        warnings = self._answers() if judges and self.ask.ask in ("checks", "match") else []
        return [f"the judge is {self.chat.name}, on {self.chat.device}{comes}", *told, *warnings]

    def _answers(self) -> list[str]:
        """What there is to say against asking it yes or no. Nobody is kept from it: weights of one's own may be at
        home with other pictures than plain ones."""
        asker = Asker(self.chat)
        try:
            return list(answers_yes_or_no(self.chat, self.chat.name, asker.ask_ahead).warnings)
        except UserError as error:
            if not asker.asked:  # it is no answer that is wrong
                raise
            why = str(error).partition("; expected")[0]
            other = "its variant that does not think aloud, such as -Instruct" if ALL_THOUGHT in why else \
                "another model, or option ask=rubric"
            return [f"{why}: its verdicts are worth as much; try {other}"]
        finally:
            # What that cost is the cost of whoever is asked in the run.
            self.actors().verifier.take_over(asker)
