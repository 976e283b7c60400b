"""A tensor that is stored packed: integer codes beside scales. What every scheme has to say, and the bits of codes."""

from __future__ import annotations

import abc
import functools
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ...entry import Entry, Packing, Slice

if TYPE_CHECKING:
    import torch

MAX_STRIDED = 1 << 29  # bytes of a matrix that is stored by its columns, which is held as a whole while it is read


class UnpackableError(ValueError):
    """Parts that do not fit each other; the text says what was expected. Never leaves the room: the tensor is left
    out, and a note names it."""


@dataclass(frozen=True, slots=True)
class PackedMatrix(abc.ABC):
    """One packed tensor, seen as a matrix: `shape[-1]` columns, and all other axes as rows; of a kernel the first axis.

    Laws, tested for every scheme: the values are those of the scheme's own library; a range of rows is the range of the
    whole; a value lies between its edges, and no other value of its group does.

    parts: the tensors of the file that it stands for. strided: it is stored by columns, or otherwise so that some rows
    cost the whole; what `slices` asks for is then kept until another matrix is read. packing: None of one that is only
    stored in another order; `dtype` is that of the values.
    """

    name: str
    shape: tuple[int, ...]
    packing: Packing | None
    parts: tuple[str, ...]

    strided = False
    dtype = "F32"

    @property
    def width(self) -> int:
        """Columns; those of a kernel are all of its inputs."""
        return self.shape[-1] if len(self.shape) < 4 else math.prod(self.shape[1:])

    @property
    def height(self) -> int:
        """Rows."""
        return math.prod(self.shape) // max(self.width, 1)

    @abc.abstractmethod
    def slices(self, first: int, stop: int) -> list[Slice]:
        """What has to be read for the rows from `first` to `stop`."""

    @abc.abstractmethod
    def unpack(self, read: Sequence[torch.Tensor], first: int, stop: int) -> torch.Tensor:
        """The rows, (rows, width). read: what `slices` asked for."""

    @abc.abstractmethod
    def edges(self, read: Sequence[torch.Tensor], first: int, stop: int) -> tuple[torch.Tensor, torch.Tensor] | None:
        """Between which two numbers lies what was rounded to each value of the rows, (rows, width) float32 each,
        infinite where there is no further value; None where that is not known."""


