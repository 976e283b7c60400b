"""Answers as HTML. Every name in them was written by a stranger: `esc` is the only way in."""

from __future__ import annotations

import base64
import html
import json
import re
import tempfile
import threading
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from jobs import Step
from questions import HUB, on_page

from hf_lineage.answers.base import notes_in

View = dict[str, Any]  # {"answer": the answer's JSON, "sentence": …, "words": …, "table": …}

BADGES = {
    "parent": ("Parent found", "yes"), "identical": ("Identical", "yes"), "common_origin": ("Common origin", "maybe"),
    "none": ("None of these", "no"), "undecided": ("Undecided", "maybe"),
}  # fmt: skip
RELATIONS = {
    "identical": "every weight equal", "head_changed": "same trunk, other head", "partial": "partly frozen",
    "finetune": "fine-tuned from it", "quantized": "quantized from it", "pruned": "pruned from it",
    "adapter": "adapter of it", "resized": "vocabulary resized", "merge": "merged from it", "sibling": "sibling",
    "descendant": "made from the child", "common_origin": "common origin", "none": "unrelated",
}  # fmt: skip
CLAIMS = {
    "confirmed": ("✓", "confirmed by the weights", "yes"),
    "contradicted": ("✗", "contradicted: no sign of a common origin", "no"),
    "relative": ("≈", "a relative, but not the parent found", "maybe"),
    "not_testable": ("?", "not testable: it was not compared, or not decided", "maybe"),
}
SOURCES = {"card": "The model card", "config": "config.json", "adapter": "The adapter", "mergekit": "The merge recipe"}
MAX_OPEN_ROWS = 12  # candidates that are not folded away
SILENT = 8.0  # seconds without news after which that is said
LONGEST_JSON = 200_000  # characters that are put into the page
_DRAWING = threading.Lock()  # matplotlib's caches are not made for several threads


def esc(value: Any, width: int = 300) -> str:
    """A stranger's text, for a text node or an attribute in double quotes."""
    text = "".join(ch if ch.isprintable() or ch == "\n" else "?" for ch in str(value))
    return html.escape(text if len(text) <= width else f"{text[: width - 1]}…")


def view_of(answer: Any) -> View:
    """Everything that is shown of an answer of hf_lineage, as JSON types."""
    explained = answer.explain() if hasattr(answer, "explain") else ""
    return {
        "answer": answer.to_dict(),
        "sentence": answer.sentence(),
        "words": explained,
        "table": str(answer),
        "without_hints": {str(note): note.sentence for note in notes_in(answer) if note.hint or note.python},
    }


def picture(plot: Callable[[Path], object]) -> str:
    """What a `plot` method draws, as the address of a PNG that holds it: it stays in the asker's own page."""
    with _DRAWING, tempfile.TemporaryDirectory(prefix="hf-lineage-") as folder:
        path = Path(folder) / "picture.png"
        plot(path)
        return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()


def lineage_html(view: View) -> str:
    """The answer of `trace`: sentence, table, claims, and the evidence folded away."""
    answer = view["answer"]
    badge, tone = BADGES.get(answer["verdict"], ("Undecided", "maybe"))
    return _box(
        f'<p class="hl-badge hl-{tone}">{badge}</p>',
        f'<h2 class="hl-said">{esc(view["sentence"], 2000)}</h2>',
        f'<p class="hl-small">{_asked(answer)}</p>',
        _candidates(view),
        _claims(answer),
        _evidence(view),
        label="Lineage",
    )


def tree_html(view: View) -> str:
    """The answer of `phylogeny`: the picture, the same in words, and its forms to take away."""
    left = [f"<li>{model(ref)}: {esc(shown(view, why))}</li>" for ref, why in view["answer"]["left_out"].items()]
    return _box(
        f'<h2 class="hl-said">{esc(view["sentence"], 2000)}</h2>',
        _image(view["tree"], "tree"),
        fold("As rings", _image(view["ring"], "rings")),
        f"<h3>Left out</h3><ul>{''.join(left)}</ul>" if left else "",
        fold("As text", pre(view["table"]), opened=True),
        fold("Newick", pre(view["newick"])),
        _json(view),
        label="Family tree",
    )


