"""Layer origins by features: the paper's construction written out, what does not fit, and what it costs."""

from __future__ import annotations

import copy
import json
import math
import re
import warnings
from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import builders
import numpy as np
import pytest
import torch
from builders import RESNET, VIT_SIZES, mlp, near, resnet, timm_config
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.func import functional_call, jvp

from hf_lineage.architecture.align import align
from hf_lineage.architecture.conventions import fused_parts
from hf_lineage.checkpoints.opener import open_checkpoint
from hf_lineage.checkpoints.view import View
from hf_lineage.errors import ArgumentError, CheckpointError
from hf_lineage.features import grafting
from hf_lineage.features.evidence import Settings
from hf_lineage.features.grafting import MAX_TOKENS, Grafts, graft, origins
from hf_lineage.features.linearize import GRID
from hf_lineage.features.networks import build, run_inputs
from hf_lineage.features.probes import probes
from hf_lineage.features.similarity import METRICS, exact, similarity, taylor

pytestmark = pytest.mark.integration

timm = pytest.importorskip("timm")
hf = pytest.importorskip("transformers")

Tensors = dict[str, Tensor]
FEW = 12  # probes
# Four blocks, as many as the hybrid has
vit, put = partial(builders.vit, depth=4), partial(builders.put, depth=4)
llama = partial(builders.llama_network, num_hidden_layers=3, num_key_value_heads=1)
ORDER = (2, 0, 3, 1)  # where the hybrid's blocks are from


def run(child: Any, candidates: Sequence[Any], **settings: Any) -> Grafts:
    modules = tuple(model for model in (child, *candidates) if isinstance(model, nn.Module))
    ours, theirs = open_checkpoint(child), [open_checkpoint(each) for each in candidates]
    seen = View(ours, fused_parts(ours))
    pairs = [(each, align(seen, View(each, fused_parts(each)))) for each in theirs]
    return graft(ours, seen, pairs, Settings(**{"probes": FEW, "modules": modules} | settings))


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two candidates and a child of the first for each architecture; four ViTs and a hybrid of their blocks."""
    hf.utils.logging.disable_progress_bar()
    root = tmp_path_factory.mktemp("grafts")
    made: dict[str, Path] = {}
    for kind, network, sizes in (("vit", vit, {}), ("long", vit, {"img_size": 63, "depth": 2}), ("resnet", resnet, {})):
        models = {"a": network(1, **sizes).state_dict(), "b": network(2, **sizes).state_dict()}
        for name, tensors in {**models, "child": near(models["a"])}.items():
            made[f"{kind}-{name}"] = put(
                root / f"{kind}-{name}", tensors, timm_config(RESNET) if kind == "resnet" else None, **sizes
            )
    origin = llama(1)
    for name, model in {"a": origin, "b": llama(2, vocab_size=70)}.items():
        model.save_pretrained(root / f"llama-{name}")
    origin.load_state_dict(near(origin.state_dict()))
    origin.save_pretrained(root / "llama-child")
    made |= {f"llama-{name}": root / f"llama-{name}" for name in ("a", "b", "child")}
    stems = ({}, {"patch_size": 14}, {"img_size": 42}, {"in_chans": 3})
    roots = [vit(seed, **sizes).state_dict() for seed, sizes in enumerate(stems, 11)]
    for i, (tensors, sizes) in enumerate(zip(roots, stems, strict=True)):
        made[f"root-{i}"] = put(root / f"root-{i}", tensors, **sizes)
    hybrid = dict(roots[0])
    for block, owner in enumerate(ORDER):
        hybrid |= {name: value for name, value in roots[owner].items() if name.startswith(f"blocks.{block}.")}
    made["hybrid"] = put(root / "hybrid", near(hybrid, 0.1))
    return made


def loaded(folder: Path) -> nn.Module:
    """The library's own model with its weights, attention written out."""
    if "llama" in folder.name:
        return hf.LlamaForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()
    config = json.loads((folder / "config.json").read_text())
    module = timm.create_model(config["architecture"], num_classes=5, **config["model_args"]).eval()
    module.load_state_dict(load_file(folder / "model.safetensors"))
    for part in module.modules():
        if hasattr(part, "fused_attn"):
            part.fused_attn = False
    return module


