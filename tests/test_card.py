"""Surgery on cards: our section and our lines go in, every other byte stays, and nothing a stranger wrote gets out."""

from __future__ import annotations

import json
import random
import re
from dataclasses import replace
from typing import Any

import huggingface_hub.repocard
import pytest
import yaml
from builders import LINES, inserted, random_card, without_ours
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_lineage.answers.layers import BlockOrigin, LayerLineage, Share
from hf_lineage.answers.lineage import Candidate, Claim, Lineage
from hf_lineage.answers.refs import ModelRef
from hf_lineage.checkpoints.texts import yaml_data
from hf_lineage.errors import CardError
from hf_lineage.report import card
from hf_lineage.report.diff import diff
from hf_lineage.report.privacy import public, renaming
from hf_lineage.report.section import END, START, comment_json, description, is_up_to_date, licences, section

A, B, C = "a" * 40, "b" * 40, "c" * 40
BEST = Candidate(
    "lab/parent", "lab/parent", A, "compared", 0.97, 1e-12, 1e-12, "proven", -12.0, 0.01, "finetune",
    {"first": "candidate", "moved": 0.1}, evidence={"weights": {}, "calibration": {}},
)  # fmt: skip
OTHER = Candidate("lab/other", "lab/other", B, "compared", 0.01, 0.4, 0.2, "monte_carlo", -0.4, 0.2, "none")


def answer(*candidates: Candidate, **about: Any) -> Lineage:
    told: dict[str, Any] = {"verdict": "parent", "parent": "lab/parent", "none_probability": 0.02}
    told |= {"versions": {"hf_lineage": "0.1.0"}, **about}
    child = told.pop("child", ModelRef("hub", "lab/child", C))
    return Lineage(child=child, requested=child.name, candidates=candidates or (BEST, OTHER), **told)


def layered(**about: Any) -> LayerLineage:
    blocks = tuple(
        BlockOrigin(
            f"blocks.{i}", i, "tuned", ref, f"blocks.{i}", 0.97, 1e-9, -9.0, (Share(ref, f"blocks.{i}", 1.0, 0.0),), 0.0
        )
        for i, ref in enumerate(("lab/parent", "lab/other"))
    )
    told: dict[str, Any] = {"candidates": ("lab/parent", "lab/other"), "blocks": blocks, "places": {}, "scores": {}}
    told |= {"revisions": {"lab/parent": A, "lab/other": B}, "method": "passthrough"}
    told["mixture"] = (Share("lab/parent", "", 0.5, 0.0), Share("lab/other", "", 0.5, 0.0))
    return LayerLineage(child=ModelRef("hub", "lab/child", C), requested="lab/child", **told | about)


SECTION = section(answer())


def edited(text: str, lineage: Lineage | None = None, confirmed: tuple[str, ...] = ()) -> tuple[str, list[str]]:
    lineage = lineage or answer()
    return card.edit(text, section(lineage), card.wanted(lineage), yaml_data, confirmed)


def without_section(text: str) -> str:
    return text.replace(card.current(text) or "", "", 1).rstrip("\r\n")


def test_the_pattern_is_the_hubs_own() -> None:
    assert card.BLOCK.pattern == huggingface_hub.repocard.REGEX_YAML_BLOCK.pattern


