"""What the Hub lists, for surfaces that ask while somebody types: ids that begin alike, the models of a collection."""

from __future__ import annotations

from ..errors import ArgumentError
from .client import Hub
from .listing import collection as _collection
from .listing import listing

SHORTEST, LONGEST = 2, 96  # characters that are worth a request
SUGGESTED = 8


def suggestions(text: str, *, most: int = SUGGESTED, token: str | bool | None = None) -> list[str]:
    """Ids of models that match what was typed so far, the most downloaded first; none for less than two characters.

    One request. Raises `HubUnavailableError`.
    """
    if most < 1:
        raise ArgumentError(f"Expected `most` to be above 0, got {most}.")
    text = text.strip()
    if not SHORTEST <= len(text) <= LONGEST or not text.isprintable():
        return []
    owner, slash, name = text.partition("/")
    author, search = (owner or None, name or None) if slash else (None, text)
    return [model.id for model in listing(Hub(token), author=author, search=search, limit=most)]


def models_of(slug: str, *, token: str | bool | None = None) -> list[str]:
    """The models of a collection: `org/title-0123abcd`, or the address of its page.

    One request. Raises `ArgumentError`, `ModelNotFoundError`, `HubUnavailableError`.
    """
    return _collection(Hub(token), slug)
