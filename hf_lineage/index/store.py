"""The folder of an index: a LanceDB database with a row for each model and one for each sketch.

LanceDB finds the nearest neighbours, exactly in a small index and by its inverted file where `optimize` made one, and
reads the same files from a disk, an object store or a data set of the Hub. Both tables bear the version of the sketches
in their names; an index of another one is refused. A model's sketches are written before its row: what was killed in
between is done again, and no model is there twice.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import ArgumentError, MissingExtraError
from .sketch import MOST, NUMBERS, UNITS, VERSION, Sketch

if TYPE_CHECKING:
    import lancedb

MODELS, SKETCHES = f"models_v{VERSION}", f"sketches_v{VERSION}"
WIDTH = UNITS * NUMBERS
COLUMNS = ("ref", "key", "slot", "layer", "vector")
MIN_INDEXED = 50_000  # sketches from which neighbours are looked for by an inverted file; fewer are all compared
PROBES, REFINE = 40, 4  # of the inverted file: parts that are looked through; candidates read again, times the limit


@dataclass(frozen=True, slots=True)
class Member:
    """One model of an index. layers: of which there are sketches. reason: why there are none, or ""."""

    ref: str
    revision: str | None
    parameters: int
    layers: int
    reason: str = ""


@dataclass(frozen=True, slots=True, eq=False)
class Neighbour:
    """A sketch of the index, and whose it is."""

    ref: str
    sketch: Sketch


class Store:
    """An index in a folder (or an address that LanceDB knows). Raises `ArgumentError` where there is none, or one of
    another version; `MissingExtraError` without LanceDB."""

    def __init__(self, path: str | Path, create: bool = False) -> None:
        self.path = str(path)
        self._db = _connect(self.path)
        tables = set(self._db.list_tables().tables)
        ours = {name for name in tables if name.startswith(("models_v", "sketches_v"))}
        if others := sorted(ours - {MODELS, SKETCHES}):
            raise ArgumentError(
                f"Expected an index of version {VERSION}, got one of version {others[0].rpartition('v')[2]} in "
                f"`{self.path}`: build it again."
            )
        if MODELS not in tables or SKETCHES not in tables:
            if not create:
                raise ArgumentError(
                    f"Expected an index in `{self.path}`, found none.",
                    "Make one: hf-lineage index build INDEX REF…",
                    "Make one: hl.Index(path, create=True).",
                )
            self._create(tables)
        self._models, self._sketches = self._db.open_table(MODELS), self._db.open_table(SKETCHES)

    def _create(self, tables: set[str]) -> None:
        import pyarrow as pa

        text = pa.string()
        schemas = {
            SKETCHES: {
                "ref": text, "key": text, "slot": pa.int32(), "layer": text, "vector": pa.list_(pa.float16(), WIDTH),
            },
            MODELS: {
                "ref": text, "revision": text, "parameters": pa.int64(), "layers": pa.int32(), "reason": text,
            },
        }  # fmt: skip
        for name, fields in schemas.items():
            if name not in tables:
                self._db.create_table(name, schema=pa.schema(list(fields.items())))

    def revisions(self) -> dict[str, str | None]:
        """ref → the commit that is in the index (None of a local model), of every model."""
        return dict(zip(*_columns(self._models, "ref", "revision"), strict=True))

    def add(self, found: Sequence[tuple[Member, Sequence[Sketch]]]) -> None:
        """Put models in, in the place of what is there of the same refs."""
        if not found:
            return
        refs = [member.ref for member, _ in found]
        self._remove(self._sketches, refs)  # also what a killed process left of models without a row
        self._remove(self._models, refs)
        rows = [
            {
                "ref": member.ref, "key": each.key, "slot": each.slot, "layer": each.layer,
                "vector": each.values.reshape(-1).astype(np.float16),
            }
            for member, sketches in found
            for each in sketches
        ]  # fmt: skip
        if rows:
            self._sketches.add(rows)
        self._models.add([
            {
                "ref": member.ref, "revision": member.revision, "parameters": member.parameters,
                "layers": member.layers, "reason": member.reason,
            }
            for member, _ in found
        ])  # fmt: skip

    def optimize(self) -> None:
        """Join small files, and make the inverted file where the index is large."""
        for table in (self._models, self._sketches):
            table.optimize()
        if self._sketches.count_rows() >= MIN_INDEXED:
            self._sketches.create_index(
                metric="dot", vector_column_name="vector", index_type="IVF_PQ", num_sub_vectors=WIDTH // 8, replace=True
            )
            self._sketches.create_scalar_index("key", index_type="BITMAP", replace=True)

    def nearest(self, asked: Sketch, limit: int) -> list[Neighbour]:
        """The sketches of the same key with the largest inner products, the nearest first."""
        if not self._sketches.count_rows():
            return []
        search = self._sketches.search(asked.values.reshape(-1).astype(np.float32), vector_column_name="vector")
        near = search.distance_type("dot")  # type: ignore[attr-defined]  # it is the builder of a vector's query
        near = near.where(f"key = '{asked.key}'", prefilter=True).limit(limit)
        if self._sketches.list_indices():
            near = near.nprobes(PROBES).refine_factor(REFINE)
        return _neighbours(near.select([*COLUMNS, "_distance"]).to_arrow())

    def sketches_of(self, refs: Iterable[str]) -> dict[str, list[Sketch]]:
        """ref → its sketches, of each of these models."""
        result: dict[str, list[Sketch]] = {ref: [] for ref in refs}
        if result:
            found = self._sketches.search().where(_among([*result])).limit(len(result) * MOST)
            for each in _neighbours(found.select([*COLUMNS]).to_arrow()):
                result[each.ref].append(each.sketch)
        return result

    def size(self) -> tuple[int, int]:
        """How many models there are, and how many sketches."""
        return self._models.count_rows(), self._sketches.count_rows()

    def counts(self) -> Mapping[str, Any]:
        """How many models there are, how many with sketches, how many sketches, and of which keys."""
        with_sketches = self._models.count_rows("layers > 0")
        models, sketches = self.size()
        keys = dict(Counter(*_columns(self._sketches, "key")).most_common())
        return {"models": models, "with_sketches": with_sketches, "sketches": sketches, "keys": keys}

    @staticmethod
    def _remove(table: lancedb.table.Table, refs: Sequence[str]) -> None:
        if table.count_rows():
            table.delete(_among(refs))


def _neighbours(found: Any) -> list[Neighbour]:
    columns = [found[name].to_pylist() for name in COLUMNS[:-1]]
    vectors = (np.array(vector).reshape(UNITS, NUMBERS).astype(np.int8) for vector in found["vector"].to_pylist())
    return [
        Neighbour(ref, Sketch(key, slot, layer, values))
        for ref, key, slot, layer, values in zip(*columns, vectors, strict=True)
    ]


def _columns(table: lancedb.table.Table, *names: str) -> list[list[Any]]:
    found = table.search().select([*names]).limit(max(1, table.count_rows())).to_arrow()
    return [found[name].to_pylist() for name in names]


def _among(refs: Sequence[str]) -> str:
    quoted = ", ".join("'" + ref.replace("'", "''") + "'" for ref in refs)
    return f"ref IN ({quoted})"


def _connect(path: str) -> lancedb.DBConnection:
    try:
        import lancedb
    except ModuleNotFoundError as error:
        raise MissingExtraError("Expected lancedb for an index, found none", "index") from error
    return lancedb.connect(path)
