"""Names told apart on real timm and transformers classes: heads, buffers, blocks, and which rows are hidden units."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from itertools import pairwise

import networkx as nx
import pytest
import timm
import torch
import transformers as hf
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_lineage.architecture.align import align
from hf_lineage.architecture.conventions import canonical_names, fused_parts
from hf_lineage.architecture.describe import describe
from hf_lineage.checkpoints.entry import Entry

SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64, "vocab_size": 50}


def entries(module: torch.nn.Module, prefix: str = "") -> dict[str, Entry]:
    names = {torch.float32: "F32", torch.int64: "I64", torch.bool: "BOOL", torch.uint8: "U8"}
    return {
        prefix + n: Entry(prefix + n, names[t.dtype], tuple(t.shape), t.nbytes) for n, t in module.state_dict().items()
    }


def build(make: Callable[[], torch.nn.Module]) -> dict[str, Entry]:
    with torch.device("meta"):
        return entries(make())


CASES: dict[str, tuple[Callable[[], torch.nn.Module], str, int, int]] = {
    # name: constructor, an example of a matrix whose rows are units, orders, heads
    "timm resnet18": (lambda: timm.create_model("resnet18"), "layer1.0.conv1.weight", 8, 2),
    "timm resnet50": (lambda: timm.create_model("resnet50"), "layer1.0.conv2.weight", 32, 2),
    "timm vit": (lambda: timm.create_model("vit_tiny_patch16_224"), "blocks.3.mlp.fc1.weight", 12, 2),
    "timm convnext": (lambda: timm.create_model("convnext_atto"), "stages.0.blocks.0.mlp.fc1.weight", 12, 4),
    "timm swin": (lambda: timm.create_model("swin_tiny_patch4_window7_224"), "layers.0.blocks.1.mlp.fc1.weight", 12, 2),
    "llama": (lambda: hf.LlamaForCausalLM(hf.LlamaConfig(**SMALL)), "model.layers.1.mlp.gate_proj.weight", 2, 1),
    "bert": (lambda: hf.BertForSequenceClassification(hf.BertConfig(**SMALL)), "bert.encoder.layer.1.intermediate.dense.weight", 2, 2),
    "distilbert": (lambda: hf.DistilBertForSequenceClassification(hf.DistilBertConfig(dim=32, n_layers=2, n_heads=4, hidden_dim=64, vocab_size=50)), "distilbert.transformer.layer.0.ffn.lin1.weight", 2, 4),
    "gpt2": (lambda: hf.GPT2LMHeadModel(hf.GPT2Config(n_embd=32, n_layer=2, n_head=4, vocab_size=50)), "transformer.h.0.mlp.c_proj.weight", 2, 1),
    "opt": (lambda: hf.OPTForCausalLM(hf.OPTConfig(hidden_size=32, ffn_dim=64, num_hidden_layers=2, num_attention_heads=4, vocab_size=50, word_embed_proj_dim=32)), "model.decoder.layers.0.fc1.weight", 2, 1),
    "t5": (lambda: hf.T5ForConditionalGeneration(hf.T5Config(d_model=32, d_ff=64, num_layers=2, num_heads=4, d_kv=8, vocab_size=50)), "encoder.block.0.layer.1.DenseReluDense.wi.weight", 4, 1),
    "neox": (lambda: hf.GPTNeoXForCausalLM(hf.GPTNeoXConfig(**SMALL)), "gpt_neox.layers.0.mlp.dense_h_to_4h.weight", 2, 1),
    "plain": (lambda: torch.nn.Sequential(torch.nn.Linear(8, 40), torch.nn.ReLU(), torch.nn.Linear(40, 36), torch.nn.ReLU(), torch.nn.Linear(36, 3)), "2.weight", 2, 2),
}  # fmt: skip


@pytest.mark.integration
@pytest.mark.parametrize("name", CASES)
def test_real_models(name: str) -> None:
    make, example, orders, heads = CASES[name]
    found = describe(build(make))
    assert len(found.orders) == orders, found.orders
    assert any(example in names for names in found.orders.values())
    assert len(found.heads) == heads, found.heads
    tested = {name for names in found.orders.values() for name in names}
    assert not tested & found.heads and tested <= set(found.weights)
    assert set(found.weights) | set(found.left_out) == set(build(make))


@pytest.mark.parametrize("name", CASES)
def test_axes_with_an_order_of_their_own_are_never_units(name: str) -> None:
    """Vocabulary, positions, patches, classes and one-dimensional tensors never enter the test."""
    model = build(CASES[name][0])
    for names in describe(model).orders.values():
        for tensor in names:
            assert len(model[tensor].shape) > 1
            assert not any(word in tensor for word in ("embed", "wte", "wpe", "shared", "lm_head", "fc.weight", "stem"))


@pytest.mark.parametrize("name", CASES)
def test_orders_stand_in_a_line(name: str) -> None:
    """The proven p-value multiplies over orders: no order's matrices may have units of a later one as columns."""
    found = describe(build(CASES[name][0]))
    order_of = {matrix: order for order, names in found.orders.items() for matrix in names}
    before = {(units, order_of[m]) for units, names in found.reads.items() for m in names if m in order_of}
    graph = nx.DiGraph(before)
    assert nx.is_directed_acyclic_graph(graph), before


