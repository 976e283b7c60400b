"""Which block stands where: names sorted into blocks, blocks that moved found again, and z under the null."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import timm.models.resnet
import timm.models.vision_transformer
import torch
import transformers
from builders import llama, tuned
from scipy.stats import kstest

from hf_lineage.answers.refs import ModelRef
from hf_lineage.architecture.align import align
from hf_lineage.architecture.conventions import fused_parts
from hf_lineage.architecture.describe import describe
from hf_lineage.checkpoints.checkpoint import Checkpoint, MemoryCheckpoint
from hf_lineage.checkpoints.entry import Slice
from hf_lineage.checkpoints.view import View
from hf_lineage.errors import CheckpointError, LineageError
from hf_lineage.weights.block_matching import SCREEN_BYTES, Block, BlockMatches, align_blocks, blocks_of, match_blocks

Tensors = dict[str, torch.Tensor]


def moved(model: Tensors, order: Sequence[int], prefix: str = "model.layers.") -> Tensors:
    """Block n is block order[n]."""
    kept = {name: tensor for name, tensor in model.items() if not name.startswith(prefix)}
    for new, old in enumerate(order):
        path = f"{prefix}{old}."
        kept |= {f"{prefix}{new}.{n.removeprefix(path)}": t for n, t in model.items() if n.startswith(path)}
    return kept


class Counted(MemoryCheckpoint):
    """Remembers every call of `read`; raises instead if told to."""

    def __init__(self, tensors: Tensors, broken: LineageError | None = None) -> None:
        super().__init__(ModelRef("module", "module:Net"), "module:Net", tensors)
        self.calls: list[list[Slice]] = []
        self.broken = broken

    def read(self, slices: Sequence[Slice]) -> list[torch.Tensor]:
        if self.broken:
            raise self.broken
        self.calls.append([*slices])
        return super().read(slices)


def placed(
    child: Tensors, *candidates: Tensors, budget: int | None = None, seed: int = 0
) -> tuple[tuple[Block, ...], list[BlockMatches]]:
    ours = Counted(child)
    blocks, found = match_blocks(ours, describe(ours), [Counted(each) for each in candidates], budget=budget, seed=seed)
    assert all(isinstance(each, BlockMatches) for each in found), found
    return blocks, found  # type: ignore[return-value]


def chosen(blocks: Sequence[Block], places: BlockMatches) -> dict[str, str | None]:
    """Child's block → candidate's."""
    return {
        block.path: None if j is None else places.blocks[j].path
        for block, j in zip(blocks, places.best, strict=True)
    }  # fmt: skip


def sorted_into(names: Tensors | torch.nn.Module) -> dict[str, set[str]]:
    """Path → the names of its tensors, in the order of the blocks."""
    model = Counted(names.state_dict() if isinstance(names, torch.nn.Module) else names)
    return {block.path: {*block.tensors.values()} for block in blocks_of(model, describe(model))}


class TestBlocks:
    def test_llama(self) -> None:
        found = sorted_into(llama(0, 12))
        assert [*found] == ["stem", *(f"model.layers.{i}" for i in range(12)), "head"], "10 comes behind 9"
        assert found["stem"] == {"model.embed_tokens.weight"}
        assert found["head"] == {"lm_head.weight", "model.norm.weight"}, "the final norm goes with the head"
        assert "model.layers.3.input_layernorm.weight" in found["model.layers.3"], "a block's own norm does not"

    def test_vits_of_both_libraries(self) -> None:
        ours = timm.models.vision_transformer.VisionTransformer(16, 8, 3, 5, embed_dim=32, depth=2, num_heads=2)
        found = sorted_into(ours)
        assert [*found] == ["stem", "blocks.0", "blocks.1", "head"]
        assert {"cls_token", "pos_embed", "patch_embed.proj.weight"} <= found["stem"]
        assert found["head"] == {"norm.weight", "norm.bias", "head.weight", "head.bias"}
        config = transformers.ViTConfig(
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=64,
            image_size=16,
            patch_size=8,
        )
        found = sorted_into(transformers.ViTForImageClassification(config))
        first, second = [*found][1:3]
        assert [*found] == ["stem", first, second, "head"] and first.startswith("vit.") and first.endswith(".0")
        assert all(name.startswith(f"{first}.") for name in found[first]), "by the names it came with"
        assert {"vit.layernorm.weight", "classifier.weight"} <= found["head"]

    def test_resnet(self) -> None:
        found = sorted_into(
            timm.models.resnet.ResNet(timm.models.resnet.BasicBlock, [1, 2], channels=(8, 16), num_classes=3)
        )
        assert [*found] == ["stem", "layer1.0", "layer2.0", "layer2.1", "head"]
        assert {"conv1.weight", "bn1.weight"} <= found["stem"] and "fc.weight" in found["head"]
        assert "layer2.0.downsample.0.weight" in found["layer2.0"]
        assert not any("running" in name for names in found.values() for name in names)

    def test_gpt2_and_two_towers(self) -> None:
        names = [
            "transformer.wte.weight",
            "transformer.h.0.ln_1.weight",
            "transformer.h.1.ln_1.weight",
            "transformer.ln_f.weight",
        ]
        assert sorted_into({name: torch.ones(4, 4) for name in names}) == {
            "stem": {names[0]}, "transformer.h.0": {names[1]}, "transformer.h.1": {names[2]}, "head": {names[3]},
        }  # fmt: skip
        towers = [f"{tower}_model.encoder.layers.{i}.mlp.fc1.weight" for tower in ("text", "vision") for i in (0, 1)]
        assert len(sorted_into({name: torch.ones(4, 4) for name in towers})) == 4

    def test_a_chain_of_linear_layers(self, make_net) -> None:
        found = sorted_into(make_net(0))
        assert [*found] == ["fc1", "fc2", "head"] and found["head"] == {"fc3.weight", "fc3.bias"}

    def test_nonsense_is_grouped_by_module(self) -> None:
        names = ["quux.a.weight", "quux.a.bias", "quux.b.weight", "zap", "thing.norm.weight"]
        found = sorted_into({name: torch.ones(6, 5) for name in names})
        assert found["quux.a"] == {"quux.a.weight", "quux.a.bias"} and found["quux.b"] == {"quux.b.weight"}
        assert found["zap"] == {"zap"} and {name for each in found.values() for name in each} == {*names}


class TestPlace:
    def test_moved_blocks_are_found(self) -> None:
        parent, order = llama(1, 6), [4, 2, 0, 5, 1, 3, 3, 0]
        blocks, [places] = placed(tuned(moved(parent, order), 2), parent)
        found = chosen(blocks, places)
        assert [found[f"model.layers.{new}"] for new in range(8)] == [f"model.layers.{old}" for old in order]
        assert found["stem"] == "stem" and found["head"] == "head"
        assert places.scores.shape == places.z.shape == (10, 8)
        inner = places.scores[1:-1, 1:-1]
        assert (np.abs(inner) <= 1).all(), "cosines"
        assert inner.max(1) == pytest.approx(1 / np.sqrt(1 + 0.3**2), abs=0.02) and np.sort(inner)[:, -2].max() < 0.3
        assert np.isnan(places.scores[0, 1:]).all() and np.isnan(places.scores[1:-1, [0, -1]]).all(), (
            "a stem is no block"
        )

    def test_the_pairs_follow(self) -> None:
        parent = llama(1, 3)
        child = Counted(tuned(moved(parent, [2, 0]), 2))
        other = Counted(parent)
        blocks, [places] = match_blocks(child, describe(child), [other], budget=None, seed=0)
        assert isinstance(places, BlockMatches)
        pairs = places.tensor_pairs(blocks, child, other)
        assert pairs["model.layers.0.mlp.up_proj.weight"] == "model.layers.2.mlp.up_proj.weight"
        assert pairs["model.layers.1.input_layernorm.weight"] == "model.layers.0.input_layernorm.weight"
        assert pairs["lm_head.weight"] == "lm_head.weight" and len(pairs) == len(child)

    @pytest.mark.parametrize("depth", [2, 9])
    def test_candidates_of_another_depth(self, depth: int) -> None:
        child = llama(1, 5)
        other = {**llama(2, depth), **{n: t for n, t in child.items() if ".layers.1." in n or ".layers.0." in n}}
        blocks, [places] = placed(child, other)
        found = chosen(blocks, places)
        assert places.scores.shape == (7, depth + 2)
        assert found["model.layers.0"] == "model.layers.0" and found["model.layers.1"] == "model.layers.1"
        assert (places.z[1:3, 1:3].diagonal() > 20).all() and (np.abs(places.z[3:6, 1:-1]) < 5).all()

    def test_nothing_of_a_wider_one_fits(self) -> None:
        _, [places] = placed(llama(1, 2), llama(1, 2, width=32))
        assert places.best == (None,) * 4 and np.isnan(places.scores).all() and np.isnan(places.z).all()

    def test_half_a_block_must_fit(self) -> None:
        """Less than half the words are another stem and head; another feed-forward layer is two thirds of a block, one matrix a tenth."""
        child = llama(1, 2)
        tables = {name: child[name][:20] for name in ("model.embed_tokens.weight", "lm_head.weight")}
        _, [places] = placed(child, {**child, **tables})
        assert places.best == (None, 1, 2, None)
        wide = llama(2, 2, hidden=66)
        _, [places] = placed(child, {**child, **{name: t for name, t in wide.items() if "layers.0.mlp" in name}})
        assert places.best == (0, 2, 2, 3) and np.isnan(places.scores[:, 1]).all()
        _, [places] = placed(child, {**child, "model.layers.0.self_attn.q_proj.weight": torch.ones(25, 24)})
        assert places.best == (0, 1, 2, 3)

    def test_of_equal_blocks_the_same_name_else_the_first(self) -> None:
        parent = llama(1, 4)
        blocks, [places] = placed(moved(parent, [0, 3, 2]), moved(parent, [3, 3, 2, 2, 0]))
        found = chosen(blocks, places)
        assert [found[f"model.layers.{i}"] for i in range(3)] == ["model.layers.4", "model.layers.1", "model.layers.2"]
        _, [places] = placed(moved(parent, [0, 1, 3]), moved(parent, [3, 3, 2, 2, 0]))
        assert places.blocks[places.best[3]].path == "model.layers.0"  # type: ignore[index]

    def test_an_order_of_units_matters_to_the_score(self) -> None:
        parent = llama(1, 3)
        shuffled = dict(parent)
        order = torch.randperm(64, generator=torch.Generator().manual_seed(0))
        for kind in ("gate", "up"):
            shuffled[f"model.layers.1.mlp.{kind}_proj.weight"] = parent[f"model.layers.1.mlp.{kind}_proj.weight"][order]
        _, [places] = placed(parent, shuffled)
        assert places.scores[1, 1] == pytest.approx(1, abs=1e-5) and abs(places.scores[2, 2]) < 0.3

    def test_scale_and_mean_do_not(self) -> None:
        parent = llama(1, 2)
        _, [places] = placed(parent, {name: 3 * t + 0.5 for name, t in parent.items()})
        assert places.scores[1, 1] == pytest.approx(1, abs=1e-5) == places.scores[2, 2]

    def test_z_of_unrelated_blocks_is_standard_normal(self) -> None:
        """3,200 pairs; the rows of one block are used in forty of them."""
        z = np.concatenate([
            placed(llama(100 + k, 20), llama(200 + k, 20), llama(300 + k, 20), seed=k)[1][which].z[1:-1, 1:-1].ravel()
            for k in range(4) for which in (0, 1)
        ])  # fmt: skip
        assert len(z) == 3200 and np.isfinite(z).all()
        assert abs(z.mean()) < 0.06 and z.std() == pytest.approx(1, abs=0.04)
        assert kstest(z, "norm").pvalue > 0.01

    def test_a_block_without_known_units_has_a_score_and_no_z(self) -> None:
        generator = torch.Generator().manual_seed(0)
        parent = {f"quux.{k}.weight": torch.randn(40, 30, generator=generator) for k in "ab"}
        blocks, [places] = placed(tuned(parent, 1), {"quux.a.weight": parent["quux.b.weight"], "quux.b.weight": parent["quux.a.weight"]})  # fmt: skip
        assert chosen(blocks, places) == {"quux.a": "quux.b", "quux.b": "quux.a"} and np.isnan(places.z).all()

    def test_nan_spoils_its_own_rows_only(self) -> None:
        parent = llama(1, 3)
        broken = {name: t.clone() for name, t in parent.items()}
        broken["model.layers.1.mlp.up_proj.weight"][3, 4] = torch.nan
        _, [places] = placed(broken, parent)
        assert places.best == (0, 1, 2, 3, 4) and np.isfinite(places.scores[2, 2]) and places.scores[2, 2] > 0.9


class TestReading:
    def test_one_call_and_no_byte_twice(self) -> None:
        child, others = Counted(llama(1, 4)), [Counted(llama(2, depth)) for depth in (3, 4, 7)]
        told: list[tuple[int, int]] = []
        match_blocks(
            child,
            describe(child),
            others,
            budget=None,
            seed=0,
            progress=lambda done, total, what: told.append((done, total)),
        )
        for model in (child, *others):
            assert len(model.calls) == 1 and len({*model.calls[0]}) == len(model.calls[0])
        assert told == [(0, 3), (1, 3), (2, 3)]

    @pytest.mark.parametrize("depths", [(6, 6), (6, 2), (3, 12)])  # fmt: skip
    def test_the_budget_holds_for_every_model(self, depths: tuple[int, int]) -> None:
        models = [Counted(llama(depth, depth, hidden=600, width=32)) for depth in depths]
        for budget in (60_000, 200_000):
            before = [model.bytes_read for model in models]
            match_blocks(models[0], describe(models[0]), models[1:], budget=budget, seed=0)
            spent = [model.bytes_read - b for model, b in zip(models, before, strict=True)]
            assert 0.6 * budget < max(spent) <= budget, spent
        assert SCREEN_BYTES == 16 << 20

    def test_a_candidate_that_cannot_be_read(self) -> None:
        child, parent = llama(1, 3), llama(1, 3)
        error = CheckpointError("The disk is on fire.")
        ours = Counted(child)
        _, found = match_blocks(
            ours, describe(ours), [Counted(llama(2, 3), error), Counted(parent)], budget=None, seed=0
        )
        assert found[0] is error and isinstance(found[1], BlockMatches) and found[1].best == (0, 1, 2, 3, 4)
        ours.broken = error
        with pytest.raises(CheckpointError):
            match_blocks(ours, describe(ours), [Counted(parent)], budget=None, seed=0)


def views(*models: Tensors) -> list[Checkpoint]:
    return [View(checkpoint, fused_parts(checkpoint)) for checkpoint in map(Counted, models)]


def test_timm_and_transformers_line_up_where_they_stand() -> None:
    """One ViT under both libraries' names, the projections fused in one: nothing counts as moved but what was."""
    torch.manual_seed(0)
    ours = timm.models.vision_transformer.VisionTransformer(
        16, 8, 3, 5, embed_dim=32, depth=3, num_heads=2
    ).state_dict()
    theirs: Tensors = {}
    names = {"norm1": "layernorm_before", "norm2": "layernorm_after", "mlp.fc1": "intermediate.dense",
             "mlp.fc2": "output.dense", "attn.proj": "attention.output.dense"}  # fmt: skip
    for name, tensor in ours.items():
        if name.startswith("blocks."):
            _, i, rest = name.split(".", 2)
            module, _, kind = rest.rpartition(".")
            parts = zip(("query", "key", "value"), tensor.chunk(3), strict=True) if module == "attn.qkv" else ()
            theirs |= {f"vit.encoder.layer.{i}.attention.attention.{part}.{kind}": t.clone() for part, t in parts}
            if module in names:
                theirs[f"vit.encoder.layer.{i}.{names[module]}.{kind}"] = tensor
    theirs |= {"vit.embeddings.patch_embeddings.projection.weight": ours["patch_embed.proj.weight"],
               "vit.embeddings.patch_embeddings.projection.bias": ours["patch_embed.proj.bias"],
               "vit.embeddings.cls_token": ours["cls_token"], "vit.embeddings.position_embeddings": ours["pos_embed"],
               "vit.layernorm.weight": ours["norm.weight"], "vit.layernorm.bias": ours["norm.bias"],
               "classifier.weight": ours["head.weight"], "classifier.bias": ours["head.bias"]}  # fmt: skip
    child, candidate, swapped = views(ours, theirs, moved(theirs, [0, 2, 1], "vit.encoder.layer."))
    blocks, found = match_blocks(child, describe(child), [candidate, swapped], budget=None, seed=0)
    for places, order in zip(found, ([0, 1, 2], [0, 2, 1]), strict=True):
        assert isinstance(places, BlockMatches)
        partners = [places.blocks[j] for j in places.best if j is not None]
        assert [b.path for b in partners] == ["stem", *(f"vit.encoder.layer.{j}" for j in order), "head"]
        assert [b.short == partner.short for b, partner in zip(blocks, partners, strict=True)][1:-1] == [
            j == i for i, j in enumerate(order)
        ]
        assert len(places.tensor_pairs(blocks, child, candidate)) == len(child)


def test_a_grown_vocabulary_lines_up_with_its_beginning() -> None:
    child, parent = (Counted(llama(1, 2, words=words)) for words in (60, 50))
    architecture = describe(child)
    blocks, [places] = match_blocks(child, architecture, [parent], budget=None, seed=0)
    assert isinstance(places, BlockMatches)
    alignment = align_blocks(child, blocks, parent, places, align(child, parent))
    assert alignment.grown == dict.fromkeys(("model.embed_tokens.weight", "lm_head.weight"), (60, 50))
    assert {*alignment.pairs} | {*alignment.unmatched} == {*architecture.weights}
    assert alignment.unmatched.keys() <= {"model.norm.weight"} and alignment.coverage > 0.99
