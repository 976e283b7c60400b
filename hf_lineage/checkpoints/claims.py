"""Which parents a model declares in its own files: CLAIM_SOURCES is the registry of the files that are read."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..answers.lineage import Claim
from ..answers.refs import is_repo_id
from .checkpoint import Checkpoint
from .local import LocalRepo

MAX_CLAIMS = 16  # of one file that are examined

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


def claims_of(checkpoint: Checkpoint) -> list[Claim]:
    """The parents that the child's own files name, by each of CLAIM_SOURCES in turn, without repetition.

    Such files are written by anybody: what is not spelled like a repo id is left out, and so is the child itself.
    """
    claims = [claim for source in CLAIM_SOURCES.values() for claim in source(checkpoint)]
    return [claim for claim in dict.fromkeys(claims) if not _is_self(claim.ref, checkpoint)]


def _by_card(checkpoint: Checkpoint) -> list[Claim]:
    """`base_model` in the card's metadata, one or several, with `base_model_relation`."""
    base, relation = checkpoint.card.get("base_model"), checkpoint.card.get("base_model_relation")
    relation = relation if relation in ("finetune", "adapter", "quantized", "merge") else None
    named = [base] if isinstance(base, str) else base if isinstance(base, list) else []
    return [Claim("card", ref, relation) for ref in named[:MAX_CLAIMS] if isinstance(ref, str) and is_repo_id(ref)]


def _by_config(checkpoint: Checkpoint) -> list[Claim]:
    """What `config.json` was loaded from (`_name_or_path`)."""
    loaded_from = checkpoint.config.get("_name_or_path")
    return [Claim("config", loaded_from)] if isinstance(loaded_from, str) and _is_on_hub(loaded_from) else []


def _by_adapter(checkpoint: Checkpoint) -> list[Claim]:
    """The base that an adapter's config names."""
    base = checkpoint.adapter_base
    return [Claim("adapter", base, "adapter")] if base and is_repo_id(base) else []


def _by_mergekit(checkpoint: Checkpoint) -> list[Claim]:
    """The models of a mergekit recipe."""
    merged = dict.fromkeys(filter(_is_on_hub, map(_merged_model, _ingredients(checkpoint.recipe))))
    return [Claim("mergekit", ref, "merge") for ref in list(merged)[:MAX_CLAIMS]]


# What a child declares, in the order of the answer: `Claim.source` → the claims of one kind of file
CLAIM_SOURCES: dict[str, Callable[[Checkpoint], list[Claim]]] = {
    "card": _by_card, "config": _by_config, "adapter": _by_adapter, "mergekit": _by_mergekit,
}  # fmt: skip


def _is_on_hub(text: str) -> bool:
    """Whether a name that may as well be a folder's on somebody's machine is more likely a repo's.

    >>> [_is_on_hub(text) for text in ("org/name", "gpt2", "model", "output/run", "org/checkpoint-500", "/a/b")]
    [True, True, False, False, False, False]
    """
    if "/" not in text:
        return bool(_OWNERLESS.fullmatch(text))
    return is_repo_id(text) and not _FOLDER.fullmatch(text)


def _ingredients(recipe: dict) -> list[Any]:
    """`base_model`, `models[].model` and `slices[].sources[].model`, whatever stands there."""
    sources = [source for part in _mappings(recipe.get("slices")) for source in _mappings(part.get("sources"))]
    return [recipe.get("base_model"), *(entry.get("model") for entry in [*_mappings(recipe.get("models")), *sources])]


def _mappings(value: Any) -> list[dict]:
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


def _merged_model(value: Any) -> str:
    """The repo id in one of mergekit's spellings, without revision and LoRA; "" where there is none.

    >>> _merged_model("org/name@v2+org/lora"), _merged_model({"model": {"path": "org/name", "revision": "v2"}})
    ('org/name', 'org/name')
    """
    for _ in range(2):
        if isinstance(value, dict):
            value = value.get("model", value.get("path"))
    return re.split("[@+]", value, maxsplit=1)[0] if isinstance(value, str) else ""


def _is_self(ref: str, checkpoint: Checkpoint) -> bool:
    """Whether `ref` is the child: its id, the name it was asked for by, or the folder `org/name` of a mirror."""
    if isinstance(checkpoint.repo, LocalRepo):
        return Path(os.path.abspath(checkpoint.repo.folder)).parts[-2:] == tuple(ref.split("/"))
    return ref.lower() in (checkpoint.ref.name.lower(), checkpoint.requested.partition("@")[0].lower())
