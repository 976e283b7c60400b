"""ONNX: the initialisers of a graph, which are its weights. The file is parsed by the `onnx` library; no operator runs.

Weights of an exported network often lost their names (`onnx::MatMul_1234`) and lie transposed: those get the name of
the bias that is added to their product, and the orientation (out, in). External data lie in files beside the graph.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NoReturn

from ...errors import BrokenFileError, MissingExtraError, NoWeightsError
from ..buffers import Buffer
from ..checkpoint import MemoryCheckpoint
from ..entry import Packing, Slice
from ..local import LocalRepo

if TYPE_CHECKING:
    import torch

    from ...hub.client import HubRepo

MAX_FILE = 1 << 32  # bytes of a graph with what it holds; protobuf itself ends at 2 GiB
NAMES = ("model.onnx", "onnx/model.onnx")
# ONNX's number of a type → NumPy's or torch's name of it
TYPES = {
    1: "float32", 2: "uint8", 3: "int8", 4: "uint16", 5: "int16", 6: "int32", 7: "int64", 9: "bool", 10: "float16",
    11: "float64", 12: "uint32", 13: "uint64", 16: "bfloat16", 17: "float8_e4m3fn", 19: "float8_e5m2",
}  # fmt: skip
# int32_data, float_data and so on hold values one by one where raw_data is empty
FIELDS = {1: "float_data", 11: "double_data", 7: "int64_data", 12: "uint64_data", 13: "uint64_data"}
_ANONYMOUS = re.compile(r"(?:onnx::)?(?:MatMul|Gemm)_\d+(?P<rest>_quantized)?|\w*/MatMul\w*")


def find_onnx(repo: LocalRepo | HubRepo) -> list[str]:
    """The file that was named, `model.onnx`, or the only one there is; in the folder `onnx` too. Raises
    `NoWeightsError` where there are several and none has that name."""
    if repo.only:
        return [repo.only] if repo.only.endswith(".onnx") else []
    names = sorted(name for name in repo.files if name.endswith(".onnx") and "/" not in name)
    known = [name for name in NAMES if name in repo.files]
    if not known and len(names) > 1:
        raise NoWeightsError(
            f"Expected one `model.onnx` in `{repo.ref.name}`, found {len(names)} files: {', '.join(names[:4])}.",
            f"Name the one that is meant: {repo.ref.name}/{names[0]}.",
        )
    return known[:1] or names


def open_onnx(repo: LocalRepo | HubRepo, names: Sequence[str], allow_pickle: bool = False) -> MemoryCheckpoint:
    """All initialisers of the main graph, in memory; what was quantised beside scales becomes floats.

    Raises `MissingExtraError` without the `onnx` library, `BrokenFileError`, `NoWeightsError` for a graph without any.
    """
    onnx = library()
    path = repo.path(names[0])
    size = path.stat().st_size
    if size > MAX_FILE:
        raise BrokenFileError(
            f"`{repo.ref.name}/{names[0]}` is longer than the {MAX_FILE >> 30} GiB allowed for a graph."
        )
    try:
        graph = onnx.load(str(path), load_external_data=False).graph
    except Exception as error:  # protobuf's own class, which needs no import this way
        raise BrokenFileError(
            f"`{repo.ref.name}/{names[0]}` is broken: it is no ONNX graph ({type(error).__name__}). Export it again."
        ) from error
    where = f"{repo.ref.name}/{names[0]}"
    if not all(isinstance(text, str) for text in _texts(graph)):  # bytes where they are no UTF-8
        raise BrokenFileError(f"`{where}` is broken: a name in it is no text. Export it again.")
    folder = names[0].rpartition("/")[0]
    tensors = {
        found.name: value for found in graph.initializer if (value := _tensor(found, repo, folder, where)) is not None
    }
    if not tensors:
        raise NoWeightsError(f"Expected initialisers in `{where}`, found none.")
    tensors, steps = _dequantised(graph, tensors)
    checkpoint = OnnxCheckpoint(repo, _named(graph, tensors), _named(graph, steps), size)
    unread = [
        f"{found.name} (ONNX type {found.data_type})" for found in graph.initializer if found.data_type not in TYPES
    ]
    checkpoint.skipped = (*checkpoint.skipped, *sorted(unread))
    return checkpoint


def _texts(graph: Any) -> Iterator[Any]:
    """Every name that is looked at."""
    for found in graph.initializer:
        yield found.name
        for entry in found.external_data:
            yield from (entry.key, entry.value)
    for node in graph.node:
        yield from (node.op_type, *node.input, *node.output, *(attribute.name for attribute in node.attribute))


class OnnxCheckpoint(MemoryCheckpoint):
    """Initialisers in memory. steps: of those that were integers the distance of neighbouring values."""

    def __init__(
        self, repo: LocalRepo | HubRepo, tensors: Mapping[str, torch.Tensor], steps: Mapping[str, torch.Tensor],
        size: int,
    ) -> None:  # fmt: skip
        super().__init__(repo.ref, repo.requested, tensors, size)
        self._steps = steps
        for name in steps.keys() & self._entries.keys():
            self._entries[name] = replace(self._entries[name], packing=Packing("onnx int8", 8))

    def cells(self, piece: Slice) -> tuple[torch.Tensor, torch.Tensor] | None:
        if piece.name not in self._steps:
            return super().cells(piece)
        values, half = (
            table[piece.name].reshape(-1)[piece.start : piece.stop] for table in (self._tensors, self._steps)
        )
        return values - half / 2, values + half / 2


def _tensor(found: Any, repo: LocalRepo | HubRepo, folder: str, where: str) -> torch.Tensor | None:
    """One initialiser; None of a type that is not read."""
    import torch

    name = TYPES.get(found.data_type)
    if name is None:
        return None
    shape, dtype = tuple(found.dims), getattr(torch, name)
    # of a tensor without elements other sides may be anything, and torch multiplies them all the same
    if any(side < 0 for side in shape) or math.prod(max(side, 1) for side in shape) >= 1 << 60:
        _broken(where, found, f"has the shape {shape[:8]}")
    nbytes = math.prod(shape) * dtype.itemsize
    raw: bytes | Buffer = found.raw_data
    if found.data_location == 1:
        raw = _external(found, repo, folder, where, nbytes)
    elif not raw and nbytes:
        values = list(getattr(found, FIELDS.get(found.data_type, "int32_data")))
        if len(values) != math.prod(shape):
            raise BrokenFileError(
                f"`{where}` is broken: {found.name[:80]!r} has {len(values):,} values. Export it again."
            )
        if name in ("float16", "bfloat16"):  # their bits, as integers
            return torch.tensor(values, dtype=torch.int32).to(torch.int16).view(dtype).reshape(shape)
        return torch.tensor(values).to(dtype).reshape(shape)
    if len(raw) != nbytes:
        raise BrokenFileError(
            f"`{where}` is broken: {found.name[:80]!r} has {len(raw):,} of {nbytes:,} bytes. Export it again."
        )
    return torch.frombuffer(bytearray(raw), dtype=dtype).reshape(shape) if nbytes else torch.empty(shape, dtype=dtype)


def _broken(where: str, found: Any, why: str) -> NoReturn:
    raise BrokenFileError(f"`{where}` is broken: {found.name[:80]!r} {why}. Export it again.")


def _external(found: Any, repo: LocalRepo | HubRepo, folder: str, where: str, nbytes: int) -> Buffer:
    """The bytes of an initialiser that lie in another file, which must be beside the graph."""
    facts = {entry.key: entry.value for entry in found.external_data}
    name, start = facts.get("location", ""), facts.get("offset", "0")
    if not name or "/" in name or "\\" in name or name.startswith(".") or "\0" in name or not start.isdecimal():
        _broken(where, found, f"points outside its folder, to {name[:80]!r}")
    file = repo.open(f"{folder}/{name}" if folder else name)
    if int(start) + nbytes > file.size:
        _broken(where, found, f"ends behind the end of {name[:80]!r}")
    return file.read([(int(start), int(start) + nbytes)])[0]


def _dequantised(
    graph: Any, tensors: dict[str, torch.Tensor]
) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """The tensors with those that were quantised as floats, (q − zero)·scale, and of these the steps.

    They are known by DequantizeLinear nodes, or by the names that ONNX Runtime's dynamic quantisation gives
    (`X_quantized`, `X_scale`, `X_zero_point`).
    """
    found, steps = dict(tensors), dict[str, Any]()
    groups = [(node.input[0], node.input[1], (*node.input, "")[2], _axis(node)) for node in graph.node
              if node.op_type == "DequantizeLinear" and len(node.input) > 1]  # fmt: skip
    stems = [name.removesuffix("_quantized") for name in tensors if name.endswith("_quantized")]
    groups += [(f"{stem}_quantized", f"{stem}_scale", f"{stem}_zero_point", 1) for stem in stems]
    for codes, scale, zero, axis in groups:
        if codes not in found or scale not in found or found[codes].is_floating_point():
            continue
        q, s = found[codes].float(), found[scale].float()
        z = found[zero].float() if zero in found else s * 0
        if s.numel() != 1:
            if q.ndim == 0 or s.ndim != 1 or q.shape[axis % q.ndim] != len(s) or z.shape != s.shape:
                continue
            s, z = (x.reshape([-1 if i == axis % q.ndim else 1 for i in range(q.ndim)]) for x in (s, z))
        elif z.numel() != 1:
            continue
        else:
            s, z = s.reshape(()), z.reshape(())
        name = codes.removesuffix("_quantized")
        found[name], steps[name] = (q - z) * s, s.abs().expand(q.shape)
        for part in {codes, scale, zero} - {name}:
            found.pop(part, None)
    return found, steps


def _axis(node: Any) -> int:
    return next((attribute.i for attribute in node.attribute if attribute.name == "axis"), 1)


def _named(graph: Any, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The tensors with matrices without a name called as the bias that is added to their product."""
    result = dict(tensors)
    for matrix, bias in _products(graph):
        module = bias.removesuffix(".bias")
        anonymous = _ANONYMOUS.fullmatch(matrix.removesuffix("_quantized"))
        if module == bias or not anonymous or matrix not in result or f"{module}.weight" in result:
            continue
        w = result.pop(matrix)
        result[f"{module}.weight"] = w.T.contiguous() if w.ndim == 2 else w
    return result


def _products(graph: Any) -> Iterator[tuple[str, str]]:
    """Matrix → bias, of each product that a bias is added to."""
    products: dict[str, str] = {}
    for node in graph.node:
        if not node.output:
            continue
        if node.op_type in ("MatMul", "MatMulInteger", "DynamicQuantizeMatMul") and len(node.input) > 1:
            products[node.output[0]] = node.input[1].removesuffix("_quantized")
        elif node.op_type in ("Cast", "Mul") and node.input and node.input[0] in products:
            products[node.output[0]] = products[node.input[0]]
        elif node.op_type == "Add" and len(node.input) == 2:
            for product, bias in (node.input, reversed(node.input)):
                if product in products:
                    yield products[product], bias


def library() -> Any:
    """The `onnx` package. Raises `MissingExtraError`."""
    try:
        import onnx
    except ImportError as error:
        raise MissingExtraError("Expected the onnx library to read an ONNX file, found none", "onnx") from error
    return onnx
