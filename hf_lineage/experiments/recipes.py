"""The tasks and recipes of the families: tables whose rows are used in turn."""

from __future__ import annotations

from typing import Any

_IMAGE_ROOTS = ("upper", "lower", "cyrillic", "greek")
_IMAGE_CHILDREN = ("digits", "signs", "capitals", "letters", "slavic")
ROOT_TASKS = {
    "fc": _IMAGE_ROOTS, "resnet": _IMAGE_ROOTS,
    "vit": ("few-upper", "few-lower", "few-cyrillic", "few-greek"),
    "llama": ("files+network", "numbers+text", "workers+checks", "network+markup"),
    "bert": ("network+numbers+workers", "files+numbers+checks", "numbers+text+workers"),
}  # fmt: skip
CHILD_TASKS = {
    "fc": _IMAGE_CHILDREN, "resnet": _IMAGE_CHILDREN, "vit": _IMAGE_CHILDREN,
    "llama": ("containers", "dates+code", "text", "code", "markup"),
    "bert": ("files+numbers", "numbers+text", "network+numbers"),
}  # fmt: skip


def _recipe(optimizer: str, lr: float, steps: int, head_lr: float = 0.0, **other_recipe: float) -> dict[str, Any]:
    """One way to train; `lr` is the peak of the schedule, and `head_lr` that of the new head."""
    base = {"batch": 64, "weight_decay": 0.0, "clip": 0.0}
    return {"optimizer": optimizer, "lr": lr, "head_lr": head_lr or lr, "steps": steps, **base, **other_recipe}


ROOT_RECIPES = {
    "fc": (
        _recipe("adam", 2e-3, 150), _recipe("sgd", 0.1, 150),
        _recipe("adamw", 1e-3, 200, weight_decay=0.05), _recipe("adam", 1e-3, 180),
    ),
    "resnet": (
        _recipe("adam", 3e-3, 100), _recipe("sgd", 0.1, 100), _recipe("adamw", 3e-3, 120, weight_decay=0.05),
    ),
    "vit": (_recipe("adamw", 5e-3, 200, clip=1.0), _recipe("adamw", 3e-3, 200, weight_decay=0.05, clip=1.0)),
    "llama": (
        _recipe("adamw", 5e-3, 150, clip=1.0, batch=32), _recipe("adamw", 3e-3, 150, clip=1.0, batch=32),
    ),
    "bert": (
        _recipe("adamw", 3e-3, 200, clip=1.0, batch=32),
        _recipe("adamw", 2e-3, 200, clip=1.0, batch=32, weight_decay=0.05),
        _recipe("adamw", 2e-3, 240, clip=1.0, batch=32, weight_decay=0.05),
    ),
}  # fmt: skip
CHILD_RECIPES = {  # a small rate alone would leave the new head near its initialisation, hence `head_lr`
    "fc": (_recipe("adam", 1e-2, 80), _recipe("adam", 1e-3, 100), _recipe("adam", 1e-4, 120, head_lr=2e-2)),
    "resnet": (
        _recipe("sgd", 1e-2, 60, head_lr=0.03), _recipe("adamw", 1e-3, 60, head_lr=1e-2),
        _recipe("adamw", 1e-4, 80, head_lr=1e-2),
    ),
    "vit": (
        _recipe("sgd", 1e-2, 140, head_lr=0.1), _recipe("adamw", 1e-3, 100, head_lr=1e-2),
        _recipe("adamw", 1e-4, 200, head_lr=2e-2),
    ),
    "llama": (
        _recipe("sgd", 1e-2, 100, head_lr=0.3, clip=1.0, batch=32),
        _recipe("adamw", 1e-3, 100, head_lr=1e-2, clip=1.0, batch=32),
        _recipe("adamw", 1e-4, 100, head_lr=1e-2, clip=1.0, batch=32),
    ),
    "bert": (
        _recipe("sgd", 1e-2, 100, clip=1.0, batch=32),
        _recipe("adamw", 1e-3, 100, head_lr=1e-2, clip=1.0, batch=32),
        _recipe("adamw", 1e-4, 100, head_lr=1e-2, clip=1.0, batch=32),
    ),
}  # fmt: skip


def other_recipe(recipe: dict[str, Any]) -> dict[str, Any]:
    """A recipe with another optimizer, rate, batch and number of steps: tests must not use the recipes of the fits."""
    swapped = {"adam": "adamw", "adamw": "adam", "sgd": "sgd"}[recipe["optimizer"]]
    factors = {"lr": 0.6, "head_lr": 0.8, "steps": 1.3, "batch": 0.75}
    changed = {name: type(recipe[name])(recipe[name] * factor) for name, factor in factors.items()}
    return {**recipe, **changed, "optimizer": swapped}
