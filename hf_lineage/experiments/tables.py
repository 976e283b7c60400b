"""An experiment's result as people read it: Markdown and CSV, a picture, and one page for all."""

from __future__ import annotations

import csv
import html
import io
import json
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..features.similarity import METRICS
from ..files import replaced
from ..report.format import shorten
from .reproduce import Result, as_record

FIRST = "method"
WORDS = {
    "l1": "ℓ1", "l2": "ℓ2", "lp": "ℓ4", "linf": "ℓ∞", "lse": "LSE", "cka": "CKA", "dc": "DC",
    "weights": "weights (ours)", "detector": "Lineage Detector",
}  # fmt: skip
FORMS = {"taylor": "linearised (Eq. 2)", "exact": "linearised (Eq. 1, exact)"}
CAPTIONS = {
    "parent": "Share of children, in %, whose true parent is the first of the candidates: mean ± standard deviation "
    "over 5 splits; in brackets the paper's own figure, on its data and networks.",
    "disguise": "Share of pairs, in %, that are found at 0.1 % false positives, ± half its 95 % interval.",
}
PAPER = {"parent": "In the paper: ", "disguise": ""}
AXES = {"parent": "share of children whose true parent comes first, %", "disguise": "share of pairs that are found, %"}
DRAWN = ("l1", "cka")  # of the metrics, where lines would be too many
PRINTED = {"taylor": "+", "": ""}  # how the paper's tables call a form
STYLE = """:root{color-scheme:light dark}body{font:15px/1.5 system-ui,sans-serif;max-width:75rem;margin:2rem auto;
padding:0 1rem}table{border-collapse:collapse;display:block;overflow-x:auto}td,th{padding:.25rem .7rem;text-align:right;
border-bottom:1px solid #8884;white-space:nowrap}th:first-child{text-align:left}img{max-width:100%;background:#fff;
border-radius:6px}"""


def words(method: str) -> str:
    """A row's name.

    >>> words("l2 + taylor"), words("mine:score")
    ('ℓ2, linearised (Eq. 2)', 'mine:score')
    """
    metric, _, form = method.partition(" + ")
    return WORDS.get(metric, metric) + (f", {FORMS[form]}" if form else "")


def printed(result: Result, method: str, column: str) -> tuple[float, float] | None:
    """The paper's (mean, spread) of that cell."""
    metric, _, form = method.partition(" + ")
    of = result.experiment.printed.get(column, {})
    return of.get(metric + PRINTED[form]) if form in PRINTED else None


def columns(result: Result) -> list[str]:
    """The columns that were asked about."""
    return [*result.asked]


def cells(result: Result, method: str) -> list[str]:
    """A row: mean ± deviation in percent, the paper's figure in brackets."""
    found = []
    for column in columns(result):
        share = result.accuracy[method].get(column)
        text = f"{100 * share[0]:.1f} ± {100 * share[1]:.1f}" if share else "–"
        if paper := printed(result, method, column):
            text += f" [{100 * paper[0]:.1f}]"
        found.append(text)
    return found


def as_markdown(result: Result) -> str:
    """The table, what it is, and what was left out."""
    experiment = result.experiment
    like = {column.name: column.like for column in experiment.columns}
    heads = [f"{name} ({like[name]})" if like.get(name) else name for name in columns(result)]
    lines = [
        f"## {experiment.title}", "",
        f"{experiment.source}, scale `{experiment.scale}`, seed {experiment.seed}. {CAPTIONS[experiment.kind]}", "",
        f"| {FIRST} | {' | '.join(heads)} |", f"|---|{'---:|' * len(heads)}",
    ]  # fmt: skip
    lines += [f"| {words(method)} | {' | '.join(cells(result, method))} |" for method in result.accuracy]
    lines += ["", f"Asked: {', '.join(f'{name} {count}' for name, count in result.asked.items())}."]
    if experiment.kind == "parent":
        chance = ", ".join(f"{name} {100 / count:.1f}" for name, count in result.candidates.items())
        lines[-1] += f" By chance: {chance}."
    if any(result.dropped.values()):
        left = ", ".join(f"{name} {count}" for name, count in result.dropped.items() if count)
        lines.append(f"Left out, below the test accuracy asked: {left}.")
    lines += ["", f"{PAPER[experiment.kind]}{experiment.paper}", ""]
    return "\n".join(lines)


