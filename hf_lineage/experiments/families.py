"""Families of small networks with a known truth, trained when needed and written like repos of the Hub.

    train_family      roots from scratch, their children fine-tuned on another task, and so on down, in lines
    train_trees       the same with several children of each child, and weight decay for every other one
    train_unrelated   networks with the same data and recipe that share no ancestor
    train_twins       pairs from one random start, trained separately: related, and neither is the other's parent
    train_grid        one network of each recipe given, from scratch or from each of the networks given

Each network draws its own seed from the family's seed and its own name, of twins each pair its start. One that does
not learn its task is dropped and counted. Each trains on one core, as many at once as there are cores.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import multiprocessing
import os
import random
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import ArgumentError
from .glyphs import SIDE, Task, image_task, part_of, text_task, topic_task
from .networks import VOCAB, build
from .penalties import Penalty, fisher, learn_from, read, stay_near
from .recipes import CHILD_RECIPES, CHILD_TASKS, ROOT_RECIPES, ROOT_TASKS, other_recipe

if TYPE_CHECKING:
    from ..answers.base import Progress

_Arguments = dict[str, Any]  # of the call that made a family: the key under which it is read again

MIN_ACCURACY = 0.8  # a classifier below this is dropped
MAX_LOSS_SHARE = 0.8  # of the unigram entropy: a language model above it is dropped

DECAY = {"adamw": 0.5, "sgd": 0.02}  # shrinks weights by some percent in the few steps taken here

_XAVIER = {"weight_init": "jax"}  # timm's own default learns too slowly at this size
SIZES: dict[str, dict[str, Any]] = {
    "fc": {"widths": [1024, 256, 128]},
    "resnet": {"layers": [1, 1, 1, 1], "channels": [16, 32, 64, 128]},
    "vit": {"patch_size": 7, "embed_dim": 64, "depth": 4, "num_heads": 4, "mlp_ratio": 4} | _XAVIER,
    "llama": {"hidden_size": 64, "intermediate_size": 192, "num_hidden_layers": 2, "num_attention_heads": 4},
    "bert": {"hidden_size": 64, "intermediate_size": 192, "num_hidden_layers": 2, "num_attention_heads": 4},
}
OPTIONAL = {"fc": ("side",), "resnet": ("side",)}  # pixels of an image's edge, 28 by default
_TIMM = {"resnet": "resnet18", "vit": "vit_tiny_patch16_224"}  # the names under which timm registers these classes
HEADS = {"fc": "head.", "resnet": "fc.", "vit": "head.", "llama": "lm_head.", "bert": "classifier."}


@dataclass(frozen=True, slots=True)
class Member:
    """One network of a family: where it is, what it came from, and how well it learned."""

    name: str  # "family/fc-root-0": unique, and the repo's folder inside the family's
    architecture: str
    parent: str | None  # the name of the member it was fine-tuned from
    generation: int  # 1 for a root
    recipe: dict[str, Any] = field(hash=False)
    quality: dict[str, float] = field(hash=False)  # {"accuracy": 0.97} or {"loss": 2.1, "unigram": 3.1}
    path: Path


@dataclass(frozen=True, slots=True)
class Family:
    """Every kept member, parents before children, and how many were dropped for not learning."""

    folder: Path
    members: tuple[Member, ...]
    dropped: int

    @property
    def roots(self) -> tuple[Member, ...]:
        """The members trained from scratch."""
        return tuple(member for member in self.members if member.parent is None)

    @property
    def children(self) -> tuple[Member, ...]:
        """The members fine-tuned from another one, of every generation after the first."""
        return tuple(member for member in self.members if member.parent is not None)

    def member(self, name: str) -> Member:
        """The member of that name, or `KeyError`."""
        return {member.name: member for member in self.members}[name]


def train_family(
    folder: str | Path,
    architecture: str,
    *,
    roots: int = 4,
    children: int = 3,
    generations: int = 2,
    seed: int = 0,
    sizes: dict[str, Any] | None = None,
    weight_decay: float = 0.0,
    same_recipe: bool = False,
    other_recipes: bool = False,
    progress: Progress | None = None,
    claim: bool = True,
) -> Family:
    """Train `roots` networks from scratch, `children` of each, one of each child, and so on.

    A child starts from its parent's weights with a new head, on another task. With `same_recipe` the roots
    differ only in their seed. With `other_recipes` no recipe of the usual tables is used. With `claim` a child's
    card declares its `base_model`. Called again with the same arguments, the folder is read instead of written.
    """
    arguments = {
        "kind": "family", "architecture": architecture, "roots": roots, "children": children,
        "generations": generations, "seed": seed, "sizes": _sizes(architecture, sizes),
        "weight_decay": weight_decay, "same_recipe": same_recipe, "other_recipes": other_recipes, "claim": claim,
    }  # fmt: skip
    plans = []
    for root in range(roots):
        shift = 0 if same_recipe else root
        plan = _plan(folder, arguments, f"family/{architecture}-root-{root}", None, shift)
        plans.append(plan)
        for child in range(children if generations > 1 else 0):
            parent = plan
            for generation in range(2, generations + 1):
                suffix = "" if generation == 2 else f"-gen{generation}"
                name = f"family/{architecture}-child-{root}-{child}{suffix}"
                parent = _plan(folder, arguments, name, parent, shift + child + generation - 2)
                plans.append(parent)
    plans.sort(key=lambda plan: plan.generation)
    return _train_all(Path(folder), plans, arguments, progress)


def train_trees(
    folder: str | Path,
    architecture: str,
    *,
    roots: int = 5,
    branching: Sequence[int] = (3, 2, 1),
    seed: int = 0,
    sizes: dict[str, Any] | None = None,
    shorten: float = 1.0,
    other_recipes: bool = False,
    continued: int | None = None,
    decayed: int = 2,
    progress: Progress | None = None,
) -> Family:
    """Train `roots` networks from scratch, `branching[0]` children of each, `branching[1]` of each of these, and so on.

    Every `decayed`-th child, 0 for none, has weight decay that shrinks it by some percent. `shorten` multiplies the
    learning rates of the children's trunks, not of their new heads: 0.1 makes light fine-tunes. Of each network's
    children only the first `continued` have children.
    """
    arguments = {
        "kind": "trees", "architecture": architecture, "roots": roots, "branching": list(branching), "seed": seed,
        "sizes": _sizes(architecture, sizes), "shorten": shorten, "weight_decay": 0.0,
        "other_recipes": other_recipes, "claim": True, **({"heirs": continued} if continued else {}),
        **({"decayed": decayed} if decayed != 2 else {}),
    }  # fmt: skip
    plans = [_plan(folder, arguments, f"family/{architecture}-{root}", None, root) for root in range(roots)]
    parents = plans
    turns = itertools.count()
    for children in branching:
        born = []
        for parent in parents:
            for child in range(children):
                turn = next(turns)
                plan = _plan(folder, arguments, f"{parent.name}-{child}", parent, turn)
                plan.recipe["lr"] *= shorten
                if (
                    decayed and (turn + 1) % decayed == 0
                ):  # Adam's own decay is a term of the gradient, and kills whatever has none
                    plan.recipe["optimizer"] = {"adam": "adamw"}.get(plan.recipe["optimizer"], plan.recipe["optimizer"])
                    plan.recipe["weight_decay"] = DECAY[plan.recipe["optimizer"]]
                born.append(plan)
        plans = plans + born
        parents = [plan for i, plan in enumerate(born) if continued is None or i % children < continued]
    return _train_all(Path(folder), plans, arguments, progress)


def train_unrelated(
    folder: str | Path,
    architecture: str,
    count: int,
    *,
    seed: int = 0,
    weight_decay: float = 0.0,
    sizes: dict[str, Any] | None = None,
    progress: Progress | None = None,
) -> Family:
    """Train `count` networks from scratch on the same data with the same recipe; only their seeds differ."""
    arguments = {
        "kind": "unrelated", "architecture": architecture, "count": count, "seed": seed,
        "sizes": _sizes(architecture, sizes), "weight_decay": weight_decay, "claim": False,
    }  # fmt: skip
    names = [f"unrelated/{architecture}-{index}" for index in range(count)]
    plans = [_plan(folder, arguments, name, None, 0) for name in names]
    return _train_all(Path(folder), plans, arguments, progress)


def train_twins(
    folder: str | Path,
    architecture: str,
    pairs: int,
    *,
    seed: int = 0,
    sizes: dict[str, Any] | None = None,
    shorten: float = 1.0,
    other_recipes: bool = False,
    progress: Progress | None = None,
) -> Family:
    """Train `pairs` of networks that start from the same random weights and part from the first step on.

    The two of a pair are called `…-a` and `…-b`. Odd pairs learn the same task from other batches, even ones another
    task; `shorten` multiplies the recipes' learning rates, and with them how far twins move apart.
    """
    arguments = {
        "kind": "twins", "architecture": architecture, "pairs": pairs, "seed": seed,
        "sizes": _sizes(architecture, sizes), "shorten": shorten, "weight_decay": 0.0,
        "other_recipes": other_recipes, "claim": False,
    }  # fmt: skip
    plans = []
    for index in range(pairs):
        for turn, letter in enumerate("ab"):
            plan = _plan(folder, arguments, f"twins/{architecture}-{index}-{letter}", None, index)
            if index % 2 == 0 and turn:
                plan.recipe["task"] = _plan(folder, arguments, plan.name, None, index + 1).recipe["task"]
            plan.recipe["start"] = random.Random(f"{seed}/{architecture}-{index}").getrandbits(31)
            plan.recipe["lr"] *= shorten
            plan.recipe["head_lr"] = plan.recipe["lr"] / shorten
            plans.append(plan)
    return _train_all(Path(folder), plans, arguments, progress)


def train_grid(
    folder: str | Path,
    architecture: str,
    recipes: Sequence[dict[str, Any]],
    *,
    parents: Sequence[Member] | None = None,
    seed: int = 0,
    sizes: dict[str, Any] | None = None,
    min_accuracy: float = MIN_ACCURACY,
    progress: Progress | None = None,
) -> Family:
    """Train one network of each recipe from scratch, or from each of `parents`, which may lie in another folder.

    A recipe has what `CHILD_RECIPES` has and its `task`; and may have `shots` (training images of each class),
    `cut` (the share that the second half of the classes keeps), and a penalty (`penalties.py`). What stays below
    `min_accuracy` on the test set is dropped.
    """
    arguments = {
        "kind": "grid", "architecture": architecture, "recipes": [*recipes], "seed": seed,
        "parents": [[parent.name, parent.recipe] for parent in parents or ()], "sizes": _sizes(architecture, sizes),
        "claim": parents is not None, "min_accuracy": min_accuracy,
    }  # fmt: skip
    plans = []
    for parent in (None,) if parents is None else parents:
        for i, recipe in enumerate(recipes):
            name = f"{parent.name}-{i}" if parent else f"grid/{architecture}-{i}"
            own = {"data_seed": seed, "seed": random.Random(f"{seed}/{name}").getrandbits(31), **recipe}
            generation = parent.generation + 1 if parent else 1
            origin = parent.name if parent else None
            plans.append(Member(name, architecture, origin, generation, own, {}, Path(folder) / name))
    return _train_all(Path(folder), plans, json.loads(json.dumps(arguments)), progress, parents or ())


def _sizes(architecture: str, sizes: dict[str, Any] | None) -> dict[str, Any]:
    """The default sizes with the caller's over them; tuples become lists, as in JSON."""
    if architecture not in SIZES:
        raise ArgumentError(f"Expected an architecture out of {', '.join(SIZES)}, got {architecture!r}.")
    if unknown := sorted({*(sizes or {})} - {*SIZES[architecture], *OPTIONAL.get(architecture, ())}):
        known = ", ".join(SIZES[architecture])
        raise ArgumentError(f"Expected sizes of {architecture} out of {known}, got {', '.join(unknown)}.")
    return json.loads(json.dumps({**SIZES[architecture], **(sizes or {})}))