@dataclass(frozen=True, slots=True)
class CodedMatrix(PackedMatrix):
    """A matrix of codes each of which stands for one number, given the scales beside it; one more code is the next
    larger number, or the next smaller one where a scale is negative."""

    packing: Packing

    @property
    @abc.abstractmethod
    def levels(self) -> int:
        """How many codes there are: 0 to `levels` − 1."""

    @abc.abstractmethod
    def codes(self, read: Sequence[torch.Tensor], first: int, stop: int) -> torch.Tensor:
        """The rows' codes by the order of their values, (rows, width) of integers."""

    @abc.abstractmethod
    def values(self, codes: torch.Tensor, read: Sequence[torch.Tensor], first: int) -> torch.Tensor:
        """The numbers that codes (rows, width) of the rows from `first` on stand for, float32."""

    def unpack(self, read: Sequence[torch.Tensor], first: int, stop: int) -> torch.Tensor:
        return self.values(self.codes(read, first, stop), read, first)

    def edges(self, read: Sequence[torch.Tensor], first: int, stop: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Halfway to the values of the next lower and the next higher code."""
        import torch

        codes = self.codes(read, first, stop).long()
        value = self.values(codes, read, first)
        below = (value + self.values((codes - 1).clamp(min=0), read, first)) / 2
        above = (value + self.values((codes + 1).clamp(max=self.levels - 1), read, first)) / 2
        falling = above < below  # of a negative scale
        ends = codes <= 0, codes >= self.levels - 1
        low = torch.minimum(below, above).masked_fill(torch.where(falling, ends[1], ends[0]), -torch.inf)
        high = torch.maximum(below, above).masked_fill(torch.where(falling, ends[0], ends[1]), torch.inf)
        return low, high


@dataclass(frozen=True, slots=True)
class Parts:
    """The tensors of a file that belong to one packed tensor. entries: by their role; small: those that `Scheme.small`
    names, as they are; config(): the model's `config.json`, fetched when it is needed."""

    name: str
    entries: Mapping[str, Entry]
    small: Mapping[str, torch.Tensor]
    config: Callable[[], Mapping[str, Any]]

    def __getitem__(self, role: str) -> Entry:
        return self.entries[role]

    def get(self, role: str) -> Entry | None:
        """The part of a role that not every tensor has."""
        return self.entries.get(role)

    def __contains__(self, role: str) -> bool:
        return role in self.entries

    @property
    def names(self) -> tuple[str, ...]:
        """The tensors of the file, all that the packed one stands for."""
        return tuple(entry.name for entry in self.entries.values())

    def integers(self, role: str) -> list[int]:
        """The numbers of a small part. Raises `UnpackableError` where they are no integers."""
        values = self.small[role].reshape(-1)
        expect(not values.is_floating_point() and 0 < len(values) <= 8, f"a few integers in {self[role].name[-40:]!r}")
        return [int(value) for value in values.tolist()]

    def quantization(self) -> Mapping[str, Any]:
        """What `config.json` says of how the model was packed; empty where it says nothing."""
        config = self.config()
        found = config.get("quantization_config") or config.get("quantization")
        return found if isinstance(found, dict) else {}


@dataclass(frozen=True, slots=True)
class Scheme:
    """How a packed tensor is recognised by the names and dtypes of its parts, and built. One row of `PACKINGS`.

    anchor: the ending of the part that shows it, of one of `dtypes`; in its place `becomes` makes the name that the
    tensor has unpacked. roles: each role → the endings that its part may have. required: the roles without which there
    is none; with `sure`, a part of the anchor's name that lacks them is left out as broken, else it is something else.
    extras: endings of parts that say nothing of the weights (scales of activations). small: roles that `build` needs
    to know the values of.
    """

    anchor: str
    dtypes: Collection[str]
    roles: Mapping[str, tuple[str, ...]]
    build: Callable[[Parts], PackedMatrix]
    required: tuple[str, ...] = ("scale",)
    becomes: str = ".weight"
    sure: bool = True
    extras: tuple[str, ...] = ()
    small: tuple[str, ...] = field(default=())


def rows_of(name: str, width: int, first: int, stop: int) -> Slice:
    """Some rows of a part that has `width` columns."""
    return Slice(name, first * width, stop * width)


def unpack_bits(words: torch.Tensor, bits: int) -> torch.Tensor:
    """Codes of at most 8 bits out of rows of words, the lowest bits first, also across the border of two words.

    words: (rows, n) of any integer type. Returns (rows, n·word bits // bits) uint8.

    >>> import torch
    >>> unpack_bits(torch.tensor([[0x21, 0x43]], dtype=torch.uint8), 4).tolist()
    [[1, 2, 3, 4]]
    """
    import torch

    raw = words.reshape(-1).contiguous().view(torch.uint8).reshape(len(words), -1)
    if bits == 8:
        return raw
    if 8 % bits == 0:
        shifts = torch.arange(0, 8, bits, dtype=torch.uint8)
        return ((raw[..., None] >> shifts) & (2**bits - 1)).reshape(len(raw), -1)
    each = raw[..., None] >> torch.arange(8, dtype=torch.uint8) & 1
    stream = each.reshape(len(raw), -1)
    stream = stream[:, : stream.shape[1] // bits * bits].reshape(len(raw), -1, bits)
    return (stream << torch.arange(bits, dtype=torch.uint8)).sum(-1, dtype=torch.uint8)


@functools.cache
def pairs_of(numbers: tuple[float, ...], upper_first: bool) -> torch.Tensor:
    """Of each byte of two codes the two numbers that they stand for, (256, 2) float32: one look-up for both."""
    import torch

    table, byte = torch.tensor(numbers), torch.arange(256)
    nibbles = (byte >> 4, byte & 15) if upper_first else (byte & 15, byte >> 4)
    return torch.stack([table[nibble] for nibble in nibbles], 1)


def spread(scales: torch.Tensor, each: int, width: int) -> torch.Tensor:
    """Scales (rows, groups) → (rows, width) or, of one group, (rows, 1): one for each of `each` neighbours."""
    return scales if scales.shape[1] == 1 else scales.repeat_interleave(each, 1)[:, :width]


def expect(condition: bool, why: str) -> None:
    """Raises `UnpackableError` unless the condition holds."""
    if not condition:
        raise UnpackableError(why)