class TestMetadata:
    @pytest.mark.parametrize(
        ("before", "after"),
        [
            ("", f"---\n{LINES}---"),
            ("# Title", f"---\n{LINES}---\n# Title"),
            ("\n\n# Title", f"---\n{LINES}---\n\n\n# Title"),
            ("---\nlicense: mit\n---\n# T", f"---\nlicense: mit\n{LINES}---\n# T"),
            ("---\nlicense: mit\n---", f"---\nlicense: mit\n{LINES}---"),
            (
                "---\nlicense: 'mit' # why\ntags: [a, b]\n---  \nx",
                f"---\nlicense: 'mit' # why\ntags: [a, b]\n{LINES}---  \nx",
            ),
            ("---\n---\n# T\n\n---\nx", f"---\n{LINES}---\n# T\n\n---\nx"),
            # the Hub reads on to the next mark: what stands there are the metadata
            ("---\n---\nlicense: mit\n---", f"---\n---\nlicense: mit\n{LINES}---"),
            ("---\n---\nlicense: mit\n---\n# T", f"---\n---\nlicense: mit\n{LINES}---\n# T"),
            ("---\n\n---\n# T", f"---\n{LINES}---\n# T"),
            ("---\n# only a comment\n---\n", f"---\n# only a comment\n{LINES}---"),
            (
                "---\n  license: mit\n---\n",
                "---\n  license: mit\n  base_model: lab/parent\n  base_model_relation: finetune\n---",
            ),
            ("---\na: &x [1, .nan]\nb: *x\n---\n", f"---\na: &x [1, .nan]\nb: *x\n{LINES}---"),
            # below a literal the last line end would become part of it
            ("---\na: |\n  base_model: x/y\n---\n", f"---\n{LINES}a: |\n  base_model: x/y\n---"),
            ('---\na: "base_model: x\n  y"\n---\n', f'---\na: "base_model: x\n  y"\n{LINES}---'),
            ("---\nx:\n  base_model: a/b\n---\n", f"---\nx:\n  base_model: a/b\n{LINES}---"),
            (
                "---\nbase_model_relation: finetune\n---\n",
                "---\nbase_model_relation: finetune\nbase_model: lab/parent\n---",
            ),
        ],
    )
    def test_is_added_where_there_is_none(self, before: str, after: str) -> None:
        result, notes = edited(before)
        assert (without_section(result), notes) == (after, [])
        assert edited(result) == (result, [])

    @pytest.mark.parametrize("newline", ["\r\n", "\n"])
    @pytest.mark.parametrize("mark", ["", "\ufeff"])
    def test_keeps_line_ends_and_byte_order_mark(self, newline: str, mark: str) -> None:
        text = mark + "---\nlicense: mit\n---\n# T\n".replace("\n", newline)
        result, _ = edited(text)
        assert without_section(result) == mark + f"---\nlicense: mit\n{LINES}---\n# T".replace("\n", newline)
        assert result.count("\n") == result.count(newline)
        assert edited(result) == (result, [])

    def test_of_mixed_line_ends_takes_the_dominant(self) -> None:
        result, _ = edited("# a\r\nb\r\nc\n")
        assert result.endswith(END + "\r\n") and "# a\r\nb\r\nc\n\r\n" + START in result

    def test_an_old_mac_card_keeps_its_line_ends(self) -> None:
        result, notes = edited("---\rlicense: mit\r---\r# T\r")
        assert "\n" not in result and result.startswith("---\rlicense: mit\r---\r# T\r\r" + START)
        assert "nothing was added" in notes[0]

    @pytest.mark.parametrize(
        ("yaml_text", "note"),
        [
            ("{license: mit}", "safely"),
            ("{license: mit,\n tags: [a]}", "safely"),
            ("a: [", "cannot be read"),
            ("- a\n- b", "cannot be read"),
            ("just words", "cannot be read"),
            ("{}", "cannot be read"),
            ("a: !!python/object:os.system x", "cannot be read"),
            ("base_model: x/y", "declares `base_model` `x/y`"),
            ('"base_model": x/y', "declares `base_model` `x/y`"),
            ("'base_model' : [x/y, lab/parent]", "declares `base_model` `x/y, lab/parent`"),
            ("base_model:", "empty `base_model`"),
            ("base_model: null", "empty `base_model`"),
            ("base_model: []", "empty `base_model`"),
            ("base_model: 5", "declares `base_model` `5`"),
            ("base_model: '`--><h1>@all'", "declares `base_model` `?--??h1?@all`"),
            ("x: &x {base_model: x/y}\n<<: *x", "declares `base_model` `x/y`"),
        ],
    )  # fmt: skip
    def test_is_left_alone_and_said_why(self, yaml_text: str, note: str) -> None:
        text = f"---\n{yaml_text}\n---\n# T\n"
        result, notes = edited(text)
        assert result == f"{text}\n{SECTION}\n" and note in notes[0]

    @pytest.mark.parametrize("text", ["---\nlicense: mit\n", "---  \nlicense: mit\n---\n", "----\n"])
    def test_a_block_that_the_hub_does_not_see_is_left_alone(self, text: str) -> None:
        result, notes = edited(text)
        assert result == f"{text}\n{SECTION}\n" and "do not end" in notes[0]

    def test_a_declared_base_that_is_the_parent_is_no_news(self) -> None:
        assert edited("---\nbase_model: lab/parent\n---\n")[1] == []
        assert edited("---\nbase_model: [lab/parent]\n---\n")[1] == []
        assert edited("---\nbase_model: old/name\n---\n", confirmed=("old/name",))[1] == []

    def test_another_declared_relation_is_kept_and_told(self) -> None:
        result, notes = edited("---\nbase_model_relation: adapter\n---\n")
        assert without_section(result) == "---\nbase_model_relation: adapter\nbase_model: lab/parent\n---"
        assert "`adapter`" in notes[0]

    def test_a_name_without_a_slash_stays_a_text(self) -> None:
        best = replace(BEST, ref="123", requested="123")
        result, _ = edited("---\nlicense: mit\n---\n", answer(best, parent="123"))
        assert yaml.safe_load(card.BLOCK.search(result)[2])["base_model"] == "123"  # type: ignore[index]

    def test_too_much_yaml_is_left_alone(self) -> None:
        result, notes = edited(f"---\na: {'x' * card.MAX_METADATA}\n---\n")
        assert "base_model" not in result[: card.MAX_METADATA] and "cannot be read" in notes[0]

    def test_many_lines_of_comments_take_no_time(self) -> None:
        text = "---\r\n" + "# a\r\n" * 2000 + "a: [\r\n---\r\n"
        assert "cannot be read" in edited(text)[1][0]


