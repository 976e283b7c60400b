"""Hostile bytes for the readers, by the million: `python tests/fuzz.py [READER ...] [--count N] [--seed S]`.

Each reader gets valid documents that were changed at random places, in their bytes and in what they say. A
`LineageError` is the only way to refuse one. A safetensors header is also given to the library safetensors: both must
refuse it, or both must read the same tensors, unless its dtypes are unknown to one of them.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections.abc import Callable
from typing import Any

import safetensors

from hf_lineage.answers.refs import ModelRef
from hf_lineage.checkpoints.dtypes import BITS
from hf_lineage.checkpoints.formats.safetensors import header_length, parse_header, parse_index
from hf_lineage.checkpoints.texts import card_data, json_data, yaml_documents
from hf_lineage.errors import LineageError

NUMBERS = ("0", "1", "2", "3", "4", "8", "-0", "-1", "1.0", "1e0", "1e999", "9" * 20, "9" * 400, str(2**63), str(2**64),
           str(2**64 - 1), "null", "true", "NaN", '"1"', "[]", "{}", "01", "")  # fmt: skip
TEXTS = ('"a"', '"b"', '"__metadata__"', '"\\ud800"', '"\\ud83d\\ude00"', '"\\u0000"', '"dtype"', '""', '"\x01"', '"ä"')
SHAPES = ((), (1,), (2,), (2, 3), (0,), (0, 2**63), (1,) * 40, (3, 0, 2))
Outcome = str  # what became of an input, for the count


def headers(dice: random.Random) -> Outcome:
    """One header, ours against the library's."""
    data, raw = _header(dice)
    file = len(raw).to_bytes(8, "little") + raw + data
    try:
        length = header_length(file[:8], len(file), "file")
        entries, unknown = parse_header(file[8 : 8 + length], len(file), "file")
    except LineageError:
        entries, unknown = None, []
    try:
        theirs = dict(safetensors.deserialize(file))
    except Exception as error:  # the library's own error is of no kind that it names
        theirs = None
        if "unknown variant" in str(error):
            return "unknown dtype"
    if unknown:
        return "unknown dtype"
    if theirs is not None and any(about["dtype"] not in BITS for about in theirs.values()):
        return "unknown dtype"
    ours = None if entries is None else {name: _as_theirs(entry.dtype, entry.shape) for name, entry in entries.items()}
    reference = None if theirs is None else {n: _as_theirs(a["dtype"], tuple(a["shape"])) for n, a in theirs.items()}
    assert ours == reference, f"{raw!r} and {len(data)} bytes: {ours}, and {reference} by safetensors"
    return "refused" if ours is None else "read"


def _as_theirs(dtype: str, shape: tuple[int, ...]) -> tuple[str, tuple[int, ...]]:
    """Complex numbers are two real ones here."""
    return ("F32", (*shape, 2)) if dtype == "C64" else (dtype, shape)


def _header(dice: random.Random) -> tuple[bytes, bytes]:
    """(data, header) of a few tensors, changed."""
    at, tensors = 0, []
    for i in range(dice.randrange(4)):
        dtype, shape = dice.choice(["F32", "BF16", "F4", "U8", "C64", "I64", "F8_E4M3"]), dice.choice(SHAPES)
        count = 1
        for size in shape:
            count *= size
        end = at + (count * BITS[dtype] + 7) // 8
        fields = [f'"dtype":"{dtype}"', f'"shape":{list(shape)}', f'"data_offsets":[{at},{end}]']
        at = end
        if dice.random() < 0.1:
            fields.append(f"{dice.choice(TEXTS)}:{_value(dice)}")
        if dice.random() < 0.1:
            fields.append(dice.choice(fields))
        dice.shuffle(fields)
        body = "{" + ",".join(fields) + "}"
        if dice.random() < 0.05:
            body = f'["{dtype}",{list(shape)},[{at},{end}]]'
        tensors.append(f'"t{i if dice.random() < 0.9 else 0}":{body}')
    if dice.random() < 0.3:
        tensors.append(
            f'"__metadata__":{_value(dice) if dice.random() < 0.3 else dice.choice(["{}", "null", chr(123) + TEXTS[3] + ":1}"])}'
        )
    dice.shuffle(tensors)
    text = dice.choice(["{", " {", "{\n"]) + ",".join(tensors) + dice.choice(["}", "} ", "}\n  "])
    raw = bytearray(text.encode())
    for _ in range(dice.choice([0, 0, 0, 1, 1, 2])):
        _change(dice, raw)
    return b"x" * max(0, min(at, 4096) + dice.choice([0] * 20 + [1, -1])), bytes(raw)


