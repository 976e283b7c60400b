"""Answers as HTML: what the templates are given. Names in answers are untrusted text, which `pages` escapes."""

from __future__ import annotations

import base64
import json
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from jobs import Step
from pages import page
from questions import on_page

from hf_lineage.report.format import bytes_text
from hf_lineage.report.words import RELATIONS

View = dict[str, Any]  # {"answer": the answer's JSON, "sentence": …, "words": …, "table": …}

BADGES = {
    "parent": ("Parent found", "yes"), "identical": ("Identical", "yes"), "common_origin": ("Common origin", "maybe"),
    "none": ("None of these", "no"), "undecided": ("Undecided", "maybe"),
}  # fmt: skip
RELATED = {True: ("Related", "yes"), False: ("Unrelated", "no"), None: ("Not known", "maybe")}
CLAIMS = {
    "confirmed": ("✓", "confirmed by the weights", "yes"),
    "contradicted": ("✗", "contradicted: no sign of a common origin", "no"),
    "relative": ("≈", "a relative, but not the parent found", "maybe"),
    "not_testable": ("?", "not testable: it was not compared, or not decided", "maybe"),
    "not_understood": ("?", "not understood: it names no model that could be found out", "maybe"),
}
SOURCES = {"card": "The model card", "config": "config.json", "adapter": "The adapter", "mergekit": "The merge recipe"}
MAX_OPEN_ROWS = 12  # candidates that are not folded away
SILENT = 8.0  # seconds without news after which the page says so
_DRAWING = threading.Lock()  # matplotlib's caches are not made for several threads


def view_of(answer: Any, command: str = "") -> View:
    """Everything that is shown of an answer of hf_lineage, as JSON types; `command`: what asks the same elsewhere."""
    explained = answer.explain() if hasattr(answer, "explain") else ""
    with _DRAWING:
        report = answer.to_html(command)
    return {
        "answer": answer.to_dict(),
        "sentence": answer.sentence(),
        "words": explained,
        "table": str(answer),
        "report": "data:text/html;base64," + base64.b64encode(report.encode()).decode(),
    }


def picture(plot: Callable[[Path], object]) -> str:
    """What a `plot` method draws, as the address of a PNG that holds it: it stays in the asker's own page."""
    with _DRAWING, tempfile.TemporaryDirectory(prefix="hf-lineage-") as folder:
        path = Path(folder) / "picture.png"
        plot(path)
        return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()


def lineage_html(view: View) -> str:
    """The answer of `trace`."""
    answer = view["answer"]
    text, tone = BADGES.get(answer["verdict"], BADGES["undecided"])
    return page(
        "lineage", view=view, answer=answer, badge={"text": text, "tone": tone}, claims=[*_claims(answer)],
        notes=[*map(shown, answer["notes"])], relations=RELATIONS, max_open=MAX_OPEN_ROWS,
        reasons_of=reasons_of, facts_of=facts_of, json_of=json_of, on_page=on_page,
    )  # fmt: skip


def comparison_html(view: View) -> str:
    """The answer of `compare`."""
    text, tone = RELATED[view["answer"]["related"]]
    notes = [*map(shown, [*view["answer"]["pair"]["reasons"], *view["answer"]["notes"]])]
    return page(
        "comparison", view=view, answer=view["answer"], badge={"text": text, "tone": tone}, notes=notes,
        json_of=json_of, facts_of=facts_of,
    )  # fmt: skip


def tree_html(view: View) -> str:
    """The answer of `phylogeny`."""
    return page("tree", view=view, answer=view["answer"], shown=shown, json_of=json_of)


def diff_html(diff: str, files: Mapping[str, bytes], notes: Iterable[str]) -> str:
    """The diff of a card, line by line, and every file that comes with it."""
    kinds = {"+": "add", "-": "cut", "@": "at"}
    lines = [  # the first two name the files
        ("at" if i < 2 else kinds.get(line[:1], "same"), line) for i, line in enumerate(diff.splitlines())
    ]
    beside = [_file(name, content) for name, content in files.items() if name != "README.md"]
    return page("diff", lines=lines, notes=[*map(on_page, notes)], files=beside)


