"""What visitors may ask and how much of it, and the sentence for what goes wrong. No gradio in here."""

from __future__ import annotations

import logging
import os
import re
import secrets
from typing import Any
from urllib.parse import urlsplit

from hf_lineage import LineageError, ModelRef, errors

HUB = os.environ.get("HF_ENDPOINT", "").rstrip("/") or "https://huggingface.co"

MAX_CANDIDATES = 16  # parents named by hand
MAX_MODELS = 24  # of a family tree
MAX_BYTES = 1 << 30  # read for one question, over all models together
MAX_SECONDS = float(os.environ.get("HF_LINEAGE_SECONDS", "240"))  # for one question
MAX_OF_ONE = 4  # questions of one visitor that wait or are worked on
MAX_MEMORY = 6 << 30  # bytes that the process of one question may take
AT_ONCE, WAITING = 2, int(os.environ.get("HF_LINEAGE_WAITING", "40"))  # questions that are worked on, and that wait

MAX_FIELD_CHARACTERS = 4000  # characters of a field
_NAMED = re.compile(r"[\w.-]{1,96}/[\w.-]{1,200}")
_BLANK = "\u200b\u200c\u200d\u200e\u200f\u2060\ufeff\u00ad"  # what is copied along with a name, and is not seen
_PARTS = re.compile(r"[\s,;]+")
_NO_MODEL = {
    "datasets": "That is a data set, not a model. Expected the id of a model on the Hub, such as org/name",
    "spaces": "That is a Space, not a model. Expected the id of a model on the Hub, such as org/name",
    "collections": "That is a collection, which the family tree takes. Expected the id of one model, such as org/name",
}
_LOG = logging.getLogger("hf_lineage.space")


EVIDENCE = {"weights": "Weights", "features": "Weights and features", "detector": "Weights and detector"}
MAX_RUN = 4  # candidates whose networks are run for one question
METRICS = ("l1", "l2", "lp", "lse", "cka", "dc")
STEPS = ("auto", "0.001", "0.01", "0.1")  # the paper's, and what the library chooses


class RefusedError(ValueError):
    """A question that is not asked: the message says what is expected instead."""


def model_id(text: Any) -> str:
    """A repo id, with a revision if one was given; the address of a model's page is taken for its id.

    >>> model_id(" org/name@main "), model_id("https://huggingface.co/org/name/tree/v1.0"), model_id("hf.co/org/name")
    ('org/name@main', 'org/name@v1.0', 'org/name')
    """
    if not isinstance(text, str | None):
        raise RefusedError(f"Expected the id of a model as text, such as org/name, got {_given(text)}.")
    text = _clean(text or "")
    if not text:
        raise RefusedError("Type the id of a model on the Hub, such as org/name.")
    path = _path(text)
    kind = (text if path is None else path).split("/")[0]
    if kind in _NO_MODEL and (path is not None or text.count("/") > 1):
        raise RefusedError(f"{_NO_MODEL[kind]}, got {shown(text)}.")
    try:
        ref = ModelRef.parse(text if path is None else _of_path(path, text))
    except LineageError:
        ref = None
    if ref is None or ref.kind != "hub":
        raise RefusedError(f"Expected the id of a model on the Hub, such as org/name, got {shown(text)}.")
    return str(ref)


def model_ids(given: Any, most: int = MAX_CANDIDATES) -> list[str]:
    """Several ids, each once: a list of them, or a text with one a line or with spaces or commas between them."""
    ids = list(dict.fromkeys(model_id(part) for part in parts_of(given)))
    if len(ids) > most:
        raise RefusedError(f"Expected at most {most} models, got {len(ids)}. For more, use the command line.")
    return ids


def evidence(name: Any, metric: Any = "l2", step: Any = "auto", candidates: int = 1) -> dict[str, Any]:
    """What was chosen as arguments of `hl.trace`; nothing for weights alone.

    >>> evidence("features", "cka", "0.1"), evidence("weights")
    ({'evidence': ['weights', 'features'], 'metric': 'cka', 'step': 0.1}, {})
    """
    for value, known in ((name, EVIDENCE), (metric, METRICS), (step, STEPS)):
        if value not in known:
            raise RefusedError(f"Expected one of {', '.join(known)}, got {_given(value)}.")
    if name == "weights":
        return {}
    if not 0 < candidates <= MAX_RUN:
        raise RefusedError(
            f"For {EVIDENCE[name].lower()} every candidate is run: name 1 to {MAX_RUN} candidates, got {candidates}."
        )
    of_features = {"metric": metric, "step": step if step == "auto" else float(step)} if name == "features" else {}
    return {"evidence": ["weights", name], **of_features}


def parts_of(given: Any) -> list[str]:
    """The words of a text or of a list of texts."""
    texts = [] if given is None else [given] if isinstance(given, str) else given
    if not isinstance(texts, list | tuple) or not all(isinstance(text, str) for text in texts):
        raise RefusedError(
            f'Expected ids of models as a list of texts, such as ["org/a", "org/b"], got {_given(given)}.'
        )
    if sum(map(len, texts)) > MAX_FIELD_CHARACTERS:
        raise RefusedError(f"Expected at most {MAX_FIELD_CHARACTERS:,} characters of model ids.")
    return [part for text in texts for word in _PARTS.split(text) if (part := _clean(word))]


