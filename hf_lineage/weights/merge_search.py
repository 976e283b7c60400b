"""By which method, with which settings, a tensor of the child was made of those of its candidates: by making it again.

Each method has an estimate of its settings from the entries (`ESTIMATES`), and the method that makes the tensor again
with the smallest error is the one. Then the numbers are rounded as authors write them, and where that makes the child
bit for bit, the recipe is proven. Whole tensors of a few kinds, held in memory. See docs/methods.md, *Merges made
again*.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import combinations as subsets
from itertools import islice, permutations, product
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..checkpoints.dtypes import epsilon, torch_dtypes
from .masked_sums import masked_sums
from .merge_methods import METHODS, remade
from .merge_numbers import author_values, combinations, resolve, shares_as_written
from .mixture import slerp_position

MOST_MODELS = 5  # of one merge that is looked for
MAX_MISFIT = 0.02  # of the square that the nearest model leaves, up to which a method made the tensor
SIMPLER = 0.7  # of a simpler method's misfit, below which a later one is preferred
EXACT_MISFIT = 1e-6  # below, what is left is rounding and no method is preferred for it
COARSE, MIN_MOVED = 0.01, 100  # rounding's part of what the nearest model leaves, and entries that are not its own
MIN_SHOWN = 0.1  # weight times length of a change, of the length of child − base, for it to have taken part
WEIGHT_ERROR = 0.004  # of a weight, a density or t, up to which a rounded number may stand for it
ERRORS = {"t": WEIGHT_ERROR, "density": 0.008, "gamma": 0.004, "epsilon": 0.03, "lambda": WEIGHT_ERROR}
NEARLY = 8  # units in the last place
CELL_STEPS = 30  # of Newton's
MOST_TRIED, MOST_WRITTEN = 4, 120  # recipes of a method of which bits are compared, and ways to write their numbers
DTYPES = {torch.float32: "float32", torch.bfloat16: "bfloat16", torch.float16: "float16", torch.float64: "float64"}


@dataclass(frozen=True, slots=True)
class Recipe:
    """A merge. base, models: numbers of candidates; settings: by mergekit's names; dtype: of the arithmetic."""

    method: str
    base: int | None
    models: tuple[int, ...]
    settings: dict[str, Any]
    dtype: str = "float32"

    @property
    def used(self) -> tuple[int, ...]:
        """All candidates that take part, the base last."""
        return self.models if self.base is None else (*self.models, self.base)

    @property
    def is_choice(self) -> bool:
        """Whether by kind each tensor is one model's whole: an arc or an average with shares of 0 and 1 alone."""
        shares = self.settings.get({"slerp": "t", "linear": "weight"}.get(self.method, ""))
        rows = shares if isinstance(shares, tuple) else (shares,)
        return all(isinstance(row, list) and all(each.get("value") in (0, 1) for each in row) for row in rows)

    def at(self, name: str, place: float) -> Recipe:
        """The recipe of one tensor: conditions and anchors of its settings resolved."""
        settings = {
            key: tuple(resolve(each, name, place) for each in value) if isinstance(value, tuple)
            else resolve(value, name, place)
            for key, value in self.settings.items()
        }  # fmt: skip
        return replace(self, settings=settings)

    def make(self, models: Sequence[Tensor | None], out: torch.dtype) -> Tensor | None:
        """The child's tensor; None where one that is needed is missing or has another shape."""
        parts = [part for k in self.used if (part := models[k]) is not None]
        if len(parts) < len(self.used) or any(part.shape != parts[0].shape for part in parts):
            return None
        start = None if self.base is None else parts.pop()
        dtype = getattr(torch, self.dtype) if self.dtype else parts[0].dtype
        return remade(self.method, start, parts, self.settings, dtype, out)


