"""Small networks, one for each kind of hidden units that `architecture/structure.py` tells: a row of KINDS each.

A network is a stem, two blocks of the kind and a head, on 14 × 14 images of glyphs. A row names the block's matrices as
they are named in the models that have the kind, and says what the block computes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

WIDTH, HIDDEN, SIDE, TOKENS = 32, 64, 14, 7  # TOKENS: pairs of an image's rows
Forward = Callable[[Any, Tensor], Tensor]


class Parts(nn.Module):
    """Modules at dotted paths, and a function of them."""

    def __init__(self, parts: Mapping[str, nn.Module | nn.Parameter], forward: Forward) -> None:
        super().__init__()
        self.paths = tuple(parts)
        self._run = forward
        for path, part in parts.items():
            home: nn.Module = self
            *above, last = path.split(".")
            for name in above:
                if not hasattr(home, name):
                    home.add_module(name, nn.Module())
                home = getattr(home, name)
            setattr(home, last, part)

    def __getitem__(self, path: str) -> Any:
        found: Any = self
        for name in path.split("."):
            found = getattr(found, name)
        return found

    def forward(self, x: Tensor) -> Tensor:
        return self._run(self, x)


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind. over: what a block sees, "tokens" (batch, TOKENS, WIDTH) or "images" (batch, WIDTH, 5, 5). block: makes one.

    rule: of `structure.RULES`, that must tell its units. around: modules and a function before the blocks, if any.
    """

    over: str
    rule: str
    block: Callable[[], Parts]
    around: Callable[[], Parts] | None = None
    path: str = "blocks"


class BatchNorm(nn.Module):
    """A batch norm that keeps no running statistics."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(width)), nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        rest = [i for i in range(x.ndim) if i != 1]
        shape = [-1 if i == 1 else 1 for i in range(x.ndim)]
        x = (x - x.mean(rest, keepdim=True)) * (x.var(rest, keepdim=True, unbiased=False) + 1e-5).rsqrt()
        return x * self.weight.view(shape) + self.bias.view(shape)


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention of one head."""
    return (q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5).softmax(-1) @ v


