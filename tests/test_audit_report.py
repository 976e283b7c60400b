"""The audit's table, Markdown, tab-separated lines and SARIF: complete, in order, and deaf to what strangers write."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from hf_lineage.answers.audit import BY_ID, RULES
from hf_lineage.answers.lineage import Claim
from hf_lineage.report import audit as report
from hf_lineage.tasks.audit import AuditRecord, Finding

HOSTILE = "a`|</td><script>[click](https://evil.example){0}\x1b[31m\n# h\r\tb\u202e"


def record(status: Any, ref: str = "org/name", base: str = "org/base", **fields: Any) -> AuditRecord:
    rule = RULES[status]
    findings = (Finding(rule.id, base, ("card",), 0.4, 0.1, "none", fields.get("reason", "why")),) if rule else ()
    claims = (Claim("card", base, None, "contradicted"),)
    defaults: dict[str, Any] = {"revision": "c0ffee", "claims": claims, "findings": findings, "p_value": 0.4}
    return AuditRecord(ref, ref, status, **(defaults | {"reason": "why"} | fields))


EVERY = [record(status, f"org/{status}") for status in reversed(RULES)]


class TestOrder:
    def test_worst_first_then_by_name(self) -> None:
        more = [*EVERY, record("contradicted", "org/a")]
        assert [r.status for r in report.worst_first(more)][1:] == list(RULES)
        assert report.worst_first(more)[0].ref == "org/a"

    def test_graver_levels_come_first(self) -> None:
        levels = [rule.level if rule else "none" for rule in RULES.values()]
        assert levels == sorted(levels, key=["error", "warning", "note", "none"].index)

    def test_the_summary_counts(self) -> None:
        assert report.summary([]) == "0 models: nothing to audit; read 0 B in 0.0 s"
        assert report.summary(EVERY).startswith("7 models: 1 contradicted, 1 undeclared, 1 failed, 1 relative, 1 not")


class TestRecord:
    @pytest.mark.parametrize("one", EVERY, ids=lambda r: r.status)
    def test_json_and_back(self, one: AuditRecord) -> None:
        text = json.dumps(one.to_dict(), allow_nan=False)
        assert AuditRecord.from_dict(json.loads(text)) == one and one.to_dict()["schema"] == "hf_lineage/2"

    @pytest.mark.parametrize("change", [{"status": "fine"}, {"claims": [{"x": 1}]}, {"findings": 3}])
    def test_what_is_no_record(self, change: dict[str, Any]) -> None:
        with pytest.raises(ValueError, match=r"Record|status"):
            AuditRecord.from_dict({**EVERY[0].to_dict(), **change})
        with pytest.raises(ValueError, match="Expected"):
            AuditRecord.from_dict({})


class TestTable:
    @pytest.mark.parametrize("long", [10, 40, 100])
    def test_eighty_columns(self, long: int) -> None:
        many = [record("contradicted", "o/" + "n" * long, "b/" + "c" * long, reason="word " * 60), *EVERY]
        many.append(record("confirmed", "o/" + "x" * long + "@" + "r" * long, p_value=1e-320))
        lines = report.table(many).splitlines()
        ranked = [line for line in lines if line.startswith(("contradicted", "confirmed"))]
        assert max(map(len, lines)) <= 80 and ranked[0].startswith("contradicted")
        assert "o/" + "n" * long in "".join(lines).replace(" ", ""), "no name is cut"

    def test_a_claim_beside_others(self) -> None:
        claims = (Claim("card", "a/a"), Claim("config", "b/b"), Claim("adapter", "b/b"))
        assert "org/base +2" in report.table([record("relative", claims=claims)])

    def test_nothing(self) -> None:
        assert report.table([]) == report.summary([])


class TestMarkdown:
    def test_every_status_is_there_and_explained(self) -> None:
        text = report.markdown(EVERY)
        rows = [line.split("|")[1].strip() for line in text.splitlines() if line.startswith("| ")]
        named = [status.replace("_", " ") for status in RULES]
        assert rows == ["status", *named, "status", *named] and "Interrupted" not in text
        assert "Interrupted" in report.markdown(EVERY, complete=False)

    def test_strangers_write_no_markup(self) -> None:
        hostile = record("contradicted", HOSTILE, HOSTILE, reason=HOSTILE, parent=HOSTILE)
        [row] = [line for line in report.markdown([hostile]).splitlines() if line.startswith("| contradicted | `")]
        assert row.count("|") == 7 and "<" not in row and "\x1b" not in row and "\u202e" not in row
        outside = re.sub(r"`[^`]*`", "", row)  # in code nothing is a link
        assert "[" not in outside and "evil" not in outside


class TestLines:
    def test_the_fields_are_those_of_the_head(self) -> None:
        for one in [*EVERY, record("failed", HOSTILE, HOSTILE, reason=HOSTILE)]:
            line = report.tsv(one)
            assert line.count("\t") == report.tsv_head().count("\t") and line.isprintable() is False
            assert all(part.isprintable() for part in line.split("\t"))


def sarif(records: list[AuditRecord], **options: Any) -> dict[str, Any]:
    return json.loads(report.sarif(records, "1.2.3", **options))


def check_sarif(document: dict[str, Any]) -> None:
    """What SARIF 2.1.0 and code scanning ask for."""
    assert document["version"] == "2.1.0" and document["$schema"].endswith("sarif-2.1.0.json")
    for run in document["runs"]:
        driver = run["tool"]["driver"]
        assert driver["name"] and re.fullmatch(r"\d+\.\d+\.\d+", driver["semanticVersion"])
        assert driver["informationUri"].startswith("https://")
        ids = [rule["id"] for rule in driver["rules"]]
        assert len(set(ids)) == len(ids)
        for rule in driver["rules"]:
            texts = (rule["shortDescription"], rule["fullDescription"], rule["help"])
            assert all(text["text"] for text in texts) and rule["help"]["markdown"] and rule["name"].isalpha()
            assert rule["defaultConfiguration"]["level"] in ("error", "warning", "note", "none")
        marks = [result["partialFingerprints"]["hfLineage/v1"] for result in run["results"]]
        assert len(set(marks)) == len(marks)
        for result in run["results"]:
            assert ids[result["ruleIndex"]] == result["ruleId"] and result["message"]["text"]
            assert result["level"] == driver["rules"][result["ruleIndex"]]["defaultConfiguration"]["level"]
            [location] = result["locations"]
            uri = location["physicalLocation"]["artifactLocation"]["uri"]
            assert re.fullmatch(r"[A-Za-z0-9._~:/%@!$&'()*+,;=-]+", uri)  # characters of a URI reference
            assert location["physicalLocation"]["region"]["startLine"] >= 1
            assert all(isinstance(text, str) for text in result["partialFingerprints"].values())
        assert isinstance(run["invocations"][0]["executionSuccessful"], bool)


class TestSarif:
    def test_a_result_for_each_finding(self) -> None:
        document = sarif(EVERY)
        check_sarif(document)
        results = document["runs"][0]["results"]
        assert sorted(r["ruleId"] for r in results) == sorted(BY_ID) and len(results) == 5
        first = results[-1]
        assert first["message"]["text"] == "org/contradicted names org/base (card): why"
        assert first["locations"][0]["physicalLocation"]["artifactLocation"] == {
            "uri": "https://huggingface.co/org/contradicted/blob/c0ffee/README.md"
        }
        assert first["properties"] == {
            "model": "org/contradicted", "revision": "c0ffee", "base": "org/base", "p_value": 0.4, "probability": 0.1,
            "relation": "none",
            "p_value_assumes": "models trained separately, from starts of their own, whose hidden units nobody put in order on purpose",
        }  # fmt: skip

    def test_nothing_wrong(self) -> None:
        document = sarif([record("confirmed"), record("no_claim")])
        check_sarif(document)
        assert document["runs"][0]["results"] == []

    def test_the_line_of_a_list(self) -> None:
        document = sarif([record("contradicted")], places={"org/name": ("lists/models.txt", 7)})
        check_sarif(document)
        place = document["runs"][0]["results"][0]["locations"][0]["physicalLocation"]
        assert place == {"artifactLocation": {"uri": "lists/models.txt"}, "region": {"startLine": 7}}

    def test_a_new_commit_is_the_same_alert(self) -> None:
        def mark(**fields: Any) -> str:
            return sarif([record("contradicted", **fields)])["runs"][0]["results"][0]["partialFingerprints"]

        assert mark(revision="1") == mark(revision="2", reason="other words")
        assert mark() != mark(base="org/another") != mark(ref="org/another")

    def test_without_a_commit_and_on_this_machine(self) -> None:
        for ref, uri in (("org/x", "https://huggingface.co/org/x/blob/main/README.md"), ("./a b", "a%20b/README.md")):
            document = sarif([record("failed", ref, revision=None)])
            check_sarif(document)
            place = document["runs"][0]["results"][0]["locations"][0]["physicalLocation"]
            assert place["artifactLocation"]["uri"] == uri

    def test_strangers_write_no_links(self) -> None:
        document = sarif([record("contradicted", HOSTILE, HOSTILE, reason=HOSTILE, parent=HOSTILE)])
        check_sarif(document)
        text = document["runs"][0]["results"][0]["message"]["text"]
        assert text.isprintable() and not set("[]{}<>|`\\") & set(text) and "://" not in text

    def test_an_interrupted_run_says_so(self) -> None:
        assert sarif(EVERY, complete=False)["runs"][0]["invocations"] == [{"executionSuccessful": False}]
