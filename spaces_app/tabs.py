"""The page: what is shown where, and what happens when it is used. None of this is an endpoint for others."""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from threading import Lock
from typing import Any

import asking
import gradio as gr
import links
import wording
from agents import HEAVY
from heatmap import MAP_JS, layers_html
from jobs import Job, Step
from questions import AT_ONCE, EVIDENCE, METRICS, STEPS, RefusedError, explain, gated_repo
from show import (
    View,
    arrived_html,
    comparison_html,
    diff_html,
    error_html,
    lineage_html,
    note_html,
    progress_html,
    tree_html,
    view_of,
)

EXAMPLES = Path(__file__).parent / "examples"
STILL: dict[str, Any] = {"js_on_load": None, "apply_default_css": False}  # HTML that does nothing
Update = dict[Any, Any]
HIDDEN: dict[str, Any] = {"api_visibility": "private"}
QUEUED: dict[str, Any] = {
    **HIDDEN, "concurrency_id": HEAVY, "concurrency_limit": AT_ONCE, "show_progress": "hidden",
}  # fmt: skip
AT_HAND: dict[str, Any] = {**HIDDEN, "queue": False, "show_progress": "hidden"}
MAX_SUGGESTED_IDS = 400  # ids in the menu of one session
SESSION_SECONDS = 3 * 3600  # that the answers of a session are kept for the Annotate tab


WAIT = progress_html(Step(0, 0, "waiting for a free place"))
STOPPED = note_html("Stopped: nothing is being read.")


@dataclass
class Pressed:
    """The number of the last press of a button of a tab: the question of an earlier one is over.

    gradio's own cancelling loses what its queue has not taken in yet, and breaks where a question ends meanwhile.
    """

    last: int = 0
    says: str = ""  # of a question that it ended

    def now(self, press: int | None, says: str = "") -> str:
        """That is the last press now; returns what is said."""
        if press is not None and press >= self.last:
            self.last, self.says = press, says
        return says

    def over(self, press: int | None) -> bool:
        """Is the question of that press over?"""
        return press is not None and press < self.last


def token_of(token: gr.OAuthToken | None) -> str | bool:
    """The visitor's own, or none at all: never that of the machine."""
    return token.token if token is not None and token.token else False


def _error(error: Exception, token: str | bool) -> str:
    return error_html(explain(error, signed_in=token is not False), gated_repo(error))