class Conv1D(nn.Module):
    """A linear map stored (in, out), with its bias."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(inputs, outputs) * inputs**-0.5)
        self.bias = nn.Parameter(torch.zeros(outputs))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight + self.bias


class Network(nn.Module):
    """Stem, two blocks, mean over places, head."""

    def __init__(self, kind: Kind, classes: int) -> None:
        super().__init__()
        self.kind = kind
        self.stem = nn.Conv2d(1, WIDTH, 3, 3, 1) if kind.over == "images" else nn.Linear(SIDE, WIDTH)
        if kind.over == "tokens":
            self.places = nn.Parameter(0.1 * torch.randn(TOKENS, WIDTH))
        if kind.around is not None:
            self.around = kind.around()
        home: nn.Module = self
        *above, last = kind.path.split(".")
        for name in above:
            home.add_module(name, nn.Module())
            home = getattr(home, name)
        self._blocks = [kind.block() for _ in range(2)]
        setattr(home, last, nn.ModuleList(self._blocks))
        self.head = nn.Linear(WIDTH, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = (
            self.stem(x.unsqueeze(1))
            if self.kind.over == "images"
            else self.stem(x.unflatten(1, (TOKENS, -1)).mean(2)) + self.places
        )
        if self.kind.around is not None:
            x = self.around(x)
        for block in self._blocks:
            x = block(x)
        return self.head(x.mean((2, 3)) if self.kind.over == "images" else x.mean(1))


def linear(inputs: int, outputs: int) -> nn.Module:
    return nn.Linear(inputs, outputs)


def conv(inputs: int, outputs: int, size: int = 1, groups: int = 1) -> nn.Module:
    return nn.Conv2d(inputs, outputs, size, padding=size // 2, groups=groups)


def tokens(parts: dict[str, nn.Module | nn.Parameter], forward: Forward) -> Parts:
    """A block of a transformer: attention of one head, then what is given; both with a norm and an identity."""
    attention = {f"attn.to_{name}": linear(WIDTH, WIDTH) for name in ("q", "k", "v", "out")}
    norms = {name: nn.LayerNorm(WIDTH) for name in ("norm1", "norm2")}

    def run(m: Parts, x: Tensor) -> Tensor:
        y = m["norm1"](x)
        q, k, v = (m[f"attn.to_{name}"](y) for name in "qkv")
        x = x + m["attn.to_out"](attend(q, k, v))
        return x + forward(m, m["norm2"](x))

    return Parts({**attention, **norms, **parts}, run)


def images(parts: dict[str, nn.Module | nn.Parameter], forward: Forward) -> Parts:
    """A block of a convolutional network: a norm, what is given, an identity."""
    return Parts({"pre": BatchNorm(WIDTH), **parts}, lambda m, x: x + forward(m, m["pre"](x)))


def in_turn(*paths: str, act: Callable[[Tensor], Tensor] = F.gelu) -> Forward:
    """One module after the other, with an activation between."""

    def run(m: Parts, x: Tensor) -> Tensor:
        for i, path in enumerate(paths):
            x = m[path](act(x) if i else x)
        return x

    return run


def gated(gate: str, up: str, down: str) -> Forward:
    return lambda m, x: m[down](F.silu(m[gate](x)) * m[up](x))


def halves(first: str, second: str, act: Callable[[Tensor], Tensor] = F.gelu) -> Forward:
    def run(m: Parts, x: Tensor) -> Tensor:
        a, b = m[first](x).chunk(2, -1)
        return m[second](a * act(b))

    return run


def two(a: str, b: str, hidden: int = HIDDEN) -> Callable[[], Parts]:
    return lambda: tokens({a: linear(WIDTH, hidden), b: linear(hidden, WIDTH)}, in_turn(a, b))


def fused(a: str, b: str) -> Callable[[], Parts]:
    return lambda: tokens({a: linear(WIDTH, 2 * HIDDEN), b: linear(HIDDEN, WIDTH)}, halves(a, b))


def three(gate: str, up: str, down: str) -> Callable[[], Parts]:
    def make() -> Parts:
        parts = {gate: linear(WIDTH, HIDDEN), up: linear(WIDTH, HIDDEN), down: linear(HIDDEN, WIDTH)}
        return tokens(parts, gated(gate, up, down))

    return make


def _inverted(expand: str, middle: str, project: str) -> Callable[[], Parts]:
    def make() -> Parts:
        parts = {expand: conv(WIDTH, HIDDEN), middle: conv(HIDDEN, HIDDEN, 3, HIDDEN), project: conv(HIDDEN, WIDTH)}
        parts |= {"bn1": BatchNorm(HIDDEN), "bn2": BatchNorm(HIDDEN)}

        def run(m: Parts, x: Tensor) -> Tensor:
            return m[project](F.silu(m["bn2"](m[middle](F.silu(m["bn1"](m[expand](x)))))))

        return images(parts, run)

    return make


def _bottleneck(a: str, b: str, c: str, groups: int = 1) -> Callable[[], Parts]:
    def make() -> Parts:
        parts = {a: conv(WIDTH, HIDDEN), b: conv(HIDDEN, HIDDEN, 3, groups), c: conv(HIDDEN, WIDTH)}
        parts |= {"bn1": BatchNorm(HIDDEN), "bn2": BatchNorm(HIDDEN)}
        return images(parts, lambda m, x: m[c](F.relu(m["bn2"](m[b](F.relu(m["bn1"](m[a](x))))))))

    return make


def _group_norm() -> Parts:
    parts = {"norm1": nn.GroupNorm(8, WIDTH), "conv1": conv(WIDTH, HIDDEN, 3), "norm2": nn.GroupNorm(32, HIDDEN)}
    parts |= {"conv2": conv(HIDDEN, HIDDEN, 3), "conv3": conv(HIDDEN, WIDTH)}
    return images(parts, lambda m, x: m["conv3"](F.silu(m["conv2"](F.silu(m["norm2"](m["conv1"](m["norm1"](x))))))))


def _conformer() -> Parts:
    parts: dict[str, nn.Module | nn.Parameter] = {
        "conv.pointwise_conv1": nn.Conv1d(WIDTH, 2 * WIDTH, 1),
        "conv.depthwise_conv": nn.Conv1d(WIDTH, WIDTH, 5, padding=2, groups=WIDTH),
        "conv.norm": BatchNorm(WIDTH),
        "conv.pointwise_conv2": nn.Conv1d(WIDTH, WIDTH, 1),
    }

    def run(m: Parts, x: Tensor) -> Tensor:
        y = F.glu(m["conv.pointwise_conv1"](x.transpose(1, 2)), 1)
        return m["conv.pointwise_conv2"](F.silu(m["conv.norm"](m["conv.depthwise_conv"](y)))).transpose(1, 2)

    return tokens(parts, run)


def _mamba() -> Parts:
    parts: dict[str, nn.Module | nn.Parameter] = {
        "norm": nn.LayerNorm(WIDTH),
        "mixer.in_proj": nn.Linear(WIDTH, 2 * HIDDEN, bias=False),
        "mixer.conv1d": nn.Conv1d(HIDDEN, HIDDEN, 4, padding=3, groups=HIDDEN),
        "mixer.x_proj": nn.Linear(HIDDEN, 4 + 2 * 8, bias=False),
        "mixer.dt_proj": nn.Linear(4, HIDDEN),
        "mixer.out_proj": nn.Linear(HIDDEN, WIDTH, bias=False),
        "mixer.A_log": nn.Parameter(torch.arange(1.0, 9.0).log().repeat(HIDDEN, 1)),
        "mixer.D": nn.Parameter(torch.ones(HIDDEN)),
    }

    def run(m: Parts, x: Tensor) -> Tensor:
        u, z = m["mixer.in_proj"](m["norm"](x)).chunk(2, -1)
        u = F.silu(m["mixer.conv1d"](u.transpose(1, 2))[..., : u.shape[1]]).transpose(1, 2)
        dt, b, c = m["mixer.x_proj"](u).split([4, 8, 8], -1)
        dt = F.softplus(m["mixer.dt_proj"](dt))
        decay = torch.exp(-dt[..., None] * m["mixer.A_log"].exp())
        drive = dt[..., None] * u[..., None] * b[:, :, None]
        state, seen = torch.zeros_like(drive[:, 0]), []
        for t in range(x.shape[1]):
            state = decay[:, t] * state + drive[:, t]
            seen.append((state * c[:, t, None]).sum(-1))
        y = torch.stack(seen, 1) + m["mixer.D"] * u
        return x + m["mixer.out_proj"](y * F.silu(z))

    return Parts(parts, run)


def _experts(stored_in_out: bool) -> Callable[[], Parts]:
    def make() -> Parts:
        up = torch.randn(3, WIDTH, 2 * HIDDEN) * WIDTH**-0.5
        down = torch.randn(3, HIDDEN, WIDTH) * HIDDEN**-0.5
        names = (
            ("moe.experts.gate_up", "moe.experts.down") if stored_in_out else ("moe.input_linear", "moe.output_linear")
        )
        stacks = [x if stored_in_out else x.transpose(1, 2).contiguous() for x in (up, down)]
        parts: dict[str, nn.Module | nn.Parameter] = {n: nn.Parameter(x) for n, x in zip(names, stacks, strict=True)}
        parts["moe.router"] = linear(WIDTH, 3)

        def run(m: Parts, x: Tensor) -> Tensor:
            first, second = (m[n] if stored_in_out else m[n].transpose(1, 2) for n in names)
            a, b = torch.einsum("btd,edh->beth", x, first).chunk(2, -1)
            y = torch.einsum("beth,ehd->betd", a * F.silu(b), second)
            return torch.einsum("betd,bte->btd", y, m["moe.router"](x).softmax(-1))

        return tokens(parts, run)

    return make


def _beside() -> Parts:
    parts: dict[str, nn.Module | nn.Parameter] = {f"attn.to_{name}": linear(WIDTH, WIDTH) for name in "qkv"}
    parts |= {"norm": nn.LayerNorm(WIDTH), "proj_mlp": linear(WIDTH, HIDDEN), "proj_out": linear(WIDTH + HIDDEN, WIDTH)}

    def run(m: Parts, x: Tensor) -> Tensor:
        y = m["norm"](x)
        seen = attend(*(m[f"attn.to_{name}"](y) for name in "qkv"))
        return x + m["proj_out"](torch.cat([seen, F.gelu(m["proj_mlp"](y))], -1))

    return Parts(parts, run)


def _recurrent(make: type[nn.RNNBase]) -> Callable[[], Parts]:
    def block() -> Parts:
        parts = {"rnn": make(WIDTH, HIDDEN, batch_first=True), "back": linear(HIDDEN, WIDTH)}
        return Parts(parts, lambda m, x: x + m["back"](m["rnn"](x)[0]))

    return block


def _mixing() -> Parts:
    parts: dict[str, nn.Module | nn.Parameter] = {
        "mlp_tokens.fc1": linear(TOKENS, 40), "mlp_tokens.fc2": linear(40, TOKENS), "mlp_channels.fc1": linear(WIDTH, HIDDEN),
        "mlp_channels.fc2": linear(HIDDEN, WIDTH), "norm1": nn.LayerNorm(WIDTH), "norm2": nn.LayerNorm(WIDTH),
    }  # fmt: skip

    def run(m: Parts, x: Tensor) -> Tensor:
        x = x + in_turn("mlp_tokens.fc1", "mlp_tokens.fc2")(m, m["norm1"](x).transpose(1, 2)).transpose(1, 2)
        return x + in_turn("mlp_channels.fc1", "mlp_channels.fc2")(m, m["norm2"](x))

    return Parts(parts, run)


def _spatial_gate() -> Parts:
    parts: dict[str, nn.Module | nn.Parameter] = {
        "norm": nn.LayerNorm(WIDTH), "mlp_channels.fc1": linear(WIDTH, 2 * HIDDEN), "mlp_channels.gate.norm": nn.LayerNorm(HIDDEN),
        "mlp_channels.gate.proj": linear(TOKENS, TOKENS), "mlp_channels.fc2": linear(HIDDEN, WIDTH),
    }  # fmt: skip

    def run(m: Parts, x: Tensor) -> Tensor:
        u, v = F.gelu(m["mlp_channels.fc1"](m["norm"](x))).chunk(2, -1)
        v = m["mlp_channels.gate.proj"](m["mlp_channels.gate.norm"](v).transpose(1, 2)).transpose(1, 2)
        return x + m["mlp_channels.fc2"](u * (1 + v))

    return Parts(parts, run)


def _squeeze(a: str, b: str) -> Callable[[], Parts]:
    def make() -> Parts:
        parts = {"main": conv(WIDTH, WIDTH, 3), "wide": conv(WIDTH, 2 * HIDDEN), "narrow": conv(2 * HIDDEN, WIDTH, 3)}
        parts |= {a: conv(2 * HIDDEN, 40), b: conv(40, 2 * HIDDEN)}

        def run(m: Parts, x: Tensor) -> Tensor:
            y = F.relu(m["wide"](F.relu(m["main"](x))))
            return m["narrow"](y * m[b](F.relu(m[a](y.mean((2, 3), keepdim=True)))).sigmoid())

        return images(parts, run)

    return make


def _star() -> Parts:
    parts = {"f1.conv": conv(WIDTH, HIDDEN), "f2.conv": conv(WIDTH, HIDDEN), "g.conv": conv(HIDDEN, WIDTH)}
    return images(parts, lambda m, x: m["g.conv"](F.relu6(m["f1.conv"](x)) * m["f2.conv"](x)))


def _dense() -> Parts:
    parts = {
        "layer1.conv1": conv(WIDTH, HIDDEN),
        "layer1.conv2": conv(HIDDEN, 16, 3),
        "layer2.conv1": conv(WIDTH + 16, HIDDEN),
    }
    parts |= {"layer2.conv2": conv(HIDDEN, 16, 3), "transition": conv(WIDTH + 32, WIDTH)}

    def run(m: Parts, x: Tensor) -> Tensor:
        for layer in ("layer1", "layer2"):
            x = torch.cat([x, m[f"{layer}.conv2"](F.relu(m[f"{layer}.conv1"](F.relu(x))))], 1)
        return m["transition"](x)

    return images(parts, run)


def _weight_norm() -> Parts:
    from torch.nn.utils.parametrizations import weight_norm

    sizes = {"conv1": 3, "conv2": 1}
    parts = {n: weight_norm(nn.Conv1d(WIDTH, WIDTH, size, padding=size // 2)) for n, size in sizes.items()}
    return Parts(parts, lambda m, x: x + in_turn("conv1", "conv2")(m, F.gelu(x.transpose(1, 2))).transpose(1, 2))


def _paired() -> Parts:
    parts = {f"convs{j}.{i}": nn.Conv1d(WIDTH, WIDTH, 3, padding=1) for j in (1, 2) for i in (0, 1)}

    def run(m: Parts, x: Tensor) -> Tensor:
        x = x.transpose(1, 2)
        for i in (0, 1):
            x = x + in_turn(f"convs1.{i}", f"convs2.{i}")(m, F.gelu(x))
        return x.transpose(1, 2)

    return Parts(parts, run)


def _rows(a: str, b: str) -> Callable[[], Parts]:
    return lambda: images({a: conv(WIDTH, HIDDEN, 3), b: conv(HIDDEN, WIDTH)}, in_turn(a, b, act=F.relu))


def _stored_in_out() -> Parts:
    return tokens({"net.fc": Conv1D(WIDTH, HIDDEN), "net.proj": Conv1D(HIDDEN, WIDTH)}, in_turn("net.fc", "net.proj"))


def _sinusoids() -> Parts:
    """An embedding of the image's mean, as of a time step, that is added to every token."""
    parts = {"time_embedding.linear_1": linear(16, HIDDEN), "time_embedding.linear_2": linear(HIDDEN, WIDTH)}

    def run(m: Parts, x: Tensor) -> Tensor:
        angles = x.mean((1, 2))[:, None] * torch.arange(1, 9)
        return x + in_turn(*parts, act=F.silu)(m, torch.cat([angles.sin(), angles.cos()], -1))[:, None]

    return Parts(parts, run)


