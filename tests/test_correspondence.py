"""Models whose names differ: what belongs together is told by names, order, shapes and, where these leave a choice, weights."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from builders import llama, tuned
from safetensors.torch import save_file

import hf_lineage as hl
from hf_lineage.answers.refs import ModelRef
from hf_lineage.architecture.correspondence import Choice, Correspondence, Piece, Placement, correspond, with_biases
from hf_lineage.architecture.structure import cuts
from hf_lineage.checkpoints.checkpoint import MemoryCheckpoint
from hf_lineage.checkpoints.entry import Slice
from hf_lineage.checkpoints.relaid import UNPLACED, Relaid
from hf_lineage.checkpoints.view import View
from hf_lineage.tasks.layouts import lined_up
from hf_lineage.tasks.session import Session
from hf_lineage.weights.kind_matching import choose, elsewhere

sys.path.append(str(Path(__file__).parent / "benchmarks" / "coverage"))

import case_layouts as layouts
from case_models import from_shapes, layered

Tensors = dict[str, torch.Tensor]
H, I, V = 64, 160, 90  # noqa: E741


def view(model: Tensors) -> View:
    checkpoint = MemoryCheckpoint(ModelRef("local", "./m"), "./m", model)
    return View(checkpoint, cuts(checkpoint))


def found(child: Tensors, candidate: Tensors) -> Correspondence:
    ours, theirs = view(child), view(candidate)
    result = correspond(ours, theirs, ours.architecture, theirs.architecture)
    assert result is not None
    return with_biases(result, ours, theirs)


def base(seed: int) -> Tensors:
    return llama(seed, depth=3, width=H, hidden=I, words=V)


# ---- models of other libraries, by shapes
whisper = from_shapes(
    layered(2, {"model.decoder.embed_tokens.weight": (V, H)}, {
        f"model.{side}.layers.#.{name}": shape
        for side, extra in (("encoder", ()), ("decoder", ("encoder_attn",)))
        for name, shape in {
            **{f"{attn}.{part}_proj.weight": (H, H) for attn in ("self_attn", *extra) for part in ("q", "k", "v", "out")},
            "fc1.weight": (I, H), "fc1.bias": (I,), "fc2.weight": (H, I), "fc2.bias": (H,),
        }.items()
    })
)  # fmt: skip
gpt2 = from_shapes(
    layered(2, {"transformer.wte.weight": (V, H)}, {
        "transformer.h.#.attn.c_attn.weight": (H, 3 * H), "transformer.h.#.attn.c_proj.weight": (H, H),
        "transformer.h.#.mlp.c_fc.weight": (H, I), "transformer.h.#.mlp.c_fc.bias": (I,), "transformer.h.#.mlp.c_proj.weight": (I, H),
    })
)  # fmt: skip
flux = from_shapes(
    layered(3, {"x_embedder.weight": (H, 16), "proj_out.weight": (16, H)}, {
        **{f"single_transformer_blocks.#.attn.to_{part}.weight": (H, H) for part in "qkv"},
        "single_transformer_blocks.#.proj_mlp.weight": (I, H), "single_transformer_blocks.#.proj_out.weight": (H, H + I),
    })
    | layered(2, {}, {
        **{f"transformer_blocks.#.{name}.weight": (H, H) for name in ("attn.to_q", "attn.to_k", "attn.to_v", "attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj", "attn.to_out.0", "attn.to_add_out")},
        **{f"transformer_blocks.#.{ff}.net.{i}.weight": shape for ff in ("ff", "ff_context") for i, shape in (("0.proj", (I, H)), ("2", (H, I)))},
    })
)  # fmt: skip
UNET = {"unet.conv_in.weight": (32, 4, 3, 3), "unet.time_embedding.linear_1.weight": (128, 32), "unet.time_embedding.linear_2.weight": (128, 128)}  # fmt: skip
for at, (width, reads) in {"down_blocks.0": (32, 32), "down_blocks.1": (64, 32), "mid_block": (64, 64), "up_blocks.0": (64, 128), "up_blocks.1": (32, 96)}.items():  # fmt: skip
    for i in range(2 if at == "mid_block" else 1):
        for name, shape in {
            "conv1": (width, reads, 3, 3),
            "time_emb_proj": (width, 128),
            "conv2": (width, width, 3, 3),
        }.items():
            UNET[f"unet.{at}.resnets.{i}.{name}.weight"] = shape
    if at not in ("down_blocks.1", "up_blocks.0"):
        for name, shape in {
            "attn1.to_q": (width, width),
            "attn1.to_out.0": (width, width),
            "ff.net.0.proj": (8 * width, width),
            "ff.net.2": (width, 4 * width),
        }.items():
            UNET[f"unet.{at}.attentions.0.transformer_blocks.0.{name}.weight"] = shape
unet = from_shapes(UNET)
swin = from_shapes(
    {f"swin.encoder.layers.{stage}.blocks.{i}.{name}.weight": shape
     for stage, width in ((0, 32), (1, 64)) for i in range(2)
     for name, shape in {**{f"attention.self.{part}": (width, width) for part in ("query", "key", "value")}, "attention.output.dense": (width, width),
                         "intermediate.dense": (4 * width, width), "output.dense": (width, 4 * width)}.items()}
    | {"swin.encoder.layers.0.downsample.reduction.weight": (64, 128), "swin.embeddings.patch_embeddings.projection.weight": (32, 3, 4, 4)}
)  # fmt: skip

SAME: dict[str, tuple[Callable[[int], Tensors], layouts.Layout, layouts.Layout]] = {
    "a beginning": (base, layouts.under("net.decoder."), layouts.same),
    "two beginnings": (base, layouts.under("a."), layouts.under("b.c.")),
    "Swin: transformers, timm": (swin, layouts.swin_of_timm, layouts.same),
    "Whisper: transformers, OpenAI": (whisper, layouts.whisper_of_openai, layouts.same),
    "GPT-2: Conv1D, Linear": (gpt2, layouts.gpt2_as_linear, layouts.same),
    "Stable Diffusion: diffusers, one file": (unet, layouts.diffusion_of_ldm, layouts.only("unet.")),
    "ChatGLM": (base, layouts.same, layouts.llama_of_chatglm),
    "fused: Qwen": (base, layouts.llama_of_qwen, layouts.same),
    "cut: Qwen": (base, layouts.same, layouts.llama_of_qwen),
    "Flux: diffusers, one file": (flux, layouts.flux_of_bfl, layouts.same),
    "Flux: one file, diffusers": (flux, layouts.same, layouts.flux_of_bfl),
    "upcycled": (base, layouts.upcycled, layouts.same),
}  # fmt: skip


@pytest.mark.parametrize("name", SAME)
def test_what_belongs_together_is_found(name: str) -> None:
    """In the child's layout the candidate, which has the child's values, holds them tensor by tensor."""
    make, ours, theirs = SAME[name]
    model = make(1)
    child, candidate = view(ours(model)), view(theirs(model))
    with Session() as session:
        relaid, alignment = lined_up(child, candidate, session.align(child, candidate))
    assert alignment.comparable and len(alignment.pairs) >= 0.6 * len(child.architecture.weights)
    wrong = [
        name for name, partner in alignment.pairs.items()
        if len(child[name].shape) > 1 and not torch.equal(child.whole([name])[0], relaid.whole([partner])[0])
    ]  # fmt: skip
    assert not wrong
    rows = [name for names in child.architecture.orders.values() for name in names]
    rows = [name for name in rows if "experts.1" not in name]
    assert rows and {*rows} <= {*alignment.pairs}


def test_a_tower_in_a_bigger_model() -> None:
    whole = {f"model.vision.{name}": t for name, t in base(1).items()} | {
        f"model.text.{n}": t for n, t in llama(2, width=48).items()
    }
    for child, candidate in ((whole, base(1)), (base(1), whole)):
        placed = found(child, candidate).placed
        assert all(
            a.removeprefix("model.vision.") == p.pieces[0].name.removeprefix("model.vision.") for a, p in placed.items()
        )
        assert len(placed) == len(base(1))


def test_nothing_is_said_of_other_shapes() -> None:
    ours, theirs = (
        view(base(1)),
        view(from_shapes(layered(2, {}, {"blocks.#.fc1.weight": (77, 33), "blocks.#.fc2.weight": (33, 77)}))(1)),
    )
    assert correspond(ours, theirs, ours.architecture, theirs.architecture) is None


def test_names_are_no_guess() -> None:
    assert not found(layouts.under("net.")(base(1)), base(1)).guessed
    assert found(layouts.llama_of_meta(base(1)), base(1)).guessed


def test_alternatives_are_counted() -> None:
    kinds = (("a",), ("b",), ("c",))
    assert [
        Choice(kinds, kinds).alternatives,
        Choice(kinds[:2], kinds).alternatives,
        Choice(kinds[:1], kinds[:1]).alternatives,
    ] == [6, 6, 1]


class TestWeightsChoose:
    kinds = (("a0", "a1"), ("b0", "b1"))

    def models(self, seed: int) -> tuple[Tensors, Tensors]:
        torch.manual_seed(seed)
        ours = {name: torch.randn(40, 30) for kind in self.kinds for name in kind}
        swapped = {"a0": "b0", "a1": "b1", "b0": "a0", "b1": "a1"}
        return ours, {name: ours[swapped[name]] + 0.5 * torch.randn(40, 30) for name in ours}

    def test_the_other_order_where_it_correlates(self) -> None:
        ours, theirs = map(view, self.models(1))
        assert choose(ours, theirs, [Choice(self.kinds, self.kinds)]) == [
            [(("a0", "a1"), ("b0", "b1")), (("b0", "b1"), ("a0", "a1"))]
        ]
        assert choose(ours, theirs, [Choice(self.kinds[:1], self.kinds)]) == [[(("a0", "a1"), ("b0", "b1"))]]

    def test_the_order_of_names_where_nothing_does(self) -> None:
        ours, theirs = view(self.models(1)[0]), view(self.models(2)[0])
        assert choose(ours, theirs, [Choice(self.kinds, self.kinds)]) == [[(kind, kind) for kind in self.kinds]]

    def test_what_stands_in_another_order_is_left_out(self) -> None:
        ours, _ = self.models(1)
        theirs = {name: t.flip(0) if name.startswith("b") else t for name, t in ours.items()}
        assert elsewhere(view(ours), view(theirs), ["a0", "a1"], ["b0", "b1"]) == {"b0", "b1"}
        assert not elsewhere(view(ours), view(self.models(3)[0]), ["a0", "a1"], ["b0", "b1"])


def test_a_relaid_checkpoint_reads_what_torch_says() -> None:
    torch.manual_seed(0)
    source = view({"abc": torch.randn(9, 4), "d": torch.randn(2, 4), "t": torch.randn(4, 6), "left": torch.randn(3)})
    placed = {
        "a": Placement((Piece("abc", 0, 12),)), "cd": Placement((Piece("abc", 24, 36), Piece("d", 0, 8))),
        "turned": Placement((Piece("t", 0, 24),), transposed=True),
    }  # fmt: skip
    values = dict(zip(source, source.whole([*source]), strict=True))
    expected = {"a": values["abc"][:3], "cd": torch.cat([values["abc"][6:], values["d"]]), "turned": values["t"].T.contiguous(), "left": values["left"]}  # fmt: skip
    layout = view({name: torch.empty_like(t) for name, t in expected.items()})
    relaid = Relaid(source, Correspondence(placed, frozenset(), (), {}), layout)
    assert {name: entry.shape for name, entry in relaid.items()} == {
        name: tuple(t.shape) for name, t in expected.items()
    }
    for name, tensor in expected.items():
        flat, count = tensor.reshape(-1), tensor.numel()
        pieces = [Slice(name, a, b) for a in range(0, count + 1, 3) for b in range(a, count + 1, 4)]
        assert all(torch.equal(got, flat[p.start : p.stop]) for got, p in zip(relaid.read(pieces), pieces, strict=True))
        assert relaid.cells(pieces[0]) is None
        with pytest.raises(IndexError):
            relaid.read([Slice(name, 0, count + 1)])


def test_what_is_left_keeps_its_name_or_stands_aside() -> None:
    source = view({"q.a": torch.zeros(2, 2), "q.b": torch.zeros(2, 2), "p.a": torch.zeros(2, 2), "c": torch.zeros(2)})
    found = Correspondence({"p.a": Placement((Piece("q.a", 0, 4),))}, frozenset(), (), {}, (("p.", "q."),))
    relaid = Relaid(source, found, view({"p.a": torch.zeros(2, 2)}))
    assert {*relaid} == {"p.a", "p.b", f"{UNPLACED}p.a", "c"}


class TestAnswers:
    def ask(self, folder: Path, child: Tensors, **others: Tensors) -> hl.Lineage:
        for name, tensors in {"child": child, **others}.items():
            (folder / name).mkdir()
            save_file({n: t.contiguous() for n, t in tensors.items()}, folder / name / "model.safetensors")
        return hl.trace(folder / "child", [folder / name for name in others])

    def test_a_guess_is_said_and_paid_for(self, tmp_path: Path) -> None:
        child = tuned(base(1), 3, 0.05)
        by_names = self.ask(tmp_path, child, parent=base(1), other=base(2))
        (tmp_path / "meta").mkdir()
        found = self.ask(tmp_path / "meta", layouts.llama_of_meta(child), parent=base(1), other=base(2))
        best, other = found.candidates
        assert best.ref.endswith("parent") and best.relation == by_names.candidates[0].relation and best.p_value < 1e-6
        assert best.facts["alignment"] == other.facts["alignment"] == {"by": "structure", "alternatives": 2}
        assert best.reasons[0].code == "aligned_by_structure" and "of 2 ways" in best.reasons[0]
        left_out = next(note for note in best.reasons if note.code == "tensors_without_partner")
        assert (
            "q_proj" not in left_out and "wq.weight (its rows stand in another order" in left_out
        ) or "wk.weight (its rows" in left_out
        # what does not line up may be a wrong guess: it is not called unrelated
        plain = next(c for c in by_names.candidates if c.ref.endswith("other"))
        assert (plain.relation, other.relation) == ("none", None)
        assert other.p_raw >= plain.p_raw

    def test_bonferroni(self) -> None:
        from dataclasses import replace

        from hf_lineage.weights.evidence import WeightsEvidence
        from hf_lineage.weights.permutation_test import PermutationTest

        test = PermutationTest(2.0, -2.0, "monte_carlo", 0.01, 999, 0.0, ())
        one = WeightsEvidence(0.1, 0.0, 0.1, test, frozenset(), (), (), {}, {})
        assert 10 ** replace(one, alternatives=12).log10_p == pytest.approx(0.12)
        assert 10 ** replace(one, alternatives=120).log10_p == 1.0

    def test_names_with_another_beginning_are_compared_in_full(self, tmp_path: Path) -> None:
        found = self.ask(tmp_path, layouts.under("net.")(tuned(base(1), 3, 0.05)), parent=base(1), other=base(2))
        best, other = found.candidates
        assert best.p_value < 1e-6 and "alignment" not in best.facts and other.relation == "none" and not best.reasons

    def test_equal_weights_under_other_names_are_identical(self, tmp_path: Path) -> None:
        assert self.ask(tmp_path, layouts.under("net.")(base(1)), parent=base(1)).verdict == "identical"

    def test_layers_left_out_under_other_names(self, tmp_path: Path) -> None:
        shorter = layouts.then(layouts.renamed(drop=r"layers\.2\."), layouts.under("net."))
        found = self.ask(tmp_path, shorter(tuned(base(1), 3, 0.05)), parent=base(1))
        assert found.candidates[0].relation == "depth_changed"
        assert (found.candidates[0].facts["layers"]["child"], found.candidates[0].facts["layers"]["candidate"]) == (
            2,
            3,
        )

    def test_a_tower_is_no_change_of_depth(self, tmp_path: Path) -> None:
        tower = {f"vision.{name}": t for name, t in llama(5, depth=2, width=32).items()}
        whole = {f"language.{name}": t for name, t in base(1).items()} | tower
        found = self.ask(tmp_path, tuned(base(1), 3, 0.05), whole=whole)
        assert found.candidates[0].relation in ("common_origin", "finetune") and found.candidates[0].p_value < 1e-6

    def test_what_does_not_line_up_is_not_comparable(self, tmp_path: Path) -> None:
        odd = from_shapes({f"u.{i}.w.weight": (H + 3 * i, H) for i in range(8)})(1)
        found = self.ask(tmp_path, base(1), odd=odd)
        assert found.candidates[0].status == "not_comparable" and found.verdict == "undecided"


def test_layers_go_by_structure_where_that_leaves_no_choice_and_trees_say_that_they_do_not(tmp_path: Path) -> None:
    models = {"child": tuned(base(0), 1, 0.01), "parent": layouts.under("net.")(base(0)), "other": layouts.under("net.")(base(5)), "fused": layouts.llama_of_qwen(base(0))}  # fmt: skip
    for name, model in models.items():
        (tmp_path / name).mkdir()
        save_file({key: value.contiguous() for key, value in model.items()}, tmp_path / name / "model.safetensors")
    blocks = hl.trace_layers(tmp_path / "child", [tmp_path / "parent", tmp_path / "other"])
    assert {block.parent for block in blocks.blocks} == {str(tmp_path / "parent")}
    assert [note.code for note in blocks.notes].count("aligned_by_structure") == 2
    chosen = hl.trace_layers(tmp_path / "child", [tmp_path / "fused"])
    assert "compared by names" in next(str(note) for note in chosen.notes if note.code == "aligned_by_structure")
    assert all(block.parent is None for block in chosen.blocks if block.index is not None)
    tree = hl.phylogeny([tmp_path / "child", tmp_path / "parent"])
    assert not tree.edges and "names_differ" in [note.code for note in tree.notes]
