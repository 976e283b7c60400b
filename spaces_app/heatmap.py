"""The map of layers: a table of child blocks × sources, coloured in one hue, with the number in every cell.

Colours are CSS variables of style.css, so the same HTML serves light and dark. One row is in the tab order at a time;
the arrow keys move between rows, and `MAP_JS` puts what is pointed at, focused or tapped into the line above the map.
"""

from __future__ import annotations

from collections import defaultdict
from typing import Any

from show import View, esc, fold, listed, megabytes, model, p_text, pre, shown

COLUMNS = 8  # sources that get one; the rest share a column
MID, DEEP = 0.52, 0.78  # shares from which text in a cell turns, in the dark and in the light theme
KINDS = {
    "equal": "every weight equal", "tuned": "tuned", "mixture": "a mixture", "none": "from none of these",
    "undecided": "not to be told",
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
    revision = answer["child"]["revision"]
    read = f"read {megabytes(answer['bytes_read'])} in {answer['seconds']:.1f} s"
    asked = f"{model(answer['child']['ref'], revision)} · {read}"
    recipe = view.get("recipe", "")
    return (
        f'<section class="hl" aria-label="Layers"><h2 class="hl-said">{esc(view["sentence"], 2000)}</h2>'
        f'<p class="hl-small">{asked}</p>{_map(answer)}{_whole(view)}{fold("As text", pre(view["table"]))}'
        f"{fold('Recipe for mergekit', pre(recipe)) if recipe else ''}</section>"
    )


def _map(answer: dict[str, Any]) -> str:
    blocks = answer["blocks"]
    if not blocks:
        return "<p>No blocks could be compared.</p>"
    columns, others = _columns(answer)
    heads = [f'<th scope="col">{model(ref)}</th>' for ref in columns]
    heads += ['<th scope="col">others</th>'] if others else []
    heads.append('<th scope="col">unknown</th>')
    rows = [_row(block, columns, others, tab=0 if i == 0 else -1) for i, block in enumerate(blocks)]
    many = " hl-many" if len(blocks) > 30 else ""
    key = "".join(f'<span class="hl-cell{_ink(s)}" style="--s:{s}">{s:.2f}</span>' for s in (0.0, 0.25, 0.5, 0.75, 1.0))
    return (
        '<p class="hl-detail" aria-live="polite">Point at a row, tap it, or move with the arrow keys.</p>'
        f'<div class="hl-scroll hl-tall"><table class="hl-map{many}">'
        '<caption class="hl-hidden">Share of each block of the model by source</caption>'
        f'<thead><tr><th scope="col">block</th>{"".join(heads)}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
        f'<p class="hl-small hl-key">share of the block {key}'
        '<span class="hl-cell hl-nobody">none</span> from none of these '
        '<span class="hl-cell hl-open">?</span> not to be told <span>= every weight equal</span></p>'
    )


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


def _row(block: dict[str, Any], columns: list[str], others: list[str], tab: int) -> str:
    share: dict[str, float] = defaultdict(float)
    for part in block["mixture"]:
        share[part["ref"]] += part["weight"]
    equal, sources = block["kind"] == "equal", {part["ref"] for part in block["mixture"]}
    cells = [_cell(share[ref], equal and ref in sources) for ref in columns]
    cells += [_cell(sum(share[ref] for ref in others))] if others else []
    if block["kind"] == "none":
        cells.append('<td class="hl-cell hl-nobody">none</td>')
    elif block["kind"] == "undecided":
        cells.append('<td class="hl-cell hl-open">?</td>')
    else:
        cells.append(_cell(block["unknown"] or 0.0))
    tip = esc(_tip(block), 600)
    return (
        f'<tr tabindex="{tab}" data-tip="{tip}" title="{tip}" aria-label="{tip}">'
        f'<th scope="row">{esc(block["block"], 40)}{_from(block)}</th>{"".join(cells)}</tr>'
    )


def _from(block: dict[str, Any]) -> str:
    if not block["facts"].get("moved") or not block["parent_block"]:
        return ""
    return f' <span class="hl-from">from {esc(block["parent_block"], 40)}</span>'


def _cell(value: float, equal: bool = False) -> str:
    shade = max(0.0, min(1.0, value))
    told = "=" if equal else f"{value:.2f}" if abs(value) >= 0.005 else ""
    return f'<td class="hl-cell{_ink(shade)}" style="--s:{shade:.3f}">{told}</td>'


def _ink(shade: float) -> str:
    return " hl-deep" if shade >= DEEP else " hl-mid" if shade >= MID else ""


def _tip(block: dict[str, Any]) -> str:
    """Block, origin, probability, mixture, in one line."""
    told = [block["block"]]
    if block["parent"]:
        told.append(f"origin {block['parent']}, block {block['parent_block']} ({KINDS[block['kind']]})")
    else:
        told.append(KINDS[block["kind"]])
    if block["probability"] is not None:
        told.append(f"probability {block['probability']:.3f}")
    if block["log10_p"] is not None:
        told.append(f"p {p_text(block['log10_p'])}")
    if len(block["mixture"]) > 1:
        parts = [f"{part['weight']:.3f} ± {part['stderr']:.3f} of {part['ref']}" for part in block["mixture"]]
        told.append("mixture " + ", ".join(parts))
    if block["unknown"] and block["unknown"] >= 0.005 and block["parent"]:
        told.append(f"unknown {block['unknown']:.3f}")
    return "; ".join(told)


def _whole(view: View) -> str:
    answer = view["answer"]
    items = [
        f"<li>{share['weight']:.3f} ± {share['stderr']:.3f} {model(share['ref'])}</li>" for share in answer["mixture"]
    ]
    told = f"<h3>The whole model</h3><ul>{''.join(items)}</ul>" if len(items) > 1 else ""
    because = listed(shown(view, text) for text in (*answer["reasons"], *answer["notes"]))
    return told + (f"<h3>Because</h3>{because}" if because else "")