def replaced(child: nn.Module, candidate: nn.Module, path: str) -> nn.Module:
    """The child with one block of the candidate's."""
    module = copy.deepcopy(child)
    parent, _, name = path.rpartition(".")
    setattr(module.get_submodule(parent), name, candidate.get_submodule(path))
    return module


def at_block(module: nn.Module, path: str, tensors: Tensors, inputs: Any) -> Tensor:
    seen: list[Tensor] = []

    def keep(_module: nn.Module, _args: object, output: Any) -> None:
        seen.append(output if isinstance(output, Tensor) else output[0])

    handle = module.get_submodule(path).register_forward_hook(keep)
    arguments = {"args": (), "kwargs": inputs} if isinstance(inputs, dict) else {"args": (inputs,)}
    functional_call(module, tensors, **arguments)
    handle.remove()
    output = seen[0][:, :64] if seen[0].ndim == 3 else seen[0]
    return output.flatten(1)


# ---- the definition


@pytest.mark.parametrize("kind", ["vit", "long", "resnet", "llama"])
def test_the_scores_are_those_of_the_paper(zoo: dict[str, Path], kind: str) -> None:
    """Real networks "the child's blocks before i, then block i of the candidate", T by `torch.func.jvp`."""
    step = 0.1
    grafts = run(zoo[f"{kind}-child"], [zoo[f"{kind}-a"], zoo[f"{kind}-b"]], step=step)
    assert not grafts.refused and [*grafts.found] == [0, 1]
    network = build(open_checkpoint(zoo[f"{kind}-child"]))
    assert grafts.blocks == network.blocks == grafts.names
    inputs = run_inputs(network, probes(None, network.inputs, FEW, 0))
    child = loaded(zoo[f"{kind}-child"])
    ours = dict(child.named_parameters())
    for i, name in enumerate("ab"):
        candidate = loaded(zoo[f"{kind}-{name}"])
        for path, facts in zip(grafts.blocks, grafts.found[i], strict=True):
            assert facts is not None and (facts["step"], facts["own_step"]) == (step, step)
            hybrid = replaced(child, candidate, path)
            tensors = {n: t.detach() for n, t in hybrid.named_parameters()}
            inside = [n for n in tensors if n.startswith(f"{path}.")]
            with warnings.catch_warnings(), torch.no_grad():
                warnings.simplefilter("ignore", FutureWarning)
                delta = {n: ours[n] - t if n in inside else torch.zeros_like(t) for n, t in tensors.items()}
                F, T = jvp(lambda t, m=hybrid, p=path: at_block(m, p, t, inputs), (tensors,), (delta,))
                G = at_block(child, path, {}, inputs)
                there = at_block(hybrid, path, {n: t + step * delta[n] for n, t in tensors.items()}, inputs)
            assert facts["features"] == F.shape[1] and facts["scores"].keys() == METRICS.keys()
            bend = float((there - F - step * T).norm() / (step * T).norm())
            assert facts["curvature"] == pytest.approx(bend, rel=0.02)
            for metric, scores in facts["scores"].items():
                assert scores["plain"] == pytest.approx(similarity(metric, F, G), rel=1e-4), (path, metric)
                assert scores["exact"] == pytest.approx(exact(metric, F, G, T, step), rel=1e-4), (path, metric)
                if METRICS[metric].differentiable:
                    assert scores["taylor"] == pytest.approx(taylor(metric, F, G, T, step), rel=1e-4), (path, metric)
                else:
                    assert scores["taylor"] is None
    if kind == "long":  # 82 tokens
        assert facts["features"] == MAX_TOKENS * VIT_SIZES["embed_dim"]


