"""Text and pictures: 80 columns, nothing a stranger wrote becomes markup, every verdict has its sentence."""

from __future__ import annotations

import itertools
import re
from dataclasses import replace
from pathlib import Path

import pytest
from matplotlib.colors import to_hex

import hf_lineage.answers.base
from hf_lineage.answers.lineage import Candidate, Claim, Lineage, Order
from hf_lineage.answers.refs import ModelRef, printable
from hf_lineage.report.format import code, p_text, shorten
from hf_lineage.report.plots import LINE, labels, plot_family, plot_lineage
from hf_lineage.report.sentences import explanation, sentence
from hf_lineage.report.text import markdown, table

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
        ("common_origin", (replace(BEST, relation="common_origin"),), "Which of the two came first does not show"),
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
    gone = replace(GONE, ref="lab/" + "g" * 90)
    best = replace(BEST, ref=long.ref)
    answers = [
        lineage(verdict, (best, OTHER, gone), claims=claims) for verdict in ("parent", "common_origin", "identical")
    ]
    answers.append(lineage("undecided", (OTHER, gone), claims=claims))
    for answer, width in itertools.product(answers, (40, 80, 200)):
        whole = "".join(table(answer, width).split())
        assert gone.ref in whole and claims[0].ref in whole, "names are cut nowhere"
        assert answer.verdict == "undecided" or long.ref in "".join(sentence(answer).split())


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


def test_of_hundreds_of_strangers_some_are_shown() -> None:
    found = lineage(candidates=(BEST, *(replace(OTHER, ref=f"lab/s{i:03}") for i in range(200)), GONE))
    for text in (table(found), markdown(found)):
        assert text.count("lab/s") == 12 and "… and 188 more without a sign of a common origin" in text
        assert "lab/a" in text and "lab/c" in text, "relatives and what could not be read are all there"
    assert (
        table(lineage(candidates=(BEST, *(replace(OTHER, ref=f"s{i}") for i in range(13))))).count("unrelated\n") == 13
    )


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
    assert p_text(log10_p) == text


def test_small_helpers() -> None:
    assert printable("a\tb\x00") == "a b?" and shorten("x" * 50, 20).count("x") == 19


@pytest.mark.integration
@pytest.mark.parametrize("candidates", [(BEST, OTHER, GONE), (GONE,), tuple([BEST] * 30)], ids=["some", "none", "many"])
def test_pictures(tmp_path: Path, candidates) -> None:
    plot_lineage(lineage("undecided", candidates), tmp_path / "one.png")
    plot_family([lineage("undecided", candidates, claims=(Claim("card", "lab/b"),))] * 3, tmp_path / "many.png")
    assert all((tmp_path / name).stat().st_size > 4000 for name in ("one.png", "many.png"))


def test_a_picture_says_what_its_frames_are_and_cuts_no_name() -> None:
    claims = (Claim("card", "lab/b", status="contradicted"), Claim("config", "lab/a", status="confirmed"))
    axes = plot_family([lineage(candidates=(BEST, OTHER), claims=claims)]).axes[0]
    frames = [patch.get_edgecolor() for patch in axes.patches if not patch.get_fill()]
    assert to_hex(LINE) in map(to_hex, frames) and "#ffffff" in map(to_hex, frames), "red, and white on a dark cell"
    assert "In a frame: the model that the card names; red:" in " ".join(axes.get_title().split())
    long = ["my-org/" + "m" * 70, "my-org/" + "n" * 20]
    assert ["".join(label.split()) for label in labels(long)] == [name.removeprefix("my-org/") for name in long]
    shown = plot_lineage(lineage(candidates=(replace(BEST, ref=long[0]), replace(OTHER, ref=long[1])))).axes[0]
    assert "1 in a million" in [tick.get_text() for tick in shown.get_xticklabels()], "words, no p-values"
    assert long[0].removeprefix("my-org/") in "".join(shown.get_yticklabels()[0].get_text().split())


def test_an_explanation_says_what_it_rests_on() -> None:
    facts = {"moved": 0.2, "first": "candidate", "change": "other", "equal_share": 0.0}
    told = explanation(lineage(candidates=(replace(BEST, facts=facts), OTHER), claims=(Claim("card", "lab/a"),)))
    for words in (
        "Fine-tuned from lab/a",
        "trained separately",
        "3.00 times as far",
        "20 %",
        "came first",
        "card names",
    ):
        assert words in told


