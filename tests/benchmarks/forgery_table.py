"""What each forgery costs the forger, and what the answer makes of it.

    python tests/benchmarks/forgery_table.py measure FAMILIES    keeps results/forgery.json; FAMILIES: where networks
                                                                 are kept (`pytest --families`), trained if missing
    python tests/benchmarks/forgery_table.py table               Markdown, from what was kept

Each recipe of `experiments.forgeries` makes an unrelated network look like another one's child; its card claims that it
is one. `measure` asks `trace` of each, the claim included. The tests run the same code on small networks.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parent))

from records import write_record

import hf_lineage as hl
from hf_lineage.experiments.families import Member, build, logits, sizes_of, task_of, train_unrelated
from hf_lineage.experiments.forgeries import FORGERIES, distilled

RESULTS = Path(__file__).parent / "results" / "forgery.json"
DISTIL = "distilled towards the victim"
SHAPES: dict[str, dict[str, Any]] = {"fc": {"widths": [256, 128]}, "resnet": {}, "vit": {"depth": 2}, "llama": {}}
SEED, COUNT = 11, {"fc": 80, "resnet": 84, "vit": 84, "llama": 90}
ASKED = 5  # forgers of each architecture


def forged(forger: Member, victim: Member, names: Iterable[str], folder: Path) -> list[dict[str, Any]]:
    """One row for each recipe: how far the outputs moved, and what `trace` says of the forged model and its claim."""
    ours, theirs = (load_file(member.path / "model.safetensors") for member in (forger, victim))
    before = outputs(forger, ours)
    rows = []
    for name in names:
        made = _distilled(forger, victim) if name == DISTIL else FORGERIES[name](ours, theirs, forger.architecture)
        lineage = ask(made, victim, folder)
        best = lineage.candidates[0]
        rows.append({
            "recipe": name, "architecture": forger.architecture, "forger": forger.name, "victim": victim.name,
            "outputs_changed": change(before, outputs(forger, made)), "equal": equal_share(made, theirs),
            "verdict": lineage.verdict, "relation": best.relation, "claim": lineage.claims[0].status,
            "log10_p": best.log10_p, "moved": best.facts.get("moved"), "agreement": best.facts.get("agreement"),
            "correlation": best.evidence["weights"].to_dict()["correlation"], "sentence": lineage.sentence(),
        })  # fmt: skip
    return rows


def ask(made: dict[str, Tensor], victim: Member, folder: Path) -> hl.Lineage:
    """The forged model, whose card names the victim, traced."""
    for name, tensors in (("victim", load_file(victim.path / "model.safetensors")), ("forged", made)):
        (folder / "lab" / name).mkdir(parents=True, exist_ok=True)
        save_file({n: value.contiguous() for n, value in tensors.items()}, folder / "lab" / name / "model.safetensors")
    (folder / "lab" / "forged" / "README.md").write_text("---\nbase_model: lab/victim\n---\n")
    return hl.trace(folder / "lab" / "forged", [folder / "lab" / "victim"], relatives=False)


@torch.no_grad()
def outputs(member: Member, tensors: dict[str, Tensor]) -> Tensor:
    """Probabilities on 256 test inputs, (n, classes)."""
    model = build(member.architecture, member.recipe["classes"], sizes_of(member))
    model.load_state_dict(tensors)
    return logits(model.eval(), task_of(member).test_x[:256]).flatten(0, -2).softmax(1)


def change(before: Tensor, after: Tensor) -> float:
    """Mean total variation between two predictions, in [0, 1]."""
    return round(float((before - after).abs().sum(1).mean() / 2), 4)


def equal_share(made: dict[str, Tensor], victim: dict[str, Tensor]) -> float:
    """Share of the entries that are the victim's, of matrices of its shape."""
    both = [name for name, value in made.items() if value.ndim > 1 and value.shape == victim[name].shape]
    same = sum(int((made[name] == victim[name]).sum()) for name in both)
    return round(same / sum(made[name].numel() for name in both), 4)


def _distilled(forger: Member, victim: Member) -> dict[str, Tensor]:
    models = []
    for member in (forger, victim):
        model = build(member.architecture, member.recipe["classes"], sizes_of(member))
        model.load_state_dict(load_file(member.path / "model.safetensors"))
        models.append(model.eval())
    return dict(distilled(*models, victim).state_dict())


def measure(families: Path) -> None:
    """Every recipe, of `ASKED` forgers of each architecture."""
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        for architecture, sizes in SHAPES.items():
            where = families / "large" / f"hidden-{architecture}-unrelated"
            members = train_unrelated(where, architecture, COUNT[architecture], seed=SEED, sizes=sizes).members
            for forger, victim in zip(members[:ASKED], members[10 : 10 + ASKED], strict=True):
                rows += forged(forger, victim, [*FORGERIES, DISTIL], Path(folder) / architecture)
            print(architecture, len(rows), flush=True)
    write_record("forgery", rows, seed=SEED, forgers=ASKED)


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Markdown: a row for each recipe and architecture."""
    lines = ["| recipe | network | outputs changed | equal entries | agree | verdict | claim |", "|---" * 7 + "|"]
    for recipe in dict.fromkeys(row["recipe"] for row in rows):
        for architecture in dict.fromkeys(row["architecture"] for row in rows):
            some = [r for r in rows if (r["recipe"], r["architecture"]) == (recipe, architecture)]
            shares = [r["agreement"]["score"] for r in some if r["agreement"]]
            agree = f"{100 * min(shares):.0f} to {100 * max(shares):.0f} %" if shares else "-"
            figures = [_span([r[key] for r in some]) for key in ("outputs_changed", "equal")]
            words = [_counted([r[key] for r in some]) for key in ("verdict", "claim")]
            lines.append(f"| {recipe} | {architecture} | {' | '.join(figures)} | {agree} | {' | '.join(words)} |")
    return "\n".join(lines) + "\n"


def _span(values: list[float]) -> str:
    return f"{100 * min(values):.1f} to {100 * max(values):.1f} %"


def _counted(words: list[str]) -> str:
    return ", ".join(f"{count} {word}" for word, count in Counter(words).most_common())


if __name__ == "__main__":
    if sys.argv[1] == "measure":
        measure(Path(sys.argv[2]))
    print(table(json.loads(RESULTS.read_text())["rows"]))
