"""Similarity of two models' features of the same probes: the metrics of Neural Lineage, and their derivative.

Neural Lineage (CVPR 2024), §3, compares the features F (N, K) of a candidate with those of the child, G, by s(F, G);
N probes on the rows, K features. Moving the candidate by a step α along the tangent T = J Δ, towards the child, has
two forms that agree to first order in α:

    Taylor   s(F, G) + α·⟨Π, T⟩,  Π = ∂s/∂F        `taylor`: needs a differentiable metric
    exact    s(F + α·T, G)                          `exact`: any metric

A metric is plain torch operations with forward and backward derivatives, of |F − G| or of the two kernels. The largest
temporary is of the size of F or G, or (N, N) for cka and dc. docs/methods.md, *Learning-free features*.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import ArgumentError

P = 4  # the exponent of lp
TEMPERATURE = 0.01  # t of lse
EQUAL = 1e-13  # a squared distance this small beside the rows' squared lengths is rounding: the rows are equal


@dataclass(frozen=True, slots=True)
class Metric:
    """A similarity s of two feature matrices (N, K), one row of `METRICS`.

    Laws, tested for every row. identity: s(F, G) ≤ s(G, G).  symmetry: s(F, G) = s(G, F).  order: the probes may come
    in any order, the same for both.  finite: the value and, if differentiable, its derivative, also where rows or whole
    matrices are equal.

    formula: one line, with D = F − G.  of_distance: float64 |D| (N, K) → scalar, or of_kernels: float64 (N, N), (N, N)
    → scalar, of `_kernel` of F and of G.  differentiable: whether `gradient` and `taylor` work; linf is not, and needs
    the exact linearisation.  higher_is_better: whether a larger s means more similar features, as `step`, softmax and
    ranking assume.
    """

    formula: str
    of_distance: Callable[[Tensor], Tensor] | None = None
    of_kernels: Callable[[Tensor, Tensor], Tensor] | None = None
    differentiable: bool = True
    higher_is_better: bool = True
    slope_factor: float = 1.0

    @property
    def min_probes(self) -> int:
        """Probes needed: 2 for cka and dc, for which all single points are equal."""
        return 2 if self.of_kernels else 1

    @property
    def same_width(self) -> bool:
        """Whether F and G must be of one width; cka and dc compare (N, K1) with (N, K2)."""
        return self.of_kernels is None

    def function(self, F: Tensor, G: Tensor) -> Tensor:
        """s(F, G) of float64 matrices, a scalar with a derivative."""
        if self.of_kernels:
            return self.of_kernels(_kernel(F), _kernel(G))
        assert self.of_distance
        return self.of_distance((F - G).abs())


def _l1(D: Tensor) -> Tensor:
    return -D.mean()


def _l2(D: Tensor) -> Tensor:
    return -D.square().mean()


def _lp(D: Tensor) -> Tensor:
    return -D.square().square().mean()  # P = 4; pow takes half as long again


def _linf(D: Tensor) -> Tensor:
    return -D.amax(1).mean()


def _lse(D: Tensor) -> Tensor:
    return -torch.logsumexp(TEMPERATURE * D, 1).mean() / (TEMPERATURE * D.shape[1])


def _cka(P: Tensor, Q: Tensor) -> Tensor:
    """⟨P, Q⟩/(‖P‖·‖Q‖) of centred linear kernels: Kornblith et al., "Similarity of Neural Network Representations
    Revisited", ICML 2019, eq. 4."""
    return _cosine(P, Q)


def _dc(P: Tensor, Q: Tensor) -> Tensor:
    """Squared distance correlation. Székely, Rizzo, Bakirov, "Measuring and testing dependence …", 2007, def. 3."""
    return _cosine(_centred(_distances(P)), _centred(_distances(Q)))


def _cka_squared(P: Tensor, Q: Tensor) -> Tensor:
    return _cka(P, Q).square()


def _dc_root(P: Tensor, Q: Tensor) -> Tensor:
    """Distance correlation; derivative 0 at 0, as for the square."""
    squared = _dc(P, Q)
    return torch.where(squared > 0, torch.where(squared > 0, squared, 1.0).sqrt(), 0.0)


def _kernel(X: Tensor) -> Tensor:
    """X Xᵀ (N, N) of centred and scaled rows: what cka and dc are functions of."""
    X = _spread(X)
    return X @ X.T


