"""95 % intervals of shares and of paired differences, in closed form: the same rows always give the same ones.

All of them stay honest where everything succeeded, or nothing did. A bootstrap does not: of sixty
successes it can only draw sixty successes, and calls itself certain.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

Z = 1.959964
Interval = tuple[float, float]


def wilson(successes: int, count: int) -> Interval:
    """Wilson's score interval of a share."""
    if count == 0:
        return 0.0, 1.0
    share = successes / count
    middle = share + Z * Z / (2 * count)
    half = Z * math.sqrt(share * (1 - share) / count + Z * Z / (4 * count * count))
    # At an end of the scale the formula is that end, but for rounding.
    low = 0.0 if successes == 0 else (middle - half) / (1 + Z * Z / count)
    high = 1.0 if successes == count else (middle + half) / (1 + Z * Z / count)
    return low, high


def mean_of_shares(groups: Sequence[Sequence[float]]) -> Interval:
    """Of the mean of the groups' shares; a group holds a 1 for each success and a 0 for each failure.

    Wilson's distances from each share, added as variances are (Newcombe's "square and add").
    """
    shares = [sum(group) / len(group) for group in groups]
    ends = [wilson(round(sum(group)), len(group)) for group in groups]
    mean = sum(shares) / len(groups)
    below = math.sqrt(sum((share - low) ** 2 for share, (low, _) in zip(shares, ends))) / len(groups)
    above = math.sqrt(sum((high - share) ** 2 for share, (_, high) in zip(shares, ends))) / len(groups)
    return mean - below, mean + above


def mean_of_differences(groups: Sequence[Iterable[Sequence[float]]]) -> Interval:
    """Of the mean of the groups' mean paired differences.

    A group holds clusters, one for each prompt; a cluster holds the differences that were found with it, each
    from -1 to 1. What belongs to one prompt goes together and is not counted as if it were independent.
    Of one group with a single difference in each cluster this is the interval of Bonett and Price (2012): one
    prompt won and one lost are added, so that no difference at all is not certainty either. Of several
    groups, each is given its part of these two.
    """
    middle = variance = 0.0
    added = 1 / len(groups)
    for group in groups:
        clusters = list(group)
        count = sum(map(len, clusters)) + 2 * added
        mean = sum(map(sum, clusters)) / count
        squares = sum((sum(c) - mean * len(c)) ** 2 for c in clusters)
        middle += mean
        variance += (squares + added * ((1 - mean) ** 2 + (1 + mean) ** 2)) / count**2
    half = Z * math.sqrt(variance) / len(groups)
    middle /= len(groups)
    return max(middle - half, -1.0), min(middle + half, 1.0)
