"""Other ways to find phylogenies, as the reviewers of Neural Phylogeny asked: other model classes on the detector's kind of
inputs, link prediction, and Neural Lineage's metrics and detector.

    python tests/benchmarks/phylogeny_rows.py --families NAME=FOLDER … --small FOLDER …   into results/phylogeny_rows.json
    python tests/benchmarks/phylogeny_rows.py --table                                     the tables of docs/benchmarks.md

--unseen: a folder in which BERTs are trained, or read. --families: of `train_trees`, named by architecture (`fc`, `fc-light`): classifiers, link prediction. --small: families in
which every model is asked about with all others as candidates (fake_starts.py trains such).
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import networkx as nx
import numpy as np
import torch
from records import write_record
from torch import Tensor, nn
from torch.nn import functional as F

import hf_lineage as hl
from hf_lineage.detector.decoding import likeliest, log_likelihood, marginals
from hf_lineage.experiments.fake_starts import accuracies
from hf_lineage.experiments.families import Family, read_family, task_of, train_trees
from hf_lineage.experiments.phylogenies import reported_edges, score
from hf_lineage.tasks.phylogeny import read_aligned_models

RESULTS = Path(__file__).parent / "results" / "phylogeny_rows.json"
SEEDS, HIDDEN = 8, 0.3  # of link prediction: splits, share of the edges that are hidden
FIRST_SEED = 91  # of BERTs
METRICS = ("l1", "l2", "cka", "dc")
COORDINATES = 16  # of classical scaling, a node's features


class Pairs:
    """What the rows need of a family: Gram matrix (M, M), mutual information a weight (M, M), kurtosis (M,), parents."""

    def __init__(self, family: Family) -> None:
        aligned = read_aligned_models([member.path for member in family.members])
        number = {str(model.ref.name): i for i, model in enumerate(aligned.models)}
        index = {member.name: number[str(member.path)] for member in family.members}
        pairs = aligned.statistics
        self.gram = pairs.gram
        self.information = pairs.information / sum(matrix.units[0].numel() for matrix in pairs.matrices)
        self.kurtosis = pairs.sizes @ pairs.kurtosis / pairs.sizes.sum()
        self.truth = {index[m.name]: index[str(m.parent)] for m in family.children}
        self.inputs = inputs(self)


def inputs(family: Pairs) -> np.ndarray:
    """(M, M, 8): of each ordered pair (i, j) what a pair sees in the Phylogeny Detector, scales and third models."""
    norms = np.diag(family.gram)
    square = np.maximum(norms[:, None] + norms[None] - 2 * family.gram, 1e-12 * norms.max())
    np.fill_diagonal(square, np.inf)
    distance = np.log(square / np.sqrt(norms[:, None] * norms[None]))
    nearest = distance.min(1)
    between = (square[:, :, None] + square[None]).min(1) / square  # who lies between; a model's own square is infinite
    information = np.log1p(np.maximum(family.information, 0) * 1e3)
    parts = [
        distance, distance - nearest[:, None], distance - nearest[None], np.log(between + 1e-6), information,
        information - information.max(1)[None], np.log(norms[:, None] / norms[None]),
        family.kurtosis[:, None] - family.kurtosis[None],
    ]  # fmt: skip
    return np.nan_to_num(np.stack(parts, -1), posinf=0.0, neginf=0.0)


def labelled(family: Pairs) -> tuple[np.ndarray, np.ndarray]:
    """True edges and every fifth other ordered pair: inputs (N, 8), whether the first is the second's parent."""
    x, size = family.inputs, len(family.gram)
    every = [(i, j) for i in range(size) for j in range(size) if i != j]
    pairs = [pair for n, pair in enumerate(every) if n % 5 == 0 or family.truth.get(pair[1]) == pair[0]]
    return np.array([x[pair] for pair in pairs]), np.array([family.truth.get(j) == i for i, j in pairs])


def by_sklearn(make: Callable[[], Any]) -> Callable[[Sequence[Pairs]], Callable[[Pairs], np.ndarray]]:
    """fit(families) → (family → log odds of every ordered pair, (M, M))."""

    def fit(families: Sequence[Pairs]) -> Callable[[Pairs], np.ndarray]:
        parts = [labelled(family) for family in families]
        model = make().fit(np.concatenate([x for x, _ in parts]), np.concatenate([y for _, y in parts]))

        def score(family: Pairs) -> np.ndarray:
            size = len(family.gram)
            p = model.predict_proba(family.inputs.reshape(size * size, -1))[:, 1].clip(1e-6, 1 - 1e-6)
            return np.log(p / (1 - p)).reshape(size, size)

        return score

    return fit


