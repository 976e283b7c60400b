"""A `Lineage` for tools of the supply chain: a CycloneDX 1.6 ML-BOM, and an in-toto statement to be signed.

Both are functions of the answer: no time of day, and a serial number made from the content.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any
from uuid import NAMESPACE_URL, uuid5

from ..answers.base import SCHEMA
from ..answers.layers import LayerLineage
from ..answers.lineage import Candidate, Lineage
from ..errors import MissingExtraError
from .section import at_commit, candidate_of, essentials, hub_repo, sources
from .sentences import assumption

if TYPE_CHECKING:
    from cyclonedx.model.component import Component

STATEMENT = "https://in-toto.io/Statement/v1"
PREDICATE = "urn:hf-lineage:predicate:lineage:v1"


def cyclonedx(lineage: Lineage, layers: LayerLineage | None = None, digests: Mapping[str, str] | None = None) -> str:
    """JSON of one component, the child, whose pedigree has the parent or, of a merge, its sources.

    `digests`: SHA-256 of the child's weights, hexadecimal, by file. What was measured are properties `hf_lineage:…`
    (CycloneDX property taxonomy). Raises `MissingExtraError` where cyclonedx-python-lib is missing.
    Source: CycloneDX 1.6 (ECMA-424), `component.pedigree.ancestors`; package URL type `huggingface`.
    """
    try:
        from cyclonedx.model import Property
        from cyclonedx.model.bom import Bom
        from cyclonedx.model.component import Pedigree
        from cyclonedx.output.json import JsonV1Dot6
    except ImportError as error:
        missing = "Expected cyclonedx-python-lib for a bill of materials, found none"
        raise MissingExtraError(missing, "bom") from error
    child = _component(lineage.child.name, lineage.child.revision)
    named = [_component(ref, revision) for ref, revision in ancestors(lineage, layers)]
    if named:
        child.pedigree = Pedigree(ancestors=named)
    child.properties = [Property(name=f"hf_lineage:{name}", value=value) for name, value in _figures(lineage, digests)]
    bom = Bom(components=[child], serial_number=uuid5(NAMESPACE_URL, statement(lineage, layers, digests)))
    data = json.loads(JsonV1Dot6(bom).output_as_string())
    data["metadata"].pop("timestamp")  # the library puts the time of day there
    return json.dumps({name: data[name] for name in data if data[name] != {}}, indent=2, sort_keys=True) + "\n"


def statement(lineage: Lineage, layers: LayerLineage | None = None, digests: Mapping[str, str] | None = None) -> str:
    """An unsigned in-toto Statement v1: its subject are the child's weights, its predicate the answer in a few fields.

    `digests`: SHA-256, hexadecimal, by file. Sign it beside the model: `cosign attest-blob`, or model_signing's keys.
    Source: in-toto attestation framework, Statement v1 (`subject` by digest, `predicateType` a URI).
    """
    predicate = essentials(lineage, layers)
    predicate["ancestors"] = [at_commit(ref, revision) for ref, revision in ancestors(lineage, layers)]
    predicate["schema"] = SCHEMA
    predicate["claims"] = [{"source": c.source, "ref": c.ref, "status": c.status} for c in lineage.claims]
    predicate["none_probability"] = _rounded(lineage.none_probability)
    data = {
        "_type": STATEMENT,
        "subject": [{"name": name, "digest": {"sha256": digest}} for name, digest in sorted((digests or {}).items())],
        "predicateType": PREDICATE,
        "predicate": predicate,
    }
    return json.dumps(data, indent=2, sort_keys=True, allow_nan=False) + "\n"


def ancestors(lineage: Lineage, layers: LayerLineage | None = None) -> list[tuple[str, str | None]]:
    """The parent and its commit; of a merge its sources; nothing where no parent was found."""
    merged = sources(lineage, layers)
    if layers is not None and merged:
        return [(ref, layers.revisions.get(ref)) for ref in merged]
    parent = candidate_of(lineage, lineage.parent)
    return [(parent.ref, parent.revision)] if parent else []


def _component(ref: str, revision: str | None) -> Component:
    from cyclonedx.model.component import Component, ComponentType
    from packageurl import PackageURL

    found = hub_repo(ref)
    group, _, name = (found or ref).rpartition("/")
    folder = ref.removeprefix(f"{found}/") if found not in ("", ref) else None
    return Component(
        type=ComponentType.MACHINE_LEARNING_MODEL,
        name=name,
        group=group if found and group else None,
        version=revision,
        bom_ref=at_commit(ref, revision),
        purl=PackageURL("huggingface", group or None, name, revision, subpath=folder) if found else None,
    )


def _figures(lineage: Lineage, digests: Mapping[str, str] | None) -> Iterator[tuple[str, str]]:
    """What was measured, by name; only what is there."""
    yield "verdict", lineage.verdict
    parent: Candidate | None = candidate_of(lineage, lineage.parent)
    figures: dict[str, Any] = {"alpha": lineage.alpha, "seed": lineage.seed}
    figures["none_probability"] = lineage.none_probability
    figures["candidates"] = sum(c.status == "compared" for c in lineage.candidates)
    if parent:
        figures |= {
            name: getattr(parent, name) for name in ("relation", "probability", "p_value", "log10_p", "distance")
        }
    figures["p_value_assumes"] = assumption(parent) or None
    for name, value in figures.items():
        if value is not None:
            yield name, f"{value:.9g}" if isinstance(value, float) else str(value)
    for file, digest in sorted((digests or {}).items()):
        yield f"sha256:{file}", digest


def _rounded(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.9g}")
