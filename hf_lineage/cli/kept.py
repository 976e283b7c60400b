"""The last answer of a person at this machine, kept for `explain`: one file, theirs alone."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..answers.base import Answer

MOST = 8 << 20  # bytes of an answer that is kept


def last_answer() -> Path:
    """Where it lies: in the folder that `huggingface_hub` keeps its things in, whose place HF_HOME moves."""
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    home = os.environ.get("HF_HOME") or f"{cache}/huggingface"
    return Path(os.path.expandvars(home)).expanduser() / "hf_lineage" / "last.json"


def keep(answer: Answer) -> None:
    """Put an answer in the place of the last one; where that cannot be written, or it is too long, none is kept."""
    path, text = last_answer(), answer.to_json(indent=None)
    fresh = path.with_name(f".{os.getpid()}.tmp")
    try:
        if len(text) > MOST:
            path.unlink(missing_ok=True)
            return
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with open(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
            file.write(text)
        os.replace(fresh, path)
    except OSError:  # the answer was printed: that nobody can ask for it again is no reason to fail
        fresh.unlink(missing_ok=True) if path.parent.is_dir() else None
