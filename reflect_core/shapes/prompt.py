"""The grammar of prompts: from a sentence to what the picture must show, and back.

    sentence := [carrier] clause ((',' | 'and' | ', and') clause)*
    carrier  := ('a' | 'an' | 'one') [adjective] ('picture' | 'drawing' | 'image' | 'photo') 'of'
    clause   := phrase [relation phrase]
    phrase   := count [colour] shape
    relation := ['to the'] ('left of' | 'right of') | 'above' | 'below'

A relation holds between every object of the first phrase and every object of the second.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from ..types import UserError
from .scene import COLOURS, SHAPES

COUNTS = {"a": 1, "an": 1, "one": 1, "two": 2, "three": 3, "four": 4, "five": 5, "six": 6}
NUMBERS = ("zero", "one", "two", "three", "four", "five", "six")
_INSTEAD = {str(count): NUMBERS[count] for count in range(1, 7)} | {"the": "a"}
"""What to write for words that come to mind first."""
PLURALS = {shape + "s": shape for shape in SHAPES}
RELATIONS = ("left of", "right of", "above", "below")
OPPOSITE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
ADJECTIVES = ("simple", "clean", "plain", "nice", "small", "flat")
NOUNS = ("picture", "drawing", "image", "photo")
MAX_OBJECTS = 6
"""What a sentence may ask for. Training draws as many, of one colour and shape at most three (four where the colour is
left open), so that four of a kind beside others are read but seldom drawn right."""
RELATION_MARGIN = 2.0
"""Centres must differ by more than this many pixels for a relation to hold."""

WORDS = frozenset([*COUNTS, *COLOURS, *SHAPES, *PLURALS, *ADJECTIVES, *NOUNS,
                   "left", "right", "of", "above", "below", "to", "the", "and", ","])
CAN_DRAW = (
    f"I can draw {', '.join(PLURALS)} in {', '.join(COLOURS)}, up to {MAX_OBJECTS} of them, joined by 'and', with "
    "'left of', 'right of', 'above' or 'below'; for example: 'two red circles left of a blue star'"
)


@dataclass(frozen=True)
class Group:
    """`count` objects of one shape, of one colour or (None) of any."""

    count: int
    colour: str | None
    shape: str

    def takes(self, obj) -> bool:
        """Whether an object (`scene.Obj`) is one of the group's: its shape, and its colour if it has one."""
        return obj.shape == self.shape and self.colour in (None, obj.colour)

    @property
    def singular(self) -> str:
        """One of them in words, e.g. 'red circle'."""
        return f"{self.colour} {self.shape}" if self.colour else self.shape

    def phrase(self, count_word: str | None = None) -> str:
        """All of them in words, e.g. 'two red circles', with `count_word` for the number where it is given."""
        word = count_word or (article(self.singular) if self.count == 1 else NUMBERS[self.count])
        return f"{word} {self.singular}{'s' if self.count > 1 else ''}"


@dataclass(frozen=True)
class Requirement:
    """What a picture must show: exactly these groups, nothing else, in these relations."""

    groups: tuple[Group, ...]
    relations: tuple[tuple[int, str, int], ...] = ()
    """(index of a group, relation, index of another group)."""

    @property
    def objects(self) -> int:
        """How many objects the picture must show."""
        return sum(group.count for group in self.groups)

    def canonical(self) -> str:
        """One string for all sentences that ask for the same picture."""
        names = [f"{g.count} {g.singular}" for g in self.groups]
        relations = []
        for i, relation, j in self.relations:
            if relation in ("right of", "below"):
                i, relation, j = j, OPPOSITE[relation], i
            relations.append(f"{names[i]} {relation} {names[j]}")
        return "; ".join([*sorted(names), *sorted(relations)])


def article(words: str) -> str:
    """'a' or 'an', whichever goes before the words."""
    return "an" if words[0] in "aeiou" else "a"


def holds(relation: str, a, b) -> bool:
    """Whether object `a` stands in the relation to object `b`."""
    if relation in ("right of", "below"):
        relation, a, b = OPPOSITE[relation], b, a
    return b.x - a.x > RELATION_MARGIN if relation == "left of" else b.y - a.y > RELATION_MARGIN


def sentence(requirement: Requirement) -> str:
    """The plainest sentence for a requirement: relations first, in the order of the groups."""
    clauses, told = [], set()
    for i, relation, j in requirement.relations:
        clauses.append(f"{requirement.groups[i].phrase()} {relation} {requirement.groups[j].phrase()}")
        told |= {i, j}
    clauses += [g.phrase() for k, g in enumerate(requirement.groups) if k not in told]
    return clauses[0] if len(clauses) == 1 else ", ".join(clauses[:-1]) + " and " + clauses[-1]


