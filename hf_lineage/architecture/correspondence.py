"""Which tensor of one model is which of another where their names differ: by common endings, order and shapes.

Three rules, in turn, each for what the ones before left over (docs/methods.md, *Alignment where names differ*):
1. names: what is equal but for one beginning of all names, or ends alike, in the same order and shapes;
2. kinds: tensors of one ending behind a block's number are a kind (`mlp.w1.weight` of every layer); two kinds are one
   if their shapes are the same from the first block to the last; words tell queries from keys where shapes do not;
3. fused: three kinds (q, k, v) are one of as many rows, or the other way round.
Where several kinds have the same shapes and no word tells them apart, that is a `Choice`, for the weights to make.
Nothing here reads a weight: what is chosen by names and shapes is chosen before anything is tested.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from .conventions import Shaped
from .describe import Architecture, natural_key, short_names
from .structure import words_of

MOST_RIVALS = 8  # tensors of one ending, above which it says nothing of the beginning
MOST_KINDS = 5  # of the same shapes: 120 alternatives

# Words that tell kinds of the same shapes apart; w1, w2, w3 of a feed-forward layer mean one thing here, another there
_ROLES: dict[str, frozenset[str]] = {
    "q": frozenset(["q", "query", "queries", "wq", "qproj"]),
    "k": frozenset(["k", "key", "keys", "wk", "kproj"]),
    "v": frozenset(["v", "value", "values", "wv", "vproj"]),
    "gate": frozenset(["gate"]),
    "up": frozenset(["up"]),
    "cross": frozenset(["cross", "encoder_attn", "crossattn", "crossattention", "encdecattention", "attn2"]),
}


class Piece(NamedTuple):
    """Elements `start` to `stop` of the flattened tensor `name`."""

    name: str
    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class Placement:
    """Where a tensor of the one model is in the other: pieces one behind the other, or a matrix stored (in, out)."""

    pieces: tuple[Piece, ...]
    transposed: bool = False


Kind = tuple[str, ...]  # names of one kind, from the first block to the last


@dataclass(frozen=True, slots=True)
class Choice:
    """Kinds of both models of the same shapes: which of `theirs` is which of `ours`, each at most once."""

    ours: tuple[Kind, ...]
    theirs: tuple[Kind, ...]

    @property
    def alternatives(self) -> int:
        """n!/(n − m)!, of m kinds among n."""
        few, many = sorted((len(self.ours), len(self.theirs)))
        return math.perm(many, few)


@dataclass(frozen=True, slots=True)
class Correspondence:
    """What `correspond` found. placed: the one model's tensor → where it is in the other; guessed: those of them that
    names do not tell; choices: what is left to the weights; copies: experts that stand for the same tensor as another
    one → that one; beginnings: how names of the one begin where those of the other begin otherwise.
    """

    placed: dict[str, Placement]
    guessed: frozenset[str]
    choices: tuple[Choice, ...]
    copies: dict[str, str]
    beginnings: tuple[tuple[str, str], ...] = ()


def correspond(
    ours: Mapping[str, Shaped], theirs: Mapping[str, Shaped], mine: Architecture, its: Architecture
) -> Correspondence | None:
    """Where each weight of one model is in the other. None where the two have no common width. O(names · depth)."""
    if not _alike(ours, theirs, mine, its):
        return None
    found = _Matching(_tensors(ours, mine.weights), _tensors(theirs, its.weights))
    found.turned(mine.blocks)
    found.by_beginning()
    found.by_ending()
    found.named = set(found.placed)
    found.by_kind()
    found.fused()
    guessed = frozenset({*found.placed} - found.named)
    return Correspondence(found.placed, guessed, tuple(found.choices), found.copies, tuple(found.beginnings))


def with_choice(
    found: Correspondence, ours: Mapping[str, Shaped], chosen: Iterable[tuple[Kind, Kind]]
) -> Correspondence:  # fmt: skip
    """The correspondence with kinds of its choices placed, each of the one model with one of the other."""
    pairs = [pair for one, other in chosen for pair in zip(one, other, strict=True)]
    return _and(found, {a: Placement((Piece(b, 0, ours[a].count),)) for a, b in pairs}, choices=())


def with_biases(found: Correspondence, ours: Mapping[str, Shaped], theirs: Mapping[str, Shaped]) -> Correspondence:
    """The correspondence with the biases of the matrices that are placed whole."""
    used = {piece.name for placement in found.placed.values() for piece in placement.pieces}
    more = {}
    for name, placement in found.placed.items():
        bias = _bias(name)
        other = _bias(placement.pieces[0].name) if len(placement.pieces) == 1 else ""
        fits = bias in ours and other in theirs and ours[bias].shape == theirs[other].shape
        if fits and bias not in found.placed and other not in used:
            more[bias] = Placement((Piece(other, 0, ours[bias].count),))
    return _and(found, more)


def _and(found: Correspondence, more: Mapping[str, Placement], **changes: Any) -> Correspondence:
    return replace(found, placed={**found.placed, **more}, guessed=found.guessed.union(more), **changes)


class _Tensor(NamedTuple):
    name: str
    parts: tuple[str, ...]
    shape: tuple[int, ...]
    order: tuple

    @property
    def size(self) -> int:
        return math.prod(self.shape)


@dataclass
class _Matching:
    """What is placed so far, and what is left of both models, by name."""

    ours: dict[str, _Tensor]
    theirs: dict[str, _Tensor]
    placed: dict[str, Placement] = field(default_factory=dict)
    named: set[str] = field(default_factory=set)
    beginnings: list[tuple[str, str]] = field(default_factory=list)
    choices: list[Choice] = field(default_factory=list)
    copies: dict[str, str] = field(default_factory=dict)

    def place(self, mine: _Tensor, other: _Tensor, transposed: bool = False) -> None:
        self.placed[mine.name] = Placement((Piece(other.name, 0, mine.size),), transposed)
        self.ours.pop(mine.name)
        self.theirs.pop(other.name, None)

    def turned(self, blocks: Mapping[str, str]) -> None:
        """Matrices of one name that the one stores (out, in), the other (in, out); a square one if all of its block."""
        by_name = {tensor.parts: tensor for tensor in self.theirs.values()}
        both = [(a, by_name[a.parts]) for a in self.ours.values() if a.parts in by_name and len(a.shape) == 2]
        straight = {blocks[a.name] for a, b in both if a.shape == b.shape and a.shape[0] != a.shape[1]}
        turned = {blocks[a.name] for a, b in both if a.shape == b.shape[::-1] and a.shape[0] != a.shape[1]} - straight
        for a, b in both:
            if blocks[a.name] in turned and a.shape == b.shape[::-1]:
                self.place(a, b, transposed=True)

    def by_beginning(self) -> None:
        """Names that are equal but for their beginning: the two under which most lines up, again and again."""
        while best := self._beginnings():
            p, q = best
            others = {tensor.parts: tensor for tensor in self.theirs.values()}
            for mine in [*self.ours.values()]:
                other = others.get(q + mine.parts[len(p) :]) if mine.parts[: len(p)] == p else None
                if other and other.shape == mine.shape:
                    self.place(mine, other)
                    self.beginnings.append(_apart(mine.name, other.name))
            self.beginnings = [*dict.fromkeys(self.beginnings)]

    def _beginnings(self) -> tuple[tuple[str, ...], tuple[str, ...]] | None:
        """Two beginnings that at least two tensors have in common, each the other's only best."""
        endings: dict[tuple[str, ...], list[_Tensor]] = defaultdict(list)
        for tensor in self.theirs.values():
            for i in range(len(tensor.parts)):
                endings[tensor.parts[i:]].append(tensor)
        votes: Counter[tuple[tuple[str, ...], tuple[str, ...]]] = Counter()
        times: Counter[tuple[tuple[str, ...], tuple[str, ...]]] = Counter()
        for mine in self.ours.values():
            for i in range(len(mine.parts)):
                ending = mine.parts[i:]
                others = endings.get(ending, ())
                for other in others if len(others) <= MOST_RIVALS else ():
                    if other.shape == mine.shape:
                        both = mine.parts[:i], other.parts[: len(other.parts) - len(ending)]
                        votes[both] += mine.size
                        times[both] += 1
        first: Counter[tuple[str, ...]] = Counter()
        second: Counter[tuple[str, ...]] = Counter()
        for (p, q), count in votes.items():  # how many pairs reach the most that a beginning has
            first[p], second[q] = max(first[p], count), max(second[q], count)
        tied = Counter(p for (p, _), count in votes.items() if count == first[p])
        rivals = Counter(q for (_, q), count in votes.items() if count == second[q])
        clear = [
            both for both, count in votes.items()
            if times[both] > 1 and count == first[both[0]] == second[both[1]] and tied[both[0]] == rivals[both[1]] == 1
        ]  # fmt: skip
        return max(clear, key=lambda both: (votes[both], -len(both[0]) - len(both[1]), both), default=None)

    def by_ending(self) -> None:
        """Names that end alike, the longest endings first, where both models have the same shapes in turn."""
        most = max((len(t.parts) for t in (*self.ours.values(), *self.theirs.values())), default=0)
        for length in range(most, 1, -1):
            mine, its = (_by_key(side, length) for side in (self.ours, self.theirs))
            for ending, tensors in mine.items():
                others = its.get(ending, [])
                if [t.shape for t in tensors] == [t.shape for t in others]:
                    for a, b in zip(tensors, others, strict=True):
                        self.place(a, b)

    def by_kind(self) -> None:
        """Kinds of the same shapes from the first block to the last, the largest first."""
        mine, its = (_kinds(side) for side in (self.ours, self.theirs))
        for shapes in sorted(mine.keys() & its.keys(), key=lambda s: (-sum(map(math.prod, s)), s)):
            ours = [kind for kind in mine[shapes] if all(t.name in self.ours for t in kind)]
            theirs = [kind for kind in its[shapes] if all(t.name in self.theirs for t in kind)]
            self._assign(self._first_experts(ours, len(theirs)), theirs)

    def _first_experts(self, kinds: list[list[_Tensor]], wanted: int) -> list[list[_Tensor]]:
        """Of several experts for one feed-forward layer the first, which stands for all of them."""
        if not wanted or len(kinds) <= wanted or len(kinds) % wanted:
            return kinds
        numbers: dict[int, list[list[_Tensor]]] = defaultdict(list)
        for kind in kinds:
            number = _expert(kind[0].parts)
            if number is None:
                return kinds
            numbers[number].append(kind)
        first, *others = (numbers[n] for n in sorted(numbers))
        for other in others:
            for kind, copy in zip(first, other, strict=True) if len(other) == len(first) else ():
                self.copies |= {b.name: a.name for a, b in zip(kind, copy, strict=True)}
        return first

    def _assign(self, ours: list[list[_Tensor]], theirs: list[list[_Tensor]]) -> None:
        """Place kinds of the same shapes: whose words say which is which, or the only ones; the rest is a choice."""
        roles = {id(kind): _role(kind[0].parts) for kind in (*ours, *theirs)}
        for role in sorted({roles[id(kind)] for kind in ours} - {frozenset()}, key=sorted):
            mine, its = ([kind for kind in side if roles[id(kind)] == role] for side in (ours, theirs))
            if its:
                self._settle(mine, its)
                ours = [kind for kind in ours if roles[id(kind)] != role]
                theirs = [kind for kind in theirs if roles[id(kind)] != role]
        self._settle(ours, theirs)

    def _settle(self, ours: list[list[_Tensor]], theirs: list[list[_Tensor]]) -> None:
        if not ours or not theirs:
            return
        if len(ours) == len(theirs) == 1:
            for a, b in zip(ours[0], theirs[0], strict=True):
                self.place(a, b)
        elif max(len(ours), len(theirs)) <= MOST_KINDS and len(ours[0][0].shape) > 1:
            self.choices.append(Choice(*(tuple(tuple(t.name for t in k) for k in side) for side in (ours, theirs))))
            for side, kinds in ((self.ours, ours), (self.theirs, theirs)):
                for tensor in (tensor for kind in kinds for tensor in kind):
                    side.pop(tensor.name)

    def fused(self) -> None:
        """q, k and v of the one, and what follows them, are one matrix of the other."""
        for split, joined, placer in ((self.ours, self.theirs, self._cut), (self.theirs, self.ours, self._join)):
            for parts in _families(split):
                if not all(tensor.name in split for kind in parts for tensor in kind):
                    continue
                whole = [
                    kind for kinds in _kinds(joined).values() for kind in kinds
                    if len(kind) == len(parts[0]) and all(
                        _is_sum(one.shape, [part.shape for part in each])
                        for one, *each in zip(kind, *parts, strict=True)
                    )
                ]  # fmt: skip
                if len(whole) == 1:
                    placer(whole[0], parts)

    def _cut(self, whole: list[_Tensor], parts: list[list[_Tensor]]) -> None:
        for one, *each in zip(whole, *parts, strict=True):
            at = 0
            for part in each:
                self.placed[part.name] = Placement((Piece(one.name, at, at + part.size),))
                at += part.size
                self.ours.pop(part.name)
            self.theirs.pop(one.name)

    def _join(self, whole: list[_Tensor], parts: list[list[_Tensor]]) -> None:
        for one, *each in zip(whole, *parts, strict=True):
            self.placed[one.name] = Placement(tuple(Piece(part.name, 0, part.size) for part in each))
            self.ours.pop(one.name)
            for part in each:
                self.theirs.pop(part.name)