def _image(address: str, what: str) -> str:
    image = f'<img src="{address}" alt="The family as {what}; the same as text follows." class="hl-tree">'
    return f'<div class="hl-scroll" tabindex="0" role="group" aria-label="Picture of the {what}">{image}</div>'


def diff_html(diff: str, files: Mapping[str, bytes], notes: Iterable[str]) -> str:
    """The diff of a card, line by line, and every file that comes with it."""
    kinds = {"+": "add", "-": "cut", "@": "at"}
    lines = [
        f'<span class="hl-{"at" if i < 2 else kinds.get(line[:1], "same")}">{esc(line, 2000)}</span>'  # ---, +++: names
        for i, line in enumerate(diff.splitlines())
    ]
    shown = f'<pre class="hl-diff" tabindex="0" aria-label="Diff of README.md">{"".join(lines)}</pre>'
    told = listed(map(on_page, notes))
    beside = "".join(_file(name, content) for name, content in files.items() if name != "README.md")
    return _box(
        "<h2>README.md</h2>", shown, told, f"<h2>Files beside it</h2>{beside}",
        label="Diff of the card",
    )  # fmt: skip


def _file(name: str, content: bytes) -> str:
    if name.endswith(".png"):
        address = "data:image/png;base64," + base64.b64encode(content).decode()
        return fold(name, f'<img src="{address}" alt="The picture {esc(name)}" class="hl-tree">')
    return fold(name, pre(content.decode("utf-8", "replace")))


def error_html(message: str, repo: str = "") -> str:
    """What went wrong, said at once by a screen reader; `repo`: whose page helps."""
    there = f" Its page: {model(repo)}" if repo else ""
    return f'<div class="hl hl-error" role="alert"><strong>No answer.</strong> {esc(message, 1000)}{there}</div>'


def note_html(text: str, link: str = "") -> str:
    """A remark of ours; `link` is an address on the Hub."""
    there = f' <a href="{esc(link, 1000)}" target="_blank" rel="noopener">{esc(link, 1000)}</a>' if link else ""
    return f'<div class="hl hl-note" role="status">{esc(text, 1000)}{there}</div>'


def said_html(sentence: str) -> str:
    """An answer that has arrived, for a screen reader: it stands below."""
    return f'<p class="hl-hidden" role="status">Answer: {esc(sentence, 1000)}</p>'


def progress_html(step: Step) -> str:
    """A bar that says what is being read, and how much of how much."""
    counted = step.what.startswith(("looking for", "blocks of", "opening", "waiting"))
    if not step.total:
        amount, share = "", None
    elif counted:
        amount, share = f"{step.done} of {step.total}", step.done / step.total
    else:
        amount, share = f"{megabytes(step.done)} of {megabytes(step.total)}", step.done / step.total
    what = esc(step.what if counted else f"reading {step.what}", 120)
    percent = None if share is None else max(0, min(100, round(100 * share)))
    silent = (
        f"nothing heard for {step.quiet:.0f} s: the Hub may be slow, or ask us to wait" if step.quiet > SILENT else ""
    )
    seconds = f"{step.seconds:.0f} s" if step.seconds else ""
    value = "" if percent is None else f' aria-valuenow="{percent}"'
    width = f' style="width:{percent}%"' if percent is not None else ' class="hl-busy"'
    return (
        f'<div class="hl hl-progress"><div role="progressbar" aria-label="Progress" aria-valuemin="0" '
        f'aria-valuemax="100"{value} aria-valuetext="{what} {amount}"><span{width}></span></div>'
        f'<p class="hl-small"><span class="hl-what">{what}</span> '
        f"<span>{' · '.join(filter(None, (silent, amount, seconds)))}</span></p></div>"
    )


def megabytes(count: float) -> str:
    """Bytes for people.

    >>> megabytes(999), megabytes(4_194_304)
    ('999 B', '4.2 MB')
    """
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.0f} B" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} GB"