def test_buffers_are_no_weights() -> None:
    left_out = describe(build(CASES["timm resnet18"][0])).left_out
    assert left_out["bn1.running_mean"] == "a buffer, not a weight" and "bn1.num_batches_tracked" in left_out


def test_integers_are_no_weights() -> None:
    found = describe(
        {"a.weight": Entry("a.weight", "I8", (4, 4), 16), "b.weight": Entry("b.weight", "F32", (4, 4), 64)}
    )
    assert found.weights == ("b.weight",) and "I8" in found.left_out["a.weight"]


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "model.", "bert.", "module.bert."])
def test_prefixes_line_up(prefix: str) -> None:
    with torch.device("meta"):
        plain = entries(hf.BertModel(hf.BertConfig(**SMALL)))
        other = entries(hf.BertModel(hf.BertConfig(**SMALL)), prefix)
    assert align(plain, other).coverage == 1.0 == align(other, plain).coverage


def test_a_prefix_that_would_merge_two_tensors_stays() -> None:
    both = {n: Entry(n, "F32", (4, 4), 64) for n in ("model.a.weight", "a.weight")}
    assert align(both, both).pairs == {n: n for n in both}


def test_heads_of_another_size_do_not_count() -> None:
    with torch.device("meta"):
        a = entries(timm.create_model("resnet18", num_classes=10))
        b = entries(timm.create_model("resnet18", num_classes=1000))
    alignment = align(a, b)
    assert alignment.coverage == 1.0 and "shape [10, 512] against [1000, 512]" in alignment.unmatched["fc.weight"]


def test_another_architecture_says_why() -> None:
    alignment = align(build(CASES["llama"][0]), build(CASES["timm vit"][0]))
    assert not alignment.comparable and "no such tensor" in alignment.explain()


def test_blocks_are_the_childs_own_paths() -> None:
    blocks = describe(build(CASES["llama"][0])).blocks
    assert blocks["model.layers.1.mlp.up_proj.weight"] == "model.layers.1"
    assert blocks["model.embed_tokens.weight"] == "stem" and blocks["lm_head.weight"] == "head"


@pytest.mark.parametrize("names", [("encoder", "decoder"), ("q", "k", "v", "o"), ("a.weight_1",)])
def test_matrices_that_fit_are_not_yet_a_chain(names: tuple[str, ...]) -> None:
    """An autoencoder's reconstruction has pixels for rows, and q, k, v, o are no layers of each other."""
    shapes = {"encoder": (64, 784), "decoder": (784, 64)}
    model = {f"{n}.weight": Entry(f"{n}.weight", "F32", shapes.get(n, (64, 64)), 0) for n in names}
    assert describe(model).orders == {}


