"""`audit`: what many models declare, checked; printed as it comes, kept in files."""

from __future__ import annotations

import os
import re
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..answers.refs import printable
from ..errors import ArgumentError, LineageError
from ..parallel import world
from .output import (
    CHECK_ORDER,
    FLAGS,
    HTML,
    bar,
    check_writable,
    formats,
    mode,
    reading,
    save,
    say,
    typed_command,
    with_options,
)

if TYPE_CHECKING:
    from ..answers.inheritance import Inheritance
    from ..tasks.audit import AuditRecord, Member

FILE = click.Path(dir_okay=False, path_type=Path)
OPTIONS = (
    click.argument("file", required=False, type=click.Path(allow_dash=True)),
    click.option("--author", metavar="ORG", help="All models of a user or an organisation, latest changed first."),
    click.option("--collection", metavar="SLUG", help="All models of a collection; its page's address will do."),
    click.option("--since", metavar="WHEN", help="Only what was changed since: 2026-01-01, 2026-01-01T10:00, 36h, 7d."),
    click.option("--limit", type=click.IntRange(min=1), metavar="N", help="Audit at most so many."),
    click.option("--search", is_flag=True, help="Look for parents that nobody declares, too; many more requests."),
    click.option("--journal", type=FILE, metavar="FILE", help="Keep what is finished; started again, go on there."),
    click.option("--comment", is_flag=True, help="Say what was found in each pull request: models org/name@refs/pr/N."),
    click.option("--sarif", type=FILE, metavar="FILE", help="Save the findings as SARIF 2.1.0, for code scanning."),
    click.option("--markdown", type=FILE, metavar="FILE", help="Save the report as Markdown."),
    HTML,
    FLAGS,
    reading("Family-wise error, of each model."),
    CHECK_ORDER,
    formats,
)


@click.command()
@with_options(*OPTIONS)
@click.pass_context
def audit(context: click.Context, file: str | None, author: str | None, collection: str | None, since: str | None,
          limit: int | None, form: str, sarif: Path | None, markdown: Path | None,
          html: Path | None, comment: bool, flags: dict[str, float], inherited: float, arises: float,
          prior: float | None, **options: Any) -> None:  # fmt: skip
    """Check what models declare as their base (base_model) against their weights.

    The models are those of FILE (a repo id or path a line, # for comments, - for the standard input), of a
    collection and of an author, together. --json prints a JSON document a line for each model as soon as it is
    finished, --format agent the same as tab-separated values, -q only the models whose claim is contradicted.

    \b
    Examples:
      hf-lineage audit models.txt
      hf-lineage audit --author my-org --since 7d
      hf-lineage audit --collection my-org/released-0123abcd --markdown audit.md
      hf-lineage audit --author my-org --journal audit.jsonl      go on where it was interrupted
      hf-lineage audit models.txt --sarif audit.sarif             for code scanning
      echo org/name@refs/pr/3 | hf-lineage audit - --comment      say it in the pull request
      echo org/name | hf-lineage audit - --search                 who else could be the parent
      hf-lineage audit models.txt --flag org/base=1               which of them have what org/base was flagged for

    \b
    Exit codes: 0 no contradicted claim (also when some models could not be read: they are listed),
    1 an error, 2 wrong usage, 3 the author or collection has no models, 4 a contradicted claim was found,
    5 not one model could be checked, 130 interrupted (the files are written for what is finished).
    """
    if not (file or author or collection):
        raise click.UsageError("Expected models: a FILE, --author or --collection.", context)
    if world().size > 1:
        raise ArgumentError("Expected one process: an audit runs in one, without torchrun or accelerate launch.")
    for path, what in ((sarif, "SARIF file"), (markdown, "report"), (html, "report"), (options["journal"], "journal")):
        if path:
            check_writable(path, what)
    from ..report import page as report
    from ..tasks.audit import audit as run
    from ..tasks.audit import members

    found = members(author=author, collection=collection, file=file, since=since, limit=limit)
    with ExitStack() as shown:
        progress = shown.enter_context(bar())
        records = run([member.ref for member in found], progress=progress, **options)
        output = _Output(mode(form))
        complete = False
        try:
            for record in records:
                output.add(record)
            complete = True
        finally:  # what is finished is reported and saved, also after Ctrl-C
            shown.close()
            output.end()
            rates = {"inherited": inherited, "arises": arises, "prior": prior}
            carriers, wrong = _carriers(output.records, flags, rates)
            if carriers is not None:
                output.flagged(carriers)
            _save(output.records, found, sarif, markdown, complete, carriers)
            if html:
                text = report.audit_page(output.records, typed_command(), complete, carriers)
                save(lambda file: file.write_text(text, encoding="utf-8"), "report", html)
    if wrong is not None:
        raise wrong
    if comment:
        _comment(output.records)
    if any(record.status == "contradicted" for record in output.records):
        sys.exit(4)  # `main` runs commands such that click's own exit would be lost
    if output.records and all(record.status in ("failed", "not_testable") for record in output.records):
        sys.exit(5)


