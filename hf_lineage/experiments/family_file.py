"""Families as tables for the Lineage Detector: the members of one generation as candidates for those of a later one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from ..answers.base import Progress
from ..answers.refs import ModelRef
from ..checkpoints.opener import Opener
from ..detector.examples import Table, read_table
from ..detector.model import DetectorConfig
from ..detector.train import TrainedDetector, make_detector
from ..detector.training import Training
from ..errors import ArgumentError
from ..features.evidence import Settings, Source
from ..features.networks import Images
from ..features.probes import probes as synthetic
from ..hub.listing import collection as members
from .families import Family, read_family
from .glyphs import SIDE
from .networks import build

DEFAULT_PROBES = 512  # as in the paper


def train_families(
    out: Path, *, families: Sequence[Path], collection: str | None = None, weights: Sequence[str] = ("auto",),
    features: Sequence[str] = ("auto",), no_parent: str | None = None, scale: str = "none", layer: str = "encoder",
    entries: int = 4096,
    probes: Source = None, epochs: int = 100, rate: float = 0.01, patience: int | None = 30, by: str = "child",
    seed: int = 0, precision: str = "no", device: str | None = None, allow_pickle: bool = False,
    progress: Progress | None = None,
) -> TrainedDetector:  # fmt: skip
    """`hf-lineage train-detector`: tables and folders in, a detector with its card in `out`."""
    counted = probes if isinstance(probes, int) else DEFAULT_PROBES
    config = DetectorConfig(
        weights=() if "none" in weights else tuple(weights), features=() if "none" in features else tuple(features),
        no_parent=no_parent, scale=scale, layer=layer, entries=entries, probes=counted,
    )  # fmt: skip
    opener = Opener(allow_pickle=allow_pickle)
    found = [each for family in families for each in _tables(family)]
    if collection:
        found = [_with(each, members(opener.hub, collection)) for each in found]
    how = Training(epochs, rate, patience, seed, precision)
    settings = Settings(probes=counted if probes is None else probes, device=device)
    return make_detector(found, out, config, how, by=by, settings=settings, opener=opener, progress=progress)


def _tables(family: Path) -> list[Table]:
    return tables(family) if family.is_dir() else [read_table(family)]


def _with(table: Table, names: Sequence[str]) -> Table:
    """With further candidates: those names that are no child in the table."""
    more = [name for name in names if name not in table.children]
    return replace(table, parents=tuple(dict.fromkeys((*table.parents, *more))))


def tables(folder: Path) -> list[Table]:
    """Of each generation after the first: its members, and as candidates those members of the one before that have
    children. `ArgumentError` where nobody has a parent."""
    family, _ = read_family(folder)
    found = [table(folder, born - 1, born) for born in sorted({child.generation for child in family.children})]
    if not found:
        raise ArgumentError(f"Expected children in the family `{folder}`, found none.")
    return found


def table(folder: Path, ancestors: int = 1, descendants: int = 2, without: int = 0) -> Table:
    """Members of generation `descendants` and, as candidates, their ancestors of generation `ancestors` (Table 2).

    The last `without` of these are kept back: their descendants are orphans (S1.2).
    """
    family, _ = read_family(folder)
    origin = {m.name: _ancestor(family, m.name, ancestors) for m in family.members if m.generation == descendants}
    known = sorted({*origin.values()})
    kept = {*known[: len(known) - without]}
    path = {member.name: str(ModelRef.parse(member.path)) for member in family.members}  # a path, not a repo id
    how = run_settings(folder, DEFAULT_PROBES)
    return Table(
        tuple(path[name] for name in sorted(kept)),
        {path[child]: path[name] if name in kept else None for child, name in origin.items()},
        tuple(how.modules),
        how.probes if isinstance(how.probes, Tensor) else None,
    )


def run_settings(folder: Path, count: int) -> Settings:
    """How the members of a family are run on `count` synthetic probes."""
    _, arguments = read_family(folder)
    if arguments["architecture"] != "fc":
        return Settings(probes=count)
    side = arguments["sizes"].get("side", SIDE)  # no library knows this class, nor what it reads
    probes = synthetic(None, Images(1, side, side, (0.0,), (1.0,)), count)
    return Settings(probes=probes, modules=(build("fc", 2, arguments["sizes"]),))


def _ancestor(family: Family, name: str, generation: int) -> str:
    member = family.member(name)
    while member.generation > generation and member.parent:
        member = family.member(member.parent)
    return member.name