def _plain() -> Parts:
    return tokens({"attn.gate": linear(WIDTH, WIDTH)}, lambda m, x: m["attn.gate"](x))


def _inner_norm() -> Parts:
    parts = {
        "ffn.lin_a": linear(WIDTH, HIDDEN),
        "ffn.mid.norm": nn.LayerNorm(HIDDEN),
        "ffn.lin_b": linear(HIDDEN, WIDTH),
    }
    return tokens(parts, lambda m, x: m["ffn.lin_b"](m["ffn.mid.norm"](F.gelu(m["ffn.lin_a"](x)))))


def _many(*sizes: int, path: str = "conv") -> Callable[[], Parts]:
    steps = {f"{path}.{2 * i}": step for i, step in enumerate(pairwise(sizes))}
    return lambda: images({name: conv(a, b, 3) for name, (a, b) in steps.items()}, in_turn(*steps, act=F.relu))


def _agree() -> Parts:
    parts = {"aggregation.0.conv": conv(WIDTH, HIDDEN), "aggregation.1.conv": conv(HIDDEN, WIDTH)}
    return images(parts, in_turn(*parts, act=F.relu))


def _channels() -> Parts:
    parts = {
        "feed_forward.key": linear(WIDTH, HIDDEN),
        "feed_forward.value": linear(HIDDEN, WIDTH),
        "feed_forward.receptance": linear(WIDTH, WIDTH),
    }

    def run(m: Parts, x: Tensor) -> Tensor:
        return m["feed_forward.receptance"](x).sigmoid() * m["feed_forward.value"](m["feed_forward.key"](x).relu() ** 2)

    return tokens(parts, run)