def _plan(folder: str | Path, arguments: _Arguments, name: str, parent: Member | None, turn: int) -> Member:
    """A member that is still to be trained: the tables of tasks and recipes are walked in turn."""
    architecture, weight_decay = arguments["architecture"], arguments["weight_decay"]
    tasks = (CHILD_TASKS if parent else ROOT_TASKS)[architecture]
    recipes = (CHILD_RECIPES if parent else ROOT_RECIPES)[architecture]
    recipe = {"task": tasks[turn % len(tasks)], **recipes[turn % len(recipes)]}
    recipe = other_recipe(recipe) if arguments.get("other_recipes") else recipe
    recipe["weight_decay"] = weight_decay or recipe["weight_decay"]
    recipe["data_seed"] = arguments["seed"]
    recipe |= {"side": arguments["sizes"]["side"]} if "side" in arguments["sizes"] else {}
    recipe["seed"] = random.Random(f"{arguments['seed']}/{name}").getrandbits(31)
    generation = parent.generation + 1 if parent else 1
    origin = parent.name if parent else None
    return Member(name, architecture, origin, generation, recipe, {}, Path(folder) / name)


def _train_all(
    folder: Path, plans: Sequence[Member], arguments: _Arguments, progress: Progress | None,
    given: Sequence[Member] = (),
) -> Family:  # fmt: skip
    """Train what is planned, parents first; `family.json` is written last, so a broken run is run again. `given`:
    parents that are there already."""
    if (family := _load(folder, arguments)) is not None:
        return family
    kept = {parent.name: parent for parent in given}
    trained = 0
    with _workers(len(plans)) as run:
        for generation in sorted({plan.generation for plan in plans}):
            due = [plan for plan in plans if plan.generation == generation]
            due = [
                plan for plan in due if plan.parent is None or plan.parent in kept
            ]  # a dropped parent is counted once
            for member in run(_make, [(plan, kept.get(plan.parent or ""), arguments) for plan in due]):
                trained += 1
                if _learned(member.quality, arguments):
                    kept[member.name] = member
                if progress:
                    progress(trained, len(plans), member.name)
    members = tuple(kept.values())[len(given) :]
    family = Family(folder, members, trained - len(members))
    written = [dataclasses.asdict(member) | {"path": member.name} for member in family.members]
    record = {"arguments": arguments, "dropped": family.dropped, "members": written}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "family.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    return family


