"""Features and their derivative against torch.func.jvp, finite differences and each other, on the real classes."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hf_lineage.errors import ArgumentError, CheckpointError, LineageError
from hf_lineage.experiments.networks import build
from hf_lineage.features.linearize import (
    GRID,
    MAX_RELATIVE_CURVATURE,
    Linearised,
    NoForwardDerivative,
    check_finite,
    curvature,
    exact,
    features,
    taylor,
    try_steps,
)
from hf_lineage.features.similarity import similarity

pytestmark = pytest.mark.integration

IMAGES = {"img": (1, 28, 28)}
SIZES: dict[str, dict[str, Any]] = {
    "fc": {"widths": [16, 12]},
    "resnet": {"layers": [1, 1, 1, 1], "channels": (8, 8, 12, 16)},
    "vit": {"patch_size": 7, "embed_dim": 16, "depth": 2, "num_heads": 2},
    "llama": {
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
    },
    "bert": {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2},
}
TAPS = {
    "fc": ["fc1", "fc2", ""],
    "resnet": ["act1", "layer1.0", "layer2"],
    "vit": ["patch_embed", "blocks.0", "blocks.1"],
    "llama": ["model.layers.0", "model.layers.1", "lm_head"],
    "bert": ["bert.encoder.layer.0", "bert.encoder"],
}
ARCHITECTURES = sorted(SIZES)


@dataclass
class Case:
    """A network, its weights, a small Δ, seven probes, taps."""

    module: nn.Module
    weights: dict[str, Tensor]
    delta: dict[str, Tensor]
    inputs: Tensor | dict[str, Tensor]
    taps: list[str]

    @property
    def all(self) -> tuple:
        return self.module, self.weights, self.delta, self.inputs


def random(module: nn.Module, seed: int, scale: float, *, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {n: (scale * torch.randn(p.shape, generator=generator)).to(dtype) for n, p in module.named_parameters()}


def case(architecture: str, dtype: torch.dtype = torch.float32, probes: int = 7) -> Case:
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module = build(architecture, 5, SIZES[architecture]).to(dtype)
    generator = torch.Generator().manual_seed(1)
    inputs: Any
    if architecture in ("llama", "bert"):
        ids = torch.randint(0, 100, (probes, 6), generator=generator)
        inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    else:
        inputs = torch.randn(probes, 1, 28, 28, generator=generator).to(dtype)
    for name, value in module.state_dict().items():
        if name.endswith("running_mean"):
            value.copy_(0.1 * torch.randn(value.shape, generator=generator))
    weights = {name: value.clone() for name, value in module.state_dict().items()}
    delta = random(module, 2, 0.01, dtype=dtype)
    return Case(module, weights, delta, inputs, TAPS[architecture])


def close(found: Tensor, expected: Tensor, rel: float = 1e-5) -> None:
    assert found.shape == expected.shape
    assert float((found - expected).norm()) <= rel * float(expected.norm())


def reference(c: Case, tap: str) -> Linearised:
    """The same by torch.func.jvp over a hook, in full, without our code."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    kept: list[Tensor] = []

    def hook(_module: nn.Module, _arguments: object, output: Any) -> None:
        kept.append(output if isinstance(output, Tensor) else output[0])

    def f(weights: dict[str, Tensor]) -> Tensor:
        kept.clear()
        args, kwargs = ((), c.inputs) if isinstance(c.inputs, dict) else ((c.inputs,), {})
        torch.func.functional_call(c.module, {**c.weights, **weights}, args, kwargs)
        return kept[0].flatten(1).clone()

    c.module.eval()
    handle = c.module.get_submodule(tap).register_forward_hook(hook) if tap else None
    handle = handle or c.module.register_forward_hook(hook)
    with sdpa_kernel(SDPBackend.MATH):
        F, T = torch.func.jvp(f, ({name: c.weights[name] for name in c.delta},), (c.delta,))
    handle.remove()
    return Linearised(F.detach(), T.detach())