def p_text(log10_p: float | None) -> str:
    """A p-value for people.

    >>> p_text(None), p_text(-0.5), p_text(-12.3), p_text(-800.0)
    ('–', '0.316', '5e-13', '<1e-300')
    """
    if log10_p is None:
        return "–"
    if log10_p < -300:
        return "<1e-300"
    return f"{10**log10_p:.3f}" if log10_p >= -3 else f"{10**log10_p:.0e}".replace("e-0", "e-")


def model(ref: str, revision: str | None = None) -> str:
    """A model's id, linked to its page; the examples' models have none."""
    if ref.startswith("example/") or not re.fullmatch(r"[\w][\w.-]{0,95}(/[\w][\w.-]{0,95})?", ref):
        return f"<code>{_broken(ref)}</code>"
    at = f"/tree/{revision}" if revision and re.fullmatch(r"[0-9a-f]{7,40}", revision) else ""
    return f'<a href="{esc(HUB)}/{ref}{at}" target="_blank" rel="noopener">{_broken(ref)}</a>'


def _broken(ref: str) -> str:
    """An id that may be broken where a reader would."""
    return esc(ref).replace("/", "/<wbr>")


def shown(view: View, text: str) -> str:
    """A note or a reason of an answer as the page shows it, without hints."""
    return on_page(view.get("without_hints", {}).get(text, text))


def listed(texts: Iterable[str]) -> str:
    """Texts as a list; "" where there are none."""
    items = "".join(f"<li>{esc(text, 1000)}</li>" for text in texts if text)
    return f"<ul>{items}</ul>" if items else ""


def fold(title: str, content: str, opened: bool = False) -> str:
    return f"<details{' open' if opened else ''}><summary>{esc(title)}</summary>{content}</details>"


def pre(text: str) -> str:
    return f'<pre tabindex="0">{esc(text, LONGEST_JSON)}</pre>'


def _box(*parts: str, label: str) -> str:
    return f'<section class="hl" aria-label="{label}">{"".join(parts)}</section>'


def _asked(answer: dict[str, Any]) -> str:
    child, revision = answer["child"]["ref"], answer["child"]["revision"]
    at = f" at <code>{esc(revision[:10])}</code>" if revision else ""
    return f"{model(child, revision)}{at} · read {megabytes(answer['bytes_read'])} in {answer['seconds']:.1f} s"


def _candidates(view: View) -> str:
    answer = view["answer"]
    head = "".join(
        f'<th scope="col"{kind}>{name}</th>'
        for name, kind in (
            ("Candidate", ""), ("Probability", ' class="hl-n"'), ("p-value", ' class="hl-n"'), ("Relation", ""),
            ("Why it was considered", ""),
        )
    )  # fmt: skip
    rows = [
        _row(view, candidate, first=i == 0 and answer["parent"] is not None)
        for i, candidate in enumerate(answer["candidates"])
    ]
    rows, more = rows[:MAX_OPEN_ROWS], rows[MAX_OPEN_ROWS:]
    none = answer["none_probability"]
    if none is not None:
        best = ' class="hl-best"' if answer["verdict"] == "none" else ""
        rows.append(
            f'<tr{best}><th scope="row">None of these</th>{_probability(none)}<td class="hl-n">–</td>'
            "<td></td><td></td></tr>"
        )
    told = _table(head, rows, "Ranked candidates")
    if more:
        told += fold(f"{len(more)} more candidates", _table(head, more, "More candidates"))
    if none is not None and answer["parent"] and none >= 0.05:
        told += (
            '<p class="hl-small">“None of these”: the parent may be a model that is not in this list, such as a '
            "relative of the first one.</p>"
        )
    return told


def _table(head: str, rows: list[str], label: str) -> str:
    return (
        f'<div class="hl-scroll" tabindex="0" role="group" aria-label="{label}"><table class="hl-table">'
        f"<thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
    )