class TestWhatIsSureEnough:
    @pytest.mark.parametrize(
        ("change", "about"),
        [
            ({"probability": 0.74}, {}),
            ({"p_value": 2e-3}, {}),
            ({"p_value": None}, {}),
            ({"relation": "sibling"}, {}),
            ({"ref": "./parent"}, {"parent": "./parent"}),
            ({"ref": "module:Net"}, {"parent": "module:Net"}),
            ({}, {"verdict": "common_origin", "parent": None}),
            ({}, {"verdict": "none", "parent": None}),
            ({}, {"verdict": "undecided", "parent": None}),
            ({}, {"alpha": 1e-13}),
        ],
    )
    def test_nothing_else_reaches_the_metadata(self, change: dict, about: dict) -> None:
        assert card.wanted(answer(replace(BEST, **change), OTHER, **about)) == {}

    @pytest.mark.parametrize(
        ("relation", "declared"),
        [
            *((name, "finetune") for name in ("finetune", "head_changed", "partial", "resized", "pruned")),
            ("adapter", "adapter"), ("quantized", "quantized"), ("merge", "merge"),
        ],
    )  # fmt: skip
    def test_relations_are_the_hubs(self, relation: Any, declared: str) -> None:
        found = card.wanted(answer(replace(BEST, relation=relation)))
        assert found == {"base_model": "lab/parent", "base_model_relation": declared}

    def test_a_folder_in_a_repo_is_the_repos(self) -> None:
        best = replace(BEST, ref="lab/pipe/unet", requested="lab/pipe/unet")
        assert card.wanted(answer(best, parent="lab/pipe/unet"))["base_model"] == "lab/pipe"

    def test_of_two_equal_models_none_is_the_base(self) -> None:
        """Else whoever uploads a copy could have the original's card name it."""
        best = replace(BEST, relation="identical")
        assert card.wanted(answer(best, verdict="identical")) == {}

    def test_a_merge_names_its_sources(self) -> None:
        lineage, layers = answer(verdict="common_origin", parent=None), layered()
        wanted = card.wanted(lineage, layers)
        assert wanted == {"base_model": ["lab/other", "lab/parent"], "base_model_relation": "merge"}
        result, _ = card.edit("---\nlicense: mit\n---\n", section(lineage, layers), wanted, yaml_data)
        assert "base_model:\n- lab/other\n- lab/parent\nbase_model_relation: merge\n---" in result

    @pytest.mark.parametrize(
        "about",
        [
            {"method": "single"},
            {"method": None},
            {"method": "mixed"},
            {
                "candidates": ("lab/parent", "./other"),
                "mixture": (Share("lab/parent", "", 0.5, 0), Share("./other", "", 0.5, 0)),
            },
            {"mixture": (Share("lab/parent", "", 0.5, 0), Share("lab/unheard", "", 0.5, 0))},
            {"blocks": tuple(replace(block, log10_p=-2.0) for block in layered().blocks)},
            {"mixture": (Share("lab/parent", "", 0.99, 0), Share("lab/other", "", 0.01, 0))},
        ],
    )
    def test_but_only_if_all_of_them_are_known_and_tested(self, about: dict) -> None:
        assert card.wanted(answer(verdict="common_origin", parent=None), layered(**about)) == {}

    def test_a_source_that_looks_like_a_child_needs_an_exact_fit(self) -> None:
        """Of a base and two of its children the base is nearly the average, too."""
        turned = replace(BEST, relation="descendant")
        lineage = answer(turned, OTHER, verdict="common_origin", parent=None)
        assert card.wanted(lineage, layered(residual=0.02)) == {} == card.wanted(lineage, layered(residual=None))
        layers = layered(residual=0.002)
        assert card.wanted(lineage, layers)["base_model"] == ["lab/other", "lab/parent"]
        text = section(lineage, layers)
        assert "A merge. Put together from whole blocks (passthrough)" in text and "descendant" not in text
        assert "made from the child" not in text and text.count("| source of the merge |") == 2
        assert "very sure that all of them share its origin** (p-values 1e-9 at most" in text