def test_fused_and_grouped_matrices_have_fewer_symmetries() -> None:
    with torch.device("meta"):
        resnext = entries(timm.create_model("resnext50_32x4d"))
    grouped = describe(resnext)
    assert {*grouped.rules.values()} == {"by group"} and {*grouped.groups} == {*grouped.orders}
    assert grouped.groups["layer1.0.conv1"] == resnext["layer1.0.conv2.weight"].shape[1] == 4
    fused = {"mlp.dense_h_to_4h.weight": (200, 32), "mlp.dense_4h_to_h.weight": (32, 100)}
    assert describe({n: Entry(n, "F32", shape, 0) for n, shape in fused.items()}).orders == {}
    norm = {"stages.0.layers.0.layer.0.convolution.weight": (64, 64, 3, 3), "stages.0.layers.0.layer.1.weight": (64,)}
    assert describe({n: Entry(n, "F32", shape, 0) for n, shape in norm.items()}).orders == {}


def test_gpt2_rows_are_units_only_where_they_are() -> None:
    """Conv1D stores (in, out): rows of c_fc are the residual stream, rows of c_proj the hidden units."""
    found = describe(build(CASES["gpt2"][0]))
    assert all("c_proj" in name for names in found.orders.values() for name in names)


class TestGrown:
    def pair(self, child: int, candidate: int, name: str = "model.embed_tokens.weight") -> tuple[dict, dict]:
        body = Entry("model.norm.weight", "F32", (32,), 128)
        first, second = (
            {name: Entry(name, "F32", (rows, 32), rows * 128), body.name: body} for rows in (child, candidate)
        )
        return first, second

    @pytest.mark.parametrize("make", [
        lambda rows: hf.LlamaForCausalLM(hf.LlamaConfig(**{**SMALL, "vocab_size": rows})),
        lambda rows: hf.BertModel(hf.BertConfig(**{**SMALL, "vocab_size": rows})),
        lambda rows: hf.GPT2LMHeadModel(hf.GPT2Config(n_embd=32, n_layer=2, n_head=4, vocab_size=rows, bos_token_id=0, eos_token_id=0)),
        lambda rows: hf.T5EncoderModel(hf.T5Config(d_model=32, d_ff=64, num_layers=2, num_heads=4, d_kv=8, vocab_size=rows)),
    ], ids=["llama", "bert", "gpt2", "t5"])  # fmt: skip
    def test_three_more_tokens(self, make: Callable[[int], torch.nn.Module]) -> None:
        before, after = build(lambda: make(50)), build(lambda: make(53))
        alignment = align(after, before)
        assert set(alignment.grown.values()) == {(53, 50)} and not alignment.unmatched
        table = sum(3 * 32 for name in alignment.grown if name in describe(after).trunk)
        total = sum(after[name].count for name in describe(after).trunk)
        assert alignment.coverage == pytest.approx(1 - table / total)
        back = align(before, after)
        assert set(back.grown.values()) == {(50, 53)} and back.coverage == 1.0 and not back.unmatched

    @pytest.mark.parametrize(("rows", "grown"), [(50, True), (49, False)])
    def test_half_of_it_must_be_there(self, rows: int, grown: bool) -> None:
        for sizes in ((100, rows), (rows, 100)):
            alignment = align(*self.pair(*sizes))
            assert alignment.grown == ({"model.embed_tokens.weight": sizes} if grown else {})
            if not grown:
                assert "less than half" in alignment.unmatched["model.embed_tokens.weight"]

    @pytest.mark.parametrize(
        "name", ["fc.weight", "layers.0.mlp.fc1.weight", "token_type_embeddings.weight", "x.lm_head.weight"]
    )
    def test_nothing_else_grows(self, name: str) -> None:
        alignment = align(*self.pair(10, 9, name))
        assert not alignment.grown and "shape [10, 32] against [9, 32]" in alignment.unmatched[name]

    @pytest.mark.parametrize(
        "name",
        ["pos_embed", "transformer.wpe.weight", "embeddings.position_embeddings.weight", "embed_positions.weight"],
    )
    def test_positions_are_interpolated(self, name: str) -> None:
        alignment = align(*self.pair(65, 50, name))
        assert "interpolated" in alignment.unmatched[name] and not alignment.grown

    def test_another_width_is_another_table(self) -> None:
        child, candidate = self.pair(50, 53)
        candidate["model.embed_tokens.weight"] = Entry("model.embed_tokens.weight", "F32", (53, 16), 0)
        assert not align(child, candidate).grown


