"""Headers and indexes as untrusted input: each broken one is named for what is wrong, before memory is taken."""

from __future__ import annotations

import contextlib
import json
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from hf_lineage.checkpoints.formats.safetensors import MAX_HEADER, parse_header, parse_index
from hf_lineage.checkpoints.opener import open_checkpoint
from hf_lineage.errors import BrokenFileError, LineageError


def file(header: Any, data: bytes = b"", length: int | None = None) -> bytes:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(raw) if length is None else length) + raw + data


def tensor(dtype: str = "F32", shape: Any = (2,), offsets: Any = (0, 8)) -> dict:
    return {"dtype": dtype, "shape": list(shape) if isinstance(shape, tuple) else shape, "data_offsets": list(offsets)}


BROKEN = {
    "an empty file": (b"", "0 bytes"),
    "seven bytes": (b"\0" * 7, "7 bytes"),
    "header longer than the file": (file({}, length=10**6), "header claims 1,000,000"),
    "header of 2^63 bytes": (file({}, length=2**63), "header claims"),
    "no JSON": (file(b"{not json"), "JSON cannot be read"),
    "not UTF-8": (file(b"\xff\xfe"), "JSON cannot be read"),
    "JSON too deep": (file(b"[" * 100_000), "JSON cannot be read"),
    "a list": (file([1]), "expected a JSON object"),
    "a name twice": (file(b'{"a": 1, "a": 2}'), "needs `dtype`"),
    "a tensor that is no object": (file({"a": 3}), "needs `dtype`"),
    "no offsets": (file({"a": {"dtype": "F32", "shape": [1]}}), "needs `dtype`"),
    "negative shape": (file({"a": tensor(shape=(-2,))}, b"\0" * 8), "no natural number"),
    "fractional shape": (file({"a": tensor(shape=(1.5,))}, b"\0" * 8), "no natural number"),
    "shape that is text": (file({"a": tensor(shape="ab")}, b"\0" * 8), "no natural number"),
    "true as a shape": (file({"a": tensor(shape=(True, 2))}, b"\0" * 8), "no natural number"),
    "absurd shape": (file({"a": tensor(shape=(2**62, 2**62))}, b"\0" * 8), "does not fill"),
    "absurdly many digits": (file(b'{"a": {"dtype": "F32", "shape": [' + b"9" * 5000 + b'], "data_offsets": [0, 8]}}'), "JSON"),
    "thousands of dimensions": (file({"a": tensor(shape=(2**62,) * 5000)}, b"\0" * 8), "does not fill"),
    "a name that is no text": (file(b'{"\\ud800": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}', b"\0" * 8), "JSON cannot be read"),
    "a git-lfs pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n", "git lfs pull"),
    "end before begin": (file({"a": tensor(offsets=(8, 0))}, b"\0" * 8), "before it begins"),
    "too long for its bytes": (file({"a": tensor(shape=(4,))}, b"\0" * 8), "does not fill"),
    "overlap": (file({"a": tensor(), "b": tensor(offsets=(4, 12))}, b"\0" * 12), "overlaps"),
    "a hole": (file({"a": tensor(offsets=(4, 12))}, b"\0" * 12), "hole"),
    "out of range": (file({"a": tensor()}, b"\0" * 4), "truncated"),
    "something behind": (file({"a": tensor()}, b"\0" * 9), "follow the last tensor"),
}  # fmt: skip


@pytest.mark.parametrize("what", BROKEN)
def test_broken_files_are_named(tmp_path: Path, what: str) -> None:
    content, why = BROKEN[what]
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(BrokenFileError, match=why) as caught:
        open_checkpoint(tmp_path)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400


def test_a_header_over_the_limit_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    with path.open("wb") as f:
        f.write(struct.pack("<Q", MAX_HEADER + 1))
        f.truncate(MAX_HEADER + 100)
    with pytest.raises(BrokenFileError, match="more than the"):
        open_checkpoint(path)


@given(st.binary(max_size=300))
def test_no_bytes_do_anything_but_parse_or_be_refused(raw: bytes) -> None:
    with contextlib.suppress(BrokenFileError):
        parse_header(raw, len(raw) + 8, "x")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["dtype", "shape", "data_offsets", "a"]), inner),
    max_leaves=8,
)  # fmt: skip


@given(st.dictionaries(st.text(max_size=4), JSON, max_size=3))
def test_no_json_does_anything_but_parse_or_be_refused(document: dict) -> None:
    raw = json.dumps(document).encode()
    for parse in (lambda: parse_header(raw, len(raw) + 8, "x"), lambda: parse_index(raw, "x")):
        with contextlib.suppress(BrokenFileError):
            parse()


@pytest.mark.parametrize(
    "shard",
    [
        "../secret.safetensors",
        "/etc/x.safetensors",
        "a/b.safetensors",
        "..\\x.safetensors",
        ".hidden.safetensors",
        3,
        None,
    ],
)
def test_an_index_stays_in_its_folder(tmp_path: Path, shard: Any) -> None:
    index = {"weight_map": {"a": shard}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(BrokenFileError, match=r"outside its folder|no weights file"):
        open_checkpoint(tmp_path)


def test_an_index_that_promises_too_much(tmp_path: Path) -> None:
    shards = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": shards[0], "b": shards[1]}}))
    save_file({"a": torch.ones(2)}, tmp_path / shards[0])
    with pytest.raises(BrokenFileError, match="not there"):
        open_checkpoint(tmp_path)
    save_file({"c": torch.ones(2)}, tmp_path / shards[1])
    assert [note.code for note in open_checkpoint(tmp_path).notes] == ["index_entry_lost"]
    save_file({"a": torch.zeros(2), "b": torch.ones(2)}, tmp_path / shards[1])
    assert open_checkpoint(tmp_path).whole(["a"])[0].tolist() == [1, 1], "the index says which copy counts"


def test_an_unknown_dtype_is_left_out_by_name(tmp_path: Path) -> None:
    header = {"a": tensor(), "odd": tensor("F6_E2M3", (4,), (8, 11)), "new": tensor("Q9", (1,), (11, 12))}
    (tmp_path / "model.safetensors").write_bytes(file(header, b"\0" * 12))
    checkpoint = open_checkpoint(tmp_path)
    assert list(checkpoint) == ["a"] and set(checkpoint.skipped) == {"odd (F6_E2M3)", "new (Q9)"}


def test_every_error_is_ours() -> None:
    assert issubclass(BrokenFileError, LineageError)
