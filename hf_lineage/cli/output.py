"""What all commands share: options, output, files, and the progress bar."""

from __future__ import annotations

import os
import re
import shlex
import signal
import threading
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..answers.base import MeasuredAnswer, StatisticalAnswer
from ..answers.refs import ModelRef, printable
from ..errors import ArgumentError, LineageError, NoCandidateReadError, ProcessLostError, TimeOverError
from ..files import replaced
from ..parallel import world
from ..report.progress import Bar
from ..sizes import size_of
from .kept import keep

if TYPE_CHECKING:
    from ..answers.annotation import Annotation
    from ..answers.comparison import Comparison
    from ..answers.coverage import Coverage
    from ..answers.history import History
    from ..answers.index import IndexQuery, IndexState
    from ..answers.layers import LayerLineage
    from ..answers.lineage import Lineage
    from ..answers.phylogeny import Phylogeny
    from ..answers.search import CandidateSearch

    Shown = (
        Annotation | CandidateSearch | Comparison | Coverage | History | IndexQuery | IndexState | LayerLineage
        | Lineage | Phylogeny
    )  # fmt: skip


Decorator = Callable[[Callable[..., None]], Callable[..., None]]
MODES = ("auto", "human", "agent", "json", "quiet")  # those of the `hf` command
GRACE = 5.0  # seconds that a command has for writing what is finished once its time is over
MOST_MISSING = 4  # paths at which nothing is that an error names
PICTURES = (".png", ".svg", ".pdf", ".webp", ".jpg", ".jpeg")


class Size(click.ParamType[int]):
    """A number of bytes: 1000000, 1MB, 2GiB."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Bytes, or a usage error."""
        count = value if isinstance(value, int) else size_of(value)
        return self.fail(f"{value!r} is no size such as 1000000 or 1MB.", param, ctx) if count is None else count


SIZE = Size()


def checked(context: click.Context, parameter: click.Parameter, value: Any) -> Any:
    """An option's value, checked as the task will, before torch is loaded for it."""
    if value is not None and value != parameter.get_default(context):
        from ..tasks.options import Options

        Options(**{str(parameter.name): value})
    return value


def with_options(*options: Decorator) -> Decorator:
    """Several options as one decorator, in the order of the help."""

    def declare(command: Callable[..., None]) -> Callable[..., None]:
        for option in reversed(options):
            command = option(command)
        return command

    return declare


CANDIDATES = with_options(
    click.argument("bases", nargs=-1, metavar="[BASE]..."),
    click.option(
        "-c", "--candidate", "candidates", multiple=True, metavar="REF",
        help="A possible parent, as BASE; repeat it, or write several with commas. Without any they are searched for, "
        "beginning with what the child declares.",
    ),
)  # fmt: skip


def reading(level: str = "Family-wise error of the p-values.", alpha: float = 1e-3) -> Decorator:
    """The options of every command that reads weights; `level` says what its `alpha` bounds."""
    return with_options(
        click.option(
            "--sample",
            metavar="HOW",
            callback=checked,
            help="'all', 'auto', 'adaptive', a fraction (0.5%) or a size (1MB). "
            "Default: everything of local models, 0.5 % (at least 4 MB) of remote ones; of candidates that a few "
            "hidden units show to be unrelated, no more than these.",
        ),
        click.option("--alpha", type=float, default=alpha, show_default=True, callback=checked, help=level),
        click.option(
            "--seed", type=int, default=0, show_default=True, help="Seed of the sample and of the permutations."
        ),
        click.option(
            "--max-bytes", type=SIZE, metavar="SIZE", help="Refuse to read more than this for one answer: 500MB, …"
        ),
        click.option(
            "--device",
            metavar="WHERE",
            help="Where to compute: cpu (default), cuda, cuda:1, auto (every GPU, then memory, then disk), "
            "within bounds (0=10GiB,cpu=20GiB), or part by part (blocks.0=0,blocks.1=cpu).",
        ),
        click.option(
            "--memory",
            metavar="SIZE",
            callback=checked,
            help="What reading weights takes at most beside torch: 512MB (default), 2GB, …",
        ),
        click.option(
            "--timeout",
            type=click.FloatRange(min=0, min_open=True),
            metavar="SECONDS",
            expose_value=False,
            callback=_end_after,
            help="End the whole command after so long, with an error.",
        ),
        click.option("--allow-pickle", is_flag=True, help="Read .bin/.pt files too (torch.load, weights_only=True)."),
    )


CHECK_ORDER = click.option(
    "--check-order",
    is_flag=True,
    help="Read whole matrices of up to three layers, too, and see that nobody put the hidden units in this order. "
    "Of an 8 B model about 1 GB each; --max-bytes counts it.",
)


VERBOSE = click.option(
    "--verbose", is_flag=True, expose_value=False, callback=lambda context, _, value: _set_verbose(context, value),
    help="Say on stderr what is read, when; keep the traceback of an error.",
)  # fmt: skip


