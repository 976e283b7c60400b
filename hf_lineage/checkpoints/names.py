"""What people write where the id of a model is expected: understood as the ids they mean, or kept as it was written."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any

from ..answers.refs import ModelRef, is_repo_id
from ..errors import ReferenceSyntaxError

MAX_NAMES = 256  # of one value that are examined; what is left is one more that is not understood
MAX_RAW = 300  # characters of a text that is kept as it was written
MAX_DEPTH = 6  # of lists in lists

# The Hub's repos without an owner; none are added any more. Any other single word is a folder on somebody's machine.
_OWNERLESS = re.compile(
    r"albert-(?:base|large|xlarge|xxlarge)-v[12]"
    r"|bert-base-(?:(?:german-|multilingual-)?cased|(?:multilingual-)?uncased|chinese|german-dbmdz-(?:un)?cased)"
    r"|bert-base-cased-finetuned-mrpc"
    r"|bert-large-(?:un)?cased(?:-whole-word-masking(?:-finetuned-squad)?)?"
    r"|camembert-base|ctrl|openai-gpt|(?:distil)?gpt2|gpt2-(?:medium|large|xl)|transfo-xl-wt103"
    r"|distilbert-base-(?:(?:un)?cased(?:-distilled-squad)?|uncased-finetuned-sst-2-english|(?:german|multilingual)-cased)"
    r"|distilroberta-base|roberta-(?:base|large)(?:-openai-detector)?|roberta-large-mnli"
    r"|t5-(?:small|base|large|3b|11b)|xlnet-(?:base|large)-cased"
    r"|xlm-(?:clm-(?:ende|enfr)-1024|mlm-[a-z0-9-]+)|xlm-roberta-(?:base|large(?:-finetuned-conll0[23]-[a-z]+)?)"
)
# `output/run-3` is spelled like a repo id: the usual names of training folders are not taken for one
_FOLDER = re.compile(
    r"(?:(?:pre)?trained|saved?|ckpts?|checkpoints?|data|exp|experiments?|logs?|lightning_logs|models?|out|outputs?"
    r"|(?:pretrained|saved|trained)_models?|results?|runs?|te?mp|weights|work_dirs|workspace)/.*"
    r"|.*/(?:checkpoint|ckpt|epoch|step)[-_]?\d*",
    re.IGNORECASE,
)
_MARKDOWN_LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
_SCHEMES = ("hf-hub:", "hf_hub:", "hf://", "huggingface://")
_BETWEEN = re.compile(r"\s*[,;|&+]\s*|\s+(?:and|und|et)\s+|\s+", re.IGNORECASE)
_KEYS = ("name", "id", "model", "path", "repo_id", "repo", "model_id", "model_name", "base_model")


@dataclass(frozen=True, slots=True)
class Named:
    """One model that a value names. `ref`: the repo id that is meant, None where it is not understood; `raw`: the text
    as it was written, at most `MAX_RAW` characters of it."""

    ref: str | None
    raw: str


def names_in(value: Any) -> list[Named]:
    """The models that a value of a card or a recipe names, in their order; nothing where nothing is written.

    >>> [named.ref for named in names_in([["org/a"], "https://huggingface.co/org/b/", "org/c@v1, org/d", "my base"])]
    ['org/a', 'org/b', 'org/c', 'org/d', None]
    """
    found = list(islice(_names(value, 0), MAX_NAMES + 1))
    if len(found) > MAX_NAMES:
        found[MAX_NAMES:] = [Named(None, f"more than {MAX_NAMES} models, from {found[MAX_NAMES].raw}"[:MAX_RAW])]
    return list(dict.fromkeys(found))


def repo_id_of(text: str) -> str | None:
    """The repo id that a text means: an id, with or without a revision, or the address of a page; None for another.

    >>> [repo_id_of(text) for text in (" org/name/ ", "org/name@v1", "hf.co/org/name/tree/main", "/models/x", "a/b/c")]
    ['org/name', 'org/name', 'org/name', None, None]
    """
    plain = text.strip().strip("\"'`<>").strip()
    if match := _MARKDOWN_LINK.fullmatch(plain):
        plain = match[1]
    scheme = next((scheme for scheme in _SCHEMES if plain.startswith(scheme)), "")
    plain = plain.removeprefix(scheme).rstrip("/").removesuffix(".git")
    try:
        ref = ModelRef.parse(plain)
    except ReferenceSyntaxError:
        return None
    is_address = "huggingface.co/" in plain or "hf.co/" in plain
    if ref.kind != "hub" or (ref.subfolder and not is_address):
        return None
    return ref.repo_id


def is_on_hub(text: str) -> bool:
    """Whether a name that may as well be a folder's on somebody's machine is more likely a repo's.

    >>> [is_on_hub(text) for text in ("org/name", "gpt2", "model", "output/run", "org/checkpoint-500", "/a/b")]
    [True, True, False, False, False, False]
    """
    if "/" not in text:
        return bool(_OWNERLESS.fullmatch(text))
    return is_repo_id(text) and not _FOLDER.fullmatch(text)


def as_written(value: Any) -> str:
    """A value as text of bounded length, which is Unicode."""
    text = value if isinstance(value, str) else _json(value)
    return text.encode("utf-8", "replace").decode()[:MAX_RAW]


def _names(value: Any, depth: int) -> Iterator[Named]:
    if value is None or value in ("", [], {}):
        return
    if isinstance(value, str):
        yield from _in_text(value)
    elif isinstance(value, (list, tuple, set, frozenset)) and depth < MAX_DEPTH:
        for item in value if isinstance(value, (list, tuple)) else sorted(value, key=str):
            yield from _names(item, depth + 1)
    elif isinstance(value, Mapping) and depth < MAX_DEPTH and (inner := _in_mapping(value)) is not None:
        yield from _names(inner, depth + 1)
    else:
        yield Named(None, as_written(value))


def _in_mapping(value: Mapping[Any, Any]) -> Any:
    """What a mapping names: one of its usual keys, or its keys where a colon was typed behind each id."""
    for key in _KEYS:
        if value.get(key):
            return value[key]
    return [*value] if all(isinstance(key, str) and value[key] is None for key in value) else None


def _in_text(text: str) -> Iterator[Named]:
    if not text.strip():
        return
    if whole := repo_id_of(text):
        yield Named(whole, as_written(text))
        return
    parts = [part for part in _BETWEEN.split(text.strip()) if part]
    refs = [repo_id_of(part) for part in parts]
    if len(parts) > 1 and all(ref and (is_on_hub(ref)) for ref in refs):
        yield from (Named(ref, as_written(part)) for ref, part in zip(refs, parts, strict=True))
    else:
        yield Named(None, as_written(text))


def _json(value: Any) -> str:
    try:
        return json.dumps(value, ensure_ascii=False, default=str)
    except (TypeError, ValueError, RecursionError):
        return str(type(value).__name__)