def _carriers(
    records: list[AuditRecord], flags: dict[str, float], rates: dict[str, Any]
) -> tuple[Inheritance | None, LineageError | None]:
    """What the flags mean for the models, or why they cannot be understood: no reason to lose the records."""
    if not (flags and records):
        return None, None
    from ..tasks.inheritance import inheritance

    try:
        return inheritance(records, flags, **rates), None
    except LineageError as error:
        return None, error


def _comment(records: list[AuditRecord]) -> None:
    """Comment on each pull request; one that refuses does not stop the others, nor hide what was found."""
    from ..tasks.audit.comment import comment

    for record in records:
        try:
            if url := comment(record):
                say(f"comment: {url}")
        except LineageError as error:
            say(f"no comment on {printable(record.requested)}: {printable(str(error))}")


class _Output:
    """Prints records: people get a table at the end, programs a line each at once."""

    def __init__(self, form: str) -> None:
        from ..tasks import audit as report

        self._form, self._report = form, report
        self.records: list[AuditRecord] = []
        if form == "agent":
            click.echo(report.tsv_head())

    def add(self, record: AuditRecord) -> None:
        """Take note of a record."""
        self.records.append(record)
        match self._form:
            case "json":
                click.echo(record.to_json(indent=None))
            case "agent":
                click.echo(self._report.tsv(record))
            case "quiet" if record.status == "contradicted":
                click.echo(printable(record.ref))

    def flagged(self, found: Inheritance) -> None:
        """Print what flags of some models mean for the others, behind the records."""
        match self._form:
            case "human":
                from ..report.console import terminal_width

                click.echo(f"\n{found.to_text(terminal_width())}")
            case "json":
                click.echo(found.to_json(indent=None))
            case "agent":
                say(found.sentence())

    def end(self) -> None:
        """Say what it came to."""
        if self._form == "human":
            from ..report.console import terminal_width

            click.echo(self._report.table(self.records, terminal_width()))
        elif self._form != "quiet":
            say(self._report.summary(self.records))


def _save(
    records: list[AuditRecord], found: list[Member], sarif: Path | None, markdown: Path | None, complete: bool,
    carriers: Inheritance | None,
) -> None:  # fmt: skip
    from ..tasks import audit as report

    if sarif:
        places = {m.ref: (_address(m.file), m.line) for m in found if m.file and m.line}
        hub = re.sub("//[^/@]*@", "//", os.environ.get("HF_ENDPOINT") or report.HUB)  # without a password
        from importlib.metadata import version  # 25 ms that `--help` need not pay

        sarif_text = report.sarif(records, version("hf_lineage"), places, hub=hub, complete=complete)
        save(lambda file: file.write_text(sarif_text, encoding="utf-8"), "SARIF", sarif)
    if markdown:
        text = report.markdown(records, complete, carriers)
        save(lambda file: file.write_text(text, encoding="utf-8"), "report", markdown)


def _address(file: str) -> str:
    """A file as SARIF names it: relative to where we are, which is the root of the checkout in CI."""
    from urllib.parse import quote

    path = Path(file).absolute()
    return quote(path.relative_to(Path.cwd()).as_posix()) if path.is_relative_to(Path.cwd()) else path.as_uri()