def test_every_tensor_without_a_partner_says_why() -> None:
    child = {n: Entry(n, "F32", (4, 4), 64) for n in ("a.weight", "b.weight", "c.weight", "d.weight")}
    candidate = {
        "a.weight": Entry("a.weight", "F32", (4, 4), 64),
        "b.weight": Entry("b.weight", "I8", (4, 4), 16),
        "c.weight": Entry("c.weight", "F32", (4, 5), 80),
    }
    alignment = align(child, candidate)
    assert alignment.pairs == {"a.weight": "a.weight"} and alignment.coverage == 0.25
    assert alignment.unmatched == {
        "b.weight": "dtype I8 is no float",
        "c.weight": "shape [4, 4] against [4, 5]",
        "d.weight": "no such tensor in the candidate",
    }
    assert "only 25 %" in alignment.explain() and "b.weight: dtype" in alignment.explain()


UNITS: dict[str, tuple[str, list[str], list[str], list[str]]] = {
    # case: an order, its matrices, who reads its units, the vectors indexed by them
    "timm resnet18": ("layer1.0.conv1", ["layer1.0.conv1.weight"], ["layer1.0.conv2.weight"], ["layer1.0.bn1.weight", "layer1.0.bn1.bias"]),
    "timm resnet50": ("layer2.1.conv2", ["layer2.1.conv2.weight"], ["layer2.1.conv3.weight"], ["layer2.1.bn2.weight", "layer2.1.bn2.bias"]),
    "timm vit": ("blocks.3.mlp", ["blocks.3.mlp.fc1.weight"], ["blocks.3.mlp.fc2.weight"], ["blocks.3.mlp.fc1.bias"]),
    "llama": ("layers.1.mlp", ["model.layers.1.mlp.gate_proj.weight", "model.layers.1.mlp.up_proj.weight"], ["model.layers.1.mlp.down_proj.weight"], []),
    "bert": ("encoder.layer.1", ["bert.encoder.layer.1.intermediate.dense.weight"], ["bert.encoder.layer.1.output.dense.weight"], ["bert.encoder.layer.1.intermediate.dense.bias"]),
    "gpt2": ("h.0.mlp", ["transformer.h.0.mlp.c_proj.weight"], ["transformer.h.0.mlp.c_fc.weight"], ["transformer.h.0.mlp.c_fc.bias"]),
    "opt": ("decoder.layers.0", ["model.decoder.layers.0.fc1.weight"], ["model.decoder.layers.0.fc2.weight"], ["model.decoder.layers.0.fc1.bias"]),
    "plain": ("0", ["0.weight"], ["2.weight"], ["0.bias"]),
}  # fmt: skip


@pytest.mark.parametrize("name", UNITS)
def test_who_reads_the_units(name: str) -> None:
    order, rows, columns, vectors = UNITS[name]
    found = describe(build(CASES[name][0]))
    assert [*found.orders[order]] == rows and [*found.reads[order]] == columns
    assert [*found.vectors.get(order, ())] == vectors