def _spread(X: Tensor) -> Tensor:
    """Rows around their mean, the largest entry ±1. Neither changes cka or dc, and no power of it over- or underflows.

    The first row goes first, so that equal rows are exactly 0. No derivative flows through the scale: it would be 0.
    """
    X = X - X[:1]
    X = X - X.mean(0)
    scale = X.detach().abs().amax()
    return X / torch.where(scale > 0, scale, 1.0)


def _distances(products: Tensor) -> Tensor:
    """Euclidean distances between rows (N, N) from their products: cdist has no forward derivative.

    At 0 the square root has no slope; 0 is taken for it, the middle of those it could have.
    """
    lengths = products.diagonal()
    lengths = lengths[:, None] + lengths
    squares = lengths - 2 * products
    apart = squares > EQUAL * lengths
    return torch.where(apart, torch.where(apart, squares, 1.0).sqrt(), 0.0)  # the inner one keeps inf·0 out of backward


def _centred(A: Tensor) -> Tensor:
    """H A H with H = I − 11ᵀ/N, of a symmetric A."""
    means = A.mean(0)
    return A - means - means[:, None] + means.mean()


def _cosine(A: Tensor, B: Tensor) -> Tensor:
    return _quotient((A * B).sum(), A.square().sum(), B.square().sum())


def _quotient(both: Tensor, one: Tensor, other: Tensor) -> Tensor:
    """both/√(one·other); 0, with derivative 0, where all rows of one matrix are equal."""
    square = one * other
    defined = square > 0
    return torch.where(defined, both / torch.where(defined, square, 1.0).sqrt(), 0.0)


METRICS: dict[str, Metric] = {
    "l1": Metric("−(1/NK) Σ |D|", _l1),
    "l2": Metric("−(1/NK) Σ D²", _l2),
    "lp": Metric(f"−(1/NK) Σ |D|^{P}", _lp),
    "linf": Metric("−(1/N) Σ_i max_k |D_ik|", _linf, differentiable=False),
    "lse": Metric(f"−(1/NKt) Σ_i log Σ_k exp(t·|D_ik|), t = {TEMPERATURE}", _lse),
    "cka": Metric("HSIC(FFᵀ, GGᵀ)/√(HSIC(FFᵀ, FFᵀ)·HSIC(GGᵀ, GGᵀ))", of_kernels=_cka),
    "dc": Metric("dCov²(F, G)/√(dCov²(F, F)·dCov²(G, G))", of_kernels=_dc),
}
# Where the paper's parts contradict each other, the forms that are not above; computed only where one is asked for
AS_PRINTED: dict[str, Metric] = {
    "lse-printed": Metric("lse, Π with the factor 1/(NKt) of the slides", _lse, slope_factor=1 / TEMPERATURE),
    "cka-squared": Metric("cka²: Proposition 1, part 5, and S3.5", of_kernels=_cka_squared),
    "dc-root": Metric("√dc: S3.6", of_kernels=_dc_root),
}


def metric(name: str) -> Metric:
    """The metric of that name; `ArgumentError` for a name that neither METRICS nor AS_PRINTED has."""
    known = METRICS | AS_PRINTED
    if name not in known:
        near = difflib.get_close_matches(str(name).lower(), known, cutoff=0.5)
        hint = f" Did you mean {' or '.join(near)}?" if near else ""
        raise ArgumentError(f"Expected a metric out of {', '.join(known)}, got {name!r}.{hint}")
    return known[name]


def similarity(name: str, F: Tensor, G: Tensor) -> float:
    """s(F, G), computed in float64: ≤ 0 for the distances (l1, l2, lp, linf, lse), in [0, 1] for cka and dc.

    cka and dc are 0 where the rows of F, or of G, are all equal. Raises `ArgumentError` for features that are not two
    matrices of one shape (cka, dc: of as many rows), hold NaN or Inf, or are of too few probes.

    >>> F = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    >>> similarity("l2", F, F + 2), round(similarity("cka", F, F + 2), 9)
    (-4.0, 1.0)
    """
    return float(metric(name).function(*_pair(name, F, G)))


def gradient(name: str, F: Tensor, G: Tensor) -> Tensor:
    """Π = ∂s/∂F (N, K), times the metric's `slope_factor`, float64, by autograd; works under `no_grad` and
    `inference_mode` too.

    Raises `ArgumentError` as `similarity` does, and for a metric that is not differentiable.
    """
    chosen = metric(name)
    if not chosen.differentiable:
        usable = ", ".join(each for each, m in METRICS.items() if m.differentiable)
        raise ArgumentError(
            f"Expected a differentiable metric ({usable}), got {name!r}. Use the exact linearisation with it."
        )
    with torch.inference_mode(False), torch.enable_grad():
        ours, theirs = _pair(name, F, G)
        (slope,) = torch.autograd.grad(chosen.function(ours.requires_grad_(), theirs), ours)
    return slope * chosen.slope_factor


