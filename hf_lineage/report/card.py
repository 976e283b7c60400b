"""Edits of a model card's text: our section and our lines of metadata are added, every other byte stays.

The section stands between `START` and `END`, which may come once each, anywhere in the body: also within a block of
code, since nothing but their text marks them. Metadata is added where the author has none.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Collection, Mapping
from typing import Any

from ..answers.layers import LayerLineage
from ..answers.lineage import PARENT_RELATIONS, Lineage
from ..errors import CardError, Note
from .section import END, START, candidate_of, hub_repo, is_up_to_date, quoted, sources
from .sentences import is_adapter

MAX_CARD = 10 << 20  # bytes of a README.md that is edited
MAX_METADATA = 1_000_000  # characters of YAML that are added to: PyYAML takes a second for them
SURE_ENOUGH = 0.75  # the least probability of a parent that is written into the metadata
RELATIONS = {
    "finetune": "finetune", "head_changed": "finetune", "partial": "finetune", "resized": "finetune",
    "pruned": "finetune", "adapter": "adapter", "quantized": "quantized", "merge": "merge",
}  # fmt: skip

# the Hub's own: what it takes for metadata
BLOCK = re.compile(r"^(\s*---(?:\r\n|\r|\n))([\S\s]*?)((?:\r\n|\r|\n)---[ \t]*(\r\n|\n|$))")
EMPTY = re.compile(r"^\s*---(?:\r\n|\r|\n)(?=---[ \t]*(?:\r\n|\n|$))")  # nothing between, which the Hub overlooks
KEPT = "metadata_kept"  # the code of the notes
COMMENTS = re.compile(r"(?>[ \t]*(?:#[^\r\n]*)?(?:\r\n|\r|\n|$))*+")  # atomic: a line end can be read in two ways

Load = Callable[[bytes], dict]  # reads untrusted YAML; empty where it cannot be read
Metadata = Mapping[str, str | list[str]]


def decode(raw: bytes) -> str:
    """A README.md as text that `encode` gives back byte for byte. Raises `CardError`."""
    if len(raw) > MAX_CARD:
        raise CardError(f"Expected a README.md of at most {MAX_CARD:,} bytes, got {len(raw):,}. Shorten it.")
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise CardError(
            f"Expected a README.md in UTF-8, got byte 0x{raw[error.start]:02x} at {error.start:,}. "
            "Save it as UTF-8; nothing was written."
        ) from error


def edit(
    text: str, section: str, wanted: Metadata, load: Load, confirmed: Collection[str] = ()
) -> tuple[str, list[Note]]:
    """The card with the section and with the metadata that it lacks; notes say what was left as it is, and why.

    `confirmed`: refs that were declared and stand for the parent, under whatever name.
    Nothing changes where the section is up to date (`section.is_up_to_date`). Raises `CardError` where the marks are
    not one pair in this order, or are in the metadata.
    """
    there = current(text)
    if there is not None and is_up_to_date(there, section):
        return text, []
    whole, notes = put_metadata(text, wanted, load, confirmed)
    result = put_section(whole, section)
    if metadata_of(result).rstrip("\r\n") != metadata_of(whole).rstrip("\r\n"):
        raise CardError("The section cannot be added without changing the metadata. Is `---` missing below them?")
    return result, notes


def current(text: str) -> str | None:
    """The section that is there, marks included. Raises `CardError` as `edit` does."""
    counts = (text.count(START), text.count(END))
    if counts == (0, 0):
        return None
    start, end = text.find(START), text.find(END)
    if counts != (1, 1) or start > end:
        raise CardError(
            f"Expected `hf-lineage:start` and `hf-lineage:end` once each, in this order, got {counts[0]} and "
            f"{counts[1]}. Take the extra comments out of the README.md."
        )
    if start < len(metadata_of(text)):
        raise CardError("The comments `hf-lineage:start` and `hf-lineage:end` stand in the metadata. Take them out.")
    return text[start : end + len(END)]


def put_section(text: str, section: str) -> str:
    """The section in place of the one that is there, or at the end; line ends are those of the card."""
    newline = newline_of(text)
    there, section = current(text), section.replace("\n", newline)
    if there is not None:
        return text.replace(there, section, 1)
    gap = "" if not text.strip("\ufeff") else newline * (2 - min(2, _trailing(text)))
    return f"{text}{gap}{section}{newline}"


def put_metadata(text: str, wanted: Metadata, load: Load, confirmed: Collection[str] = ()) -> tuple[str, list[Note]]:
    """The card with those of the wanted keys that it lacks; a declared `base_model` is never overwritten."""
    if not wanted:
        return text, []
    mark, body = ("\ufeff", text[1:]) if text.startswith("\ufeff") else ("", text)
    newline = newline_of(text)
    block = BLOCK.search(body)
    if (empty := EMPTY.match(body)) and not (block and load(block[2].encode())):
        return mark + body[: empty.end()] + _lines(wanted, newline, "") + newline + body[empty.end() :], []
    if block is None:
        if body.lstrip().startswith("---"):
            return text, [
                Note(KEPT, "The metadata of the card do not end, or not as the Hub expects: nothing was added to them.")
            ]
        return f"{mark}---{newline}{_lines(wanted, newline, '')}{newline}---{newline}{body}", []
    found = load(block[2].encode()) if len(block[2]) <= MAX_METADATA else {}
    if not found and not COMMENTS.fullmatch(block[2]):
        return text, [Note(KEPT, "The metadata of the card cannot be read as a mapping: nothing was added to them.")]
    if "base_model" in found:
        return text, _declared(found["base_model"], wanted["base_model"], confirmed)
    missing = {key: value for key, value in wanted.items() if key not in found}
    notes = []
    if "base_model_relation" in found and found["base_model_relation"] != wanted.get("base_model_relation"):
        declared = quoted(str(found["base_model_relation"]))
        notes.append(Note(KEPT, f"The card declares `base_model_relation` {declared}, which was left as it is."))
    for result in _extended(block, missing, newline):
        again = BLOCK.search(result)
        if again and _same(load(again[2].encode()), {**found, **missing}):
            return mark + result + body[block.end() :], notes
    return text, [*notes, Note(KEPT, "No line can be added to the card's metadata safely: add `base_model` yourself.")]


def wanted(lineage: Lineage, layers: LayerLineage | None = None) -> dict[str, str | list[str]]:
    """`base_model` and `base_model_relation` as the Hub spells them; empty where the answer is not sure enough.

    For a parent on the Hub of probability at least `SURE_ENOUGH` and with a p-value of at most α; for several of
    them where `layers` says how the model was merged. Of two equal models none is: who copied whom does not show.
    """
    if is_adapter(lineage):
        return {}  # it is the base of an adapter that the answer is about
    merged = sources(lineage, layers)
    repos = [hub_repo(ref) for ref in merged]
    if merged and not all(repos):
        return {}
    if merged:
        return {"base_model": list(dict.fromkeys(repos)), "base_model_relation": "merge"}
    best = candidate_of(lineage, lineage.parent)
    if best is None or lineage.verdict != "parent" or not hub_repo(best.ref):
        return {}
    if best.relation not in PARENT_RELATIONS or (best.probability or 0.0) < SURE_ENOUGH:
        return {}
    if best.p_value is None or best.p_value > lineage.alpha:
        return {}
    relation = RELATIONS.get(best.relation or "")
    found: dict[str, str | list[str]] = {"base_model": hub_repo(best.ref)}
    return found | ({"base_model_relation": relation} if relation else {})


def newline_of(text: str) -> str:
    """The line end that comes most often: `"\\n"` where there is none."""
    windows = text.count("\r\n")
    counts = {"\n": text.count("\n") - windows, "\r\n": windows, "\r": text.count("\r") - windows}
    return max(counts, key=lambda end: counts[end])


def _declared(value: Any, found: str | list[str], confirmed: Collection[str]) -> list[Note]:
    """A note where the declared base is not the one that was found."""
    declared, names = ([one] if isinstance(one, str) else one for one in (value, found))
    known = isinstance(declared, list) and declared and all(isinstance(one, str) for one in declared)
    if known and (declared == names or all(one in confirmed for one in declared)):
        return []
    says = quoted(", ".join(names))
    if not value:
        return [Note(KEPT, f"The card has an empty `base_model`, which was left as it is; the weights say {says}.")]
    text = ", ".join(str(one) for one in declared) if isinstance(declared, list) else str(declared)
    sentence = (
        f"The card declares `base_model` {quoted(text)}, which was left as it is; of the models that were compared the "
        f"weights say {says}."
    )
    return [Note(KEPT, sentence)]


def _extended(block: re.Match[str], missing: Metadata, newline: str) -> list[str]:
    """The metadata with the missing keys below, or above: one of the two is wrong in some YAML."""
    start, yaml, end = block.groups()[:3]
    first = COMMENTS.match(yaml)
    rest = yaml[first.end() :] if first else yaml
    lines = _lines(missing, newline, rest[: len(rest) - len(rest.lstrip(" "))])
    return [f"{start}{yaml}{newline if yaml else ''}{lines}{end}", f"{start}{lines}{newline}{yaml}{end}"]


def _lines(values: Metadata, newline: str, indent: str) -> str:
    """Lines of YAML, without an end of the last."""
    lines = []
    for key, value in values.items():
        if isinstance(value, list):
            lines += [f"{indent}{key}:", *(f"{indent}- {_scalar(one)}" for one in value)]
        else:
            lines.append(f"{indent}{key}: {_scalar(value)}")
    return newline.join(lines)


def _scalar(text: str) -> str:
    """A repo id or a relation: without a slash it might be read as a number or a truth value."""
    return text if "/" in text or text in RELATIONS.values() else f'"{text}"'


def metadata_of(text: str) -> str:
    """All up to the end of the metadata."""
    mark = 1 if text.startswith("\ufeff") else 0
    block = BLOCK.search(text[mark:])
    return text[: mark + block.end()] if block else ""


def _trailing(text: str) -> int:
    """How many line ends close the text, up to two."""
    end = re.search(r"(?:\r\n|\r|\n){0,2}\Z", text)
    return len(re.findall(r"\r\n|\r|\n", end[0])) if end else 0


def _same(one: Any, other: Any) -> bool:
    """Equal values of equal types; a NaN equals itself."""
    if type(one) is not type(other):
        return False
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(_same(one[key], other[key]) for key in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(_same(a, b) for a, b in zip(one, other, strict=True))
    return bool(one == other or (isinstance(one, float) and math.isnan(one) and math.isnan(other)))
