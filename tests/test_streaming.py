"""Streaming equals `exact`, reads what it needs once, leaves nothing behind, and fits where the weights do not."""

from __future__ import annotations

import subprocess
import sys
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
import torch
from accelerate import init_empty_weights
from accelerate.hooks import ModelHook, add_hook_to_module
from torch import Tensor, nn

from hf_lineage.errors import ArgumentError, CheckpointError
from hf_lineage.experiments.networks import build
from hf_lineage.features.linearize import Linearised, NoForwardDerivative, exact, features
from hf_lineage.features.streaming import stream

pytestmark = pytest.mark.integration

SIZES: dict[str, dict[str, Any]] = {
    "fc": {"widths": [16, 12]},
    "resnet": {"layers": [1, 1, 1, 1], "channels": (8, 8, 12, 16)},
    "vit": {"patch_size": 7, "embed_dim": 16, "depth": 3, "num_heads": 2},
    "llama": {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 3, "num_attention_heads": 2},
    "bert": {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 3, "num_attention_heads": 2},
}
TAPS = {
    "fc": ["fc1"],
    "resnet": ["layer1.0", "layer2"],
    "vit": ["blocks.0", "blocks.1"],
    "llama": ["model.layers.0", "model.layers.1"],
    "bert": ["bert.encoder.layer.0", "bert.encoder.layer.1"],
}
BEHIND = {
    "fc": ("fc2.", "head."),
    "resnet": ("layer3.", "layer4.", "fc."),
    "vit": ("blocks.2.", "norm.", "head."),
    "llama": ("model.layers.2.", "model.norm.", "lm_head."),
    "bert": ("bert.encoder.layer.2.", "bert.pooler.", "classifier."),
}
ARCHITECTURES = sorted(SIZES)
Tensors = dict[str, Tensor]


class Lazy(Mapping[str, Tensor]):
    """A checkpoint that counts what is asked of it, as the plainest of mappings: even `in` reads."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self.tensors, self.reads = tensors, Counter[str]()

    def __getitem__(self, name: str) -> Tensor:
        value = self.tensors[name].clone()
        self.reads[name] += 1
        return value

    def __iter__(self) -> Iterator[str]:
        return iter(self.tensors)

    def __len__(self) -> int:
        return len(self.tensors)


def moved(tensors: Tensors, names: Any, scale: float = 0.01) -> Tensors:
    generator = torch.Generator().manual_seed(2)
    step = {name: scale * torch.randn(tensors[name].shape, generator=generator) for name in names}
    return {name: value + step[name] if name in step else value.clone() for name, value in tensors.items()}


def case(architecture: str) -> tuple[nn.Module, Tensors, Tensors, Any, list[str]]:
    """A network on meta, a parent's and a child's weights, probes, taps."""
    torch.manual_seed(0)
    sizes = SIZES[architecture]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        full = build(architecture, 5, sizes)
        with init_empty_weights(include_buffers=False):
            module = build(architecture, 5, sizes)
    for name, value in full.state_dict().items():
        if "running" in name:
            value.mul_(1 + 0.3 * torch.rand(value.shape))
    parent = {name: value.clone() for name, value in full.state_dict().items()}
    inputs: Any = torch.randn(7, 1, 28, 28)
    if architecture in ("llama", "bert"):
        ids = torch.randint(0, 100, (7, 6))
        inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    return module, parent, moved(parent, [name for name, _ in full.named_parameters()]), inputs, TAPS[architecture]


def delta(module: nn.Module, parent: Tensors, child: Tensors) -> Tensors:
    return {name: child[name] - parent[name] for name, _ in module.named_parameters() if name in child}


def same(found: Linearised, expected: Linearised, rel: float = 1e-5) -> None:
    for a, b in ((found.F, expected.F), (found.T, expected.T)):
        assert a.shape == b.shape and float((a - b).norm()) <= rel * float(b.norm())


def state(module: nn.Module) -> tuple:
    tensors = [*module.named_parameters(remove_duplicate=False), *module.named_buffers(remove_duplicate=False)]
    parts = [(type(m._parameters), type(m._buffers), sorted(m.__dict__), m.training) for m in module.modules()]
    return [(name, id(tensor), tensor.device, tensor._version) for name, tensor in tensors], parts


@pytest.mark.parametrize("architecture", ARCHITECTURES)
class TestEveryArchitecture:
    def test_equals_exact(self, architecture: str) -> None:
        module, parent, child, inputs, taps = case(architecture)
        expected = exact(module, parent, delta(module, parent, child), inputs, taps)
        found = stream(module, parent, child, inputs, taps)
        assert list(found) == taps
        for tap in taps:
            assert expected[tap].T.norm() > 0
            same(found[tap], expected[tap])

    def test_reads_what_it_needs_once_and_nothing_behind(self, architecture: str) -> None:
        module, parent, child, inputs, taps = case(architecture)
        lazy, other = Lazy(parent), Lazy(child)
        stream(module, lazy, other, inputs, taps)
        behind = {name for name in parent if name.startswith(BEHIND[architecture])}
        unused = {name for name in parent if name.endswith("num_batches_tracked")}
        buffers = {name for name, _ in module.named_buffers()}
        assert behind and set(lazy.reads) == set(parent) - behind - unused
        assert set(other.reads) == set(parent) - behind - unused - buffers
        assert {*lazy.reads.values(), *other.reads.values()} == {1}

    def test_leaves_the_module_as_it_was(self, architecture: str) -> None:
        module, parent, child, inputs, taps = case(architecture)
        before = state(module)
        stream(module, parent, child, inputs, taps)
        assert state(module) == before
        broken = {name: value for name, value in parent.items() if not name.startswith(BEHIND[architecture])}
        with pytest.raises((CheckpointError, KeyError)):
            stream(module, broken, child, inputs, [""])
        assert state(module) == before
        assert all(value.grad is None and not value.requires_grad for value in [*parent.values(), *child.values()])


def test_batches_read_again() -> None:
    module, parent, child, inputs, taps = case("vit")
    lazy = Lazy(parent)
    found = stream(module, lazy, child, inputs, taps, batch=3)
    assert set(lazy.reads.values()) == {3}
    for tap, expected in stream(module, parent, child, inputs, taps).items():
        same(found[tap], expected)


def test_without_child_plain_features() -> None:
    module, parent, _, inputs, taps = case("resnet")
    found, expected = stream(module, parent, None, inputs, taps), features(module, parent, inputs, taps)
    for tap in taps:
        assert torch.allclose(found[tap].F, expected[tap], atol=1e-6)
        assert found[tap].T.shape == found[tap].F.shape and not found[tap].T.any()


def test_what_the_child_lacks_does_not_move() -> None:
    module, parent, child, inputs, taps = case("vit")
    del child["blocks.0.attn.qkv.weight"]
    kept = {name: value for name, value in delta(module, parent, child).items() if name != "pos_embed"}
    child["pos_embed"] = torch.zeros(1, 3, 3)
    for tap, expected in exact(module, parent, kept, inputs, taps).items():
        same(stream(module, parent, child, inputs, taps)[tap], expected)


def test_half_precision_is_subtracted_in_float32() -> None:
    module, parent, child, inputs, taps = case("fc")
    parent, child = ({name: value.bfloat16() for name, value in tensors.items()} for tensors in (parent, child))
    wide = [{name: value.float() for name, value in tensors.items()} for tensors in (parent, child)]
    same(stream(module, parent, child, inputs, taps)["fc1"], stream(module, *wide, inputs, taps)["fc1"])


class Uncalled(nn.Module):
    """Attention layers that use the weights of a part without calling it: torch's, and as in BEiT."""

    def __init__(self) -> None:
        super().__init__()
        self.mha = nn.MultiheadAttention(4, 2, batch_first=True)
        self.encoder = nn.TransformerEncoderLayer(4, 2, 8, batch_first=True)
        self.block = Borrows()
        self.last = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = x[:, None] * torch.arange(1.0, 4.0, device=x.device)[:, None]
        return self.last(self.block(self.encoder(self.mha(x, x, x)[0])))


