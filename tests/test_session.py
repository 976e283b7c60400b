"""A session: no model is opened, described, aligned or read twice, whatever is asked about it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save, save_file

import hf_lineage as hl
from hf_lineage.checkpoints import checkpoint as checkpoints
from hf_lineage.checkpoints import opener
from hf_lineage.checkpoints.entry import Slice
from hf_lineage.errors import ArgumentError
from hf_lineage.tasks import session as sessions
from hf_lineage.testing import MiniHub

pytestmark = pytest.mark.integration

Tensors = dict[str, torch.Tensor]


class Counts:
    """How often each model was opened, described and lined up, and which elements of it were read."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.opened: Counter[str] = Counter()
        self.described: Counter[str] = Counter()
        self.aligned: Counter[str] = Counter()
        self.read: dict[tuple[str, str], list[tuple[int, int]]] = {}
        self._count(monkeypatch, opener, "open_repo", lambda repo, *_: self.opened.update([repo.ref.name]))
        self._count(monkeypatch, checkpoints, "describe", lambda model: self.described.update([model.ref.name]))
        self._count(monkeypatch, sessions, "align", lambda _, model, *__: self.aligned.update([model.ref.name]))
        self._count(monkeypatch, checkpoints.FileCheckpoint, "read", self._note)

    @staticmethod
    def _count(monkeypatch: pytest.MonkeyPatch, home: Any, name: str, note: Callable[..., None]) -> None:
        original = getattr(home, name)

        def counted(*args: Any, **kwargs: Any) -> Any:
            note(*args)
            return original(*args, **kwargs)

        monkeypatch.setattr(home, name, counted)

    def _note(self, model: checkpoints.FileCheckpoint, slices: Sequence[Slice]) -> None:
        for piece in slices:
            self.read.setdefault((model.ref.name, piece.name), []).append((piece.start, piece.stop))

    def read_twice(self) -> Iterator[tuple[str, str]]:
        """Tensors of which an element was read more than once."""
        for tensor, pieces in self.read.items():
            if any(first[1] > second[0] for first, second in pairwise(sorted(pieces))):
                yield tensor


@pytest.fixture
def counts(monkeypatch: pytest.MonkeyPatch) -> Counts:
    return Counts(monkeypatch)


@pytest.fixture
def family(tmp_path: Path, make_net: Callable[..., Tensors]) -> list[Path]:
    """A child, its parent, six other children of the parent, and an unrelated model."""
    parent = make_net(1)
    nets = [make_net(2, parent), parent, *(make_net(seed, parent) for seed in range(3, 9)), make_net(99)]
    folders = [tmp_path / f"model-{i}" for i in range(len(nets))]
    for folder, net in zip(folders, nets, strict=True):
        folder.mkdir()
        save_file(net, folder / "model.safetensors")
    return folders


def test_one_child_and_eight_candidates_with_their_tree(counts: Counts, family: list[Path]) -> None:
    child, *candidates = family
    lineage = hl.trace(child, candidates, tree=True)
    assert any("tree" in c.evidence for c in lineage.candidates), "the tree was asked"
    assert counts.opened == counts.described == dict.fromkeys(map(str, family), 1)
    assert counts.aligned == dict.fromkeys(map(str, candidates), 1)
    assert not [*counts.read_twice()]
    assert lineage.bytes_read <= sum(folder.joinpath("model.safetensors").stat().st_size for folder in family)


def test_the_counting_can_fail(counts: Counts, family: list[Path]) -> None:
    for _ in range(2):
        hl.trace(family[0], family[1:3])
    assert {*counts.opened.values()} == {*counts.aligned.values()} == {2} and [*counts.read_twice()]


def test_a_tree_aligns_each_pair_once(counts: Counts, family: list[Path]) -> None:
    hl.phylogeny(family)
    assert counts.opened == counts.described == dict.fromkeys(map(str, family), 1)
    assert counts.aligned == dict.fromkeys(map(str, family[1:]), 1) and not [*counts.read_twice()]


def test_layers_after_a_trace_open_nothing(counts: Counts, family: list[Path]) -> None:
    with hl.Session() as session:
        lineage = hl.trace(family[0], family[1:3], session=session)
        layers = hl.trace_layers(family[0], family[1:3], session=session)
    assert counts.opened == counts.described == dict.fromkeys(map(str, family[:3]), 1)
    assert {*counts.aligned.values()} == {1}
    assert lineage.bytes_read > 0 and layers.bytes_read > 0, "each counts what it read itself"


def test_annotate_with_layers_opens_nothing_that_trace_opened(counts: Counts, lab: MiniHub, run: Any) -> None:
    code, out, _ = run("annotate", "lab/child", "-c", "lab/parent", "-c", "lab/stranger", "--layers")
    assert code == 0 and "hf-lineage:start" in out
    assert counts.opened == {"lab/child": 1, "lab/parent": 1, "lab/stranger": 1}


def test_an_audit_opens_a_base_once(counts: Counts, lab: MiniHub, nets: dict[str, Tensors]) -> None:
    card = b"---\nbase_model: lab/parent\n---\n"
    children = [f"lab/child-{i}" for i in range(4)]
    for i, name in enumerate(children):
        tensors = {key: value + 0.01 * (1 + i) * torch.randn_like(value) for key, value in nets["parent"].items()}
        lab.add(name, {"model.safetensors": save(tensors), "config.json": b"{}", "README.md": card})
    statuses = {record.ref: record.status for record in hl.audit([*children, "lab/grandchild"])}
    assert {*statuses} == {*children, "lab/grandchild"} and statuses["lab/grandchild"] == "no_claim"
    assert counts.opened == dict.fromkeys([*children, "lab/parent"], 1), "no claim, no headers"


def test_answers_of_a_session_are_the_answers(family: list[Path]) -> None:
    child, parent, sibling, *_ = family
    alone = hl.trace(child, [parent, sibling]).to_dict()
    with hl.Session() as session:
        first, second = (hl.trace(child, [parent, sibling], session=session).to_dict() for _ in range(2))
    for answer in (alone, first, second):
        answer.pop("seconds")
    assert alone == first
    assert second.pop("bytes_read") < first.pop("bytes_read") and second == first, "the headers are known"


def test_the_token_is_the_sessions(family: list[Path]) -> None:
    with hl.Session() as session, pytest.raises(ArgumentError, match="given to the Session"):
        hl.trace(family[0], family[1:2], token="hf_alice", session=session)


def test_a_closed_session_holds_no_model(family: list[Path]) -> None:
    with hl.Session() as session:
        hl.trace(family[0], family[1:2], session=session)
        assert len(session.opener.opened) == 2
    assert session.opener.opened == ()
