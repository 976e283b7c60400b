"""Which models of one architecture share an origin: the permutation test over hidden units, pair by pair."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

MAX_TESTS_PER_GROUP_PAIR = 3  # pairs between two groups that are tested before these count as unrelated
UNRELATED_P = 0.01  # p-value above which a model's relatives are strangers to another group: then the model is a merge


@dataclass(slots=True)
class Grouping:
    """A partition of M models into related groups, and how clear it is.

    groups: the models of each group.  merge_sources: of merges of unrelated groups, (merge, a source in another group).
    joined_log10_p: the largest log10 p by which two groups were joined, plus log10 of the number of pairs (Bonferroni);
    apart_log10_p: the smallest of the pairs that were not; None where there was no such pair.  untested_pairs: pairs
    that no test applies to, joined by their cosine.
    """

    groups: list[list[int]]
    merge_sources: list[tuple[int, int]] = field(default_factory=list)
    joined_log10_p: float | None = None
    apart_log10_p: float | None = None
    untested_pairs: int = 0


def related_groups(
    information: np.ndarray, similar: np.ndarray, test: Callable[[int, int], float | None], alpha: float
) -> Grouping:
    """Join what the test calls related, the most informative pairs first.

    information: (M, M); alike: (M, M) bool, what counts as related where no test applies; test(i, j): log10 of the raw
    p-value, None where no test applies. Family-wise error `alpha` over all M(M − 1)/2 pairs (Bonferroni; a pair that
    is not tested counts as not rejected). Once a pair of two groups is rejected, those are one group.
    """
    models = len(information)
    found = Grouping([[i] for i in range(models)])
    group = list(range(models))
    upper = np.triu_indices(models, 1)
    every = math.log10(max(1, len(upper[0])))
    level = math.log10(alpha) - every
    known: dict[tuple[int, int], float | None] = {}
    failed: dict[tuple[int, int], int] = {}
    crossed: set[tuple[int, int]] = set()  # (a merge or what descends from it, the other group it comes from)

    def log10_p(i: int, j: int) -> float | None:
        key = (min(i, j), max(i, j))
        if key not in known:
            known[key] = test(*key)
        return known[key]

    for k in np.argsort(-information[upper], kind="stable"):
        i, j = int(upper[0][k]), int(upper[1][k])
        a, b = sorted((group[i], group[j]))
        if a == b or failed.get((a, b), 0) >= MAX_TESTS_PER_GROUP_PAIR or crossed & {(i, a), (i, b), (j, a), (j, b)}:
            continue
        p = log10_p(i, j)
        if p is None:
            found.untested_pairs += bool(similar[i, j])
        if not (similar[i, j] if p is None else p <= level):
            failed[a, b] = failed.get((a, b), 0) + 1
            found.apart_log10_p = min(p + every, found.apart_log10_p or 0.0) if p is not None else found.apart_log10_p
            continue
        if p is not None:
            found.joined_log10_p = max(p + every, -math.inf if found.joined_log10_p is None else found.joined_log10_p)
            merge = _merge(information, found.groups, group, i, j, log10_p, {k for k, _ in crossed})
            if merge is not None:
                one, other = merge
                before = [k for k, far in crossed if far == group[other]]
                crossed.add((one, group[other]))
                if not _descends(information, one, before, found.groups[group[one]]):
                    found.merge_sources.append(merge)
                continue
        _join(found.groups, group, failed, a, b)
        crossed = {(k, a if far == b else far) for k, far in crossed}
    found.groups = [sorted(members) for members in found.groups if members]
    return found


def _merge(
    information: np.ndarray, members: list[list[int]], group: list[int], i: int, j: int,
    log10_p: Callable[[int, int], float | None], merges: set[int],
) -> tuple[int, int] | None:  # fmt: skip
    """(merge, source) if one of the two is related to the other's group and its own group is not."""
    for one, other in ((i, j), (j, i)):
        relatives = [k for k in members[group[one]] if k != one and k not in merges]
        # the nearest of them may descend from the same merge
        for k in sorted(relatives, key=lambda k: (information[one, k], k))[:MAX_TESTS_PER_GROUP_PAIR]:
            p = log10_p(k, other)
            if p is not None and p > math.log10(UNRELATED_P):
                return one, other
    return None


def _descends(information: np.ndarray, one: int, merges: list[int], members: list[int]) -> bool:
    """Whether the nearest of a model's group is a merge with the same other group, which explains what it has of it."""
    return bool(merges) and max((k for k in members if k != one), key=lambda k: information[one, k]) in merges


def _join(members: list[list[int]], group: list[int], failed: dict[tuple[int, int], int], a: int, b: int) -> None:
    for k in members[b]:
        group[k] = a
    members[a] += members[b]
    members[b] = []
    for (c, d), times in list(failed.items()):
        if b in (c, d):
            del failed[c, d]
            other = d if c == b else c
            key = (min(a, other), max(a, other))
            failed[key] = max(times, failed.get(key, 0))
