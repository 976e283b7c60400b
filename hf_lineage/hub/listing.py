"""Models that the Hub lists: by tag, author, text, size or collection. One request a page, counted and bounded."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, urlsplit

from ..answers.refs import is_repo_id
from ..errors import ArgumentError
from .cache import COMMIT
from .client import Hub, date_text, same_origin

PAGE = 100  # models a page; more of them make an answer of megabytes
BASES = 16  # of one card that are looked at
FIELDS = (
    "sha", "tags", "siblings", "safetensors", "config", "cardData", "createdAt", "lastModified", "downloads", "gated",
    "private",
)  # fmt: skip
_BASE = re.compile(r"base_model:(?:[a-z]+:)?(.+)")
_SLUG = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[\w.-]{1,200}")


@dataclass(frozen=True, slots=True)
class Listed:
    """One model of a listing, with the fields that the Hub gives; the card and the config are untrusted text."""

    id: str
    sha: str | None
    bases: tuple[str, ...]  # that its card names
    parameters: int | None
    dtypes: tuple[str, ...]
    model_type: str | None
    created: str | None  # ISO 8601, at the earliest 2022-03-02
    modified: str | None
    downloads: int
    gated: bool
    private: bool


def listing(
    hub: Hub, *, filters: Sequence[str] = (), author: str | None = None, search: str | None = None,
    parameters: tuple[int, int] | None = None, sort: str = "downloads", limit: int = PAGE,
) -> Iterator[Listed]:  # fmt: skip
    """At most `limit` models that have all tags of `filters`, the most of what `sort` says (`"lastModified"`) first.

    `parameters`: least and most, of those the Hub counted in safetensors headers. The client then knows commit and
    files of each, so that opening it costs no request of the API. Raises what `Hub.get` does.
    """
    asked: dict[str, Any] = {"sort": sort, "limit": min(limit, PAGE), "expand": FIELDS}
    asked |= {"filter": list(filters)} if filters else {}
    asked |= {"author": author} if author else {}
    asked |= {"search": search} if search else {}
    asked |= {"num_parameters": _range(*parameters)} if parameters else {}
    url: str | None = f"{hub.endpoint}/api/models"
    left, known = limit, set[str]()
    while url and left > 0:
        answer, url = hub.get(url, asked, "a listing of models")
        page = [item for item in _list(answer)[:left] if isinstance(item, dict)]
        fresh = [item for item in page if isinstance(item.get("id"), str) and is_repo_id(item["id"])]
        fresh = [item for item in fresh if item["id"] not in known]
        if not fresh:  # links to a next page may never end
            return
        known |= {item["id"] for item in fresh}
        for item in fresh:
            hub.know(item)
            yield _listed(item)
        left -= len(page)
        asked = {}  # the next page's url has it


def collection(hub: Hub, slug: str) -> list[str]:
    """The models of a collection: `org/title-0123abcd`, or the address of its page."""
    if slug.startswith(("http://", "https://")):
        if not same_origin(slug, hub.endpoint):
            raise ArgumentError(f"Expected a collection of {hub.endpoint}, got {slug[:120]!r}.")
        slug = urlsplit(slug).path.removeprefix("/collections/").strip("/")
    if not _SLUG.fullmatch(slug):
        raise ArgumentError(f"Expected a collection such as `org/title-0123abcd`, got {slug[:120]!r}.")
    answer, _ = hub.get(f"{hub.endpoint}/api/collections/{quote(slug)}", {}, f"the collection `{slug}`")
    items = [_dict(item) for item in _list(_dict(answer).get("items"))]
    names = [item.get("id") for item in items if item.get("type") == "model"]
    return [name for name in dict.fromkeys(names) if isinstance(name, str) and is_repo_id(name)]


def _listed(item: dict[str, Any]) -> Listed:
    tags = [tag for tag in _list(item.get("tags")) if isinstance(tag, str)]
    card, config = _dict(item.get("cardData")), _dict(item.get("config"))
    declared = card.get("base_model")
    named = [declared] if isinstance(declared, str) else _list(declared)
    named += [match[1] for match in map(_BASE.fullmatch, tags) if match]
    counts = _dict(item.get("safetensors"))
    total, model_type, sha = counts.get("total"), config.get("model_type"), item.get("sha")
    return Listed(
        item["id"],
        sha if isinstance(sha, str) and COMMIT.fullmatch(sha) else None,
        tuple(dict.fromkeys(base for base in named if isinstance(base, str) and is_repo_id(base)))[:BASES],
        _number(total),
        tuple(str(name) for name in _dict(counts.get("parameters"))),
        model_type if isinstance(model_type, str) else None,
        date_text(item.get("createdAt")),
        date_text(item.get("lastModified")),
        _number(item.get("downloads")) or 0,
        bool(item.get("gated")),
        item.get("private") is True,
    )


def _range(least: int, most: int) -> str:
    """The Hub's own spelling, in thousands or millions: what lies beyond is left to the caller.

    >>> _range(79_600, 80_400), _range(12_345_678, 2_000_000_001)
    ('min:79K,max:81K', 'min:12M,max:2001M')
    """
    unit, letter = (1000, "K") if most < 10_000_000 else (1_000_000, "M")
    return f"min:{least // unit}{letter},max:{-(-most // unit)}{letter}"


def _number(value: Any) -> int | None:
    return value if type(value) is int and 0 <= value < 2**63 else None


def _dict(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []
