"""What agents and scripts may call, over the API and over MCP: typed, documented, JSON as text.

Nobody is signed in here: the functions read what is public, and write nothing. Their names, docstrings and hints are
what an agent sees: gradio takes one line for an argument. What is of another type than the hints say is refused.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable
from typing import Any

import asking
import gradio as gr
from jobs import Job
from questions import AT_ONCE, MAX_CANDIDATES, RefusedError, explain, model_id

ENDPOINTS = ("trace", "compare", "layers", "family_tree", "find_candidates")
HEAVY = "lineage"  # the queue that all of them share with the page


def trace(child: str, candidates: list[str] | str | None = None) -> str:
    """Say which model on the Hugging Face Hub a model was fine-tuned from, and how sure that is, from weights alone.

    Args:
        child: Repo id of the model in question, such as "org/name" or "org/name@revision".
        candidates: Repo ids of possible parents, at most 16. Leave it out to have them searched for on the Hub.

    Returns:
        JSON, schema hf_lineage/2: verdict (parent, identical, common_origin, none, undecided), parent,
        none_probability, candidates (ref, probability, p_value, relation, facts.found_by and more) best first, claims
        (what the model's own files say, and whether the weights bear it out), undeclared, notes. The verdict "none" is
        an answer: no candidate is the parent.
    """
    return _answer(lambda: asking.question(child, candidates), asking.trace)


def compare(one: str, other: str) -> str:
    """Say of two models whether they are related, which of them came first, and what was done to it.

    Args:
        one: Repo id of a model, such as "org/name" or "org/name@revision".
        other: Repo id of another. Which of the two is named first changes nothing.

    Returns:
        JSON, schema hf_lineage/2: related (true, false, or null where it is not known), first (the one that came first,
        or null), later, pair (relation, p_value, distance, facts and more of `later` against the other one), notes.
    """
    return _answer(lambda: asking.pair(one, other), asking.compare)


def layers(child: str, candidates: list[str] | str | None = None) -> str:
    """Say for each block of a model which block of which other model it came from, and in what proportion.

    Args:
        child: Repo id of the model, for instance a merge: "org/name" or "org/name@revision".
        candidates: Repo ids of models that it may be made of, at most 16. Leave it out to use what it declares.

    Returns:
        JSON, schema hf_lineage/2: blocks (block, kind, parent, parent_block, probability, p_value, mixture, unknown),
        mixture of the whole, method (single, passthrough, linear, slerp, task_arithmetic, ties, dare, mixed), notes.
    """
    return _answer(lambda: asking.question(child, candidates), asking.layers)


def family_tree(models: list[str] | str) -> str:
    """Say who descends from whom in a set of models, from their weights alone.

    Args:
        models: Repo ids, 2 to 24 of them, or the address of one collection on the Hub.

    Returns:
        JSON, schema hf_lineage/2: nodes (id, group, hidden, generation), edges (parent, child, directed, probability,
        relation), roots, left_out (models that could not be read, and why), notes.
    """
    return _answer(lambda: (models,), asking.family_tree)


def find_candidates(child: str, most: int = MAX_CANDIDATES) -> str:
    """List models on the Hub that could be the parent of a model, each with the rules that led to it. Reads no weights.

    Args:
        child: Repo id of the model, such as "org/name" or "org/name@revision".
        most: How many comparable models to stop at, 1 to 16.

    Returns:
        JSON, schema hf_lineage/2: candidates (ref, rules, status, similarity, parameters, downloads), notes, requests.
    """

    def check() -> tuple[str, int]:
        if type(most) is not int or not 1 <= most <= MAX_CANDIDATES:
            raise RefusedError(f"Expected `most` to be a whole number from 1 to {MAX_CANDIDATES}, got {most!r:.80}.")
        return model_id(child), most

    return _answer(check, asking.candidates)


FUNCTIONS = (trace, compare, layers, family_tree, find_candidates)


def expose() -> None:
    """Make the endpoints, within `gr.Blocks`."""
    for function in FUNCTIONS:
        function.__annotations__["return"] = str  # gradio looks at the hint as it is, here a text, and would tell "Any"
        gr.api(
            function, api_name=function.__name__, api_description=description(function), concurrency_id=HEAVY,
            concurrency_limit=AT_ONCE,
        )  # fmt: skip


def description(function: Callable[..., str]) -> str:
    """What a function does and returns, in one line: gradio would put a comma between the lines."""
    text = inspect.getdoc(function) or ""
    what, returns = text.partition("Args:")[0], text.partition("Returns:")[2]
    return " ".join(f"{what} Returns: {returns}".split())


def _answer(check: Callable[[], tuple[Any, ...]], ask: Callable[..., Any]) -> str:
    """The answer to a checked question as JSON; what goes wrong is one sentence."""
    try:
        asked = check()
        return Job(ask, *asked, False).run().to_json(indent=None)
    except Exception as error:
        logging.getLogger("hf_lineage.space").info("refused: %s", type(error).__name__)
        raise gr.Error(explain(error, program=True), print_exception=False) from None
