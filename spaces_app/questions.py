"""What visitors may ask and how much of it, and what they are told where that goes wrong. No gradio in here."""

from __future__ import annotations

import logging
import os
import re
import secrets
from collections.abc import Iterable
from urllib.parse import urlsplit

from hf_lineage import LineageError, ModelRef, errors

HUB = os.environ.get("HF_ENDPOINT", "").rstrip("/") or "https://huggingface.co"

MOST_CANDIDATES = 16  # parents named by hand
MOST_MODELS = 24  # of a family tree
MOST_BYTES = 1 << 30  # read for one question, over all models together
MOST_SECONDS = float(os.environ.get("HF_LINEAGE_SECONDS", "240"))  # for one question
AT_ONCE, WAITING = 2, int(os.environ.get("HF_LINEAGE_WAITING", "40"))  # questions that are worked on, and that wait

LONGEST = 4000  # characters of a field
_ADDRESS = re.compile(r"https?://[^\s,]+")
_LOG = logging.getLogger("hf_lineage.space")


class RefusedError(ValueError):
    """A question that is not asked: the message says what is expected instead."""


def model_id(text: str | None) -> str:
    """A repo id, with a revision if one was given; the address of a model's page is taken for its id.

    >>> model_id(" org/name@main "), model_id("https://huggingface.co/org/name/tree/v1.0")
    ('org/name@main', 'org/name@v1.0')
    """
    text = (text or "").strip()
    if not text:
        raise RefusedError("Type the id of a model on the Hub, such as org/name.")
    if _ADDRESS.fullmatch(text):
        text = _of_address(text)
    try:
        ref = ModelRef.parse(text)
    except LineageError:
        ref = None
    if ref is None or ref.kind != "hub":
        raise RefusedError(f"Expected the id of a model on the Hub, such as org/name, got {shown(text)}.")
    return str(ref)


def model_ids(text: str | Iterable[str] | None, most: int = MOST_CANDIDATES) -> list[str]:
    """Several ids, by line, space or comma, each once."""
    parts = re.split(r"[\s,;]+", text or "") if isinstance(text, str) or text is None else [str(part) for part in text]
    if sum(map(len, parts)) > LONGEST:
        raise RefusedError(f"Expected at most {LONGEST:,} characters of model ids.")
    ids = list(dict.fromkeys(model_id(part) for part in parts if part.strip()))
    if len(ids) > most:
        raise RefusedError(f"Expected at most {most} models, got {len(ids)}. For more, use the command line.")
    return ids


def collection_slug(text: str | None) -> str | None:
    """The slug of a collection if an address of one was given.

    >>> collection_slug("https://huggingface.co/collections/org/title-0123abcd"), collection_slug("org/name")
    ('org/title-0123abcd', None)
    """
    text = (text or "").strip()
    path = urlsplit(text).path.strip("/") if _ADDRESS.fullmatch(text) and _on_hub(text) else text.strip("/")
    slug = path.removeprefix("collections/")
    return slug if slug != path and re.fullmatch(r"[\w.-]{1,96}/[\w.-]{1,200}", slug) else None


def shown(text: str, width: int = 80) -> str:
    """What somebody typed, in quotes, cut, without control characters."""
    clean = "".join(ch if ch.isprintable() else "?" for ch in text)
    return f"“{clean[:width]}{'…' if len(clean) > width else ''}”"


def explain(error: BaseException, signed_in: bool = False) -> str:
    """A sentence for the page. What was not foreseen is logged under a code, and nothing of it is shown."""
    if isinstance(error, RefusedError):
        return str(error)
    if isinstance(error, errors.AccessDeniedError):
        next_step = (
            "Accept its terms on its page on the Hub, then ask again."
            if signed_in
            else "Accept its terms on its page on the Hub, sign in above, then ask again."
        )
        return f"{_subject(error)} is gated: you may not read it yet. {next_step}"
    if isinstance(error, errors.ModelNotFoundError):
        return (
            f"{_subject(error)} was not found on the Hub. Check the spelling. Private models are not read by this "
            "page: for those, use the command line on your own machine."
        )
    if isinstance(error, errors.HubUnavailableError):
        told = _without_commands(str(error)).rstrip(".")
        return f"The Hub did not answer as expected ({told}). Try again in a minute; the examples work without it."
    if isinstance(error, errors.NoCandidatesError):
        return "No candidate parent was found: the model declares none, and none turned up on the Hub. Name some."
    if isinstance(error, errors.PickleRefusedError | errors.NoWeightsError):
        return f"{_subject(error)} has no safetensors file. This page reads nothing else: other formats can run code."
    if isinstance(error, errors.ArgumentError) and "max_bytes" in str(error):
        return (
            f"That would read more than the {MOST_BYTES >> 20} MB that this page reads for one question. Name fewer "
            "candidates, or use the command line."
        )
    if isinstance(error, LineageError):
        return _without_commands(str(error))
    code = secrets.token_hex(4)
    _LOG.error("unforeseen error %s", code, exc_info=error)
    return f"Something went wrong on this page's side (code {code}). It is not your fault; please try again."


def gated_repo(error: BaseException) -> str:
    """The repo whose terms are to be accepted, if that is what is wrong."""
    return _subject(error) if isinstance(error, errors.AccessDeniedError) and "`" in str(error) else ""


def _of_address(text: str) -> str:
    if not _on_hub(text):
        raise RefusedError(f"Expected an address of {HUB}, got {shown(text)}.")
    parts = urlsplit(text).path.strip("/").removeprefix("models/").split("/")
    name, rest = "/".join(parts[:2]), parts[2:]
    revision = rest[1] if len(rest) > 1 and rest[0] in ("tree", "blob", "resolve", "commit") else ""
    return f"{name}@{revision}" if revision else name


def _on_hub(text: str) -> bool:
    return urlsplit(text).netloc.lower() in {urlsplit(HUB).netloc, "huggingface.co", "www.huggingface.co", "hf.co"}


def _subject(error: BaseException) -> str:
    """The repo that a message is about; of a file in it, the repo."""
    found = re.search(r"`([^`/]{1,100}(?:/[^`/]{1,200})?)[^`]*`", str(error))
    return found[1] if found else "That model"


def _without_commands(text: str) -> str:
    """Our messages end with what to type next: on a page there is no command line."""
    text = re.sub(r"\s*(?:Name some: -c|Is there a network\?|; a local folder starts)[^.]*\.?.*$", "", text)
    return re.sub(r",? log in with `hf auth login`", " sign in", text).replace("`", "")