def collection_slug(text: str | None) -> str | None:
    """The slug of a collection if an address of one was given.

    >>> collection_slug("https://huggingface.co/collections/org/title-0123abcd"), collection_slug("org/name")
    ('org/title-0123abcd', None)
    """
    text = _clean(text or "")
    if _is_address(text) and not _on_hub(text):
        return None
    path = text.strip("/") if (found := _path(text)) is None else found
    slug = path.removeprefix("collections/").strip("/")
    return slug if path.startswith("collections/") and _NAMED.fullmatch(slug) else None


def shown(text: str, width: int = 80) -> str:
    """What somebody typed, in quotes, cut, without control characters."""
    clean = "".join(ch if ch.isprintable() else "?" for ch in text)
    return f"“{clean[:width]}{'…' if len(clean) > width else ''}”"


def explain(error: BaseException, signed_in: bool = False, program: bool = False) -> str:
    """A sentence for who asked: a visitor, signed in or not, or a program, which nobody can sign in.

    What was not foreseen is logged under a code, and nothing of it is shown.
    """
    if isinstance(error, RefusedError):
        return str(error)
    if isinstance(error, LineageError):
        sentence = _of_library(error, signed_in, program)
        return sentence if sentence.endswith((".", "?", "!")) else f"{sentence}."
    code = secrets.token_hex(4)
    _LOG.error("unforeseen error %s", code, exc_info=error)
    return f"Something went wrong on this page's side (code {code}). It is not your fault; please try again."


def on_page(text: str) -> str:
    """A message or a note of hf_lineage without its hints, and without code marks: a page has no command line.

    >>> on_page(errors.Note("gated", "`lab/x` is gated.", "Log in with `hf auth login`."))
    'lab/x is gated.'
    """
    return errors.sentence_of(text).replace("`", "")


def tool(endpoint: str) -> str:
    """What an MCP client calls an endpoint: on the Hub gradio puts the name of the Space in front of it."""
    space = os.environ.get("SPACE_ID", "").rpartition("/")[2] if os.environ.get("SYSTEM") == "spaces" else ""
    return re.sub(r"[^a-zA-Z0-9]", "_", f"{space}_{endpoint}" if space else endpoint)


def gated_repo(error: BaseException) -> str:
    """The repo whose terms are to be accepted, if that is what is wrong."""
    return (error.repo or "") if isinstance(error, errors.GatedError) else ""


def _of_library(error: LineageError, signed_in: bool, program: bool) -> str:
    """A sentence for an error of hf_lineage, by its class."""
    sentence = on_page(error.note)
    match error:
        case errors.GatedError():
            return f"{error.repo or 'That model'} is gated: {_how_to_pass(signed_in, program)}"
        case errors.TokenRefusedError() if signed_in:
            return "Your sign-in is no longer valid: sign out and in again."
        case errors.NoCandidatesError() if error.note.hint:
            return f"{sentence} Name some."
        case errors.ModelNotFoundError() if error.code == "model_not_found":
            return _of_missing(sentence, error.repo)
        case errors.HubUnavailableError():
            again = "Try again in a minute." if program else "Try again in a minute; the examples work without it."
            return f"The Hub did not answer as expected ({sentence.rstrip('.')}). {again}"
        case errors.PickleRefusedError() | errors.NoWeightsError():
            return f"{sentence} This page reads safetensors only."
        case errors.LimitError():
            return (
                f"That would read more than the {MAX_BYTES >> 20} MB that this page reads for one question. Name fewer "
                "models, or use the command line."
            )
    return sentence


def _of_missing(sentence: str, repo: str | None) -> str:
    if repo is None:  # of a collection, for instance
        return sentence[:1].upper() + sentence[1:]
    return (
        f"{sentence} Check the spelling. Private models are not read by this page: for those, use the command line on "
        "your own machine."
    )


def _how_to_pass(signed_in: bool, program: bool) -> str:
    """What to do about a gated model."""
    if program:
        return (
            "programs read public models here. Ask on the page, signed in as somebody who accepted its terms, or use "
            "hf_lineage on your own machine."
        )
    sign_in = "" if signed_in else "sign in above, "
    return f"you may not read it yet. Accept its terms on its page on the Hub, {sign_in}then ask again."


def _clean(text: str) -> str:
    """Without blanks around it, those that cannot be seen among them."""
    return text.strip().strip(_BLANK).strip()


def _path(text: str) -> str | None:
    """The path of an address, with or without https:// in front of a name of the Hub; None for what is none."""
    if _is_address(text):
        if not _on_hub(text):
            raise RefusedError(f"Expected an address of {HUB}, got {shown(text)}.")
        return urlsplit(text).path.strip("/")
    return urlsplit(f"https://{text}").path.strip("/") if "/" in text and _on_hub(f"https://{text}") else None


def _of_path(path: str, text: str) -> str:
    """The id in the path of a model's page."""
    if not path:
        raise RefusedError(f"Expected the address of a model's page, such as {HUB}/org/name, got {shown(text)}.")
    parts = path.removeprefix("models/").split("/")
    name, rest = "/".join(parts[:2]), parts[2:]
    revision = rest[1] if len(rest) > 1 and rest[0] in ("tree", "blob", "resolve", "commit") else ""
    return f"{name}@{revision}" if revision else name


def _is_address(text: str) -> bool:
    return text.lower().startswith(("http://", "https://"))


def _on_hub(text: str) -> bool:
    try:
        host = urlsplit(text).netloc.lower()
    except ValueError:
        return False
    return host in {urlsplit(HUB).netloc, "huggingface.co", "www.huggingface.co", "hf.co"}


def _given(value: Any) -> str:
    """A value of a wrong type, for a message."""
    return f"{shown(str(value))} of type {type(value).__name__}"