class TestMarks:
    @pytest.mark.parametrize(
        "text",
        [START, END, f"{END}\n{START}", f"{START}\n{END}\n{START}\n{END}", f"{START}{START}{END}", f"{START}{END}{END}"],
    )  # fmt: skip
    def test_anything_but_one_pair_is_refused(self, text: str) -> None:
        with pytest.raises(CardError, match="once each"):
            edited(f"# T\n{text}\n")

    def test_in_the_metadata_they_are_refused(self) -> None:
        with pytest.raises(CardError, match="metadata"):
            edited(f"---\na: |\n  {START}\n  {END}\n---\n")

    def test_a_pair_counts_wherever_it_stands(self) -> None:
        text = f"# T\n```\n{START}\nold\n{END}\n```\nend"
        assert card.put_section(text, SECTION) == f"# T\n```\n{SECTION}\n```\nend"

    def test_the_section_is_replaced_in_place(self) -> None:
        result, _ = edited(f"---\nbase_model: lab/parent\n---\na\n{START}{END}\nb")
        assert result == f"---\nbase_model: lab/parent\n---\na\n{SECTION}\nb"

    @pytest.mark.parametrize(("end", "gap"), [("", "\n\n"), ("\n", "\n"), ("\n\n", ""), ("\n\n\n", "")])
    def test_an_empty_line_before_it_and_no_byte_less(self, end: str, gap: str) -> None:
        assert card.put_section(f"x{end}", SECTION) == f"x{end}{gap}{SECTION}\n"

    def test_a_section_that_would_swallow_the_metadata_is_refused(self) -> None:
        with pytest.raises(CardError, match="without changing the metadata"):
            edited("---\rbase_model: lab/parent\r---")