class Tab:
    """A question of one kind: where it is typed, how it is asked, stopped, answered and taken elsewhere."""

    def __init__(self, kind: str, go: str) -> None:
        self.kind, self.go_label = kind, go
        self.how: list[Any] = []  # fields that an example leaves as they are
        self.pressed = [gr.Number(visible=False, label="press"), gr.State(Pressed())]

    def buttons(self) -> None:
        """Ask, stop, and the examples."""
        with gr.Row():
            self.go = gr.Button(self.go_label, variant="primary", elem_id=f"{self.kind}-go")
            self.stop = gr.Button("Stop", elem_id=f"{self.kind}-stop", scale=0, min_width=110)
        with gr.Row(elem_classes="hl-examples"):
            self.examples = {
                name: gr.Button(f"Example: {label}", size="sm", elem_id=f"{self.kind}-example-{name}")
                for name, label in wording.EXAMPLES[self.kind].items()
            }

    def places(self, js: str | None = None) -> None:
        """Where progress, answer and links go."""
        self.status = gr.HTML(elem_id=f"{self.kind}-status", **STILL)
        self.answer = gr.HTML(elem_id=f"{self.kind}-answer", js_on_load=js, apply_default_css=False)
        self.query = gr.Textbox(visible=False, label="query")
        with gr.Accordion("Take it with you: command, Python, link", open=False):
            self.command, self.python, self.link = (
                gr.Textbox(
                    label=label, interactive=False, lines=lines, buttons=["copy"], elem_id=f"{self.kind}-as-{name}"
                )
                for label, lines, name in (
                    ("Command", 1, "command"), ("Python", 4, "python"), ("Link to this question", 1, "link")
                )
            )  # fmt: skip

    def connect(self, ask: Callable[..., Iterator[Update]], inputs: list[Any], outputs: list[Any], show: Show) -> Any:
        """Wire the buttons; returns the event that asks. `inputs`: the fields come first."""
        taken = [self.command, self.python, self.query]
        self.go.click(None, None, [self.status], js=f"() => {json.dumps(WAIT)}", **HIDDEN)  # at once, before the queue
        places = [self.status, self.answer, *taken, *outputs]
        go = self._pressed_js("go")
        self.go.click(lambda press, pressed: pressed.now(press) and None, self.pressed, None, js=go, **AT_HAND)
        asked = self.go.click(ask, [*self.pressed, *inputs], places, js=go, trigger_mode="multiple", **QUEUED)
        asked.failure(self._refused, self.pressed, [self.status], js=go, **AT_HAND)
        asked.then(None, [self.query], [self.link], js=wording.LINK_JS, **HIDDEN)
        self.stop.click(self._stopped, self.pressed, [self.status], js=self._pressed_js("stop"), **AT_HAND)
        kept = {id(field) for field in self.how}
        fields = [field for field in inputs if isinstance(field, gr.Dropdown | gr.Textbox) and id(field) not in kept]
        for name, button in self.examples.items():
            shown = button.click(
                partial(self._example, name, show, fields), self.pressed, [self.status, self.answer, *taken, *fields],
                js=self._pressed_js(f"example-{name}"), **AT_HAND,
            )  # fmt: skip
            shown.then(None, [self.query], [self.link], js=wording.LINK_JS, **HIDDEN)
        return asked

    def ask(self, press: int | None, pressed: Pressed, answered: Iterator[Update]) -> Iterator[Update]:
        """What `answered` says, until another button is pressed."""
        for update in answered:
            if pressed.over(press):
                yield {self.status: pressed.says or gr.skip()}
                return
            yield update

    def answered(
        self, token: gr.OAuthToken | None, check: Callable[[], Asked], run: Callable[..., Any],
        show: Callable[..., tuple[str, str, Update]],
    ) -> Iterator[Update]:  # fmt: skip
        """Check, work with a bar, answer: `run(*asked, token, progress)`, then `show(answer, *asked)`, which is HTML, a
        sentence, and what else changes. What goes wrong is a sentence, and nothing of an earlier question stays."""
        own = token_of(token)
        yield {self.answer: "", self.command: "", self.python: "", self.query: ""}
        try:
            asked = check()
            yield {self.status: WAIT, **self.taken(*asked)}
            job = Job(run, *asked, own)
            for step in job:
                yield {self.status: progress_html(step)}
            shown, sentence, more = show(job.result(), *asked)
        except Exception as error:
            yield {self.status: _error(error, own)}
            return
        yield {self.status: arrived_html(sentence), self.answer: shown, **more}

    def taken(self, *asked: Any) -> Update:
        """The question as a command, as Python and as an address."""
        raise NotImplementedError

    def _pressed_js(self, button: str) -> str:
        """The first input becomes the number of that button's press: gradio sends events in another order."""
        return f"(_, ...given) => [window.pressed?.['{self.kind}-{button}'] ?? null, ...given]"

    def _refused(self, press: int | None, pressed: Pressed) -> str:
        """What is said of a question that was not taken in; others end with a sentence of their own."""
        return (pressed.says or gr.skip()) if pressed.over(press) else note_html(wording.FULL)

    def _stopped(self, press: int | None, pressed: Pressed) -> str:
        return pressed.now(press, STOPPED)

    def _example(self, name: str, show: Show, fields: list[Any], press: int | None, pressed: Pressed) -> Update:
        view = json.loads((EXAMPLES / f"{self.kind}-{name}.json").read_text(encoding="utf-8"))
        empty = {field: gr.Dropdown(value=None) if isinstance(field, gr.Dropdown) else "" for field in fields}
        empty |= {self.command: "", self.python: "", self.query: ""}
        return {self.status: pressed.now(press, note_html(wording.KEPT)), self.answer: show(view), **empty}


Asked = tuple[Any, ...]
Show = Callable[[View], str]


