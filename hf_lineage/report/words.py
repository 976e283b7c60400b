"""What a relation is called where people read it: on the page, in tables, in pictures."""

from __future__ import annotations

# What the child is to a candidate
RELATIONS = {
    "identical": "every weight equal", "head_changed": "same trunk, other head", "partial": "partly frozen",
    "finetune": "fine-tuned from it", "quantized": "quantized from it", "pruned": "pruned from it",
    "adapter": "adapter of it", "resized": "vocabulary resized", "cast": "a smaller format of it",
    "depth_changed": "other layers", "shared_part": "a part in common", "merge": "merged from it", "sibling": "sibling",
    "descendant": "made from the child", "common_origin": "common origin", "none": "unrelated",
}  # fmt: skip


def relation_words(relation: str | None, none: str = "-") -> str:
    """The words for a relation; `none` without one.

    >>> relation_words("finetune"), relation_words(None)
    ('fine-tuned from it', '-')
    """
    return none if relation is None else RELATIONS.get(relation, relation.replace("_", " "))
