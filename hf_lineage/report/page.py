"""An answer as one HTML file to hand to somebody: the home of jinja2 in the package.

Everything is in the file: no script, no font, no picture from elsewhere. Names of models are untrusted text; the
template escapes all but our own drawings and our own Markdown, which are escaped where they are made.
"""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template
from markupsafe import Markup

from ..answers.audit import AuditRecord
from ..answers.base import MeasuredAnswer
from ..answers.comparison import Comparison
from ..answers.inheritance import Inheritance
from ..answers.layers import LayerLineage
from ..answers.lineage import Lineage
from ..answers.phylogeny import Phylogeny
from ..answers.refs import is_repo_id
from ..errors import ArgumentError
from . import audit as audit_report
from .console import page_of
from .figures import SOURCES, Figure, figures
from .format import bytes_text
from .html import fragment
from .sentences import candidate_name, explanation
from .set_figures import of_audit, of_layers, of_tree

EVERYWHERE = (
    "A common origin is not descent. Two models that were trained separately from one random start share it, too.",
    "Weights do not tell who trained a model, on which data, or whether a licence allowed it.",
    "The figures beside the evidence were measured on networks of other sizes and kinds than yours.",
)
OF_PARENTS = (
    "A model that was not offered may be nearer: the true parent, or a sibling of it. Offer every candidate you know.",
    "Of two models alone, a sibling that moved little looks like a parent.",
)
LIMITS: dict[type, tuple[str, ...]] = {
    Lineage: (*OF_PARENTS, *EVERYWHERE), Comparison: (*OF_PARENTS[1:], *EVERYWHERE),
    LayerLineage: ("A block of a model that was not offered is shared out among the others, or unknown.", *EVERYWHERE),
    Phylogeny: ("An edge without direction is a relation, not descent.", *EVERYWHERE),
}  # fmt: skip
OF_AUDIT = ("A claim that could not be tested is neither confirmed nor contradicted.", *EVERYWHERE)
Model = tuple[str, str, str | None]  # ref, role, commit


def page(answer: MeasuredAnswer, command: str = "") -> str:
    """The file for one answer. command: what was typed. Raises `ArgumentError` for an answer that has no report."""
    if type(answer) not in LIMITS:
        raise ArgumentError(f"Expected an answer with a report, got a {type(answer).__name__}.")
    title, models = _about(answer)
    found, about = evidence(answer)
    told = explanation(answer).splitlines()[1:] if isinstance(answer, Lineage) else []
    seed = f", seed {answer.seed}" if hasattr(answer, "seed") else ""
    level = f", level {answer.alpha:g}" if hasattr(answer, "alpha") else ""
    picture, says = _picture(answer)
    return _template().render(
        title=title, verdict=_sentence(answer), explained=told, models=[_model(*model) for model in models],
        cost=f"{bytes_text(answer.bytes_read)} were read{seed}{level}.", figures=found, about=about,
        table=Markup(_lower(fragment(answer.to_markdown()))), picture=picture, picture_says=says,
        sources=SOURCES, limits=LIMITS[type(answer)], command=command, version=answer.versions.get("hf_lineage", ""),
        versions=", ".join(f"{name} {version}" for name, version in answer.versions.items()) or "not recorded",
    )  # fmt: skip


def audit_page(
    records: Sequence[AuditRecord], command: str = "", complete: bool = True, carriers: Inheritance | None = None
) -> str:
    """The file for the records of an audit."""
    return _template().render(
        title="Audit of declared base models", verdict=f"{audit_report.summary(records)}.", explained=[],
        models=[_model(record.ref, record.status.replace("_", " "), record.revision) for record in records],
        cost=f"{bytes_text(sum(record.bytes_read for record in records))} were read.", figures=[*of_audit(records)],
        about="", table=Markup(_lower(fragment(audit_report.markdown(records, complete, carriers)))),
        picture="", picture_says="",
        sources=SOURCES, limits=OF_AUDIT, command=command, version="", versions="see the journal",
    )  # fmt: skip