class Borrows(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.randn(4))
        self.qkv = nn.Linear(4, 4, bias=False)
        self.proj = nn.Linear(4, 4)
        self.register_buffer("scale", torch.full((4,), 2.0), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return (
            self.proj(torch.tanh(nn.functional.linear(x, self.qkv.weight, self.bias)).to(self.proj.weight.dtype))
            * self.scale
        )


class Tied(nn.Module):
    """One layer under two paths, and a tied weight."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(4, 4)
        self.b = self.a
        self.c = nn.Linear(4, 4)
        self.c.weight = self.a.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.c(self.b(self.a(x).tanh()).tanh())


def own(module: nn.Module) -> tuple[nn.Module, Tensors, Tensors, Tensor]:
    torch.manual_seed(0)
    parent = {name: torch.randn(value.shape) for name, value in module.named_parameters()}
    return module, parent, moved(parent, parent, 0.1), torch.randn(5, 4)


def test_weights_of_parts_that_are_not_called() -> None:
    module, parent, child, x = own(Uncalled())
    taps = ["mha", "encoder", "block", ""]
    expected = exact(module, parent, delta(module, parent, child), x, taps)
    lazy = Lazy(parent)
    found = stream(module, lazy, child, x, taps)
    for tap in taps:
        same(found[tap], expected[tap], 1e-4)
    assert set(lazy.reads) == set(parent) and set(lazy.reads.values()) == {1}


@pytest.mark.parametrize("names", [("a.weight", "a.bias", "c.bias"), ("c.weight", "b.bias", "c.bias")])
def test_tied_weights_and_a_module_called_twice(names: tuple[str, ...]) -> None:
    module, parent, child, x = own(Tied())
    renamed = dict(zip(("a.weight", "a.bias", "c.bias"), names, strict=True))
    expected = exact(module, parent, delta(module, parent, child), x, [""])[""]
    before = state(module)
    lazy = Lazy({renamed[name]: value for name, value in parent.items()})
    same(stream(module, lazy, {renamed[name]: value for name, value in child.items()}, x, [""])[""], expected)
    assert lazy.reads == {names[0]: 3, names[1]: 2, names[2]: 1}
    assert state(module) == before


@pytest.mark.parametrize(
    "device", [torch.device("cpu"), {"": "cpu"}, {"mha": "cpu", "block.qkv": torch.device("cpu"), "block": "cpu:0"}]
)
def test_devices(device: Any) -> None:
    """`cpu` and `cpu:0` are two devices to torch: what goes back to the caller's passes between them."""
    module, parent, child, x = own(Uncalled())
    same(stream(module, parent, child, x, [""], device=device)[""], stream(module, parent, child, x, [""])[""])


def test_a_device_map_sends_what_a_part_needs() -> None:
    """To meta, where nothing is computed but devices must agree all the same."""
    module, parent, child, x = own(
        nn.Sequential(nn.Linear(4, 4), nn.Sequential(nn.Linear(4, 4), nn.ReLU()), nn.Linear(4, 2))
    )
    found = stream(module, parent, child, x, ["0", "1.1", "2"], device={"0": "cpu", "1": "meta", "2": "meta"})
    assert [value.T.device.type for value in found.values()] == ["cpu", "meta", "meta"]


def test_an_operator_without_forward_derivative_is_named() -> None:
    module = nn.Sequential(nn.Unflatten(1, (1, 4)), nn.Sequential(nn.LSTM(4, 3, batch_first=True)))
    module, parent, child, x = own(module)
    with pytest.raises(NoForwardDerivative, match="in '1.0'"):  # noqa: RUF043
        stream(module, parent, child, x, ["1.0"])
    plain = stream(module, parent, None, x, ["1.0"])["1.0"].F
    assert torch.allclose(plain, features(module, parent, x, ["1.0"])["1.0"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"1.weight": None}, r"weights for '1\.weight'"), ({"1.bias": torch.zeros(5)}, r"\(2,\) for '1\.bias', .*got \(5,\)")],
)  # fmt: skip
def test_weights_that_do_not_fit_are_named(changes: dict[str, Any], message: str) -> None:
    module, parent, child, x = own(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2)))
    broken = {name: value for name, value in (parent | changes).items() if value is not None}
    with pytest.raises(CheckpointError, match=message):
        stream(module, broken, child, x, ["1"])
    stream(module, broken, child, x, ["0"])