@pytest.mark.parametrize("architecture", ARCHITECTURES)
class TestEveryArchitecture:
    def test_equals_jvp(self, architecture: str) -> None:
        c = case(architecture)
        found = exact(*c.all, c.taps, batch=3)
        plain = features(c.module, c.weights, c.inputs, c.taps, batch=4)
        assert list(found) == c.taps
        for tap in c.taps:
            expected = reference(c, tap)
            close(found[tap].F, expected.F)
            close(found[tap].T, expected.T, 2e-5)
            close(plain[tap], expected.F)
            assert found[tap].T.dtype == torch.float32 and found[tap].T.norm() > 0

    def test_equals_finite_differences(self, architecture: str) -> None:
        c = case(architecture, torch.float64)
        step, rel = (1e-2, 1e-3) if architecture == "llama" else (1e-5, 1e-6)  # its norms compute in float32
        found, ends = exact(*c.all, c.taps), []
        for sign in (step, -step):
            moved = {name: value + sign * c.delta.get(name, 0) for name, value in c.weights.items()}
            ends.append(features(c.module, moved, c.inputs, c.taps))
        for tap in c.taps:
            assert found[tap].T.dtype == torch.float64
            close(found[tap].T, (ends[0][tap] - ends[1][tap]) / (2 * step), rel)

    def test_taylor_is_the_product(self, architecture: str) -> None:
        c = case(architecture)
        for tap, linearised in exact(*c.all, c.taps).items():
            pi = torch.randn(linearised.T.shape, generator=torch.Generator().manual_seed(3))
            product = float((pi.double() * linearised.T.double()).sum())
            scale = float(pi.norm() * linearised.T.norm()) / pi.numel() ** 0.5
            assert taylor(*c.all, tap, pi, batch=3) == pytest.approx(product, rel=1e-4, abs=1e-4 * scale)

    def test_one_tap_at_a_time_is_the_same(self, architecture: str) -> None:
        c = case(architecture)
        together = exact(*c.all, c.taps)
        for tap in c.taps:
            alone = exact(*c.all, [tap])[tap]
            assert torch.equal(alone.F, together[tap].F) and torch.equal(alone.T, together[tap].T)

    def test_nothing_is_left_behind(self, architecture: str) -> None:
        c = case(architecture)
        c.module.train()
        before = snapshot(c)
        pi = torch.ones_like(features(c.module, c.weights, c.inputs, c.taps[:1])[c.taps[0]])
        assert snapshot(c) == before
        linearised = exact(*c.all, c.taps)
        taylor(*c.all, c.taps[0], pi)
        curvature(*c.all, c.taps, linearised, 0.5)
        with pytest.raises(ArgumentError):
            exact(*c.all, [c.taps[0], "no.such.module"])
        assert snapshot(c) == before
        assert not any(value.requires_grad or value.grad is not None for value in c.weights.values())
        assert torch.backends.mha.get_fastpath_enabled()

    def test_on_meta_without_head(self, architecture: str) -> None:
        c = case(architecture)
        tap = c.taps[0]
        expected = exact(*c.all, [tap])[tap]
        own = {name: b for name, b in c.module.named_buffers() if name not in c.weights}
        empty = c.module.to("meta")
        for name, buffer in own.items():  # what a checkpoint does not have, such as rotary frequencies
            path, _, attribute = name.rpartition(".")
            empty.get_submodule(path)._buffers[attribute] = buffer
        kept = {n: v for n, v in c.weights.items() if not n.startswith(("head", "lm_head", "classifier", "fc."))}
        found = exact(empty, kept, c.delta, c.inputs, [tap])[tap]
        assert torch.equal(found.F, expected.F) and torch.equal(found.T, expected.T)


