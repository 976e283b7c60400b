"""The fault matrix: whatever the Hub does, an answer is the right one or none, and nothing is written twice."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from safetensors.torch import save

import hf_lineage as hl
from hf_lineage.answers.lineage import Lineage
from hf_lineage.errors import LineageError
from hf_lineage.testing import MiniHub

pytestmark = pytest.mark.integration

KINDS: tuple[tuple[Any, tuple[str, ...]], ...] = (
    (429, ("api", "resolve", "cdn")), (500, ("api", "resolve", "cdn")), (502, ("any",)), (503, ("any", "write")),
    (404, ("resolve",)), (403, ("cdn",)), ("expired", ("cdn",)), ("ignore_range", ("file",)),
    ("wrong_range", ("file",)), ("no_content_range", ("file",)), ("chunked", ("file",)), ("hollow", ("file",)),
    ("no_length", ("head",)), ("zero_length", ("head",)), ("no_etag", ("head",)), ("moved", ("endpoint",)),
    ("truncate", ("file", "api")), ("resize", ("file",)), ("drop", ("file", "api", "any", "write")),
    ("lost", ("write",)), ("delay", ("any",)),
)  # fmt: skip
FILES = ("*", "lab/child*", "lab/parent*", "lab/stranger*", "*.safetensors", "*config.json", "*README.md")
CANDIDATES = ["lab/parent", "lab/stranger"]
PLAIN = b"# A child\n"
CARD = b"---\nbase_model: lab/parent\nbase_model_relation: finetune\n---\n# A child\n"


def inject(hub: MiniHub, dice: random.Random) -> str:
    """One fault, or two at once, of any kind, place, file, number and moment; what it was, for a failure's message."""
    said = []
    for _ in range(dice.choice([1, 1, 2])):
        kind, places = dice.choice(KINDS)
        about: dict[str, Any] = {
            "on": dice.choice(places), "file": dice.choice(FILES), "times": dice.choice([1, 1, 2, 5, None]),
            "after": dice.choice([0, 0, 1, 2, 3, 5, 8]), "value": dice.choice([0, 1, 7, 100, 5000]),
        }  # fmt: skip
        if kind == "delay":
            about["value"] = 0.01
        if kind == "resize":
            about["value"] = dice.choice([-4096, -1, 1, 4096])
        hub.fault(kind, **about)
        said.append(f"{kind} {about}")
    return "; ".join(said)


def check_answer(told: Lineage, right: Lineage) -> str:
    """What became of a trace: the right answer, or one that says what it could not read."""
    measured = {c.ref: (c.relation, c.distance, c.p_raw) for c in right.candidates}
    unread = {c.ref for c in told.candidates if c.status == "unreadable"}
    assert {c.ref for c in told.candidates} == {*measured}, "nobody is left out unsaid"
    for candidate in told.candidates:
        if candidate.status == "compared":
            assert (candidate.relation, candidate.distance, candidate.p_raw) == measured[candidate.ref]
    if unread:
        assert told.verdict == "undecided" or told.parent == right.parent, "one that was not read may be the parent"
        return "said what was not read"
    assert (told.verdict, told.parent) == (right.verdict, right.parent)
    assert [c.status for c in told.claims] in ([c.status for c in right.claims], []), told.claims
    return "right"


def traced(right: Lineage) -> str:
    try:
        told = hl.trace("lab/child", CANDIDATES, prior=0.7, token=False)
    except LineageError:
        return "an error"
    return check_answer(told, right)


def audited() -> str:
    (record,) = hl.audit(["lab/child"], token=False)
    assert record.status in ("confirmed", "failed", "not_testable", "no_claim"), record
    return record.status


def proposed(hub: MiniHub, right: Lineage, tensors: bytes, push: bool) -> str:
    """A pull request, or a push, on a repo as it was: written once, or an error; and once after another try."""
    hub.orgs["alice"] = {"lab"}
    put(hub, tensors, PLAIN)
    outcome = "an error"
    try:
        hl.annotate("lab/child", right, create_pr=not push, push=push, token="hf_alice")
        outcome = "written"
    except LineageError:
        pass
    repo = hub.repos["lab/child"]
    written = len(repo.discussions) if not push else repo_commits(repo) - 1
    assert written <= 1 and (outcome != "written" or written == 1), (outcome, written)
    hub.faults.clear()
    hl.annotate("lab/child", right, create_pr=not push, push=push, token="hf_alice")
    written = len(repo.discussions) if not push else repo_commits(repo) - 1
    assert written == 1, f"{written} times after another try"
    return outcome


def put(hub: MiniHub, tensors: bytes, card: bytes) -> None:
    """The child's repo anew, as if nothing had ever been written."""
    hub.repos.pop("lab/child")
    hub.add("lab/child", {"model.safetensors": tensors, "config.json": b"{}", "README.md": card})


def repo_commits(repo: Any) -> int:
    """How many commits lead to the head of the main branch."""
    count, at = 0, repo.refs["main"]
    while at is not None:
        count, at = count + 1, repo.history[at].parent
    return count


def run(hub: MiniHub, nets: dict[str, Any], count: int, seed: int) -> Counter[str]:
    dice, found = random.Random(seed), Counter[str]()
    tensors = save(nets["child"])
    answers = {}
    for card in (PLAIN, CARD):
        put(hub, tensors, card)
        answers[card] = hl.trace("lab/child", CANDIDATES, prior=0.7, token=False)
        assert answers[card].parent == "lab/parent"
    for _ in range(count):
        hub.faults.clear()
        said = inject(hub, dice)
        what = dice.choice(["trace", "trace", "audit", "pull request", "push"])
        try:
            if what == "trace":
                outcome = traced(answers[CARD])
            elif what == "audit":
                outcome = audited()
            else:
                outcome = proposed(hub, answers[PLAIN], tensors, what == "push")
        except BaseException as error:
            error.add_note(f"{what} under {said}")
            raise
        finally:
            hub.faults.clear()
            if what in ("pull request", "push"):
                put(hub, tensors, CARD)
        found[f"{what}: {outcome}"] += 1
    return found


@pytest.mark.parametrize(
    "count", [pytest.param(15, id="some"), pytest.param(1000, id="large", marks=pytest.mark.large)]
)
@pytest.mark.timeout(3600)
def test_no_fault_makes_a_wrong_answer(
    lab: MiniHub, nets: dict[str, Any], count: int, record: Callable[[str, dict[str, Any]], None]
) -> None:
    """Faults of 21 kinds: 0 wrong answers, 0 double writes, 0 partial results called complete."""
    found = run(lab, nets, count, seed=7)
    if count == 1000:
        record("faults", {"seed": 7, "kinds": len(KINDS), "faults": count, "outcomes": dict(sorted(found.items()))})
    assert sum(found.values()) == count and len(found) >= 4
