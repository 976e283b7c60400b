"""Hidden units by structure: one header per cause, what is found in it, and what must never be."""

from __future__ import annotations

import math
import random
import time

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_lineage.answers.refs import ModelRef
from hf_lineage.architecture.describe import Architecture, describe
from hf_lineage.architecture.structure import RULES, _Tree, cuts
from hf_lineage.checkpoints.checkpoint import MemoryCheckpoint
from hf_lineage.checkpoints.entry import Entry
from hf_lineage.checkpoints.view import View
from hf_lineage.weights.permutation_test import unit_products

Shapes = dict[str, tuple[int, ...]]


def header(shapes: Shapes) -> View:
    """A checkpoint of these shapes, through its cuts."""
    tensors = {name: torch.zeros(1).expand(shape) for name, shape in shapes.items()}
    model = MemoryCheckpoint(ModelRef("local", "./header"), "./header", tensors)
    return View(model, cuts(model))


def described(shapes: Shapes) -> Architecture:
    return describe(header(shapes))


def block(prefix: str, layers: int = 2, **shapes: tuple[int, ...]) -> Shapes:
    """`layers` blocks that hold attention (four 40 × 40 matrices), a norm and the given weights."""
    made: Shapes = {}
    for i in range(layers):
        made |= {f"{prefix}.{i}.attn.{m}.weight": (40, 40) for m in ("to_q", "to_k", "to_v", "to_out")}
        made[f"{prefix}.{i}.norm.weight"] = (40,)
        made |= {f"{prefix}.{i}.{name.replace('__', '.')}": shape for name, shape in shapes.items()}
    return made


def convolutions(path: str, **shapes: tuple[int, ...]) -> Shapes:
    return {f"{path}.{name.replace('__', '.')}.weight": shape for name, shape in shapes.items()}