def snapshot(c: Case) -> tuple:
    """Identity, version and mode of whatever the module and the weights hold."""
    tensors = [*c.module.named_parameters(), *c.module.named_buffers(), *c.weights.items(), *c.delta.items()]
    hooks = [len(part._forward_hooks) + len(part._forward_pre_hooks) for part in c.module.modules()]
    modes = [part.training for part in c.module.modules()]
    keys = [sorted(part.__dict__) for part in c.module.modules()]
    return [(n, id(t), t._version, t.requires_grad, t.grad is None) for n, t in tensors], hooks, modes, keys


class Net(nn.Module):
    """A layer, its activation in place, and whatever comes next."""

    def __init__(self, behind: nn.Module | None = None) -> None:
        super().__init__()
        self.first = nn.Linear(4, 6)
        self.act = nn.ReLU(inplace=True)
        self.behind = behind or nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.behind(self.act(self.first(x)))


class Raises(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        raise KeyError("behind the tap")


def setup(module: nn.Module, probes: int = 5) -> tuple[nn.Module, dict[str, Tensor], dict[str, Tensor], Tensor]:
    weights = random(module, 1, 0.5)
    return module, weights, random(module, 2, 0.05), torch.randn(probes, 4, generator=torch.Generator().manual_seed(3))


def test_nothing_runs_behind_the_last_tap() -> None:
    module, weights, delta, x = setup(Net(Raises()))
    assert set(exact(module, weights, delta, x, ["act", "first"])) == {"act", "first"}
    with pytest.raises(KeyError):
        exact(module, weights, delta, x, ["first", "behind"])
    assert not any(part._forward_hooks for part in module.modules())


class Swallows(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 6)
        self.behind = Raises()

    def forward(self, x: Tensor, use_cache: bool = True) -> Tensor:
        assert not use_cache
        with contextlib.suppress(Exception):
            self.first(x)
        return self.behind(x)


def test_no_cache_is_kept_and_no_model_swallows_the_end() -> None:
    module, weights, delta, x = setup(Swallows())
    assert exact(module, weights, delta, x, ["first"])["first"].T.shape == (5, 6)
    assert exact(module, weights, delta, {"x": x}, ["first"])["first"].T.shape == (5, 6)


def test_what_is_written_in_place_later_does_not_reach_a_tap() -> None:
    module, weights, delta, x = setup(Net())
    found = exact(module, weights, delta, x, ["first", "act"])
    assert float(found["first"].F.min()) < 0 <= float(found["act"].F.min())
    close(found["first"].T, x @ delta["first.weight"].T + delta["first.bias"])


def test_no_delta_no_derivative() -> None:
    module, weights, delta, x = setup(Net(nn.Linear(6, 3)))
    bias = {"first.bias": delta["first.bias"]}
    close(exact(module, weights, bias, x, ["first"])["first"].T, delta["first.bias"].expand(5, 6))
    assert not exact(module, weights, {}, x, ["act"])["act"].T.any()
    behind = {"behind.weight": delta["behind.weight"]}
    assert not exact(module, weights, behind, x, ["act"])["act"].T.any()
    assert taylor(module, weights, behind, x, "act", torch.ones(5, 6)) == 0


class Lstm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.LSTM(4, 3, batch_first=True))
        self.head = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.inner(x[:, None])[0])


class Doubled(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, x: Tensor) -> Tensor:
        return 2 * x

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> Tensor:
        return 2 * gradient