def _file(name: str, content: bytes) -> dict[str, str]:
    if name.endswith(".png"):
        return {"name": name, "picture": "data:image/png;base64," + base64.b64encode(content).decode()}
    return {"name": name, "picture": "", "text": content.decode("utf-8", "replace")}


def error_html(message: str, repo: str = "") -> str:
    """What went wrong; `repo`: whose page helps."""
    return page("error", message=message, repo=repo)


def note_html(text: str, link: str = "") -> str:
    """A note of the page; `link` is an address on the Hub."""
    return page("note", text=text, link=link)


def arrived_html(sentence: str) -> str:
    """An answer that has arrived, for a screen reader."""
    return page("arrived", sentence=sentence)


def progress_html(step: Step) -> str:
    """A bar that says what is being read, and how much of how much."""
    counted = step.what.startswith(("looking for", "blocks of", "opening", "waiting"))
    percent = max(0, min(100, round(100 * step.done / step.total))) if step.total else None
    amount = ""
    if step.total:
        done, total = (str(n) if counted else bytes_text(n) for n in (step.done, step.total))
        amount = f"{done} of {total}"
    silent = f"nothing heard for {step.quiet:.0f} s: the Hub may be slow, or ask us to wait"
    beside = (silent if step.quiet > SILENT else "", amount, f"{step.seconds:.0f} s" if step.seconds else "")
    what = step.what if counted else f"reading {step.what}"
    return page("progress", what=what, amount=amount, percent=percent, beside=beside)


def shown(note: Mapping[str, str] | str) -> str:
    """A note of an answer's JSON as the page shows it, without the hint, which is for a command line; or a text."""
    return on_page(note if isinstance(note, str) else note["text"])


def reasons_of(candidate: dict[str, Any]) -> list[str]:
    """The reasons of a candidate, as the page shows them."""
    return [*map(shown, candidate["reasons"])]


def facts_of(candidate: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Everything that was measured of a candidate, as pairs of texts."""
    yield "distance of a weight", _plain(candidate["distance"])
    yield "p-value of this candidate alone", _plain(candidate["p_raw"])
    yield from ((key, _plain(value)) for key, value in candidate["facts"].items() if key != "found_by")
    yield from (("reason", reason) for reason in reasons_of(candidate))
    weights = candidate["evidence"].get("weights", {})
    moved = [(name, block.get("moved")) for name, block in weights.get("blocks", {}).items()]
    changes = [f"{name} {value:.3g}" for name, value in moved if value is not None]
    if changes:
        yield "change by block, relative (0 equal, 1.4 unrelated)", ", ".join(changes[:100])


def json_of(view: View) -> str:
    """The answer as a JSON document for the page."""
    return json.dumps(view["answer"], indent=1, ensure_ascii=False)


def _claims(answer: dict[str, Any]) -> Iterator[dict[str, str]]:
    """What the model's files say of its parent, and whether the weights bear it out."""
    for claim in answer["claims"]:
        mark, text, tone = CLAIMS[claim["status"]]
        found = next((c for c in answer["candidates"] if c["ref"] == claim["ref"]), None)
        if claim["status"] == "confirmed" and answer["parent"] is None:
            text, tone = "a common origin, and no sign against the claim", "maybe"
        elif claim["status"] == "not_testable" and found and found["relation"] == "adapter":
            text = "not testable, for an adapter holds no copy of its base; the claim was followed"
        source = SOURCES.get(claim["source"], "A file")
        yield {"mark": mark, "text": text, "tone": tone, "source": source, "ref": claim["ref"]}


def _plain(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return str(value) if isinstance(value, str | int) else json.dumps(value, ensure_ascii=False)