def _set_verbose(context: click.Context, value: bool) -> None:
    context.find_root().meta["verbose"] = value


def is_verbose() -> bool:
    """Whether the command that runs was given --verbose."""
    context = click.get_current_context(silent=True)
    return bool(context and context.find_root().meta.get("verbose"))


def bar() -> Bar:
    """The progress of one command on stderr."""
    return Bar(is_verbose())


def _end_after(context: click.Context, _option: click.Parameter, seconds: float | None) -> None:
    """Let an error end the command when the time is over; threads that still wait for a server are not waited for."""
    if seconds is None:
        return
    text = f"The time limit of {seconds:g} seconds is over."

    def stop(*_: object) -> None:
        raise TimeOverError(text, "Give it more time (--timeout), or read less (--sample).")

    def leave() -> None:
        say(f"error: {text}")
        os._exit(1)

    late = threading.Timer(seconds + GRACE, leave)
    late.daemon = True
    late.start()
    context.call_on_close(late.cancel)
    if hasattr(signal, "setitimer"):  # not on Windows
        signal.signal(signal.SIGALRM, stop)
        signal.setitimer(signal.ITIMER_REAL, seconds)
        context.call_on_close(lambda: signal.setitimer(signal.ITIMER_REAL, 0))


def formats(command: Callable[..., None]) -> Callable[..., None]:
    """The options that say how an answer is printed, for a parameter `form`: one of `MODES`."""
    return with_options(
        click.option(
            "--format", "form", type=click.Choice(MODES), default="auto", show_default=True,
            help="As of the hf command; auto is agent if AI_AGENT or AGENT is set, else human.",
        ),
        click.option(
            "--json", "form", flag_value="json",
            help="Print JSON, schema hf_lineage/2.",
        ),
        click.option("-q", "--quiet", "form", flag_value="quiet", help="Print only ids, one a line."),
        VERBOSE,
    )(command)  # fmt: skip


def mode(form: str) -> str:
    """What `auto` means here. Other marks of agents, which `hf` looks up on the Hub, are not asked for."""
    if form != "auto":
        return form
    return "agent" if os.environ.get("AI_AGENT") or os.environ.get("AGENT") else "human"


def show(answer: Shown, form: str, ids: Iterable[str | None]) -> None:
    """Print an answer: a table for people, Markdown without shortened names for agents, JSON, or nothing but `ids`."""
    match mode(form):
        case "json":
            click.echo(answer.to_json())
        case "agent":
            click.echo(answer.to_markdown(), nl=False)
        case "quiet":
            for name in filter(None, ids):
                click.echo(printable(name))
        case _:
            from ..report.console import dressed, takes_colour, terminal_width

            text = answer.to_text(terminal_width()) if isinstance(answer, MeasuredAnswer) else str(answer)
            click.echo(dressed(text, answer.to_dict()) if takes_colour() else text)
    keep(answer)


HTML = click.option(
    "--html", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE",
    help="Save a report to hand to somebody: one file, with the evidence in pictures and sentences.",
)  # fmt: skip


def _flag(_context: click.Context, _option: click.Parameter, values: tuple[str, ...]) -> dict[str, float]:
    """MODEL=P, or MODEL alone for certain → model → probability."""
    found: dict[str, float] = {}
    for value in values:
        name, equals, number = value.rpartition("=")
        try:
            found[name if equals else value] = float(number) if equals else 1.0
        except ValueError as error:
            raise click.BadParameter(f"Expected MODEL=PROBABILITY, got {value!r}.") from error
    return found


FLAGS = with_options(
    click.option(
        "--flag", "flags", multiple=True, metavar="MODEL=P", callback=_flag,
        help="MODEL has a flaw (a licence, poisoned data) with probability P, 1 where it is left out: what that means "
        "for its relatives. Repeat it for several.",
    ),
    click.option("--inherited", type=click.FloatRange(0, 1), default=0.9, show_default=True,
                 help="Of --flag: chance that a child has what its parent has."),
    click.option("--arises", type=click.FloatRange(0, 1), default=0.01, show_default=True,
                 help="Of --flag: chance that it arises anew in a child."),
    click.option("--prior", type=click.FloatRange(0, 1),
                 help="Of --flag: chance that a model without parents here has it. Default: --arises."),
)  # fmt: skip


def typed_command() -> str:
    """What was typed, without the files that it saves."""
    context = click.get_current_context(silent=True)
    words = [*((context.obj or {}).get("typed", ()) if context else ())]
    for option in ("--html", "--plot"):
        while option in words:
            at = words.index(option)
            del words[at : at + 2]
    return shlex.join(["hf-lineage", *(word for word in words if not word.startswith(("--html=", "--plot=")))])


def save_report(answer: StatisticalAnswer, path: Path | None) -> None:
    """Write the report of an answer where one was asked for."""
    if path:
        save(lambda file: file.write_text(answer.to_html(typed_command()), encoding="utf-8"), "report", path)


