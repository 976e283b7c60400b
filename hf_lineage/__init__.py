"""hf_lineage: which model on the Hugging Face Hub was this one fine-tuned from, and how sure is that?

import hf_lineage as hl
lineage = hl.trace("user/child", candidates=["org/a", "org/b"])
lineage.verdict, lineage.parent, lineage.candidates[0].p_value
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .annotation import annotate as annotate
    from .auditing import audit as audit
    from .discovery import find_candidates as find_candidates
    from .errors import LineageError as LineageError
    from .family import phylogeny as phylogeny
    from .pipeline import trace as trace
    from .pipeline import trace_layers as trace_layers
    from .records import LayerLineage as LayerLineage
    from .records import Lineage as Lineage
    from .records import ModelRef as ModelRef
    from .trees import Phylogeny as Phylogeny

# imported when first used: `import hf_lineage` costs nothing
_HOMES = {
    "LayerLineage": "records", "Lineage": "records", "LineageError": "errors", "ModelRef": "records",
    "Phylogeny": "trees", "annotate": "annotation", "audit": "auditing", "find_candidates": "discovery",
    "phylogeny": "family", "trace": "pipeline", "trace_layers": "pipeline",
}  # fmt: skip
__all__ = [
    "LayerLineage", "Lineage", "LineageError", "ModelRef", "Phylogeny", "annotate", "audit", "find_candidates",
    "phylogeny", "trace", "trace_layers",
]  # fmt: skip


def __getattr__(name: str) -> object:
    if name in _HOMES:
        return getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)
    if name == "__version__":
        from importlib.metadata import version

        return version(__name__)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