class PairGraph(nn.Module):
    """A graph network on all pairs: messages of a pair's inputs, attention over the second model, a score for each pair."""

    def __init__(self, width: int = 32, features: int = 8) -> None:
        super().__init__()
        self.message = nn.Sequential(nn.Linear(features, width), nn.ReLU(), nn.Linear(width, width))
        self.attend = nn.Linear(width, 1)
        self.score = nn.Sequential(nn.Linear(features + 2 * width, width), nn.ReLU(), nn.Linear(width, 1))

    def forward(self, x: Tensor) -> Tensor:  # (M, M, features) → (M, M)
        sent = self.message(x)
        node = (self.attend(sent).softmax(1) * sent).sum(1)  # (M, width)
        size = len(x)
        both = [node[:, None].expand(size, size, -1), node[None].expand(size, size, -1)]
        return self.score(torch.cat([x, *both], -1))[..., 0]


def by_graph(families: Sequence[Pairs], steps: int = 400, seed: int = 0) -> Callable[[Pairs], np.ndarray]:
    """The graph network, fitted with Adam on the cross-entropy of all pairs, a family a step."""
    torch.manual_seed(seed)
    data = [torch.tensor(family.inputs, dtype=torch.float32) for family in families]
    mean = torch.cat([x.flatten(0, 1) for x in data]).mean(0)
    spread = torch.cat([x.flatten(0, 1) for x in data]).std(0) + 1e-6
    targets = [torch.zeros(len(x), len(x)) for x in data]
    for target, family in zip(targets, families, strict=True):
        for child, parent in family.truth.items():
            target[parent, child] = 1.0
    model = PairGraph()
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for step in range(steps):
        x, y = data[step % len(data)], targets[step % len(data)]
        loss = F.binary_cross_entropy_with_logits(model((x - mean) / spread), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    def score(family: Pairs) -> np.ndarray:
        with torch.no_grad():
            return model((torch.tensor(family.inputs, dtype=torch.float32) - mean) / spread).double().numpy()

    return score


def classes() -> dict[str, Callable[[Sequence[Pairs]], Callable[[Pairs], np.ndarray]]]:
    """The model classes by name."""
    from sklearn.ensemble import HistGradientBoostingClassifier
    from sklearn.linear_model import LogisticRegression
    from sklearn.neural_network import MLPClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    return {
        "logistic": by_sklearn(lambda: make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))),
        "MLP": by_sklearn(
            lambda: make_pipeline(StandardScaler(), MLPClassifier((32, 32), max_iter=40, random_state=0))
        ),
        "boosted trees": by_sklearn(lambda: HistGradientBoostingClassifier(random_state=0)),
        "graph network": by_graph,
    }


def forest(scores: np.ndarray, none: float) -> list[int | None]:
    """The forest with the most edges expected to be right, from log odds of ordered pairs and of "no parent"."""
    return likeliest(*marginals(_tensor(scores), torch.full((len(scores),), none, dtype=torch.float64)))


def _tensor(scores: np.ndarray) -> Tensor:
    table = torch.tensor(scores, dtype=torch.float64).clamp(min=-30)
    return table.fill_diagonal_(-math.inf)


def no_parent(score: Callable[[Pairs], np.ndarray], families: Sequence[Pairs]) -> float:
    """The score of "no parent" under which the true forests of these families are likeliest."""
    tables = [(_tensor(score(family)), family) for family in families]

    def likelihood(none: float) -> float:
        total = 0.0
        for table, family in tables:
            parents = torch.tensor([family.truth.get(j, -1) for j in range(len(table))])
            total += float(log_likelihood(table, torch.full((len(table),), none, dtype=torch.float64), parents))
        return total

    return max(np.arange(-10.0, 6.0, 1.0).tolist(), key=likelihood)


def classified(families: Mapping[str, Pairs]) -> list[dict[str, Any]]:
    """Each family by what was fitted on the others, and by what was fitted on those of other architectures."""
    rows = []
    for name, family in families.items():
        kind = name.split("-")[0]
        others = {
            "family": [f for other, f in families.items() if other != name],
            "architecture": [f for other, f in families.items() if other.split("-")[0] != kind],
        }
        for left_out, rest in others.items():
            for method, fit in classes().items():
                score = fit(rest)
                found = accuracies(forest(score(family), no_parent(score, rest)), family.truth)
                rows.append({"what": "classes", "family": name, "left out": left_out, "method": method, **found})
    return rows


