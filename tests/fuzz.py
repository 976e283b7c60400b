"""Hostile bytes for the readers, by the million: `python tests/fuzz.py [READER ...] [--count N] [--seed S] [--write]`.

Each reader gets valid documents that were changed at random places, in their bytes and in what they say. A
`LineageError` is the only way to refuse one. A safetensors header is also given to the library safetensors: both must
refuse it, or both must read the same tensors, unless its dtypes are unknown to one of them.
"""

from __future__ import annotations

import argparse
import functools
import json
import random
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import torch
from gguf_files import write_gguf

from hf_lineage.answers.refs import ModelRef
from hf_lineage.checkpoints.dtypes import BITS
from hf_lineage.checkpoints.formats.safetensors import header_length, parse_header, parse_index
from hf_lineage.checkpoints.opener import open_checkpoint
from hf_lineage.checkpoints.texts import card_data, json_data, yaml_documents
from hf_lineage.errors import LineageError

NUMBERS = ("0", "1", "2", "3", "4", "8", "-0", "-1", "1.0", "1e0", "1e999", "9" * 20, "9" * 400, str(2**63), str(2**64),
           str(2**64 - 1), "null", "true", "NaN", '"1"', "[]", "{}", "01", "")  # fmt: skip
TEXTS = ('"a"', '"b"', '"__metadata__"', '"\\ud800"', '"\\ud83d\\ude00"', '"\\u0000"', '"dtype"', '""', '"\x01"', '"ä"')
SHAPES = ((), (1,), (2,), (2, 3), (0,), (0, 2**63), (1,) * 40, (3, 0, 2))
RESULTS = Path(__file__).parent / "benchmarks" / "results" / "fuzz.json"
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


def _overwrite(dice: random.Random, raw: bytearray) -> None:
    """One change of a binary file that mostly keeps its length: a bit, a number put over another, a piece lost."""
    at = dice.randrange(max(1, len(raw)))
    kind = dice.randrange(8)
    if kind < 3 and raw:
        raw[at] ^= 1 << dice.randrange(8)
    elif kind < 6:
        number = dice.choice([0, 1, 2, 3, 7, 8, 32, 255, 2**31, 2**32 - 1, 2**62, 2**63, 2**64 - 1])
        width = dice.choice([1, 2, 4, 8])
        raw[at : at + width] = (number % 2 ** (8 * width)).to_bytes(width, dice.choice(["little", "little", "big"]))
    elif kind == 6:
        del raw[at : at + dice.choice([1, 4, 8, 100, len(raw)])]
    else:
        raw[at:at] = raw[at : at + dice.choice([1, 8, 40])]


def _files(suffix: str, seeds: Callable[[Path], tuple[bytes, ...]]) -> Callable[[random.Random], Outcome]:
    """A format that is opened as a file, all of its tensors read. `seeds` writes valid ones into a folder, once."""
    folder = functools.cache(lambda: Path(tempfile.mkdtemp(dir="/dev/shm" if Path("/dev/shm").is_dir() else None)))
    documents = functools.cache(lambda: seeds(folder()))

    def one(dice: random.Random) -> Outcome:
        raw = bytearray(dice.choice(documents()))
        for _ in range(dice.choice([0, 1, 1, 2, 5, 20])):
            _overwrite(dice, raw)
        path = folder() / f"model.{suffix}"
        path.write_bytes(raw)
        try:
            found = open_checkpoint(path)
            found.whole([*found])
        except LineageError:
            return "refused"
        except Exception:
            path.rename(folder() / f"crash.{suffix}")
            print(f"kept: {folder() / f'crash.{suffix}'}")
            raise
        return "read" if found else "empty"

    return one


def _gguf(folder: Path) -> tuple[bytes, ...]:
    generator = torch.Generator().manual_seed(0)
    model = {
        f"model.layers.0.{name}.weight": torch.randn(8, 256, generator=generator)
        for name in ("self_attn.q_proj", "mlp.up_proj")
    } | {"model.norm.weight": torch.ones(256)}
    kinds = ("F16", "F32", "Q8_0", "Q4_0", "Q4_K")
    return tuple(write_gguf(folder / f"seed-{kind}.gguf", model, kind).read_bytes() for kind in kinds)


def _onnx(folder: Path) -> tuple[bytes, ...]:
    import onnx

    w, b = np.arange(12, dtype=np.float32).reshape(3, 4), np.ones(4, dtype=np.float32)
    plain = {"onnx::MatMul_0": w, "fc.bias": b, "half": w.astype(np.float16), "count": np.arange(3)}
    packed = {"w_quantized": w.astype(np.uint8), "w_scale": np.float32(0.5), "w_zero_point": np.uint8(3)}
    nodes = [
        onnx.helper.make_node("MatMul", ["x", "onnx::MatMul_0"], ["y"]),
        onnx.helper.make_node("Add", ["fc.bias", "y"], ["z"]),
        onnx.helper.make_node("DequantizeLinear", [*packed], ["w"]),
    ]
    found = [onnx.numpy_helper.from_array(np.asarray(array), name) for name, array in {**plain, **packed}.items()]
    found.append(onnx.helper.make_tensor("listed", onnx.TensorProto.BFLOAT16, [2], [1.5, -2.0]))
    whole = onnx.helper.make_model(onnx.helper.make_graph(nodes, "g", [], [], found))
    less = onnx.helper.make_model(onnx.helper.make_graph(nodes[:2], "g", [], [], found[:2]))
    return whole.SerializeToString(), less.SerializeToString()


READERS: dict[str, Callable[[random.Random], Outcome]] = {
    "headers": headers,
    "indexes": _survives(lambda raw: parse_index(raw, "index"), (INDEX.encode(),)),
    "references": _survives(lambda raw: ModelRef.parse(raw.decode("utf-8", "surrogateescape")), REFERENCES),
    "cards": _survives(card_data, CARDS),
    "recipes": _survives(yaml_documents, RECIPES),
    "configs": _survives(json_data, CONFIGS),
    "gguf": _files("gguf", _gguf),
    "onnx": _files("onnx", _onnx),
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
    parser.add_argument("--write", action="store_true", help=f"keep the counts in {RESULTS.name}")
    asked = parser.parse_args()
    for name in asked.readers or READERS:
        began = time.process_time()
        outcomes = fuzz(name, asked.count, asked.seed)
        seconds = round(time.process_time() - began)
        print(name, asked.count, outcomes, f"{seconds} s", flush=True)
        if asked.write:
            kept = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
            kept[name] = {"inputs": asked.count, "seed": asked.seed, "outcomes": outcomes, "seconds": seconds}
            RESULTS.write_text(json.dumps(kept, indent=1) + "\n")
