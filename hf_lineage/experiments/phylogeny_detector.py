"""Make the Phylogeny Detector that ships: python -m hf_lineage.experiments.phylogeny_detector FOLDER (an hour).

Trains families in FOLDER (kept there), fits the detector on some and stops early by others. The families that are
fitted on share no seed and no recipe with those of the tests; those that stop it have the usual recipes, other seeds.
"""

from __future__ import annotations

import copy
import json
import math
import random
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from ..detector.decoding import likeliest, log_likelihood, marginals
from ..detector.phylogeny import SHIPPED, PhylogenyConfig, PhylogenyDetector
from ..detector.sets import ModelSet
from ..tasks.phylogeny import read_aligned_models
from ..trees.by_detector import crops
from ..trees.reading import AlignedModels
from .families import Family, train_trees
from .phylogenies import FITTED

ALSO_FITTED: dict[str, dict[str, Any]] = {
    "fc-heavy": {"seed": 63, "shorten": 1.7, "sizes": {"widths": [896, 160, 112]}},
    "fc-two": {"seed": 64, "sizes": {"widths": [512, 320]}},
    "vit-small": {"seed": 63, "sizes": {"embed_dim": 48, "depth": 3}},
    "llama-small": {"seed": 63, "shorten": 1.7, "sizes": {"hidden_size": 48, "intermediate_size": 144}},
}  # fmt: skip
STOPPING: dict[str, dict[str, Any]] = {
    **{name: {"seed": 51} for name in ("fc", "resnet", "vit", "llama")},
    "fc-light": {"seed": 52, "shorten": 0.1, "branching": (4, 2, 1)},
    "resnet-light": {"seed": 52, "roots": 3, "shorten": 0.1, "branching": (4, 2, 1)},
    "llama-light": {"seed": 52, "roots": 3, "shorten": 0.1, "branching": (4, 2, 1)},
}  # fmt: skip
KEYS = ("lineage", "direction", "overall")
POOL_SIZE, MATRICES = 128, 8  # rows and columns of so many matrices, of which training cuts its own
MAX_MODELS, SMALL_SET_SHARE = 28, 1 / 3  # models of one set; share of sets of a few
STEPS, BATCH, RATE = 1600, 2, 1.5e-3
AVERAGING_PARTS = 16  # a moving average over one such part of all steps is what is judged and kept
EVERY, PATIENCE = 200, 4  # steps between two looks at what stops it, looks without progress