def _two_towers() -> Parts:
    parts = {
        f"{m}.{n}": linear(*size)
        for m in ("img_mlp", "txt_mlp")
        for n, size in {"a": (WIDTH, HIDDEN), "b": (HIDDEN, WIDTH)}.items()
    }
    return tokens(parts, lambda m, x: in_turn("img_mlp.a", "img_mlp.b")(m, x) + in_turn("txt_mlp.a", "txt_mlp.b")(m, x))


def _parallel() -> Parts:
    parts: dict[str, nn.Module | nn.Parameter] = {
        f"attn.{n}_proj": linear(WIDTH, WIDTH) for n in ("q", "k", "v", "out")
    }
    parts |= {"ln_1": nn.LayerNorm(WIDTH), "mlp.fc_in": linear(WIDTH, HIDDEN), "mlp.fc_out": linear(HIDDEN, WIDTH)}

    def run(m: Parts, x: Tensor) -> Tensor:
        y = m["ln_1"](x)
        seen = attend(*(m[f"attn.{n}_proj"](y) for n in "qkv"))
        return x + m["attn.out_proj"](seen) + in_turn("mlp.fc_in", "mlp.fc_out")(m, y)

    return Parts(parts, run)


def _parts_of_channels() -> Parts:
    """Three parts of HIDDEN channels and one that passes (Res2Net)."""
    size = HIDDEN // 4
    parts = {
        "conv1": conv(WIDTH, HIDDEN),
        **{f"convs.{i}": conv(size, size, 3) for i in range(3)},
        "conv3": conv(HIDDEN, WIDTH),
    }

    def run(m: Parts, x: Tensor) -> Tensor:
        *pieces, last = F.relu(m["conv1"](x)).chunk(4, 1)
        seen: list[Tensor] = []
        for i, piece in enumerate(pieces):
            seen.append(F.relu(m[f"convs.{i}"](piece + seen[-1] if seen else piece)))
        return m["conv3"](torch.cat([*seen, last], 1))

    return images(parts, run)


