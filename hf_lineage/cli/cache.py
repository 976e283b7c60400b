"""`cache`: what is kept on this machine of what was read and answered."""

from __future__ import annotations

import json

import click

from ..errors import LineageError
from ..hub.kept import Kept, place
from ..report.format import bytes_text


@click.command()
@click.option("--empty", is_flag=True, help="Forget all of it.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON: path, bytes, files, answers.")
def cache(empty: bool, as_json: bool) -> None:
    """Show or forget what is kept of public repos: the parts of their files that were read, and answers.

    It lies where HF_HOME says, and belongs to commits: nothing in it gets out of date. Of private and gated repos
    nothing is kept. hf-lineage --no-cache COMMAND does without.

    \b
    Examples:
      hf-lineage cache
      hf-lineage cache --json
      hf-lineage cache --empty
    """
    kept = Kept(place())
    if empty:
        try:
            kept.empty()
        except OSError as error:
            raise LineageError(f"What is kept could not be removed: {error.strerror or error}.") from error
    state = kept.state()
    kept.close()
    if as_json:
        told = {"path": state.path, "bytes": state.bytes, "files": state.files, "answers": state.answers}
        click.echo(json.dumps(told, indent=2))
        return
    click.echo(f"kept     {bytes_text(state.bytes)}: parts of {state.files:,} files, {state.answers:,} answers")
    click.echo(f"at       {state.path}")
