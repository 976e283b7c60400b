"""`compare`: two models without roles. Each is traced with the other as its only candidate, as far as it takes."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from ..answers.base import Progress
from ..answers.comparison import Comparison
from ..answers.lineage import Lineage
from ..checkpoints.opener import model_identity
from ..errors import ArgumentError
from ..parallel import together
from .options import Options
from .session import Session, session_of
from .trace import trace

if TYPE_CHECKING:
    from ..checkpoints.checkpoint import Checkpoint
    from ..checkpoints.opener import Model
    from ..placement import Wanted


@together
def compare(
    one: Model, other: Model, *, alpha: float = 1e-3, token: str | bool | None = None, device: Wanted = None,
    memory: int | str | None = None, sample: str | float | int | None = None, max_bytes: int | str | None = None,
    allow_pickle: bool = False, progress: Progress | bool | None = None, seed: int = 0,
    session: Session | None = None,
) -> Comparison:  # fmt: skip
    """Say whether two models share an origin, which came first, and what was done to that one to get the other.

    The second by name is traced with the first as its candidate; where that shows that the second came first, or where
    they do not line up that way round, also the other way round. So the answer does not depend on who is named first.

    one, other: as `trace` takes a child. All options: as there; `max_bytes` bounds each of the two readings.

    Returns a `Comparison`. Raises what `trace` raises, for both models, and `ArgumentError` for a model and itself.
    """
    options = Options(alpha=alpha, seed=seed)
    with session_of(session, token, allow_pickle) as session:
        opened = [session.opener.open(one), session.opener.open(other)]
        if opened[0].ref.kind == opened[1].ref.kind == "module":
            opened[1].requested = f"{opened[1].requested} (the other)"
        given = sorted(zip(opened, (one, other), strict=True), key=lambda pair: (pair[0].ref, pair[0].requested))
        (a, first), (b, second) = given
        if model_identity(a) == model_identity(b):
            raise ArgumentError(f"Expected two models, got `{a.ref.name}` twice.")

        def ask(child: Model, candidate: Model) -> Lineage:
            return trace(
                child, [candidate], alpha=alpha, relatives=False, device=device, memory=memory, sample=sample,
                max_bytes=max_bytes, progress=progress, seed=seed, session=session,
            )  # fmt: skip

        found, child, candidate = ask(second, first), b, a
        pair = found.candidates[0]
        if pair.first == "child" or pair.status == "not_comparable":
            read = found.bytes_read
            turned = ask(first, second)
            if pair.status == "not_comparable" or turned.candidates[0].status == "compared":
                found, child, candidate = turned, a, b
                found = replace(found, bytes_read=found.bytes_read + read)
        return _answer(found, child, candidate, (a, b), options)


def _answer(
    found: Lineage, child: Checkpoint, candidate: Checkpoint, models: tuple[Checkpoint, Checkpoint], options: Options
) -> Comparison:
    pair = found.candidates[0]
    order = {"candidate": candidate, "child": child}
    first = order.get(pair.first or "")
    return Comparison(
        models=(models[0].ref, models[1].ref), requested=(models[0].requested, models[1].requested),
        related=_related(found), first=first.ref.name if first else None, later=child.ref.name, pair=pair,
        notes=found.notes, bytes_read=found.bytes_read, seconds=options.seconds(), seed=found.seed, alpha=found.alpha,
        versions=found.versions,
    )  # fmt: skip


def _related(found: Lineage) -> bool | None:
    """Whether the two share an origin; None where nothing could be compared or tested."""
    pair = found.candidates[0]
    if pair.relation is None or (pair.p_value is None and pair.relation != "identical"):
        return None
    return pair.relation != "none"