def check_picture(path: Path) -> None:
    """Before anything is read: a file of a kind that pictures are saved in. Raises `ArgumentError`."""
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


def save(write: Callable[[Path], object], what: str, path: Path) -> None:
    """Let `write` write a file, whole or not at all, and say so; a full disk is the user's to know, not a bug."""
    try:
        with replaced(path) as fresh:
            write(fresh)
    except OSError as error:
        raise LineageError(f"The {what} could not be written to `{path}`: {error.strerror or error}.") from error
    click.echo(f"{what}: {path}", err=True)


def _expect_the_end() -> None:
    """A launcher ends all processes when one has died: say so. torch's own lines about it are not for the user."""

    def stop(*_: object) -> None:
        raise ProcessLostError("The launcher ended this process; its own report says which one died. Start again.")

    signal.signal(signal.SIGTERM, stop)
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "FATAL")


def say(text: str) -> None:
    """One line on stderr, from the first of several processes."""
    try:
        main = world().main
    except ArgumentError:  # what is wrong with the launcher's variables must be printed, too
        main = True
    if main:
        click.echo(text, err=True)


QUESTION = (
    click.argument("child"),
    CANDIDATES,
    click.option(
        "--subfolder",
        metavar="FOLDER",
        help="Where the weights lie in CHILD and in each BASE: unet, transformer, … (the same as org/name/FOLDER).",
    ),
    click.option(
        "--evidence",
        multiple=True,
        default=("weights",),
        show_default=True,
        metavar="NAME",
        help="What to judge by: weights, features, detector; repeat it for several.",
    ),
    click.option(
        "--detector",
        metavar="PATH_OR_REPO",
        help="Another detector than the one that ships: a folder, or org/name@commit.",
    ),
    click.option(
        "--probes",
        metavar="WHAT",
        help="Inputs for features and detector: a number of synthetic ones, a folder of pictures, or dataset:org/name. "
        "Default: synthetic ones.",
    ),
    click.option(
        "--metric",
        default="l2",
        show_default=True,
        help="Of features: l1, l2, lp, linf, lse, cka, dc; the paper's other forms: lse-printed, cka-squared, dc-root.",
    ),
    click.option("--step", default="auto", show_default=True, help="α of the linearisation, in (0, 1]."),
    reading(),
    formats,
    click.option("--plot", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE", help="Save a picture."),
    HTML,
)


def within(ref: str, subfolder: str | None) -> str:
    """A reference, or that of a folder in it.

    >>> within("org/name@v1", "unet"), within("./pipe/", "unet"), within("org/name", None)
    ('org/name/unet@v1', './pipe/unet', 'org/name')
    """
    if not subfolder:
        return ref
    parsed = ModelRef.parse(ref)
    return str(ModelRef.parse(str(replace(parsed, name=f"{parsed.name}/{subfolder.strip('/')}"))))


def candidates_of(
    bases: Iterable[str], named: Iterable[str], subfolder: str | None = None, what: str = "candidate"
) -> list[str] | None:
    """The candidates of a command, None where it names none: the arguments behind CHILD, then those of `-c`.

    A comma separates two of them unless a file of that name is there. what: the word for one of them.

    >>> candidates_of(["org/a"], ["org/b,org/c"]), candidates_of([], [])
    (['org/a', 'org/b', 'org/c'], None)

    Raises `ReferenceSyntaxError`, and `NoCandidateReadError` where all are paths at which nothing is.
    """
    texts = [*bases, *named]
    parts = [part for text in texts for part in (text.split(",") if "," in text and not _exists(text) else [text])]
    found = [within(part.strip(), subfolder) for part in parts if part.strip()]
    refs = [ModelRef.parse(ref) for ref in found]
    if refs and all(ref.kind == "local" and not _exists(ref.name) for ref in refs):
        more = f" and {len(refs) - MOST_MISSING} more" if len(refs) > MOST_MISSING else ""
        there = f"nothing is at {', '.join(ref.name for ref in refs[:MOST_MISSING])}{more}"
        raise NoCandidateReadError(
            f"No {what} could be read: {there}. Expected a model folder or a weights file at each path."
        )
    return found or None


def _exists(path: str) -> bool:
    try:
        return Path(path).expanduser().exists()
    except (OSError, RuntimeError, ValueError):  # too long, ~nobody, a NUL
        return False


def look_for(child: str) -> None:
    """Raise `ModelNotFoundError` or its kind where the child is a path and nothing is there: before torch is loaded."""
    ref = ModelRef.parse(child)
    if ref.kind == "local":
        from ..checkpoints.local import LocalRepo

        LocalRepo(ref)


def read_probes(text: str | None) -> str | int | None:
    """A number of probes, or what `probes` names."""
    return int(text) if text and re.fullmatch(r"-?[0-9]{1,18}", text) else text


def read_step(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text