# cause: header, the rule that tells, the rows of the first order (as they are named after the cuts)
CAUSES: dict[str, tuple[Shapes, str, list[str]]] = {
    "two linears": (block("blocks", ff__net__0__proj__weight=(160, 40), ff__net__2__weight=(40, 160)), "own width", ["blocks.0.ff.net.0.proj.weight"]),
    "GEGLU": (block("transformer_blocks", ff__net__0__proj__weight=(320, 40), ff__net__0__proj__bias=(320,), ff__net__2__weight=(40, 160)), "own width", ["transformer_blocks.0.ff.net.0.proj.weight[gate]", "transformer_blocks.0.ff.net.0.proj.weight[up]"]),
    "gate, up and down by any name": (block("layers", ffn__gate__weight=(96, 40), ffn__lift__weight=(96, 40), ffn__drop__weight=(40, 96)), "own width", ["layers.0.ffn.gate.weight", "layers.0.ffn.lift.weight"]),
    "w1 and w3 read, w2 writes": (block("layers", net__w1__weight=(96, 40), net__w2__weight=(40, 96), net__w3__weight=(96, 40)), "own width", ["layers.0.net.w1.weight", "layers.0.net.w3.weight"]),
    "in the block itself": (block("layer", ffn__weight=(96, 40), ffn_output__weight=(40, 96)), "own width", ["layer.0.ffn.weight"]),
    "Conv1D of (in, out), by its bias": (block("h", net__fc__weight=(40, 160), net__fc__bias=(160,), net__proj__weight=(160, 40), net__proj__bias=(40,)), "own width", ["h.0.net.proj.weight"]),
    "two feed-forward layers": (block("blocks", img_mlp__a__weight=(160, 40), img_mlp__b__weight=(40, 160), txt_mlp__a__weight=(160, 40), txt_mlp__b__weight=(40, 160)), "own width", ["blocks.0.img_mlp.a.weight"]),
    "resnet of a UNet": (convolutions("down_blocks.0.resnets.0", conv1=(64, 32, 3, 3), conv2=(64, 64, 3, 3), conv_shortcut=(64, 32, 1, 1), time_emb_proj=(64, 128)), "sequence", ["down_blocks.0.resnets.0.conv1.weight"]),
    "bottleneck": (convolutions("stages.0.0", conv1_1x1__conv=(32, 128, 1, 1), conv2_kxk__conv=(32, 32, 3, 3), conv3_1x1__conv=(128, 32, 1, 1)), "sequence", ["stages.0.0.conv1_1x1.conv.weight"]),
    "a sequence with activations between": (convolutions("encoder.1.conv", **{"0": (64, 64, 3, 3), "2": (64, 64, 3, 3), "4": (64, 64, 3, 3)}) | convolutions("encoder.2", q=(64, 64, 1, 1)), "sequence", ["encoder.1.conv.0.weight"]),
    "time embedding": (block("blocks") | {"time_embedding.linear_1.weight": (160, 40), "time_embedding.linear_2.weight": (160, 160)}, "sequence", ["time_embedding.linear_1.weight"]),
    "pointwise, depthwise, pointwise": (convolutions("blocks.1.0", conv_pw=(144, 24, 1, 1), conv_dw=(144, 1, 3, 3), conv_pwl=(32, 144, 1, 1)), "words", ["blocks.1.0.conv_pw.weight"]),
    "expansion and projection": (convolutions("blocks.1", expansion__expand_conv=(96, 24, 1, 1), depthwise_conv=(96, 1, 3, 3), projection__project_conv=(24, 96, 1, 1)), "words", ["blocks.1.expansion.expand_conv.weight"]),
    "around a depthwise convolution": (convolutions("stages.0.blocks.0", conv1_1x1=(96, 24, 1, 1), conv2_kxk=(96, 1, 3, 3), conv3_1x1=(24, 96, 1, 1)), "wider inside", ["stages.0.blocks.0.conv1_1x1.weight"]),
    "squeeze and excite": (convolutions("stages.0.0", main=(256, 256, 1, 1), attn__fc1=(64, 256, 1, 1), attn__fc2=(256, 64, 1, 1)), "own width", ["stages.0.0.attn.fc1.weight"]),
    "grouped convolution": (convolutions("layer1.0", conv1=(64, 48, 1, 1), conv2=(64, 8, 3, 3), conv3=(96, 64, 1, 1)), "by group", ["layer1.0.conv1.weight"]),
    "conformer's convolution": (block("layers", conv__pointwise_conv1__weight=(80, 40, 1), conv__depthwise_conv__weight=(40, 1, 9), conv__pointwise_conv2__weight=(40, 40, 1)), "sequence", ["layers.0.conv.pointwise_conv1.weight[gate]", "layers.0.conv.pointwise_conv1.weight[up]"]),
    "mamba": ({f"layers.{i}.{n}": s for i in range(2) for n, s in {"norm.weight": (40,), "mixer.in_proj.weight": (160, 40), "mixer.conv1d.weight": (80, 1, 4), "mixer.x_proj.weight": (36, 80), "mixer.dt_proj.weight": (80, 4), "mixer.A_log": (80, 16), "mixer.out_proj.weight": (40, 80)}.items()}, "own width", ["layers.0.mixer.dt_proj.weight", "layers.0.mixer.in_proj.weight[gate]", "layers.0.mixer.in_proj.weight[up]"]),
    "experts (e, out, in)": (block("layers", moe__input_linear__weight=(4, 192, 40), moe__output_linear__weight=(4, 40, 96)), "own width", ["layers.0.moe.input_linear.weight[0.gate]", "layers.0.moe.input_linear.weight[0.up]"]),
    "experts (e, in, out)": (block("layers", moe__experts__gate_up=(4, 40, 192), moe__experts__down=(4, 96, 40)), "stacked experts", ["layers.0.moe.experts.down[0]"]),
    "beside attention": (block("single_blocks", proj_mlp__weight=(160, 40), proj_out__weight=(40, 200)), "beside", ["single_blocks.0.proj_mlp.weight"]),
    "fused beside attention": (
        {f"single_blocks.{i}.attn.{n}.weight": s for i in range(2) for n, s in {"to_qkv_mlp_proj": (440, 40), "to_out": (40, 200)}.items()},
        "beside",
        ["single_blocks.0.attn.to_qkv_mlp_proj.weight[gate]", "single_blocks.0.attn.to_qkv_mlp_proj.weight[up]"],
    ),
    "gate and up beside attention": (block("single_blocks", proj_mlp__weight=(320, 40), proj_out__weight=(40, 200)), "beside", ["single_blocks.0.proj_mlp.weight[gate]", "single_blocks.0.proj_mlp.weight[up]"]),
    "parts of channels": (convolutions("layer1.0", conv1=(104, 64, 1, 1), convs__0=(26, 26, 3, 3), convs__1=(26, 26, 3, 3), convs__2=(26, 26, 3, 3), conv3=(256, 104, 1, 1)), "by group", ["layer1.0.conv1.weight"]),
    "selective kernels": (convolutions("layer1.0", conv1__conv=(64, 96, 1, 1), conv2__paths__0__conv=(64, 32, 3, 3), conv2__paths__1__conv=(64, 32, 3, 3), conv2__attn__fc_reduce=(8, 64, 1, 1), conv2__attn__fc_select=(128, 8, 1, 1), conv3__conv=(256, 64, 1, 1)), "by group", ["layer1.0.conv1.conv.weight"]),
    "separable convolutions": (convolutions("blocks.0.stack", conv1__conv_dw=(64, 1, 3, 3), conv1__conv_pw=(96, 64, 1, 1), conv2__conv_dw=(96, 1, 3, 3), conv2__conv_pw=(96, 96, 1, 1), conv3__conv_dw=(96, 1, 3, 3), conv3__conv_pw=(96, 96, 1, 1)), "sequence", ["blocks.0.stack.conv1.conv_pw.weight"]),
    "separable convolutions, by number": (convolutions("block2.rep", **{f"{i}__{n}": s for i, a, b in ((1, 64, 96), (4, 96, 96)) for n, s in (("conv1", (a, 1, 3, 3)), ("pointwise", (b, a, 1, 1)))}), "sequence", ["block2.rep.1.pointwise.weight"]),
    "LSTM": ({"encoder.lstm.weight_ih_l0": (160, 64), "encoder.lstm.weight_hh_l0": (160, 40), "encoder.lstm.bias_ih_l0": (160,), "encoder.conv.weight": (64, 64, 3)}, "recurrent gates", [f"encoder.lstm.weight_ih_l0[{gate}]" for gate in "fgio"]),
    "GRU": ({"gru.weight_ih_l0": (120, 64), "gru.weight_hh_l0": (120, 40), "conv.weight": (64, 64, 3)}, "recurrent gates", [f"gru.weight_ih_l0[{gate}]" for gate in "nrz"]),
    "weight norm": ({f"block.{i}.conv{j}.parametrizations.weight.original{k}": s for i in range(2) for j in (1, 2) for k, s in enumerate([(64, 1, 1), (64, 64, 7)])}, "sequence", ["block.0.conv1.parametrizations.weight.original1"]),
    "paired lists": (convolutions("resblocks.0", **{f"convs{j}__{i}": (64, 64, 3) for j in (1, 2) for i in range(3)}), "sequence", ["resblocks.0.convs1.0.weight"]),
}  # fmt: skip


