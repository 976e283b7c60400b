"""The map of layers: a table of child blocks × sources, coloured in one hue, with the number in every cell.

Colours are CSS variables of style.css, so the same HTML serves light and dark. One row is in the tab order at a time;
the arrow keys move between rows, and `MAP_JS` puts what is pointed at, focused or tapped into the line above the map.
"""

from __future__ import annotations

from collections import defaultdict
from typing import Any

from pages import page
from show import View, shown

from hf_lineage.report.format import p_text

COLUMNS = 8  # sources that get one; the rest share a column
MID, DEEP = 0.52, 0.78  # shares from which text in a cell turns, in the dark and in the light theme
KINDS = {
    "equal": "every weight equal", "tuned": "tuned", "mixture": "a mixture", "none": "from none of these",
    "undecided": "could not be decided",
}  # fmt: skip

MAP_JS = """
const tell = (row) => {
  const line = element.querySelector('.hl-detail');
  if (!line || !row) return;
  line.textContent = row.dataset.tip;
  element.querySelectorAll('tr.hl-on').forEach((other) => other.classList.remove('hl-on'));
  row.classList.add('hl-on');
};
const rowOf = (event) => event.target.closest ? event.target.closest('tr[data-tip]') : null;
for (const kind of ['mouseover', 'focusin', 'click']) element.addEventListener(kind, (event) => tell(rowOf(event)));
element.addEventListener('keydown', (event) => {
  const row = rowOf(event);
  const rows = row ? [...row.parentElement.querySelectorAll('tr[data-tip]')] : [];
  const moves = {ArrowDown: 1, ArrowUp: -1, PageDown: 10, PageUp: -10, Home: -rows.length, End: rows.length};
  if (!row || !(event.key in moves)) return;
  event.preventDefault();
  const to = rows[Math.max(0, Math.min(rows.length - 1, rows.indexOf(row) + moves[event.key]))];
  rows.forEach((other) => { other.tabIndex = other === to ? 0 : -1; });
  to.focus();
});
"""


def layers_html(view: View) -> str:
    """The answer of `trace_layers`: a sentence, the map, the whole mixture, and the text."""
    answer = view["answer"]
    columns, others = _columns(answer)
    return page(
        "layers", view={"recipe": "", **view}, answer=answer, columns=columns, others=others, mid=MID, deep=DEEP,
        rows=[_row(block, columns, others) for block in answer["blocks"]],
        reasons=[shown(text) for text in (*answer["reasons"], *answer["notes"], *_of_run(answer["blocks"]))],
    )  # fmt: skip


def _columns(answer: dict[str, Any]) -> tuple[list[str], list[str]]:
    """(sources with a column of their own, the rest), in the order of the candidates."""
    weight: dict[str, float] = defaultdict(float)
    for block in answer["blocks"]:
        for share in block["mixture"]:
            weight[share["ref"]] += abs(share["weight"])
    first = sorted(answer["candidates"], key=lambda ref: -weight[ref])[:COLUMNS]
    return [ref for ref in answer["candidates"] if ref in first], [
        ref for ref in answer["candidates"] if ref not in first
    ]


def _row(block: dict[str, Any], columns: list[str], others: list[str]) -> dict[str, Any]:
    """A block's cells: its share of each column, of the others, and what is unknown, which has a word of its own where
    the block is from none of the candidates or undecided."""
    share: dict[str, float] = defaultdict(float)
    for part in block["mixture"]:
        share[part["ref"]] += part["weight"]
    equal, sources = block["kind"] == "equal", {part["ref"] for part in block["mixture"]}
    cells = [_cell(share[ref], equal and ref in sources) for ref in columns]
    cells += [_cell(sum(share[ref] for ref in others))] if others else []
    cells += [_cell(block["unknown"] or 0.0)] if block["kind"] not in ("none", "undecided") else []
    moved = block["facts"].get("moved") and block["parent_block"]
    return {
        "block": block["block"], "kind": block["kind"], "moved_from": moved or "", "cells": cells, "tip": _tip(block),
    }  # fmt: skip


RUN = {"match": "features", "detector_match": "the detector"}  # facts of a block that was run → what gave them


def _nearest(block: dict[str, Any]) -> list[tuple[str, str, float]]:
    """(kind of evidence, candidate, its match) of the candidate that each kind puts first."""
    found = [(what, block["facts"][key]) for key, what in RUN.items() if block["facts"].get(key)]
    return [(what, *max(matches.items(), key=lambda item: item[1])) for what, matches in found]


def _of_run(blocks: list[dict[str, Any]]) -> list[str]:
    """How often features and detector name the origin that is shown."""
    named = [(what, ref == block["parent"]) for block in blocks if block["parent"] for what, ref, _ in _nearest(block)]
    return [
        f"By {what} {sum(same)} of {len(same)} blocks are most like the origin that is shown."
        for kind in RUN.values() if (same := [right for what, right in named if what == kind]) for what in [kind]
    ]  # fmt: skip


def _cell(value: float, equal: bool = False) -> dict[str, Any]:
    text = "=" if equal else f"{value:.2f}" if abs(value) >= 0.005 else ""
    return {"shade": max(0.0, min(1.0, value)), "text": text}


def _tip(block: dict[str, Any]) -> str:
    """Block, origin, probability, mixture, in one line."""
    texts = [block["block"]]
    if block["parent"]:
        texts.append(f"origin {block['parent']}, block {block['parent_block']} ({KINDS[block['kind']]})")
    else:
        texts.append(KINDS[block["kind"]])
    if block["probability"] is not None:
        texts.append(f"probability {block['probability']:.3f}")
    texts += [f"by {what} {ref}, match {match:.3f}" for what, ref, match in _nearest(block)]
    if block["log10_p"] is not None:
        texts.append(f"p {p_text(block['log10_p'])}")
    if len(block["mixture"]) > 1:
        parts = [f"{part['weight']:.3f} ± {part['stderr']:.3f} of {part['ref']}" for part in block["mixture"]]
        texts.append("mixture " + ", ".join(parts))
    if block["unknown"] and block["unknown"] >= 0.005 and block["parent"]:
        texts.append(f"unknown {block['unknown']:.3f}")
    return "; ".join(texts)
