"""Guessed hidden units held against the code that runs them: are they exchangeable in the module itself?

`coverage` tells hidden units from names and shapes. Where the class of a model is in an installed library, or the model
is a module in memory, each kind of units is tried out: the smallest module that holds their matrices gets random
weights and runs twice, the second time with the units in another order. See docs/methods.md, *Units checked by
running*. Weights are not read, and code of the model's repo is not run.
"""

from __future__ import annotations

import inspect
import itertools
import logging
import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.modules.conv import _ConvNd
from torch.utils._pytree import tree_leaves, tree_map_only

from ..answers.coverage import CheckedKind, UnitCheck
from ..architecture.conventions import canonical_names
from ..architecture.describe import Architecture, short_names
from ..architecture.structure import cuts
from ..checkpoints.checkpoint import Checkpoint, HeaderCheckpoint
from ..checkpoints.view import View
from ..errors import LineageError
from .networks import Images, Tokens, copy_on_meta, module_of_config, standard_inputs, stored_names

Seen = tuple[Literal["holds", "contradicted", "not_run"], str]
MAX_ELEMENTS = 1 << 28  # parameters of a module that is filled and run
SAME, CHANGED = 1e-4, 1e-3  # largest change of an output over its largest value: rounding, and more than that
MAX_TRIES = 24  # arguments that are tried on a module whose call was not seen
TOKENS_RUN, SIDE = 8, 16  # of inputs that are made up


@dataclass(frozen=True, slots=True)
class _Tensor:
    """Rows `first` to `stop` (as `View` counts them) of a parameter, of this shape."""

    parameter: str
    first: int
    stop: int
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class _Order:
    """One order of h units by the network's parameters: what has them as rows, as columns, as elements."""

    rows: list[_Tensor]
    columns: list[_Tensor]
    vectors: list[_Tensor]
    group: int

    @property
    def units(self) -> int:
        return self.rows[0].shape[0]

    def permutation(self, generator: torch.Generator) -> Tensor:
        """Of the units, within their groups."""
        size = self.group or self.units
        starts = range(0, self.units, size)
        return torch.cat([start + torch.randperm(size, generator=generator) for start in starts])


def check_units(view: View, like: nn.Module | None = None) -> UnitCheck:
    """What the code says of each kind of the hidden units of `view`; of a kind the first order is run.

    like: the model itself, where it is a module in memory.
    """
    try:
        if like is None:
            module, where = module_of_config(view)
        else:
            module, where = copy_on_meta(like).eval(), f"{type(like).__name__}, the module itself"
    except LineageError as error:
        return UnitCheck(None, reason=str(error))
    known, names = view.architecture, _parameters(view, module, stored_names(module, view))
    run = _Runs(module, view)
    kinds: dict[tuple, list[str]] = {}
    for order, rows in known.orders.items():
        shapes = tuple(view[name].shape for name in rows)
        kinds.setdefault((_pattern(rows[0]), known.rules[order], shapes, known.groups.get(order, 0)), []).append(order)
    merged: dict[tuple[str, str, str], CheckedKind] = {}
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]), torch.no_grad():
        warnings.simplefilter("ignore")  # a library's, about random inputs
        for (pattern, rule, _, _), orders in kinds.items():
            result, reason = _check(run, known, names, orders[0])
            one = merged.setdefault((pattern, rule, result), CheckedKind(pattern, rule, 0, result, reason))
            merged[pattern, rule, result] = replace(one, orders=one.orders + len(orders))
    return UnitCheck(where, tuple(merged.values()))


def _pattern(name: str) -> str:
    return re.sub(r"\d+", "#", re.sub(r"\[.*", "", name))


