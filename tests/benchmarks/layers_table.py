"""The table of docs/benchmarks.md about what layer origins are worth, from the recorded runs: python tests/benchmarks/layers_table.py"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
RATES = {"0": "as merged", "0.0001": "tuned at 1e-4", "0.001": "tuned at 1e-3"}


def read(name: str) -> dict[str, Any]:
    return json.loads((RESULTS / f"layers-{name}.json").read_text(encoding="utf-8"))


def table() -> str:
    """Markdown: one column before, and one for each rate of the fine-tuning after."""
    merges = read("merges")
    rows = [["what", *RATES.values()], ["---", *["---:"] * len(RATES)]]
    for kind, parents in (
        ("linear", "2 to 5 unrelated parents"),
        ("linear of siblings", "2 to 4 fine-tunes of one base"),
    ):
        found = merges[kind]
        rows.append(
            [f"weighted sum of {parents}: error of a weight, mean (largest)"]
            + [f"{found[r]['mean_error']:.2g} ({found[r]['largest_error']:.2g})" for r in RATES]
        )
        rows.append(["… truth within two standard errors"] + [f"{100 * found[r]['covered']:.0f} %" for r in RATES])
    for kind, parents in (("slerp", "unrelated parents"), ("slerp of siblings", "fine-tunes of one base")):
        found = merges[kind]
        rows.append(
            [f"SLERP of two {parents}: error of t, mean (named)"]
            + [f"{found[r]['mean_error']:.2g} ({found[r]['named']} / {found[r]['merges']})" for r in RATES]
        )
    return "\n".join(f"| {' | '.join(row)} |" for row in rows) + "\n"


def summary() -> str:
    """The figures that are one number each."""
    hybrids, merges, single = read("hybrids"), read("merges"), read("single")
    passed, sparse = merges["passthrough"], merges["sparse"]
    kinds = [single[name] for name in ("fc", "resnet", "vit", "llama")]
    blocks = sum(each["blocks"] for each in kinds)
    called = sum(each["mixtures"] for each in kinds)
    beside = sum(each["with relatives: mixtures"] for each in kinds)
    children = sum(each["children"] for each in kinds)
    assembled = sum(each["with relatives: passthrough"] for each in kinds)
    unrelated = single["strangers"].values()
    features = hybrids["features"]
    named = ", ".join(f"{sparse[m]['named']} / {sparse[m]['merges']}" for m in ("ties", "dare", "task_arithmetic"))
    return (
        f"{hybrids['models']} hybrids of 4 to 9 ViTs of depth 12, tuned for {hybrids['steps']:,} steps at 1e-4 and 1e-3: "
        f"{hybrids['weights']} of {hybrids['blocks']} blocks right by weights, by features {features['l2, exact']} (l2), "
        f"{features['cka, exact']} (cka) and without the step {features['l2, plain']} and {features['cka, plain']}. "
        f"Passthrough merges of 6 Llamas, as they are and tuned: {passed['right']} of {passed['blocks']} blocks right. "
        f"TIES, DARE and task arithmetic around a base that is offered, not tuned since: named in {named}. Children of one "
        f"parent: {called} of {blocks} groups of weights called a mixture among roots, {beside} with parents, siblings and "
        f"children of their own offered too, where {assembled} of {children} were said to be put "
        f"together from several. Unrelated models: {sum(each['origins'] for each in unrelated)} of "
        f"{sum(each['blocks'] for each in unrelated)} given an origin, smallest p of {sum(each['tested'] for each in unrelated)} "
        f"blocks {min(each['smallest_p'] for each in unrelated):.2g}. ResNets with a frozen stem and a new last stage: "
        f"{sum(single['new stage'])} of {len(single['new stage'])} reported exactly so."
    )


if __name__ == "__main__":
    print(table())
    print(summary())
