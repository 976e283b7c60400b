"""How often evidence as strong as an answer's arises between unrelated models: the figures beside a report's evidence.

    python tests/benchmarks/background.py measure    trains unrelated networks, keeps results/background.json
    python tests/benchmarks/background.py write      writes hf_lineage/report/background.json from the kept results

`measure` compares every pair of `COUNT` networks of each architecture of `experiments.families`, trained from scratch
on the same data, only their seeds differ. The other figures are those of the files that each names as its source.
"""

from __future__ import annotations

import itertools
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from records import ROOT, write_record

import hf_lineage as hl
from hf_lineage.experiments.families import train_unrelated

RESULTS = Path(__file__).parent / "results"
SHIPPED = ROOT / "hf_lineage" / "report" / "background.json"
COUNT = {"fc": 8, "resnet": 5, "vit": 5, "llama": 5}
SEED = 21
TREES = ("fc", "resnet", "vit", "llama", "fc-light", "resnet-light", "llama-light")  # of results/trees-*.json


def measure() -> None:
    """Train, compare every pair, keep a line for each."""
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder, hl.Session() as session:
        for architecture, count in COUNT.items():
            family = train_unrelated(Path(folder) / architecture, architecture, count, seed=SEED)
            paths = sorted(member.path for member in family.members)
            for one, other in itertools.combinations(paths, 2):
                best = hl.trace(one, [other], session=session, relatives=False).candidates[0]
                rows.append({
                    "architecture": architecture, "pair": [one.name, other.name], "relation": best.relation,
                    "log10_p": best.log10_p, "moved": best.facts.get("moved"),
                    "correlation": best.evidence["weights"]["correlation"],
                })  # fmt: skip
            print(architecture, len(rows), flush=True)
    write_record("background", rows, seed=SEED, count=COUNT)


def kept(name: str) -> dict[str, Any]:
    return json.loads((RESULTS / f"{name}.json").read_text())


def p_values() -> dict[str, Any]:
    """Of the test for a common origin, of unrelated models."""
    values = sorted(p for kind in kept("structure-calibration")["kinds"].values() for p in kind["p"] if p is not None)
    more = list(kept("unrelated")["kinds"].values())
    steps = [10 ** (-place / 4) for place in range(17)]  # from 1 down to 1e-4
    at_most = [sum(p <= step * (1 + 1e-9) for p in values) for step in steps]
    return {
        "source": ["structure-calibration.json", "unrelated.json"], "pairs": len(values), "smallest": values[0],
        "at_most": [[round(step, 6), count] for step, count in zip(steps, at_most, strict=True)],
        "more_pairs": sum(kind["pairs"] for kind in more),
        "more_at_1_percent": sum(kind["hits_at_1_percent"] for kind in more),
    }  # fmt: skip


def changes() -> dict[str, Any]:
    """Relative changes and correlations of the weights of unrelated models."""
    rows = kept("background")["rows"]
    moved, alike = (sorted(row[name] for row in rows) for name in ("moved", "correlation"))
    spread = [moved[round(share * (len(moved) - 1))] for share in (0, 0.25, 0.5, 0.75, 1)]
    return {
        "source": ["background.json"], "pairs": len(rows), "architectures": len({row["architecture"] for row in rows}),
        "moved": [round(value, 4) for value in spread], "correlation": [round(alike[0], 4), round(alike[-1], 4)],
        "called_related": sum(row["relation"] != "none" for row in rows),
    }  # fmt: skip


def merges() -> dict[str, Any]:
    """Of models that are no merges, and of merges: what the method was called."""
    rows = kept("merges")["rows"]
    others = [row for row in rows if "what" in row]
    made = [row for row in rows if "method" in row]
    return {
        "source": ["merges.json"], "others": len(others),
        "called_merge": sum(row["named"] not in (None, "single") for row in others), "merges": len(made),
        "methods": len({row["method"] for row in made}), "named": sum(row["recognised"] for row in made),
        "again": sum(row["equal"] == row["tensors"] for row in made),
    }  # fmt: skip


def blocks() -> dict[str, Any]:
    """Of blocks of models without a relative among the candidates, and of blocks of several models put together."""
    lone, put = kept("layers-single")["strangers"].values(), kept("layers-merges")["passthrough"]
    hybrids = kept("layers-hybrids")
    return {
        "by_features": {
            "source": ["layers-hybrids.json"], "blocks": hybrids["blocks"], "right": hybrids["features"]["l2, exact"],
        },
        "source": ["layers-single.json", "layers-merges.json"], "models": sum(kind["children"] for kind in lone),
        "tested": sum(kind["tested"] for kind in lone), "origins": sum(kind["origins"] for kind in lone),
        "blocks": put["blocks"], "right": put["right"],
    }  # fmt: skip


