"""Which parents a model declares in its own files: CLAIM_SOURCES is the registry of the files that are read."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from ..answers.lineage import Claim
from .checkpoint import Checkpoint
from .local import LocalRepo, stands_for
from .names import MAX_NAMES, Named, as_written, is_on_hub, names_in, repo_id_of

_RELATIONS = ("finetune", "adapter", "quantized", "merge")


def claims_of(checkpoint: Checkpoint) -> list[Claim]:
    """The parents that the child's own files name, by each of CLAIM_SOURCES in turn, without repetition.

    Such files are written by anybody: what is no repo id, in whatever spelling, is a claim of status `not_understood`
    with the text in `raw`. The child itself is left out.
    """
    claims = [claim for source in CLAIM_SOURCES.values() for claim in source(checkpoint)]
    return [claim for claim in dict.fromkeys(claims) if not _is_self(claim.ref, checkpoint)]


def beside(ref: str, checkpoint: Checkpoint) -> str:
    """The declared base of a model that is a folder in a repo: the folder of that name in the base's repo."""
    folder = checkpoint.ref.subfolder
    folder = folder.rpartition("/")[0] if checkpoint.repo and checkpoint.repo.only else folder
    return f"{ref}/{folder}" if folder else ref


def adapter_base(checkpoint_config: Mapping[str, Any], card: Mapping[str, Any]) -> str:
    """The base of an adapter: what its config names, or its card where that is a path or nothing; "" for neither.

    >>> adapter_base({"base_model_name_or_path": "/models/x"}, {"base_model": "org/name"})
    'org/name'
    """
    for value, strict in ((checkpoint_config.get("base_model_name_or_path"), True), (_declared_in(card), False)):
        for named in names_in(value):
            if named.ref and (not strict or is_on_hub(named.ref)):
                return named.ref
    return ""


def _by_card(checkpoint: Checkpoint) -> list[Claim]:
    """`base_model` in the card's metadata, one or several, with `base_model_relation`."""
    relation = checkpoint.card.get("base_model_relation")
    relation = relation[0] if isinstance(relation, list) and relation else relation
    relation = relation.strip().lower() if isinstance(relation, str) else None
    return _claims("card", names_in(_declared_in(checkpoint.card)), relation if relation in _RELATIONS else None)


def _by_config(checkpoint: Checkpoint) -> list[Claim]:
    """What `config.json` was loaded from (`_name_or_path`), where that is a repo: a library writes a path, too, which
    declares nothing."""
    loaded_from = checkpoint.config.get("_name_or_path")
    ref = repo_id_of(loaded_from) if isinstance(loaded_from, str) else None
    return _claims("config", [Named(ref, as_written(loaded_from))]) if ref and is_on_hub(ref) else []


def _by_adapter(checkpoint: Checkpoint) -> list[Claim]:
    """The base that an adapter's config names."""
    base = checkpoint.adapter_config.get("base_model_name_or_path")
    return _claims("adapter", [_on_hub(named) for named in names_in(base)], "adapter")


def _by_mergekit(checkpoint: Checkpoint) -> list[Claim]:
    """The models of a mergekit recipe."""
    own = {as_written(document.get("name")) for document in checkpoint.recipes}  # what one document calls its result
    texts = [text for document in checkpoint.recipes for value in _ingredients(document) if (text := _merged(value))]
    named = [
        _on_hub(Named(repo_id_of(re.split("[@+]", t, maxsplit=1)[0]), as_written(t))) for t in texts if t not in own
    ]
    claims = list(dict.fromkeys(_claims("mergekit", named, "merge")))
    if len(claims) > MAX_NAMES:
        rest = f"{len(claims) - MAX_NAMES} more models"
        claims[MAX_NAMES:] = [Claim("mergekit", rest, "merge", "not_understood", rest)]
    return claims


# What a child declares, in the order of the answer: `Claim.source` → the claims of one kind of file
CLAIM_SOURCES: dict[str, Callable[[Checkpoint], list[Claim]]] = {
    "card": _by_card, "config": _by_config, "adapter": _by_adapter, "mergekit": _by_mergekit,
}  # fmt: skip


def _claims(source: Any, names: Iterable[Named], relation: str | None = None) -> list[Claim]:
    return [
        Claim(source, named.ref, relation, raw=None if named.ref == named.raw else named.raw)
        if named.ref
        else Claim(source, named.raw, relation, "not_understood", named.raw)
        for named in names
    ]


def _on_hub(named: Named) -> Named:
    """A name that is rather a folder's is not understood."""
    return named if named.ref and is_on_hub(named.ref) else Named(None, named.raw)


def _declared_in(card: Mapping[str, Any]) -> Any:
    """The value of `base_model`, in whatever case the key is written."""
    keys = [key for key in card if isinstance(key, str) and key.lower().replace("-", "_") == "base_model"]
    return card[min(keys, key=lambda key: key != "base_model")] if keys else None


def _ingredients(recipe: Mapping[str, Any]) -> Iterator[Any]:
    """All that a recipe is made of: `base_model`, `models`, the sources of `slices` and their own `base_model`, the
    experts of a mixture, and the same of each of its `modules`; whatever stands there."""
    yield recipe.get("base_model")
    for entry in _mappings(recipe.get("models")):
        yield entry.get("model")
    for part in _mappings(recipe.get("slices")):
        yield part.get("base_model")
        for source in _mappings(part.get("sources")):
            yield source.get("model")
    for kind in ("experts", "shared_experts"):
        for expert in _mappings(recipe.get(kind)):
            yield expert.get("source_model")
    modules = recipe.get("modules")
    for module in _mappings([*modules.values()] if isinstance(modules, dict) else modules):
        yield from _ingredients({name: value for name, value in module.items() if name != "modules"})


def _mappings(value: Any) -> list[dict]:
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


def _merged(value: Any) -> str:
    """The model in one of mergekit's spellings; "" where there is none.

    >>> _merged("org/name@v2+org/lora"), _merged({"model": {"path": "org/name", "revision": "v2"}})
    ('org/name@v2+org/lora', 'org/name')
    """
    for _ in range(2):
        if isinstance(value, dict):
            value = value.get("model", value.get("path"))
    return value.strip() if isinstance(value, str) else ""


def _is_self(ref: str, checkpoint: Checkpoint) -> bool:
    """Whether `ref` is the child: its id, the name it was asked for by, or what its folder stands for."""
    if isinstance(checkpoint.repo, LocalRepo) and checkpoint.ref.kind == "local":
        return stands_for(checkpoint.repo.folder) == ref
    names = (checkpoint.ref.repo_id, checkpoint.requested.partition("@")[0])
    return ref.lower() in {name.lower() for name in names}
