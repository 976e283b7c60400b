"""What tests have done in the processes of questions: functions of a module, which can be named there."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any


def three_parts(progress: Any) -> int:
    for done in range(3):
        progress(done, 3, f"part {done}")
        time.sleep(0.2)
    return 7


def mark(path: str, progress: Any) -> None:
    """A loop that reports nothing and never ends, as arithmetic on a hostile file might; `path`: for its process."""
    Path(f"{path}.tmp").write_text(str(os.getpid()))
    os.replace(f"{path}.tmp", path)
    while True:
        time.sleep(0.01)


def divide(by: int, progress: Any) -> float:
    return 1 / by


def take_memory(size: int, progress: Any) -> int:
    return len(bytearray(size))


def end(progress: Any) -> None:
    os.kill(os.getpid(), 9)
