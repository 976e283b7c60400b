"""Names told apart on real timm and transformers classes: heads, buffers, blocks, and which rows are hidden units."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import timm
import torch
import transformers as hf

from hf_lineage.architecture import align, describe
from hf_lineage.records import Entry

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
    assert describe(resnext).orders == {}
    fused = {"mlp.dense_h_to_4h.weight": (200, 32), "mlp.dense_4h_to_h.weight": (32, 100)}
    assert describe({n: Entry(n, "F32", shape, 0) for n, shape in fused.items()}).orders == {}
    norm = {"stages.0.layers.0.layer.0.convolution.weight": (64, 64, 3, 3), "stages.0.layers.0.layer.1.weight": (64,)}
    assert describe({n: Entry(n, "F32", shape, 0) for n, shape in norm.items()}).orders == {}


def test_gpt2_rows_are_units_only_where_they_are() -> None:
    """Conv1D stores (in, out): rows of c_fc are the residual stream, rows of c_proj the hidden units."""
    found = describe(build(CASES["gpt2"][0]))
    assert all("c_proj" in name for names in found.orders.values() for name in names)