def _about(answer: MeasuredAnswer) -> tuple[str, list[Model]]:
    """The title, and every model with its role and commit."""
    match answer:
        case Lineage():
            found = [(candidate_name(c), c.status.replace("_", " "), c.revision) for c in answer.candidates]
            roles = [(name, "candidate" if how == "compared" else f"candidate, {how}", at) for name, how, at in found]
            return f"Where does {answer.child.name} come from?", [_child(answer), *roles]
        case LayerLineage():
            found = [(ref, "candidate", answer.revisions.get(ref)) for ref in answer.candidates]
            return f"What is {answer.child.name} made of?", [_child(answer), *found]
        case Comparison():
            one, other = answer.models
            return f"{one.name} and {other.name}", [(ref.name, "compared", ref.revision) for ref in answer.models]
        case Phylogeny():
            named = [(node.ref, "model", node.revision) for node in answer.nodes if node.ref]
            return "A family tree of models", [*named, *((ref, "left out", None) for ref in answer.left_out)]
    raise ArgumentError(f"Expected an answer with a report, got a {type(answer).__name__}.")


def _child(answer: Lineage | LayerLineage) -> Model:
    return answer.child.name, "the model in question", answer.child.revision


def evidence(answer: MeasuredAnswer) -> tuple[list[Figure], str]:
    """Every piece of evidence for an answer, and about which model it is."""
    if isinstance(answer, Comparison) and answer.pair.status == "compared":
        return [*figures(answer.pair, [], answer.alpha)], f"{answer.later} and {answer.pair.ref}"
    if isinstance(answer, LayerLineage) and answer.blocks:
        return [*of_layers(answer)], answer.child.name
    if isinstance(answer, Phylogeny):
        return [*of_tree(answer)], ""
    compared = [c for c in answer.candidates if c.status == "compared"] if isinstance(answer, Lineage) else []
    if not compared or not isinstance(answer, Lineage):
        return [], ""
    best, *others = compared
    return [*figures(best, others, answer.alpha, answer.none_probability)], candidate_name(best)


def _sentence(answer: Any) -> str:
    return answer.sentence()


def _picture(answer: Any) -> tuple[str, str]:
    """What `plot` draws as the address of a PNG that holds it, and what it shows; "" where it draws nothing."""
    if isinstance(answer, LayerLineage) and not answer.scores:  # read back from JSON: nothing to draw
        return "", ""
    if not isinstance(answer, LayerLineage | Phylogeny):
        return "", ""
    says = (
        "The tree"
        if isinstance(answer, Phylogeny)
        else "Which model each block comes from, and which block it was there"
    )
    drawn = io.BytesIO()
    answer.plot().savefig(drawn, dpi=150, format="png")
    return "data:image/png;base64," + base64.b64encode(drawn.getvalue()).decode(), says


def _model(ref: str, role: str, revision: str | None) -> dict[str, str | None]:
    repo = "/".join(ref.partition("@")[0].split("/")[:2])
    linked = revision is not None and is_repo_id(repo)
    return {"ref": ref, "role": role, "revision": revision, "page": page_of(ref.partition("@")[0]) if linked else ""}


def _lower(html: str) -> str:
    """The headings of an answer's own Markdown below those of the page."""
    return re.sub(r"<(/?)h([123])>", lambda tag: f"<{tag[1]}h{4 if tag[2] == '3' else 3}>", html)


def _visible(value: Any) -> Any:
    """A text without characters that cannot be seen; HTML of ours as it is."""
    if not isinstance(value, str) or isinstance(value, Markup):
        return value
    return "".join(ch if ch.isprintable() or ch == "\n" else "?" for ch in value)


@cache
def _template() -> Template:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"), autoescape=True, finalize=_visible,
        undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    return environment.get_template("report.html")
