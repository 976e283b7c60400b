"""Hidden units by structure: which axes of which matrices hold exchangeable hidden units, from shapes and module tree.

A width of a module is one of hidden units if one matrix of the module writes it, another one of it reads exactly as
much, and nobody else has it: then any order of the units gives the same network. `RULES` names the kinds of evidence;
`describe.py` asks for what its conventions of names have not settled. What has an order of its own is kept out by the
words of `ATTENTION` and `FIXED`. See docs/methods.md, *Hidden units by structure*. Nothing here reads a weight.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from itertools import pairwise
from typing import NamedTuple

from .conventions import MAX_EXPERTS, Part, Shaped, fused_parts, once_a_header

# How units are told, by name: the answer of `coverage` counts tensors by these.
RULES: dict[str, str] = {
    "own width": "one module writes the width and reads it; nothing around it has the width",
    "sequence": "numbered matrices of one module (conv1, conv2; 0, 3), each reads what the one before it writes",
    "words": "a matrix named as the way in (up, expand, in, …) and one named as the way out (down, project, out, …)",
    "wider inside": "the two matrices of a feed-forward module, or around a depthwise convolution: the wider width",
    "by group": "around grouped convolutions: exchanged within each group only",
    "stacked experts": "experts stacked as (expert, in, out): the matrix that reads the units, expert by expert",
    "beside": "units that are read as part of a wider input: attention and feed-forward layer side by side",
    "recurrent gates": "the input matrix of an LSTM or GRU, gate by gate",
}


def _vocabulary(words: str) -> frozenset[str]:
    return frozenset(words.split())


# Words of a module's path. Attention: the coordinates of a head can only be exchanged within the head, and rotary pairs
# not at all.
ATTENTION = _vocabulary(
    "attn attention attentions att atten mha mhsa selfattention encdecattention crossattention attns rglru lru tmix "
    "timemix mlstm slstm retention crpe xattn selfattn attnblock linearattn deltanet"
)
_HEAD_PARTS = _vocabulary(
    "q k v qk kv qkv query key value queries keys values wq wk wv wqkv qproj kproj vproj kqv qkvo theta phi "
    "receptance rope rotary pos position rel relpos"
)
_NORMS = _vocabulary("norm norms layernorm adaln ada modulation mod film adanorm")
# Words of a matrix whose rows have an order of their own: classes, tokens, pixels, what all layers share.
FIXED = _vocabulary(
    "classifier logits logit vocab vocabulary classes class cls ctc score scores lm head heads embed embedding "
    "embeddings tokens token codebook patch bbox boxes pixel pixels label labels wte wpe per"
)
_FIRST = _vocabulary(
    "in up gate expand expansion inner inverted exp wi first start intermediate input win wup dense_h_to_4h"
)
_LAST = _vocabulary("out down project final end wo pwl point pointwise output wout wdown dense_4h_to_h")
_WEAKLY = {"proj": -1, "projection": -1, "last": -1, "pw": 1, "ffn": 1}  # where no other word says more
_FEED_FORWARD = _vocabulary(
    "mlp ff ffn feedforward feed ffw mlps ffns intermediate densereludense expert experts mixer channelmixer moe "
    "transition channelwise main channelmix"
)
_UPWARDS = re.compile(
    r"(?:^|[._])(?:convtr|conv_t\d*|conv_?transpose\w*|deconv\w*|ups|up_?sampl\w+|upconv\w*)(?:[._]|$)", re.IGNORECASE
)
_LEAF = re.compile(
    r"^(?P<module>.*?)(?P<own>\.(?:base_layer\.)?(?:weight|weight_v|parametrizations\.weight\.original1|kernel))?"
    r"(?:\[(?P<part>[^\]]*)\])?\Z",
    re.DOTALL,  # a name is whatever a file calls it
)
_RECURRENT = re.compile(r"^(?P<module>.+)\.weight_ih_l(?P<layer>\d+)(?P<way>_reverse)?(?:\[(?P<gate>[^\]]*)\])?$")
_GATED = ".weight_ih_l"
_GATES = {4: "ifgo", 3: "rzn"}
_CONVOLUTION = _vocabulary("conv convolution conv1d conv2d conv3d c linear")  # of a numbered child, the matrix
_GROUP_NORMS = _vocabulary("norm gn groupnorm")  # what a group norm is called; a batch norm may be, too
GROUPS = 32  # of a group norm
MAX_MIXED = 8  # matrices of one module, above which only their numbers are looked at
MIN_WIDTH = 8  # of stacked experts: below, the last axis is a kernel's


@dataclass(frozen=True, slots=True)
class Found:
    """One order of hidden units: the rule, matrices that have the units as rows and as columns, and their vectors.

    group: units that can be exchanged among themselves, of grouped convolutions; 0 where all can.
    """

    rule: str
    rows: tuple[str, ...]
    columns: tuple[str, ...]
    vectors: tuple[str, ...]
    group: int = 0


@dataclass(slots=True)
class _Slot:
    """One matrix of a module, or the parts that it was cut into, which have one shape."""

    path: tuple[str, ...]
    names: list[str]
    shape: tuple[int, ...]
    plain: bool  # a `weight`, not a bare parameter

    @property
    def rows(self) -> int:
        return self.shape[0]

    @property
    def columns(self) -> int:
        return self.shape[1]

    @property
    def depthwise(self) -> bool:
        return len(self.shape) > 2 and self.shape[1] == 1 < self.shape[0]


@dataclass(slots=True)
class _Module:
    """A node of the module tree. children: component → whether one matrix is below it or more (1, 2), and the first."""

    children: dict[str, list] = field(default_factory=dict)

    def simple(self) -> dict[str, _Slot]:
        """The children that hold one matrix."""
        return {child: slot for child, (count, slot) in self.children.items() if count == 1 and slot.plain}


class _Tree:
    """Matrices by module, and which widths occur where."""

    def __init__(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        self.shapes = shapes
        self._slots = _slots(shapes)
        self.modules: dict[tuple[str, ...], _Module] = {}
        for slot in self._slots.values():
            self._add(slot)

    def _add(self, slot: _Slot) -> None:
        """Make the modules around a matrix that are new, and tell the others, up to one that knows of several."""
        path, depth = slot.path, len(slot.path)
        while depth and path[: depth - 1] not in self.modules:
            depth -= 1
        for new in range(depth, len(path)):
            self.modules[path[:new]] = _Module({path[new]: [1, slot]})
        while depth:
            depth -= 1
            below = self.modules[path[:depth]].children.setdefault(path[depth], [0, slot])
            if below[0] > 1:
                return
            below[0] += 1

    @cached_property
    def norms(self) -> dict[tuple[str, ...], list[str]]:
        """What may be a group norm, by its module."""
        found: dict[tuple[str, ...], list[str]] = {}
        for name, shape in self.shapes.items():
            path = tuple(name.split(".")[:-1]) if len(shape) == 1 else ()
            if path and words_of(path[-1]) & _GROUP_NORMS:
                found.setdefault(path[:-1], []).append(name)
        return found

    @cached_property
    def _own(self) -> dict[tuple[str, ...], Counter[int]]:
        """Widths of each module's own matrices, of modules with several."""
        found = {}
        for path, module in self.modules.items():
            if len(module.simple()) > 1:
                alone = [slot for count, slot in module.children.values() if count == 1 and not slot.depthwise]
                found[path] = Counter(width for slot in alone for width in slot.shape[:2])
        return found

    @cached_property
    def _alike(self) -> Counter[tuple[tuple[str, ...], tuple]]:
        """How many modules of the same widths are below a numbered module."""
        return Counter(
            (scope, tuple(sorted(own.items()))) for path, own in self._own.items() for scope in _scopes(path)
        )

    @cached_property
    def _widths(self) -> dict[tuple[str, ...], Counter[int]]:
        """Widths below each numbered module."""
        nearest: Counter[tuple[tuple[str, ...], tuple[int, ...]]] = Counter()
        for slot in self._slots.values():
            if not slot.depthwise:
                nearest[_scopes(slot.path)[0], slot.shape[:2]] += 1
        for name, shape in self.shapes.items():
            if len(shape) == 1:
                path = tuple(name.split(".")[:-1])
                home = path if path in self.modules else path[:-1]
                if path not in self._slots and home not in self._own:
                    nearest[_scopes(path)[0], shape] += 1
        found: dict[tuple[str, ...], Counter[int]] = {}
        for (inner, widths), count in nearest.items():
            for scope in _scopes(inner):
                below = found.setdefault(scope, Counter())
                for width in widths:
                    below[width] += count
        return found

    def outside(self, path: tuple[str, ...]) -> Counter[int]:
        """Widths around a module, without its own and those of modules of the same widths; of the nearest scope."""
        own = self._own[path]
        for scope in _scopes(path):
            alike = self._alike[scope, tuple(sorted(own.items()))]
            around = self._widths.get(scope, Counter())
            found = Counter({width: n for width in around if (n := around[width] - alike * own.get(width, 0)) > 0})
            if found:
                return found
        return Counter()

    def has(self, path: tuple[str, ...], width: int) -> bool:
        """Whether a matrix below a module has the width; two that squeeze and excite channels do not count."""
        module = self.modules.get(path)
        if module is None:
            return False
        simple = module.simple()
        if len(module.children) == len(simple) and _squeeze(simple):
            return False
        return any(
            self.has((*path, child), width) if count > 1 else width in slot.shape[:2]
            for child, (count, slot) in module.children.items()
        )

    def below(self, path: tuple[str, ...]) -> list[_Slot]:
        """All matrices below a module."""
        module = self.modules.get(path)
        if module is None:
            return []
        parts = module.children.items()
        return [s for child, (count, slot) in parts for s in ([slot] if count == 1 else self.below((*path, child)))]

    def vectors(self, rows: Sequence[_Slot]) -> tuple[str, ...]:
        """Biases of the matrices that write the units."""
        return tuple(name for name in _biases(rows) if self.shapes.get(name) == (rows[0].rows,))