@pytest.mark.parametrize(
    ("relation", "facts", "words"),
    [
        ("quantized", {"bits": 4, "scheme": "row", "change": "quantized"}, "rounded to 4 bits (row)"),
        ("quantized", {"cast": "BF16", "change": "cast"}, "A bfloat16 copy of lab/a"),
        ("cast", {"cast": "F16", "change": "cast"}, "A half-precision copy of lab/a"),
        (
            "adapter",
            {"rank": 8, "low_rank_tensors": 16, "tensors": {"adapter": 16, "equal": 22}},
            "8 update in 16 of 38",
        ),
        ("pruned", {"zeros": 0.5, "kept_equal": 1.0}, "lab/a with 50 % of its weights set to zero"),
        ("pruned", {"zeros": 0.5, "kept_equal": 0.1}, "Fine-tuned from lab/a, 50 % of the weights set to zero"),
        ("adapter", {"rank": 16, "change": "adapter"}, "by a rank-16 update"),
        (
            "resized",
            {"vocabulary": {"child": 144, "candidate": 128}, "change": "other"},
            "with 16 tokens added (128 to 144)",
        ),
        ("partial", {"equal_share": 0.5, "change": "other"}, "50 % of the weights unchanged"),
        ("finetune", {"change": "noise", "noise": 1.0}, "white noise of 1 standard"),
    ],
)
def test_a_relation_is_told_with_its_fact(relation, facts, words: str) -> None:
    facts = {"moved": 0.2, "first": "candidate", **facts}
    assert words in sentence(lineage(candidates=(replace(BEST, relation=relation, facts=facts),)))


@pytest.mark.parametrize(
    ("first", "words"),
    [("child", "made from this one"), ("neither", "does not show"), (None, "does not show"),
     ("candidate", "Whether it is the parent, or a relative of the parent, stays open")],
)  # fmt: skip
def test_a_common_origin_says_who_came_first(first, words: str) -> None:
    best = replace(BEST, relation="common_origin", facts={"moved": 0.2, "first": first})
    assert words in sentence(lineage("common_origin", (best,)))


def test_every_renderer_that_answers_look_up_is_there() -> None:
    room = Path(hf_lineage.answers.base.__file__).parent
    names = {name for file in room.glob("*.py") for name in re.findall(r"report\([\"'](\w+\.\w+)", file.read_text())}
    assert len(names) > 15 and all(callable(hf_lineage.answers.base.report(name)) for name in names)


def test_an_explanation_has_a_line_for_each_question() -> None:
    """Related, nearest, who came first, the parent itself: each once, and no order beyond what was measured."""
    facts = {"moved": 0.004, "first": "candidate", "change": "other", "equal_share": 0.0}
    reason = "the roundings of 23 M weights show that the candidate came first"
    order = Order(1.0, 0.06, 1.1, "rounding_edges", 22_700_000, 0.3 * (BEST.distance or 0), reason)
    told = explanation(lineage(candidates=(replace(BEST, facts=facts, order=order), OTHER))).splitlines()
    assert [line.split("?")[0] for line in told[1:]] == ["Related", "Nearest", "Who came first", "The parent itself"]
    assert "within 30 % of the distance" in told[0] and "cannot tell lab/a from a model within that" in told[4]
    assert "of 23 M weights show that lab/a came first (λ = 1.00 ± 0.06, where 1 is a parent" in told[3]
    assert "lab/a is; the next candidate is 3.00 times as far away" in told[2]

    open_ = Order(-0.2, 0.6, 1.0, "growth", 1000, None, "the growth of the rows of 1 k weights leave open who (λ = 0)")
    far = explanation(lineage(candidates=(replace(BEST, facts=facts, order=open_),)))
    assert "That model came first: the change" in far and "leave open" not in far, "the origin's position told it"
    nothing = replace(BEST, facts={**facts, "first": None}, relation="common_origin")
    silent = explanation(lineage("common_origin", (nothing,))).splitlines()
    assert silent[3].startswith("Who came first? Nothing that could tell it shows") and "λ" not in "".join(silent)
    unsure = explanation(lineage("common_origin", (replace(nothing, order=open_),))).splitlines()
    assert "leave open who (λ = −0.20 ± 0.60" in unsure[3]