@pytest.mark.parametrize("cause", CAUSES)
def test_each_cause(cause: str) -> None:
    shapes, rule, rows = CAUSES[cause]
    found = described(shapes)
    first = min(found.orders, key=lambda order: (rows[0] not in found.orders[order], order))
    assert sorted(found.orders[first]) == sorted(rows) and found.rules[first] == rule
    assert rule in RULES


@pytest.mark.parametrize("cause", CAUSES)
def test_rows_and_columns_are_units_of_one_number(cause: str) -> None:
    view = header(CAUSES[cause][0])
    found = describe(view)
    for order, rows in found.orders.items():
        sizes = {view[name].shape[0] for name in rows} | {view[name].shape[1] for name in found.reads.get(order, ())}
        assert len(sizes | {view[name].shape[0] for name in found.vectors.get(order, ())}) == 1
        assert sizes.pop() % found.groups.get(order, 1) == 0
    tested = [name for rows in found.orders.values() for name in rows]
    assert len(tested) == len({*tested})


# What has an order of its own, or is shared by all layers: no order may have it as rows
NEVER: dict[str, tuple[Shapes, str]] = {
    "attention of another width": (block("layers", self_attn__q__weight=(96, 40), self_attn__o__weight=(40, 96)), "self_attn"),
    "attention in the block itself": (block("layers", q_proj__weight=(96, 40), k_proj__weight=(96, 40), v_proj__weight=(96, 40), o_proj__weight=(40, 96)), "_proj"),
    "keys and values in one": (block("layers", token_attention__kv__weight=(80, 40), token_attention__proj__weight=(40, 40)), "token_attention"),
    "classes in the middle (granite's CTC)": (block("encoder.layers") | {"encoder.out.weight": (500, 40), "encoder.out_mid.weight": (40, 500)}, "encoder.out."),
    "vocabulary": (block("layers") | {"wte.embedding.weight": (500, 40), "soft.weight": (40, 500)}, "embedding"),
    "in and out of a network": ({"encoder.conv_in.weight": (64, 3, 3, 3), "encoder.conv_out.weight": (8, 64, 3, 3)} | convolutions("encoder.mid.0", conv=(64, 64, 3, 3)) | convolutions("encoder.mid.1", conv=(64, 64, 3, 3)), "conv_in"),
    "pixels and latents": ({"conv_in.weight": (64, 4, 3, 3), "conv_out.weight": (4, 64, 3, 3)} | convolutions("mid.0", conv=(64, 64, 3, 3)) | convolutions("mid.1", conv=(64, 64, 3, 3)), "conv_"),
    "modulation by a condition": (block("blocks", in_norm__mlp__1__weight=(40, 40), out_norm__mlp__1__weight=(40, 40)), "norm"),
    "a list of residual layers": ({f"layers.{i}.weight": (64, 64) for i in range(4)} | {"stem.conv.weight": (64, 3, 3, 3)}, "layers"),
    "a list of residual blocks of one matrix": ({f"blocks.{i}.{n}": s for i in range(4) for n, s in {"conv.weight": (64, 64, 3, 3), "norm.weight": (64,)}.items()}, "blocks"),
    "branches that are added (RepVGG)": (convolutions("csp.0.bottlenecks.0", conv1__conv=(64, 64, 3, 3), conv2__conv=(64, 64, 1, 1)), "conv"),
    "parts of channels (Res2Net)": (convolutions("layer1.0", conv1=(104, 64, 1, 1), convs__0=(26, 26, 3, 3), convs__1=(26, 26, 3, 3), conv3=(256, 104, 1, 1)), "layer1.0.convs"),
    "transposed convolutions": (convolutions("decoder.0", conv1=(64, 64, 3), conv_t2=(64, 32, 4)), "conv"),
    "gate and up row by row in turn": (block("layers", experts__w13_weight=(4, 192, 40), experts__w2_weight=(4, 40, 96)), "experts"),
    "what all layers share": (block("layers", per_layer_gate__weight=(96, 40), per_layer_down__weight=(40, 96)), "per_layer"),
    "the wider outside of the block": (convolutions("blocks.1.0", conv_pw=(144, 24, 1, 1), conv_dw=(144, 1, 3, 3), conv_pwl=(24, 144, 1, 1), se__conv_reduce=(32, 144, 1, 1), se__conv_expand=(144, 32, 1, 1)), "conv_pwl"),
    "norms between stages": (block("layers", proj__weight=(80, 40), reduce__weight=(40, 80)), "reduce"),
}  # fmt: skip


