"""What a model card says of a `Lineage`: the section, its machine-readable comment, the pull request's text.

The same answer gives the same bytes: no date, no seconds, no bytes read. Names are untrusted text: they are shown as
inline code, from which no markup, mention or link can get out.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from ..answers.annotation import MARK
from ..answers.layers import LayerLineage
from ..answers.lineage import Candidate, Lineage
from ..answers.refs import ModelRef, is_repo_id, printable
from .format import code, p_text
from .layers import MERGES, redone_text, unexplained
from .layers import markdown as layers_markdown
from .layers import sentence as layers_sentence
from .privacy import is_local
from .sentences import Show, assumption, claim_text, sentence
from .words import relation_words

START, END = MARK.decode(), "<!-- hf-lineage:end -->"
SCHEMA = "hf_lineage/card/1"
TITLE = "Add model lineage"
MAX_ROWS, MAX_LAYER_ROWS, MAX_NOTES, MAX_NAME_CHARACTERS = 8, 40, 6, 300
MAX_COMMAND_CANDIDATES = 24  # candidates that the command to reproduce names
MAX_COMMENT_CHARACTERS = 1 << 20  # characters of a machine-readable comment that are looked at
SURE = ((0.99, "very sure"), (0.9, "sure"), (0.75, "fairly sure"), (0.5, "more likely than not"))
EVIDENCE = ("weights", "features", "detector")  # that can be asked for
COMMENT = "<!-- hf-lineage "
MADE_OF_SEVERAL = frozenset({"passthrough", "linear", "slerp", "task_arithmetic", "ties", "dare", *MERGES})
LEAST_SHARE = 0.02  # of a merge: the least weight of a source that is named
EXACT = 0.01  # share of the norm; below it even what looks like a child of the child is a source, not by chance


def section(
    lineage: Lineage, layers: LayerLineage | None = None, *, notes: Sequence[str] = (), pictures: bool = True
) -> str:
    """The whole section with its marks, lines ended by a line feed. `lineage` must be fit for the public already."""
    body = [
        "",
        "## Model lineage",
        "",
        headline(lineage, layers, quoted),
        "",
        confidence(lineage, layers),
        "",
        *_candidates(lineage, sources(lineage, layers)),
        *(["![Candidates: how sure, and how near](lineage/lineage.png)", ""] if pictures else []),
        *(_layers(layers, pictures) if layers is not None else []),
        *_listed([*_claims(lineage), *notes, *_notes(lineage, layers)]),
        *_reproduce(lineage, layers),
        "The p-value is the chance of such an agreement between models that were trained separately, from starts of "
        "their own. It does not tell a parent from another relative, nor whether anything was permitted."
        + (f" {assumed}" if (assumed := assumption(next(iter(lineage.candidates), None))) else ""),
        "",
    ]
    data = essentials(lineage, layers)
    data["digest"] = _digest(data, body)
    return "\n".join([START, f"{COMMENT}{comment_json(data)} -->", *body, END])


def essentials(lineage: Lineage, layers: LayerLineage | None = None) -> dict[str, Any]:
    """What the comment holds for machines: the answer in a few fields."""
    parent = candidate_of(lineage, lineage.parent)
    return {
        "schema": SCHEMA,
        "version": lineage.versions.get("hf_lineage", ""),
        "child": at_commit(lineage.child.name, lineage.child.revision),
        "verdict": lineage.verdict,
        "parent": at_commit(parent.ref, parent.revision) if parent else None,
        "relation": parent.relation if parent else None,
        "probability": _number(parent.probability) if parent else None,
        "p_value": _number(parent.p_value) if parent else None,
        "candidates": sorted({at_commit(c.ref, c.revision) for c in asked(lineage)}),
        "contradicted": sorted({f"{c.source} {c.ref}" for c in lineage.claims if c.status == "contradicted"}),
        "layers": _layers_data(lineage, layers) if layers is not None else None,
        "alpha": _number(lineage.alpha),
        "seed": lineage.seed,
    }


def is_up_to_date(old: str, new: str) -> bool:
    """Whether a section that is there says what the new one says, and nobody changed it.

    Its own words must be as they were written; verdict, parent, relation and level equal; and all that the new one
    knows of candidates, contradicted claims and layers known to it: once the card names the parent, fewer candidates
    are found, and the commit of the child is another although its weights are the same.
    """
    was, now = _data(old), _data(new)
    if not was or not now or was.get("digest") != _digest(was, _lines(old)[2:-1]):
        return False
    same = ("schema", "verdict", "parent", "relation", "alpha")
    return (
        all(was.get(name) == now.get(name) for name in same)
        and all(_holds(was.get(name), now[name]) for name in ("candidates", "contradicted"))
        and now["layers"] in (None, was.get("layers"))
    )


def comment_json(data: Mapping[str, Any]) -> str:
    """One line of JSON that can stand in an HTML comment.

    >>> comment_json({"name": "a--><b"})
    '{"name":"a\\\\u002d\\\\u002d\\\\u003e\\\\u003cb"}'
    """
    text = json.dumps(data, separators=(",", ":"), allow_nan=False)
    return text.replace("--", "\\u002d\\u002d").replace("<", "\\u003c").replace(">", "\\u003e")


def description(
    lineage: Lineage, layers: LayerLineage | None = None, *, notes: Sequence[str] = (), added: Sequence[str] = ()
) -> str:
    """What the pull request says to the owner of the repo; `added`: the keys of metadata that it adds."""
    of_layers = [layers_sentence(layers, quoted), ""] if layers is not None and not sources(lineage, layers) else []
    lines = [
        headline(lineage, layers, quoted),
        "",
        confidence(lineage, layers),
        "",
        *of_layers,
        *_listed([*_claims(lineage), *notes]),
        *_reproduce(lineage, layers),
        "This was read from the weights by hf_lineage. It adds a section to the card"
        + (f", and {' and '.join(quoted(key) for key in added)} to its metadata" if added else "")
        + "; no line that was there is changed. What stands between the two `hf-lineage` comments is replaced when it "
        "is run again. If it is wrong, close this and say why.",
    ]
    return "\n".join(lines) + "\n"


def headline(lineage: Lineage, layers: LayerLineage | None = None, show: Show | None = None) -> str:
    """The answer in one sentence: of a merge how it was made, since no single model is its parent."""
    if layers is not None and sources(lineage, layers):
        return f"A merge. {layers_sentence(layers, show)}"
    return sentence(lineage, show)


def sources(lineage: Lineage, layers: LayerLineage | None) -> list[str]:
    """The models that a merge was made of, the largest share first; empty where that is not sure, or it is no merge.

    Each must share an origin with the child at the level α. Where one looks as if it was made from the child, which an
    average of two children of a base does to them, the sources must also leave next to nothing unexplained: of a
    parent and its children the parent is nearly the average, too. A merge that was made again bit for bit is sure.
    """
    if layers is None or layers.method not in MADE_OF_SEVERAL or lineage.verdict not in ("parent", "common_origin"):
        return []
    shares = {share.ref: abs(share.weight) for share in layers.mixture}
    refs = [ref for ref in shares if shares[ref] >= LEAST_SHARE]
    refs += [b.parent for b in layers.blocks if b.parent and b.index is not None and b.parent not in shares]
    refs = sorted(dict.fromkeys(refs), key=lambda ref: (-shares.get(ref, 0.0), ref))
    tested = all((_log10_p(lineage, layers, ref) or 0.0) <= math.log10(lineage.alpha) for ref in refs)
    found = [candidate_of(lineage, ref) for ref in refs]
    left = unexplained(layers)
    turned = any(c is not None and c.relation == "descendant" for c in found) and (left is None or left > EXACT)
    proven = layers.redone is not None and layers.redone.whole
    return refs if len(refs) > 1 and (proven or (tested and not turned)) else []


def _log10_p(lineage: Lineage, layers: LayerLineage, ref: str) -> float | None:
    """The smallest p-value of a model or of a block that is from it."""
    whole = candidate_of(lineage, ref)
    found = [whole.log10_p if whole else None, *(b.log10_p for b in layers.blocks if b.parent == ref)]
    return min((p for p in found if p is not None), default=None)


def confidence(lineage: Lineage, layers: LayerLineage | None = None) -> str:
    """How sure, in words and in figures."""
    compared = [c for c in lineage.candidates if c.status == "compared"]
    of = f"{len(compared)} of {len(lineage.candidates)} candidates compared"
    figures = [of, f"level α = {lineage.alpha:g}"]
    if layers is not None and (merged := sources(lineage, layers)):
        worst = max(_log10_p(lineage, layers, ref) or 0.0 for ref in merged)
        figures.insert(0, f"p-values {p_text(worst)} at most")
        return f"How sure: **very sure that all of them share its origin** ({', '.join(figures)})."
    if lineage.none_probability is not None:
        figures.insert(1, f"probability that none of them is the parent {lineage.none_probability:.3f}")
    best = compared[0] if compared else None
    if best is not None and best.p_value is not None:
        figures.insert(0, f"p-value {p_text(best.log10_p)}")
    if best is not None and best.probability is not None:
        figures.insert(0, f"probability {best.probability:.3f}")
    word = "open"
    if best is not None and lineage.verdict in ("parent", "identical"):
        word = next((word for least, word in SURE if (best.probability or 0.0) >= least), "open")
    elif lineage.verdict == "none":
        word = "no sign of a common origin with any of them"
    elif lineage.verdict == "common_origin":
        word = "related; which one is the parent is open"
    return f"How sure: **{word}** ({', '.join(figures)})."


def licences(child: Mapping[str, Any], parent: Mapping[str, Any] | None, ref: str) -> list[str]:
    """Facts about the licence and the gate of a parent: only what differs, and no advice.

    Both mappings have the fields `license`, `license_name`, `gated` of a card; the parent's is None if it was not read.
    """
    name = quoted(ref)
    if parent is None:
        return [f"The card of {name} could not be read: its licence was not compared."]
    mine, theirs = _licence(child), _licence(parent)
    facts = []
    if theirs and not mine:
        facts.append(f"The card of {name} declares the licence {quoted(theirs)}; this card declares none.")
    elif theirs and mine and mine.lower() != theirs.lower():
        facts.append(f"The card of {name} declares the licence {quoted(theirs)}; this card declares {quoted(mine)}.")
    if parent.get("gated") and not child.get("gated"):
        facts.append(f"Access to {name} is gated; access to this model is not.")
    return facts


def at_commit(ref: str, revision: str | None) -> str:
    """`org/name@commit`."""
    return f"{ref}@{revision}" if revision else ref


def quoted(text: str) -> str:
    """A foreign text as inline code of bounded length."""
    return code(text, MAX_NAME_CHARACTERS)


def _licence(card: Mapping[str, Any]) -> str:
    value = card.get("license")
    if isinstance(card.get("license_name"), str) and value in (None, "other"):
        value = card["license_name"]
    found = value if isinstance(value, list) else [value]
    return ", ".join(one for one in found if isinstance(one, str))


def _candidates(lineage: Lineage, merged: Sequence[str] = ()) -> list[str]:
    rows = ["| candidate | commit | probability | p-value | distance | relation |", "|---|---|---:|---:|---:|---|"]
    for c in lineage.candidates[:MAX_ROWS]:
        name = quoted(c.ref) + (" (local copy)" if is_local(c.ref) else "")
        commit = quoted(c.revision[:10]) if c.revision else ""
        probability = "-" if merged else _text(c.probability, ".3f")  # that it alone is the parent
        figures = [probability, p_text(c.log10_p), _text(c.distance, ".3g")]
        relation = "source of the merge" if c.ref in merged else relation_words(c.relation, "")
        if c.status != "compared":
            figures, relation = ["", "", ""], c.status.replace("_", " ")
        rows.append(f"| {name} | {commit} | {' | '.join(figures)} | {relation} |")
    if lineage.none_probability is not None and not merged:
        rows.append(f"| none of these | | {lineage.none_probability:.3f} | | | |")
    more = len(lineage.candidates) - MAX_ROWS
    return [*rows, "", *([f"and {more} more; `lineage.json` has all of them.", ""] if more > 0 else [])]


def _layers(layers: LayerLineage, pictures: bool) -> list[str]:
    """The table of `report/layers.py`, cut after so many rows."""
    head, rows = 2, [line for line in layers_markdown(layers).splitlines() if line.startswith("|")]
    more = len(rows) - head - MAX_LAYER_ROWS
    return [
        "### Layers",
        "",
        layers_sentence(layers, quoted),
        "",
        *([redone_text(layers), ""] if layers.redone else []),
        *rows[: head + MAX_LAYER_ROWS],
        "",
        *([f"and {more} more rows; `lineage/layers.json` has all of them.", ""] if more > 0 else []),
        *(["![Layers: what share of each block is whose](lineage/layers.png)", ""] if pictures else []),
    ]


def _layers_data(lineage: Lineage, layers: LayerLineage) -> dict[str, Any]:
    origins = [(b.block, b.kind, b.parent, layers.revisions.get(b.parent or ""), b.parent_block) for b in layers.blocks]
    merged = [at_commit(ref, layers.revisions.get(ref)) for ref in sources(lineage, layers)]
    digest = hashlib.sha256(json.dumps(origins).encode()).hexdigest()
    return {"method": layers.method, "sources": merged, "digest": digest}


def _claims(lineage: Lineage) -> list[str]:
    """What somebody declares and the weights do not bear out; the rest is no news on a card."""
    news = [claim for claim in lineage.claims if claim.status in ("contradicted", "relative")]
    return [f"The {claim.source} names {quoted(claim.ref)}: {claim_text(lineage, claim)}." for claim in news]


def _notes(lineage: Lineage, layers: LayerLineage | None) -> list[str]:
    notes = [quoted(note) for note in dict.fromkeys([*lineage.notes, *(layers.notes if layers else ())])]
    more = len(notes) - MAX_NOTES
    local = [c for c in lineage.candidates if is_local(c.ref)]
    names = ", ".join(quoted(c.ref) for c in local[:3]) + (f" and {len(local) - 3} more" if len(local) > 3 else "")
    copies = [f"A local copy is shown by its folder's name: {names}"] if local else []
    return [*copies, *notes[:MAX_NOTES], *([f"and {more} more notes in `lineage.json`"] if more > 0 else [])]


def _listed(texts: Sequence[str]) -> list[str]:
    return [*(f"- {text}" for text in texts), ""] if texts else []


def _reproduce(lineage: Lineage, layers: LayerLineage | None) -> list[str]:
    version = lineage.versions.get("hf_lineage", "")
    heading = "How to reproduce" + (f" (hf_lineage {printable(version)})" if re.fullmatch(r"[\w.+]+", version) else "")
    kinds = [kind for kind in EVIDENCE if any(kind in c.evidence for c in lineage.candidates)]
    commands = [_command(lineage, "trace", kinds)]
    commands += [_command(lineage, "layers", layers.evidence)] if layers is not None else []
    left_out = len(lineage.candidates) - len(asked(lineage))
    rest = [f"{left_out} more candidates that show nothing are left out here; `lineage.json` has them.", ""]
    return [f"{heading}:", "", "```sh", *commands, "```", "", *(rest if left_out else [])]


def asked(lineage: Lineage) -> Sequence[Candidate]:
    """The candidates that the command names: of the hundreds of a search only the relatives."""
    if len(lineage.candidates) <= MAX_COMMAND_CANDIDATES:
        return lineage.candidates
    related = [c for c in lineage.candidates if c.relation not in (None, "none")]
    return (related or lineage.candidates)[:MAX_COMMAND_CANDIDATES]


def _command(lineage: Lineage, name: str, kinds: Sequence[str]) -> str:
    parts = [f"hf-lineage {name} {_word(at_commit(lineage.child.name, lineage.child.revision))}"]
    named = [c for c in asked(lineage) if not c.ref.startswith("module:")]
    refs = sorted({(c.ref, c.revision or "") for c in named})
    parts += [f"-c {_word(at_commit(ref, revision))}" for ref, revision in refs]
    if name == "trace" and any("tree" in c.evidence for c in lineage.candidates):
        parts.append("--tree")
    if kinds and list(kinds) != ["weights"]:
        parts += [f"--evidence {_word(kind)}" for kind in kinds]
    return " \\\n  ".join([*parts, f"--alpha {lineage.alpha:g} --seed {lineage.seed}"])


def _word(text: str) -> str:
    """One word of a command, quoted for the shell and for a block of code."""
    return shlex.quote(re.sub(r"[`<>]", "?", printable(text)))


def _text(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def _number(value: float | None) -> float | None:
    return float(f"{value:.9g}") if value is not None and math.isfinite(value) else None


def _digest(data: Mapping[str, Any], body: Sequence[str]) -> str:
    """Of all that a section says, however its lines end."""
    content = {name: value for name, value in data.items() if name != "digest"}
    return hashlib.sha256("\n".join([json.dumps(content, sort_keys=True), *body]).encode()).hexdigest()


def _holds(known: Any, names: Sequence[str]) -> bool:
    return isinstance(known, list) and all(name in known for name in names)


def _lines(text: str) -> list[str]:
    return re.split(r"\r\n|\n|\r", text)


def _data(text: str) -> dict[str, Any]:
    """The comment of a section; empty where somebody took it out or changed its form."""
    line = [*_lines(text), "", ""][1]
    if not line.startswith(COMMENT) or not line.endswith(" -->") or len(line) > MAX_COMMENT_CHARACTERS:
        return {}
    try:
        data = json.loads(line.removeprefix(COMMENT).removesuffix(" -->"))
    except (ValueError, RecursionError):
        return {}
    return data if isinstance(data, dict) else {}


def hub_repo(ref: str) -> str:
    """The repo on the Hub that a reference lies in; "" where it lies in none.

    >>> hub_repo("org/name"), hub_repo("org/name/unet"), hub_repo("./folder"), hub_repo("module:Net")
    ('org/name', 'org/name', '', '')
    """
    repo = ModelRef("hub", ref).repo_id
    return repo if not is_local(ref) and is_repo_id(repo) else ""


def candidate_of(lineage: Lineage, ref: str | None) -> Candidate | None:
    """The candidate of that ref."""
    return next((c for c in lineage.candidates if c.ref == ref), None)
