"""Where a question computes, and where weights stay between two uses: one object for weights, features and detector.

Accelerate says what is free (`get_max_memory`) and lays a network out over the places (`infer_auto_device_map`).
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import torch

from .errors import ArgumentError
from .parallel import world
from .sizes import size_of

if TYPE_CHECKING:
    from torch import Tensor, nn

    Device = str | int | torch.device
    Wanted = Device | Sequence[Device] | Mapping[Any, Any] | None

Place = int | str  # as accelerate's maps have it: the number of an accelerator, "mps", "cpu", or "disk"
T = TypeVar("T")

USED = 0.8  # of what is free, by `auto`: the rest is for inputs, features and other programs
READING = 3  # float32 copies of one tensor, beside what stays, while it is read and Δ is taken
LEAST_SIZE = 1024  # a whole number from here on is a size in bytes, a smaller one is an accelerator's


@dataclass(frozen=True, slots=True)
class Layout:
    """One network over several places. A path left out goes with the nearest above it.

    runs: path of a part → the device it runs on. keeps: path → where its weights stay when it has run; None: nowhere,
    they are read again.
    """

    runs: Mapping[str, torch.device]
    keeps: Mapping[str, torch.device | None]

    def keeps_at(self, name: str) -> torch.device | None:
        """Where the parameter or buffer stays."""
        return nearest(name, self.keeps)


@dataclass(frozen=True, slots=True)
class Placement:
    """What a caller's `device` means on this machine.

    devices: what computes, the main one first; slices of weights go to them in turn. memory: bytes of weights that each
    place may hold, of a network that accelerate lays out. parts: such a layout, given by the caller.
    """

    devices: tuple[torch.device, ...]
    memory: Mapping[Place, int] | None = None
    parts: Mapping[str, Place] | None = None

    @property
    def main(self) -> torch.device:
        """Where inputs go, and where parts run whose weights are in memory or on disk."""
        return self.devices[0]

    def holds(self, nbytes: int) -> bool:
        """Whether the main device has room for so many bytes of float32 weights, and for as many again."""
        if self.parts is not None:
            return False
        return self.memory is None or 2 * nbytes <= self.memory.get(_place(self.main), 0)

    def layout(self, module: nn.Module, whole: Sequence[str] = (), copies: int = 1) -> Layout:
        """Where the parts of a network run and stay. Its parameters may be on meta.

        whole: paths of parts that are not divided. copies: float32 copies of each weight that stay, 2 with its Δ.
        Raises `ArgumentError` where a place with a limit cannot even hold the largest tensor while it is used.
        """
        if self.parts is None and self.memory is None:
            return Layout({"": self.main}, {"": None})
        places = self._inferred(module, whole, copies) if self.parts is None else self.parts
        stays = {path: None if place == "disk" else _device(place) for path, place in places.items()}
        runs = {path: self.main if device is None or device.type == "cpu" else device for path, device in stays.items()}
        return Layout(runs, stays)

    def _inferred(self, module: nn.Module, whole: Sequence[str], copies: int) -> Mapping[str, Place]:
        from accelerate import infer_auto_device_map

        assert self.memory is not None
        largest = max((4 * tensor.numel() for tensor in module.parameters()), default=0)
        least = (copies + READING) * largest
        if self.memory.get(_place(self.main), least) < least:
            raise ArgumentError(
                f"Expected `device` to give {self.main} at least {least:,} bytes, which the largest tensor of this "
                f"network takes while it is used, got {self.memory[_place(self.main)]:,}."
            )
        classes = {type(module.get_submodule(path)).__name__ for path in whole}
        classes |= {*(getattr(module, "_no_split_modules", None) or ())}
        room = {place: max(0, size - READING * largest) // copies for place, size in self.memory.items()}
        return infer_auto_device_map(
            module, max_memory=room, no_split_module_classes=sorted(classes), dtype=torch.float32, offload_buffers=True
        )


def placement(wanted: Wanted | Placement) -> Placement:
    """What a `device` argument means here.

    None or `"cpu"`: the processor. `"cuda"`: every GPU, or in a launcher's process the one that is its own. `"cuda:1"`:
    that one. `"auto"`: every accelerator, then memory, then disk, as far as they are free. A mapping of places to sizes
    (`{0: "10GiB", "cpu": "20GiB"}`): the same within these bounds. A mapping of module paths to places (`{"blocks.0":
    0, "blocks.1": "cpu"}`): that layout. Both mappings may be text, `"0=10GiB,cpu=20GiB"`. Several devices: these, in
    turn. Raises `ArgumentError` for what is not understood or not on this machine.

    >>> placement(None).devices, placement("cpu=2GB").memory
    ((device(type='cpu'),), {'cpu': 2000000000})
    """
    if isinstance(wanted, Placement):
        return wanted
    if isinstance(wanted, str) and "=" in wanted:
        pairs = [item.rpartition("=")[::2] for item in wanted.split(",")]
        wanted = {key.strip(): value.strip() for key, value in pairs}
    if isinstance(wanted, Mapping):
        found = _mapped(wanted)
    elif isinstance(wanted, str) and wanted == "auto":
        found = _auto()
    else:
        found = Placement(_devices("cpu" if wanted is None else wanted))
    for device in found.devices:
        _check(device)
    return found


def is_accelerated(devices: Sequence[torch.device]) -> bool:
    """Whether the main one is a GPU of CUDA: what it works on is read into pinned memory, by many threads."""
    return devices[0].type == "cuda"


def sent(value: Tensor, device: torch.device) -> Tensor:
    """A tensor on a device. To a GPU it goes from pinned memory, while the processor works on: the memory of what is
    pinned already must not be used again before something was fetched back."""
    if value.device.type == "cpu" and device.type == "cuda":
        return (value if value.is_pinned() else value.pin_memory()).to(device, non_blocking=True)
    return value.to(device)


def nearest(path: str, table: Mapping[str, T]) -> T:
    """What a table of module paths says of a path: of itself, or the nearest above it; of none, the first."""
    while path and path not in table:
        path = path.rpartition(".")[0]
    return table[path] if path in table else next(iter(table.values()))


def _devices(wanted: Device | Sequence[Device]) -> tuple[torch.device, ...]:
    if not isinstance(wanted, (str, int, torch.device)):
        return tuple(_torch_device(one) for one in wanted)
    device = _torch_device(wanted)
    count = torch.cuda.device_count() if device.type == "cuda" and device.index is None else 0
    if not count:
        return (device,)
    return tuple(torch.device("cuda", i) for i in range(count) if _is_ours(i, count))


def _is_ours(number: int, count: int) -> bool:
    """Whether this process uses an accelerator: of a launcher's processes each has its own."""
    return world().size == 1 or number == int(os.environ.get("LOCAL_RANK", "0")) % count