@pytest.mark.parametrize("case", NEVER)
def test_what_has_an_order_of_its_own_is_never_tested(case: str) -> None:
    shapes, part = NEVER[case]
    tested = [name for rows in described(shapes).orders.values() for name in rows]
    assert not [name for name in tested if part in name]


def test_conventions_decide_before_structure() -> None:
    found = described(
        {f"layers.0.mlp.{m}_proj.weight": s for m, s in {"gate": (64, 40), "up": (64, 40), "down": (40, 64)}.items()}
    )
    assert found.rules == {"layers.0.mlp": "convention"}


@pytest.mark.parametrize("prefix", ["", "model.", "a.b.c."])
def test_a_prefix_changes_nothing(prefix: str) -> None:
    shapes = CAUSES["GEGLU"][0]
    plain, wrapped = described(shapes), described({prefix + name: shape for name, shape in shapes.items()})
    assert [*wrapped.orders.values()] == [tuple(prefix + name for name in rows) for rows in plain.orders.values()]


def test_blocks_of_any_list() -> None:
    shapes = block("transformer_blocks") | block("single_transformer_blocks")
    shapes |= convolutions("down_blocks.0.resnets.1", conv1=(64, 64, 3, 3)) | convolutions(
        "down_blocks.1.resnets.0", conv1=(64, 64, 3, 3)
    )
    blocks = described(shapes | {"proj.weight": (4, 40)}).blocks
    assert blocks["single_transformer_blocks.1.attn.to_q.weight"] == "single_transformer_blocks.1"
    assert blocks["down_blocks.0.resnets.1.conv1.weight"] == "down_blocks.0.resnets.1"
    assert blocks["proj.weight"] == "stem"