@pytest.mark.parametrize("name", CASES)
def test_axes_fit(name: str) -> None:
    """The law: rows of its matrices, columns of its readers and elements of its vectors are as many as the units."""
    model = build(CASES[name][0])
    found = describe(model)
    assert found.orders.keys() == found.reads.keys() >= found.vectors.keys()
    for order, rows in found.orders.items():
        (units,) = {model[tensor].shape[0] for tensor in rows}
        assert {model[tensor].shape[1] for tensor in found.reads[order]} == {units}
        assert {model[tensor].shape for tensor in found.vectors.get(order, ())} <= {(units,)}
        assert not {*rows} & {*found.reads[order]} or name == "plain"
    for tensors in found.residual.values():
        assert len({model[tensor].shape[1] for tensor in tensors}) == 1 and not {*tensors} & found.heads


WORDS = st.sampled_from([
    "model", "base_model", "module", "layers", "layer", "blocks", "h", "stages", "0", "1", "mlp", "experts", "attn", "attention",
    "self_attn", "qkv", "q_proj", "query", "c_attn", "c_proj", "c_fc", "fc1", "fc2", "gate_up_proj", "gate_proj", "down_proj",
    "intermediate", "output", "dense", "conv1", "conv2", "bn1", "layer1", "downsample", "layernorm_before", "embedder",
    "convolution", "resblocks", "ln_1", "base_layer", "modules_to_save", "lora_A", "head", "embed_tokens", "LayerNorm", "gamma",
    "weight", "bias", "in_proj_weight", "weight[q]", "gate_up_proj[0.up]",
])  # fmt: skip
NAMES = st.lists(WORDS, min_size=1, max_size=6).map(".".join)
SHAPES = st.lists(st.sampled_from([0, 1, 2, 4, 6, 12]), max_size=4).map(tuple)
MODELS = st.dictionaries(NAMES, SHAPES, max_size=12).map(
    lambda shapes: {name: Entry(name, "F32", shape, 4 * math.prod(shape)) for name, shape in shapes.items()}
)


@given(MODELS, MODELS)
@settings(max_examples=100)
def test_any_names_and_shapes(child: dict[str, Entry], candidate: dict[str, Entry]) -> None:
    """Headers are written by strangers: nothing raises, and the laws hold."""
    found = describe(child)
    assert {*found.weights} | found.left_out.keys() == child.keys() and not {*found.weights} & found.left_out.keys()
    assert found.blocks.keys() == {*found.weights} >= found.heads
    assert found.orders.keys() == found.reads.keys() >= found.vectors.keys()
    for order, columns in found.reads.items():
        (units,) = {child[n].shape[0] for n in found.orders[order]} | {child[n].shape[1] for n in columns}
        assert {child[n].shape for n in found.vectors.get(order, ())} <= {(units,)}
    for names in found.residual.values():
        assert len({child[n].shape[1] for n in names}) == 1
    again = align(child, child)
    assert again.pairs == {n: n for n in found.weights} and not again.grown and not again.unmatched
    alignment = align(child, candidate, found)
    assert alignment.pairs.keys() | alignment.unmatched.keys() == {*found.weights}
    assert alignment.grown.keys() <= alignment.pairs.keys() and 0.0 <= alignment.coverage <= 1.0
    assert len(set(alignment.pairs.values())) == len(alignment.pairs)
    for parts in fused_parts(child).values():
        assert parts[0][1] == 0 and all(a[2] == b[1] for a, b in pairwise(parts))


@pytest.mark.integration
@pytest.mark.parametrize("name", CASES)
def test_canonical_names_are_final(name: str) -> None:
    names = [*canonical_names(build(CASES[name][0]))]
    assert [*canonical_names(names)] == names and len(names) == len(build(CASES[name][0]))


def ends(names: tuple[str, ...]) -> set[str]:
    return {".".join(name.split(".")[-3:-1]) for name in names}


