"""A mergekit recipe says what was found, is the YAML it means to be, and cannot be steered by a stranger's name."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import yaml

from hf_lineage.answers.layers import BlockOrigin, LayerLineage, Share
from hf_lineage.answers.refs import ModelRef
from hf_lineage.report.recipe import recipe

A, B, C = "lab/alpha", "lab/beta", "lab/gamma"
PATH = "model.layers.{}"


def block(i: int, *found: tuple[str, int, float], kind: str = "tuned", stderr: float = 0.001, **other) -> BlockOrigin:
    mixture = tuple(Share(ref, PATH.format(there), weight, stderr) for ref, there, weight in found)
    parent = (mixture[0].ref, mixture[0].block) if mixture else (None, None)
    return BlockOrigin(PATH.format(i), i, kind, *parent, mixture=mixture, **other)  # type: ignore[arg-type]


def single(i: int, ref: str, there: int | None = None, **other) -> BlockOrigin:
    return block(i, (ref, i if there is None else there, 1.0), **other)


def answer(*blocks: BlockOrigin, refs=(A, B, C), depth: int = 4, **other) -> LayerLineage:
    ends = (BlockOrigin("stem", None, "equal", A, "stem"), BlockOrigin("head", None, "none"))
    places = {ref: ("stem", *(PATH.format(i) for i in range(depth)), "head") for ref in refs}
    scores = {ref: np.zeros((len(blocks) + 2, depth + 2)) for ref in refs}
    return LayerLineage(
        ModelRef("hub", "lab/child"), "lab/child", tuple(refs), (ends[0], *blocks, ends[1]), places, scores, **other
    )


def sources(*found: tuple[Any, ...]) -> dict[str, Any]:
    entries = []
    for ref, start, stop, *weight in found:
        entries.append({"model": ref, "layer_range": [start, stop]})
        entries[-1] |= {"parameters": {"weight": weight[0]}} if weight else {}
    return {"sources": entries}


def models(**weights: float) -> list[dict[str, Any]]:
    return [{"model": f"lab/{name}", "parameters": {"weight": weight}} for name, weight in weights.items()]


def body(layers: LayerLineage) -> Any:
    return yaml.safe_load(recipe(layers))


def comments(layers: LayerLineage) -> str:
    """As one line, unwrapped."""
    lines = [line for line in recipe(layers).splitlines() if line.startswith("#")]
    return " ".join(line.removeprefix("#").strip() for line in lines)


def test_one_model_is_one_slice() -> None:
    layers = answer(*(single(i, B) for i in range(4)), method="single", facts={"dtype": "bfloat16"})
    assert body(layers) == {"merge_method": "passthrough", "slices": [sources((B, 0, 4))], "dtype": "bfloat16"}


def test_runs_of_repeated_and_shifted_blocks() -> None:
    origins = [(A, 0), (A, 1), (A, 1), (A, 2), (B, 1), (B, 2), (B, 3), (A, 3), (C, 0)]
    layers = answer(*(single(i, ref, there) for i, (ref, there) in enumerate(origins)), method="passthrough")
    expected = [(A, 0, 2), (A, 1, 3), (B, 1, 4), (A, 3, 4), (C, 0, 1)]
    assert body(layers) == {"merge_method": "passthrough", "slices": [sources(run) for run in expected]}


def test_equal_weights_are_one_average_of_models() -> None:
    close = [block(i, (A, i, 0.6 + 0.002 * i), (B, i, 0.4 - 0.002 * i), kind="mixture") for i in range(4)]
    assert body(answer(*close, method="linear")) == {
        "merge_method": "linear", "models": models(alpha=0.603, beta=0.397)
    }  # fmt: skip
    within_errors = [block(i, (A, i, 0.6 + 0.05 * (i % 2)), (B, i, 0.4), kind="mixture", stderr=0.02) for i in range(4)]
    assert "models" in body(answer(*within_errors, method="linear"))


def test_weights_by_block_are_slices() -> None:
    weights = [0.6, 0.6, 0.3, 0.308]
    blocks = [block(i, (A, i, w), (B, i, 1 - w), kind="mixture") for i, w in enumerate(weights)]
    expected = [sources((A, 0, 2, 0.6), (B, 0, 2, 0.4)), sources((A, 2, 4, 0.304), (B, 2, 4, 0.696))]
    assert body(answer(*blocks, method="linear")) == {"merge_method": "linear", "slices": expected}


def test_part_of_a_model_is_a_slice_even_with_equal_weights() -> None:
    blocks = [block(i, (A, i + 1, 0.6), (B, i, 0.4), kind="mixture") for i in range(3)]
    assert body(answer(*blocks, method="linear"))["slices"] == [sources((A, 1, 4, 0.6), (B, 0, 3, 0.4))]


SLERP = {"slerp": {"base": B, "other": A, "t": 0.25004, "stderr": 0.001}}


def test_slerp() -> None:
    blocks = [block(i, (A, i, 0.26), (B, i, 0.76), kind="mixture") for i in range(4)]
    assert body(answer(*blocks, method="slerp", facts=SLERP | {"dtype": "float32"})) == {
        "merge_method": "slerp", "base_model": B, "models": [{"model": B}, {"model": A}], "parameters": {"t": 0.25},
        "dtype": "float32",
    }  # fmt: skip


def test_slerp_with_t_by_block() -> None:
    blocks = [block(i, (A, i, 0.3), (B, i, 0.7), kind="mixture", facts={"t": t}) for i, t in enumerate([0.1, 0.1, 0.5])]
    last = single(3, A)
    expected = [sources((B, 0, 2), (A, 0, 2)) | {"parameters": {"t": 0.1}}]
    expected += [sources((B, i, i + 1), (A, i, i + 1)) | {"parameters": {"t": t}} for i, t in ((2, 0.5), (3, 1.0))]
    assert body(answer(*blocks, last, method="slerp", facts=SLERP)) == {
        "merge_method": "slerp", "base_model": B, "slices": expected
    }  # fmt: skip


@pytest.mark.parametrize(
    ("method", "name", "more", "shared"),
    [
        ("task_arithmetic", "task_arithmetic", {}, {}),
        ("task_arithmetic", "task_arithmetic", {"lambda": 0.5}, {"parameters": {"lambda": 0.5}}),
        ("ties", "ties", {"lambda": 0.9}, {"parameters": {"normalize": True, "lambda": 0.9}}),
        ("dare", "dare_linear", {}, {}),
    ],
)
def test_changes_added_to_a_base(method, name, more, shared) -> None:
    density = {} if method == "task_arithmetic" else {"density": 0.5}
    deltas = [{"ref": B, "weight": 0.61234567, "stderr": 0.01} | density, {"ref": C, "weight": -0.2} | density]
    layers = answer(
        *(single(i, A) for i in range(4)), method=method, facts={method: {"base": A, "deltas": deltas} | more}
    )
    found = [
        {"model": B, "parameters": {"weight": 0.6123} | density},
        {"model": C, "parameters": {"weight": -0.2} | density},
    ]
    assert body(layers) == {"merge_method": name, "base_model": A, "models": found} | shared


def test_changes_that_vary_by_block_are_slices_with_their_base() -> None:
    facts = {"task_arithmetic": {"base": A, "deltas": [{"ref": B, "weight": 0.4}, {"ref": C, "weight": 0.2}]}}
    blocks = [block(i, (A, i, 0.8 - w), (B, i, w), (C, i, 0.2), kind="mixture") for i, w in enumerate([0.3, 0.3, 0.5])]
    blocks += [single(3, B), block(4, kind="undecided")]
    weights = [(0, 2, 0.3, 0.2), (2, 3, 0.5, 0.2), (3, 4, 1.0, 0.0), (4, 5, 0.4, 0.2)]
    expected = [sources((A, i, j), (B, i, j, b), (C, i, j, c)) for i, j, b, c in weights]
    found = body(answer(*blocks, depth=5, method="task_arithmetic", facts=facts))
    assert found == {"merge_method": "task_arithmetic", "base_model": A, "slices": expected}


def test_blocks_of_different_make_are_weighted_slices() -> None:
    blocks = [single(0, A, kind="equal"), block(1, (B, 1, 0.5), (A, 1, 0.5), kind="mixture"), single(2, C, 3)]
    expected = [sources((A, 0, 1, 1.0)), sources((A, 1, 2, 0.5), (B, 1, 2, 0.5)), sources((C, 3, 4, 1.0))]
    assert body(answer(*blocks, method="mixed")) == {"merge_method": "linear", "slices": expected}


def test_without_a_method_the_blocks_say_it() -> None:
    assert body(answer(single(0, A), single(1, B)))["merge_method"] == "passthrough"
    assert body(answer(single(0, A), block(1, (A, 1, 0.5), (B, 1, 0.5))))["merge_method"] == "linear"


def test_blocks_that_cannot_be_made_fall_back_on_the_nearest() -> None:
    layers = answer(single(0, A), block(1, kind="none"), block(2, kind="undecided"), single(3, A), method="mixed")
    layers.scores[B][2, [0, 4]] = 0.9, 0.4  # row 2 is layer 1, column 0 a stem
    layers.scores[C][2] = np.nan
    layers.scores[C][3, 1] = 0.2
    expected = [(A, 0, 1, 1.0), (B, 3, 4, 1.0), (C, 0, 1, 1.0), (A, 3, 4, 1.0)]
    assert body(layers)["slices"] == [sources(run) for run in expected]
    told = comments(layers)
    assert (
        f"model.layers.1: from none of the candidates. This recipe cannot make that; what is written here is the nearest, of {B}."
        in told
    )
    assert "model.layers.2: could not be decided. This recipe cannot make that" in told


def test_nothing_to_make() -> None:
    layers = answer(block(0, kind="none"), block(1, kind="none"), refs=())
    assert body(layers) == {"merge_method": "passthrough", "slices": []}
    assert "left out" in comments(layers) and "mergekit will refuse this file" in comments(layers)
    lost = answer(block(0, kind="none"), method="single")
    assert "left out" in comments(replace(lost, scores={ref: np.full((3, 6), np.nan) for ref in (A, B, C)}))


def test_many_lost_blocks_are_one_comment() -> None:
    layers = answer(*(block(i, kind="none") for i in range(80)), depth=80)
    assert "model.layers.0, model.layers.1, … model.layers.79 (80 blocks): from none" in comments(layers)


def test_comments_say_what_it_rests_on() -> None:
    mixed = block(0, (A, 0, 0.5), (A, 1, 0.3), kind="mixture", unknown=0.2)
    told = comments(answer(mixed, method="linear", residual=0.5, facts={"resynthesis": 0.012}))
    for words in (
        "lab/child as a mergekit recipe, reconstructed from its weights by hf_lineage.",
        "These numbers leave 1.2 % of the child's norm unexplained",
        "The stem (embeddings) came from lab/alpha;",
        "The head came from none of the candidates;",
        "Block numbers are mergekit's layers",
        "Up to 20 % of a block is explained by none of the candidates",
        "Where several blocks of one model were mixed, only the largest is kept",
    ):
        assert words in told
    assert "features alone" in comments(answer(single(0, A), evidence=("features",)))
    assert "leave 50 % of the child" in comments(
        answer(mixed, method="linear", residual=0.5, facts={"resynthesis": None})
    )


def test_a_head_that_mergekit_makes_of_too_few_models_is_told() -> None:
    last = block(1, (A, 1, 0.5), (B, 1, 0.5), kind="mixture")
    assert "the head from too few of them" in comments(answer(single(0, A), last, method="mixed"))
    assert "too few" not in comments(answer(replace(last), method="mixed"))


def test_an_architecture_that_mergekit_does_not_know() -> None:
    names = ("layer1.0", "layer1.1", "layer2.0", "layer2.1")
    blocks = [
        replace(single(i, ref), block=name, parent_block=name, mixture=(Share(ref, name, 1.0, 0.0),))
        for i, (name, ref) in enumerate(zip(names, (A, A, A, B), strict=True))
    ]
    layers = replace(answer(*blocks, method="passthrough"), places=dict.fromkeys((A, B, C), names))
    assert body(layers)["slices"] == [sources((A, 0, 3)), sources((B, 3, 4))]
    assert "mergekit does not know this architecture" in comments(layers)
    assert "does not know" not in comments(answer(single(0, A), method="passthrough"))


EVIL = [
    "a: b # c", "x\ny: 1", "x\r\n# z", "- &x [y]", "*x", "!!python/object:os.system", "{a}", "'\"", "\x1b[31m", "%x", "a\u2028b: c",
    "a\u0085b", "a\u202eb", "org/" + "n" * 196, "null", "1e3", "yes", "~", "? x", "|", ">", "@x", "`x`", "",
]  # fmt: skip


@pytest.mark.parametrize("evil", EVIL)
def test_names_are_quoted_and_comments_stay_comments(evil: str) -> None:
    blocks = [replace(single(i, evil), block=f"{evil}.{i}") for i in range(3)]
    lost = replace(block(3, kind="none"), block=evil)
    layers = replace(
        answer(*blocks, lost, refs=(evil,), method="passthrough", facts={"dtype": evil}), child=ModelRef("local", evil)
    )
    assert body(layers) == {"merge_method": "passthrough", "slices": [sources((evil, 0, 3)), sources((evil, 0, 1))]}
    text = recipe(layers)
    assert text.replace("\n", "").isprintable() and text.index("merge_method") > text.rindex("\n#")
    assert all(line.startswith("# ") for line in text.splitlines()[: text[: text.index("merge_method")].count("\n")])


@pytest.mark.parametrize("path", ["./a+b", "/models/x@2/child", "~/a+b@c"])
def test_a_path_is_no_adapter_and_no_revision(path: str) -> None:
    found = body(answer(single(0, path), refs=(path,), method="single"))["slices"][0]["sources"][0]
    assert found["model"] == {"model": {"path": path}}
    assert body(answer(single(0, "lab/a@v1"), refs=("lab/a@v1",)))["slices"][0]["sources"][0]["model"] == "lab/a@v1"


def test_models_are_pinned_to_the_commits_looked_at() -> None:
    layers = answer(*(single(i, B) for i in range(4)), method="single", revisions={A: None, B: "c" * 40})
    assert body(layers)["slices"] == [sources((f"{B}@{'c' * 40}", 0, 4))]
    deltas = [{"ref": B, "weight": 0.5, "density": 0.3}]
    mixed = [block(i, (B, i, 0.5), (A, i, 0.5), kind="mixture") for i in range(4)]
    made = body(answer(*mixed, method="dare", facts={"dare": {"base": A, "deltas": deltas}}, revisions={A: "d" * 40}))
    assert made["base_model"] == f"{A}@{'d' * 40}" and made["models"][0]["model"] == B