def _separable() -> Parts:
    sizes = {1: (WIDTH, HIDDEN), 2: (HIDDEN, HIDDEN), 3: (HIDDEN, WIDTH)}
    parts = {f"conv{i}.conv_dw": conv(a, a, 3, a) for i, (a, _) in sizes.items()}
    parts |= {f"conv{i}.conv_pw": conv(*size) for i, size in sizes.items()}
    parts |= {f"bn{i}": BatchNorm(size) for i, (_, size) in sizes.items()}

    def run(m: Parts, x: Tensor) -> Tensor:
        for i in sizes:
            x = m[f"bn{i}"](m[f"conv{i}.conv_pw"](m[f"conv{i}.conv_dw"](F.relu(x))))
        return x

    return images(parts, run)


def _beside_fused() -> Parts:
    """One matrix writes q, k, v, gate and up (Flux.2)."""
    parts: dict[str, nn.Module | nn.Parameter] = {"norm": nn.LayerNorm(WIDTH)}
    parts |= {
        "attn.to_qkv_mlp_proj": linear(WIDTH, 3 * WIDTH + 2 * HIDDEN),
        "attn.to_out": linear(WIDTH + HIDDEN, WIDTH),
    }

    def run(m: Parts, x: Tensor) -> Tensor:
        q, k, v, gate, up = m["attn.to_qkv_mlp_proj"](m["norm"](x)).split([WIDTH] * 3 + [HIDDEN] * 2, -1)
        return x + m["attn.to_out"](torch.cat([attend(q, k, v), F.silu(gate) * up], -1))

    return Parts(parts, run)