@pytest.mark.parametrize("metric", ["l2", "cka"])
def test_the_blocks_of_a_hybrid(zoo: dict[str, Path], metric: str) -> None:
    """The paper's Fig. 1c: candidates of other patch, picture and colour serve, since their stems are not run."""
    grafts = run(zoo["hybrid"], [zoo[f"root-{i}"] for i in range(4)], metric=metric)
    matrix = origins(grafts, metric)
    assert matrix.dtype == np.float64 and matrix.argmax(1).tolist() == [*ORDER]
    assert grafts.names == tuple(f"blocks.{i}" for i in range(4))
    for block in zip(*grafts.found.values(), strict=True):
        steps = {facts["step"] for facts in block}
        assert len(steps) == 1 and steps <= {*GRID} and steps == {max(facts["own_step"] for facts in block)}
        assert all(facts["scores"][metric]["exact"] is not None for facts in block)


def test_the_order_of_the_candidates_changes_nothing(zoo: dict[str, Path]) -> None:
    folders = [zoo[f"root-{i}"] for i in range(3)]
    one, other = run(zoo["hybrid"], folders), run(zoo["hybrid"], folders[::-1])
    assert {2 - i: facts for i, facts in other.found.items()} == one.found


def test_a_copy_is_certain_of_nothing_more_than_the_metric_says(zoo: dict[str, Path]) -> None:
    grafts = run(zoo["vit-child"], [zoo["vit-b"], zoo["vit-child"]])
    for facts in grafts.found[1]:
        assert facts is not None and facts["scores"]["l2"] == {"plain": 0, "taylor": 0, "exact": 0}
        assert (facts["own_step"], facts["curvature"]) == (GRID[0], 0)
    assert (origins(grafts, "l2")[:, 1] > 0.5).all()


# ---- the cost