class QuestionTab(Tab):
    """A question about one model and its candidates."""

    def fields(self, parents: str) -> None:
        """Where a model and its candidates are typed."""
        with gr.Row():
            self.child = gr.Dropdown(
                [], label="Model", info="Repo id, such as org/name or org/name@revision", allow_custom_value=True,
                value=None, elem_id=f"{self.kind}-child", scale=2, min_width=280,
            )  # fmt: skip
            self.parents = gr.Textbox(
                label="Candidate parents", info=parents, lines=2, max_lines=6, elem_id=f"{self.kind}-parents", scale=2,
                placeholder="org/base", min_width=280,
            )  # fmt: skip
        typed, seen = gr.Textbox(visible=False, label="typed"), gr.State([])
        read = wording.TYPED_JS.format(kind=self.kind)
        with gr.Accordion(wording.EVIDENCE, open=False), gr.Row():
            self.how = [
                gr.Radio(
                    [(label, name) for name, label in EVIDENCE.items()], value="weights", label="Judge by",
                    info=wording.EVIDENCE_INFO, elem_id=f"{self.kind}-evidence", scale=3, min_width=280,
                ),
                gr.Dropdown([*METRICS], value="l2", label="Metric of features", elem_id=f"{self.kind}-metric", scale=1),
                gr.Dropdown([*STEPS], value="auto", label="Step of features", elem_id=f"{self.kind}-step", scale=1),
            ]  # fmt: skip
        self.child.key_up(complete, [typed, seen], [self.child, seen], js=read, trigger_mode="always_last", **AT_HAND)

    def taken(self, *asked: Any) -> Update:
        """The question as a command, as Python and as an address."""
        child, parents, how = asked
        called = {"trace": "trace", "layers": "trace_layers"}[self.kind]
        return {
            self.command: links.as_command(self.kind, child, parents, how),
            self.python: links.as_python(called, child, parents, how),
            self.query: "" if how else links.as_link(child, parents, self.kind),  # an address asks by weights
        }  # fmt: skip


def complete(typed: str, seen: list[str]) -> tuple[Any, list[str]]:
    """Ids like the one being typed, before earlier ones: gradio's menu breaks where it becomes shorter while open."""
    found = asking.similar(typed or "")
    known = [*found, *(name for name in seen if name not in found)]
    if not found or len(known) > MAX_SUGGESTED_IDS:
        return gr.skip(), seen
    return gr.Dropdown(choices=known), known


def trace_tab(session: gr.State) -> tuple[QuestionTab, Any]:
    """Returns the tab and the event that asks."""
    tab = QuestionTab("trace", "Trace")
    tab.fields("One a line; leave it empty to have them found on the Hub")
    tab.buttons()
    tab.places()

    def ask(
        press: int | None, pressed: Pressed, child: str, parents: str, by: str, metric: str, step: str, kept: dict,
        token: gr.OAuthToken | None,
    ) -> Iterator[Update]:  # fmt: skip
        how = (by, metric, step)

        def show(lineage: Any, *asked: Any) -> tuple[str, str, Update]:
            view = view_of(lineage, links.as_command("trace", *asked))
            return lineage_html(view), view["sentence"], {session: {**kept, "lineage": lineage}}

        answered = tab.answered(token, lambda: asking.question_by(child, parents, *how), asking.trace_by, show)
        yield from tab.ask(press, pressed, answered)

    return tab, tab.connect(ask, [tab.child, tab.parents, *tab.how, session], [session], lineage_html)


def layers_tab(session: gr.State) -> tuple[QuestionTab, Any]:
    """Returns the tab and the event that asks."""
    tab = QuestionTab("layers", "Find the layers' origins")
    tab.fields("Models it may be made of, one a line; empty: what it declares")
    tab.buttons()
    tab.places(MAP_JS)

    def ask(
        press: int | None, pressed: Pressed, child: str, parents: str, by: str, metric: str, step: str, kept: dict,
        token: gr.OAuthToken | None,
    ) -> Iterator[Update]:  # fmt: skip
        how = (by, metric, step)

        def show(found: Any, *asked: Any) -> tuple[str, str, Update]:
            view = asking.layers_view(found, links.as_command("layers", *asked))
            return layers_html(view), view["sentence"], {session: {**kept, "layers": found}}

        answered = tab.answered(token, lambda: asking.question_by(child, parents, *how), asking.layers_by, show)
        yield from tab.ask(press, pressed, answered)

    return tab, tab.connect(ask, [tab.child, tab.parents, *tab.how, session], [session], layers_html)