class TestBytes:
    def test_a_card_in_another_encoding_is_refused(self) -> None:
        with pytest.raises(CardError, match=r"UTF-8, got byte 0xe9 at 3"):
            card.decode("caf\u00e9".encode("latin-1"))

    def test_a_card_that_is_too_long_is_refused(self) -> None:
        assert len(card.decode(b"x" * card.MAX_CARD)) == card.MAX_CARD
        with pytest.raises(CardError, match="at most 10,485,760 bytes, got 10,485,761"):
            card.decode(b"x" * (card.MAX_CARD + 1))

    LINE = st.sampled_from(["---", "--- ", "license: mit", "base_model: x/y", "# T", "", "a: |", "  b", "{a: 1}", "- x", "```", "<!--", "\u2028", "\x0b", "%YAML 1.2", "..."])  # fmt: skip
    CARD = st.builds(
        lambda mark, lines, ends: mark + "".join(f"{a}{b}" for a, b in zip(lines, ends, strict=False)),
        st.sampled_from(["", "\ufeff"]),
        st.lists(LINE | st.text(max_size=8), max_size=12),
        st.lists(st.sampled_from(["\n", "\r\n", "\r", ""]), min_size=12, max_size=12),
    )

    @settings(max_examples=100)
    @given(CARD)
    def test_of_any_card_nothing_is_lost_and_a_second_run_changes_nothing(self, text: str) -> None:
        try:
            result, _ = edited(text)
        except CardError:
            return
        assert edited(result) == (result, [])
        rest = result.replace(card.current(result) or "", "", 1)
        if card.current(text) is None:
            assert inserted(text, rest) is not None

    @settings(max_examples=60)
    @given(CARD)
    def test_what_the_author_declares_keeps_its_value(self, text: str) -> None:
        try:
            result, _ = edited(text)
        except CardError:
            return
        before, after = (card.BLOCK.search(each.removeprefix("\ufeff")) for each in (text, result))
        was, now = (yaml_data(each[2].encode()) if each else {} for each in (before, after))
        assert {key: repr(now[key]) for key in was} == {key: repr(was[key]) for key in was}
        assert set(now) - set(was) <= {"base_model", "base_model_relation"}

    @pytest.mark.parametrize(
        "count", [pytest.param(400, id="some"), pytest.param(100_000, id="large", marks=pytest.mark.large)]
    )
    def test_of_random_cards_no_byte_and_no_value_is_lost(self, count: int) -> None:
        rng = random.Random(5)
        added = 0
        for _ in range(count):
            text = random_card(rng)
            try:
                result, _ = edited(text)
            except CardError:
                continue
            assert without_ours(text, result) is not None, repr(text)
            before, after = (card.BLOCK.search(each.removeprefix("\ufeff")) for each in (text, result))
            was, now = (yaml_data(each[2].encode()) if each else {} for each in (before, after))
            assert {key: repr(now.get(key)) for key in was} == {key: repr(was[key]) for key in was}, repr(text)
            added += "base_model" in now and "base_model" not in was
        assert added > count / 5, "else nothing is tested"


class TestDiff:
    @settings(max_examples=100)
    @given(st.text(st.sampled_from("ab\n-"), max_size=30), st.text(st.sampled_from("ab\n-"), max_size=30))
    def test_patches_what_it_shows(self, old: str, new: str) -> None:
        """Applied by hand: the lines of the old text outside hunks, and those of the hunks that are not taken out."""
        before, after = (text.split("\n")[: -1 if text.endswith("\n") or not text else None] for text in (old, new))
        result, at = [], 0
        for line in diff(old, new).splitlines()[2:]:
            if found := re.fullmatch(r"@@ -([0-9]+)(?:,([0-9]+))? .*", line):
                start = int(found[1]) - (found[2] != "0")
                result += before[at:start]
                at = start
            elif line[0] in " -":
                assert before[at] == line[1:]
                result += [line[1:]] if line[0] == " " else []
                at += 1
            else:
                result.append(line[1:])
        assert result + before[at:] == after

    @pytest.mark.slow
    @pytest.mark.integration
    def test_of_a_long_card_takes_no_time(self) -> None:
        text = "---\nlicense: mit\n---\n" + "".join(f"row {i % 150}\n" for i in range(100_000))
        shown = diff(text, edited(text)[0])
        assert len(shown) < 3000 and shown.count("@@ -") == 2 and "\n+base_model: lab/parent\n" in shown


NASTY = "PWN `a` | <b> --> <!-- hf-lineage:end --> <!-- hf-lineage:start --> @all ![x](http://x/y.png) [l](http://x)\n# H\n\x1b[31m\u202e $$x$$ \\"


def outside_code(text: str) -> str:
    """What is left of a section when its comment, its blocks of code and its inline code are taken out."""
    text = re.sub(r"```sh\n.*?\n```", "", text, flags=re.S)
    text = "\n".join(line for line in text.splitlines() if not line.startswith("<!-- hf-lineage {"))
    return re.sub(r"`[^`\n]+`", "", text)