@contextmanager
def _workers(networks: int) -> Iterator[Callable[..., Iterable[Member]]]:
    """A `map` over processes, one a core; plainly in this process where starting them costs more than it saves."""
    cores = os.cpu_count() or 1
    if cores == 1 or networks < 8:
        yield map
        return
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(min(cores, networks), mp_context=context)
    try:
        yield pool.map
    except BaseException:
        for process in list(pool._processes.values()):  # nobody waits for networks that are not wanted any more
            process.terminate()
        raise
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _make(job: tuple[Member, Member | None, _Arguments]) -> Member:
    """Train one member and write it if it has learned its task; returns it with what it reached."""
    plan, parent, arguments = job
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # also makes the bytes independent of the number of cores
    try:
        model, quality = _train(plan, parent, arguments["sizes"])
    finally:
        torch.set_num_threads(threads)
    member = dataclasses.replace(plan, quality=quality)
    if _learned(quality, arguments):
        _write(model, member, arguments)
    return member


def read_family(folder: Path) -> tuple[Family, _Arguments]:
    """The family written in a folder, and what it was made with; `ArgumentError` where there is none."""
    try:
        record = json.loads((folder / "family.json").read_text(encoding="utf-8"))
        members = tuple(Member(**{**member, "path": folder / member["path"]}) for member in record["members"])
        return Family(folder, members, record["dropped"]), record["arguments"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ArgumentError(
            f"Expected a family in `{folder}`, its family.json gives {type(error).__name__}."
        ) from error


def _load(folder: Path, arguments: _Arguments) -> Family | None:
    """The family in the folder if it was made with these arguments; another one there is removed."""
    if not (folder / "family.json").is_file():
        return None
    family, made = read_family(folder)
    if made == arguments and all((member.path / "model.safetensors").is_file() for member in family.members):
        return family
    for member in family.members:
        if folder.resolve() in member.path.resolve().parents:
            shutil.rmtree(member.path, ignore_errors=True)
    (folder / "family.json").unlink()
    return None


def _learned(quality: dict[str, float], arguments: _Arguments) -> bool:
    """Whether a network is good enough to be kept."""
    if "loss" in quality:
        return quality["loss"] <= MAX_LOSS_SHARE * quality["unigram"]
    return quality["accuracy"] >= arguments.get("min_accuracy", MIN_ACCURACY)


def _train(plan: Member, parent: Member | None, sizes: dict[str, Any]) -> tuple[nn.Module, dict[str, float]]:
    """One network, from its own seed or from its parent's weights, and what it reaches on the test set."""
    model = fine_tuned(plan, parent, sizes)
    return model, _quality(model, task_of(plan))


def fine_tuned(plan: Member, parent: Member | None, sizes: dict[str, Any]) -> nn.Module:
    """One network, trained by its recipe from its own seed or from its parent's weights."""
    recipe, task = plan.recipe, task_of(plan)
    recipe["classes"] = task.classes
    head = HEADS[plan.architecture]
    with torch.random.fork_rng(devices=[]):
        model = _begun(plan, sizes)
        if "start" in recipe:  # a twin: what follows is its own
            torch.manual_seed(recipe["seed"])
        if parent is not None:
            _inherit(model, parent, head)
        optimise(model, task, recipe, head, _penalty(recipe, model, parent))
    return model.eval()


def initialised(member: Member, sizes: dict[str, Any]) -> nn.Module:
    """The random network that a root was trained from."""
    with torch.random.fork_rng(devices=[]):
        return _begun(member, sizes)


def _begun(plan: Member, sizes: dict[str, Any]) -> nn.Module:
    """A network at its own initialisation; sets the generator's seed."""
    torch.manual_seed(plan.recipe.get("start", plan.recipe["seed"]))
    return build(plan.architecture, plan.recipe["classes"], sizes)


def _inherit(model: nn.Module, parent: Member, head: str) -> None:
    """Take every weight of the parent but its head; the new head stays at its own initialisation."""
    weights = load_file(parent.path / "model.safetensors")
    body = {name: tensor for name, tensor in weights.items() if not name.startswith(head)}
    missing, unexpected = model.load_state_dict(body, strict=False)
    if unexpected or not all(name.startswith(head) for name in missing):
        raise RuntimeError(f"Expected only `{head}` to be new, missing {missing}, unexpected {unexpected}.")


def _penalty(recipe: dict[str, Any], model: nn.Module, parent: Member | None) -> Penalty | None:
    """What a recipe's `ewc`, or `teacher` and `temperature`, add to the loss."""
    if recipe.get("teacher"):
        return learn_from(read(Path(recipe["teacher"])), recipe["temperature"])
    if parent is None or not recipe.get("ewc"):
        return None
    known = fisher(read(parent.path), task_of(parent))
    trunk = {name: value for name, value in known.items() if not name.startswith(HEADS[parent.architecture])}
    return stay_near(model, trunk, recipe["ewc"])


def optimise(model: nn.Module, task: Task, recipe: dict[str, Any], head: str, penalty: Penalty | None = None) -> None:
    """Linear warm-up over 15 % of the steps, then linearly to zero; batches in the order of the seed. penalty: added
    to the loss, of the inputs and the outputs."""
    named = list(model.named_parameters())
    groups = [
        {"params": [p for name, p in named if not name.startswith(head)], "peak": recipe["lr"]},
        {"params": [p for name, p in named if name.startswith(head)], "peak": recipe["head_lr"]},
    ]
    kinds = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW, "sgd": torch.optim.SGD}
    extra = {"momentum": 0.9, "nesterov": True} if recipe["optimizer"] == "sgd" else {}
    optimizer = kinds[recipe["optimizer"]](
        groups, lr=recipe["lr"], weight_decay=recipe["weight_decay"], fused=True, **extra
    )
    model.train()
    for step in range(recipe["steps"]):
        done = (step + 0.5) / recipe["steps"]
        for group in optimizer.param_groups:
            group["lr"] = group["peak"] * min(done / 0.15, (1 - done) / 0.85)
        chosen = torch.randint(len(task.train_x), (recipe["batch"],))
        outputs = logits(model, task.train_x[chosen])
        loss = F.cross_entropy(outputs.flatten(0, -2), task.train_y[chosen].flatten())
        if penalty is not None:
            loss = loss + penalty(task.train_x[chosen], outputs)
        optimizer.zero_grad()
        loss.backward()
        if recipe["clip"]:
            nn.utils.clip_grad_norm_(model.parameters(), recipe["clip"])
        optimizer.step()