@dataclass(frozen=True, eq=False)
class Probe:
    """One tensor of the child, as stored, and of every candidate, None where it has none of that shape.

    place: of its block, 0 the first, 1 the last; 0 outside of the blocks.
    """

    name: str
    child: Tensor
    models: tuple[Tensor | None, ...]
    place: float = 0.0

    def made(self, recipe: Recipe, out: torch.dtype | None = None) -> Tensor | None:
        """What a recipe makes of it, in the child's dtype or in `out`."""
        return recipe.at(self.name, self.place).make(self.models, out or self.child.dtype)

    @cached_property
    def c(self) -> np.ndarray:
        """The child's entries, float64 (n,)."""
        return _flat(self.child)

    @cached_property
    def p(self) -> dict[int, np.ndarray]:
        """The candidates' entries."""
        return {k: _flat(model) for k, model in enumerate(self.models) if model is not None}

    @cached_property
    def _products(self) -> np.ndarray:
        """Products of the differences of the candidates from the child, zeros for one that has no such tensor."""
        rows = np.stack([self.p[k] - self.c if k in self.p else np.zeros_like(self.c) for k in range(len(self.models))])
        return rows @ rows.T

    def products(self, base: int, i: int, j: int | None = None) -> float:
        """⟨pᵢ − b, pⱼ − b⟩ of candidates; without j, ⟨pᵢ − b, c − b⟩, where i = b stands for the child."""
        g = self._products
        if j is not None:
            return float(g[i, j] - g[i, base] - g[base, j] + g[base, base])
        return float(g[base, base] if i == base else g[base, base] - g[i, base])

    @cached_property
    def ulp(self) -> np.ndarray:
        """The unit in the last place of the child's dtype, at each entry."""
        return _epsilon(self.child) * np.maximum(np.abs(self.c), 1e-30)

    @cached_property
    def coarse(self) -> float:
        """The relative unit in the last place of the coarsest dtype: of the child, or of a candidate it was made of."""
        return max(map(_epsilon, [self.child, *(model for model in self.models if model is not None)]))

    @cached_property
    def floor(self) -> float:
        """The square that rounding leaves."""
        return float((self.ulp**2).sum()) / 12

    @cached_property
    def cell(self) -> np.ndarray:
        """Half the distance to the next number of the child's dtype, at each entry: what rounding moves one at most."""
        return 0.25 * _epsilon(self.child) * np.exp2(np.frexp(np.maximum(np.abs(self.c), 1e-30))[1])

    @cached_property
    def _squares(self) -> dict[int, float]:
        return {k: float(((self.c - p) ** 2).sum()) for k, p in self.p.items()}

    @cached_property
    def nearest(self) -> float:
        """The square that the nearest candidate leaves."""
        return min(self._squares.values(), default=0.0)

    @property
    def is_coarse(self) -> bool:
        """Whether rounding is a good part of what the nearest candidate leaves."""
        return self.floor > COARSE * self.nearest

    @cached_property
    def _moved(self) -> Tensor:
        """Where the child is not the nearest candidate, to the last bit."""
        nearest = self.models[min(self._squares, key=lambda k: self._squares[k])]
        assert nearest is not None
        return self.child != nearest.to(self.child.dtype)

    @property
    def is_changed(self) -> bool:
        """Whether the child is more than a candidate that was rounded."""
        return self.nearest > 4 * self.floor or (bool(self.p) and int(self._moved.sum()) >= MIN_MOVED)

    def misfit(self, recipe: Recipe) -> float:
        """The square that a recipe leaves, above rounding, relative to what the nearest candidate leaves; inf where it
        makes nothing. Where rounding is a good part of that, the share of the entries that the recipe does not make, of
        those that are not the nearest candidate's, if it is smaller."""
        found = self.relative(self.left(recipe))
        if found <= MAX_MISFIT or not self.is_coarse or (made := self.made(recipe)) is None:
            return found
        moved = int(self._moved.sum())
        return min(found, float((made != self.child).sum()) / moved) if moved >= MIN_MOVED else found

    def left(self, recipe: Recipe) -> float:
        """‖child − made‖²; inf where the recipe makes nothing."""
        made = self.made(recipe, torch.float64 if recipe.dtype == "float64" else None)
        return np.inf if made is None else float(((self.c - _flat(made)) ** 2).sum())

    def relative(self, left: float) -> float:
        """A square that is left, above rounding, relative to what the nearest candidate leaves."""
        above = max(0.0, left - min(2 * self.floor, 0.2 * self.nearest))
        return above / max(self.nearest, 1e-300) if np.isfinite(left) else np.inf

    def is_nearly_made_by(self, recipe: Recipe) -> bool:
        """Whether the recipe makes half of the entries but for a few units in the last place, so that rounder numbers
        may make all of them."""
        made = self.made(recipe)
        if made is None:
            return False
        size = np.max([np.abs(self.c), *(np.abs(self.p[k]) for k in recipe.used)], axis=0)
        return bool((np.abs(self.c - _flat(made)) <= NEARLY * self.coarse * size).mean() > 0.5)

    def is_made_but_for_rounding(self, recipe: Recipe) -> bool:
        """Whether no entry that the recipe makes is off by more than one unit in the last place."""
        made = self.made(recipe)
        return made is not None and bool((np.abs(self.c - _flat(made)) <= self.ulp).all())

    def is_made_by(self, recipe: Recipe) -> bool:
        """Whether the recipe makes the tensor bit for bit."""
        made = self.made(recipe)
        return made is not None and torch.equal(made, self.child)