def _value(dice: random.Random, depth: int = 0) -> str:
    kind = dice.randrange(5)
    if kind == 0 and depth < 3:
        return "[" + ",".join(_value(dice, depth + 1) for _ in range(dice.randrange(3))) + "]"
    if kind == 1 and depth < 3:
        return "{" + ",".join(f"{dice.choice(TEXTS)}:{_value(dice, depth + 1)}" for _ in range(dice.randrange(3))) + "}"
    if kind == 2:
        deep = dice.choice([2, 124, 125, 126, 127, 128, 200])
        return "[" * deep + "]" * deep
    return dice.choice(NUMBERS if kind == 3 else TEXTS)


def _change(dice: random.Random, raw: bytearray) -> None:
    """One change of the bytes: a bit, a piece lost or doubled, a number or a text put in."""
    at = dice.randrange(len(raw) + 1)
    kind = dice.randrange(5)
    if kind == 0 and at < len(raw):
        raw[at] ^= 1 << dice.randrange(8)
    elif kind == 1:
        del raw[at : at + dice.choice([1, 1, 2, 8])]
    elif kind == 2:
        raw[at:at] = raw[at : at + dice.choice([1, 5, 40])]
    elif kind == 3:
        digits = [i for i, byte in enumerate(raw) if 48 <= byte <= 57]
        if digits:
            i = dice.choice(digits)
            raw[i : i + 1] = dice.choice(NUMBERS).encode()
    else:
        raw[at:at] = dice.choice([*NUMBERS, *TEXTS, ",", ":", "{", "}", "[", "]"]).encode()


def _survives(read: Callable[[bytes], Any], seeds: tuple[bytes, ...]) -> Callable[[random.Random], Outcome]:
    """A reader that may refuse by a `LineageError` alone."""

    def one(dice: random.Random) -> Outcome:
        raw = bytearray(dice.choice(seeds))
        for _ in range(dice.choice([0, 1, 1, 2, 5, 20])):
            _change(dice, raw)
        try:
            found = read(bytes(raw))
        except LineageError:
            return "refused"
        return "read" if found else "empty"

    return one


INDEX = json.dumps(
    {"metadata": {"total_size": 5}, "weight_map": {f"t{i}": f"model-0000{i}-of-00003.safetensors" for i in range(3)}}
)
CARDS = (
    b"---\nbase_model: [a/b, 'c/d']\nbase_model_relation: merge\ntags:\n- x\n- &a y\n- *a\ndate: 2024-01-01\n---\n# T\n",
    b"---\r\nbase_model:\r\n- org/name\r\nmodel-index:\r\n- {name: x, results: [{value: .nan}]}\r\n---\r\n",
)
RECIPES = (b"models:\n- model: a/b@v1+c/d\n  parameters: {weight: [0.5, 1]}\nmerge_method: ties\n---\nslices: []\n",)
CONFIGS = (
    b'{"model_type": "llama", "_name_or_path": "a/b", "architectures": ["X"], "n": [1e5, null, {"a": "\\u00e4"}]}',
)
REFERENCES = (
    b"org/name@v1.0",
    b"./folder/x",
    b"~/x",
    b"org/name/sub/folder@main",
    b"https://huggingface.co/a/b/tree/main",
)

READERS: dict[str, Callable[[random.Random], Outcome]] = {
    "headers": headers,
    "indexes": _survives(lambda raw: parse_index(raw, "index"), (INDEX.encode(),)),
    "references": _survives(lambda raw: ModelRef.parse(raw.decode("utf-8", "surrogateescape")), REFERENCES),
    "cards": _survives(card_data, CARDS),
    "recipes": _survives(yaml_documents, RECIPES),
    "configs": _survives(json_data, CONFIGS),
}


def fuzz(reader: str, count: int, seed: int = 0) -> dict[Outcome, int]:
    """How often each outcome came of `count` inputs. Raises what a reader raises and may not, with the input."""
    dice, found = random.Random(f"{reader} {seed}"), dict[Outcome, int]()
    for _ in range(count):
        outcome = READERS[reader](dice)
        found[outcome] = found.get(outcome, 0) + 1
    return dict(sorted(found.items()))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("readers", nargs="*", metavar="READER", help=", ".join(READERS))
    parser.add_argument("--count", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    for name in asked.readers or READERS:
        began = time.process_time()
        print(
            name, asked.count, fuzz(name, asked.count, asked.seed), f"{time.process_time() - began:.0f} s", flush=True
        )
