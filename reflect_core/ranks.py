"""Ranks with ties, and how far two of them agree."""

from __future__ import annotations

import math
from collections.abc import Sequence


def average_ranks(values: Sequence[float]) -> list[float]:
    """1 for the smallest; equal values share the mean of their places."""
    order = sorted(range(len(values)), key=lambda index: values[index])
    ranks, start = [0.0] * len(values), 0
    while start < len(order):
        end = start
        while end < len(order) and values[order[end]] == values[order[start]]:
            end += 1
        for index in order[start:end]:
            ranks[index] = (start + 1 + end) / 2
        start = end
    return ranks


def rank_correlation(first: Sequence[float], second: Sequence[float]) -> float | None:
    """Spearman's, from -1 to 1: Pearson's of the ranks. None where one of the two is all equal."""
    a, b = average_ranks(first), average_ranks(second)
    if len(set(a)) < 2 or len(set(b)) < 2:
        return None
    mean = (len(a) + 1) / 2
    together = math.fsum((x - mean) * (y - mean) for x, y in zip(a, b, strict=True))
    return together / math.sqrt(math.fsum((x - mean) ** 2 for x in a) * math.fsum((y - mean) ** 2 for y in b))