def _slots(shapes: Mapping[str, tuple[int, ...]]) -> dict[tuple[str, ...], _Slot]:
    """The matrices by their module path, the parts of one together."""
    slots: dict[tuple[str, ...], _Slot] = {}
    for name, shape in shapes.items():
        if len(shape) < 2 or math.prod(shape[1:]) == 1:  # a gain
            continue
        path, plain = _path(name)
        slot = slots.setdefault(path, _Slot(path, [], shape, plain))
        if slot.shape == shape:
            slot.names.append(name)
    return slots


def units(
    shapes: Mapping[str, tuple[int, ...]], settled: Collection[str] = (), read: Collection[str] = ()
) -> dict[str, Found]:  # fmt: skip
    """Orders of hidden units by structure: a name of the order → what was found.

    shapes: canonical name → shape. settled: matrices whose rows are known already, read: those whose columns are; no
    order that is found here has one of the former for rows, and a module that holds nothing else is not looked at.
    Linear in the number of tensors.
    """
    tree = _Tree(shapes)
    found: dict[str, Found] = {}
    taken: set[str] = {*settled}
    known = taken.union(read)
    for path, module in tree.modules.items():
        if all(count == 1 and known.issuperset(slot.names) for count, slot in module.children.values()):
            continue
        for one in _of_module(tree, path, module):
            if not taken.intersection(one.rows):
                taken.update(one.rows)
                found[_order(one.rows[0])] = one
    return found | _recurrent(shapes)