@pytest.mark.parametrize("count", [FEW, 40])
def test_the_child_runs_once(zoo: dict[str, Path], monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    calls: Counter[int] = Counter()
    kept: list[nn.Module] = []
    forward = timm.models.vision_transformer.Block.forward

    def counted(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        calls[id(self)] += 1
        kept.append(self)  # an id is a module's only while it lives
        return forward(self, *args, **kwargs)

    monkeypatch.setattr(timm.models.vision_transformer.Block, "forward", counted)
    run(zoo["vit-child"], [zoo["vit-a"], zoo["vit-b"]], step=0.1, probes=count)
    each = 2 * math.ceil(count / grafting.BATCH)  # with its derivative, and at the step
    assert sorted(calls.values()) == [1] * 4 + [each] * 8


@pytest.mark.parametrize("kind", ["vit", "resnet", "llama"])
def test_pieces_of_the_probes_change_nothing(zoo: dict[str, Path], monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    once = run(zoo[f"{kind}-child"], [zoo[f"{kind}-a"]], step=0.1)
    monkeypatch.setattr(grafting, "BATCH", 5)
    pieces = run(zoo[f"{kind}-child"], [zoo[f"{kind}-a"]], step=0.1)
    for one, other in zip(once.found[0], pieces.found[0], strict=True):
        assert one is not None and other is not None
        for metric, scores in one["scores"].items():
            assert other["scores"][metric]["exact"] == pytest.approx(scores["exact"], rel=1e-4)


def test_as_many_probes_as_tokens(zoo: dict[str, Path]) -> None:
    """Whose axis is whose cannot be told from shapes then: all go through together."""
    grafts = run(zoo["llama-child"], [zoo["llama-a"]], probes=torch.randint(0, 70, (FEW, FEW)))
    assert all(grafts.found[0])


def test_what_is_read(zoo: dict[str, Path]) -> None:
    """The child up to its last block and its blocks once more, each candidate's blocks once, nothing else."""
    models = [open_checkpoint(zoo[f"vit-{name}"]) for name in ("child", "a", "b")]
    before = [model.bytes_read for model in models]
    seen = View(models[0], fused_parts(models[0]))
    graft(models[0], seen, [(m, align(seen, View(m, fused_parts(m)))) for m in models[1:]], Settings(probes=FEW))
    blocks = sum(entry.nbytes for name, entry in models[0].items() if name.startswith("blocks."))
    head = sum(entry.nbytes for name, entry in models[0].items() if name.startswith(("head.", "norm.")))
    whole = sum(entry.nbytes for entry in models[0].values())
    read = [model.bytes_read - bytes_read for model, bytes_read in zip(models, before, strict=True)]
    assert read == [whole - head + blocks, blocks, blocks]


def test_one_block_of_each_model_is_held(zoo: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    held: list[set[str]] = []

    class Watched(grafting.CachedCheckpoint):
        def whole(self, names: Sequence[str]) -> list[Tensor]:
            result = super().whole(names)
            held.append(
                {name.partition(".attn")[0].partition(".mlp")[0].partition(".norm")[0] for name in self.tensors}
            )
            return result

    taken: list[set[str]] = []

    def weights(network: Any, checkpoint: Any, names: Sequence[str], device: Any) -> Tensors:
        taken.append({name[: len("blocks.0")] for name in names})
        return read(network, checkpoint, names, device)

    read = grafting.weights
    monkeypatch.setattr(grafting, "CachedCheckpoint", Watched)
    monkeypatch.setattr(grafting, "weights", weights)
    run(zoo["vit-child"], [zoo["vit-a"], zoo["vit-b"]])
    assert {frozenset(each) for each in held} == {frozenset({f"blocks.{i}"}) for i in range(4)}
    assert taken == [{f"blocks.{i}"} for i in range(4) for _ in "ab"]


def test_progress_counts_blocks(zoo: dict[str, Path]) -> None:
    seen: list[tuple[int, int, str]] = []
    child = open_checkpoint(zoo["vit-child"])
    graft(child, View(child, fused_parts(child)), [], Settings(probes=FEW), lambda *each: seen.append(each))
    assert seen == [*((i, 4, f"grafting blocks.{i}") for i in range(4)), (4, 4, "grafting")]


# ---- what does not fit


def test_candidates_that_fit_in_part_or_not_at_all(zoo: dict[str, Path], tmp_path: Path) -> None:
    tensors = load_file(zoo["vit-a"] / "model.safetensors")
    nan = tensors | {"blocks.1.mlp.fc1.weight": torch.full_like(tensors["blocks.1.mlp.fc1.weight"], math.nan)}
    lost = {name: value for name, value in tensors.items() if not name.startswith("blocks.2.mlp")}
    folders = {
        "whole": zoo["vit-a"],
        "short": put(tmp_path / "short", vit(3, depth=2).state_dict(), depth=2),
        "deep": put(tmp_path / "deep", vit(4, depth=6).state_dict(), depth=6),
        "wide": put(tmp_path / "wide", vit(5, embed_dim=48).state_dict(), embed_dim=48),
        "other": zoo["resnet-a"],
        "nan": put(tmp_path / "nan", nan),
        "lost": put(tmp_path / "lost", lost),
        "unknown": put(tmp_path / "unknown", tensors, timm_config("no_such_model")),
        "broken": put(tmp_path / "broken", {name: value * math.nan for name, value in tensors.items()}),
    }
    grafts = run(zoo["vit-child"], [*folders.values()])
    names = [*folders]
    fits = {names[i]: [facts is not None for facts in row] for i, row in grafts.found.items()}
    assert fits == {
        "whole": [True] * 4, "short": [True, True, False, False], "deep": [True] * 4, "wide": [False] * 4,
        "other": [False] * 4, "nan": [True, False, True, True], "lost": [True, True, False, True],
    }  # fmt: skip
    why = {names[i]: reason for i, reason in grafts.refused.items()}
    assert why.keys() == {"unknown", "broken"}
    assert "no_such_model" in why["unknown"] and "its weights are broken" in why["broken"]
    matrix = origins(grafts, "l2")
    assert matrix.shape == (4, len(folders)) and np.allclose(np.nansum(matrix, 1), 1)
    assert np.isnan(matrix).T.tolist() == [[not fit for fit in fits.get(name, [False] * 4)] for name in names]


def test_one_candidate_is_certain(zoo: dict[str, Path]) -> None:
    assert (origins(run(zoo["llama-child"], [zoo["llama-b"]]), "cka") == 1).all()


def test_an_adapter_is_refused(zoo: dict[str, Path]) -> None:
    child, adapter = (open_checkpoint(zoo[f"vit-{name}"]) for name in ("child", "a"))
    adapter.adapter_base = "lab/base"
    seen = View(child, fused_parts(child))
    grafts = graft(child, seen, [(adapter, align(seen, adapter))], Settings(probes=FEW))
    assert not grafts.found and "name its base, lab/base" in grafts.refused[0]
    assert np.isnan(origins(grafts, "l2")).all() and origins(grafts, "l2").shape == (4, 1)


def test_a_child_that_cannot_run_ends_the_question(zoo: dict[str, Path], tmp_path: Path) -> None:
    tensors = {n: t * math.inf for n, t in load_file(zoo["vit-a"] / "model.safetensors").items()}
    with pytest.raises(CheckpointError, match=r"NaN or Inf from the child at 'blocks\.0'"):
        run(put(tmp_path / "child", tensors), [zoo["vit-a"]])
    with pytest.raises(ArgumentError, match="at least 2 probes for the metric cka"):
        run(zoo["vit-child"], [zoo["vit-a"]], metric="cka", probes=1)


# ---- other spellings, modules, operators


def test_a_name_is_the_file_s_own(tmp_path: Path) -> None:
    """transformers 5 calls the module `vit.layers.0`, files say `vit.encoder.layer.0`."""
    config = hf.ViTConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=48, image_size=28, patch_size=7,
        num_channels=1, num_labels=5,
    )  # fmt: skip
    for name in ("child", "parent"):
        hf.ViTForImageClassification(config).save_pretrained(tmp_path / name)
    grafts = run(tmp_path / "child", [tmp_path / "parent"])
    stored = load_file(tmp_path / "child" / "model.safetensors")
    assert len(grafts.names) == 2 and all(grafts.found[0])
    for place, prefix in enumerate(grafts.names):
        assert re.search(rf"\.{place}$", prefix) and any(name.startswith(f"{prefix}.") for name in stored)


def test_blocks_whose_paths_differ_go_by_their_place(zoo: dict[str, Path]) -> None:
    class Wrapped(nn.Module):
        def __init__(self, model: nn.Module) -> None:
            super().__init__()
            self.backbone = model

        def forward(self, x: Tensor) -> Tensor:
            return self.backbone(x)

    child, a, b = (loaded(zoo[f"vit-{name}"]) for name in ("child", "a", "b"))
    x = torch.randn(FEW, 1, 28, 28)
    same, other = (run(Wrapped(child), each, probes=x) for each in ([Wrapped(a), Wrapped(b)], [a, b]))
    assert same == other and same.blocks[0] == "backbone.blocks.0" and all(same.found[0])


def test_a_plain_module() -> None:
    """A layer is linear in its weights: at step 1 all candidates would be the child, at the largest step tried not."""
    parents, x = [mlp(seed) for seed in (1, 2, 3)], torch.randn(FEW, 20)
    child = mlp(4)
    state = {n: parents[{"0": 2, "2": 0, "4": 1}[n[0]]].state_dict()[n] for n in child.state_dict()}
    child.load_state_dict(near(state))
    grafts = run(child, parents, probes=x)
    assert grafts.blocks == grafts.names == ("0", "2", "4")
    assert all(facts["step"] == GRID[0] for row in grafts.found.values() for facts in row if facts)
    assert origins(grafts, "l2").argmax(1).tolist() == origins(grafts, "cka").argmax(1).tolist() == [2, 0, 1]
    with torch.no_grad():
        hidden = child[1](child[0](x))
        plain = -(parents[1][2](hidden) - child[2](hidden)).square().mean()
    facts = grafts.found[1][1]
    assert facts is not None and facts["scores"]["l2"]["plain"] == pytest.approx(plain.item(), rel=1e-5)
    assert all(not parameter.is_meta for model in (child, *parents) for parameter in model.parameters())


def test_a_block_that_writes_into_its_input_and_one_that_never_runs() -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 8)

        def forward(self, x: Tensor) -> Tensor:
            x += self.b(self.a(x).tanh())
            return x.mul_(2)

    class Net(nn.Module):
        def __init__(self, seed: int) -> None:
            super().__init__()
            torch.manual_seed(seed)
            self.layers = nn.ModuleList(Block() for _ in range(3))

        def forward(self, x: Tensor) -> Tensor:
            return self.layers[0](self.layers[1](x.clone()))

    a, b, child, x = Net(1), Net(2), Net(1), torch.randn(FEW, 8)
    child.load_state_dict(near(a.state_dict()))
    grafts = run(child, [a, b], probes=x, step=0.1)
    assert grafts.blocks == ("layers.1", "layers.0")  # as they ran
    with torch.no_grad():
        before = child.layers[1](x.clone())
        G, F = child.layers[0](before.clone()), b.layers[0](before.clone())
    facts = grafts.found[1][1]
    assert facts is not None and facts["scores"]["l2"]["plain"] == pytest.approx(similarity("l2", F, G), rel=1e-4)


def test_an_operator_without_a_forward_derivative() -> None:
    class Recurrent(nn.Module):
        def __init__(self, seed: int) -> None:
            super().__init__()
            torch.manual_seed(seed)
            self.lstm = nn.LSTM(6, 10, batch_first=True)
            self.relu = nn.ReLU()
            self.head = nn.Linear(10, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.relu(self.lstm(x)[0]))

    parent, child, x = Recurrent(1), Recurrent(1), torch.randn(FEW, 5, 6)
    child.load_state_dict(near(child.state_dict()))
    grafts = run(child, [Recurrent(2), parent], probes=x, step=0.1)
    assert grafts.blocks == ("lstm", "head")
    facts = grafts.found[1][0]
    assert facts is not None and facts["scores"].keys() == {"l2"} and facts["curvature"] is None
    F, G = (model.lstm(x)[0].flatten(1) for model in (parent, child))
    loss = -(F - G.detach()).square().mean()
    slopes = torch.autograd.grad(loss, [*parent.lstm.parameters()])
    pairs = zip(slopes, parent.lstm.parameters(), child.lstm.parameters(), strict=True)
    slope = sum(float((s * (theirs - ours).detach()).sum()) for s, ours, theirs in pairs)
    assert facts["scores"]["l2"]["taylor"] == pytest.approx(loss.item() + 0.1 * slope, rel=1e-4)
    assert origins(grafts, "l2").argmax(1).tolist() == [1, 1]
    assert np.isnan(origins(grafts, "dc")[0]).all() and not np.isnan(origins(grafts, "dc")[1]).any()


# ---- origins


def test_origins_by_a_loop() -> None:
    """S2.7: "correcting their mean to be zero and dividing them by the number of parent models", then softmax."""
    table = [[-3.0, -1.0, None], [None, None, None], [None, -2.0, None], [-1e6, -2e6, -5.0]]

    def facts(score: float | None, form: str) -> dict[str, Any] | None:
        scores = {"plain": 7.0, "taylor": score, "exact": score if form == "exact" else None}
        return None if score is None else {"scores": {"l2": scores}}

    forms = ("exact", "taylor", "exact")
    found = {i: tuple(facts(row[place], forms[place]) for row in table) for place, i in enumerate((0, 2, 3))}
    names = tuple("abcd")
    matrix = origins(Grafts(names, names, found, {1: "no config"}), "l2")
    for row, scores in zip(matrix, table, strict=True):
        known = {i: score for i, score in zip((0, 2, 3), scores, strict=True) if score is not None}
        mean = sum(known.values()) / max(1, len(known))
        scaled = {i: (score - mean) / len(known) for i, score in known.items()}
        powers = {i: math.exp(value - max(scaled.values())) for i, value in scaled.items()}
        for i in range(4):
            if i in known:
                assert row[i] == pytest.approx(powers[i] / sum(powers.values()), abs=1e-12)
            else:
                assert math.isnan(row[i])
        assert not known or np.nansum(row) == pytest.approx(1, abs=1e-12)
    with pytest.raises(ArgumentError, match="Expected a metric out of"):
        origins(Grafts(names, names, found, {}), "l3")