def test_hooks_of_others_are_not_thrown_out() -> None:
    module, parent, child, x = own(nn.Sequential(nn.Linear(4, 4)))
    add_hook_to_module(module[0], ModelHook())
    with pytest.raises(ArgumentError, match="hooks, got one on '0'"):
        stream(module, parent, child, x, ["0"])
    assert isinstance(module[0]._hf_hook, ModelHook)


LIMIT = 1600 << 20  # bytes of anonymous memory: torch and its thread pools take up to 1 GB of it
BLOCKS, WIDTH = 26, 4096
LAYER = 4 * WIDTH * (WIDTH + 1)  # bytes

PROGRAM = f"""
import resource, sys
import torch
from accelerate import init_empty_weights
from torch import nn
from hf_lineage.features.streaming import stream
torch.set_num_threads(1)
resource.setrlimit(resource.RLIMIT_DATA, ({LIMIT}, {LIMIT}))

class Weights(dict):
    def __init__(self, module, seed, scale):
        super().__init__({{name: tensor.shape for name, tensor in module.named_parameters()}})
        self.seed, self.scale, self.read = seed, scale, 0
    def __getitem__(self, name):
        shape = super().__getitem__(name)
        generator = torch.Generator().manual_seed(self.seed + sum(map(ord, name)))
        row = self.scale * torch.randn(shape[-1], generator=generator)
        value = row.expand(shape).contiguous()
        self.read += value.nbytes
        watch()
        return value

def watch():
    global peak
    lines = open("/proc/self/status").read().splitlines()
    peak = max(peak, next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) << 10)

with init_empty_weights(include_buffers=False):
    module = nn.Sequential(*(nn.Sequential(nn.Linear({WIDTH}, {WIDTH}), nn.Tanh()) for _ in range({BLOCKS})))
parent, child = Weights(module, 0, 0.02), Weights(module, 1, 0.02)
x = torch.ones(2, {WIDTH})
peak = 0
watch()
start = peak
"""
STREAM = (
    PROGRAM
    + 'found = stream(module, parent, child, x, ["0", "25"])["25"]\nprint(parent.read, float(found.T.norm()), peak - start)'
)
CONTROL = (
    PROGRAM
    + """
try:
    kept = {name: parent[name] for name in parent}
    print("loaded")
except (MemoryError, RuntimeError):
    print("refused")
"""
)


def run(code: str) -> list[str]:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout.split()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="RLIMIT_DATA bounds anonymous memory on Linux only")
def test_a_model_that_does_not_fit_streams_through() -> None:
    read, norm, grown = run(STREAM)
    assert int(read) == BLOCKS * LAYER > LIMIT and 0 < float(norm) < float("inf")
    assert int(grown) < 5 * LAYER, f"streaming took {int(grown) >> 20} MB of anonymous memory"
    assert run(CONTROL) == ["refused"]