def _epsilon(values: Tensor) -> float:
    names = {dtype: name for name, dtype in torch_dtypes().items()}
    return epsilon(names[values.dtype])


def _flat(values: Tensor) -> np.ndarray:
    return values.detach().reshape(-1).double().numpy()


Estimate = Callable[[Probe, "tuple[int, ...]"], Iterator[Recipe]]


# ---- methods that stay in the span of the models


def span_weights(probe: Probe, models: Sequence[int], base: int | None = None) -> np.ndarray | None:
    """Weights of any sign, of the models or of their changes from a base; None where the child is not in their span but
    for rounding, or they are no different. By least squares; where rounding is coarse, so that as few entries as can be
    are off by more than it (least squares are drawn towards the nearest model, since small steps were rounded away)."""
    start = 0.0 if base is None else probe.p[base]
    rows = np.stack([probe.p[k] - start for k in models])
    gram = rows @ rows.T
    size = np.sqrt(np.diag(gram))
    if not size.all():
        return None
    weights = np.linalg.lstsq(gram / np.outer(size, size), rows @ (probe.c - start) / size, rcond=1e-11)[0] / size
    left = float(((probe.c - start - weights @ rows) ** 2).sum())
    if left > MAX_MISFIT * probe.nearest + 3 * probe.floor:
        return None
    return _within_cells(weights, rows, probe.c - start, probe.cell) if probe.is_coarse else weights


def _within_cells(weights: np.ndarray, rows: np.ndarray, c: np.ndarray, cell: np.ndarray) -> np.ndarray:
    """Weights w that minimise Σ max(0, |c − wᵀ·rows| − cell)² by Newton's steps over the entries that are off, from
    least squares on. rows: (models, n); c, cell: (n,)."""
    best, least = weights, np.inf
    for _ in range(CELL_STEPS):
        off = c - weights @ rows
        excess = off - np.clip(off, -cell, cell)
        if (cost := float((excess**2).sum())) >= least:
            break
        best, least = weights, cost
        outside = excess != 0
        if not outside.any():
            break
        part = rows[:, outside]
        size = np.sqrt((part**2).sum(1))
        size = np.where(size > 0, size, 1.0)
        step = np.linalg.lstsq(part @ part.T / np.outer(size, size), part @ excess[outside] / size, rcond=1e-11)[0]
        weights = weights + step / size
    return best


def _linear(probe: Probe, models: tuple[int, ...]) -> Iterator[Recipe]:
    for among in _subsets(models, 2):
        weights = span_weights(probe, among)
        if weights is not None and (weights > 0.01).all():
            whole = bool(abs(weights.sum() - 1) < WEIGHT_ERROR)
            yield Recipe("linear", None, among, {"weight": tuple(map(float, weights)), "normalize": whole})


def _task_arithmetic(probe: Probe, models: tuple[int, ...]) -> Iterator[Recipe]:
    for base in models:
        for among in _subsets([k for k in models if k != base], 1):
            weights = span_weights(probe, among, base)
            if weights is not None and (np.abs(weights) > 0.01).all():
                yield Recipe("task_arithmetic", base, among, {"weight": tuple(map(float, weights))})


def _slerp(probe: Probe, models: tuple[int, ...]) -> Iterator[Recipe]:
    for a, b in permutations(models, 2):
        if span_weights(probe, (a, b)) is None:
            continue
        t, length, _ = slerp_position(_gram(probe, (a, b)), 0, 1)
        if abs(length - 1) < 0.02 and 0.005 < t < 0.995:
            yield Recipe("slerp", a, (b,), {"t": float(t)})
            if a < b:
                yield Recipe("nuslerp", None, (a, b), {"weight": (1 - float(t), float(t))})