class PairTab(Tab):
    """A question about two models."""

    def fields(self) -> None:
        """Where they are typed."""
        with gr.Row():
            self.one, self.other = (
                gr.Textbox(
                    label=label, info="Repo id, such as org/name or org/name@revision", placeholder="org/name",
                    elem_id=f"compare-{name}", scale=2, min_width=280, max_lines=1,
                )
                for label, name in (("One model", "one"), ("The other", "other"))
            )  # fmt: skip

    def taken(self, *asked: Any) -> Update:
        """The question as a command, as Python and as an address."""
        return {
            self.command: links.as_comparison(*asked), self.python: links.comparison_python(*asked),
            self.query: links.as_models(asked, "compare"),
        }  # fmt: skip


def compare_tab() -> PairTab:
    """Returns the tab."""
    tab = PairTab("compare", "Compare")
    tab.fields()
    tab.buttons()
    tab.places()

    def ask(press: int | None, pressed: Pressed, one: str, other: str, token: gr.OAuthToken | None) -> Iterator[Update]:
        def show(found: Any, *asked: Any) -> tuple[str, str, Update]:
            view = view_of(found, links.as_comparison(*asked))
            return comparison_html(view), view["sentence"], {}

        yield from tab.ask(press, pressed, tab.answered(token, lambda: asking.pair(one, other), asking.compare, show))

    tab.connect(ask, [tab.one, tab.other], [], comparison_html)
    return tab


class TreeTab(Tab):
    """A question about many models."""

    def fields(self) -> None:
        """Where models are typed."""
        self.models = gr.Textbox(
            label="Models", info="Two or more repo ids, one a line, or the address of a collection", lines=4,
            max_lines=12, placeholder="org/base\nuser/a\nuser/b", elem_id="tree-models",
        )  # fmt: skip

    def taken(self, *asked: Any) -> Update:
        """Nothing: what a collection holds is known later."""
        return {}  # what a collection holds is known later

    def found(self, models: Sequence[str]) -> Update:
        """The question as a command, as Python and as an address, once the models are known."""
        return {
            self.command: links.tree_command(models), self.python: links.tree_python(models),
            self.query: links.as_models(models, "tree"),
        }  # fmt: skip


def tree_tab() -> TreeTab:
    """Returns the tab."""
    tab = TreeTab("tree", "Grow the tree")
    tab.fields()
    tab.buttons()
    tab.places()

    def ask(press: int | None, pressed: Pressed, text: str, token: gr.OAuthToken | None) -> Iterator[Update]:
        def show(grown: tuple[list[str], View], *_: Any) -> tuple[str, str, Update]:
            models, view = grown
            return tree_html(view), view["sentence"], tab.found(models)

        yield from tab.ask(press, pressed, tab.answered(token, lambda: (text,), asking.grown, show))

    tab.connect(ask, [tab.models], [], tree_html)
    return tab


NOTHING = "Trace a model first (first tab): then its card can be changed here."