@once_a_header
def cuts(entries: Mapping[str, Shaped]) -> dict[str, list[Part]]:
    """Where fused tensors are cut, by name (`fused_parts`) or else by structure: name → its parts, as there.

    By structure: rows that are two halves (GLU, Mamba's x and z), of which a matrix of the same module reads one;
    stacked experts, expert by expert; gates of an LSTM or GRU.
    """
    known = fused_parts(entries)
    shapes = {name: entry.shape for name, entry in entries.items() if entry.count and name not in known}
    tree = _Tree(shapes)
    found: dict[str, list[Part]] = {}
    for path, module in tree.modules.items():
        found |= _stacked(module) or _halves(tree, path, module) or _mlp_beside(module)
    for name, shape in shapes.items():
        match = _RECURRENT.match(name) if _GATED in name else None
        back = shapes.get(name.replace("weight_ih", "weight_hh"), ()) if match else ()
        count = back[0] // back[1] if len(back) == 2 else 0
        if count in _GATES and len(shape) == 2 and shape[0] == back[0] == count * back[1]:
            found[name] = _equal(back[0], _GATES[count])
    for name in [*found]:
        bias = re.sub(r"weight(?=$|_ih)", "bias", name)
        if bias != name and len(shapes[name]) < 3 and shapes.get(bias) == shapes[name][:1]:
            found[bias] = found[name]
    return known | found


def reason_left_out(name: str) -> str:
    """Why the rows of a matrix are no hidden units that are tested; name: canonical."""
    path, _ = _path(name)
    words = set().union(*(words_of(part) for part in path[-3:]))
    if words & (ATTENTION | _HEAD_PARTS):
        return "attention: what its heads hold can be exchanged within a head at most"
    if words & _NORMS:
        return "a norm or a modulation: its rows are the channels of all layers"
    if _UPWARDS.search(name):
        return "a transposed convolution: its rows are what it reads"
    if words & FIXED:
        return "its rows may be classes, tokens or pixels, which have an order of their own"
    return "no other matrix of its module reads exactly its rows: they may be channels of all layers"


def _of_module(tree: _Tree, path: tuple[str, ...], module: _Module) -> Iterable[Found]:
    """The orders of hidden units between the matrices that stand in one module."""
    slots = _candidates(path, module)
    dense = {child: slot for child, slot in slots.items() if not slot.depthwise}
    here = _Here(tree, path, slots, dense)
    lists = [*_paired(here, module), *_separable(here, module)]
    if not dense or _is_attention(path, dense):
        return [order.found(tree) for order in (*lists, *_beside_fused(here, module))]
    found = (_own_width(here) if len(dense) <= MAX_MIXED else []) or _sequence(here)
    if not found and len(dense) <= MAX_MIXED:
        found = _words(here) or _wider(here)
    found += _by_group(here, found) + _by_parts(here, module, found) + _beside(here, module) + _one_expert(here)
    return [order.found(tree) for order in found + lists]


class _Order(NamedTuple):
    rule: str
    rows: list[_Slot]
    columns: list[_Slot]
    group: int = 0

    def found(self, tree: _Tree) -> Found:
        rows, columns = (tuple(name for slot in slots for name in slot.names) for slots in (self.rows, self.columns))
        return Found(self.rule, rows, columns, () if self.group else tree.vectors(self.rows), self.group)


