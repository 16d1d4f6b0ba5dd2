"""What the rows of a batch attend to, put together from parts that are each made once and kept (Reflect-DiT, 8).

A prompt's keys and values serve all its steps and tries, a picture's and a feedback's adapted tokens all later rounds.
Each is made alone, as in `encoding.py`: a batch rounds differently, and a run that is resumed with nothing kept must
end in the same bits.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ...types import Request
from ..kept import Kept
from .cached import keys_values
from .context import ContextEncoder
from .encoding import Pictures, Texts, instruction
from .options import ReflectOptions


@dataclass(frozen=True)
class Encoded:
    """What the encoders made of a batch. Rows are named by the keys of `states`, those without a prompt first."""

    states: dict[Hashable, Tensor]
    """Of a text (L, D) or a picture (T, V), on the CPU."""
    prompts: list[Hashable]
    contexts: list[tuple[tuple[Hashable, Hashable], ...] | None] | None
    """For each row its pairs of picture and feedback; None: its context is dropped. None altogether: plain SANA."""
    calls: list[int]
    """Of the text encoder, for each request."""
    notes: list[list[str]]
    """What each request's record should say."""


class Inputs:
    """Of one model. `encode` before the transformer takes the encoders' room, then `rows` where it lies. What is kept
    lies on the CPU: whoever manages the GPU's memory knows nothing of it."""

    def __init__(self, transformer: nn.Module, context: ContextEncoder | None, texts: Texts, pictures: Pictures | None,
                 options: ReflectOptions) -> None:
        self.transformer, self.context, self.texts, self.pictures = transformer, context, texts, pictures
        self.options, self.instruction = options, instruction(options.prompt_instruction)
        self.prompts = Kept(options.prompt_cache)
        self.adapted = Kept(options.picture_cache + options.text_cache)

    def encode(self, batches: Sequence[Sequence[Request]]) -> list[Encoded]:
        """By the encoders, each text and picture once: all texts of all batches, then all pictures, so that whoever
        moves encoders to a device moves each of them once. A batch with guidance has a row without prompt and feedback
        for each request."""
        read = [self._read(batch) for batch in batches]
        for one, batch in zip(read, batches):
            self._look(one, batch)
        return read

    def _read(self, batch: Sequence[Request]) -> Encoded:
        """A batch with its texts; its contexts are the feedback's keys alone."""
        options, states = self.options, {}
        calls, notes = [0] * len(batch), [[] for _ in batch]

        def text(number: int, words: str, before: str = "") -> Hashable:
            states[before, words], new = self.texts.states(words, before)
            calls[number] += int(new)
            return before, words

        def feedback(number: int, words: str) -> Hashable:
            heard = self.texts.whole_words(words, options.feedback_prefix)
            if heard != words:
                notes[number].append(f"the text encoder takes {options.max_sequence_length} tokens; of the feedback "
                                     f"it did not see {words[len(heard):].strip()!r}")
            return text(number, heard, options.feedback_prefix)

        prompts = [text(number, request.prompt, self.instruction) for number, request in enumerate(batch)]
        first = [text(0, "")] * len(batch) if batch[0].guidance > 1 else []
        contexts = None
        if batch[0].context or self.context is not None and options.no_context == "dropped":
            contexts = [None] * len(first) + [tuple(feedback(number, one.feedback) for one in request.context) or None
                                              for number, request in enumerate(batch)]
        return Encoded(states, first + prompts, contexts, calls, notes)

    def _look(self, read: Encoded, batch: Sequence[Request]) -> None:
        """Put the pictures beside the feedback."""
        if read.contexts is None:
            return
        for row, request in enumerate(batch, start=len(read.prompts) - len(batch)):
            pairs = []
            for words, one in zip(read.contexts[row] or (), request.context):
                key, read.states[key] = self.pictures.found(one.picture)
                pairs.append((key, words))
            read.contexts[row] = tuple(pairs) or None

    def rows(self, encoded: Encoded, device: torch.device | str, see: str = "both"
             ) -> tuple[list[Tensor], list[Tensor | None] | None]:
        """For each row its prompt's keys and values and its context's tokens (M, C), as `cached.prepare` takes them.
        `see`: 'words' or 'pictures': zero vectors stand in the place of the other. Rows that are alike are one tensor.
        """
        def given(key: Hashable) -> Tensor:
            return encoded.states[key].to(device, self.transformer.dtype)

        def tokens(row: tuple[tuple[Hashable, Hashable], ...]) -> Tensor:
            parts = []
            for picture, words in row:
                for key, adapt, seen in ((picture, self.context.adapted_picture, see != "words"),
                                         (words, self.context.adapted_text, see != "pictures")):
                    made = self.adapted.get(key, lambda: adapt(given(key)).cpu())[0].to(device)  # noqa: B023
                    parts.append(made if seen else torch.zeros_like(made))
            return torch.cat(parts)

        def prompt(key: Hashable) -> Tensor:
            return self.prompts.get(key, lambda: keys_values(self.transformer, given(key)).cpu())[0].to(device)

        prompts = {key: prompt(key) for key in dict.fromkeys(encoded.prompts)}
        prompts = [prompts[key] for key in encoded.prompts]
        if encoded.contexts is None:
            return prompts, None
        made = {row: None if row is None else tokens(row) for row in dict.fromkeys(encoded.contexts)}
        return prompts, [made[row] for row in encoded.contexts]
