"""Cards, configs and recipes: untrusted text, parsed within bounds of size, depth and time."""

from __future__ import annotations

import json
import re
from typing import Any

import yaml

MAX_TEXT = 1_000_000  # bytes of a card or config that are looked at
MAX_NODES = 50_000  # values of a YAML document, aliases written out; a card that lists thousands of scores has fewer
MAX_DOCUMENTS = 100  # in one YAML text
MAX_NUMBER = 100  # characters of a YAML value that is no text; reading a longer one takes quadratic time


# of metadata that are no YAML: a placeholder nobody filled in, a tab; the line is kept, so that it is told
_BASE_LINE = re.compile(r"^base_model[ \t]*:[ \t]*(.*(?:(?:\r\n|\r|\n)[ \t]*-.*)*)$", re.MULTILINE)


def card_data(raw: bytes) -> dict:
    """Metadata of a model card; empty where there is none. Of what cannot be read, the text of `base_model`."""
    if not raw:
        return {}
    from huggingface_hub.repocard import REGEX_YAML_BLOCK

    block = REGEX_YAML_BLOCK.search(raw.decode("utf-8-sig", errors="replace"))
    if not block:
        return {}
    found = yaml_data(block[2].encode())
    line = None if found else _BASE_LINE.search(block[2])
    return {"base_model": line[1].strip()} if line and line[1].strip() else found


def json_data(raw: bytes) -> dict:
    """An untrusted JSON object; empty where it is none or cannot be read."""
    try:
        data = json.loads(raw)
    except (ValueError, RecursionError):
        return {}
    return data if isinstance(data, dict) else {}


def yaml_data(raw: bytes) -> dict:
    """An untrusted YAML mapping; empty where it is none or cannot be read."""
    documents = yaml_documents(raw, most=2)
    return documents[0] if len(documents) == 1 else {}


def yaml_documents(raw: bytes, most: int = MAX_DOCUMENTS) -> list[dict]:
    """The mappings of an untrusted YAML text of at most `most` documents; empty where it cannot be read."""
    try:
        loader = _BoundedLoader(raw.decode("utf-8-sig"))
        data = []
        while loader.check_data():
            data.append(loader.get_data())
            if len(data) > most:
                return []
    except Exception:  # PyYAML trips over values it does not expect in any way: `!!bool x` is a KeyError
        return []
    return [document if isinstance(document, dict) else {} for document in data]


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