def logits(model: nn.Module, inputs: Tensor) -> Tensor:
    """(batch, classes), or (batch, length, vocabulary) for causal text."""
    outputs = model(inputs)
    return outputs if isinstance(outputs, Tensor) else outputs.logits


def _loss(model: nn.Module, inputs: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(logits(model, inputs).flatten(0, -2), labels.flatten())


@torch.no_grad()
def _quality(model: nn.Module, task: Task) -> dict[str, float]:
    """Accuracy, or for causal text the test loss in nats beside that of the best guess without context."""
    if task.test_y.ndim == 1:
        right = logits(model, task.test_x).argmax(dim=-1) == task.test_y
        return {"accuracy": round(right.float().mean().item(), 4)}
    counts = torch.bincount(task.train_y.flatten(), minlength=task.classes) + 1
    unigram = -(counts / counts.sum()).log()[task.test_y].mean().item()
    return {"loss": round(_loss(model, task.test_x, task.test_y).item(), 4), "unigram": round(unigram, 4)}


def sizes_of(member: Member) -> dict[str, Any]:
    """The sizes a kept member was built with."""
    record = json.loads((member.path.parents[1] / "family.json").read_text(encoding="utf-8"))
    return record["arguments"]["sizes"]


def task_of(plan: Member) -> Task:
    """The data of a recipe; members of a family that share a task share its images or text."""
    name, seed = plan.recipe["task"], plan.recipe["data_seed"]
    if plan.architecture in VOCAB:
        text = text_task if plan.architecture == "llama" else topic_task
        return text(name, seed, VOCAB[plan.architecture])
    task = image_task(name, seed, side=plan.recipe.get("side", SIDE))
    return part_of(task, plan.recipe.get("shots"), plan.recipe.get("cut", 1.0))


def _write(model: nn.Module, member: Member, arguments: _Arguments) -> None:
    """The member's repo with its card."""
    save(model, member, arguments["sizes"])
    (member.path / "README.md").write_text(_card(member, arguments["claim"]), encoding="utf-8")


def save(model: nn.Module, member: Member, sizes: dict[str, Any]) -> None:
    """The member's repo without its card: `model.safetensors` and `config.json`."""
    shutil.rmtree(member.path, ignore_errors=True)
    member.path.mkdir(parents=True)
    tensors = {name: tensor.detach().contiguous() for name, tensor in model.state_dict().items()}
    save_file(tensors, member.path / "model.safetensors", metadata={"format": "pt"})
    config: Any = getattr(model, "config", None)
    if config is not None:  # transformers; `save_pretrained` writes the same, with a progress bar per model
        config.architectures = [type(model).__name__]
        config.save_pretrained(member.path)
    else:
        config = _image_config(member, sizes)
        (member.path / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def _image_config(member: Member, sizes: dict[str, Any]) -> dict[str, Any]:
    """What `timm.create_model` makes the same network from; of `fc`, which timm does not know, only the sizes."""
    classes = member.recipe["classes"]
    if member.architecture not in _TIMM:
        return {"architecture": member.architecture, "num_classes": classes, "model_args": sizes}
    fixed = {"img_size": SIDE} if member.architecture == "vit" else {}
    side = sizes.get("side", SIDE)
    return {
        "architecture": _TIMM[member.architecture],
        "num_classes": classes,
        "model_args": {name: size for name, size in sizes.items() if name != "side"} | fixed | {"in_chans": 1},
        "pretrained_cfg": {
            "input_size": [1, side, side], "fixed_input_size": bool(fixed), "mean": [0.0], "std": [1.0],
            "num_classes": classes,
        },
    }  # fmt: skip


def _card(member: Member, claim: bool) -> str:
    """The model card: what the Hub would know about this repo."""
    library = {"resnet": "timm", "vit": "timm", "llama": "transformers", "bert": "transformers"}
    tags = {"llama": "text-generation", "bert": "text-classification"}
    lines = ["---"]
    if member.architecture in library:
        lines.append(f"library_name: {library[member.architecture]}")
    lines += ["tags:", f"- {tags.get(member.architecture, 'image-classification')}", "- hf-lineage-family"]
    if claim and member.parent is not None:
        lines.append(f"base_model: {member.parent}")
    reached = ", ".join(f"{name} {value}" for name, value in member.quality.items())
    lines += ["---", "", f"# {member.name}", ""]
    task = member.recipe["task"]
    lines.append(f"A small network trained on the task `{task}` in seconds; on its test set: {reached}.")
    return "\n".join(lines) + "\n"