def _nuslerp(probe: Probe, models: tuple[int, ...]) -> Iterator[Recipe]:
    """Of changes from a base, and of rows or columns, from the t of the whole tensor's projection on."""
    for base in (None, *models):
        others = [k for k in models if k != base]
        for pair in subsets(others, 2):
            flat = base is not None and span_weights(probe, pair, base) is not None
            if flat:
                t, length, _ = slerp_position(_gram(probe, pair, base), 0, 1)
                if abs(length - 1) < 0.02:
                    yield Recipe("nuslerp", base, pair, {"weight": (1 - float(t), float(t))})
            elif probe.child.dim() > 1:
                start = 0.0 if base is None else probe.p[base]
                rows = np.stack([probe.p[k] - start for k in pair])
                found = np.linalg.lstsq(rows @ rows.T, rows @ (probe.c - start), rcond=None)[0]
                left = float(((probe.c - start - found @ rows) ** 2).sum())
                if (found > 0.02).all() and left < 0.3 * probe.nearest:
                    t = float(found[1] / found.sum())
                    for by_column in (False, True):
                        more = {"nuslerp_flatten": False, "nuslerp_row_wise": by_column}
                        yield from _polished(probe, Recipe("nuslerp", base, pair, {"weight": (1 - t, t), **more}))


def _polished(probe: Probe, recipe: Recipe) -> Iterator[Recipe]:
    """The recipe with weights that sum to 1 and make the tensor best, from those given on, if it comes near."""
    from scipy.optimize import least_squares

    models = [None if m is None else m.double() for m in probe.models]
    scale = max(probe.nearest, 1e-300) ** 0.5

    def left(free: np.ndarray) -> np.ndarray:
        made = _weighted(recipe, free).make(models, torch.float64)
        assert made is not None
        return np.nan_to_num((probe.c - _flat(made)) / scale, nan=1e3)

    start = np.array(recipe.settings["weight"][:-1])
    if float((left(start) ** 2).sum()) > 0.5:
        return
    found = least_squares(left, start, xtol=1e-10, ftol=1e-10, max_nfev=25).x
    yield _weighted(recipe, found)


def _weighted(recipe: Recipe, free: np.ndarray) -> Recipe:
    weight = (*(float(w) for w in free), float(1 - free.sum()))
    return replace(recipe, settings={**recipe.settings, "weight": weight}, dtype="float64")


def _multislerp(probe: Probe, models: tuple[int, ...]) -> Iterator[Recipe]:
    for base in (None, *models):
        for among in _subsets([k for k in models if k != base], 2):
            weights = span_weights(probe, among, base)
            if weights is not None and (weights > 0.01).all():
                share = weights / weights.sum()
                recipe = Recipe("multislerp", base, among, {"weight": tuple(map(float, share))}, "float64")
                yield from (replace(each, dtype="float32") for each in _polished(probe, recipe))


def _karcher(probe: Probe, models: tuple[int, ...]) -> Iterator[Recipe]:
    for among in _subsets(models, 2):
        if span_weights(probe, among) is not None:
            yield Recipe("karcher", None, among, {})


# ---- methods without numbers, or with one that the entries show


def _model_stock(probe: Probe, models: tuple[int, ...]) -> Iterator[Recipe]:
    for base, among in _with_base(probe, models, 2):
        yield Recipe("model_stock", base, among, {})
        if probe.child.dim() > 1:
            yield Recipe("model_stock", base, among, {"filter_wise": True})


def _ram(probe: Probe, models: tuple[int, ...]) -> Iterator[Recipe]:
    for base, among in _with_base(probe, models, 2):
        yield (plain := Recipe("ram", base, among, {}))
        changes = np.abs(np.stack([probe.p[k] - probe.p[base] for k in among])) > 1e-5
        if probe.misfit(plain) > 0.5 or not (changes.sum(0) == 1).any():
            continue
        for r, alpha in ((0.1, 0.2), *product((0.05, 0.1, 0.2, 0.3, 0.5), (0.1, 0.2, 0.3, 0.5, 1.0))):
            yield Recipe("ramplus_tl", base, among, {"r": r, "alpha": alpha})