@dataclass(frozen=True, slots=True)
class _Here:
    """One module: its matrices by child, and of these the ones that are no depthwise convolutions."""

    tree: _Tree
    path: tuple[str, ...]
    slots: Mapping[str, _Slot]
    dense: Mapping[str, _Slot]

    def role(self, child: str) -> int:
        """Above 0: named as the way in; below: as the way out; 0: neither, or both. 1 and -1 are weak words."""
        words = set().union(*(words_of(part) for part in self.slots[child].path[len(self.path) :]))
        found = 2 * (bool(words & _FIRST) - bool(words & _LAST))
        if not words & (_FIRST | _LAST):
            found = min((_WEAKLY[word] for word in words & _WEAKLY.keys()), default=0)
        squeezed = {"reduce", "squeeze"} & words, {"expand", "excite"} & words
        if any(squeezed):  # a bottleneck or a gate reduces first, an inverted bottleneck expands first
            inverted = any(slot.depthwise for slot in self.slots.values())
            found = 2 * (bool(squeezed[inverted]) - bool(squeezed[not inverted]))
        return found

    def after(self, a: str, b: str) -> bool | None:
        """Whether b comes right after a, by number or name. None: nothing says; False: it does not."""
        if (steps := _steps(a, b)) is not None:
            between = [c for c in self.slots if (n := _steps(a, c)) is not None and 0 < n < steps]
            complete = a.isdecimal() or len(between) == steps - 1
            return steps == 1 or (steps > 1 and complete and all(self.slots[c].depthwise for c in between))
        first, second = self.role(a), self.role(b)
        return None if first == second else first > second

    def inside(self, width: int) -> bool:
        """Whether a part of the module that is more than one matrix has the width; gates of channels may."""
        children = self.tree.modules[self.path].children.items()
        return any(self.tree.has((*self.path, child), width) for child, (count, _) in children if count > 1)

    def own_layout(self, child: str) -> bool:
        """Whether the bias, if there is one, goes with the rows: (out, in)."""
        slot = self.slots[child]
        biases = [self.tree.shapes.get(name) for name in _biases([slot])]
        return all(bias is None or bias == (slot.rows,) for bias in biases)

    def other_layout(self, child: str) -> bool:
        """Whether the bias shows that the matrix is stored (in, out)."""
        slot = self.slots[child]
        return any(self.tree.shapes.get(name) == (slot.columns,) != (slot.rows,) for name in _biases([slot]))

    def norm_group(self, x: _Slot) -> int:
        """Channels that a group norm behind a convolution may take together: only they can be exchanged; 0 for all.

        32 groups are usual, and the groups of any power of two below hold whole ones of these.
        """
        if not _kernel(x) or len(x.shape) < 4 or x.rows % GROUPS or x.rows == GROUPS:
            return 0
        norms = [name for name in self.tree.norms.get(self.path, ()) if self.tree.shapes[name] == (x.rows,)]
        return x.rows // GROUPS if norms else 0

    def grouped(self, a: str, b: str) -> bool:
        """Whether the convolution `a`, which `b` reads, may go by groups: what it reads is not known otherwise."""
        x, y = self.dense[a], self.dense[b]
        if not _kernel(x):
            return False
        given = {slot.rows for slot in self.dense.values() if slot is not x}
        reads = {slot.columns for slot in self.dense.values() if slot is not x and slot is not y}
        if x.columns in given | reads or y.rows == x.columns:
            return False
        return any(width % x.columns == 0 and width > x.columns > 4 for width in given)


def _candidates(path: tuple[str, ...], module: _Module) -> dict[str, _Slot]:
    """The matrices of a module that may hold hidden units: not those of heads, norms and modulations."""
    feed_forward = bool(path) and bool(words_of(path[-1]) & _FEED_FORWARD)
    barred = _NORMS if feed_forward else _NORMS | _HEAD_PARTS
    found = {}
    for child, slot in module.simple().items():
        below = slot.path[len(path) :]
        if not any(words_of(part) & barred for part in below) and not _UPWARDS.search(".".join(below)):
            found[child] = slot
    return found


def _own_width(here: _Here) -> list[_Order]:
    """Widths that a module has for itself, written and read by it, while what it reads and gives is found outside."""
    if len(here.dense) < 2:
        return []
    around = here.tree.outside(here.path)
    found: list[_Order] = []
    for width in sorted({w for slot in here.dense.values() for w in slot.shape[:2]}, reverse=True):
        rows = {child: slot for child, slot in here.dense.items() if slot.rows == width}
        columns = {child: slot for child, slot in here.dense.items() if slot.columns == width}
        if not rows or not columns or around.get(width) or rows.keys() & columns.keys():
            continue
        outer = {slot.columns for slot in rows.values()} | {slot.rows for slot in columns.values()}
        kernels = {_kernel(slot) for slot in columns.values()}
        if not any(around.get(w) for w in outer) or len(kernels) > 1:
            continue
        if all(any(_may_follow(here, c, b) for c in rows if rows[c].shape == rows[a].shape) and not _fixed(a)
               for a in rows for b in columns):  # fmt: skip
            found.append(_Order("own width", [*rows.values()], [*columns.values()]))
    return found