def _parameters(view: View, module: nn.Module, stored: Mapping[str, str]) -> dict[str, _Tensor]:
    """The view's tensors that the module has, too → which rows of which parameter they are."""
    called = {stored.get(name, name): name for name, _ in module.named_parameters()}
    header = HeaderCheckpoint({name: ("F32", tuple(module.get_parameter(own).shape)) for name, own in called.items()})
    theirs = View(header, cuts(header))
    by_short = canonical_names(theirs)
    found = {}
    for name, short in short_names(view).items():
        own = by_short.get(short)
        if own is not None and theirs[own].shape == view[name].shape:
            parameter, first = theirs.place(own)
            width = header[parameter].shape[-1] if len(header[parameter].shape) > 1 else 1
            found[name] = _Tensor(
                called[parameter], first // width, (first + theirs[own].count) // width, theirs[own].shape
            )
    return found


def _check(run: _Runs, known: Architecture, names: Mapping[str, _Tensor], order: str) -> Seen:
    """What running says of one order of units."""
    rows, columns, vectors = (
        [names[name] for name in found.get(order, ()) if name in names]
        for found in (known.orders, known.reads, known.vectors)
    )
    if known.rules[order] == "recurrent gates":
        return "not_run", "a recurrent layer is one operation: its gates are exchanged together inside it"
    if len(rows) < len(known.orders[order]):
        return "not_run", "the library's class has no parameter of this name and shape"
    return run.check(_Order(rows, columns, vectors, known.groups.get(order, 0)))


