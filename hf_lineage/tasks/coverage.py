"""`coverage`: what of one model can be tested, from names and shapes alone."""

from __future__ import annotations

import re
from collections import Counter
from typing import TYPE_CHECKING, Any

from ..answers.coverage import Coverage, CoveredBlocks, LeftOut, TestedUnits, UnitCheck
from ..architecture.conventions import POSITIONS, VOCABULARY
from ..architecture.describe import Architecture, numbered_members, short_names
from ..architecture.structure import reason_left_out
from ..checkpoints.view import View
from ..errors import CheckpointError
from ..parallel import together
from ..weights.sampling import MIN_UNITS, has_units
from .options import Options
from .session import Session, session_of, skipped

if TYPE_CHECKING:
    from ..checkpoints.opener import Model

KNOWN_SHARE = 0.9  # of a block's parameters that must be told to be in one
TABLE = "each row belongs to a token or a position, which have an order of their own"


@together
def coverage(
    model: Model, *, check: bool = False, token: str | bool | None = None, allow_pickle: bool = False,
    session: Session | None = None,
) -> Coverage:  # fmt: skip
    """Say what of one model a p-value can be made of, by which rule, and why not of the rest.

    model: a Hub repo id, a path or a module. Only its header is read, names and shapes; no library of models is
    imported, and no code of the model's is run.

    check: hold the hidden units against the code that runs them, too: the class of transformers, timm or diffusers that
    the config names, or the module itself. Each kind of them is put in another order in a small part of the network,
    with random weights, which must not change what that gives (`features/unit_check.py`). This imports the library;
    code of the model's repo is still never run. `found.check.reason` says where it does not apply.

    A p-value needs hidden units: rows of a matrix in an order that training leaves arbitrary, at least 32 of them
    (docs/methods.md, *Hidden units by structure*).

    token, allow_pickle, session: as in `trace`. Raises `ModelNotFoundError`, `AccessDeniedError`, `CheckpointError`,
    `HubUnavailableError`, `ArgumentError`.
    """
    options = Options()
    with session_of(session, token, allow_pickle) as session:
        opened = session.opener.open(model)
        if opened.is_adapter:
            raise CheckpointError(
                f"`{opened.ref.name}` is a LoRA adapter and holds no weights of its own{opened.base_hint}."
            )
        view = session.view(opened)
        checked = _checked(view, model) if check else None
        cost = options.cost(session, 0)
        return Coverage(
            model=opened.ref, requested=opened.requested, **covered(view), check=checked,
            notes=tuple(skipped([opened])), **{name: cost[name] for name in ("bytes_read", "seconds", "versions")},
        )  # fmt: skip


def _checked(view: View, model: Model) -> UnitCheck:
    import torch

    from ..features.unit_check import check_units

    return check_units(view, model if isinstance(model, torch.nn.Module) else None)


def covered(view: View) -> dict[str, Any]:
    """The fields of a `Coverage` that a header tells: p_value, units, blocks, rules, left_out."""
    known = view.architecture
    counts = {name: view[name].count for name in known.weights}
    total = max(1, sum(counts.values()))
    tested = {order: [n for n in names if has_units(view[n].shape)] for order, names in known.orders.items()}
    tested = {order: names for order, names in tested.items() if names}
    matrices = {name for names in tested.values() for name in names}
    rules: Counter[str] = Counter()
    for order, names in tested.items():
        rules[known.rules[order]] += len(names)
    units = sum(view[names[0]].shape[0] for names in tested.values())
    return {
        "p_value": bool(matrices),
        "units": TestedUnits(len(matrices), units, sum(counts[name] for name in matrices) / total),
        "blocks": _blocks(known, counts, matrices),
        "rules": dict(sorted(rules.items())),
        "left_out": _left_out(view, known, matrices, total),
    }


def _blocks(known: Architecture, counts: dict[str, int], tested: set[str]) -> CoveredBlocks:
    members = numbered_members(counts)
    size: Counter[str] = Counter()
    told: Counter[str] = Counter()
    for name, member in members.items():
        size[member] += counts[name]
        told[member] += counts[name] if known.blocks[name] not in ("stem", "head") else 0
    recognised = {member for member in size if told[member] >= KNOWN_SHARE * size[member]}
    return CoveredBlocks(len(size), len(recognised), len({members[n] for n in tested & members.keys()} & recognised))


def _left_out(view: View, known: Architecture, tested: set[str], total: int) -> tuple[LeftOut, ...]:
    """What no p-value looks at, by pattern and reason."""
    short = short_names(view)
    read = {name for names in known.reads.values() for name in names} - tested
    few = {name for names in known.orders.values() for name in names} - tested
    share: Counter[tuple[str, str]] = Counter()
    for name in known.weights:
        if name not in tested:
            pattern = re.sub(r"\d+", "#", re.sub(r"\[.*", "", name))
            why = _reason(short[name], view[name].shape, name in known.heads, name in few, name in read)
            share[pattern, why] += view[name].count
    for name, why in known.left_out.items():
        share[re.sub(r"\d+", "#", name), why] += 0
    found = sorted(share, key=lambda part: (-share[part], part))
    return tuple(LeftOut(pattern, share[pattern, why] / total, why) for pattern, why in found)


def _reason(short: str, shape: tuple[int, ...], head: bool, few: bool, reads: bool) -> str:
    if head:
        return "a head: a new task replaces it, and its rows are classes or tokens"
    if VOCABULARY.search(short) or POSITIONS.search(short):
        return TABLE
    if len(shape) < 2:
        return "one number for each channel: no rows to compare"
    if few:
        return f"fewer than {MIN_UNITS} hidden units"
    if reads:
        return "reads hidden units that are tested where they are written"
    return reason_left_out(short)