def _may_follow(here: _Here, a: str, b: str) -> bool:
    """Whether nothing speaks against b reading what a writes; in the layout (in, out), a is the one that reads."""
    if here.other_layout(a):
        return here.after(b, a) is not False
    return here.after(a, b) is not False and not _fixed(a) and not here.grouped(a, b)


def _sequence(here: _Here) -> list[_Order]:
    """Matrices in the order of their numbers, each of which reads exactly what the one before it writes."""
    found: list[_Order] = []
    pairs = _consecutive(here.dense)
    before = {second: here.dense[first] for first, second in pairs}
    for first, second in pairs:
        x, y = here.dense[first], here.dense[second]
        fits = x.rows == y.columns and not _fixed(first) and here.own_layout(first)
        if not fits or here.after(first, second) is False or here.grouped(first, second):
            continue
        if _branches(here, x, y) or (first.isdecimal() and not _in_line(here, first, second)):
            continue
        if (ahead := before.get(first)) is not None:
            by_groups = ahead.rows != x.columns and ahead.rows % x.columns == 0
            gated = ahead.shape == y.shape and x.rows != x.columns  # gate, down, up: the third reads what the first
            if by_groups or gated:
                continue
        if group := here.norm_group(x):
            found.append(_Order("by group", [x], [], group))
        else:
            found.append(_Order("sequence", [x], [y]))
    return found


def _branches(here: _Here, x: _Slot, y: _Slot) -> bool:
    """Whether two convolutions may stand side by side and be added, as in RepVGG (Ding et al. 2021)."""
    square = x.rows == x.columns == y.rows == y.columns
    normed = all(len(slot.path) > len(here.path) + 1 for slot in (x, y))
    return square and normed and len(here.dense) == 2 and len(x.shape) == 4 and _kernel(x) and not _kernel(y)


def _in_line(here: _Here, first: str, second: str) -> bool:
    """Whether numbered children are steps of one sequence, and no list of layers with connections around each."""
    below = [here.slots[child].path[len(here.path) + 1 :] for child in (first, second)]
    plain = all(not path or (len(path) == 1 and path[0] in _CONVOLUTION) for path in below)
    skipped = int(second) - int(first) > 1  # by an activation or a norm
    changes = here.slots[first].rows != here.slots[first].columns
    return plain and (skipped or changes or "mid" in "".join(here.path[-1:]))


def _consecutive(dense: Mapping[str, _Slot]) -> list[tuple[str, str]]:
    """Pairs of children that follow each other by number (conv1, conv2; 0, 3) or letter (conv_a, conv_b)."""
    if digits := sorted((child for child in dense if child.isdecimal()), key=int):
        return [*pairwise(digits)]
    at: dict[tuple[str, int], list[str]] = {}
    for child in dense:
        for key in _numbers(child).items():
            at.setdefault(key, []).append(child)
    pairs = []
    for (stem, number), here in at.items():
        following = at.get((stem, number + 1), [])
        if len(here) == len(following) == 1 and here != following:
            pairs.append((here[0], following[0]))
    return sorted(dict.fromkeys(pairs))


def _numbers(child: str) -> dict[str, int]:
    """What stands before each number of a component → the number; a last letter counts as one."""
    letter = re.search(r"_([a-e])$", child)
    found = {"_": ord(letter[1])} if letter else {}
    return found | {child[: match.start()]: int(match[0]) for match in re.finditer(r"\d+", child)}


def _steps(a: str, b: str) -> int | None:
    """By how much the number of b is above that of a, where both have one behind the same beginning."""
    ours, theirs = _numbers(a), _numbers(b)
    return next((theirs[stem] - number for stem, number in ours.items() if theirs.get(stem, number) != number), None)


def _words(here: _Here) -> list[_Order]:
    """One matrix named as the way out, and all that write what it reads, named as ways in."""
    ways_in = [child for child in here.dense if here.role(child) > 0]
    ways_out = [child for child in here.dense if here.role(child) < 0]
    if len(ways_out) != 1 or not ways_in:
        return []
    width = here.dense[ways_out[0]].columns
    rows = [here.dense[child] for child in ways_in if here.dense[child].rows == width]
    sound = all(not _fixed(a) and here.own_layout(a) and not here.grouped(a, ways_out[0]) for a in ways_in)
    if len(rows) != len(ways_in) or not sound or here.inside(width):
        return []
    return [_Order("words", rows, [here.dense[ways_out[0]]])]


