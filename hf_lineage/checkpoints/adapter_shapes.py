"""Whether the factors of a LoRA adapter can belong to a model, by names and shapes: ΔW = B·A, of W's shape."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from ..architecture.conventions import VOCABULARY, Shaped

_FACTOR = re.compile(
    r"(?:base_model\.model\.)?(?P<module>.+?)\.lora_(?P<kind>embedding_)?(?P<side>[AB])(?:\.\w+)*?(?:\.weight)?"
)


@dataclass(frozen=True, slots=True)
class AdapterFit:
    """factors: how many pairs of factors there are. fitting: of these, how many have a matrix of their shape in the
    model. misfit: the first that has a matrix of its name, but of another shape; "" where there is none."""

    factors: int
    fitting: int
    misfit: str

    def explain(self) -> str:
        """What the shapes say, as a sentence without its subject."""
        if self.misfit:
            return f"the adapter's factors cannot belong to it: {self.misfit}"
        if not self.factors:
            return "the adapter holds no factors that were looked at"
        if not self.fitting:
            return "the adapter's factors name no matrix of it"
        fit = f"the shapes of {self.fitting} of {self.factors} of the adapter's factors fit"
        return f"{fit}, as they would any model of its shape"


def adapter_fit(adapter: Mapping[str, Shaped], base: Mapping[str, Shaped]) -> AdapterFit:
    """Hold the factors of an adapter (PEFT's names) against the matrices of a model.

    A of shape (r, in) and B of (out, r) belong to a matrix of shape (out, in), or (in, out) as GPT-2 stores it.
    Token tables are not asked: added tokens change them. A convolution's kernel stands in A.
    """
    pairs: dict[str, dict[str, tuple[int, ...]]] = {}
    for name, entry in adapter.items():
        match = _FACTOR.fullmatch(name)
        if match and not match["kind"] and len(entry.shape) >= 2:
            pairs.setdefault(match["module"], {})[match["side"]] = entry.shape
    whole = {module: (sides["A"], sides["B"]) for module, sides in pairs.items() if {*sides} == {"A", "B"}}
    ends = by_ending(base)
    fitting, misfits = 0, []
    for module, (a, b) in sorted(whole.items()):
        matrix = matrix_of(module, ends)
        if matrix is None or VOCABULARY.search(f"{module}.weight") or VOCABULARY.search(matrix):
            continue
        shape = base[matrix].shape
        if a[0] == b[1] and len(shape) >= 2 and sorted((b[0], a[1])) == sorted(shape[:2]):
            fitting += 1
        else:
            misfits.append(f"{module} has factors {list(b)} and {list(a)}, its matrix is {list(shape)}")
    return AdapterFit(len(whole), fitting, misfits[0] if misfits else "")


def by_ending(base: Mapping[str, Shaped]) -> dict[str, str | None]:
    """Every ending of a name that begins at a dot → the name; None where several names end so."""
    ends: dict[str, str | None] = {}
    for name in base:
        module = name.removesuffix(".weight")
        if module == name:
            continue
        parts = module.split(".")
        for i in range(len(parts)):
            ending = ".".join(parts[i:])
            ends[ending] = None if ending in ends else name
    return ends


def matrix_of(module: str, ends: Mapping[str, str | None]) -> str | None:
    """The matrix whose name ends as the module's does, prefixes of wrappers aside."""
    parts = module.split(".")
    for i in range(max(1, len(parts) - 2)):  # `q_proj` alone would be any layer's
        if found := ends.get(".".join(parts[i:])):
            return found
    return None
