"""Cards, configs and recipes: untrusted text, parsed within bounds of size, depth and time."""

from __future__ import annotations

import json
from typing import Any

import yaml
from huggingface_hub.repocard import REGEX_YAML_BLOCK

MAX_TEXT = 1_000_000  # bytes of a card or config that are looked at
MAX_NODES = 100_000  # values of a YAML document, aliases written out; a card that lists thousands of scores has fewer
MAX_NUMBER = 100  # characters of a YAML value that is no text; reading a longer one takes quadratic time


def card_data(raw: bytes) -> dict:
    """Metadata of a model card; empty where there is none or it cannot be read."""
    block = REGEX_YAML_BLOCK.search(raw.decode("utf-8-sig", errors="replace"))
    return yaml_data(block[2].encode()) if block else {}


def json_data(raw: bytes) -> dict:
    """An untrusted JSON object; empty where it is none or cannot be read."""
    try:
        data = json.loads(raw)
    except (ValueError, RecursionError):
        return {}
    return data if isinstance(data, dict) else {}


def yaml_data(raw: bytes) -> dict:
    """An untrusted YAML mapping; empty where it is none or cannot be read."""
    try:
        data = yaml.load(raw.decode("utf-8-sig"), _BoundedLoader)
    except Exception:  # PyYAML trips over values it does not expect in any way: `!!bool x` is a KeyError
        return {}
    return data if isinstance(data, dict) else {}


class _BoundedLoader(yaml.SafeLoader):
    """Plain values only, and no more than `MAX_NODES`: a few lines of aliases can stand for gigabytes."""

    def __init__(self, stream: str) -> None:
        super().__init__(stream)
        self._count = 0
        self._weight: dict[int, int] = {}  # of a node with all below it, aliases written out

    def compose_node(self, parent: Any, index: Any) -> Any:
        before, is_alias = self._count, self.check_event(yaml.AliasEvent)
        node = super().compose_node(parent, index)
        # an alias of a node that is not finished yet holds itself
        self._count += self._weight.get(id(node), MAX_NODES) if is_alias else 1
        if self._count > MAX_NODES:
            raise yaml.YAMLError("too many values")
        if isinstance(node, yaml.ScalarNode) and not node.tag.endswith(":str") and len(node.value) > MAX_NUMBER:
            raise yaml.YAMLError("a number that is too long")
        self._weight[id(node)] = self._count - before
        return node