class Custom(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return Doubled.apply(x)


class Cdist(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.cdist(x[:, None], x[:, None].flip(0))


@pytest.mark.parametrize(
    ("module", "operator", "path"),
    [(Lstm(), "rnn|lstm", "inner.0"), (Net(Custom()), "custom autograd", "behind"), (Net(Cdist()), "cdist", "behind")],
    ids=["lstm", "function", "cdist"],
)
def test_an_operator_without_forward_derivative_is_named(module: nn.Module, operator: str, path: str) -> None:
    module, weights, delta, x = setup(module)
    with pytest.raises(NoForwardDerivative, match=f"({operator}).* in '{path}'.*Taylor") as caught:
        exact(module, weights, delta, x, [""])
    assert isinstance(caught.value, LineageError)
    assert not any(part._forward_hooks for part in module.modules())


def test_taylor_needs_none() -> None:
    module, weights, delta, x = setup(Lstm())
    before = [id(value) for value in module.inner[0]._flat_weights]
    pi = torch.randn(5, 3)  # a recurrent layer returns (output, state): the output counts
    ends = [
        features(module, {name: value + step * delta[name] for name, value in weights.items()}, x, ["inner.0"])[
            "inner.0"
        ]
        for step in (0.01, -0.01)
    ]
    assert taylor(module, weights, delta, x, "inner.0", pi) == pytest.approx(
        float((pi * (ends[0] - ends[1])).sum()) / 0.02, rel=1e-3, abs=1e-4
    )
    assert [id(value) for value in module.inner[0]._flat_weights] == before


@pytest.mark.parametrize(
    "layer",
    [nn.MultiheadAttention(4, 2, batch_first=True), nn.TransformerEncoderLayer(4, 2, 8, batch_first=True)],
    ids=["mha", "encoder"],
)
def test_fast_paths_are_avoided(layer: nn.Module) -> None:
    class Attends(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = layer

        def forward(self, x: Tensor) -> Any:
            x = x[:, None] * torch.arange(1.0, 4.0)[:, None]
            return self.layer(x, x, x) if isinstance(self.layer, nn.MultiheadAttention) else self.layer(x)

    module, weights, delta, x = setup(Attends())
    found = exact(module, weights, delta, x, ["layer"])["layer"]
    pi = torch.randn(found.T.shape)
    assert taylor(module, weights, delta, x, "layer", pi) == pytest.approx(float((pi * found.T).sum()), rel=1e-3)


def test_threads_take_turns() -> None:
    """torch's switches and its dual numbers are the process's."""
    cases = [case(architecture) for architecture in ("vit", "resnet", "llama")]
    cases.append(cases[0])  # the same module
    alone = [exact(*c.all, c.taps) for c in cases]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda c: [exact(*c.all, c.taps, batch=1) for _ in range(3)][-1], cases))
    for c, one, other in zip(cases, alone, together, strict=True):
        for tap in c.taps:
            close(other[tap].T, one[tap].T, 1e-4)


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


@pytest.mark.parametrize(
    "names",
    [
        ("a.weight", "a.bias", "c.bias"),
        ("c.weight", "b.bias", "c.bias"),
        ("a.weight", "c.weight", "a.bias", "b.bias", "c.bias"),
    ],
)
def test_tied_weights_under_any_of_their_names(names: tuple[str, ...]) -> None:
    module = Tied()
    every = dict(module.named_parameters(remove_duplicate=False))
    before = [(name, id(value)) for name, value in every.items()]
    weights = {name: every[name].detach().clone() for name in names}
    delta = {name: 0.1 * torch.ones_like(value) for name, value in weights.items()}
    x = torch.randn(3, 4)
    moved = [features(module, {n: v + s * delta[n] for n, v in weights.items()}, x, [""])[""] for s in (0.01, -0.01)]
    close(exact(module, weights, delta, x, [""])[""].T, (moved[0] - moved[1]) / 0.02, 1e-3)
    assert [(name, id(value)) for name, value in module.named_parameters(remove_duplicate=False)] == before


def test_of_a_module_that_runs_twice_the_first_output_counts() -> None:
    module = Tied()
    weights = dict(module.named_parameters())
    x = torch.randn(3, 4)
    close(features(module, weights, x, ["a"])["a"], (x @ weights["a.weight"].T + weights["a.bias"]).detach())


def test_half_precision_counts_as_float32() -> None:
    module, weights, delta, x = setup(Net())
    half = {name: value.bfloat16() for name, value in weights.items()}
    expected = exact(module, {name: value.float() for name, value in half.items()}, delta, x, ["act"])["act"]
    found = exact(module, half, delta, x, ["act"])["act"]
    assert torch.equal(found.T, expected.T) and found.T.dtype == torch.float32


def returns(make: Callable[[Tensor], Any]) -> nn.Module:
    class Returns(nn.Module):
        def forward(self, x: Tensor) -> Any:
            return make(x)

    return Net(Returns())


@dataclass
class Output:
    ids: Tensor
    hidden: Tensor


@pytest.mark.parametrize(
    "make",
    [
        lambda x: (x, x + 1), lambda x: [None, x], lambda x: {"ids": x.long(), "hidden": x},
        lambda x: Output(x.long(), x), lambda x: x[:, :, None, None],
    ],
    ids=["tuple", "list", "dict", "dataclass", "more axes"],
)  # fmt: skip
def test_what_a_tap_may_return(make: Callable[[Tensor], Any]) -> None:
    module, weights, delta, x = setup(returns(make))
    found = exact(module, weights, delta, x, ["behind", "act"])
    assert torch.equal(found["behind"].F, found["act"].F) and torch.equal(found["behind"].T, found["act"].T)


def test_inputs_by_keyword_may_hold_more_than_probes() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Linear(4, 6)

        def forward(self, x: Tensor, twice: bool = False, scale: Tensor | None = None) -> Tensor:
            return self.first(x * (2 if twice else 1) * scale)

    module, weights, delta, x = setup(Scaled())
    inputs = {"x": x, "twice": True, "scale": torch.tensor(3.0)}
    close(
        exact(module, weights, delta, inputs, [""], batch=2)[""].F,
        6 * x @ weights["first.weight"].T + weights["first.bias"],
    )


WRONG = {
    "no such tap": ({"taps": ["second"]}, "such as first, act, behind, spare; got 'second'"),
    "never reached": ({"taps": ["spare"]}, "reaches, got 'spare'"),
    "no floating tensor": ({"module": returns(lambda x: x.long()), "taps": ["behind"]}, "floating tensor, got Tensor at 'behind'"),
    "probes not first": ({"module": returns(lambda x: x.T), "taps": ["behind"]}, r"5 probes on its first axis, got shape \(6, 5\)"),
    "no probes": ({"inputs": torch.zeros(0, 4)}, "at least 1"),
    "two numbers of probes": ({"inputs": {"x": torch.zeros(2, 4), "y": torch.zeros(3, 4)}}, r"got \[2, 3\]"),
    "batch": ({"batch": 0}, "at least 1 probe, got 0"),
    "shape of Δ": ({"delta": {"first.bias": torch.zeros(3)}}, r"\(6,\) for 'first.bias', got \(3,\)"),
    "names of Δ": ({"delta": {"model.bias": torch.zeros(3)}}, "parameter names, got model.bias"),
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(WRONG))
def test_a_wrong_argument_is_told(name: str) -> None:
    module, weights, delta, x = setup(Net())
    module.spare = nn.Identity()
    changes, message = WRONG[name]
    given = {"module": module, "weights": weights, "delta": delta, "inputs": x, "taps": ["act"], **changes}
    with pytest.raises(ArgumentError, match=message):
        exact(**given)


@pytest.mark.parametrize("shape", [(5,), (4, 6), (5, 7)])
def test_pi_has_a_row_per_probe_and_a_column_per_feature(shape: tuple[int, ...]) -> None:
    with pytest.raises(ArgumentError, match="Expected Π of"):
        taylor(*setup(Net()), "act", torch.ones(shape))


@pytest.mark.parametrize("meta", [True, False])
def test_missing_weights_are_named(meta: bool) -> None:
    """A linear layer with weights on meta gives garbage without a word: it must not get that far."""
    module, weights, delta, x = setup(Net())
    module = module.to("meta") if meta else module
    del weights["first.weight"]
    for run in (
        lambda: features(module, weights, x, ["act"]),
        lambda: exact(module, weights, delta, x, ["act"]),
        lambda: taylor(module, weights, delta, x, "act", torch.ones(5, 6)),
    ):
        with pytest.raises(CheckpointError, match=r"weights for 'first\.weight'"):
            run()


def test_a_missing_index_on_meta_is_named() -> None:
    """So is indexing with one: garbage without a word."""

    class Indexed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Parameter(torch.randn(4, 3))
            self.register_buffer("index", torch.zeros(4, dtype=torch.long, device="meta"), persistent=False)

        def forward(self, x: Tensor) -> Tensor:
            return x @ self.table[self.index]

    module, weights, delta, x = setup(Indexed())
    with pytest.raises(CheckpointError, match="weights for 'index'"):
        exact(module, weights, delta, x, [""])
    module.index = torch.zeros(4, dtype=torch.long)
    assert exact(module, weights, delta, x, [""])[""].F.shape == (5, 3)


def test_weights_of_another_shape_are_told() -> None:
    module, weights, _, x = setup(Net())
    weights["first.bias"] = torch.zeros(7)
    with pytest.raises(CheckpointError, match=r"shape \(6,\) for 'first.bias', .*got \(7,\)"):
        features(module, weights, x, ["act"])


def test_a_head_of_another_shape_is_no_matter() -> None:
    module, weights, delta, x = setup(Net(nn.Linear(6, 2)))
    expected = exact(module, weights, delta, x, ["act"])["act"]
    other = weights | {"behind.weight": torch.zeros(9, 6), "behind.bias": torch.zeros(9)}
    assert torch.equal(exact(module, other, delta, x, ["act"])["act"].T, expected.T)


def test_what_is_not_finite_is_named() -> None:
    module, weights, delta, x = setup(Net(nn.Linear(6, 2)))
    check_finite(exact(module, weights, delta, x, ["act"]), "a/b")
    weights["first.bias"] = weights["first.bias"] * float("inf")
    with pytest.raises(CheckpointError, match="a/b at 'act'"):
        check_finite(exact(module, weights, delta, x, ["act"]), "a/b")
    del weights["behind.bias"]  # a head that is not there has nothing to do with it
    with pytest.raises(CheckpointError, match="a/b at 'act'"):
        check_finite(features(module, weights, x, ["act"]), "a/b")


class TestStep:
    def test_the_error_falls_with_the_step(self) -> None:
        c = case("vit", torch.float64)
        found = exact(*c.all, c.taps)
        for tap in ("blocks.0", "blocks.1"):
            bends = [curvature(*c.all, c.taps, found, step)[tap] for step in (0.1, 0.01, 0.001)]
            assert bends[0] / bends[1] == pytest.approx(10, rel=0.1) == bends[1] / bends[2]

    def test_a_linear_tap_has_none(self) -> None:
        module, weights, delta, x = setup(Net())
        found = exact(module, weights, delta, x, ["first"])
        assert curvature(module, weights, delta, x, ["first"], found, 1.0)["first"] < 1e-5
        (step,) = try_steps(lambda step: curvature(module, weights, delta, x, ["first"], found, step)["first"])
        assert step.value == GRID[0] and step.small

    def test_the_larger_the_change_the_smaller_the_step(self) -> None:
        c = case("vit", torch.float64)
        steps = []
        for scale in (0.1, 1, 3, 10, 30, 100):
            delta = {name: scale * value for name, value in c.delta.items()}
            known = (c.module, c.weights, delta, c.inputs, ["blocks.1"])
            found = exact(*known)
            steps.append(try_steps(lambda step, k=known, f=found: curvature(*k, f, step)["blocks.1"])[-1])
        values = [step.value for step in steps]
        assert values == sorted(values, reverse=True) and values[0] == GRID[0] > values[-1]
        assert all(step.value in GRID and step.small == (step.curvature < MAX_RELATIVE_CURVATURE) for step in steps)

    def test_none_is_small_enough(self) -> None:
        module, weights, delta, x = setup(Net())
        found = exact(module, weights, delta, x, ["act"])["act"]
        wrong = Linearised(found.F, -found.T)
        tried = try_steps(lambda step: curvature(module, weights, delta, x, ["act"], {"act": wrong}, step)["act"])
        step = tried[-1]
        assert tuple(each.value for each in tried) == GRID
        assert step.value == GRID[-1] and not step.small and step.curvature == pytest.approx(2, rel=0.01)

    def test_nothing_moves(self) -> None:
        module, weights, _, x = setup(Net())
        found = exact(module, weights, {}, x, ["act"])
        assert curvature(module, weights, {}, x, ["act"], found, 1.0) == {"act": 0.0}


class TestProposition2:
    """Eq. 5 and S3.7 for l2 at α = 1: no matrix W(x) in the place of the Jacobian, and no shared Z in the place of Δ, comes
    nearer to a real child than Eq. 1, up to what is of second order in Δ."""

    def parent(self, seed: int = 0) -> tuple[Callable[[Tensor], Tensor], Tensor]:
        """(weights (P,) → features (N, K), the weights): 40 probes, 2 features, 26 weights."""
        torch.manual_seed(seed)
        module = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()
        x = torch.randn(40, 3, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
        shapes = {name: value.shape for name, value in module.named_parameters()}

        def run(flat: Tensor) -> Tensor:
            parts = flat.split([shape.numel() for shape in shapes.values()])
            tensors = {n: part.view(shape) for (n, shape), part in zip(shapes.items(), parts, strict=True)}
            return torch.func.functional_call(module, tensors, (x,))

        return run, torch.cat([value.detach().flatten() for value in module.parameters()])

    def child(self, run: Callable[[Tensor], Tensor], start: Tensor) -> Tensor:
        """Forty steps of gradient descent on another task."""
        target = torch.randn(40, 2, generator=torch.Generator().manual_seed(8), dtype=torch.float64)
        moved = start.clone()
        for _ in range(40):
            moved = moved - 0.05 * torch.func.grad(lambda flat: (run(flat) - target).square().mean())(moved)
        return moved

    def scores(self, run: Callable[[Tensor], Tensor], start: Tensor, end: Tensor) -> dict[str, float]:
        """l2 without linearisation, by Eq. 1 at α = 1, at the best Z and at the best W(x)."""
        F, G, J = run(start), run(end), torch.func.jacrev(run)(start).flatten(0, 1)
        delta = end - start
        best_z = torch.linalg.lstsq(J, (G - F).flatten()).solution
        best_w = torch.outer((G - F).flatten(), delta) / delta.square().sum()  # W(x)Δ = f_c(x) − f_p(x)
        steps = {"plain": 0 * F.flatten(), "ours": J @ delta, "over Z": J @ best_z, "over W": best_w @ delta}
        return {name: similarity("l2", F + step.view_as(F), G) for name, step in steps.items()}

    def test_a_real_pair_reaches_both_maxima(self) -> None:
        run, start = self.parent()
        whole = self.child(run, start) - start
        missing = []
        for share in (1.0, 0.25, 0.0625):
            found = self.scores(run, start, start + share * whole)
            assert found["over W"] == pytest.approx(0, abs=1e-25)
            assert found["over W"] >= found["over Z"] >= found["ours"] > found["plain"]
            missing.append((found["over W"] - found["ours"]) / (found["over W"] - found["plain"]))
        assert missing[0] < 0.1 and missing[1] < missing[0] / 8 and missing[2] < missing[1] / 8, (
            missing
        )  # 16: of second order

    def test_a_false_pair_does_not(self) -> None:
        run, start = self.parent()
        other, elsewhere = self.parent(seed=5)
        found = self.scores(other, elsewhere, self.child(run, start))
        assert found["over W"] == pytest.approx(0, abs=1e-25)
        assert found["over W"] - found["ours"] > 0.5 * (found["over W"] - found["plain"]), found
