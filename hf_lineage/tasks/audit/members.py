"""Which models to audit: those of an author, of a collection or of a list, changed since some time or not."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from ...answers.refs import ModelRef, printable
from ...errors import ArgumentError, LineageError, ModelNotFoundError

if TYPE_CHECKING:
    from ...hub.client import Hub

EVERY = 1_000_000  # models of a listing: all of them
_SPAN = re.compile(r"([0-9]{1,6})([mhdw])")
_UNITS = {"m": "minutes", "h": "hours", "d": "days", "w": "weeks"}
_AUTHOR = re.compile(r"[A-Za-z0-9][\w.-]{0,95}", re.ASCII)


class Member(NamedTuple):
    """A model to audit, and where it was named: the line of a file, counted from 1."""

    ref: str
    file: str | None = None
    line: int | None = None


def members(
    *, author: str | None = None, collection: str | None = None, file: str | Path | None = None,
    since: str | datetime | None = None, limit: int | None = None, token: str | bool | None = None,
) -> list[Member]:  # fmt: skip
    """The models of all sources together, each once, in this order: the file's, the collection's, the author's.

    author: a user or an organisation, latest changed first. collection: `org/title-0123abcd`, or its page's address.
    file: a reference a line, `#` begins a comment; `-` reads the standard input.
    since: only what was changed since: `2026-01-01`, `2026-01-01T10:00`, `36h`, `7d` (m, h, d, w), in UTC. An author's
        models are listed no further than that; of the others each costs a request. Local folders, and what the Hub
        gives no date for, are kept.
    limit: so many at most.

    Raises `ArgumentError` (a bad line is named), `ModelNotFoundError` for an author or collection without models,
    `HubUnavailableError`.
    """
    if author is not None and not _AUTHOR.fullmatch(author):
        raise ArgumentError(f"Expected a user or an organisation, got {author[:120]!r}.")
    if limit is not None and limit < 1:
        raise ArgumentError(f"Expected `limit` above 0, got {limit}.")
    moment = read_moment(since) if isinstance(since, str) else since
    if moment and moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    found: dict[str, Member] = {}
    listed = read_list(file) if file is not None else []  # a bad line is told before anything is asked for
    for member in _sources(listed, author, collection, moment, limit, token):
        found.setdefault(member.ref, member)
        if len(found) == limit:
            break
    return list(found.values())


def read_moment(text: str, now: datetime | None = None) -> datetime:
    """A date, a date with time, or how long ago; UTC where no zone is given.

    >>> str(read_moment("2026-01-01T10:00")), str(read_moment("36h", datetime(2026, 1, 3, tzinfo=UTC)))
    ('2026-01-01 10:00:00+00:00', '2026-01-01 12:00:00+00:00')
    """
    try:
        if span := _SPAN.fullmatch(text.strip()):
            return (now or datetime.now(UTC)) - timedelta(**{_UNITS[span[2]]: int(span[1])})
        moment = datetime.fromisoformat(text.strip())
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).astimezone(UTC)
    except (ValueError, OverflowError) as error:
        raise ArgumentError(f"Expected 2026-01-01, 2026-01-01T10:00, 36h or 7d, got {text[:40]!r}.") from error


def read_list(file: str | Path) -> list[Member]:
    """The references of a list, with their lines. Raises `ArgumentError` naming file and line of a bad one."""
    name = "<stdin>" if str(file) == "-" else str(file)
    try:
        raw = sys.stdin.buffer.read() if str(file) == "-" else Path(file).read_bytes()
        text = raw.decode("utf-8-sig")
    except OSError as error:
        raise ArgumentError(
            f"Expected a file with a repo id a line, got `{name}`: {error.strerror}.",
            "For one model: echo org/name | hf-lineage audit -",
        ) from error
    except UnicodeDecodeError as error:
        raise ArgumentError(f"Expected text in UTF-8, got something else in `{name}`.") from error
    found = []
    for number, line in enumerate(text.split("\n"), start=1):
        ref = re.split(r"(?:^|\s)#", line, maxsplit=1)[0].strip()
        if ref:
            try:
                ModelRef.parse(ref)
            except LineageError as error:
                raise ArgumentError(f"{name}:{number}: {error}") from error
            found.append(Member(ref, None if name == "<stdin>" else name, number))
    if not found:
        raise ArgumentError(f"Expected a repo id a line, got none in `{name}`.")
    return found


def _sources(
    listed: list[Member], author: str | None, collection: str | None, moment: datetime | None, limit: int | None,
    token: str | bool | None,
) -> Iterator[Member]:  # fmt: skip
    if not (moment or author or collection):
        yield from listed
        return
    from ...hub.client import Hub
    from ...hub.listing import collection as of_collection

    hub = Hub(token)
    keep = _changed(hub, moment)
    yield from filter(keep, listed)
    refs: list[str] = []
    if collection is not None:
        refs = of_collection(hub, collection)
        if not refs:
            raise ModelNotFoundError(f"Expected models in the collection `{printable(collection)}`, got none.")
        yield from filter(keep, map(Member, refs))
    if author is not None:
        most = limit + len(listed) + len(refs) if limit else EVERY  # some may be named twice
        yield from _of_author(hub, author, moment, most)


def _of_author(hub: Hub, author: str, moment: datetime | None, most: int) -> Iterator[Member]:
    """Latest changed first; no page is asked for behind the first model that is too old."""
    from ...hub.listing import listing

    empty = True
    for model in listing(hub, author=author, sort="lastModified", limit=most):
        empty = False
        if moment and _is_older(model.modified, moment):
            return
        yield Member(model.id)
    if empty:
        raise ModelNotFoundError(
            f"Expected models of `{author}`, the Hub lists none.", "For private ones log in with `hf auth login`."
        )


def _changed(hub: Hub, moment: datetime | None) -> Callable[[Member], bool]:
    """Whether a model was changed since; what cannot be asked is kept, and the audit says why it cannot be read."""

    def keep(member: Member) -> bool:
        ref = ModelRef.parse(member.ref)
        if moment is None or ref.kind != "hub":
            return True
        try:
            data, _ = hub.get(f"{hub.endpoint}/api/models/{ref.name}", {"expand": ["lastModified"]}, f"`{ref}`")
        except LineageError:
            return True
        return not _is_older(data.get("lastModified") if isinstance(data, dict) else None, moment)

    return keep


def _is_older(text: str | None, moment: datetime) -> bool:
    try:
        return text is not None and datetime.fromisoformat(text) < moment
    except (ValueError, TypeError):  # no date, or one without a zone
        return False
