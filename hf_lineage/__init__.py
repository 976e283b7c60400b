"""hf_lineage: which model on the Hugging Face Hub was this one fine-tuned from, and how sure is that?

import hf_lineage as hl
lineage = hl.trace("user/child", candidates=["org/a", "org/b"])
lineage.verdict, lineage.parent, lineage.candidates[0].p_value
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .answers.layers import LayerLineage as LayerLineage
    from .answers.lineage import Lineage as Lineage
    from .answers.phylogeny import Phylogeny as Phylogeny
    from .answers.refs import ModelRef as ModelRef
    from .errors import LineageError as LineageError
    from .experiments.reproduce import reproduce as reproduce
    from .tasks.annotate import annotate as annotate
    from .tasks.audit import audit as audit
    from .tasks.compare_pair import compare as compare
    from .tasks.coverage import coverage as coverage
    from .tasks.index import Index as Index
    from .tasks.inheritance import inheritance as inheritance
    from .tasks.inspect import inspect as inspect
    from .tasks.phylogeny import phylogeny as phylogeny
    from .tasks.search import find_candidates as find_candidates
    from .tasks.session import Session as Session
    from .tasks.trace import trace as trace
    from .tasks.trace_layers import trace_layers as trace_layers

# imported when first used: `import hf_lineage` costs nothing
_HOMES = {
    "Index": "tasks.index", "LayerLineage": "answers.layers", "Lineage": "answers.lineage", "LineageError": "errors",
    "ModelRef": "answers.refs", "Phylogeny": "answers.phylogeny", "Session": "tasks.session",
    "annotate": "tasks.annotate", "audit": "tasks.audit", "compare": "tasks.compare_pair", "coverage": "tasks.coverage",
    "find_candidates": "tasks.search", "inheritance": "tasks.inheritance", "inspect": "tasks.inspect",
    "phylogeny": "tasks.phylogeny", "reproduce": "experiments.reproduce", "trace": "tasks.trace",
    "trace_layers": "tasks.trace_layers",
}  # fmt: skip
__all__ = [
    "Index", "LayerLineage", "Lineage", "LineageError", "ModelRef", "Phylogeny", "Session", "annotate", "audit",
    "compare", "coverage", "find_candidates", "inheritance", "inspect", "phylogeny", "reproduce", "trace",
    "trace_layers",
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
