"""Who could be the parent, and why we think so: what the child itself declares."""

from __future__ import annotations

from ..records import Claim, is_repo_id
from .checkpoint import Checkpoint

MOST = 16  # claims of one card that are looked at


def claims_of(checkpoint: Checkpoint) -> list[Claim]:
    """Parents that the child's own files name: the card's `base_model`, the adapter's base.

    A card is written by anybody: what is not spelled like a repo id is passed over.
    """
    base = checkpoint.card.get("base_model")
    relation = checkpoint.card.get("base_model_relation")
    relation = relation if relation in ("finetune", "adapter", "quantized", "merge") else None
    named = [base] if isinstance(base, str) else base if isinstance(base, list) else []
    claims = [Claim("card", ref, relation) for ref in named[:MOST] if isinstance(ref, str) and is_repo_id(ref)]
    if checkpoint.adapter_base and is_repo_id(checkpoint.adapter_base):
        claims.append(Claim("adapter", checkpoint.adapter_base, "adapter"))
    return list(dict.fromkeys(claims))