def _sce(probe: Probe, models: tuple[int, ...]) -> Iterator[Recipe]:
    for base, among in _with_base(probe, models, 1):
        yield Recipe("sce", base, among, {})
        changes = np.stack([probe.p[k] - probe.p[base] for k in among])
        varies = changes.var(0) > 0
        moved = np.abs(probe.c - probe.p[base]) > probe.ulp
        share = float(moved[varies].mean()) if varies.any() else 1.0
        if 0.01 < share < 0.99:
            for value in author_values(share, 0.02):
                yield Recipe("sce", base, among, {"select_topk": value})


def _nearswap(probe: Probe, models: tuple[int, ...]) -> Iterator[Recipe]:
    for base, other in permutations(models, 2):
        moved, apart = np.abs(probe.c - probe.p[base]), np.abs(probe.p[other] - probe.p[base])
        far = moved[apart > 2 * moved.max()]
        if len(far) < 0.02 * len(moved) or not far.any():
            continue
        t = float(np.median(far))
        if (np.abs(far - t) <= 0.02 * t + 2 * probe.ulp[apart > 2 * moved.max()]).mean() > 0.9:
            for value in dict.fromkeys((float(f"{t:.1g}"), float(f"{t:.2g}"), t)):
                yield Recipe("nearswap", base, (other,), {"t": value})


def _arcee_fusion(probe: Probe, models: tuple[int, ...]) -> Iterator[Recipe]:
    for base, other in permutations(models, 2):
        largest = np.maximum(np.abs(probe.p[base]), np.abs(probe.p[other]))
        near = np.minimum(np.abs(probe.c - probe.p[base]), np.abs(probe.c - probe.p[other]))
        if (near <= 4 * probe.coarse * largest).mean() > 0.99:
            yield Recipe("arcee_fusion", base, (other,), {})


def _masked(probe: Probe, models: tuple[int, ...]) -> Iterator[Recipe]:
    """TIES, DARE, DELLA and breadcrumbs, by the masks that the entries show: given, where they were drawn at random."""
    if probe.nearest <= 4 * probe.floor:
        return  # steps of one unit in the last place are sums of any others
    for base, among in _with_base(probe, models, 1):
        changes = np.stack([probe.p[k] - probe.p[base] for k in among])
        for found in masked_sums(probe.c - probe.p[base], changes, probe.ulp, tuple(probe.child.shape)):
            settings = dict(found.settings)
            if METHODS[found.method].at_random:
                settings["left"] = found.left
            yield Recipe(found.method, base, among, settings)


ESTIMATES: tuple[Estimate, ...] = (
    _linear, _task_arithmetic, _slerp, _karcher, _model_stock, _multislerp, _nuslerp, _ram, _sce, _nearswap,
    _arcee_fusion, _masked,
)  # fmt: skip


def _subsets(models: Sequence[int], least: int) -> Iterator[tuple[int, ...]]:
    """All of the models, then fewer."""
    for count in range(len(models), least - 1, -1):
        yield from subsets(models, count)


def _with_base(probe: Probe, models: Sequence[int], least: int) -> Iterator[tuple[int, tuple[int, ...]]]:
    """Bases with sources of which every change shows in child − base: by least squares it has a weight."""
    for base in models:
        for among in _subsets([k for k in models if k != base], least):
            moved = probe.products(base, base)
            changes = np.array([[probe.products(base, i, j) for j in among] for i in among])
            pull = np.array([probe.products(base, i) for i in among])
            size = np.sqrt(np.diag(changes))
            if moved > 0 and size.all():
                weights = np.linalg.lstsq(changes / np.outer(size, size), pull / size, rcond=1e-9)[0] / size
                shown = weights * size / moved**0.5
                if np.abs(shown).min() > MIN_SHOWN:
                    yield base, among


def _gram(probe: Probe, models: Sequence[int], base: int | None = None) -> np.ndarray:
    """Row 0 the child, then the differences of the models from it, as in `Moments`; from a base, where there is one."""
    start = 0.0 if base is None else probe.p[base]
    c = probe.c - start
    rows = np.stack([c, *(probe.p[k] - start - c for k in models)])
    return rows @ rows.T


# ---- the search


@dataclass(frozen=True, slots=True)
class FoundMerge:
    """The recipe that makes the probes again.

    misfit: of the square that the nearest candidate leaves; exact: bit for bit in all probes. names: of the probes;
    residual: ‖child − made‖/‖child‖, the largest of them. others: recipes that make the same of them in another
    arithmetic or order. coarse: whether rounding is a good part of the steps from the nearest candidate in one of them.
    """

    recipe: Recipe
    misfit: float
    exact: bool = False
    names: tuple[str, ...] = ()
    residual: float = 0.0
    others: tuple[Recipe, ...] = ()
    coarse: bool = False


