"""Our own Markdown as HTML, for notebooks and for the report: headings, tables, nested lists, code, bold, links.

Only what `to_markdown` of the answers writes is understood. All of it is escaped; no other mark makes an element.
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterator
from itertools import takewhile

_INLINE = re.compile(r"`([^`]*)`|\*\*([^*]+)\*\*|\[([^\]]+)\]\((https?://[^)\s]+)\)")
_ENTITY = re.compile(r"&(lt|gt|amp);")


def fragment(markdown: str) -> str:
    """The elements for a text of ours, without a page around them.

    >>> print(fragment("## A `<b>`\\n\\nText **so**.\\n\\n- one\\n  - two\\n"))
    <div class="hf-lineage">
    <h2>A <code>&lt;b&gt;</code></h2>
    <p>Text <strong>so</strong>.</p>
    <ul><li>one<ul><li>two</li></ul></li></ul>
    </div>
    """
    return "\n".join(['<div class="hf-lineage">', *_blocks(markdown.splitlines()), "</div>"])


def _blocks(lines: list[str]) -> Iterator[str]:
    at = 0
    while at < len(lines):
        line = lines[at]
        if fence := re.fullmatch(r"(`{3,})\w*", line):
            end = next((i for i in range(at + 1, len(lines)) if lines[i] == fence[1]), len(lines))
            yield f"<pre>{html.escape(chr(10).join(lines[at + 1 : end]))}</pre>"
            at = end + 1
            continue
        kind = _kind(line)
        rest = [] if kind == "head" else takewhile(kind.__eq__, map(_kind, lines[at + 1 :]))
        same = lines[at : at + 1 + sum(1 for _ in rest)]
        at += len(same)
        match kind:
            case "head":
                level = len(line) - len(line.lstrip("#"))
                yield f"<h{level}>{_inline(line.lstrip('#').strip())}</h{level}>"
            case "table":
                yield _table(same)
            case "list":
                yield _list(same)
            case "text":
                yield f"<p>{_inline(' '.join(same))}</p>"


def _kind(line: str) -> str:
    marks = {"#": "head", "|": "table", "-": "list", "`": "fence" if line.startswith("```") else "text"}
    return marks.get(line.lstrip()[:1], "text") if line.strip() else "none"


def _table(lines: list[str]) -> str:
    rows = [[cell.strip() for cell in line.strip().strip("|").split("|")] for line in lines]
    right = [cell.endswith(":") for cell in rows[1]] if len(rows) > 1 else []

    def drawn(cells: list[str], tag: str) -> str:
        styles = [' style="text-align:right"' if i < len(right) and right[i] else "" for i in range(len(cells))]
        return "".join(f"<{tag}{style}>{_inline(cell)}</{tag}>" for cell, style in zip(cells, styles, strict=True))

    head = f"<thead><tr>{drawn(rows[0], 'th')}</tr></thead>" if any(rows[0]) else ""
    body = "".join(f"<tr>{drawn(row, 'td')}</tr>" for row in rows[2:])
    return f"<table>{head}<tbody>{body}</tbody></table>"


def _list(lines: list[str]) -> str:
    """Items by their indentation, two blanks a level."""
    out, depth = [], -1
    for line in lines:
        level = min((len(line) - len(line.lstrip())) // 2, depth + 1)
        out.append("</li>" if level <= depth else "<ul>")
        out += ["</ul></li>"] * (depth - level)
        out.append(f"<li>{_inline(line.strip()[1:].strip())}")
        depth = level
    return "".join([*out, "</li></ul>" * (depth + 1)])


def _inline(text: str) -> str:
    parts, at = [], 0
    for found in _INLINE.finditer(text):
        parts.append(_escaped(text[at : found.start()]))
        code, bold, words, address = found.groups()
        if code is not None:
            parts.append(f"<code>{html.escape(code)}</code>")
        elif bold is not None:
            parts.append(f"<strong>{_escaped(bold)}</strong>")
        else:
            parts.append(f'<a href="{html.escape(address)}">{_escaped(words)}</a>')
        at = found.end()
    return "".join([*parts, _escaped(text[at:])])


def _escaped(text: str) -> str:
    """Escaped once: what Markdown had to write as an entity already stays one."""
    return html.escape(_ENTITY.sub(lambda found: html.unescape(found[0]), text), quote=False)