def _wider(here: _Here) -> list[_Order]:
    """Two matrices of a feed-forward module, or around a depthwise convolution, that are wider between them."""
    if len(here.dense) != 2 or any(_fixed(child) for child in here.dense):
        return []
    a, b = sorted(here.dense, key=lambda child: -here.dense[child].rows)
    x, y = here.dense[a], here.dense[b]
    between = any(slot.depthwise and slot.rows == x.rows for slot in here.slots.values())
    named = bool(here.path) and bool(words_of(here.path[-1]) & _FEED_FORWARD)
    fits = x.rows == y.columns and x.rows > max(x.columns, y.rows) and _may_follow(here, a, b)
    if not fits or here.inside(x.rows) or not (between or named):
        return []
    return [_Order("wider inside", [x], [y])]


def _beside(here: _Here, module: _Module) -> list[_Order]:
    """The feed-forward layer beside attention: one matrix reads both results, side by side (Flux's single blocks)."""
    if not any(words_of(child) & ATTENTION for child in module.children):
        return []
    return [
        _Order("beside", [x], []) for child, x in here.dense.items()
        if "mlp" in words_of(child) and len(x.shape) == 2 and here.own_layout(child)
        and sum(y.shape == (x.columns, x.rows + x.columns) for y in here.dense.values()) == 1
    ]  # fmt: skip


def _beside_fused(here: _Here, module: _Module) -> list[_Order]:
    """The same where one matrix writes q, k and v, and gate and up behind them (Flux.2)."""
    simple = module.simple().items()
    return [
        _Order("beside", [x], []) for child, x in simple
        if "mlp" in words_of(child) and [name[-4:] for name in x.names] == ["ate]", "[up]"]
        and any(y.shape == (x.columns, x.rows + x.columns) for _, y in simple)
    ]  # fmt: skip


def _separable(here: _Here, module: _Module) -> list[_Order]:
    """Separable convolutions in turn, each a depthwise and a pointwise one (Xception, Chollet 2017): what the pointwise
    one writes goes through the next one's depthwise kernels, channel by channel."""
    found = {}
    for child, (count, _) in module.children.items():
        below = here.tree.modules[(*here.path, child)].simple() if count == 2 else {}
        parts = sorted(below.values(), key=lambda slot: slot.depthwise)
        if [slot.depthwise for slot in parts] == [False, True] and parts[1].rows == parts[0].columns:
            found[child] = parts[0]
    orders = []
    for first, second in _consecutive(found):
        named = any(words_of(child) & {"conv", "separable", "sepconv"} for child in (first, second))
        apart = int(second) - int(first) > 1 if first.isdecimal() else named and _steps(first, second) == 1
        x, y = found[first], found[second]
        if apart and x.rows == y.columns and not _kernel(x) and len(x.shape) > 2:
            orders.append(_Order("sequence", [x], [y]))
    return orders


def _by_parts(here: _Here, module: _Module, found: Sequence[_Order]) -> list[_Order]:
    """A pointwise convolution whose channels go to several convolutions side by side, part by part (Res2Net, Gao et al.
    2019; selective kernels; split attention): they can be exchanged within what one of these reads as a group."""
    taken = {id(slot) for order in found for slot in order.rows}
    orders = []
    for first, x in here.dense.items():
        for child, (count, slot) in module.children.items():
            plural = (first, child) == ("conv1", "convs")
            if (
                not (plural or (count > 1 and _steps(first, child) == 1))
                or id(x) in taken
                or _kernel(x)
                or len(x.shape) < 4
            ):
                continue
            below = here.tree.below((*here.path, child)) if count > 1 else [slot]
            kernels = [slot for slot in below if _kernel(slot)]
            reads = {slot.columns for slot in kernels}
            if len(reads) != 1 or _fixed(first) or not here.own_layout(first):
                continue
            (size,) = reads
            if 1 < size < x.rows and x.rows % size == 0:
                orders.append(_Order("by group", [x], [], size))
    return orders


def _paired(here: _Here, module: _Module) -> list[_Order]:
    """Two lists of convolutions: convs1.i is read by convs2.i, with an identity around (HiFi-GAN, Kong et al. 2020)."""
    lists = [child for child, (count, _) in module.children.items() if count > 1 and re.fullmatch(r"convs?\d", child)]
    found = []
    for first, second in ((a, b) for a in lists for b in lists if _steps(a, b) == 1):
        ours, theirs = (here.tree.modules[(*here.path, child)].simple() for child in (first, second))
        for i in ours.keys() & theirs.keys():
            if i.isdecimal() and ours[i].rows == ours[i].columns == theirs[i].columns == theirs[i].rows:
                found.append(_Order("sequence", [ours[i]], [theirs[i]]))
    return sorted(found, key=lambda order: order.rows[0].path)


