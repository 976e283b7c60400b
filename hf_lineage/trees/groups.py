"""Which models of one architecture share an origin: the permutation test over hidden units, pair by pair."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

MAX_TESTS_PER_GROUP_PAIR = 3  # pairs between two groups that are tested before these count as unrelated
UNRELATED_P = 0.01  # p-value above which a model's relatives are unrelated to another group: then the model is a merge

PairTest = Callable[[int, int], float | None]  # (i, j) → log10 of the raw p-value; None where no test applies


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


def related_groups(information: np.ndarray, similar: np.ndarray, test: PairTest, alpha: float) -> Grouping:
    """Join what the test calls related, the most informative pairs first (single linkage on rejected pairs).

    information: (M, M), nats, symmetric.  similar: (M, M) bool, what counts as related where no test applies.
    test(i, j): log10 of the raw p-value, None where no test applies; each pair is tested once at most.  alpha: the
    family-wise error over all M(M − 1)/2 pairs, by Bonferroni; a pair that is not tested counts as not rejected. Once
    a pair of two groups is rejected, those are one group, unless one of the two models is a merge of both groups.
    """
    models = len(information)
    state = _Joining(information, test)
    found = Grouping(state.groups)
    upper = np.triu_indices(models, 1)
    pairs_log10 = math.log10(max(1, len(upper[0])))
    level = math.log10(alpha) - pairs_log10
    for k in np.argsort(-information[upper], kind="stable"):
        i, j = int(upper[0][k]), int(upper[1][k])
        if not state.is_open(i, j):
            continue
        p = state.log10_p(i, j)
        if p is None:
            found.untested_pairs += bool(similar[i, j])
        if not (similar[i, j] if p is None else p <= level):
            state.count_failure(i, j)
            if p is not None:
                found.apart_log10_p = min(p + pairs_log10, found.apart_log10_p or 0.0)
            continue
        if p is not None:
            least = -math.inf if found.joined_log10_p is None else found.joined_log10_p
            found.joined_log10_p = max(p + pairs_log10, least)
            merge = state.find_merge(i, j)
            if merge is not None:
                if state.add_merge(*merge):
                    found.merge_sources.append(merge)
                continue
        state.join(i, j)
    found.groups = [sorted(group) for group in state.groups if group]
    return found


class _Joining:
    """The groups while they are joined."""

    def __init__(self, information: np.ndarray, test: PairTest) -> None:
        self._information, self._test = information, test
        self.groups = [[i] for i in range(len(information))]
        self._group_of = list(range(len(information)))
        self._tested: dict[tuple[int, int], float | None] = {}
        self._failures: dict[tuple[int, int], int] = {}  # pairs of groups → tested pairs that were not rejected
        self._merges: set[tuple[int, int]] = set()  # (a merge or its descendant, the other group it comes from)

    def log10_p(self, i: int, j: int) -> float | None:
        """What the test says of two models, kept."""
        pair = (min(i, j), max(i, j))
        if pair not in self._tested:
            self._tested[pair] = self._test(*pair)
        return self._tested[pair]

    def is_open(self, i: int, j: int) -> bool:
        """Whether the groups of two models are different and not known to be apart, or linked by one of the two."""
        a, b = self._groups_of(i, j)
        if a == b or self._failures.get((a, b), 0) >= MAX_TESTS_PER_GROUP_PAIR:
            return False
        return not self._merges & {(i, a), (i, b), (j, a), (j, b)}

    def count_failure(self, i: int, j: int) -> None:
        """One more pair between the two groups that was not rejected."""
        pair = self._groups_of(i, j)
        self._failures[pair] = self._failures.get(pair, 0) + 1

    def find_merge(self, i: int, j: int) -> tuple[int, int] | None:
        """(merge, source) if one of the two is related to the other's group and its own group is not."""
        merges = {merge for merge, _ in self._merges}
        for one, other in ((i, j), (j, i)):
            relatives = [k for k in self.groups[self._group_of[one]] if k != one and k not in merges]
            # the nearest of them may descend from the same merge
            relatives.sort(key=lambda k: (self._information[one, k], k))
            for k in relatives[:MAX_TESTS_PER_GROUP_PAIR]:
                p = self.log10_p(k, other)
                if p is not None and p > math.log10(UNRELATED_P):
                    return one, other
        return None

    def add_merge(self, merge: int, source: int) -> bool:
        """Keep both groups apart; False where the merge only descends from one that was found before.

        It does where the nearest model of its own group is a merge with the same other group, which explains what the
        two have in common.
        """
        far = self._group_of[source]
        before = [k for k, group in self._merges if group == far]
        self._merges.add((merge, far))
        own = [k for k in self.groups[self._group_of[merge]] if k != merge]
        return not before or max(own, key=lambda k: self._information[merge, k]) not in before

    def join(self, i: int, j: int) -> None:
        """Make one group of the two models' groups."""
        a, b = self._groups_of(i, j)
        for k in self.groups[b]:
            self._group_of[k] = a
        self.groups[a] += self.groups[b]
        self.groups[b] = []
        for pair, count in list(self._failures.items()):
            if b in pair:
                del self._failures[pair]
                other = sum(pair) - b
                key = (min(a, other), max(a, other))
                self._failures[key] = max(count, self._failures.get(key, 0))
        self._merges = {(k, a if far == b else far) for k, far in self._merges}

    def _groups_of(self, i: int, j: int) -> tuple[int, int]:
        a, b = sorted((self._group_of[i], self._group_of[j]))
        return a, b
