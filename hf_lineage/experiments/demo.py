"""`hf-lineage demo`: train a small family with one false card and one hidden root, and trace every child."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from ..answers.base import SCHEMA, Progress
from ..answers.lineage import Lineage
from ..report.format import p_text, shorten
from ..report.plots import plot_family
from ..tasks.trace import trace
from .families import Family, Member, train_family

ROOTS, CHILDREN = 4, 2
SIZES = {"widths": [384, 128, 64]}  # small enough that nobody waits


def run(out: Path, *, seed: int = 0, progress: Progress | None = None) -> str:
    """Make the family under `out`, trace it, save `lineage.png` and `lineage.json`; returns what to print."""
    family = train_family(out, "fc", roots=ROOTS, children=CHILDREN, seed=seed, sizes=SIZES, progress=progress)
    *candidates, held_back = family.roots
    claimant = next(child for child in family.children if child.parent == candidates[1].name)
    _false_claim(claimant, candidates[0].name)
    lineages = []
    for done, child in enumerate(family.children):
        if progress:
            progress(done, len(family.children), f"tracing {child.name}")
        lineages.append(trace(child.path, [root.path for root in candidates], seed=seed))
    plot_family(lineages, out / "lineage.png")
    document = {"schema": SCHEMA, "lineages": [lineage.to_dict() for lineage in lineages]}
    (out / "lineage.json").write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    return "\n".join(
        [
            *_intro(family, candidates, held_back),
            *_rows(family, lineages),
            *_outro(family, lineages, claimant, out),
        ]
    )


def _false_claim(child: Member, claimed: str) -> None:
    card = child.path / "README.md"
    text = card.read_text(encoding="utf-8").replace(f"base_model: {child.parent}", f"base_model: {claimed}")
    card.write_text(text, encoding="utf-8")


def _intro(family: Family, candidates: Sequence[Member], held_back: Member) -> list[str]:
    worst = min(member.quality["accuracy"] for member in family.members)
    return [
        f"{len(family.members)} networks were trained on glyphs, test accuracy {worst:.2f} or better:",
        f"{len(family.roots)} from scratch, {len(family.children)} fine-tuned from them.",
        f"Candidates are {', '.join(root.name for root in candidates)};",
        f"{held_back.name} is held back, so its children have no parent here.",
        "",
        f"{'child':<21} {'its card claims':<17} {'its weights say':<17} {'p-value':>8}  {'claim'}",
    ]


def _rows(family: Family, lineages: Sequence[Lineage]) -> list[str]:
    rows = []
    for child, lineage in zip(family.children, lineages, strict=True):
        claim = lineage.claims[0]
        answer = f"({lineage.verdict})"
        if lineage.verdict in ("parent", "common_origin"):  # "~": related; the weights leave open who came first
            answer = ("" if lineage.parent else "~") + "/".join(Path(lineage.candidates[0].ref).parts[-2:])
        rows.append(
            f"{shorten(child.name, 21):<21} {claim.ref:<17} {answer:<17} {p_text(lineage.candidates[0].log10_p):>8}  "
            f"{claim.status.replace('_', ' ')}"
        )
    return rows


def _outro(family: Family, lineages: Sequence[Lineage], claimant: Member, out: Path) -> list[str]:
    number = family.children.index(claimant)
    caught = lineages[number].claims[0]
    right = sum(
        lineage.verdict == "none" if child.parent == family.roots[-1].name
        else lineage.verdict in ("parent", "common_origin")
        and Path(lineage.candidates[0].ref) == family.member(child.parent or "").path
        for child, lineage in zip(family.children, lineages, strict=True)
    )  # fmt: skip
    roots = " ".join(f"-c {_path(root.path)}" for root in family.roots[:-1])
    return [
        "",
        f"{right} of {len(lineages)} verdicts agree with how the networks were made (~: a common origin; the",
        "child moved so little that the weights leave open who came first).",
        f"The card of {claimant.name} lies: it names {caught.ref},",
        f"the weights say {claimant.parent}." if caught.status == "contradicted" else "which the weights bear out!",
        "",
        f"picture  {out / 'lineage.png'}",
        f"JSON     {out / 'lineage.json'}",
        f"again    hf-lineage trace {_path(claimant.path)} {roots}",
        f"blocks   hf-lineage layers {_path(claimant.path)} {roots}",
        f"tree     hf-lineage tree {_path(claimant.path.parent)}/*",
    ]  # fmt: skip


def _path(path: Path) -> str:
    return str(path) if path.is_absolute() else f"./{path}"