class TestStrangers:
    @settings(max_examples=60)
    @given(
        st.text(max_size=60) | st.just(NASTY),
        st.just(NASTY) | st.text(st.sampled_from("`|<>-!@[]()\\\n\r $*_#~"), max_size=30),
    )
    def test_cannot_leave_their_piece_of_code(self, one: str, two: str) -> None:
        best = replace(BEST, ref=f"x{one}", requested=f"x{two}", revision=f"r{two}")
        odd = replace(OTHER, ref=two or "o", status="unreadable", reasons=(one,))
        claims = (Claim("card", f"x{one}", None, "contradicted"), Claim("config", two, None, "relative"))
        block = BlockOrigin(
            one,
            0,
            "tuned",
            "lab/parent",
            two,
            0.9,
            1e-9,
            -9,
            (Share("lab/parent", two, 1, 0),),
            0,
            None,
            {"moved": True},
        )
        layers = layered(
            blocks=(block, *layered().blocks), notes=(two,), reasons=(one,), places={"lab/parent": (one, two)}
        )
        lineage = answer(best, odd, parent=best.ref, claims=claims, notes=(one, two), versions={"hf_lineage": one})
        remarks = licences({"license": one}, {"license": two, "license_name": one, "gated": one}, two)
        for text in (section(lineage, layers, notes=remarks), description(lineage, layers, notes=remarks)):
            bare = outside_code(text)
            assert "PWN" not in bare and "`" not in bare and "@" not in bare and "http" not in bare
            assert text.count("<!--") == text.count("-->") == (3 if START in text else 0)
            assert not re.search(r"<(?!!--|1e)", bare)
            assert bare.count("![") == (2 if START in text else 0) and "](" not in re.sub(
                r"!\[[^\]]*\]\(lineage/", "", bare
            )
            tables = [
                [line for line in part.splitlines() if line] for part in bare.split("\n\n") if part.startswith("|")
            ]
            assert all(len({row.count("|") for row in rows}) == 1 for rows in tables)
            assert all(ch.isprintable() or ch == "\n" for ch in text)
        again = section(lineage, layers, notes=remarks)
        assert is_up_to_date(again, again)
        assert without_section(card.put_section("# T\n", again)) == "# T"

    def test_a_shell_gets_single_words(self) -> None:
        odd = replace(OTHER, ref="lab/x; rm -rf ~", requested="", revision=None)
        text = section(answer(BEST, odd))
        assert "-c 'lab/x; rm -rf ~' \\\n" in text

    @given(st.dictionaries(st.text(), st.text() | st.floats(allow_nan=False, allow_infinity=False)))
    def test_json_in_a_comment_stays_json_and_in_the_comment(self, data: dict) -> None:
        text = comment_json(data)
        assert json.loads(text) == data and not {"--", "<", ">", "\n"} & {
            text[i : i + n] for n in (1, 2) for i in range(len(text))
        }