KINDS: dict[str, Kind] = {
    "two linears": Kind("tokens", "own width", two("ffn.linear_1", "ffn.linear_2")),
    "intermediate and output": Kind("tokens", "own width", two("feed_forward.intermediate_dense", "feed_forward.output_dense")),
    "in the block itself": Kind("tokens", "own width", two("ffn", "ffn_output")),
    "a Sequential": Kind("tokens", "own width", two("ffn.0", "ffn.2")),
    "with an inner norm": Kind("tokens", "sequence", _inner_norm),
    "parallel to attention": Kind("tokens", "own width", _parallel),
    "GEGLU": Kind("tokens", "own width", fused("ff.net.0.proj", "ff.net.2"), path="transformer_blocks"),
    "input and output linear, halves": Kind("tokens", "own width", fused("shared_mlp.input_linear", "shared_mlp.output_linear")),
    "Wi and Wo, halves": Kind("tokens", "own width", fused("mlp.Wi", "mlp.Wo"), path="layers"),
    "gate, up, down": Kind("tokens", "own width", three("ffn.gate", "ffn.lift", "ffn.drop")),
    "w1, w3, w2": Kind("tokens", "own width", three("net.w1", "net.w3", "net.w2")),
    "stored (in, out)": Kind("tokens", "own width", _stored_in_out, path="h"),
    "two streams": Kind("tokens", "own width", _two_towers),
    "channel mix (RWKV)": Kind("tokens", "own width", _channels),
    "token and channel mix": Kind("tokens", "own width", _mixing),
    "spatial gate (gMLP)": Kind("tokens", "sequence", _spatial_gate),
    "mamba": Kind("tokens", "own width", _mamba, path="layers"),
    "experts (e, out, in)": Kind("tokens", "own width", _experts(False)),
    "square, by number": Kind("tokens", "sequence", two("ffn.linear_1", "ffn.linear_2", WIDTH)),
    "square, by word": Kind("tokens", "words", two("net.w_in", "net.w_out", WIDTH)),
    "conformer's convolution": Kind("tokens", "sequence", _conformer),
    "weight norm": Kind("tokens", "sequence", _weight_norm),
    "paired lists (HiFi-GAN)": Kind("tokens", "sequence", _paired, path="resblocks"),
    "time embedding": Kind("tokens", "own width", _plain, _sinusoids),
    "experts (e, in, out)": Kind("tokens", "stacked experts", _experts(True)),
    "beside attention": Kind("tokens", "beside", _beside, path="single_transformer_blocks"),
    "LSTM": Kind("tokens", "recurrent gates", _recurrent(nn.LSTM)),
    "GRU": Kind("tokens", "recurrent gates", _recurrent(nn.GRU)),
    "bottleneck": Kind("images", "sequence", _bottleneck("conv1_1x1.conv", "conv2_kxk.conv", "conv3_1x1.conv"), path="stages"),
    "resnet with group norm": Kind("images", "by group", _group_norm, path="down_blocks.0.resnets"),
    "convolutions in turn": Kind("images", "sequence", _many(WIDTH, HIDDEN, HIDDEN, WIDTH)),
    "narrow between": Kind("images", "own width", _many(WIDTH, 40, WIDTH, path="layers")),
    "dense connections": Kind("images", "sequence", _dense, path="features.denseblock"),
    "aggregation": Kind("images", "own width", _agree),
    "3 × 3 and 1 × 1": Kind("images", "own width", _rows("body.block1", "body.block2")),
    "pointwise, depthwise, pointwise": Kind("images", "words", _inverted("conv_pw", "conv_dw", "conv_pwl")),
    "expansion and projection": Kind("images", "words", _inverted("expansion.expand_conv", "depthwise_conv", "projection.project_conv")),
    "around a depthwise convolution": Kind("images", "wider inside", _inverted("conv1_1x1", "conv2_kxk", "conv3_1x1")),
    "squeeze and excite": Kind("images", "own width", _squeeze("attn.fc1", "attn.fc2")),
    "reduce and expand": Kind("images", "own width", _squeeze("se.conv_reduce", "se.conv_expand")),
    "product of two (StarNet)": Kind("images", "own width", _star),
    "grouped convolution": Kind("images", "by group", _bottleneck("conv1", "conv2", "conv3", 8), path="layer1"),
    "parts of channels (Res2Net)": Kind("images", "by group", _parts_of_channels, path="layer1"),
    "separable convolutions (Xception)": Kind("images", "sequence", _separable, path="stack"),
    "fused beside attention (Flux.2)": Kind("tokens", "beside", _beside_fused, path="single_transformer_blocks"),
}  # fmt: skip
