"""`trace` by stored outputs: no model is opened or run (Neural Lineage S4.3: what a black box still shows)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..answers.lineage import Candidate, Lineage
from ..answers.refs import ModelRef
from ..checkpoints.checkpoint import Checkpoint
from ..checkpoints.opener import models_of
from ..errors import ArgumentError, NoCandidatesError, NothingToCompareError
from ..features.stored import compare_stored, stored_notes
from . import verdict
from .options import Options
from .session import NAME_SOME, Session, some

if TYPE_CHECKING:
    from torch import Tensor

    from ..checkpoints.opener import Model


def trace_outputs(
    child: Model, candidates: Iterable[Model] | None, given: str | Path | Mapping[str, Tensor], session: Session,
    options: Options,
) -> Lineage:  # fmt: skip
    """Rank the candidates by how alike their stored outputs are to the child's.

    given: a safetensors file, or a mapping, with a tensor (N, …) for each model under its name, of the same N inputs in
    the same order. child, candidates: such names; None is all others. Raises `ArgumentError` for a name that is not
    there and an unfit child, `NoCandidatesError`, `NothingToCompareError`.
    """
    if options.evidence != ("features",):
        raise ArgumentError('Expected evidence="features" with `outputs`: no weight is read, and no model is run.')
    networks = options.networks
    if networks.probes is not None or networks.taps is not None or networks.step != "auto":
        raise ArgumentError("Expected no `probes`, `taps` or `step` with `outputs`: no model is run.")
    stored: Mapping[str, Any] = given if isinstance(given, Mapping) else session.opener.open(Path(given))
    ours = str(child)
    names = [name for name in stored if name != ours] if candidates is None else [*map(str, models_of(candidates))]
    names = [name for name in dict.fromkeys(names) if name != ours]
    if not names:
        raise NoCandidatesError(f"Expected candidates other than `{ours[:120]}`, got none.", *NAME_SOME)
    if unknown := [name for name in (ours, *names) if name not in stored]:
        raise ArgumentError(f"Expected outputs of {unknown[0][:120]!r}, there are those of {some([*stored])}.")
    size = sum(stored[name].nbytes for name in (ours, *names))
    if options.max_bytes is not None and size > options.max_bytes:
        raise ArgumentError(f"The outputs are {size:,} bytes, more than the limit of {options.max_bytes:,}.")
    named = [ours, *names]
    tensors = stored.whole(named) if isinstance(stored, Checkpoint) else [stored[name] for name in named]
    found, refused = compare_stored(tensors[0], tensors[1:], networks.metric)
    if not found:
        raise NothingToCompareError(f"No candidate's outputs could be compared. {next(iter(refused.values()))}")
    ranked = sorted(
        (
            Candidate(name, name, probability=found[i].match, evidence={"features": found[i]})
            if i in found
            else Candidate(name, name, status="not_comparable", reasons=(refused[i],))
            for i, name in enumerate(names)
        ),
        key=verdict.order,
    )
    concluded, parent = verdict.conclude(ranked, options.alpha)
    return Lineage(
        child=ModelRef.parse(ours), requested=ours, verdict=concluded, parent=parent, none_probability=None,
        candidates=tuple(ranked), notes=tuple(stored_notes([*found.values()])), **options.cost(session),
    )  # fmt: skip