def find_merge(probes: Sequence[Probe], models: Sequence[int]) -> FoundMerge | None:
    """The method that makes every probe again from some of the candidates `models`; None where none does.

    Of several that do, one that makes them bit for bit, with the roundest numbers; else the simplest of about the
    smallest misfit.
    """
    among = tuple(models)[:MOST_MODELS]
    if len(among) < 2 or not probes:
        return None
    first = probes[0].models[among[0]]
    assert first is not None
    stored = DTYPES[first.dtype]  # masks and angles depend on it
    fitting: list[FoundMerge] = []
    for estimate in ESTIMATES:
        fitting += _fitting(estimate, probes, among, stored)
        if estimate is _linear and (simple := [e for e in _proven(fitting, probes) if not _is_odd(e.recipe)]):
            return _described(min(simple, key=lambda found: digits(found.recipe.settings)), probes)  # none is simpler
    proven = _proven(fitting, probes)
    if proven:
        return _described(min(proven, key=lambda found: _unlikeliness(found.recipe)), probes)
    if not fitting:
        return None
    limit = min(each.misfit for each in fitting) / SIMPLER + EXACT_MISFIT
    fair = [each for each in fitting if each.misfit <= limit]
    return _described(min(fair, key=lambda found: _is_odd(found.recipe)), probes)


def _fitting(estimate: Estimate, probes: Sequence[Probe], among: tuple[int, ...], stored: str) -> Iterator[FoundMerge]:
    """The recipes of one method that make the probes but for little, in the better of two arithmetics."""
    for recipe in estimate(probes[0], among):
        ways = [replace(recipe, dtype=dtype) for dtype in dict.fromkeys((recipe.dtype, stored))]
        misfit, best = min((_misfit(probes, way), i) for i, way in enumerate(ways))
        if misfit <= MAX_MISFIT:
            yield FoundMerge(ways[best], misfit)


def _proven(fitting: Sequence[FoundMerge], probes: Sequence[Probe]) -> list[FoundMerge]:
    """Those whose numbers, as an author may have written them, make every probe bit for bit."""
    proven = []
    tried: dict[str, int] = {}
    for each in sorted(fitting, key=lambda found: found.misfit):
        tried[each.recipe.method] = tried.get(each.recipe.method, 0) + 1
        if tried[each.recipe.method] > MOST_TRIED:
            continue
        if METHODS[each.recipe.method].at_random or not probes[0].is_nearly_made_by(each.recipe):
            continue  # masks are lost, or the numbers are not those
        exact = next((w for w in written(each.recipe, probes[0]) if all(p.is_made_by(w) for p in probes)), None)
        if exact:
            same = [w for w in _arithmetics(exact, probes[0]) if w != exact and all(p.is_made_by(w) for p in probes)]
            proven.append(FoundMerge(exact, each.misfit, True, others=tuple(same)))
    return proven


def judged(probes: Sequence[Probe], recipe: Recipe, known: Sequence[Recipe] = ()) -> FoundMerge | None:
    """A recipe with what it leaves of the probes, in the arithmetic that makes all of them bit for bit, if one does.

    known: the recipe in those arithmetics that make other probes.
    """
    misfit = _misfit(probes, recipe)
    if misfit > MAX_MISFIT or not probes:
        return None
    ways = known or _arithmetics(recipe, probes[0])
    same = [each for each in ways if all(probe.is_made_by(each) for probe in probes)]
    first, others = (same[0], tuple(same[1:])) if same else (recipe, ())
    return _described(FoundMerge(first, misfit, bool(same), others=others), probes)


def _described(found: FoundMerge, probes: Sequence[Probe]) -> FoundMerge:
    """With what it leaves of the probes; of masks that were drawn at random, of the first alone."""
    settings = dict(found.recipe.settings)
    seen = probes[:1] if "left" in settings else probes
    lost = settings.pop("left", None)
    left = [0.0 if found.exact else p.left(found.recipe) if lost is None else lost for p in seen]
    sizes = [float((probe.c**2).sum()) for probe in seen]
    residual = max((x / size) ** 0.5 for x, size in zip(left, sizes, strict=True))
    recipe = replace(found.recipe, settings=settings)
    return replace(
        found, recipe=recipe, names=tuple(probe.name for probe in seen), residual=residual,
        coarse=any(probe.is_coarse for probe in probes),
    )  # fmt: skip


