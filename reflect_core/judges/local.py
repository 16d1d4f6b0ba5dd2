"""The judge 'local': a language model in this process, through transformers."""

from __future__ import annotations

from ..vlm.chat import Chat
from ..vlm.local import Local, LocalOptions
from .language import LanguageJudge


class LocalJudge(LanguageJudge):
    name = "local"
    kind = LocalOptions

    def _open(self) -> Chat:
        return Local.from_folder(self.own)

    def _connect(self, judges: bool) -> list[str]:
        told = self.chat.check()  # which brings it to where it computes
        return [f"the judge is {self.chat.name}, on {self.chat.model.device}", *told]