def test_halves_of_a_convolution_keep_its_kernel() -> None:
    view = header(CAUSES["conformer's convolution"][0])
    assert view["layers.0.conv.pointwise_conv1.weight[gate]"].shape == (40, 40, 1)


def test_units_of_a_group_are_matched_within_it() -> None:
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(12, 7, generator=generator) for _ in range(2))
    b[5] = 0  # a dead unit: its group is left out
    c = unit_products([a], [b], [row // 4 for row in range(12)])
    assert c.shape == (2, 4, 4)
    rows = [0, 1, 2, 3, 8, 9, 10, 11]

    def unit(x: torch.Tensor) -> np.ndarray:
        y = x[rows].double().numpy()
        y = y - y.mean(0)
        return y / np.linalg.norm(y, axis=1, keepdims=True)

    whole = unit(a) @ unit(b).T
    assert np.allclose(c[0], whole[:4, :4], atol=1e-5) and np.allclose(c[1], whole[4:, 4:], atol=1e-5)


@given(
    st.lists(
        st.tuples(
            st.sampled_from(
                ["mlp.fc1", "mlp.fc2", "conv1", "conv2", "0", "2", "attn.q", "w13", "experts.down", "in_proj", "out"]
            ),
            st.lists(st.sampled_from([1, 2, 8, 16, 32, 64]), min_size=1, max_size=4),
        ),
        max_size=12,
    )
)
@settings(max_examples=60, deadline=None)
def test_any_header(tensors: list[tuple[str, list[int]]]) -> None:
    entries = {
        f"layers.{i % 2}.{n}.weight": Entry(f"layers.{i % 2}.{n}.weight", "F32", tuple(s), 4 * math.prod(s))
        for i, (n, s) in enumerate(tensors)
    }
    for name, parts in cuts(entries).items():
        edges = [0, *(stop for _, _, stop in parts)]
        assert [first for _, first, _ in parts] == edges[:-1]
        shape = entries[name].shape
        assert edges[-1] == math.prod(shape) // (shape[-1] if len(shape) > 1 else 1)
    found = describe(entries)
    assert {*found.rules} == {*found.orders} >= {*found.groups}


def test_order_of_names_does_not_matter() -> None:
    shapes = CAUSES["mamba"][0] | CAUSES["GEGLU"][0] | CAUSES["bottleneck"][0]
    names = [*shapes]
    random.Random(0).shuffle(names)
    assert described({name: shapes[name] for name in names}).orders == described(shapes).orders


def test_forty_thousand_matrices_take_no_longer_than_ten_times_four_thousand() -> None:
    def seconds(layers: int) -> float:
        shapes = {
            f"model.layers.{i}.moe.experts.{e}.{m}.weight": (64, 64)
            for i in range(layers)
            for e in range(64)
            for m in ("one", "two", "three")
        }
        entries = {name: Entry(name, "F32", shape, 4 * 64 * 64) for name, shape in shapes.items()}
        start = time.process_time()
        describe(entries)
        return time.process_time() - start

    assert seconds(210) < 25 * seconds(21) + 0.5


@pytest.mark.parametrize(
    "name", ["", ".", "\n", "a\nb.weight", ".weight", "[0]", "x[", "a.weight[3.gate]", "²[²]", "\x00.\x1b"]
)
def test_a_tensor_may_have_any_name(name: str) -> None:
    """A name is whatever a file calls it: none stops the description of the others."""
    found = described({name: (64, 32), f"{name}.fc1.weight": (64, 32), f"{name}.fc2.weight": (32, 64)})
    assert name in found.weights and f"{name}.fc2.weight" in found.weights


@given(st.lists(st.lists(st.sampled_from("ab01"), min_size=1, max_size=4).map(tuple), max_size=12, unique=True))
def test_the_module_tree_knows_of_one_matrix_or_several_below_each_child(paths: list[tuple[str, ...]]) -> None:
    """Held against a count over all paths; modules around others come first."""
    tree = _Tree({".".join((*path, "weight")): (8, 4) for path in paths})
    expected: dict[tuple[str, ...], dict[str, int]] = {}
    for path in paths:
        for depth, child in enumerate(path):
            below = expected.setdefault(path[:depth], {})
            below[child] = min(2, below.get(child, 0) + 1)
    found = {path: {child: n for child, (n, _) in module.children.items()} for path, module in tree.modules.items()}
    assert found == expected and [*found] == [*expected]