def parse(prompt: str) -> Requirement:
    """Read a sentence of the grammar.

    Raises `UserError` for anything else; it names the word that is not known or not expected, and
    says what can be drawn.
    """
    return _Parser(prompt).parse()


def _hint(word: str) -> str:
    return f" (write {_INSTEAD[word]!r})" if word in _INSTEAD else ""


class _Parser:
    def __init__(self, prompt: str) -> None:
        if not isinstance(prompt, str) or not prompt.strip():
            raise UserError(f"the prompt is empty. {CAN_DRAW}")
        self.prompt = prompt
        self.words = re.findall(r",|[^\s,]+", prompt.lower().strip().rstrip("."))
        self.at = 0
        for word in self.words:
            if word not in WORDS:
                raise UserError(f"the prompt {prompt!r} has a word that I do not know: {word!r}{_hint(word)}. "
                                f"{CAN_DRAW}")

    def peek(self, offset: int = 0) -> str:
        index = self.at + offset
        return self.words[index] if index < len(self.words) else ""

    def wrong(self, expected: str) -> UserError:
        found = f"found {self.peek()!r}{_hint(self.peek())}" if self.peek() else "the prompt ended"
        place = f" after {' '.join(self.words[: self.at])!r}" if self.at else ""
        return UserError(f"cannot read the prompt {self.prompt!r}: expected {expected}{place}, {found}. {CAN_DRAW}")

    def parse(self) -> Requirement:
        self._carrier()
        groups: list[Group] = []
        relations: list[tuple[int, str, int]] = []
        while True:
            groups.append(self._phrase())
            relation = self._relation()
            if relation:
                groups.append(self._phrase())
                relations.append((len(groups) - 2, relation, len(groups) - 1))
            if not self.peek():
                break
            if self.peek() not in (",", "and"):
                # A relation cannot follow one: 'a left of b left of c' leaves open what c is left of.
                raise self.wrong("'and' or ','" if relation else "'and', ',' or a relation")
            self.at += 2 if self.peek() == "," and self.peek(1) == "and" else 1
        self._check(groups)
        return Requirement(tuple(groups), tuple(relations))

    def _carrier(self) -> None:
        for length in (3, 4):
            words = self.words[:length]
            if len(words) == length and words[0] in ("a", "an", "one") and words[-1] == "of" and words[-2] in NOUNS:
                if length == 3 or words[1] in ADJECTIVES:
                    self.at = length
                    return

    def _phrase(self) -> Group:
        count = COUNTS.get(self.peek())
        if count is None:
            raise self.wrong("a number such as 'a' or 'two'")
        self.at += 1
        colour = self.peek() if self.peek() in COLOURS else None
        self.at += colour is not None
        word = self.peek()
        shape = PLURALS.get(word) if count > 1 else (word if word in SHAPES else None)
        if shape is None:
            kind = "a plural such as 'circles'" if count > 1 else "a shape such as 'circle'"
            raise self.wrong(kind if colour else f"{kind} or a colour")
        self.at += 1
        return Group(count, colour, shape)

    def _relation(self) -> str | None:
        start = self.at
        if self.peek() == "to" and self.peek(1) == "the":
            self.at += 2
        if self.peek() in ("left", "right") and self.peek(1) == "of":
            relation = f"{self.peek()} of"
            self.at += 2
            return relation
        if self.at == start and self.peek() in ("above", "below"):
            self.at += 1
            return self.words[self.at - 1]
        if self.at != start or self.peek() in ("left", "right"):
            raise self.wrong("'left of' or 'right of'")
        return None

    def _check(self, groups: list[Group]) -> None:
        total = sum(g.count for g in groups)
        if total > MAX_OBJECTS:
            raise UserError(f"the prompt {self.prompt!r} asks for {total} objects; at most {MAX_OBJECTS} fit. "
                            f"Ask for fewer. {CAN_DRAW}")
        for k, a in enumerate(groups):
            for b in groups[:k]:
                if a.shape == b.shape and (a.colour == b.colour or None in (a.colour, b.colour)):
                    raise UserError(
                        f"the prompt {self.prompt!r} names {b.phrase()!r} and {a.phrase()!r}, which one object "
                        f"could both be. Say the number once, or give each its own colour. {CAN_DRAW}")
