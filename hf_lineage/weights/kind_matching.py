"""Which kinds of matrices of two models are the same, where neither names nor shapes say it: by their entries."""

from __future__ import annotations

import itertools
import re
from collections.abc import Collection, Sequence

import torch

from ..architecture.correspondence import Choice, Kind
from ..checkpoints.checkpoint import Checkpoint
from ..checkpoints.entry import Slice

MEMBERS, ENTRIES = 3, 4096  # of a kind: tensors that are looked at, and entries of each
ALIKE = 0.5  # mean correlation of what plainly lines up
DECIDED = 0.1  # mean correlation of the matched kinds from which the match is no chance: 11 standard errors


def choose(child: Checkpoint, candidate: Checkpoint, choices: Sequence[Choice]) -> list[list[tuple[Kind, Kind]]]:
    """For each choice the kinds that belong together, (child's, candidate's): those whose entries correlate most.

    r of two kinds is the mean correlation ⟨a, b⟩/(‖a‖‖b‖) of up to `MEMBERS` tensors, over `ENTRIES` entries of each;
    all n!/(n − m)! matchings are tried. Where the best has a mean r below `DECIDED`, the kinds stand in the order of
    their names.
    """
    wanted = [(choice, [[_looked_at(model, kind) for kind in kinds] for model, kinds in
                        ((child, choice.ours), (candidate, choice.theirs))]) for choice in choices]  # fmt: skip
    ours, theirs = ([s for _, sides in wanted for kind in sides[i] for s in kind] for i in (0, 1))
    first, second = iter(_values(child, ours)), iter(_values(candidate, theirs))
    found = []
    for choice, sides in wanted:
        a, b = (
            torch.stack([torch.cat([next(values) for _ in kind]) for kind in side])
            for side, values in zip(sides, (first, second), strict=True)
        )
        r = (a @ b.T / len(sides[0][0])).numpy()
        rows, columns = range(len(choice.ours)), range(len(choice.theirs))
        if len(rows) <= len(columns):
            matchings = [[*zip(rows, chosen, strict=True)] for chosen in itertools.permutations(columns, len(rows))]
        else:
            matchings = [[*zip(chosen, columns, strict=True)] for chosen in itertools.permutations(rows, len(columns))]
        scores = [sum(r[i, j] for i, j in matching) / len(matching) for matching in matchings]
        best = max(range(len(matchings)), key=lambda k: scores[k])
        chosen = matchings[best if scores[best] >= DECIDED else 0]
        found.append([(choice.ours[i], choice.theirs[j]) for i, j in chosen])
    return found


def elsewhere(child: Checkpoint, candidate: Checkpoint, tested: Collection[str], others: Collection[str]) -> set[str]:
    """Those of `others` that do not line up, though what is tested does: rows in another order, or other weights.

    Both hold tensors under the same names. Tensors whose names differ by numbers are looked at together, as in
    `choose`: the tested ones have a mean r of at least `ALIKE`, the others one below.
    """
    kinds: dict[str, list[str]] = {}
    for name in others:
        kinds.setdefault(re.sub(r"\d+", "#", name), []).append(name)
    if not kinds or _mean_r(child, candidate, sorted(tested)) < ALIKE:
        return set()
    return {name for kind in kinds.values() if _mean_r(child, candidate, kind) < ALIKE for name in kind}


def _mean_r(child: Checkpoint, candidate: Checkpoint, names: Sequence[str]) -> float:
    slices = _looked_at(child, tuple(names))
    both = zip(_values(child, slices), _values(candidate, slices), strict=True)
    return sum(float(a @ b) for a, b in both) / len(slices) if slices else 0.0


def _looked_at(model: Checkpoint, kind: Kind) -> list[Slice]:
    """Entries from the middle of the first, the middle and the last tensor."""
    names = [kind[i] for i in sorted({0, len(kind) // 2, len(kind) - 1})][:MEMBERS] if kind else []
    found = []
    for name in names:
        count = min(ENTRIES, model[name].count)
        start = (model[name].count - count) // 2
        found.append(Slice(name, start, start + count))
    return found


def _values(model: Checkpoint, slices: Sequence[Slice]) -> list[torch.Tensor]:
    """The entries of each slice, centred and of length 1; zeros where they are constant or broken."""
    found = []
    for values in model.read(slices) if slices else []:
        centred = values.double() - values.double().mean()
        length = float(centred.norm())
        found.append(centred / length if 0 < length < float("inf") else torch.zeros_like(centred))
    return found