def trees() -> dict[str, Any]:
    """Of unrelated models the edges that were drawn; of trees whose truth is known the edges that are right."""
    sets = [kind for kind in kept("trees-strangers").values() if isinstance(kind, dict)]
    names = [f"trees-{kind}" for kind in TREES]
    found = [kept(name)["methods"]["information"]["all"] for name in names]
    counts = ("edges", "found", "directed", "right")
    return {
        "groups": {
            "source": ["trees-strangers.json"], "sets": len(sets),
            **{name: sum(kind[name] for kind in sets) for name in ("models", "groups", "edges")},
        },
        "edges": {"source": [f"{name}.json" for name in names]} | {n: sum(kind[n] for kind in found) for n in counts},
    }  # fmt: skip


def claims() -> dict[str, Any]:
    """Of fine-tunes beside their true base, and of those whose base was not offered."""
    children = kept("parents")["families"].values()
    orphans = kept("orphans")
    total, called = (sum(kind[name] for kind in children) for name in ("children", "called_parent"))
    return {
        "source": ["parents.json", "orphans.json"], "children": total, "lost": total - called,
        "orphans": orphans["orphans"], "found": orphans["orphans"] - orphans["none"],
    }  # fmt: skip


def edits() -> dict[str, Any]:
    """Of models that were made in a known way: whether that was said of them."""
    made = [about for kind in kept("relations")["architectures"].values() for about in kind.values()]
    return {"source": ["relations.json"], "made": len(made), "right": sum(about["right"] for about in made)}


def agreement() -> dict[str, Any]:
    """Hidden units that agree, of unrelated models whose units were put into the order of another model's."""
    rows = [
        row for row in kept("forgery")["rows"] if row["recipe"].startswith("arranged") and "added" not in row["recipe"]
    ]
    return {
        "source": ["forgery.json"], "pairs": len(rows), "most": round(max(row["agreement"]["score"] for row in rows), 4)
    }  # fmt: skip


def without_test() -> dict[str, Any]:
    """How often features and the detector are right, which are no tests: of children whose truth is known."""
    free, learned = kept("learning_free")["families"], kept("detector-shipped")["families"].values()
    shares = {name: about["own data, step auto"]["top1"]["l2"]["exact"][0] for name, about in free.items()}
    asked = {which: [about[which] for about in learned] for which in ("parent", "orphans")}
    counts = {
        which: [
            sum(each["children"] for each in found),
            sum(round(each["children"] * each["accuracy"]) for each in found),
        ]
        for which, found in asked.items()
    }
    return {
        "features": {
            "source": ["learning_free.json"], "first": shares,
            "children": sum(about["own data, step auto"]["children"] for about in free.values()),
        },
        "detector": {"source": ["detector-shipped.json"], **counts},
    }  # fmt: skip


def figures() -> dict[str, Any]:
    """All figures of the report."""
    disguise = kept("disguise")["architectures"].values()
    calibration, table = kept("calibration")["all"], kept("direction_verdicts")["table"]
    return {
        "made": "tests/benchmarks/background.py, from tests/benchmarks/results",
        "p_value": p_values(),
        "change": changes(),
        "hidden": {
            "source": ["disguise.json"], "pairs": sum(kind["pairs"] for kind in disguise),
            "called_related": sum(kind["taken_for_relatives"] for kind in disguise),
        },
        "order": {
            "source": ["direction_verdicts.json"],
            "table": {name: {"right": 0, "silent": 0, "wrong": 0} | found for name, found in table.items()},
        },
        "probability": {
            "source": ["calibration.json"], "answers": calibration["verdicts"], "children": calibration["children"],
            "bins": calibration["bins"],
        },
        "edits": edits(), "agreement": agreement(), **without_test(),
        "blocks": blocks(), "merges": merges(), **trees(), "claims": claims(),
    }  # fmt: skip


def write() -> None:
    SHIPPED.write_text(json.dumps(figures(), indent=1) + "\n")


if __name__ == "__main__":
    {"measure": measure, "write": write}[sys.argv[1]]()