class GraphAutoEncoder(nn.Module):
    """Kipf and Welling's variational graph autoencoder (2016): two graph convolutions, inner products."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.first, self.mean, self.spread = nn.Linear(features, 32), nn.Linear(32, 16), nn.Linear(32, 16)

    def forward(self, x: Tensor, adjacency: Tensor) -> tuple[Tensor, Tensor]:
        hidden = (adjacency @ self.first(x)).relu()
        return adjacency @ self.mean(hidden), adjacency @ self.spread(hidden)


def auto_encoded(x: Tensor, known: Tensor, seed: int, steps: int = 200) -> np.ndarray:
    """Scores of all pairs after fitting on the known edges, (M, M)."""
    torch.manual_seed(seed)
    looped = known + torch.eye(len(known))
    degree = looped.sum(1).rsqrt()
    adjacency = degree[:, None] * looped * degree[None]
    model, weight = GraphAutoEncoder(x.shape[1]), (len(known) ** 2 - looped.sum()) / looped.sum()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(steps):
        mean, log_spread = model(x, adjacency)
        z = mean + torch.randn_like(mean) * log_spread.exp()
        fit = F.binary_cross_entropy_with_logits(z @ z.T, looped, pos_weight=weight)
        prior = -0.5 * (1 + 2 * log_spread - mean**2 - (2 * log_spread).exp()).sum(1).mean() / len(known)
        optimizer.zero_grad()
        (fit + prior).backward()
        optimizer.step()
    with torch.no_grad():
        mean, _ = model(x, adjacency)
        return (mean @ mean.T).numpy()


def links(name: str, family: Pairs) -> list[dict[str, Any]]:
    """Edges are hidden at random, and looked for among all pairs that are not known: by common neighbours, by the
    autoencoder (features: coordinates of classical scaling of the weights), and by distance alone.

    `auc`: a hidden edge against a pair without an edge; `lineage`: of the hidden edges, those among as many best pairs.
    """
    from hf_lineage.trees.clustering import Points

    x = Points((family.gram,), ((len(family.gram), 1),)).coordinates[:, :COORDINATES]
    features = torch.tensor(x / x.std(), dtype=torch.float32)
    edges = [(min(pair), max(pair)) for pair in family.truth.items()]
    size, rows = len(family.gram), []
    norms = np.diag(family.gram)
    square = norms[:, None] + norms[None] - 2 * family.gram
    for seed in range(SEEDS):
        rng = np.random.default_rng(seed)
        hidden = {edges[i] for i in rng.permutation(len(edges))[: round(HIDDEN * len(edges))]}
        known = torch.zeros(size, size)
        for i, j in set(edges) - hidden:
            known[i, j] = known[j, i] = 1.0
        found = {
            "common neighbours": (known @ known).numpy(), "graph autoencoder": auto_encoded(features, known, seed),
            "distance": -square / np.sqrt(norms[:, None] * norms[None]),
        }  # fmt: skip
        open_pairs = [(i, j) for i in range(size) for j in range(i + 1, size) if not known[i, j]]
        for method, scores in found.items():
            values = np.array([scores[pair] for pair in open_pairs]) + 1e-9 * rng.random(len(open_pairs))
            right = np.array([pair in hidden for pair in open_pairs])
            best = np.argsort(-values)[: len(hidden)]
            above = values[right][:, None] > values[~right][None]
            rows.append({
                "what": "links", "family": name, "seed": seed, "method": method, "auc": float(above.mean()),
                "lineage": float(right[best].mean()),
            })  # fmt: skip
    return rows


def lineages(folder: Path) -> list[dict[str, Any]]:
    """Neural Lineage's methods where nobody knows the roles: every model is asked about among all others, and the
    arborescence of the highest total is the answer, its number of trees as with the test for a common origin."""
    family, _ = read_family(folder)
    index = {member.name: i for i, member in enumerate(family.members)}
    truth = {index[m.name]: index[str(m.parent)] for m in family.children}
    paths = [member.path for member in family.members]
    size = len(paths)
    scores = {name: np.full((size, size), np.nan) for m in METRICS for name in (f"{m}, plain", f"{m}, linearised")}
    scores["detector"] = np.full((size, size), np.nan)
    place = {str(path): i for i, path in enumerate(paths)}
    probes = task_of(family.members[0]).train_x[:128]
    with hl.Session() as session:
        for j, path in enumerate(paths):
            others = [other for other in paths if other != path]
            answer = hl.trace(
                path,
                others,
                evidence=["features", "detector"],
                probes=probes,
                step=0.1,
                relatives=False,
                session=session,
            )
            for candidate in answer.candidates:
                i = place[candidate.ref]
                seen = candidate.evidence["features"]["taps"][0]["scores"]
                for metric in METRICS:
                    scores[f"{metric}, plain"][i, j] = seen[metric]["plain"]
                    scores[f"{metric}, linearised"][i, j] = seen[metric]["exact"]
                scores["detector"][i, j] = candidate.evidence["detector"]["score"]
    tree = hl.phylogeny(paths)
    groups = [[place[node] for node in group if node in place] for group in tree.groups]
    rows = []
    for method, table in scores.items():
        found = accuracies(_arborescences(table, groups), truth)
        rows.append({"what": "lineages", "family": folder.name, "method": method, **found})
    return rows


def unseen(folder: Path, seeds: Sequence[int]) -> list[dict[str, Any]]:
    """The detector that ships, and `information`, on BERTs, an architecture that the detector was not fitted on."""
    rows = []
    for seed in seeds:
        family = train_trees(folder / f"bert-{seed}", "bert", roots=3, branching=(2, 1), seed=seed)
        for method in ("detector", "information"):
            found = score(reported_edges(hl.phylogeny([m.path for m in family.members], method=method)), family.members)
            shares = {name: getattr(found, name) for name in ("lineage", "direction", "overall")}
            rows.append({"what": "unseen", "family": "bert", "seed": seed, "method": method, **shares})
    return rows


def _arborescences(scores: np.ndarray, groups: Sequence[Sequence[int]]) -> list[int | None]:
    """Edmonds' maximum arborescence of each group."""
    parents: list[int | None] = [None] * len(scores)
    for group in groups:
        if len(group) > 1:
            graph = nx.DiGraph()
            graph.add_weighted_edges_from((i, j, float(scores[i, j])) for i in group for j in group if i != j)
            for i, j in nx.maximum_spanning_arborescence(graph).edges:
                parents[j] = i
    return parents


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Markdown; mean ± standard error over families, or over families and splits."""
    kinds: dict[str, tuple[list[str], Callable[[list[Any]], list[str]]]] = {
        "classes": (
            ["on pairs' inputs", "left out: the family", "left out: its architecture"],
            lambda part: [_three([r for r in part if r["left out"] == w]) for w in ("family", "architecture")],
        ),
        "unseen": (["BERT, unseen", "lineage / direction / overall"], lambda part: [_three(part)]),
        "links": (["hidden edges of trees", "AUC", "found"], lambda part: [_mean(part, n) for n in ("auc", "lineage")]),
        "lineages": (["Neural Lineage without roles", "lineage / direction / overall"], lambda part: [_three(part)]),
    }
    lines: list[str] = []
    for what, (heads, cells) in kinds.items():
        own = [row for row in rows if row["what"] == what]
        if own:
            lines += [f"| {' | '.join(heads)} |", "|---|" + "---:|" * (len(heads) - 1)]
            for method in dict.fromkeys(row["method"] for row in own):
                lines.append(f"| {' | '.join([method, *cells([r for r in own if r['method'] == method])])} |")
            lines.append("")
    return "\n".join(lines)


def _three(rows: Sequence[Mapping[str, Any]]) -> str:
    return " / ".join(_mean(rows, name) for name in ("lineage", "direction", "overall"))


def _mean(rows: Sequence[Mapping[str, Any]], name: str) -> str:
    values = [100 * row[name] for row in rows]
    return f"{np.mean(values):.0f} ± {np.std(values, ddof=1) / math.sqrt(len(values)):.0f}"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--families", nargs="*", default=[], metavar="NAME=FOLDER")
    parser.add_argument("--small", nargs="*", type=Path, default=[])
    parser.add_argument("--unseen", type=Path, metavar="FOLDER")
    parser.add_argument("--table", action="store_true")
    asked = parser.parse_args()
    if not asked.table:
        named = [each.partition("=") for each in asked.families]
        families = {name: Pairs(read_family(Path(folder))[0]) for name, _, folder in named}
        rows = classified(families) if len(families) > 1 else []
        rows += [row for name, family in families.items() for row in links(name, family)]
        rows += [row for folder in asked.small for row in lineages(folder)]
        rows += unseen(asked.unseen, range(FIRST_SEED, FIRST_SEED + SEEDS)) if asked.unseen else []
        write_record("phylogeny_rows", rows, seeds=[*range(SEEDS)], hidden=HIDDEN)
    print(table(json.loads(RESULTS.read_text(encoding="utf-8"))["rows"]))


if __name__ == "__main__":
    main()