class TestSection:
    def test_the_same_answer_gives_the_same_bytes(self) -> None:
        assert section(answer(seconds=1.0, bytes_read=5)) == section(answer(seconds=9.0, bytes_read=7)) == SECTION

    def test_says_what_a_reader_needs(self) -> None:
        for text in (
            "Fine-tuned from `lab/parent`", "**sure**", "probability 0.970", "p-value 1e-12", "α = 0.001",
            "2 of 2 candidates compared", "none of them is the parent 0.020", "| none of these |",
            f"hf-lineage trace lab/child@{C} \\\n  -c lab/other@{B} \\\n  -c lab/parent@{A} \\\n  --alpha 0.001 --seed 0\n",
            "(hf_lineage 0.1.0)", "does not tell a parent from another relative",
        ):  # fmt: skip
            assert text in SECTION
        assert "--evidence" not in SECTION

    def test_its_comment_is_for_machines(self) -> None:
        data = json.loads(SECTION.splitlines()[1].removeprefix("<!-- hf-lineage ").removesuffix(" -->"))
        digest = data.pop("digest")
        assert re.fullmatch("[0-9a-f]{64}", digest)
        assert data == {
            "schema": "hf_lineage/card/1", "version": "0.1.0", "child": f"lab/child@{C}", "verdict": "parent",
            "parent": f"lab/parent@{A}", "relation": "finetune", "probability": 0.97, "p_value": 1e-12,
            "candidates": [f"lab/other@{B}", f"lab/parent@{A}"], "contradicted": [], "layers": None, "alpha": 0.001,
            "seed": 0,
        }  # fmt: skip

    def test_other_evidence_is_in_the_command(self) -> None:
        text = section(answer(replace(BEST, evidence={"features": {}, "weights": {}})))
        assert "--evidence weights \\\n  --evidence features" in text

    def test_long_tables_are_cut(self) -> None:
        many = [replace(OTHER, ref=f"lab/m{i}") for i in range(30)]
        blocks = tuple(
            replace(layered().blocks[0], block=f"b{i}.x", index=i, parent=f"lab/{i}", mixture=()) for i in range(60)
        )
        text = section(answer(BEST, *many), layered(blocks=blocks))
        rows = [line for line in text.splitlines() if line.startswith("|")]
        assert len(rows) == 2 + 8 + 1 + 2 + 40 and "and 23 more;" in text and "and 20 more rows" in text
        assert text.count("-c lab/parent") == 2 and "-c lab/m" not in text, "of hundreds only the relatives"
        assert "30 more candidates that show nothing" in text
        assert section(answer(BEST, *many[:9])).count("-c lab/m") == 9

    def test_a_tree_of_relatives_is_asked_for_again(self) -> None:
        assert "--tree" not in section(answer())
        text = section(answer(replace(BEST, evidence={"weights": {}, "tree": {}}), OTHER), layered())
        assert text.count("--tree") == 1 and text.index("--tree") < text.index("hf-lineage layers")

    def test_claims_that_hold_are_no_news(self) -> None:
        claims = (Claim("card", "lab/parent", "finetune", "confirmed"), Claim("config", "lab/x", None, "not_testable"))
        assert section(answer(claims=claims, undeclared=("lab/parent",))) == SECTION
        text = section(answer(claims=(Claim("card", "lab/x", None, "contradicted"),)))
        assert "- The card names `lab/x`: contradicted, no sign of a common origin." in text

    @pytest.mark.parametrize(
        ("verdict", "word"),
        [("none", "no sign of a common origin"), ("undecided", "**open**"), ("common_origin", "**related")],
    )
    def test_an_answer_without_a_parent_is_told_too(self, verdict: Any, word: str) -> None:
        lineage = answer(replace(BEST, relation="common_origin"), verdict=verdict, parent=None)
        assert word in section(lineage) and '"parent":null' in section(lineage)

    def test_without_any_comparable_candidate(self) -> None:
        odd = Candidate("lab/x", "lab/x", status="unreadable", reasons=("why",))
        text = section(answer(odd, verdict="undecided", parent=None, none_probability=None))
        assert "| `lab/x` |  |  |  |  | unreadable |" in text and "0 of 1 candidates compared" in text


class TestStands:
    def test_with_fewer_candidates_another_commit_and_confirmed_claims(self) -> None:
        later = answer(
            replace(BEST, probability=0.99, p_value=1e-13), child=ModelRef("hub", "lab/child", B), seed=7,
            claims=(Claim("card", "lab/parent", None, "confirmed"),), versions={"hf_lineage": "0.2.0"},
        )  # fmt: skip
        assert section(later) != SECTION and is_up_to_date(SECTION, section(later))
        text = f"---\nbase_model: lab/parent\n---\n{SECTION}\n"
        assert edited(text, later) == (text, [])
        assert edited(text.replace("\n", "\r\n"), later)[0] == text.replace("\n", "\r\n")

    @pytest.mark.parametrize(
        "other",
        [
            answer(alpha=1e-4),
            answer(verdict="common_origin", parent=None),
            answer(replace(BEST, relation="adapter"), OTHER),
            answer(replace(BEST, revision=C), OTHER),
            answer(BEST, OTHER, replace(OTHER, ref="lab/third")),
            answer(claims=(Claim("card", "lab/other", None, "contradicted"),)),
        ],
    )
    def test_not_with_another_answer(self, other: Lineage) -> None:
        assert not is_up_to_date(SECTION, section(other))

    @pytest.mark.parametrize(
        ("old", "new"),
        [("Fine-tuned", "Copied"), ('"seed":0', '"seed":1'), ("<!-- hf-lineage {", "<!-- x {"), (":0.97,", ":[[[,"), ('"candidates":[', '"candidates":7,"x":[')],
    )  # fmt: skip
    def test_not_when_somebody_changed_it(self, old: str, new: str) -> None:
        assert SECTION.replace(old, new, 1) != SECTION
        assert not is_up_to_date(SECTION.replace(old, new, 1), SECTION)
        assert not is_up_to_date(f"{START}\n{END}", SECTION) and not is_up_to_date(f"{START}{END}", SECTION)

    def test_layers_must_be_known_to_it(self) -> None:
        with_layers = section(answer(), layered())
        assert is_up_to_date(with_layers, SECTION) and is_up_to_date(with_layers, with_layers)
        assert not is_up_to_date(SECTION, with_layers)
        assert not is_up_to_date(with_layers, section(answer(), layered(method="mixed")))


