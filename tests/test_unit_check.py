"""`coverage(check=True)`: hidden units that were guessed from names and shapes, held against the code that runs them."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from torch import Tensor, nn
from torch.nn import functional as F

import hf_lineage as hl
from hf_lineage.answers.coverage import Coverage, UnitCheck
from hf_lineage.architecture.structure import cuts
from hf_lineage.checkpoints.checkpoint import HeaderCheckpoint
from hf_lineage.checkpoints.view import View
from hf_lineage.cli import cli
from hf_lineage.features.unit_check import check_units

pytestmark = pytest.mark.integration
BERT = {
    "model_type": "bert", "architectures": ["BertModel"], "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
    "intermediate_size": 48, "vocab_size": 60, "max_position_embeddings": 16,
}  # fmt: skip


def view_of(config: Mapping[str, object], network: nn.Module) -> View:
    header = HeaderCheckpoint({name: ("F32", tuple(p.shape)) for name, p in network.named_parameters()})
    header.__dict__["config"] = dict(config)
    return View(header, cuts(header))


def with_orders(view: View, **fields: Any) -> View:
    """The view with another opinion of its hidden units."""
    changed = copy.copy(view)
    changed.__dict__["architecture"] = replace(view.architecture, **fields)
    return changed


def results(check: UnitCheck) -> dict[str, str]:
    return {kind.pattern: kind.result for kind in check.kinds}


class Block(nn.Module):
    """GEGLU, attention and an identity, and rows that look like hidden units where `trap` asks for them."""

    def __init__(self, trap: str = "") -> None:
        super().__init__()
        self.trap = trap
        self.attn = nn.ModuleDict({name: nn.Linear(40, 40) for name in ("to_q", "to_k", "to_v")})
        self.ff = nn.ModuleDict({"wi": nn.Linear(40, 192), "wo": nn.Linear(96, 40)})
        self.norm = nn.LayerNorm(40)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (project(x)[:, None] for project in self.attn.values())
        x = x + F.scaled_dot_product_attention(q, k, v)[:, 0]
        gate, up = self.ff["wi"](x).chunk(2, -1)
        y = gate * F.gelu(up)
        if self.trap == "by place":
            y = y * torch.linspace(0, 1, 96)
        if self.trap == "halves in turn":
            gate, up = self.ff["wi"](x).unflatten(-1, (96, 2)).unbind(-1)
            y = gate * F.gelu(up)
        return x + self.norm(self.ff["wo"](y))


class Net(nn.Module):
    def __init__(self, trap: str = "") -> None:
        super().__init__()
        self.embed = nn.Embedding(50, 40)
        self.blocks = nn.ModuleList([Block(trap) for _ in range(2)])

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids)
        for block in self.blocks:
            x = block(x)
        return x


@pytest.mark.parametrize(
    ("trap", "expected"), [("", "holds"), ("by place", "contradicted"), ("halves in turn", "contradicted")]
)
def test_a_module_says_itself_whether_its_units_are_any(trap: str, expected: str) -> None:
    """From names and shapes the three are one: only what runs between the matrices differs."""
    found = hl.coverage(Net(trap), check=True)
    assert found.p_value and found.check is not None and found.check.network == "Net, the module itself"
    assert results(found.check) == {"blocks.#.ff.wi.weight": expected}
    assert found.check.orders(expected) == 2


def test_the_module_stays_as_it_is() -> None:
    net = Net().train()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    hl.coverage(net, check=True)
    assert net.training and net.blocks[0].training and not net.blocks[0]._forward_pre_hooks
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_layers_with_an_identity_around_each_are_no_sequence() -> None:
    """What docs/limits.md says that names and shapes cannot tell."""

    class Stream(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mid = nn.ModuleDict({str(i): nn.Conv2d(40, 40, 3, padding=1) for i in range(3)})

        def forward(self, x: Tensor) -> Tensor:
            for layer in self.mid.values():
                x = x + layer(x).relu()
            return x

    class Line(Stream):
        def forward(self, x: Tensor) -> Tensor:
            for layer in self.mid.values():
                x = layer(x).relu()
            return x

    found = [hl.coverage(make(), check=True).check for make in (Stream, Line)]
    assert [results(check) for check in found if check] == [{"mid.#.weight": "contradicted"}, {"mid.#.weight": "holds"}]


def test_units_of_a_grouped_convolution_only_within_its_groups() -> None:
    """Who reads them is not told from names and shapes: they are put back before whatever gets them."""

    class Bottleneck(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv1, self.conv2 = nn.Conv2d(48, 64, 1), nn.Conv2d(64, 64, 3, groups=8, padding=1)
            self.bn1, self.conv3 = nn.BatchNorm2d(64), nn.Conv2d(64, 48, 1)

        def forward(self, x: Tensor) -> Tensor:
            return x + self.conv3(self.conv2(self.bn1(self.conv1(x)).relu()).relu())

    net = nn.ModuleDict({"layer1": nn.ModuleList([Bottleneck() for _ in range(2)])})
    found = hl.coverage(net, check=True).check
    assert found and results(found) == {"layer#.#.conv#.weight": "holds"} and found.kinds[0].rule == "by group"
    assert "put back before conv2" in found.kinds[0].reason
    over_all = check_units(with_orders(view_of({}, net), groups={}), net)
    assert "contradicted" in results(over_all).values()


@pytest.fixture(scope="module")
def bert() -> View:
    import transformers

    with torch.device("meta"):
        return view_of(BERT, transformers.BertModel(transformers.BertConfig(**BERT)))


def test_a_class_of_transformers(bert: View) -> None:
    found = check_units(bert)
    assert found.network and found.network.startswith("BertModel of transformers")
    assert results(found) == {"encoder.layer.#.intermediate.dense.weight": "holds"} and found.kinds[0].orders == 2


def test_layouts_of_transformers() -> None:
    """Stored (in, out); experts that stand in one tensor each, with gate and up row by row in turn."""
    import transformers

    sizes = {
        "hidden_size": 32,
        "num_hidden_layers": 1,
        "vocab_size": 60,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
    }
    oss = {
        "model_type": "gpt_oss",
        "architectures": ["GptOssForCausalLM"],
        "intermediate_size": 48,
        "head_dim": 16,
        "num_local_experts": 4,
    }
    gpt = {
        "model_type": "gpt2",
        "architectures": ["GPT2Model"],
        "n_embd": 32,
        "n_layer": 1,
        "n_head": 2,
        "vocab_size": 60,
        "bos_token_id": 1,
        "eos_token_id": 1,
    }
    with torch.device("meta"):
        made = [
            (gpt, transformers.GPT2Model(transformers.GPT2Config(**gpt))),
            (oss | sizes, transformers.GptOssForCausalLM(transformers.GptOssConfig(**oss, **sizes))),
        ]
    stored, stacked = (check_units(view_of(config, network)) for config, network in made)
    assert results(stored) == {"h.#.mlp.c_proj.weight": "holds"}
    assert (
        results(stacked) == {"model.layers.#.mlp.experts.down_proj": "holds"} and "in turn" in stacked.kinds[0].reason
    )


WRONG = {
    "rows of queries": ("attention.self.query", "intermediate.dense"),
    "values, through the heads": ("attention.self.value", "attention.output.dense"),
    "the residual stream": ("attention.output.dense", "intermediate.dense"),
    "another layer's reader": ("intermediate.dense", None),
}


@pytest.mark.parametrize("guess", WRONG)
def test_a_wrong_guess_is_caught(bert: View, guess: str) -> None:
    rows, columns = WRONG[guess]
    reader = f"encoder.layer.0.{columns}.weight" if columns else "encoder.layer.1.output.dense.weight"
    orders = {"guess": (f"encoder.layer.0.{rows}.weight",)}
    wrong = {
        "orders": orders,
        "reads": {"guess": (reader,)},
        "vectors": {},
        "rules": {"guess": "own width"},
        "groups": {},
    }
    assert results(check_units(with_orders(bert, **wrong))) == {f"encoder.layer.#.{rows}.weight": "contradicted"}


@pytest.mark.parametrize("name", ["test_efficientnet", "test_convnext2"])
def test_classes_of_timm(name: str) -> None:
    """Gates of channels that write along, depthwise kernels, convolutions."""
    import timm

    with torch.device("meta"):
        network = timm.create_model(name)
    found = check_units(view_of({"architecture": name}, network))
    assert found.network and "timm" in found.network and found.kinds
    assert {kind.result for kind in found.kinds} == {"holds"}, found.kinds


def test_where_it_does_not_apply(monkeypatch: pytest.MonkeyPatch) -> None:
    assert (none := check_units(view_of({}, Net()))).network is None and "config.json" in str(none.reason)
    unknown = check_units(view_of({"model_type": "nothing", "architectures": ["Nothing"], "auto_map": {}}, Net()))
    assert unknown.network is None and "remote code, which is never run" in str(unknown.reason)
    missing = check_units(view_of({"_class_name": "UNet2DModel"}, Net()))
    assert missing.network is None and "diffusers, which is not installed" in str(missing.reason)
    recurrent = hl.coverage(nn.ModuleDict({"rnn": nn.LSTM(40, 40), "conv": nn.Conv1d(40, 40, 3)}), check=True).check
    assert recurrent and {kind.result for kind in recurrent.kinds} == {"not_run"}


def test_the_answer_and_the_command(tmp_path: Path) -> None:
    import transformers

    transformers.BertModel(
        transformers.BertConfig(**{k: v for k, v in BERT.items() if k != "architectures"})
    ).save_pretrained(tmp_path)
    done = CliRunner().invoke(cli, ["coverage", str(tmp_path), "--check", "--json"])
    answer = json.loads(done.stdout)
    assert done.exit_code == 0 and [kind["result"] for kind in answer["check"]["kinds"]] == ["holds"]
    found = Coverage.from_dict(answer)
    assert found.to_dict() == answer and "exchangeable 2" in str(found) and "exchangeable 2" in found.to_markdown()
    plain = CliRunner().invoke(cli, ["coverage", str(tmp_path)]).stdout
    assert "exchangeable" not in plain
    wrong = replace(found.check, kinds=(replace(found.check.kinds[0], result="contradicted", reason="it changed"),))
    assert "NOT exchangeable: encoder" in str(replace(found, check=wrong)).replace("\n         ", " ")


def test_the_header_alone_is_not_checked() -> None:
    assert hl.coverage(Net()).check is None
