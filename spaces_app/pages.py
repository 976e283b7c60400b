"""The home of jinja2: the templates of this folder, in which every text is escaped and cleaned of control characters.

Names of models, notes and cards are untrusted text. Autoescaping makes text of them, `visible` takes out what a browser
could obey without showing it; the templates mark nothing as safe.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from questions import HUB

from hf_lineage.report.format import bytes_text, p_text

WIDTH = 300  # characters of a text unless the template says otherwise


def page(name: str, **values: Any) -> str:
    """The template `name` with its values."""
    return _ENVIRONMENT.get_template(f"{name}.html").render(values).strip()


def visible(value: Any) -> Any:
    """A text without characters that cannot be seen; anything else, and what is HTML already, as it is."""
    if not isinstance(value, str) or isinstance(value, Markup):
        return value
    return "".join(ch if ch.isprintable() or ch == "\n" else "?" for ch in value)


def cut(value: Any, width: int = WIDTH) -> Any:
    """A text of at most so many characters."""
    if isinstance(value, Markup):
        return value
    text = str(value)
    return text if len(text) <= width else f"{text[: width - 1]}…"


def address_of(ref: str, revision: str | None = None) -> str:
    """The page of a model; "" for the models of the examples, which have none, and for what is no id."""
    if ref.startswith("example/") or not re.fullmatch(r"[\w][\w.-]{0,95}(/[\w][\w.-]{0,95})?", ref):
        return ""
    at = f"/tree/{revision}" if revision and re.fullmatch(r"[0-9a-f]{7,40}", revision) else ""
    return f"{HUB}/{ref}{at}"


_ENVIRONMENT = Environment(
    loader=FileSystemLoader(Path(__file__).parent / "templates"), autoescape=True, finalize=visible,
    undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True,
)  # fmt: skip
_ENVIRONMENT.filters |= {"cut": cut, "bytes": bytes_text, "p_value": lambda log10_p: p_text(log10_p, none="–")}
_ENVIRONMENT.globals["address_of"] = address_of