def taylor(name: str, F: Tensor, G: Tensor, T: Tensor, step: float) -> float:
    """s(F, G) + step·⟨Π, T⟩, linear in the step; T (N, K) the tangent. Raises `ArgumentError` as `gradient` does."""
    tangent = _tangent(F, T, step)
    return similarity(name, F, G) + step * float((gradient(name, F, G) * tangent).sum())


def exact(name: str, F: Tensor, G: Tensor, T: Tensor, step: float) -> float:
    """s(F + step·T, G), with F, T (N, K). Raises `ArgumentError` as `similarity` does."""
    tangent = _tangent(F, T, step)
    return similarity(name, _matrix("F", F) + step * tangent, G)


def scores(F: Tensor, G: Tensor, T: Tensor, steps: Sequence[float], asked: str = "l2") -> dict[str, list[float]]:
    """s(F + αT, G) for every step α and every metric, with `asked`, that fits the widths and the number of probes.

    Equal to `exact` at each; what the metrics share is computed once: the checks, F + αT, |D|, and the kernels.
    """
    F, G, T = _matrix("F", F), _matrix("G", G), _tangent(F, T, max(map(abs, steps)))
    fits = {
        name: m for name, m in (METRICS | {asked: metric(asked)}).items()
        if len(F) >= m.min_probes and (F.shape == G.shape or not m.same_width)
    }  # fmt: skip
    if len(F) != len(G):
        raise ArgumentError(f"Expected F and G of the same probes, got {len(F)} and {len(G)} rows.")
    result: dict[str, list[float]] = {name: [] for name in fits}
    target = _kernel(G) if len(F) > 1 else None
    for step in steps:
        there = torch.add(F, T, alpha=step) if step else F
        apart = (there - G).abs_() if F.shape == G.shape else None
        kernel = None if target is None else _kernel(there)
        for name, m in fits.items():
            if m.of_distance and apart is not None:
                result[name].append(float(m.of_distance(apart)))
            elif m.of_kernels and kernel is not None and target is not None:
                result[name].append(float(m.of_kernels(kernel, target)))
    return result


def _tangent(F: Tensor, T: Tensor, step: float) -> Tensor:
    if F.shape != T.shape:
        raise ArgumentError(f"Expected T of the shape of F, {tuple(F.shape)}, got {tuple(T.shape)}.")
    if not math.isfinite(step):
        raise ArgumentError(f"Expected a finite `step`, got {step}.")
    return _matrix("T", T)


def _pair(name: str, F: Tensor, G: Tensor) -> tuple[Tensor, Tensor]:
    """Both as float64, checked for the metric of that name."""
    chosen = metric(name)
    F, G = _matrix("F", F), _matrix("G", G)
    if F.shape[0] != G.shape[0]:
        raise ArgumentError(f"Expected F and G of the same probes, got {F.shape[0]} and {G.shape[0]} rows.")
    if chosen.same_width and F.shape != G.shape:
        others = " and ".join(each for each, m in METRICS.items() if not m.same_width)
        raise ArgumentError(
            f"Expected F and G of one shape for {name}, got {tuple(F.shape)} and {tuple(G.shape)}. "
            f"Features of different widths: {others}."
        )
    if F.shape[0] < chosen.min_probes:
        raise ArgumentError(f"Expected at least {chosen.min_probes} probes for {name}, got {F.shape[0]}.")
    return F, G


def _matrix(name: str, X: Tensor) -> Tensor:
    """As finite float64 (N, K), both at least 1, and no part of a graph."""
    if X.ndim != 2 or not X.numel():
        raise ArgumentError(f"Expected {name} of shape (probes, features), got {tuple(X.shape)}. Flatten each probe's.")
    if X.is_complex():
        raise ArgumentError(f"Expected real features, got {X.dtype} for {name}.")
    X = X.detach().to(torch.float64, copy=X.is_inference())  # an inference tensor itself cannot take part in backward
    # NaN and Inf always reach the sum, which costs far less than to look at each
    odd = 0 if bool(X.sum().isfinite()) else X.numel() - int(X.isfinite().sum())
    if odd:
        raise ArgumentError(
            f"Expected finite features, got NaN or Inf in {odd:,} of {X.numel():,} entries of {name}. "
            f"Run that model in float32."
        )
    return X