def as_csv(result: Result) -> str:
    """A line for each method and column."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["experiment", "scale", "method", "column", "mean", "deviation", "children", "candidates", "paper"])
    for method, of in result.accuracy.items():
        for column, (mean, deviation) in of.items():
            paper = printed(result, method, column)
            writer.writerow(
                [
                    result.experiment.name, result.experiment.scale, method, column, round(mean, 4),
                    round(deviation, 4), result.asked[column], result.candidates[column],
                    "" if paper is None else paper[0],
                ]
            )  # fmt: skip
    return out.getvalue()


def draw(result: Result, path: Path) -> None:
    """The table as a picture, the darker the more are right; lines where the columns have a place on an axis."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    places = {column.name: column.x for column in result.experiment.columns}
    along = [x for name in columns(result) if (x := places.get(name)) is not None]
    by_line = len(along) == len(columns(result))
    size = (8.0, 4.4) if by_line else (4.4 + 1.15 * len(columns(result)), 1.2 + 0.27 * len(result.accuracy))
    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)
    axes: Any = figure.add_subplot()
    axes.set_title(textwrap.fill(result.experiment.title, 48), fontsize=11)
    (_lines if by_line else _cells)(axes, result, along)
    with replaced(path) as fresh:
        figure.savefig(fresh, dpi=150)


def _cells(axes: Any, result: Result, _along: Sequence[float]) -> None:
    shown, methods = columns(result), [*result.accuracy]
    shares = [[100 * result.accuracy[method][column][0] for column in shown] for method in methods]
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=190, aspect="auto")
    for row, method in enumerate(methods):
        for at, column in enumerate(shown):
            mean, deviation = (100 * x for x in result.accuracy[method][column])
            axes.text(at, row, f"{mean:.0f} ± {deviation:.0f}", ha="center", va="center", fontsize=8, color="#101820")
    axes.set_yticks(range(len(methods)), [shorten(words(method), 34) for method in methods], fontsize=8)
    axes.set_xticks(range(len(shown)), [textwrap.fill(name, 14) for name in shown], fontsize=9)
    axes.set_xlabel(AXES[result.experiment.kind], fontsize=9)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)


def _lines(axes: Any, result: Result, along: Sequence[float]) -> None:
    """One metric of distances and one of kernels, plain and linearised, and what is no metric."""
    for method, of in result.accuracy.items():
        metric, _, form = method.partition(" + ")
        if metric in METRICS and (metric not in DRAWN or form == "taylor"):
            continue
        style = {"color": f"C{[*DRAWN, 'weights', 'detector'].index(metric)}"} if metric in WORDS else {}
        means = [100 * of[column][0] for column in columns(result)]
        axes.plot(
            along, means, "-" if form or metric not in METRICS else ":", marker="o", ms=4, label=words(method), **style
        )
    if min(along) > 0 and max(along) / min(along) > 8:
        axes.set_xscale("log")
    axes.set_xticks(along, columns(result))
    axes.minorticks_off()
    axes.set(ylim=(0, 104), ylabel="true parent first, %", xlabel=result.experiment.xlabel)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)


def as_html(results: Sequence[Result]) -> str:
    """One page with the tables and pictures of all."""
    parts = [
        f"<!doctype html><html lang=en><meta charset=utf-8><title>hf-lineage reproduce</title><style>{STYLE}</style>"
    ]
    parts.append("<h1>The papers' experiments, on networks trained here</h1>")
    for result in results:
        name, experiment = result.experiment.name, result.experiment
        heads = "".join(f"<th scope=col>{html.escape(column)}" for column in columns(result))
        rows = "".join(
            f"<tr><th scope=row>{html.escape(words(m))}" + "".join(f"<td>{html.escape(c)}" for c in cells(result, m))
            for m in result.accuracy
        )
        parts.append(
            f"<h2 id={name}>{html.escape(experiment.title)}</h2><p>{html.escape(experiment.source)}, scale "
            f"{experiment.scale}, seed {experiment.seed}. {CAPTIONS[experiment.kind]}</p><table><tr><th scope=col>"
            f"{FIRST}{heads}{rows}</table><img src={name}.svg alt='The same as a picture'><p><small>"
            f"{PAPER[experiment.kind]}{html.escape(experiment.paper)}</small></p>"
        )
    return "\n".join(parts) + "\n"


def write(results: Sequence[Result], out: Path) -> list[Path]:
    """NAME.md, .csv, .json, .png and .svg of each, and index.html for all; the files."""
    made = []
    for result in results:
        name = result.experiment.name
        texts = {
            "md": as_markdown(result),
            "csv": as_csv(result),
            "json": json.dumps(as_record(result), indent=1) + "\n",
        }
        for suffix, text in texts.items():
            made.append(out / f"{name}.{suffix}")
            with replaced(made[-1]) as fresh:
                fresh.write_text(text, encoding="utf-8")
        for suffix in ("png", "svg"):
            made.append(out / f"{name}.{suffix}")
            draw(result, made[-1])
    made.append(out / "index.html")
    with replaced(made[-1]) as fresh:
        fresh.write_text(as_html(results), encoding="utf-8")
    return made