class TestPublic:
    def test_of_a_path_only_the_last_name_is_shown(self) -> None:
        local = replace(BEST, ref="/home/me/secret/base", requested="~/secret/base", revision=None)
        twin = replace(OTHER, ref="/srv/secret/base", requested="/srv/secret/base", revision=None)
        lineage = answer(
            local, twin, parent=local.ref, claims=(Claim("card", "/home/me/secret/base", None, "relative"),),
            notes=("The folder /home/me/secret/base was taken for x/y, by its name.", "see /home/me/secret/notes.txt:3"),
            child=ModelRef("local", "/home/me/secret/child"),
        )  # fmt: skip
        layers = layered(
            candidates=(local.ref, twin.ref), revisions={local.ref: None}, places={local.ref: ("x",)}, notes=(twin.ref,)
        )
        rename = renaming(lineage, layers)
        shown, layers = public(lineage, rename), public(layers, rename)
        text = section(shown, layers) + description(shown, layers) + shown.to_json() + layers.to_json()
        assert "secret" not in text and "/home" not in text and "/srv" not in text
        assert shown.parent == "./base" == shown.candidates[0].ref == layers.candidates[0]
        assert {c.ref for c in shown.candidates} == {"./base", "./base-2"} and shown.notes[1] == "see notes.txt:3"
        assert "| `./base` (local copy) |" in text and "A local copy is shown by its folder's name" in text
        assert "hf-lineage trace ./child" in text

    def test_odd_names_take_no_time_and_do_no_harm(self) -> None:
        lineage = answer(notes=("/" * 5000, "/a" * 5000 + "/", "x\udce9"), child=ModelRef("local", "/home/caf\udce9"))
        assert "/home" not in section(public(lineage, renaming(lineage))).encode().decode()

    def test_what_is_on_the_hub_stays_as_it_is(self) -> None:
        lineage, layers = answer(notes=("1/2 of org/x at https://hf.co/org/x, n/a.",)), layered()
        assert public(lineage, renaming(lineage)) == lineage
        assert public(layers, renaming(lineage, layers)).to_dict() == layers.to_dict()


class TestLicences:
    @pytest.mark.parametrize(
        ("child", "parent", "told"),
        [
            ({"license": "mit"}, {"license": "MIT"}, []),
            ({"license": "mit"}, {}, []),
            ({}, {}, []),
            ({}, {"license": "apache-2.0"}, ["The card of `a/b` declares the licence `apache-2.0`; this card declares none."]),
            ({"license": "mit"}, {"license": "other", "license_name": "x-1"}, ["The card of `a/b` declares the licence `x-1`; this card declares `mit`."]),
            ({"license": "mit"}, {"license": ["mit", "gpl"]}, ["The card of `a/b` declares the licence `mit, gpl`; this card declares `mit`."]),
            ({"gated": False}, {"gated": "manual"}, ["Access to `a/b` is gated; access to this model is not."]),
            ({"gated": "auto"}, {"gated": "manual"}, []),
            ({"license": 5}, {"license": {"a": 1}}, []),
            ({}, None, ["The card of `a/b` could not be read: its licence was not compared."]),
        ],
    )  # fmt: skip
    def test_only_what_differs_is_told(self, child: dict, parent: dict | None, told: list[str]) -> None:
        assert licences(child, parent, "a/b") == told