def _auto() -> Placement:
    from accelerate.utils import get_max_memory

    free: dict[Place, int] = get_max_memory()
    numbers = [place for place in free if isinstance(place, int)]
    here = int(os.environ.get("LOCAL_WORLD_SIZE", "1")) if world().size > 1 else 1
    shares = {place: int(USED * size) // (1 if place in numbers else here) for place, size in free.items()}
    ours = {p: size for p, size in shares.items() if not isinstance(p, int) or _is_ours(p, len(numbers))}
    return Placement(_computing(ours), ours)


def _mapped(wanted: Mapping[Any, Any]) -> Placement:
    sizes = {key: _size(value) for key, value in wanted.items()}
    given = [size for size in sizes.values() if size is not None]
    if not wanted or 0 < len(given) < len(wanted):
        raise ArgumentError(
            "Expected `device` to map places to sizes, as {0: '10GiB', 'cpu': '20GiB'}, or parts of the network to "
            f"places, as {{'blocks.0': 0, 'blocks.1': 'cpu'}}, got {dict(wanted)!r}."
        )
    if given:
        memory = {_place(key): size for key, size in sizes.items() if size is not None}
        return Placement(_computing(memory), memory)
    parts = {str(path): _place(value) for path, value in wanted.items()}
    return Placement(_computing(dict.fromkeys(parts.values())), None, parts)


def _computing(places: Mapping[Place, Any]) -> tuple[torch.device, ...]:
    """The accelerators among some places; without any, the processor."""
    return tuple(_device(place) for place in places if place not in ("cpu", "disk")) or (torch.device("cpu"),)


def _size(value: Any) -> int | None:
    """Bytes, or None where it is no size.

    >>> _size("1.5GiB"), _size("500MB"), _size(4096), _size(1), _size("cpu")
    (1610612736, 500000000, 4096, None, None)
    """
    if isinstance(value, int) and not isinstance(value, bool) and value >= LEAST_SIZE:
        return value
    return size_of(value) if isinstance(value, str) and not value.strip().isdigit() else None


def _place(value: Any) -> Place:
    """A place by its name in accelerate's maps."""
    text = str(value)
    if text in ("cpu", "disk", "mps"):
        return text
    number = re.fullmatch(r"(?:[a-z]+:)?(\d{1,3})", text)
    if text in ("cuda", "xpu"):
        return 0
    if not number or text.startswith(("cpu:", "meta")):
        raise ArgumentError(
            f"Expected a place in `device` to be the number of a GPU, such as 0 or 'cuda:0', 'cpu' or 'disk', got "
            f"{text!r}."
        )
    return int(number[1])


def _device(place: Place) -> torch.device:
    if isinstance(place, str):
        return torch.device(place)
    accelerator = torch.accelerator.current_accelerator()
    return torch.device(accelerator.type if accelerator else "cuda", place)


def _torch_device(wanted: Device) -> torch.device:
    try:
        return torch.device("cuda", wanted) if isinstance(wanted, int) else torch.device(wanted)
    except (RuntimeError, TypeError) as error:
        raise _unknown(wanted, error) from error


def _check(device: torch.device) -> None:
    try:
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise _unknown(device, error) from error


def _unknown(device: object, error: Exception) -> ArgumentError:
    reason = str(error).splitlines()[0][:100]
    return ArgumentError(f"Expected `device` to be one of this machine's, got {str(device)!r}: {reason}")
