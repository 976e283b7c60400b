"""Merges of every method that mergekit 0.1.5 has: recognised, shares, recipe run, bits; and what is no merge.

    python tests/benchmarks/merges_table.py run [--mergekit PYTHON]     into results/merges.json (and -before)
    python tests/benchmarks/merges_table.py run --before                what an older package on PYTHONPATH names
    python tests/benchmarks/merges_table.py table                       Markdown for docs/benchmarks.md

Models are state dicts by formula: a base, three fine-tunes of it (`siblings`) and three others (`strangers`). Llamas are
merged by mergekit itself where its Python is given, ViTs by `weights/merge_methods.py`, since mergekit has none.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import yaml
from records import write_record
from safetensors.torch import load_file, save_file
from torch import Tensor

import hf_lineage as hl

Tensors = dict[str, Tensor]
RESULTS = Path(__file__).parent / "results"
DEPTH, WIDTH, HIDDEN, WORDS = 3, 48, 96, 120
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
SEED = 25
BASED = frozenset(
    ("slerp", "task_arithmetic", "ties", "dare_linear", "dare_ties", "della", "della_linear", "breadcrumbs",
     "breadcrumbs_ties", "sce", "model_stock", "nearswap", "arcee_fusion", "ram", "ramplus_tl")
)  # fmt: skip
PAIRS = ("slerp", "nuslerp", "nearswap", "arcee_fusion")  # of two models, or of one and a base
WEIGHTED = frozenset(
    ("linear", "nuslerp", "multislerp", "task_arithmetic", "ties", "dare_linear", "dare_ties", "della", "della_linear",
     "breadcrumbs", "breadcrumbs_ties")
)  # fmt: skip
SPARSE = ("ties", "dare_linear", "dare_ties", "della", "della_linear")
METHODS = (
    "linear", "slerp", "nuslerp", "multislerp", "task_arithmetic", "ties", "dare_linear", "dare_ties", "della",
    "della_linear", "breadcrumbs", "breadcrumbs_ties", "sce", "model_stock", "nearswap", "karcher", "arcee_fusion", "ram",
    "ramplus_tl", "passthrough",
)  # fmt: skip


# ---- models by formula


def shapes_of(kind: str) -> dict[str, tuple[int, ...]]:
    if kind == "llama":
        shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (WORDS, WIDTH)}
        for i in range(DEPTH):
            at = f"model.layers.{i}."
            shapes |= {f"{at}self_attn.{name}_proj.weight": (WIDTH, WIDTH) for name in "qkvo"}
            shapes |= {f"{at}mlp.{name}_proj.weight": (HIDDEN, WIDTH) for name in ("gate", "up")}
            shapes |= {f"{at}mlp.down_proj.weight": (WIDTH, HIDDEN)}
            shapes |= {f"{at}{name}_layernorm.weight": (WIDTH,) for name in ("input", "post_attention")}
        return shapes | {"model.norm.weight": (WIDTH,), "lm_head.weight": (WORDS, WIDTH)}
    shapes = {
        "cls_token": (1, 1, WIDTH),
        "patch_embed.proj.weight": (WIDTH, 3, 4, 4),
        "patch_embed.proj.bias": (WIDTH,),
    }
    for i in range(DEPTH):
        at = f"blocks.{i}."
        shapes |= {f"{at}attn.qkv.weight": (3 * WIDTH, WIDTH), f"{at}attn.proj.weight": (WIDTH, WIDTH)}
        shapes |= {f"{at}mlp.fc1.weight": (HIDDEN, WIDTH), f"{at}mlp.fc2.weight": (WIDTH, HIDDEN)}
        shapes |= {f"{at}{name}.weight": (WIDTH,) for name in ("norm1", "norm2")}
    return shapes | {"norm.weight": (WIDTH,), "head.weight": (10, WIDTH)}


def drawn(kind: str, seed: int, dtype: torch.dtype) -> Tensors:
    """Random weights as those of a trained network are spread; norms around 1."""
    generator = torch.Generator().manual_seed(seed)
    found = {}
    for name, shape in shapes_of(kind).items():
        values = 0.05 * torch.randn(shape, generator=generator)
        found[name] = (values + 1 if "norm" in name else values).to(dtype)
    return found


def tuned(model: Tensors, seed: int, change: float, common: Tensors | None = None) -> Tensors:
    """A step of that relative size in each tensor, a third of it in common with the other fine-tunes."""
    generator = torch.Generator().manual_seed(seed)
    found = {}
    for name, value in model.items():
        step = torch.randn(value.shape, generator=generator)
        step = step + (0.35 * common[name] if common else 0.0)
        size = change * value.float().norm() / step.norm()
        found[name] = (value.float() + size * step).to(value.dtype)
    return found


def family(kind: str, related: str, dtype: str) -> dict[str, Tensors]:
    """A base and three models, `a`, `b`, `c`."""
    base = drawn(kind, SEED, DTYPES[dtype])
    common = {name: torch.randn(t.shape, generator=torch.Generator().manual_seed(99)) for name, t in base.items()}
    if related == "siblings":
        return {"base": base} | {name: tuned(base, i, 0.1, common) for i, name in enumerate("abc", 1)}
    return {"base": base} | {name: drawn(kind, SEED + i, DTYPES[dtype]) for i, name in enumerate("abc", 1)}


# ---- merges


def planned(method: str, count: int) -> dict[str, Any] | None:
    """Base, models and settings; None where the method has no merge of so many."""
    names = ["a", "b", "c"][:count]
    if method == "passthrough":
        return {"base": None, "models": names, "settings": {}}
    if method in PAIRS and count == 3:
        return None
    weight = {2: (0.65, 0.35), 3: (0.5, 0.3, 0.2)}[count]
    settings: dict[str, Any] = {"weight": weight} if method in WEIGHTED else {}
    if method in SPARSE:
        settings["density"] = (0.5, 0.6, 0.4)[:count]
    if method.startswith("breadcrumbs"):
        settings |= {"density": (0.8, 0.7, 0.9)[:count], "gamma": (0.05,) * count}
    if method == "slerp":
        return {"base": "a", "models": ["b"], "settings": {"t": 0.35}}
    if method in ("nearswap", "arcee_fusion"):
        return {"base": "base", "models": ["a"], "settings": {"t": 0.002} if method == "nearswap" else {}}
    settings |= {"select_topk": 0.4} if method == "sce" else {}
    return {"base": "base" if method in BASED else None, "models": names, "settings": settings}


def as_yaml(plan: dict[str, Any], method: str, folder: Path, dtype: str) -> dict[str, Any]:
    """The recipe as an author of merges writes it."""
    if method == "passthrough":
        ranges = [(name, i) for i, name in zip(range(DEPTH), plan["models"] * DEPTH, strict=False)]
        slices = [{"sources": [{"model": str(folder / name), "layer_range": [i, i + 1]}]} for name, i in ranges]
        return {"merge_method": method, "slices": slices, "dtype": dtype}
    body: dict[str, Any] = {"merge_method": method, "models": []}
    if plan["base"]:
        body["base_model"] = str(folder / plan["base"])
    for i, name in enumerate(plan["models"]):
        own = {key: value[i] for key, value in plan["settings"].items() if isinstance(value, tuple)}
        body["models"].append({"model": str(folder / name), **({"parameters": own} if own else {})})
    shared = {key: value for key, value in plan["settings"].items() if not isinstance(value, tuple)}
    return body | ({"parameters": shared} if shared else {}) | {"dtype": dtype}


def merged(plan: dict[str, Any], method: str, models: dict[str, Tensors]) -> Tensors:
    """The same by our own arithmetic; of a random method with masks drawn here."""
    from hf_lineage.weights.merge_methods import METHODS as OURS
    from hf_lineage.weights.merge_methods import remade

    child, generator = {}, torch.Generator().manual_seed(7)
    for name, first in models["a"].items():
        block = re.match(r"(?:model\.layers|blocks)\.(\d+)\.", name)
        if method == "passthrough":
            child[name] = models[(plan["models"] * DEPTH)[int(block[1])] if block else "a"][name]
            continue
        base = models[plan["base"]][name] if plan["base"] else None
        others, settings = [models[other][name] for other in plan["models"]], dict(plan["settings"])
        if OURS[method].at_random:
            settings["masks"] = [
                mask(method, (other - base).float(), settings["density"][k], generator)
                for k, other in enumerate(others)
            ]
        child[name] = remade(method, base, others, settings, first.dtype, first.dtype)
    return child


def mask(method: str, change: Tensor, density: float, generator: torch.Generator) -> Tensor:
    flat = change.reshape(change.shape[0] if change.dim() > 1 else 1, -1)
    chance = torch.full_like(flat, density)
    if method.startswith("della"):
        chance = density - 0.15 + 0.3 * flat.abs().argsort(1).argsort(1) / max(1, flat.shape[1] - 1)
    return torch.bernoulli(chance, generator=generator).reshape(change.shape)


def put(folder: Path, tensors: Tensors, kind: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    save_file(
        {name: value.contiguous() for name, value in tensors.items()}, folder / "model.safetensors", {"format": "pt"}
    )
    if kind == "llama":
        dtype = str(next(iter(tensors.values())).dtype).removeprefix("torch.")
        config = {
            "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": WIDTH, "torch_dtype": dtype,
            "intermediate_size": HIDDEN, "num_hidden_layers": DEPTH, "num_attention_heads": 4, "num_key_value_heads": 4,
            "vocab_size": WORDS, "tie_word_embeddings": False,
        }  # fmt: skip
        (folder / "config.json").write_text(json.dumps(config))
    return folder


def run_recipes(python: str, jobs: list[tuple[Path, Path]]) -> dict[Path, str]:
    """What became of each recipe in the real mergekit: `made`, or its error."""
    lines = "".join(f"{recipe}\t{out}\n" for recipe, out in jobs)
    script = Path(__file__).parent / "run_mergekit.py"
    told = subprocess.run([python, str(script)], input=lines, capture_output=True, text=True, check=False)
    found = {Path(line.partition("\t")[2]): line.partition("\t")[0] for line in told.stdout.splitlines()}
    return {out: found.get(out, told.stderr[-200:]) for _, out in jobs}


# ---- the measurement


Case = tuple[str, str, str, str, int, dict[str, Any], Path, dict[str, Tensors]]


def cases_in(folder: Path) -> Iterator[Case]:
    """(architecture, siblings or strangers, dtype, method, sources, plan, folder, models) of every merge."""
    for kind in ("llama", "vit"):
        for related in ("siblings", "strangers"):
            for dtype in DTYPES:
                here = folder / f"{kind}-{related}-{dtype}"
                models = family(kind, related, dtype)
                for name, tensors in models.items():
                    put(here / name, tensors, kind)
                for method in METHODS:
                    for count in (2, 3):
                        if plan := planned(method, count):
                            yield kind, related, dtype, method, count, plan, here, models


def make(cases: list[Case], python: str | None) -> dict[Path, str]:
    """Every merge that is not there yet; of those by mergekit, `made` or its error."""
    jobs = []
    for kind, _, dtype, method, count, plan, here, models in cases:
        child = here / f"{method}-{count}"
        if child.exists():  # of a run that was kept
            continue
        if kind == "llama" and python:
            recipe = here / f"{method}-{count}.yml"
            recipe.write_text(yaml.safe_dump(as_yaml(plan, method, here, dtype)))
            jobs.append((recipe, child))
        else:
            put(child, merged(plan, method, models), kind)
    return run_recipes(python, jobs) if python and jobs else {}


def measure(folder: Path, python: str | None, before: bool) -> Iterator[dict[str, Any]]:
    cases = [*cases_in(folder)]
    made = make(cases, python)
    again = []
    rows = []
    for kind, related, dtype, method, count, plan, here, _ in cases:
        child = here / f"{method}-{count}"
        row = {"kind": kind, "related": related, "dtype": dtype, "method": method, "sources": count}
        if made.get(child, "made") != "made":
            rows.append(row | {"failed": made[child]})
            continue
        rows.append(row | traced(child, here, plan, method, before))
        recipe = here / f"{method}-{count}-ours.yml"
        recipe.write_text(rows[-1].pop("recipe"))
        if kind == "llama" and python and not before:
            again.append((rows[-1], recipe, here / f"{method}-{count}-again", child))
    told = run_recipes(python, [(recipe, out) for _, recipe, out, _ in again]) if python and again else {}
    for row, _, out, child in again:
        row["recipe"] = told[out]
        if told[out] == "made":
            row["recipe_equal"] = equal(out, child)
    yield from rows


def traced(child: Path, here: Path, plan: dict[str, Any], method: str, before: bool) -> dict[str, Any]:
    started = time.process_time()
    more = {} if before else {"verify": True}
    layers = hl.trace_layers(child, [here / name for name in ("base", "a", "b", "c")], **more)
    row: dict[str, Any] = {"seconds": round(time.process_time() - started, 2), "named": layers.method}
    row |= {"recipe": ""} if before else {}
    row["recognised"] = layers.method == {"dare_linear": "dare"}.get(method, method)
    if before:
        return row
    about, redone = layers.facts.get("merge"), layers.redone
    row |= {"equal": redone.equal if redone else None, "tensors": redone.tensors if redone else None}
    row["exact"] = bool(redone and redone.whole)
    if about and "weight" in plan["settings"]:
        told = {Path(m["ref"]).name: m["weight"] for m in about["models"] if isinstance(m.get("weight"), float)}
        truth = dict(zip(plan["models"], plan["settings"]["weight"], strict=True))
        scale = sum(truth.values()) / sum(told.values()) if told and about["parameters"].get("normalize", True) else 1.0
        row["share_error"] = max(abs(told.get(n, 0.0) * scale - truth.get(n, 0.0)) for n in {*told, *truth})
    return row | {"recipe": layers.recipe()}


def equal(made: Path, child: Path) -> str:
    ours, theirs = load_all(made), load_all(child)
    same = sum(name in ours and torch.equal(ours[name], tensor) for name, tensor in theirs.items())
    return f"{same}/{len(theirs)}"


def load_all(folder: Path) -> Tensors:
    return {name: t for file in sorted(folder.glob("*.safetensors")) for name, t in load_file(file).items()}


# ---- what is no merge, what was tuned since, and who is missing


def others(folder: Path, before: bool) -> Iterator[dict[str, Any]]:
    """Children that are no merges, among a base, its fine-tunes and a stranger."""
    for kind in ("llama", "vit"):
        for dtype in DTYPES:
            here = folder / f"none-{kind}-{dtype}"
            models = family(kind, "siblings", dtype) | {"stranger": drawn(kind, 77, DTYPES[dtype])}
            for name, tensors in models.items():
                put(here / name, tensors, kind)
            for seed in range(4):
                for what, child in singles(models, seed).items():
                    path = put(here / f"{what}-{seed}", child, kind)
                    layers = hl.trace_layers(path, [here / name for name in models])
                    yield {"what": what, "kind": kind, "dtype": dtype, "named": layers.method}


def singles(models: dict[str, Tensors], seed: int) -> dict[str, Tensors]:
    base, a = models["base"], models["a"]
    generator = torch.Generator().manual_seed(seed)
    lora = {}
    for name, value in base.items():
        lora[name] = value
        if value.dim() == 2:
            low = torch.randn(len(value), 4, generator=generator) @ torch.randn(4, value.shape[1], generator=generator)
            lora[name] = (value.float() + 0.05 * value.float().norm() * low / low.norm()).to(value.dtype)
    rates = (0.3, 0.1, 0.02, 0.005)
    return {
        "fine-tune of the base": tuned(base, 100 + seed, rates[seed]),
        "fine-tune of a sibling": tuned(a, 200 + seed, rates[seed]),
        "merged LoRA": lora,
        "pruned": {n: t * (t.abs() > (0.01 + 0.01 * seed)) for n, t in base.items()},
        "rounded": {n: ((t.float() * 2 ** (7 - seed)).round() / 2 ** (7 - seed)).to(t.dtype) for n, t in base.items()},
        "distilled": drawn_like(base, 300 + seed),
        "last block alone": {n: tuned({n: t}, 400 + seed, 0.1)[n] if f".{DEPTH - 1}." in n else t for n, t in base.items()},
    }  # fmt: skip


def drawn_like(model: Tensors, seed: int) -> Tensors:
    """Trained from a start of its own: nothing in common."""
    generator = torch.Generator().manual_seed(seed)
    return {n: (t.float().std() * torch.randn(t.shape, generator=generator)).to(t.dtype) for n, t in model.items()}


def since(folder: Path) -> Iterator[dict[str, Any]]:
    """Weighted sums of siblings and of strangers, tuned afterwards, and with a source that is not offered."""
    for related in ("siblings", "strangers"):
        models = family("llama", related, "float32")
        here = folder / f"since-{related}"
        for name, tensors in models.items():
            put(here / name, tensors, "llama")
        for names, weights in ((("a", "b"), (0.65, 0.35)), (("a", "b", "c"), (0.5, 0.3, 0.2))):
            truth = dict(zip(names, weights, strict=True))
            mix = {n: sum(w * models[k][n] for k, w in truth.items()) for n in models["a"]}
            for change in (0.0, 1e-5, 1e-4, 1e-3, 1e-2):
                child = tuned(mix, 900, change) if change else mix
                path = put(here / f"tuned-{len(names)}-{change:g}", child, "llama")
                fewer = [k for k in "abc" if k != names[-1]]
                for offered in (["base", "a", "b", "c"], ["a", "b", "c"], ["base", *fewer], fewer):
                    if len(names) == 2 and names[-1] not in offered:
                        continue
                    layers = hl.trace_layers(path, [here / name for name in offered])
                    told = {Path(s.ref).name: (s.weight, s.stderr) for s in layers.mixture}
                    wanted = {k: w for k, w in truth.items() if k in offered}
                    error = max(abs(told.get(k, (0.0, 0.0))[0] - w) for k, w in wanted.items())
                    yield {
                        "related": related, "sources": len(names), "change": change, "offered": "".join(o[0] for o in offered),
                        "named": layers.method, "error": round(error, 5), "unknown": layers.unknown, "told": told,
                    }  # fmt: skip


def after(folder: Path) -> Iterator[dict[str, Any]]:
    """0.65 a + 0.35 b, and what people do with a merge then: quantised, the vocabulary changed, parts taken from one
    source, merged again."""
    sys.path.insert(0, str(Path(__file__).parents[1]))
    from gguf_files import write_gguf
    from packers import packed

    for related in ("siblings", "strangers"):
        models = family("llama", related, "float32")
        here = folder / f"after-{related}"
        for name, tensors in models.items():
            put(here / name, tensors, "llama")
        a, b, c = (models[name] for name in "abc")
        mix = merged({"base": None, "models": ["a", "b"], "settings": {"weight": (0.65, 0.35)}}, "linear", models)
        half = {n: t.bfloat16() for n, t in mix.items()}
        ends = ("model.embed_tokens.weight", "lm_head.weight")
        more = {
            n: torch.cat([mix[n], 0.05 * torch.randn(7, WIDTH, generator=torch.Generator().manual_seed(1))])
            for n in ends
        }
        between = {n: (t + b[n]) / 2 for n, t in a.items()}
        made: dict[str, Tensors] = {
            "stored in bfloat16": half,
            "int8 (bitsandbytes)": packed(half, "llm int8"), "NF4 (bitsandbytes)": packed(half, "nf4"),
            "7 tokens added": mix | more, "7 tokens removed": mix | {n: mix[n][:-7] for n in ends},
            "vocabulary of another": mix | {n: drawn("llama", 91, torch.float32)[n] for n in ends},
            "embeddings of one source": mix | {ends[0]: a[ends[0]]},
            "merged again, the first merge hidden": {n: 0.6 * t + 0.4 * c[n] for n, t in between.items()},
        }  # fmt: skip
        truths = {"merged again, the first merge hidden": {"a": 0.3, "b": 0.3, "c": 0.4}}
        places = {what: put(here / f"child-{i}", child, "llama") for i, (what, child) in enumerate(made.items())}
        for kind in ("Q8_0", "Q4_K"):
            (here / kind).mkdir(exist_ok=True)
            places[f"GGUF {kind}"] = write_gguf(here / kind / "model.gguf", half, kind).parent
        for what, place in places.items():
            truth = truths.get(what, {"a": 0.65, "b": 0.35})
            for offered in (("base", "a", "b", "c"), ("a", "b", "c")):
                layers = hl.trace_layers(place, [here / name for name in offered], verify=True)
                inner = [block for block in layers.blocks if block.index is not None]
                told = {
                    n: [{Path(s.ref).name: s.weight for s in block.mixture}.get(n, 0.0) for block in inner]
                    for n in truth
                }
                yield {
                    "related": related, "after": what, "offered": "".join(name[0] for name in offered),
                    "named": layers.method, "sentence": layers.sentence(),
                    "error": max(abs(weight - truth[n]) for n, weights in told.items() for weight in weights),
                    "redone": [layers.redone.equal, layers.redone.tensors] if layers.redone else None,
                }  # fmt: skip


# ---- the table


def table() -> str:
    """Markdown: for each method, of all its merges, how many were recognised before and now, and so on."""
    now = json.loads((RESULTS / "merges.json").read_text(encoding="utf-8"))
    old = json.loads((RESULTS / "merges-before.json").read_text(encoding="utf-8"))
    heads = (
        "method",
        "merges",
        "named before",
        "named",
        "share's error",
        "bit for bit",
        "recipe runs",
        "makes the child",
    )
    lines = [f"| {' | '.join(heads)} |", f"|---{'|---:' * (len(heads) - 1)}|"]
    for method in METHODS:
        rows, before = (
            [r for r in each["rows"] if r.get("method") == method and "failed" not in r] for each in (now, old)
        )
        errors = [row["share_error"] for row in rows if "share_error" in row]
        ran = [row for row in rows if "recipe" in row]
        whole = [row for row in ran if len({*row.get("recipe_equal", "0/1").split("/")}) == 1]
        cells = [
            method, len(rows), sum(r["recognised"] for r in before), sum(r["recognised"] for r in rows),
            f"{max(errors):.2g}" if errors else "-", sum(r["exact"] for r in rows),
            f"{sum(r['recipe'] == 'made' for r in ran)} / {len(ran)}", len(whole),
        ]  # fmt: skip
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("run", "table"))
    parser.add_argument("--mergekit", metavar="PYTHON", help="the Python of an environment that has mergekit")
    parser.add_argument("--before", action="store_true", help="only what is named, by the package on PYTHONPATH")
    parser.add_argument("--made", type=Path, help="keep the models in this folder")
    asked = parser.parse_args()
    if asked.what == "table":
        print(table())
        return
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        folder = asked.made or Path(temporary)
        rows = [*measure(folder, asked.mergekit, asked.before), *others(folder, asked.before)]
        rows += [] if asked.before else [*since(folder), *after(folder)]
    write_record(
        "merges-before" if asked.before else "merges", rows, seed=SEED, mergekit="0.1.5" if asked.mergekit else None
    )


if __name__ == "__main__":
    main()
