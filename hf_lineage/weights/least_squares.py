"""Non-negative least squares from Gram matrices alone, the one place in the package (Lawson & Hanson 1974, by scipy).

With sources as the rows of X, X Xᵀ and X c are all that a fit of c needs: the length of a model plays no part.
"""

from __future__ import annotations

import numpy as np


def nonnegative_weights(gram: np.ndarray, products: np.ndarray) -> np.ndarray:
    """w ≥ 0 that minimises ‖c − Σ wₖ xₖ‖² = ‖c‖² − 2 w·products + wᵀ·gram·w; (M,).

    gram: (M, M), ⟨xₖ, xₗ⟩, no row of zeros. products: (M,), ⟨xₖ, c⟩.
    """
    from scipy.optimize import nnls  # most answers need no SciPy, whose import takes longer than they do

    length = np.sqrt(np.diag(gram))
    values, vectors = np.linalg.eigh(gram / np.outer(length, length))
    root = np.sqrt(np.maximum(values, 1e-15 * values.max()))
    weights, _ = nnls(root[:, None] * vectors.T, (vectors.T @ (products / length)) / root)
    return weights / length


def simplex_minimum(gram: np.ndarray) -> np.ndarray:
    """v ≥ 0 with Σv = 1 that minimises vᵀ·gram·v, the point nearest to zero of the rows' convex hull; (M,).

    gram: (M, M), positive semi-definite. min ‖Lv‖² + μ²(1 − Σv)² over v ≥ 0 has the same solution up to scale for
    every μ > 0. A row of zeros takes all.
    """
    from scipy.optimize import nnls

    length = np.sqrt(np.maximum(np.diag(gram), 0.0))
    if not length.all():
        return np.eye(len(gram))[int(np.argmin(length))]
    # variables scaled to unit length: a difference of 1e-6 keeps its digits beside one of 1
    scaled = gram / np.outer(length, length)
    values, vectors = np.linalg.eigh((scaled + scaled.T) / 2)
    root = np.sqrt(np.maximum(values, 0.0))[:, None] * vectors.T
    push = 1.0 / length
    v, _ = nnls(np.vstack([root, push / np.linalg.norm(push)]), np.append(np.zeros(len(root)), 1.0))
    v = v / length
    return v / v.sum()