def _tensors(entries: Mapping[str, Shaped], names: Iterable[str]) -> dict[str, _Tensor]:
    short = short_names(entries)
    return {
        name: _Tensor(name, _parts(short[name]), entries[name].shape, (*natural_key(short[name]),)) for name in names
    }


def _parts(short: str) -> tuple[str, ...]:
    """Components of a name; the label of a part stands before the last: `up.weight[gate]` is up, gate, weight."""
    stem, _, label = short.partition("[")
    parts = stem.split(".")
    labels = label.removesuffix("]").split(".") if label else []
    return (*parts[:-1], *labels, parts[-1])


def _by_key(side: Mapping[str, _Tensor], length: int) -> dict[tuple[str, ...], list[_Tensor]]:
    found: dict[tuple[str, ...], list[_Tensor]] = defaultdict(list)
    for tensor in sorted(side.values(), key=lambda t: t.order):
        if len(tensor.parts) >= length:
            found[tensor.parts[-length:]].append(tensor)
    return found


def _kinds(side: Mapping[str, _Tensor]) -> dict[tuple[tuple[int, ...], ...], list[list[_Tensor]]]:
    """Kinds by their shapes: what follows a number of the name is one kind, of one list of blocks and of all lists, and
    each tensor by itself."""
    by_ending: dict[tuple[str, ...], list[_Tensor]] = defaultdict(list)
    for tensor in sorted(side.values(), key=lambda t: t.order):
        numbers = [i for i, part in enumerate(tensor.parts) if part.isdecimal()]
        in_list = ("".join("#" if part.isdecimal() else part for part in tensor.parts[: i + 1]) for i in numbers)
        endings = [tensor.parts[i + 1 :] for i in numbers]
        of_lists = [(path, *ending) for path, ending in zip(in_list, endings, strict=True)]
        for ending in {*endings, *of_lists, ("", *tensor.parts)}:
            by_ending[ending].append(tensor)
    found: dict[tuple[tuple[int, ...], ...], list[list[_Tensor]]] = defaultdict(list)
    seen: set[tuple[str, ...]] = set()
    for _, tensors in sorted(by_ending.items()):
        names = tuple(t.name for t in tensors)
        if names not in seen:
            seen.add(names)
            found[tuple(t.shape for t in tensors)].append(tensors)
    return found


