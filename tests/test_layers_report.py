"""The origin of blocks as text and pictures: 80 columns, folding, nothing a stranger wrote becomes markup."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from hf_lineage.answers.layers import BlockOrigin, LayerLineage, Share
from hf_lineage.answers.refs import ModelRef
from hf_lineage.report.layers import fold, markdown, number, sentence, sources, table
from hf_lineage.report.plots import plot_layers

REFS = ("lab/alpha", "lab/beta", "lab/gamma")
EVIL = [
    "a|b", "a`b", "<script>", "x\ny", "\x1b[31m", "a\u202eb", "a: b # c", "- &x [y]", "'\"", "o" * 200,
    "org/" + "n" * 196, "{a}", "*x", "!!python/object:os.system", "%x", "a\u2028b", "a\u0085b", "$x^2$", r"$\frac$", "(<b>|x",
]  # fmt: skip


def origin(i: int, ref: str | None = REFS[0], there: int | None = None, kind="tuned", **other) -> BlockOrigin:
    there = i if there is None else there
    facts = {"moved": True} if there != i else {}
    path = None if ref is None else f"model.layers.{there}"
    mixture = () if ref is None else (Share(ref, str(path), 1.0, 0.0),)
    given = {"mixture": mixture, "unknown": 1.0 if kind == "none" else 0.0, "facts": facts, "log10_p": -40.0 - i}
    return BlockOrigin(f"model.layers.{i}", i, kind, ref, path, **given | other)  # type: ignore[arg-type]


def mixed(i: int, *weights: float, stderr: float = 0.001, unknown: float = 0.0) -> BlockOrigin:
    path = f"model.layers.{i}"
    mixture = tuple(Share(ref, path, w, stderr) for ref, w in zip(REFS, weights, strict=False))
    return origin(i, kind="mixture", mixture=mixture, unknown=unknown)


def ends(ref: str | None = REFS[0]) -> tuple[BlockOrigin, BlockOrigin]:
    kind = "none" if ref is None else "equal"
    first = BlockOrigin("stem", None, kind, ref, ref and "stem")
    return first, replace(first, block="head", parent_block=ref and "head")


def answer(blocks, refs=REFS, depth: int | None = None, **other) -> LayerLineage:
    stem, head = ends(refs[0] if refs else None)
    depth = len(blocks) if depth is None else depth
    every = (stem, *blocks, head)
    draw = np.random.default_rng(0)
    scores = {ref: draw.uniform(-0.01, 0.05, (len(every), depth + 2)) for ref in refs}
    for row, block in enumerate(every):
        for share in block.mixture:
            column = int(number(share.block)) if number(share.block).isdigit() else 0
            if share.ref in refs and column < depth:
                scores[share.ref][row, column + 1] = min(1.0, 0.2 + abs(share.weight))
    places = {ref: ("stem", *(f"model.layers.{i}" for i in range(depth)), "head") for ref in refs}
    return LayerLineage(
        ModelRef("hub", "lab/child", "f" * 40), "lab/child", tuple(refs), every, places, scores, **other
    )


def passthrough(**other) -> LayerLineage:
    blocks = [origin(i, kind="equal") for i in range(4)]
    blocks += [origin(i, REFS[1], i - 2) for i in range(4, 10)]
    return answer(blocks, method="passthrough", reasons=("ten of ten blocks have one source",), **other)


SLERP = {"slerp": {"base": REFS[0], "other": REFS[1], "t": 0.3, "stderr": 0.002}}
WHOLE = (Share(REFS[0], "", 0.62, 0.002), Share(REFS[1], "", 0.37, 0.002))
ADDED = [{"ref": REFS[1], "weight": 0.6, "stderr": 0.01}, {"ref": REFS[2], "weight": -0.25, "stderr": 0.01}]


def deltas(name: str, **more) -> dict:
    return {name: {"base": REFS[0], "deltas": [delta | more for delta in ADDED]}}


METHODS = {
    "single": answer([origin(i) for i in range(6)], method="single", residual=0.02),
    "passthrough": passthrough(),
    "linear": answer([mixed(i, 0.62, 0.37, unknown=0.01) for i in range(6)], mixture=WHOLE, unknown=0.01, method="linear"),
    "slerp": answer([mixed(i, 0.7, 0.3) for i in range(6)], mixture=WHOLE, method="slerp", facts=SLERP),
    "task_arithmetic": answer(
        [mixed(i, 0.65, 0.6, -0.25) for i in range(6)], method="task_arithmetic", facts=deltas("task_arithmetic")
    ),
    "ties": answer([mixed(i, 0.65, 0.6, -0.25) for i in range(6)], method="ties", facts=deltas("ties", density=0.5)),
    "dare": answer([mixed(i, 0.65, 0.6, -0.25) for i in range(6)], method="dare", facts=deltas("dare", density=0.5)),
    "mixed": answer([origin(0, kind="equal"), mixed(1, 0.5, 0.5), origin(2, None, kind="none"), origin(3, REFS[2], 5)], depth=6, method="mixed"),
    "none": answer([origin(i, None, kind="none") for i in range(6)]),
    "undecided": answer([origin(0, None, kind="undecided"), origin(1, kind="undecided"), origin(2)]),
    "features": answer([origin(i, REFS[i % 2], probability=0.4 + 0.1 * i, mixture=(), kind="undecided", log10_p=None) for i in range(6)], evidence=("features",)),
    "long": answer([*(origin(i) for i in range(70)), *(origin(i, REFS[2], i - 60, kind="equal") for i in range(70, 82))], method="passthrough"),
    "no candidates": answer([origin(i, None, kind="undecided") for i in range(3)], refs=()),
    "no blocks": replace(answer([]), blocks=()),
    "nan": replace(answer([origin(0)]), scores={ref: np.full((3, 3), math.nan) for ref in REFS}),
}  # fmt: skip
LAYERS = pytest.mark.parametrize("layers", METHODS.values(), ids=METHODS)


@LAYERS
def test_the_table_fits_eighty_columns(layers: LayerLineage) -> None:
    text = table(layers)
    assert max(map(len, text.splitlines())) <= 80 and text.startswith("child    lab/child @ ffffffffff\nmade     ")
    assert all(line.isprintable() for line in text.splitlines())
    assert len(text.splitlines()) < 40, "82 blocks stay readable"


@pytest.mark.integration
@LAYERS
def test_pictures(layers: LayerLineage, tmp_path: Path) -> None:
    plot_layers(layers, tmp_path / "layers.png")
    assert (tmp_path / "layers.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("method", "words"),
    [
        ("single", "All 6 blocks come from lab/alpha, 6 tuned. That leaves 2 % of the norm unexplained."),
        ("passthrough", "(passthrough): 6 of lab/beta and 4 of lab/alpha; 6 at another position there."),
        ("linear", "An average of weights (linear): 0.62 lab/alpha and 0.37 lab/beta."),
        ("slerp", "(slerp) from lab/alpha to lab/beta, t = 0.3 ± 0.002."),
        ("task_arithmetic", "lab/alpha, to which changes were added (task arithmetic): 0.6 lab/beta and -0.25 lab/gamma."),
        ("ties", "(TIES): 0.6 lab/beta"),
        ("dare", "(DARE): 0.6 lab/beta"),
        ("mixed", "several ways (mixed): 1 unchanged, 1 a mixture, 1 from none of them and 1 tuned."),
        ("none", "None of its 6 blocks shows an origin in the 3 compared."),
        ("undecided", "How it was made does not show: 2 undecided and 1 tuned."),
        ("features", "By features alone, which name the nearest candidate and no origin: 3 of lab/alpha"),
        ("no candidates", "Undecided: no candidate has a block to compare with it."),
    ],
)  # fmt: skip
def test_sentences(method: str, words: str) -> None:
    assert words in sentence(METHODS[method])


def test_blocks_that_say_the_same_share_a_line() -> None:
    lines = [" ".join(line.split()) for line in table(passthrough()).splitlines()]
    assert [len(row) for row in fold(passthrough())] == [1, 4, 6, 1]
    assert "layers.0 - layers.3 lab/alpha 1.00 1e-40 equal" in lines
    assert "layers.4 - layers.9 lab/beta <- 2 - 7 1.00 1e-44 tuned" in lines


def test_what_is_left_is_told_of_the_worst_and_an_untested_block_stands_alone() -> None:
    blocks = [replace(origin(i), residual=0.01 * (i + 1)) for i in range(3)]
    text = table(answer([*blocks, replace(origin(3), log10_p=None, p_value=None)]))
    rows = [line.split() for line in text.splitlines() if line.startswith("  layers.")]
    assert [row[:3] for row in rows] == [["layers.0", "-", "layers.2"], ["layers.3", "lab/alpha", "1.00"]]
    assert "3%" in rows[0] and "3%" not in rows[1]


def test_local_candidates_of_one_folder_are_called_by_their_names() -> None:
    refs = ("/a/long/way/down/to/one", "/a/long/way/down/to/two")
    text = table(answer([origin(0, refs[1])], refs=refs))
    assert "  layers.0" in text and "two " in text and "/a/long" not in text.partition("block ")[2].partition("read")[0]


def test_another_shift_kind_or_share_is_another_line() -> None:
    blocks = [
        origin(0),
        origin(1, there=0),
        origin(2, there=1),
        origin(3, kind="equal"),
        mixed(4, 0.6, 0.4),
        mixed(5, 0.7, 0.3),
    ]
    assert [len(row) for row in fold(answer(blocks))] == [1, 1, 2, 1, 1, 1, 1]


def test_a_mixture_has_a_line_for_each_source_and_errors_for_the_whole() -> None:
    layers = METHODS["linear"]
    lines = table(layers).splitlines()
    assert "mixture  lab/alpha  0.620 ± 0.002" in lines and "         (unknown)  0.010" in lines
    at = next(i for i, line in enumerate(lines) if line.startswith("  layers.0"))
    assert [line.split()[:2] for line in lines[at + 1 : at + 3]] == [["lab/beta", "0.37"], ["(unknown)", "0.01"]]
    assert "(unknown)" not in table(answer([mixed(0, 0.5, 0.497, unknown=0.003)]))


def test_a_slerp_that_varies_is_told_as_a_range() -> None:
    blocks = [replace(mixed(i, 0.7, 0.3), facts={"t": 0.2 + 0.1 * i}) for i in range(4)]
    assert "lab/beta, t from 0.20 to 0.50 by block." in sentence(answer(blocks, method="slerp", facts=SLERP))


def test_features_alone_show_probabilities() -> None:
    layers = METHODS["features"]
    assert [s.weight for b in layers.blocks[1:3] for s in sources(layers, b)] == [0.4, 0.5]
    assert "0.40 - undecided" in " ".join(table(layers).split()) and " match " in table(layers)


def test_a_resnet_keeps_its_paths() -> None:
    names = ["layer1.0", "layer1.1", "layer2.0"]
    blocks = [replace(origin(i), block=name, mixture=(Share(REFS[0], name, 1.0, 0.0),)) for i, name in enumerate(names)]
    layers = replace(answer(blocks), places=dict.fromkeys(REFS, tuple(names)))
    assert "layer1.0 - layer2.0  lab/alpha" in table(layers)


@pytest.mark.parametrize("evil", EVIL)
def test_names_are_defused(evil: str) -> None:
    refs = (evil, REFS[1])
    blocks = [replace(origin(i, evil, i + 1), block=f"{evil}.{i}") for i in range(3)]
    layers = replace(
        answer(blocks, refs=refs, depth=5, method="passthrough", notes=(evil,), reasons=(evil,)),
        child=ModelRef("local", evil),
    )
    text, marked = table(layers), markdown(layers)
    assert max(map(len, text.splitlines())) <= 80
    assert all(line.isprintable() for line in [*text.split("\n"), *marked.split("\n")])
    assert "<script>" not in marked
    rows = [line for line in marked.splitlines() if line.startswith("| ")]
    assert all(row.count("|") == 7 and row.count("`") % 2 == 0 for row in rows)


@pytest.mark.integration
def test_names_in_a_picture_are_no_formulas(tmp_path: Path) -> None:
    blocks = [replace(origin(i, evil, i + 1), block=f"{evil}.{i}") for i, evil in enumerate(EVIL)]
    layers = replace(answer(blocks, refs=EVIL, depth=30), child=ModelRef("local", r"$\frac$"))
    plot_layers(layers, tmp_path / "layers.png")


@LAYERS
def test_markdown_has_every_block(layers: LayerLineage) -> None:
    text = markdown(layers)
    assert text.startswith("## Layers of `lab/child`") and "| block | origin |" in text
    assert not layers.blocks or "| `stem` |" in text


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> dict:
    """`trace_layers` replaced by a finished answer; what it was asked."""
    seen: dict = {}

    def trace_layers(child, candidates=None, **options) -> LayerLineage:
        seen.update(options, child=child, candidates=candidates)
        return passthrough()

    monkeypatch.setattr("hf_lineage.tasks.trace_layers.trace_layers", trace_layers, raising=False)
    return seen


def test_the_command_hands_its_options_over(run, asked: dict) -> None:
    options = [
        "--evidence",
        "features",
        "--probes",
        "64",
        "--metric",
        "cka",
        "--step",
        "0.1",
        "--sample",
        "1%",
        "--seed",
        "3",
    ]
    options += ["--alpha", "0.01", "--max-bytes", "99", "--device", "cpu", "--allow-pickle"]
    code, out, err = run("layers", "lab/child", "-c", "lab/a", "-c", "lab/b", *options)
    assert (code, err) == (0, "") and out == table(passthrough()) + "\n"
    assert asked.pop("progress") and asked == {
        "child": "lab/child", "candidates": ["lab/a", "lab/b"], "evidence": ("features",), "probes": 64,
        "metric": "cka", "step": 0.1, "sample": "1%", "seed": 3, "alpha": 0.01, "max_bytes": 99, "device": "cpu",
        "memory": None,
        "allow_pickle": True, "detector": None, "verify": False,
    }  # fmt: skip


def test_the_command_without_options(run, asked: dict) -> None:
    assert run("layers", "lab/child")[0] == 0
    assert asked["candidates"] is None and asked["evidence"] == ("weights",) and asked["step"] == "auto"


def test_the_command_saves_and_prints(run, asked: dict, tmp_path: Path) -> None:
    picture, recipe = tmp_path / "x.png", tmp_path / "x.yml"
    code, out, err = run("layers", "lab/child", "--json", "--plot", picture, "--recipe", recipe)
    assert code == 0 and out == passthrough().to_json() + "\n"
    assert err == f"picture: {picture}\nrecipe: {recipe}\n"
    assert picture.stat().st_size > 5000 and recipe.read_text() == passthrough().recipe()


@pytest.mark.parametrize("option", [("--plot", "x.xyz"), ("--plot", "no/x.png"), ("--recipe", "no/x.yml")])
def test_files_that_cannot_be_saved_are_refused_before_reading(run, asked: dict, tmp_path: Path, option) -> None:
    code, out, err = run("layers", "lab/child", option[0], tmp_path / option[1])
    assert (code, out, asked) == (2, "", {}) and err.startswith("error: Expected a ")