def _misfit(probes: Sequence[Probe], recipe: Recipe) -> float:
    """The largest misfit over the probes; of masks that were drawn at random, as the first one shows it."""
    if "left" in recipe.settings:
        return probes[0].relative(recipe.settings["left"])
    worst = 0.0
    for probe in probes:
        worst = max(worst, probe.misfit(recipe))
        if worst > MAX_MISFIT:
            break
    return worst


ORDER = tuple(METHODS)  # the simple ones first


def _is_odd(recipe: Recipe) -> bool:
    """Whether authors seldom write such a recipe: with negative weights, or a sum of weights that is no average."""
    weight = recipe.settings.get("weight", ())
    return min(weight, default=0.0) < 0 or (recipe.method == "linear" and not recipe.settings["normalize"])


def _unlikeliness(recipe: Recipe) -> tuple[bool, int, int]:
    """Of recipes that make the same: odd ones, later methods, more digits."""
    return _is_odd(recipe), ORDER.index(recipe.method), digits(recipe.settings)


def digits(settings: dict[str, Any]) -> int:
    """How many decimals the numbers have in all: few, where an author wrote them."""
    values = [v for value in settings.values() for v in (value if isinstance(value, tuple) else (value,))]
    return sum(len(repr(v).partition(".")[2].rstrip("0")) for v in values if isinstance(v, float))


def written(recipe: Recipe, probe: Probe) -> Iterator[Recipe]:
    """The recipe with numbers as an author may have written them, in every arithmetic that may have been used."""
    for settings in islice(_written(recipe), MOST_WRITTEN):
        yield from _arithmetics(replace(recipe, settings=settings), probe)


def _arithmetics(recipe: Recipe, probe: Probe) -> Iterator[Recipe]:
    """The recipe in every order of its models, and in the dtypes that a merge may have been computed in."""
    stored = [model.dtype for model in probe.models if model is not None]
    widest = max(stored, key=lambda dtype: torch.finfo(dtype).bits)
    dtypes = [*dict.fromkeys(DTYPES[dtype] for dtype in (widest, probe.child.dtype, torch.float32, torch.float64))]
    for each, dtype in product(_orders(recipe), dtypes):
        yield replace(each, dtype=dtype)
        if each.method == "linear":
            yield replace(each, settings={**each.settings, "rounding": "product"}, dtype=dtype)


def _orders(recipe: Recipe) -> Iterator[Recipe]:
    """The models in every order in which they may have been named: sums of three depend on it in their last bit."""
    count = len(recipe.models)
    for order in islice(permutations(range(count)), 6):
        yield replace(
            recipe, models=tuple(recipe.models[i] for i in order),
            settings={
                name: tuple(value[i] for i in order) if isinstance(value, tuple) and len(value) == count else value
                for name, value in recipe.settings.items()
            },
        )  # fmt: skip


def _written(recipe: Recipe) -> Iterator[dict[str, Any]]:
    """Settings with rounded numbers, the roundest first."""
    settings = recipe.settings
    choices: list[list[dict[str, Any]]] = []
    if "weight" in settings:
        choices.append([{"weight": weight} for weight in _weights_as_written(recipe)])
    for name, error in ERRORS.items():
        if name in settings and isinstance(settings[name], tuple):
            choices.append([{name: values} for values in combinations(settings[name], error)])
        elif name in settings and not isinstance(settings[name], bool):
            choices.append([{name: value} for value in author_values(settings[name], error)])
    ranked = sorted(product(*(range(min(len(each), 24)) for each in choices)), key=lambda places: (sum(places), places))
    for places in ranked:
        found = dict(settings)
        for each, place in zip(choices, places, strict=True):
            found |= each[place]
        yield found


def _weights_as_written(recipe: Recipe) -> Iterator[tuple[float, ...]]:
    weight = recipe.settings["weight"]
    shares = recipe.settings.get("normalize", recipe.method in ("multislerp", "nuslerp"))
    total = sum(weight)
    if shares and total:
        return islice(shares_as_written([w / total for w in weight], WEIGHT_ERROR), 24)
    return combinations(weight, WEIGHT_ERROR)
