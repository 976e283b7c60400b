"""What all commands share: where things are said, written and shown while they run."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..errors import ArgumentError, LineageError, ProcessLostError
from ..parallel import world
from ..records import printable

if TYPE_CHECKING:
    from ..records import Progress

PICTURES = (".png", ".svg", ".pdf", ".webp", ".jpg", ".jpeg")


def check_picture(path: Path) -> None:
    if path.suffix.lower() not in PICTURES:
        raise ArgumentError(f"Expected a picture file ending in {', '.join(PICTURES)}, got `{path}`.")
    check_writable(path, "picture")


def check_writable(path: Path, what: str) -> None:
    """Before anything is read: an answer must not be lost to a file that cannot be saved."""
    if not path.parent.is_dir() or not os.access(path.parent, os.W_OK):
        raise ArgumentError(f"Expected a folder that can be written to, got `{path.parent}` for the {what}.")
    if path.exists() and not os.access(path, os.W_OK):
        raise ArgumentError(f"Expected a file that can be written to, got `{path}` for the {what}.")


def is_first() -> bool:
    """Whether this process prints the answer: alone, or the first of several."""
    here = world()
    if here.size > 1:
        _expect_the_end()
    return here.main


def save(write: Callable[[], object], what: str, path: Path) -> None:
    """Write a file and say so; a full disk is the user's to know, not a bug."""
    try:
        write()
    except OSError as error:
        raise LineageError(f"The {what} could not be written to `{path}`: {error.strerror or error}.") from error
    click.echo(f"{what}: {path}", err=True)


def _expect_the_end() -> None:
    """A launcher ends all processes when one has died: say so. torch's own lines about it are not for the user."""

    def stop(*_: object) -> None:
        raise ProcessLostError("The launcher ended this process; its own report says which one died. Start again.")

    signal.signal(signal.SIGTERM, stop)
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "FATAL")


class Bar:
    """A progress bar on stderr, made when there is something to show; `with Bar() as progress: …`."""

    def __enter__(self) -> Progress:
        self._bar: Any = None
        return self._show

    def _show(self, done: int, total: int, what: str) -> None:
        from tqdm import tqdm

        if self._bar is None or self._bar.total != total:
            self.__exit__()
            self._bar = tqdm(
                total=total, file=sys.stderr, leave=False, disable=None, unit_scale=True, dynamic_ncols=True
            )
        self._bar.set_description_str(printable(what)[:40], refresh=False)
        self._bar.update(done - self._bar.n)

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None


def say(text: str) -> None:
    """One line on stderr, from the first of several processes."""
    try:
        main = world().main
    except ArgumentError:  # what is wrong with the launcher's variables must be said, too
        main = True
    if main:
        click.echo(text, err=True)