def _families(side: Mapping[str, _Tensor]) -> list[list[list[_Tensor]]]:
    """Kinds that one module has as q, k and v, and also with a fourth one of the same number and width behind them."""
    every = [kind for kinds in _kinds(side).values() for kind in kinds]
    modules: dict[tuple, dict[str, list[_Tensor]]] = defaultdict(dict)
    for kind in every:
        for role in _role(kind[0].parts) & {"q", "k", "v"} if len(kind) > 1 else ():
            modules[len(kind), kind[0].shape[1:], kind[0].parts[-1], kind[0].parts[:-2]].setdefault(role, kind)
    found = []
    for (count, width, leaf, _), roles in modules.items():
        if roles.keys() == {"q", "k", "v"}:
            family = [roles[role] for role in "qkv"]
            found.append(family)
            taken = {id(kind) for kind in family}
            found += [
                [*family, kind] for kind in every
                if id(kind) not in taken and (len(kind), kind[0].shape[1:], kind[0].parts[-1]) == (count, width, leaf)
            ]  # fmt: skip
    return found


def _is_sum(whole: tuple[int, ...], parts: Sequence[tuple[int, ...]]) -> bool:
    return whole[0] == sum(part[0] for part in parts) and all(part[1:] == whole[1:] for part in parts)