class _Runs:
    """A network whose modules are run one at a time, with the arguments that they get inside it where that shows."""

    def __init__(self, module: nn.Module, checkpoint: Checkpoint) -> None:
        self.module = module.eval()
        self.modules = dict(module.named_modules())
        self.seen = _calls(module, checkpoint)

    def check(self, order: _Order) -> Seen:
        """Whether the order's units are exchangeable in the smallest module that runs with them, or one around it."""
        parts = [*order.rows, *order.columns, *order.vectors]
        said: Seen = ("not_run", "no module around it could be run with inputs that were made up")
        for path in _around([tensor.parameter for tensor in parts], self.modules):
            scope = self.modules[path]
            sizes = [p.numel() // _copies(scope, name) for name, p in scope.named_parameters()]
            if sum(sizes) > MAX_ELEMENTS:
                return "not_run", f"the module that holds it has more than {MAX_ELEMENTS:,} parameters"
            trial = _Trial.begin(path, scope, order, self._arguments(path, scope))
            if trial is None:
                continue
            said, left = trial.exchange()
            if not left:  # the units stay inside
                return said
        return said

    def _arguments(self, path: str, scope: nn.Module) -> Iterator[tuple[tuple, dict[str, Any]]]:
        if path in self.seen:
            yield self.seen[path]
        else:
            yield from itertools.islice(_made_up(scope), MAX_TRIES)


def _around(parameters: Sequence[str], modules: Mapping[str, nn.Module]) -> Iterator[str]:
    """Paths of modules around parameters, the innermost first; none that is a single matrix."""
    paths = [name.split(".")[:-1] for name in parameters]
    depth = 0
    while all(len(path) > depth for path in paths) and len({path[depth] for path in paths}) == 1:
        depth += 1
    for i in range(depth, -1, -1):
        path = ".".join(paths[0][:i])
        holder = modules[path]
        if not isinstance(holder, (nn.ModuleList, nn.ModuleDict)) and not _channel_axis(holder):
            yield path


# ---- one module, run in two orders


@dataclass
class _Trial:
    """A module with random parameters, its arguments and what it gave for them; inputs: of each matrix in it."""

    path: str
    scope: nn.Module
    order: _Order
    values: dict[str, Tensor]
    call: tuple[tuple, dict[str, Any]]
    outputs: list[Tensor]
    inputs: dict[str, list[Tensor]]
    readers: set[str] = field(default_factory=set)
    unmoved: set[str] = field(default_factory=set)  # said to read the units, and got what it had got before

    @classmethod
    def begin(
        cls, path: str, scope: nn.Module, order: _Order, arguments: Iterable[tuple[tuple, dict[str, Any]]]
    ) -> _Trial | None:  # fmt: skip
        """The first arguments with which the module runs; None where there are none."""
        values = _values(path, scope, order)
        for call in arguments:
            inputs: dict[str, list[Tensor]] = {}

            def keep(name: str, x: Tensor, inputs: dict[str, list[Tensor]] = inputs) -> Tensor:
                inputs.setdefault(name, []).append(x)
                return x

            with suppress(Exception), _at_inputs(scope, keep):  # a module may fail in any way on made-up inputs
                outputs = _outputs(torch.func.functional_call(scope, values, *call))
                if outputs and all(bool(x.isfinite().all()) for x in outputs):
                    return cls(path, scope, order, values, call, outputs, inputs)
        return None

    def exchange(self) -> tuple[Seen, bool]:
        """What the module says of its units, and whether they leave it in their own order."""
        permutation = self.order.permutation(torch.Generator().manual_seed(1))
        rows = self._permuted(permutation, read=False)
        whole = self._permuted(permutation, read=True)
        alone = self._changed(_outputs(torch.func.functional_call(self.scope, rows, *self.call)))
        if alone < CHANGED:
            return ("not_run", f"{self._name()} gave the same whatever the order was: its units were not run"), False
        change, partners = self._changed(outputs := self._run(whole)), ""
        if self.unmoved:
            return ("contradicted", f"{min(self.unmoved)} does not read them in {self._name()}"), False
        if change > SAME:
            for said, values, along in self._along(whole, permutation):
                if self._changed(self._run(values, along)) <= SAME:
                    change, partners = 0.0, said
                    break
        if change <= SAME:
            readers = sorted(self.readers)
            also = f", put back before {', '.join(readers[:3])}" if readers else ""
            return ("holds", f"{self._name()} gives the same in any order of them{partners}{also}"), False
        leaves = (
            not self.order.columns
            and len(outputs) == len(self.outputs)
            and all(map(_same_channels, self.outputs, outputs))
        )
        return ("contradicted", f"{self._name()} gives something else in another order ({change:.2g} of it)"), leaves

    def _name(self) -> str:
        return f"{type(self.scope).__name__}{f' ({self.path})' if self.path else ''}"

    def _permuted(self, permutation: Tensor, read: bool) -> dict[str, Tensor]:
        """The parameters with the units in another order, where they are written and, `read`, where they are read."""
        values = dict(self.values)
        wanted = [(tensor, 0) for tensor in (*self.order.rows, *self.order.vectors)]
        wanted += [(tensor, 1) for tensor in self.order.columns] if read else []
        changed: dict[str, Tensor] = {}
        for tensor, axis in wanted:
            name = _below(self.path, tensor.parameter)
            copies = _copies(self.scope, name)  # all experts are the first one, and stay so
            whole = changed.setdefault(name, values[name][: len(values[name]) // copies].clone())
            width = whole.shape[-1] if whole.ndim > 1 else 1
            first, stop = (at % (whole.numel() // width) for at in (tensor.first, tensor.stop - 1))
            part = whole.view(-1, width)[first : stop + 1]
            part.copy_(part.reshape(tensor.shape).index_select(axis, permutation).reshape(part.shape))
        return values | {name: whole.expand(values[name].shape) for name, whole in changed.items()}

    def _run(self, values: dict[str, Tensor], partners: Mapping[str, Tensor] | None = None) -> list[Tensor]:
        """The outputs. A matrix whose input is the first run's with channels in another order gets it as it was: it
        reads the units, whoever it is. Those that are said to read them have their own columns in that order."""
        wrote, told = (
            {_below(self.path, t.parameter).rpartition(".")[0] for t in tensors}
            for tensors in (self.order.rows, self.order.columns)
        )
        calls: dict[str, int] = {}

        def put_back(name: str, x: Tensor) -> Tensor:
            at = calls[name] = calls.get(name, -1) + 1
            before = self.inputs.get(name, [])
            module = self.scope.get_submodule(name)
            if name in wrote or at >= len(before) or before[at].shape != x.shape or _is_depthwise(module):
                return x
            if name in told:  # of a matrix that is stored (in, out), it is the one that writes them
                self.unmoved |= {name} if torch.equal(before[at], x) and _writes(module) != self.order.units else set()
                return x
            found = _order_of(before[at], x, _channel_axis(module) or -1)
            if found is None or not bool((found != torch.arange(len(found))).any()):
                return x
            self.readers.add(name)
            return before[at]

        self.readers, self.unmoved = set(), set()
        with _at_inputs(self.scope, put_back), _at_output(self.scope, partners or {}):
            return _outputs(torch.func.functional_call(self.scope, values, *self.call))

    def _changed(self, outputs: Sequence[Tensor]) -> float:
        """The largest change of an output, over its largest value."""
        if [x.shape for x in outputs] != [x.shape for x in self.outputs]:
            return float("inf")
        both = [(a, b) for a, b in zip(outputs, self.outputs, strict=True) if b.numel()]
        changes = [(a - b).abs().max() / b.abs().max().clamp_min(1e-30) for a, b in both]
        return max((float(change) for change in changes), default=0.0)

    def _along(
        self, values: dict[str, Tensor], permutation: Tensor
    ) -> Iterator[tuple[str, dict[str, Tensor], dict[str, Tensor]]]:
        """What else may write the units, in words, the parameters, and what is written in which order then: one other
        matrix of as many outputs, as a gate of channels has; a list of matrices, of which each writes one part, the
        first the second or the first; where experts are stacked, those beside, gate and up in halves or in turn."""
        own = {_below(self.path, t.parameter) for t in (*self.order.rows, *self.order.columns)}
        modules = {name.rpartition(".")[0] for name in own}
        for name, module in self.scope.named_modules():
            if name not in modules and _channel_axis(module) and _writes(module) == self.order.units:
                yield f", together with what {name} writes", values, {name: permutation}
        for name, module in self.scope.named_modules():
            parts = [*module.named_children()] if isinstance(module, nn.ModuleList) else []
            size = _writes(parts[0][1]) if parts else 0
            if size and len(permutation) % size == 0 and {_writes(part) for _, part in parts} == {size}:
                cut = [part - part.min() for part in permutation.split(size)]
                for shift in (1, 0):
                    along = {f"{name}.{part}": order for (part, _), order in zip(parts, cut[shift:], strict=False)}
                    yield f", together with what those of {name} write", values, along
        beside = [n for n in values if n not in own and n.rpartition(".")[0] in modules and _copies(self.scope, n) > 1]
        for way in ("in halves", "in turn") if beside else ():
            h = len(permutation)
            twice = (permutation, permutation + h) if way == "in halves" else (2 * permutation, 2 * permutation + 1)
            orders = {h: permutation, 2 * h: torch.stack(twice, 0 if way == "in halves" else 1).flatten()}
            moved = {n: values[n][..., orders[values[n].shape[-1]]] for n in beside if values[n].shape[-1] in orders}
            yield f", gate and up of {', '.join(sorted(moved))} {way}", values | moved, {}


def _below(path: str, name: str) -> str:
    return name[len(path) + 1 :] if path else name


def _values(path: str, scope: nn.Module, order: _Order) -> dict[str, Tensor]:
    """Random matrices; vectors that are not among the units' are constant, as are kernels of depthwise convolutions
    and bare parameters with a row per unit: in any order of the units they are what they were."""
    generator = torch.Generator().manual_seed(0)
    told = {_below(path, t.parameter) for t in (*order.rows, *order.columns, *order.vectors)}
    values = {}
    for name, parameter in scope.named_parameters():
        shape = tuple(parameter.shape)
        if not parameter.is_floating_point():
            continue
        owner = scope.get_submodule(name.rpartition(".")[0])
        copies = _copies(scope, name)
        drawn = torch.randn((shape[0] // copies, *shape[1:]) if shape else (), generator=generator)
        if len(shape) > 1:
            drawn *= max(1, drawn[0].numel() if len(shape) != 3 or _channel_axis(owner) else shape[-1]) ** -0.5
        if name not in told:
            if len(shape) < 2 or drawn[0].numel() == 1:
                drawn = 0.5 + torch.rand((), generator=generator)
            elif (_is_depthwise(owner) or not _channel_axis(owner)) and shape[0] == order.units:
                drawn = drawn[:1]
            elif copies > 1 and len(shape) == 2:  # the biases of experts
                drawn = drawn[:, :1]
        values[name] = drawn.expand(shape)
    return values


def _copies(scope: nn.Module, name: str) -> int:
    """How many experts a parameter of three axes holds, or one of two axes their biases; 1 of any other.
    All experts get the first one's values."""
    module = scope.get_submodule(name.rpartition(".")[0])
    shape = scope.get_parameter(name).shape
    stacked = {p.shape[0] for p in module.parameters(recurse=False) if p.ndim == 3}
    return shape[0] if len(shape) > 1 and not _channel_axis(module) and stacked == {shape[0]} else 1


def _channel_axis(module: nn.Module) -> int:
    """The axis of its input's channels, of a module that is one matrix; 0 of any other."""
    if isinstance(module, _ConvNd):
        return 1
    named = type(module).__name__ == "Conv1D"  # transformers', stored (in, out)
    return -1 if isinstance(module, nn.Linear) or named else 0


def _is_depthwise(module: nn.Module) -> bool:
    return isinstance(module, _ConvNd) and module.groups == module.in_channels > 1


def _writes(module: nn.Module) -> int:
    return int(getattr(module, "out_features", 0) or getattr(module, "out_channels", 0) or getattr(module, "nf", 0))


def _same_channels(before: Tensor, after: Tensor) -> bool:
    """Whether an output is another one with its channels in some order, whichever axis they are on."""
    return any(_order_of(before, after, axis) is not None for axis in range(1, before.ndim))


def _order_of(before: Tensor, after: Tensor, axis: int) -> Tensor | None:
    """The order in which the channels of `before` stand in `after`; None where they are not the same channels."""
    if before.shape != after.shape or before.ndim < 2 or not before.is_floating_point():
        return None
    a, b = (x.movedim(axis, 0).reshape(x.shape[axis], -1).double() for x in (before, after))
    along = torch.randn(a.shape[1], generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    first, second = (a @ along).argsort(stable=True), (b @ along).argsort(stable=True)
    scale = a.abs().max().clamp_min(1e-30)
    if float((a[first] - b[second]).abs().max() / scale) > SAME:
        return None
    if float((a - b).abs().max() / scale) <= SAME:
        return torch.arange(len(a))
    order = torch.empty_like(first)
    order[second] = first
    return order


@contextmanager
def _at_inputs(scope: nn.Module, see: Callable[[str, Tensor], Tensor]) -> Iterator[None]:
    """`see(path, x)` takes the place of the input of every matrix in a module."""

    def hook(name: str) -> Callable[[nn.Module, tuple], tuple | None]:
        def before(_module: nn.Module, args: tuple) -> tuple | None:
            return (see(name, args[0]), *args[1:]) if args and isinstance(args[0], Tensor) else None

        return before

    handles = [m.register_forward_pre_hook(hook(n)) for n, m in scope.named_modules() if _channel_axis(m)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _at_output(scope: nn.Module, orders: Mapping[str, Tensor]) -> Iterator[None]:
    """What some matrices write, in other orders."""

    def hook(order: Tensor) -> Callable[[nn.Module, tuple, Tensor], Tensor]:
        return lambda module, _args, output: output.index_select(_channel_axis(module), order)

    handles = [scope.get_submodule(name).register_forward_hook(hook(order)) for name, order in orders.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _outputs(found: Any) -> list[Tensor]:
    return [x.clone() for x in tree_leaves(_plain(found)) if isinstance(x, Tensor) and x.is_floating_point()]


def _plain(found: Any) -> Any:
    return dict(found) if isinstance(found, Mapping) else found


# ---- arguments


def _calls(module: nn.Module, checkpoint: Checkpoint) -> dict[str, tuple[tuple, dict[str, Any]]]:
    """Module path → the arguments of its first call, with random values, where the network runs without any.

    It runs on fake tensors, which have shapes and no values; a network that asks for values ends there, and the modules
    before have been seen.
    """
    inputs = None
    with suppress(Exception):
        inputs = standard_inputs(module, checkpoint)
    seen: dict[str, tuple[tuple, dict[str, Any]]] = {}

    def before(path: str) -> Callable[[nn.Module, tuple, dict[str, Any]], None]:
        def keep(_module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
            seen.setdefault(path, (args, kwargs))

        return keep

    handles = [m.register_forward_pre_hook(before(path), with_kwargs=True) for path, m in module.named_modules()]
    log = logging.getLogger("torch._subclasses.fake_tensor")  # it tells of each error that ends a run
    level = log.level
    try:
        log.setLevel(logging.CRITICAL)
        with suppress(Exception), torch.no_grad(), FakeTensorMode(allow_non_fake_inputs=True) as mode:

            def fake(x: Tensor) -> Tensor:
                return torch.empty(x.shape, dtype=x.dtype) if x.is_meta else mode.from_tensor(x)

            values = {n: fake(x) for n, x in (*module.named_parameters(), *module.named_buffers())}
            if inputs is not None:
                torch.func.functional_call(module, values, *_call(module, inputs))
    finally:
        log.setLevel(level)
        for handle in handles:
            handle.remove()
    generator = torch.Generator().manual_seed(3)
    return {path: tree_map_only(Tensor, lambda x: _random(x, generator), call) for path, call in seen.items()}


def _call(module: nn.Module, inputs: Images | Tokens) -> tuple[tuple, dict[str, Any]]:
    extra = {"use_cache": False} if "use_cache" in inspect.signature(module.forward).parameters else {}
    if isinstance(inputs, Tokens):
        ids = torch.zeros(1, min(TOKENS_RUN, inputs.length), dtype=torch.int64)
        pair = (
            {"decoder_input_ids": ids} if getattr(getattr(module, "config", None), "is_encoder_decoder", False) else {}
        )
        return (), {"input_ids": ids, **({"decoder_input_ids": ids} if pair else {}), **extra}
    image = torch.zeros(1, inputs.channels, inputs.height, inputs.width)
    named = "pixel_values" in inspect.signature(module.forward).parameters
    return ((), {"pixel_values": image, **extra}) if named else ((image,), {})


def _random(x: Tensor, generator: torch.Generator) -> Tensor:
    """Values of a tensor's shape: normal floats, zeros for integers (indices), true."""
    if x.dtype == torch.bool:
        return torch.ones(x.shape, dtype=x.dtype)
    if x.is_floating_point() or x.is_complex():
        dtype = torch.float32 if x.is_floating_point() else x.dtype
        return torch.randn(tuple(x.shape), generator=generator, dtype=dtype)
    return torch.zeros(tuple(x.shape), dtype=x.dtype)


def _made_up(scope: nn.Module) -> Iterator[tuple[tuple, dict[str, Any]]]:
    """Arguments that a module may take: first a tensor as wide as one of its matrices reads, then for each argument
    that it needs nothing, or a vector of such a width."""
    matrices = [module for module in scope.modules() if _channel_axis(module)]
    widths = dict.fromkeys(_reads(module) for module in matrices)
    needed = [p for p in inspect.signature(scope.forward).parameters.values() if p.default is p.empty and p.kind < 2]
    if not matrices or not needed:
        return
    places = len(matrices[0].weight.shape) - 2 if isinstance(matrices[0], _ConvNd) else 0
    generator = torch.Generator().manual_seed(3)
    for width in widths:
        shape = (2, width, *(SIDE,) * places) if places else (2, TOKENS_RUN, width)
        x = torch.randn(shape, generator=generator)
        others: list[Tensor | None] = [None, *(torch.randn(2, other, generator=generator) for other in widths)]
        for rest in itertools.product(others, repeat=len(needed) - 1):
            yield (x, *rest), {}


def _reads(module: nn.Module) -> int:
    stated = getattr(module, "in_features", 0) or getattr(module, "in_channels", 0)
    return int(stated or dict(module.named_parameters())["weight"].shape[0])  # transformers' Conv1D: (in, out)
