"""A language model that has read something, and reads on: keys and values of what questions share are made once.

Questions about a picture come as [what the model is told] [the picture] [the question]. The first part is
the same for all pictures, the first two for all questions about one, so each is computed once and only the
question's own tokens again. This is exact up to rounding: every token sees what it would see alone.
`check` measures that for a model, as some let tokens look ahead (Gemma 3 within a picture): of theirs, a picture is
encoded once for all questions about it, and the rest is read for each.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from math import inf
from typing import Any

import torch
from torch import Tensor, nn

from ..compat import positions
from ..generators.kept import Kept
from .eyes import Inputs

FLOATS = (torch.float32, torch.bfloat16, torch.float16)
SYSTEMS = 4
"""Beginnings that are kept."""


class Read:
    """What a model has read of a sequence, so far."""

    def __init__(self, cache: Any, length: int = 0) -> None:
        self.cache, self.length = cache, length

    def copy(self) -> Read:
        return Read(copy.deepcopy(self.cache), self.length)


class Reader:
    """`model`: of transformers, for image and text to text, in evaluation mode. `device`: where it is now."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        # Not that of weights which lie in fewer bits than they compute in.
        self.dtype = next(p.dtype for p in model.parameters() if p.dtype in FLOATS)
        self.shares = True
        """Whether what questions share is read once. Off where `check` found that to change the answers."""
        self._takes = inspect.signature(model.forward).parameters
        self._beginnings = Kept(SYSTEMS)

    def logits(self, questions: list[Inputs], device: torch.device) -> Iterator[tuple[Tensor, Callable[[], Read]]]:
        """For each question, all about one picture, the logits (V,) behind its last token, and what makes of them a
        `Read` to go on from."""
        if not self.shares:
            with _looking_once(self.model):
                for question in questions:
                    read = self._new()
                    yield self._forward(read, question, question.ids.shape[1], device), lambda read=read: read
            return
        first = questions[0]
        begun = self._begun(first, device)
        if len(questions) == 1:
            yield self._forward(begun, first, first.ids.shape[1], device), lambda: begun
            return
        self._forward(begun, first, _common(questions), device)
        for question in questions:
            read = begun.copy()
            yield self._forward(read, question, question.ids.shape[1], device), lambda read=read: read

    def next(self, read: Read, token: int, position: int, device: torch.device) -> Tensor:
        """Logits (V,) behind one more token at `position`."""
        dimensions = 3 if hasattr(getattr(self.model, "model", None), "get_rope_index") else 1
        place = torch.full((dimensions, 1, 1), position, device=device)
        return self._run(read, torch.tensor([[token]], device=device), place if dimensions == 3 else place[0], {})

    def check(self, question: Inputs, device: torch.device) -> float:
        """The largest difference that reading in parts makes to the logits of a question, relative to their spread;
        infinite where the model cannot do it at all. Where it is more than rounding, it is not done any more."""
        whole = self._forward(self._new(), question, question.ids.shape[1], device)
        read = self._new()
        try:
            for end in (question.first, question.last + 1, question.ids.shape[1] - 1, question.ids.shape[1]):
                if end > read.length:
                    parts = self._forward(read, question, end, device)
            difference = float((whole - parts).abs().max() / whole.std())
        except (IndexError, RuntimeError, ValueError, TypeError):
            # Gemma 3 of transformers 4.57 looks its picture's tokens up by their place in the whole.
            difference = inf
        self.shares = difference < (1e-3 if self.dtype == torch.float32 else 0.3)
        return difference

    def forget(self) -> None:
        """Let go of what is kept, which lies where the model is."""
        self._beginnings.values.clear()

    def _begun(self, question: Inputs, device: torch.device) -> Read:
        """A copy of what there is before the picture, read when it is met for the first time."""
        if not question.vision or question.first == 0:
            return self._new()
        key = (str(device), tuple(question.ids[0, :question.first].tolist()))

        def make() -> Read:
            read = self._new()
            self._forward(read, question, question.first, device)
            return read

        return self._beginnings.get(key, make)[0].copy()

    def _forward(self, read: Read, question: Inputs, end: int, device: torch.device) -> Tensor:
        """Read a question on, up to place `end`; the logits (V,) behind it."""
        start = read.length
        where = positions(self.model, question.ids, {**question.along, **question.vision})[..., start:end]
        beside = {name: value[:, start:end].to(device) for name, value in question.along.items() if name in self._takes}
        if start <= question.first < end:
            beside |= {name: value.to(device, self.dtype if value.is_floating_point() else None)
                       for name, value in question.vision.items()}
        return self._run(read, question.ids[:, start:end].to(device), where.to(device), beside)

    def _run(self, read: Read, ids: Tensor, where: Tensor, beside: dict[str, Tensor]) -> Tensor:
        read.length += ids.shape[1]
        seen = torch.ones(1, read.length, dtype=torch.long, device=ids.device)
        out = self.model(input_ids=ids, attention_mask=seen, position_ids=where, past_key_values=read.cache,
                         use_cache=True, logits_to_keep=1, return_dict=True, **beside)
        return out.logits[0, -1].float()

    def _new(self) -> Read:
        from transformers import DynamicCache

        return Read(DynamicCache(config=self.model.config.get_text_config()))


@contextmanager
def _looking_once(model: nn.Module) -> Iterator[None]:
    """As long as it lasts, the same pixels are encoded once."""
    owner = getattr(model, "model", model)
    look = getattr(owner, "get_image_features", None)
    if look is None:
        yield
        return
    seen: list[tuple[Any, Any]] = []

    def look_once(*args: Any, **kwargs: Any) -> Any:
        made = next((made for given, made in seen if _same(given, (args, kwargs))), None)
        if made is None:
            made = look(*args, **kwargs)
            seen.append(((args, kwargs), made))
        return made

    owner.get_image_features = look_once
    try:
        yield
    finally:
        del owner.get_image_features


def _same(one: Any, other: Any) -> bool:
    """Arguments, tensors among them to the bit."""
    if type(one) is not type(other):
        return False
    if isinstance(one, Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(_same(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(_same, one, other))
    return one is other or bool(one == other)


def _common(questions: list[Inputs]) -> int:
    """Tokens that all questions begin with, and one less than the shortest has."""
    rows = [question.ids[0].tolist() for question in questions]
    most = min(map(len, rows)) - 1
    return next((k for k in range(most) if len({row[k] for row in rows}) > 1), most)
