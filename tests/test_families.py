"""The families really are what they claim: trained, distinct, reproducible, with a known truth."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from hf_lineage.errors import ArgumentError
from hf_lineage.experiments.families import MIN_ACCURACY, SIZES, Family, Member, build, train_family, train_unrelated

pytestmark = pytest.mark.integration

SMALL = {"widths": [512, 256, 128]}
SHALLOW: dict[str, dict] = {"fc": SMALL, "resnet": {"side": 20}}


def weights(member: Member) -> dict[str, torch.Tensor]:
    return load_file(member.path / "model.safetensors")


def cosine(left: torch.Tensor, right: torch.Tensor) -> float:
    return torch.nn.functional.cosine_similarity(left.flatten(), right.flatten(), dim=0).item()


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def family(tmp_path_factory) -> Family:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "cpu_count", lambda: 1)  # the demo's test trains in several processes
        return train_family(tmp_path_factory.mktemp("a"), "fc", roots=2, children=2, generations=3, sizes=SMALL)


def test_the_truth_is_recorded(family):
    assert family.dropped == 0 and len(family.members) == 2 + 4 + 4
    assert [member.generation for member in family.members] == [1] * 2 + [2] * 4 + [3] * 4
    assert {member.recipe["lr"] for member in family.children} == {1e-2, 1e-3, 1e-4}
    for child in family.children:
        parent = family.member(child.parent)
        assert parent.generation == child.generation - 1
        assert parent.recipe["classes"] != child.recipe["classes"]


def test_each_kept_member_learned_its_task(family):
    assert all(member.quality["accuracy"] >= MIN_ACCURACY for member in family.members)


def test_children_are_near_their_parent_and_no_one_elses(family):
    for child in family.children:
        parent, ours = family.member(child.parent), weights(child)["fc1.weight"]
        theirs = weights(parent)["fc1.weight"]
        assert not torch.equal(ours, theirs)
        line = child.name.split("-")[2]
        stranger = next(root for root in family.roots if not root.name.endswith(line))
        assert cosine(ours, theirs) > 0.3
        assert abs(cosine(ours, weights(stranger)["fc1.weight"])) < 0.1
        assert child.recipe["seed"] != parent.recipe["seed"]


def test_no_two_networks_share_an_initialisation(tmp_path):
    members = train_unrelated(tmp_path, "fc", 3, sizes=SMALL).members
    assert len({json.dumps({**member.recipe, "seed": 0}) for member in members}) == 1
    assert len({member.recipe["seed"] for member in members}) == 3
    for left in range(3):
        for right in range(left):
            ours, theirs = weights(members[left]), weights(members[right])
            assert abs(cosine(ours["fc2.weight"], theirs["fc2.weight"])) < 0.1


@pytest.mark.parametrize(("architecture", "children"), [("fc", 1), ("resnet", 0)])
def test_the_same_seed_gives_the_same_bytes(tmp_path, architecture, children):
    arguments = {"roots": 1, "children": children, "seed": 3, "sizes": SHALLOW[architecture]}
    first = train_family(tmp_path / "a", architecture, **arguments)
    second = train_family(tmp_path / "b", architecture, **arguments)
    assert len(first.members) == 1 + children
    for left, right in zip(first.members, second.members, strict=True):
        for file in ("model.safetensors", "config.json", "README.md"):
            assert (left.path / file).read_bytes() == (right.path / file).read_bytes()


def test_a_second_call_reads_the_folder(family):
    called = []
    arguments = {"roots": 2, "children": 2, "generations": 3, "sizes": SMALL}
    again = train_family(family.folder, "fc", **arguments, progress=lambda *step: called.append(step))
    assert again == family and called == []


def test_other_arguments_train_again_and_leave_nothing_behind(tmp_path):
    train_family(tmp_path, "fc", roots=2, children=0, sizes=SMALL)
    other = train_family(tmp_path, "fc", roots=1, children=0, sizes=SMALL, seed=1)
    assert [path.parent.name for path in tmp_path.rglob("model.safetensors")] == [
        member.path.name for member in other.members
    ]


def test_a_network_that_does_not_learn_is_dropped_with_its_line(tmp_path):
    family = train_family(tmp_path, "fc", roots=1, children=2, sizes={"widths": [1]})
    assert family.members == () and family.dropped == 1


def test_the_card_claims_the_parent_only_when_asked(family, tmp_path):
    child = family.children[0]
    card = (child.path / "README.md").read_text()
    assert card.startswith("---\n") and f"\nbase_model: {child.parent}\n" in card
    silent = train_family(tmp_path, "fc", roots=1, children=1, sizes=SMALL, claim=False)
    for member in silent.members:
        assert "base_model" not in (member.path / "README.md").read_text()
        assert "root" not in (member.path / "README.md").read_text().replace(member.name, "")


def test_weight_decay_kills_hidden_units(tmp_path):
    def dead(member: Member) -> float:
        norms = weights(member)["fc2.weight"].norm(dim=1)  # (256,)  what a unit of the second layer reads
        return (norms < 0.05 * norms.median()).float().mean().item()

    decayed = train_unrelated(tmp_path / "a", "fc", 2, weight_decay=0.01)
    plain = train_unrelated(tmp_path / "b", "fc", 1)
    assert len(decayed.members) == 2 and all(m.quality["accuracy"] >= MIN_ACCURACY for m in decayed.members)
    assert all(dead(member) >= 0.03 for member in decayed.members)
    assert dead(plain.members[0]) == 0


def test_same_recipe_makes_roots_differ_only_in_their_seed(tmp_path):
    roots = train_family(tmp_path, "fc", roots=2, children=0, sizes=SMALL, same_recipe=True).roots
    first, second = ({**root.recipe, "seed": 0} for root in roots)
    assert first == second and roots[0].recipe["seed"] != roots[1].recipe["seed"]


@pytest.mark.parametrize("architecture", ["resnet", "vit"])
def test_image_repos_hold_the_real_classes_keys(nursery, architecture):
    timm = pytest.importorskip("timm")
    made = nursery.family(architecture, "reduced")
    root, child = made.roots[0], made.children[0]
    for member in (root, child):
        config = json.loads((member.path / "config.json").read_text())
        model = timm.create_model(config["architecture"], num_classes=config["num_classes"], **config["model_args"])
        model.load_state_dict(weights(member))  # strict
    assert any("running_mean" in name for name in weights(child)) == (architecture == "resnet")


@pytest.mark.parametrize("architecture", ["llama", "bert"])
def test_text_repos_open_with_transformers(nursery, tmp_path, architecture):
    transformers = pytest.importorskip("transformers")
    child = nursery.family(architecture, "reduced").children[0]
    kind = {"llama": "AutoModelForCausalLM", "bert": "AutoModelForSequenceClassification"}[architecture]
    model, report = getattr(transformers, kind).from_pretrained(child.path, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    model.save_pretrained(tmp_path / "again")
    again = load_file(tmp_path / "again" / "model.safetensors")
    assert again.keys() == weights(child).keys()
    assert all(torch.equal(again[name], tensor) for name, tensor in weights(child).items())
    if architecture == "llama":
        assert child.quality["loss"] <= 0.8 * child.quality["unigram"]


@pytest.mark.parametrize("architecture", SIZES)
def test_sizes_reach_ten_megabytes(architecture):
    wide = {
        "fc": {"widths": [2048, 512, 128]}, "resnet": {"channels": [64, 128, 256, 512]},
        "vit": {"embed_dim": 192, "depth": 6}, "llama": {"hidden_size": 256, "intermediate_size": 1536},
        "bert": {"hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 3},
    }[architecture]  # fmt: skip
    model = build(architecture, 128, {**SIZES[architecture], **wide})
    assert sum(p.numel() * p.element_size() for p in model.parameters()) > 1e7


@pytest.mark.parametrize(("architecture", "sizes"), [("rnn", None), ("fc", {"depth": 3})])
def test_what_it_cannot_build_is_named(tmp_path: Path, architecture, sizes):
    with pytest.raises(ArgumentError, match="Expected"):
        train_family(tmp_path, architecture, sizes=sizes)
