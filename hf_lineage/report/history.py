"""A `History` as text. Names in it are untrusted text and are cleaned here."""

from __future__ import annotations

from ..answers.history import History
from ..answers.refs import printable
from .console import WIDTH, labelled
from .format import bytes_text, code, listed_text
from .text import commit_text

SHOWN = {True: "yes", False: "no", None: "does not show"}
STORED = {"bf16": "BF16", "fp16": "F16"}  # how a header spells a format
MAX_LAYERS = 8  # pairs of repeated layers that are named


def table(history: History, width: int = WIDTH) -> str:
    """What shows, line by line, in at most `width` columns."""
    lines = [
        *labelled("model    ", commit_text(history.model), width), *labelled("says     ", sentence(history), width), "",
    ]  # fmt: skip
    for what, value in _facts(history):
        lines += labelled(f"{what:<24}", value, width)
    lines.append("")
    for found in history.evidence.values():
        lines += labelled("because  ", printable(found.reason), width)
    lines += [line for note in history.notes for line in labelled("note     ", printable(note), width)]
    return "\n".join([*lines, *labelled("read     ", _cost(history), width)])


def markdown(history: History) -> str:
    """The same with names in full; every foreign name is escaped."""
    rows = ["| | |", "|---|---|", *(f"| {what} | {value} |" for what, value in _facts(history))]
    reasons = [f"- {code(found.reason)}" for found in history.evidence.values()]
    notes = [f"- {code(note)}" for note in history.notes]
    head = [f"## The past of {code(history.model.name)}", "", sentence(history, whole=True), ""]
    return "\n".join([*head, *rows, "", *reasons, *notes]) + "\n"


def sentence(history: History, whole: bool = False) -> str:
    """What shows, in one sentence. `whole`: the model's name in full, as code."""
    name = code(history.model.name) if whole else printable(history.model.name)
    said = []
    if history.lattice and history.stored != STORED[history.lattice]:
        said.append(f"holds {history.lattice} values in {history.stored}")
    if history.began_from:
        said.append(f"was made from {history.began_from} numbers: trained from them, or a merge or a multiple of them")
    elif history.kept_in_half:
        said.append(f"was trained with its weights kept in {history.lattice}, or cut off to it")
    elif history.trained_since:
        said.append(f"was trained from another model in {history.lattice}, or rescaled in it")
    if history.repeated_layers:
        said.append("has repeated layers")
    return f"{name} {listed_text(said)}." if said else f"Nothing of the past of {name} shows in its values."


def _facts(history: History) -> list[tuple[str, str]]:
    layers = ", ".join(f"{one} = {other}" for one, other in history.repeated_layers[:MAX_LAYERS])
    more = len(history.repeated_layers) - MAX_LAYERS
    return [
        ("stored", history.stored or "-"),
        ("values lie on", history.lattice or "no coarser format"),
        ("trained since", SHOWN[history.trained_since]),
        ("kept in half precision", SHOWN[history.kept_in_half]),
        ("began from", history.began_from or SHOWN[None]),
        ("repeated layers", layers + (f" and {more} more" if more > 0 else "") or "none found"),
    ]


def _cost(history: History) -> str:
    return f"{bytes_text(history.bytes_read)} in {history.seconds:.1f} s"