def annotate_tab(session: gr.State) -> Callable[[Any], None]:
    """Returns what connects the tab to an event that changes the session."""
    about = gr.HTML(note_html(NOTHING), elem_id="annotate-about", **STILL)
    with gr.Row():
        look = gr.Button("Show what would change", variant="primary", elem_id="annotate-look", interactive=False)
        send = gr.Button("Open the pull request", elem_id="annotate-send", interactive=False)
    status = gr.HTML(elem_id="annotate-status", **STILL)
    shown = gr.HTML(elem_id="annotate-diff", **STILL)
    places = [about, look, send, status, shown]
    ready = gr.State(None)  # the ticket of the diff on the page
    number = gr.Textbox(visible=False, label="number")  # of that ticket, as the page has it

    def arrived(kept: dict, profile: gr.OAuthProfile | None) -> Update:
        lineage = kept.get("lineage")
        if lineage is None:
            return {about: note_html(NOTHING)}
        who = f"You are signed in as {profile.username}." if profile else "To open a pull request, sign in above."
        empty = nothing_to_say(lineage)
        text = (
            f"The card of {lineage.child.name}: {empty or f'its section on lineage, as traced in this session. {who}'}"
        )
        return {
            about: note_html(text), look: gr.Button(interactive=not empty), send: gr.Button(interactive=False),
            status: "", shown: "", ready: None, number: "",
        }  # fmt: skip

    def preview(kept: dict, token: gr.OAuthToken | None, profile: gr.OAuthProfile | None) -> Iterator[Update]:
        yield {status: note_html("Reading the card …"), shown: "", send: gr.Button(interactive=False)}
        own = token_of(token)
        try:
            if "lineage" not in kept:
                raise RefusedError("What this session had found out is gone: trace the model again.")
            answers = _answers(kept)
            change = Job(asking.annotation, *answers, own, False).run()
        except Exception as error:
            yield {status: _error(error, own)}
            return
        if not change.files:
            yield {status: note_html("The card says it already: there is nothing to change."), shown: ""}
            return
        ticket = Ticket(answers, profile.username if profile else "")
        label = f"Open the pull request as {profile.username}" if profile else "Sign in to open the pull request"
        yield {
            status: "", shown: diff_html(change.diff, change.files, change.notes), ready: ticket,
            number: ticket.number, send: gr.Button(value=label, interactive=profile is not None, variant="primary"),
        }  # fmt: skip

    def propose(
        ticket: Ticket | None, given: str, token: gr.OAuthToken | None, profile: gr.OAuthProfile | None
    ) -> Iterator[Update]:
        yield {status: note_html("Opening the pull request …"), send: gr.Button(interactive=False)}
        own = token_of(token)
        try:
            answers = take(ticket, given, profile.username if profile else "")
            url = Job(asking.annotation, *answers, own, True).run().url
        except Exception as error:
            yield {status: _error(error, own), ready: None, number: ""}
            return
        text = "The pull request is open:" if url else "The card says it already: nothing was sent."
        yield {status: note_html(text, url or ""), ready: None, number: ""}

    writing: dict[str, Any] = {**HIDDEN, "concurrency_id": "card", "concurrency_limit": 2, "show_progress": "hidden"}
    look.click(preview, [session], [status, shown, send, ready, number], **writing)
    send.click(propose, [ready, number], [status, send, ready, number], **writing)
    return lambda event: event.then(arrived, [session], [*places, ready, number], **AT_HAND)


@dataclass
class Ticket:
    """Leave to open one pull request, once: what it says, for whom, and a number that only the page with the diff has.

    A request that was not made by that page's button, or is sent a second time, does not have it.
    """

    answers: tuple[Any, Any]
    user: str
    number: str = field(default_factory=lambda: secrets.token_urlsafe(16))
    used: Lock = field(default_factory=Lock)


def take(ticket: Ticket | None, number: str, user: str) -> tuple[Any, Any]:
    """What the ticket's pull request says; the ticket is used up by that. Raises `RefusedError`."""
    valid = ticket is not None and ticket.user == user and secrets.compare_digest(ticket.number, str(number))
    if ticket is None or not valid or not ticket.used.acquire(blocking=False):
        raise RefusedError("Look at the change first: a pull request is opened once, by who has seen it.")
    return ticket.answers


def nothing_to_say(lineage: Any) -> str:
    """Why an answer is not offered to somebody else's card; "" if it is worth a pull request."""
    if lineage.verdict == "undecided":
        return "nothing was decided, so there is nothing to write into it."
    if lineage.verdict == "none" and not any(claim.status == "contradicted" for claim in lineage.claims):
        return "none of these is its parent, which is no news for its card: it claims none of them."
    return ""


def _answers(kept: dict) -> tuple[Any, Any]:
    """The lineage, and the layers if they are of the same model and are worth a table."""
    lineage, layers = kept["lineage"], kept.get("layers")
    return lineage, layers if layers is not None and layers.child == lineage.child else None