def _role(parts: Sequence[str]) -> frozenset[str]:
    """What the words of the last modules of a name tell."""
    words = frozenset().union(*(words_of(part) for part in parts[-4:-1])) if len(parts) > 1 else frozenset()
    return frozenset(role for role, known in _ROLES.items() if words & known)


def _apart(one: str, other: str) -> tuple[str, str]:
    """Two names without the components in which they end alike.

    >>> _apart("net.model.norm.weight", "model.norm.weight"), _apart("a.b", "c.b")
    (('net.', ''), ('a.', 'c.'))
    """
    first, second = one.split("."), other.split(".")
    while first and second and first[-1] == second[-1]:
        first.pop(), second.pop()
    return "".join(f"{part}." for part in first), "".join(f"{part}." for part in second)


def _expert(parts: Sequence[str]) -> int | None:
    at = next((i for i, part in enumerate(parts) if part == "experts"), None)
    number = parts[at + 1] if at is not None and at + 1 < len(parts) else ""
    return int(number) if number.isdecimal() else None


def _bias(name: str) -> str:
    stem, dot, leaf = name.rpartition(".")
    return f"{stem}{dot}bias{leaf.removeprefix('weight')}" if leaf.startswith("weight") else ""


def _alike(ours: Mapping[str, Shaped], theirs: Mapping[str, Shaped], mine: Architecture, its: Architecture) -> bool:
    """Whether the width that most weights of the one have is one of the widths of the other."""
    a, b = (_widths(entries, architecture) for entries, architecture in ((ours, mine), (theirs, its)))
    return bool(a and b) and (max(a, key=lambda w: (a[w], w)) in b or max(b, key=lambda w: (b[w], w)) in a)


def _widths(entries: Mapping[str, Shaped], architecture: Architecture) -> Counter[int]:
    found: Counter[int] = Counter()
    for name in architecture.trunk:
        for width in {*entries[name].shape[:2]} if len(entries[name].shape) > 1 else ():
            found[width] += entries[name].count
    return found