def _by_group(here: _Here, found: Sequence[_Order]) -> list[_Order]:
    """Around grouped convolutions: the units that one of its groups reads, or writes, can be exchanged."""
    taken = {id(slot) for order in found for slot in order.rows}
    orders = []
    for first, second in _consecutive(here.dense):
        x, y = here.dense[first], here.dense[second]
        named = not first.isdecimal() and here.after(first, second) and not _fixed(first) and here.own_layout(first)
        if not named or id(x) in taken or len(y.shape) < 3 or not 1 < y.columns < x.rows or x.rows % y.columns:
            continue
        groups = x.rows // y.columns
        if y.rows % groups or not _kernel(y) or (x.columns < y.columns and _kernel(x)):
            continue
        orders.append(_Order("by group", [x], [], y.columns))
        after = [here.dense[b] for a, b in _consecutive(here.dense) if a == second]
        if len(after) == 1 and after[0].columns == y.rows and id(y) not in taken and y.rows > groups:
            orders.append(_Order("by group", [y], [], y.rows // groups))
    return orders


def _kernel(slot: _Slot) -> bool:
    """Whether a convolution looks at more than one place."""
    return len(slot.shape) > 2 and slot.shape[2:] != (1,) * len(slot.shape[2:])


def _one_expert(here: _Here) -> list[_Order]:
    """The part of one expert, of a stack (expert, in, out) whose other stacks are not cut: its rows are the units."""
    if len(here.dense) != 1 or not here.path or not here.path[-1].isdecimal():
        return []
    slot = next(iter(here.dense.values()))
    above = here.tree.modules.get(here.path[:-1])
    if above is None:
        return []
    stacks = [other.shape for _, other in above.children.values() if len(other.shape) == 3]
    stacks = [shape for shape in stacks if int(here.path[-1]) < shape[0]]
    fits = any(shape[1] == slot.columns and shape[2] in (slot.rows, 2 * slot.rows) for shape in stacks)
    return [_Order("stacked experts", [slot], [])] if fits else []


def _halves(tree: _Tree, path: tuple[str, ...], module: _Module) -> dict[str, list[Part]]:
    """The matrix of a module whose rows are two halves of which another one reads one."""
    shapes = {slot.shape[:2] for count, slot in module.children.values() if count == 1}
    if shapes.isdisjoint([(2 * columns, rows) for rows, columns in shapes]):
        return {}
    slots = _candidates(path, module)
    dense = {child: slot for child, slot in slots.items() if not slot.depthwise}
    stacks = any(count == 1 and not slot.plain and len(slot.shape) > 2 for count, slot in module.children.values())
    if not path or stacks or not 2 <= len(dense) <= 5 or _is_attention(path, dense):
        return {}
    here = _Here(tree, path, slots, dense)
    dense = {child: slot for child, slot in dense.items() if not words_of(child) & ATTENTION}  # which stands beside
    for (first, x), (second, y) in ((a, b) for a in dense.items() for b in dense.items() if a is not b):
        width = y.columns
        others = [slot for slot in dense.values() if slot is not x and slot is not y]
        if (
            x.rows != 2 * width
            or x.columns != y.rows
            or any(width not in slot.shape[:2] and slot.rows != slot.columns for slot in others)
        ):
            continue
        depthwise = {slot.rows for slot in slots.values() if slot.depthwise}
        if depthwise - {width, 2 * width}:
            continue  # MambaOut's: it looks at the last of the units only, which are others than the first
        between = width in depthwise
        inside = [slot for slot in others if width in slot.shape[:2]]
        if (inside and not between) or (width == x.columns and not between) or _fixed(first):
            continue
        if here.after(first, second) and here.own_layout(first):
            return {x.names[0]: _equal(x.rows * _per_row(x.shape), ("gate", "up"))}
    return {}


def _mlp_beside(module: _Module) -> dict[str, list[Part]]:
    """The matrix that writes gate and up, alone or behind q, k and v, where another one reads attention's result and
    theirs side by side: (2h or 3d + 2h, d) and (d, d + h)."""
    simple = module.simple()
    for child, x in simple.items():
        if "mlp" not in words_of(child) or len(x.shape) != 2 or not x.plain:
            continue
        d = x.columns
        for y in simple.values():
            h = y.columns - d if y.shape[:1] == (d,) and len(y.shape) == 2 else 0
            if h > 0 and h != d and x.rows == 2 * h:
                return {x.names[0]: _equal(x.rows, ("gate", "up"))}
            if h > 0 and h != d and x.rows == 3 * d + 2 * h and "qkv" in words_of(child):
                ends = [0, d, 2 * d, 3 * d, 3 * d + h, 3 * d + 2 * h]
                return {x.names[0]: [*zip(("q", "k", "v", "gate", "up"), ends, ends[1:], strict=False)]}
    return {}


def _stacked(module: _Module) -> dict[str, list[Part]]:
    """Experts stacked along the first axis: the tensors whose rows are hidden units, expert by expert."""
    stacks = [slot for count, slot in module.children.values() if count == 1 and len(slot.shape) == 3]
    if not 2 <= len(stacks) <= 3 or len({slot.rows for slot in stacks}) != 1 or not 1 < stacks[0].rows <= MAX_EXPERTS:
        return {}
    if any(min(slot.shape[1:]) < MIN_WIDTH for slot in stacks):
        return {}
    experts = [str(e) for e in range(stacks[0].rows)]
    if any("w13" in slot.names[0] for slot in stacks):
        return {}  # Inkling's: gate and up row by row in turn
    for last in stacks:
        first = [slot for slot in stacks if slot is not last]
        _, a, b = last.shape
        # (expert, out, in): the last one is (e, d, h), the others (e, h or 2h, d)
        if all(slot.shape[2] == a and slot.shape[1] in (b, 2 * b) for slot in first):
            if len(first) == 1 and first[0].shape[1] == b:
                continue  # which of two widths is the hidden one does not show
            found = {last.names[0]: _equal(last.rows * a, experts)}
            for slot in first:
                halves = slot.shape[1] == 2 * b
                labels = [f"{e}.{half}" for e in experts for half in ("gate", "up")] if halves else experts
                found[slot.names[0]] = _equal(slot.rows * slot.shape[1], labels)
            return found
        # (expert, in, out): the last one is (e, h, d), the others (e, d, h or 2h)
        if all(slot.shape[1] == b and slot.shape[2] in (a, 2 * a) for slot in first):
            if len(first) == 1 and first[0].shape[2] == a:
                continue
            return {last.names[0]: _equal(last.rows * a, experts)}
    return {}


def _recurrent(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Found]:
    orders: dict[str, list[str]] = {}
    for name in shapes:
        if _GATED in name and (match := _RECURRENT.match(name)) and match["gate"]:
            orders.setdefault(f"{match['module']}.l{match['layer']}{match['way'] or ''}", []).append(name)
    back = {order: re.sub(r"\[.*", "", names[0]).replace("weight_ih", "weight_hh") for order, names in orders.items()}
    return {
        order: Found("recurrent gates", tuple(names), tuple(n for n in (back[order],) if n in shapes), ())
        for order, names in orders.items()
    }


def _path(name: str) -> tuple[tuple[str, ...], bool]:
    """The module path of a matrix, and whether it is a module's weight; an expert's part stands below its number."""
    if name.endswith(".weight") and "base_layer" not in name:  # nearly all are
        return tuple(name[: -len(".weight")].split(".")), True
    match = _LEAF.match(name)
    assert match
    path = tuple(match["module"].split("."))
    part = match["part"] or ""
    expert = part.split(".")[0]
    if expert.isdecimal():
        return (*path[:-1], expert, path[-1]), True
    return path, match["own"] is not None


def _scopes(path: tuple[str, ...]) -> list[tuple[str, ...]]:
    """The numbered modules around a path, the nearest first, and all."""
    return [path[: i + 1] for i in range(len(path) - 1, -1, -1) if path[i].isdecimal()] + [()]


def _order(name: str) -> str:
    match = _LEAF.match(name)
    assert match
    expert = (match["part"] or "").split(".")[0]
    return f"{match['module']}.{expert}" if expert.isdecimal() else match["module"]


_WORD = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])|\d+")