@dataclass(frozen=True, eq=False)
class Trees:
    """The statistics of one family, from which sets of models are drawn.

    crops: T tensors (M, ≤ POOL_SIZE, ≤ POOL_SIZE).  grams: (K, M, M), pieces: (P, M, M) and weights: of a model in all
    pieces, as in `PairStatistics`.  parents: (M,) int64, −1 of a root.
    """

    crops: tuple[Tensor, ...]
    grams: Tensor
    pieces: Tensor
    weights: int
    parents: Tensor

    @classmethod
    def of(cls, aligned: AlignedModels, family: Family) -> Trees:
        """The distinct members of a family."""
        number = {str(model.ref.name): i for i, model in enumerate(aligned.models)}
        index = {member.name: number[str(member.path)] for member in family.members}
        parents = torch.full((len(number),), -1)
        for child in family.children:
            parents[index[child.name]] = index[str(child.parent)]
        pairs = aligned.statistics
        return cls(
            crops(pairs, MATRICES, POOL_SIZE), torch.from_numpy(pairs.grams), torch.from_numpy(pairs.pieces),
            sum(matrix.units[0].numel() for matrix in pairs.matrices), parents,
        )  # fmt: skip

    def whole(self, config: PhylogenyConfig) -> ModelSet:
        """All models, without random choices."""
        sizes = [[torch.linspace(0, n - 1, min(config.size, n)).long() for n in c.shape[1:]] for c in self.crops]
        cut = [c[:, rows][:, :, columns] for c, (rows, columns) in zip(self.crops, sizes, strict=True)]
        return ModelSet(tuple(cut[: config.matrices]), self.grams.sum(0), self.pieces.sum(0) / self.weights)

    def some(self, models: Tensor, config: PhylogenyConfig, rng: random.Random) -> ModelSet:
        """Some of the models, of each random rows and columns of random matrices; now and then with matrices and pieces
        drawn with replacement."""
        size = rng.randint(config.size // 3, config.size)
        cut = []
        most = min(config.matrices, len(self.crops))
        for pool in rng.sample(self.crops, rng.randint(max(1, most // 2), most)):
            rows, columns = (torch.tensor(sorted(rng.sample(range(n), min(size, n)))) for n in pool.shape[1:])
            cut.append(pool[models][:, rows][:, :, columns])
        again = rng.random() < 0.3
        gram, information = (
            _drawn(t[:, models][:, :, models], rng if again else None) for t in (self.grams, self.pieces)
        )
        return ModelSet(tuple(cut), gram, information / self.weights)


def _drawn(parts: Tensor, rng: random.Random | None) -> Tensor:
    count = len(parts)
    if rng is None:
        return parts.sum(0)
    times = torch.tensor([rng.randrange(count) for _ in range(count)]).bincount(minlength=count)
    return torch.einsum("t,tij->ij", times.double(), parts)


def choose(parents: Tensor, rng: random.Random) -> Tensor:
    """The numbers of a set, in any order, two at least: one tree to four, whole or with models left out; every third
    time only a few models of one tree, mostly next to each other, and perhaps an unrelated model or two."""
    groups: dict[int, list[int]] = {}
    for m in range(len(parents)):
        root = m
        while parents[root] >= 0:
            root = int(parents[root])
        groups.setdefault(root, []).append(m)
    if rng.random() < SMALL_SET_SHARE:
        own, *others = rng.sample(list(groups.values()), min(len(groups), 1 + rng.randrange(3)))
        count = min(len(own), rng.randint(2, 6))
        models = (_near(parents, own, count, rng) if rng.random() < 0.75 else rng.sample(own, count)) + [
            rng.choice(group) for group in others
        ]
    else:
        keep = rng.choice((1.0, 1.0, 0.8, 0.5))
        trees = rng.sample(list(groups.values()), min(len(groups), rng.randint(1, 4)))
        models = [m for tree in trees for m in tree if rng.random() < keep]
    models = rng.sample(models, min(len(models), MAX_MODELS))
    return torch.tensor(models if len(models) > 1 else rng.sample(range(len(parents)), 2))


def _near(parents: Tensor, tree: Sequence[int], count: int, rng: random.Random) -> list[int]:
    """So many models of a tree, each but the first the parent or a child of one before it."""
    found = [rng.choice(tree)]
    while len(found) < count:
        adjacent = [m for m in tree if m not in found and any(parents[m] == f or parents[f] == m for f in found)]
        found.append(rng.choice(adjacent))
    return found


def among(parents: Tensor, models: Tensor) -> Tensor:
    """Each chosen model's nearest ancestor that is chosen too, as an index of `models`, −1 where there is none."""
    index = {int(m): i for i, m in enumerate(models)}
    found = []
    for m in models.tolist():
        up = int(parents[m])
        while up >= 0 and up not in index:
            up = int(parents[up])
        found.append(index.get(up, -1))
    return torch.tensor(found)


def shuffled(parents: Tensor, rng: random.Random) -> Tensor:
    """The same trees with their models permuted: labels without information, for the control."""
    order = list(range(len(parents)))
    rng.shuffle(order)
    turned = torch.tensor(order)
    found = torch.empty_like(parents)
    found[turned] = torch.where(parents < 0, -1, turned[parents.clamp(min=0)])
    return found


def accuracy(detector: PhylogenyDetector, trees: Trees) -> dict[str, float]:
    """Lineage, direction and overall accuracy (docs/methods.md, *Phylogeny*), and the log-likelihood of the truth, nats
    per model."""
    detector.eval()
    with torch.no_grad():
        scores, none = detector(trees.whole(detector.config))
    reported = {(p, j) for j, p in enumerate(likeliest(*marginals(scores, none))) if p is not None}
    truth = {(int(p), j) for j, p in enumerate(trees.parents) if p >= 0}
    found = {frozenset(pair) for pair in truth} & {frozenset(pair) for pair in reported}
    right = len(truth & reported)
    return {
        "lineage": len(found) / len(truth), "direction": right / max(1, len(found)), "overall": right / len(truth),
        "likelihood": float(log_likelihood(scores, none, trees.parents)) / len(none),
    }  # fmt: skip


@torch.no_grad()
def alone(detector: PhylogenyDetector, trees: Trees) -> dict[str, float]:
    """The same of each true edge when nobody is there but its two models; "joined": an edge in either direction."""
    whole = trees.whole(detector.config)
    truth = [(int(p), j) for j, p in enumerate(trees.parents) if p >= 0]
    joined = right = 0
    for pair in truth:
        two = torch.tensor(sorted(pair))
        gram, information = (t[two][:, two] for t in (whole.gram, whole.information))
        found = likeliest(*marginals(*detector(ModelSet(tuple(c[two] for c in whole.crops), gram, information))))
        joined += found != [None, None]
        right += found == [None if m == pair[0] else sorted(pair).index(pair[0]) for m in sorted(pair)]
    return {"joined": joined / len(truth), "overall": right / len(truth)}


def fit(
    fitted: Sequence[Trees], stopping: Mapping[str, Trees], config: PhylogenyConfig, *, seed: int = 0,
    steps: int = STEPS, control: bool = False, say: Callable[[str], None] = print,
) -> tuple[PhylogenyDetector, dict[str, dict[str, float]]]:  # fmt: skip
    """The detector after the step at which it explains the stopping families best, and its figures on these.

    One step: Adam on the mean of −log P(true forest) a model over a few random sets; the rate warms up over 5 % of the
    steps and falls as a cosine. `control` shuffles the labels of each set. On as many processes as a launcher starts.
    """
    accelerator = Accelerator(cpu=not torch.cuda.is_available(), gradient_accumulation_steps=BATCH)
    torch.manual_seed(seed)
    rng = random.Random(f"{seed}/{accelerator.process_index}")
    detector = PhylogenyDetector(config)
    model, optimizer = accelerator.prepare(detector, torch.optim.Adam(detector.parameters(), lr=RATE))
    smooth = AveragedModel(
        detector, multi_avg_fn=get_ema_multi_avg_fn(max(0.0, 1 - AVERAGING_PARTS / steps)), use_buffers=True
    )
    best, kept, waited = -math.inf, copy.deepcopy(detector.state_dict()), 0
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = RATE * min(1.0, (step + 1) / (0.05 * steps)) * (1 + math.cos(math.pi * step / steps)) / 2
        model.train()
        if 2 * step >= steps:  # one family a set is not what is judged: the rest learns with fixed norms
            for norm in (m for m in detector.modules() if isinstance(m, torch.nn.BatchNorm2d)):
                norm.eval()
        for _ in range(BATCH):
            with accelerator.accumulate(model):
                trees = rng.choice(fitted)
                models = choose(trees.parents, rng)
                parents = among(trees.parents, models)
                parents = shuffled(parents, rng) if control else parents
                seen = trees.some(models, config, rng).to(accelerator.device)
                scores, none = model(seen)
                loss = -log_likelihood(scores, none, parents.to(accelerator.device)) / len(models)
                accelerator.backward(loss)
                accelerator.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                optimizer.zero_grad()
        smooth.update_parameters(detector)
        if (step + 1) % EVERY and step + 1 < steps:
            continue
        judged = copy.deepcopy(detector).cpu()
        judged.load_state_dict(smooth.module.state_dict())
        figures = _mean([accuracy(judged, each) for each in stopping.values()])
        say(f"step {step + 1}: " + ", ".join(f"{name} {value:.3f}" for name, value in figures.items()))
        waited += 1
        if figures["likelihood"] > best:
            best, kept, waited = figures["likelihood"], judged.state_dict(), 0
        if waited >= PATIENCE:
            break
    detector.load_state_dict(kept)
    detector.cpu().eval()
    return detector, {name: accuracy(detector, each) for name, each in stopping.items()}


def _mean(rows: Sequence[Mapping[str, float]]) -> dict[str, float]:
    return {name: sum(row[name] for row in rows) / len(rows) for name in rows[0]}


def families(folder: Path) -> tuple[dict[str, Trees], dict[str, Trees]]:
    """(what is fitted on, what stops it), trained in the folder or read from there."""
    plans = {f"fit/{name}": (options, True) for name, options in (FITTED | ALSO_FITTED).items()}
    plans |= {f"stop/{name}": (options, False) for name, options in STOPPING.items()}
    found: dict[str, Trees] = {}
    for name, (options, others) in plans.items():
        architecture = name.split("/")[1].split("-")[0]
        family = train_trees(folder / name, architecture, other_recipes=others, **options)
        found[name] = Trees.of(read_aligned_models([member.path for member in family.members]), family)
    fitted = {name: trees for name, trees in found.items() if name.startswith("fit/")}
    return fitted, {name: trees for name, trees in found.items() if name not in fitted}


def card(about: Mapping[str, Any]) -> str:
    """The model card, from what `main` writes into training.json."""
    rows = [
        f"| {name.removeprefix('stop/')} | " + " | ".join(f"{100 * row[key]:.0f}" for key in KEYS) + " |"
        for name, row in about["figures"].items()
    ]
    return "\n".join([
        "---", "library_name: hf_lineage", "license: apache-2.0", "tags:", "- model-provenance", "---", "",
        "# Phylogeny Detector", "",
        "Who descends from whom among models of one architecture, from their weights (Neural Phylogeny, ICLR 2025).",
        "`hf-lineage tree … --method detector` uses it; `hf_lineage.detector.phylogeny.load(folder)` reads it.", "",
        f"Fitted on {len(about['fitted'])} families of small networks with a known truth, seed {about['seed']}, "
        f"{about['date']}, by `python -m hf_lineage.experiments.phylogeny_detector`. On the families that stopped the "
        "training, and so favour it, in %:", "",
        f"| family | {' | '.join(KEYS)} |", "| --- | ---: | ---: | ---: |", *rows, "",
        "Families that it had no part in: docs/benchmarks.md of hf_lineage. It knows fully connected networks, "
        "ResNets, ViTs and Llamas of about a million weights at most, and no merge.", "",
    ])  # fmt: skip


def main(arguments: Sequence[str]) -> None:
    started = time.monotonic()
    fitted, stopping = families(Path(arguments[0]))
    detector, figures = fit([*fitted.values()], stopping, PhylogenyConfig())
    detector.save_pretrained(SHIPPED)
    about = {
        "date": time.strftime("%Y-%m-%d"), "torch": torch.__version__, "seconds": round(time.monotonic() - started),
        "seed": 0, "fitted": FITTED | ALSO_FITTED, "stopped by": STOPPING, "figures": figures,
    }  # fmt: skip
    (SHIPPED / "README.md").write_text(card(about), encoding="utf-8")
    (SHIPPED / "training.json").write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