@pytest.mark.parametrize(("name", "per_layer"), [
    ("llama", {"self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "mlp.gate_proj", "mlp.up_proj"}),
    ("bert", {"self.query", "self.key", "self.value", "intermediate.dense"}),
    ("gpt2", {"attn.c_proj", "mlp.c_proj"}),
    ("neox", {"attention.query_key_value", "mlp.dense_h_to_4h"}),
    ("timm vit", {"attn.qkv", "mlp.fc1"}),
    ("distilbert", {"attention.q_lin", "attention.k_lin", "attention.v_lin", "ffn.lin1"}),
])  # fmt: skip
def test_one_residual_stream(name: str, per_layer: set[str]) -> None:
    found = describe(build(CASES[name][0])).residual
    assert found.keys() == {"stream"} and ends(found["stream"]) == per_layer


def test_grouped_queries_and_experts() -> None:
    config = hf.MixtralConfig(**SMALL, num_key_value_heads=2, num_local_experts=3)
    fused = build(lambda: hf.MixtralForCausalLM(config))
    assert describe(fused).orders == {}  # only a view cuts them
    single = {n: e for n, e in fused.items() if "experts" not in n}
    for expert in range(3):
        for name, shape in (("w1", (64, 32)), ("w2", (32, 64)), ("w3", (64, 32))):
            name = f"model.layers.0.block_sparse_moe.experts.{expert}.{name}.weight"
            single[name] = Entry(name, "F32", shape, 8192)
    found = describe(single)
    path = "model.layers.0.block_sparse_moe.experts.1"
    assert [*found.orders] == [f"layers.0.mlp.experts.{expert}" for expert in range(3)]
    assert {*found.orders["layers.0.mlp.experts.1"]} == {f"{path}.w1.weight", f"{path}.w3.weight"}
    assert found.reads["layers.0.mlp.experts.1"] == (f"{path}.w2.weight",)
    assert single["model.layers.0.self_attn.k_proj.weight"].shape == (16, 32)
    assert "model.layers.0.self_attn.k_proj.weight" in found.residual["stream"]
    assert not [n for names in found.residual.values() for n in names if n.endswith("gate.weight") or "w2" in n]


class TestStreams:
    def test_a_stage_begins_behind_its_downsampling(self) -> None:
        """Its first block still reads the stream of the stage before."""
        small = describe(build(CASES["timm resnet18"][0])).residual
        assert small["layer1"] == tuple(f"{b}.conv1.weight" for b in ("layer1.0", "layer1.1", "layer2.0"))
        assert small["layer4"] == ("layer4.1.conv1.weight",) and len(small) == 4
        big = describe(build(CASES["timm resnet50"][0])).residual
        assert big["stem"] == ("layer1.0.conv1.weight",)
        assert big["layer1"] == tuple(f"{b}.conv1.weight" for b in ("layer1.1", "layer1.2", "layer2.0"))

    def test_one_per_tower_and_per_stage(self) -> None:
        towers = describe(build(CASES["t5"][0])).residual
        assert towers.keys() == {"encoder.block", "decoder.block"}
        assert not any("EncDec" in name for names in towers.values() for name in names)
        stages = describe(build(CASES["timm swin"][0])).residual
        assert stages.keys() == {f"layers.{i}.blocks" for i in range(4)}

    def test_a_chain_has_none(self) -> None:
        found = describe(build(CASES["plain"][0]))
        assert found.residual == {} and found.reads["2"] == ("4.weight",)  # the head reads the last hidden layer


@pytest.mark.integration
def test_thirty_thousand_tensors_take_no_longer_than_ten_times_three_thousand() -> None:
    def seconds(layers: int, tower: int = 0) -> float:  # a header that was described is known
        names = [
            f"tower{tower}.layers.{i}.mlp.experts.{e}.{n}_proj.weight"
            for i in range(layers)
            for e in range(50)
            for n in ("gate", "up", "down")
        ]
        model = {n: Entry(n, "F32", (32, 64) if "down" in n else (64, 32), 0) for n in names}
        started = time.process_time()
        assert len(describe(model).orders) == 50 * layers
        return time.process_time() - started

    assert seconds(200) < 30 * min(seconds(20, tower) for tower in range(3))