@lru_cache(maxsize=1 << 14)  # of a large model the same few words stand in every layer
def words_of(component: str) -> frozenset[str]:
    """Words of one component, in lower case: also without the digits that end them, and all as one."""
    words = frozenset(word.lower() for word in _WORD.findall(component))
    return words | {re.sub(r"[\d_]", "", component).lower(), component.lower()}


def _fixed(child: str) -> bool:
    return bool(words_of(child) & FIXED) or child in ("out", "output")


def _is_attention(path: tuple[str, ...], dense: Mapping[str, _Slot]) -> bool:
    """Whether the module, or one around it inside its block, is attention; two 1 × 1 matrices of it may be a gate."""
    inner = path
    for i in range(len(path) - 1, -1, -1):
        if path[i].isdecimal():
            inner = path[i + 1 :]
            break
    return any(words_of(component) & ATTENTION for component in inner) and not _squeeze(dense)


def _squeeze(dense: Mapping[str, _Slot]) -> bool:
    """Whether two matrices squeeze and excite channels: 1 × 1 convolutions, narrower inside (Hu et al. 2018)."""
    shapes = [slot.shape for slot in dense.values()]
    if len(shapes) != 2 or any(len(shape) != 4 or shape[2:] != (1, 1) for shape in shapes):
        return False
    (a, b), (c, d) = (shape[:2] for shape in shapes)
    return (a, b) == (d, c) and 2 * min(a, b) <= max(a, b)


def _biases(slots: Iterable[_Slot]) -> list[str]:
    """Names of the biases that belong to matrices, whether there are such tensors or not."""
    names = (name for slot in slots for name in slot.names)
    return [re.sub(r"\.(?:weight\w*|parametrizations\.weight\.original1)(?=$|\[)", ".bias", name) for name in names]


def _per_row(shape: tuple[int, ...]) -> int:
    """Rows of the last axis in one entry of the first."""
    count = 1
    for size in shape[1:-1]:
        count *= size
    return count


def _equal(rows: int, labels: Iterable[str]) -> list[Part]:
    labels = list(labels)
    step = rows // len(labels)
    return [(label, i * step, (i + 1) * step) for i, label in enumerate(labels)]