def _row(view: View, candidate: dict[str, Any], first: bool) -> str:
    name = f'<th scope="row">{model(candidate["ref"], candidate["revision"])}</th>'
    why = esc("; ".join(candidate["facts"].get("found_by", [])) or "you named it")
    if candidate["status"] != "compared":
        reasons = " ".join(shown(view, reason) for reason in candidate["reasons"])
        told = f"<em>{esc(candidate['status'].replace('_', ' '))}</em>: {esc(reasons)}"
        return (
            f'<tr class="hl-out">{name}<td class="hl-n">–</td><td class="hl-n">–</td><td>{told}</td><td>{why}</td></tr>'
        )
    relation = esc(RELATIONS.get(candidate["relation"], candidate["relation"] or "–"))
    best = ' class="hl-best"' if first else ""
    return (
        f'<tr{best}>{name}{_probability(candidate["probability"])}<td class="hl-n">{p_text(candidate["log10_p"])}</td>'
        f"<td>{relation}</td><td>{why}</td></tr>"
    )


def _probability(value: float | None) -> str:
    if value is None:
        return '<td class="hl-n">–</td>'
    return f'<td class="hl-n hl-bar" style="--s:{value:.3f}"><span>{value:.3f}</span></td>'


def _claims(answer: dict[str, Any]) -> str:
    items = []
    for claim in answer["claims"]:
        mark, told, tone = CLAIMS[claim["status"]]
        found = next((c for c in answer["candidates"] if c["ref"] == claim["ref"]), None)
        if claim["status"] == "confirmed" and answer["parent"] is None:
            told, tone = "a common origin, and no sign against the claim", "maybe"
        elif claim["status"] == "not_testable" and found and found["relation"] == "adapter":
            told = "not testable, for an adapter holds no copy of its base; the claim was followed"
        source = SOURCES.get(claim["source"], "A file")
        items.append(
            f'<li><span class="hl-mark hl-{tone}" aria-hidden="true">{mark}</span> '
            f"{source} names {model(claim['ref'])}: {told}.</li>"
        )
    for ref in answer["undeclared"]:
        mark = '<span class="hl-mark hl-no" aria-hidden="true">!</span>'
        items.append(f"<li>{mark} Nobody names {model(ref)}: an undeclared parent.</li>")
    told = "".join(items) or "<li>They name no base model.</li>"
    return f'<h3>What its files claim</h3><ul class="hl-claims">{told}</ul>'


def _evidence(view: View) -> str:
    answer = view["answer"]
    parts = [f"<p>{esc(on_page(view['words']), 6000)}</p>"] if view["words"] else []
    for candidate in answer["candidates"][:8]:
        items = [
            f"<dt>{esc(key.replace('_', ' '))}</dt><dd>{_plain(value)}</dd>" for key, value in _told(view, candidate)
        ]
        parts.append(fold(candidate["ref"], f"<dl>{''.join(items)}</dl>"))
    notes = listed(shown(view, note) for note in answer["notes"])
    parts += [f"<h4>Notes</h4>{notes}"] if notes else []
    parts += [fold("The whole answer as text", pre(view["table"])), _json(view)]
    return fold("The evidence", f'<div class="hl-evidence">{"".join(parts)}</div>')


def _told(view: View, candidate: dict[str, Any]) -> Iterable[tuple[str, Any]]:
    yield "distance of a weight", candidate["distance"]
    yield "p-value of this candidate alone", candidate["p_raw"]
    yield from ((key, value) for key, value in candidate["facts"].items() if key != "found_by")
    yield from (("remark", shown(view, reason)) for reason in candidate["reasons"])
    weights = candidate["evidence"].get("weights", {})
    moved = [(name, block.get("moved")) for name, block in weights.get("blocks", {}).items()]
    told = [f"{name} {value:.3g}" for name, value in moved if value is not None]
    if told:
        yield "change by block, relative (0 equal, 1.4 strangers)", ", ".join(told[:100])


def _plain(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return esc(value if isinstance(value, str | int) else json.dumps(value, ensure_ascii=False), 2000)


def _json(view: View) -> str:
    text = json.dumps(view["answer"], indent=1, ensure_ascii=False)
    if len(text) > LONGEST_JSON:
        return f'<p class="hl-small">The JSON has {len(text):,} characters: ask the API for it.</p>'
    return fold("JSON, schema hf_lineage/1", pre(text))
