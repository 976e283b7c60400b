"""Text and pictures: 80 columns, nothing a stranger wrote becomes markup, every verdict has its sentence."""

from __future__ import annotations

from pathlib import Path

import pytest

from hf_lineage.records import Candidate, Claim, Lineage, ModelRef, printable
from hf_lineage.report.plots import plot_family, plot_lineage
from hf_lineage.report.text import code, markdown, p_text, sentence, shorten, table

BLOCKS = {
    "weights": {
        "blocks": {f"model.layers.{i}": {"distance": 0.1, "moved": i / 80, "correlation": 0.5} for i in range(80)}
    }
}
BEST = Candidate(
    "lab/a",
    "lab/a",
    probability=0.9,
    p_value=1e-9,
    p_raw=1e-10,
    log10_p=-9.0,
    distance=0.1,
    relation="finetune",
    evidence=BLOCKS,
)
OTHER = Candidate(
    "lab/b",
    "lab/b",
    probability=0.05,
    p_value=0.4,
    p_raw=0.4,
    log10_p=-0.4,
    distance=0.3,
    relation="none",
    evidence=BLOCKS,
)
GONE = Candidate(
    "lab/c", "lab/c", status="unreadable", reasons=("It is not there. Look elsewhere, for example under another name.",)
)


def lineage(verdict="parent", candidates=(BEST, OTHER, GONE), **other) -> Lineage:
    parent = candidates[0].ref if verdict in ("parent", "identical") else None
    return Lineage(ModelRef("hub", "lab/child", "f" * 40), "lab/child", verdict, parent, 0.05, candidates, **other)


@pytest.mark.parametrize(
    ("verdict", "candidates", "words"),
    [
        ("parent", (BEST, OTHER), "Fine-tuned from lab/a"),
        ("identical", (BEST, OTHER), "Identical to lab/a"),
        ("none", (OTHER,), "Not lab/b, the only candidate"),
        ("common_origin", (BEST,), "which one came first does not show"),
        ("undecided", (BEST, OTHER), "singles out none of"),
        ("undecided", (Candidate("lab/a", "lab/a", distance=0.1),), "does not apply"),
        ("undecided", (GONE,), "no candidate could be compared"),
    ],
)
def test_sentences(verdict, candidates, words: str) -> None:
    assert words in sentence(lineage(verdict, candidates))


def test_the_table_fits_eighty_columns() -> None:
    long = Candidate(
        "organisation-with-a-name/" + "m" * 80,
        "x",
        **{f: getattr(BEST, f) for f in ("probability", "p_value", "log10_p", "distance")},
        relation="common_origin",
    )
    claims = (Claim("card", "o" * 60 + "/" + "n" * 60, status="contradicted"),)
    text = table(lineage(candidates=(long, OTHER, GONE), claims=claims, undeclared=("u" * 150,), notes=("word " * 60,)))
    assert max(map(len, text.splitlines())) <= 80
    assert "unreadable" in text and "It is not there" in text


@pytest.mark.parametrize("evil", ["a|b", "a`b", "<script>", "x\ny", "\x1b[31m", "a\u202eb", "[x](y)", "--> x"])
def test_names_are_defused(evil: str) -> None:
    candidate = Candidate(evil, evil, probability=1.0, log10_p=-9.0, p_value=1e-9, distance=0.1)
    text = markdown(lineage(candidates=(candidate,)))
    assert code(evil).strip("`").translate(str.maketrans("", "", "`|<>")) == code(evil).strip("`")
    assert (
        "<script>" not in text and "\x1b" not in text + table(lineage(candidates=(candidate,))) and "\u202e" not in text
    )
    rows = [line for line in text.splitlines() if line.startswith("| ")]
    assert all(row.count("|") == 6 for row in rows)


def test_markdown_has_everything() -> None:
    text = markdown(lineage(claims=(Claim("card", "lab/b", status="contradicted"),), undeclared=("lab/a",)))
    assert text.startswith("## Lineage of `lab/child`") and "| `lab/c` |" in text and "undeclared" in text


@pytest.mark.parametrize(
    ("log10_p", "text"),
    [
        (None, "-"),
        (0.0, "1.000"),
        (-1.5, "0.032"),
        (-9.0, "1e-9"),
        (-11.7, "2e-12"),
        (-9.01, "1e-9"),
        (-3361.0, "<1e-300"),
    ],
)
def test_p_values_for_people(log10_p: float | None, text: str) -> None:
    assert p_text(Candidate("a", "a", log10_p=log10_p)) == text


def test_small_helpers() -> None:
    assert printable("a\tb\x00") == "a b?" and shorten("x" * 50, 20).count("x") == 19


@pytest.mark.parametrize("candidates", [(BEST, OTHER, GONE), (GONE,), tuple([BEST] * 30)], ids=["some", "none", "many"])
def test_pictures(tmp_path: Path, candidates) -> None:
    plot_lineage(lineage("undecided", candidates), tmp_path / "one.png")
    plot_family([lineage("undecided", candidates, claims=(Claim("card", "lab/b"),))] * 3, tmp_path / "many.png")
    assert all((tmp_path / name).stat().st_size > 4000 for name in ("one.png", "many.png"))
