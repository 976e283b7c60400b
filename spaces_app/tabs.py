"""The page: what is shown where, and what happens when it is used. None of this is an endpoint for others."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import asking
import gradio as gr
import wording
from agents import HEAVY
from heatmap import MAP_JS, layers_html
from jobs import Job, Progress, Step
from questions import AT_ONCE, explain, gated_repo
from show import View, diff_html, error_html, lineage_html, note_html, progress_html, tree_html, view_of

EXAMPLES = Path(__file__).parent / "examples"
STILL: dict[str, Any] = {"js_on_load": None, "apply_default_css": False}  # HTML that does nothing
Update = dict[Any, Any]
HIDDEN: dict[str, Any] = {"api_visibility": "private"}
QUEUED: dict[str, Any] = {
    **HIDDEN, "concurrency_id": HEAVY, "concurrency_limit": AT_ONCE, "show_progress": "hidden",
}  # fmt: skip
AT_HAND: dict[str, Any] = {**HIDDEN, "queue": False, "show_progress": "hidden"}
MOST_SUGGESTED = 400  # ids in the menu of one session
SESSION_SECONDS = 3 * 3600  # that the answers of a session are kept for the Annotate tab


WAIT = progress_html(Step(0, 0, "waiting for a free place", 0.0))


def token_of(token: gr.OAuthToken | None) -> str | bool:
    """The visitor's own, or none at all: never that of the machine."""
    return token.token if token is not None and token.token else False


def _error(error: Exception, token: str | bool) -> str:
    return error_html(explain(error, signed_in=token is not False), gated_repo(error))


class Tab:
    """A question of one kind: where it is typed, how it is asked, stopped and answered."""

    def __init__(self, kind: str, go: str) -> None:
        self.kind, self.go_label = kind, go

    def buttons(self) -> None:
        with gr.Row():
            self.go = gr.Button(self.go_label, variant="primary", elem_id=f"{self.kind}-go")
            self.stop = gr.Button("Stop", elem_id=f"{self.kind}-stop", scale=0, min_width=110)
        with gr.Row(elem_classes="hl-examples"):
            self.examples = {
                name: gr.Button(f"Example: {label}", size="sm", elem_id=f"{self.kind}-example-{name}")
                for name, label in wording.EXAMPLES[self.kind].items()
            }

    def places(self, js: str | None = None) -> None:
        self.status = gr.HTML(elem_id=f"{self.kind}-status", **STILL)
        self.answer = gr.HTML(elem_id=f"{self.kind}-answer", js_on_load=js, apply_default_css=False)

    def connect(self, ask: Callable[..., Iterator[Update]], inputs: list[Any], outputs: list[Any], show: Show) -> Any:
        """Wire the buttons; returns the event that asks."""
        self.go.click(None, None, [self.status], js=f"() => {json.dumps(WAIT)}", **HIDDEN)  # at once, before the queue
        asked = self.go.click(ask, inputs, [self.status, self.answer, *outputs], **QUEUED)
        self.stop.click(self._stopped, None, [self.status], cancels=[asked], **AT_HAND)
        for name, button in self.examples.items():
            button.click(partial(self._example, name, show), None, [self.status, self.answer], **AT_HAND)
        return asked

    def work(self, job: Job[Any]) -> Iterator[Update]:
        """Show a job's progress until it has its answer."""
        yield {self.status: progress_html(job.now()), self.answer: ""}
        for step in job:
            yield {self.status: progress_html(step)}

    def failed(self, error: Exception, token: str | bool) -> Update:
        return {self.status: _error(error, token), self.answer: ""}

    def _stopped(self) -> str:
        return note_html("Stopped. Nothing is being read any more.")

    def _example(self, name: str, show: Show) -> tuple[str, str]:
        view = json.loads((EXAMPLES / f"{self.kind}-{name}.json").read_text(encoding="utf-8"))
        return note_html(wording.KEPT), show(view)


Show = Callable[[View], str]


class QuestionTab(Tab):
    """A question about one model and its candidates."""

    def fields(self, parents: str) -> None:
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
        self.child.key_up(complete, [typed, seen], [self.child, seen], js=read, trigger_mode="always_last", **AT_HAND)


def complete(typed: str, seen: list[str]) -> tuple[Any, list[str]]:
    """Ids like the one being typed, before earlier ones: gradio's menu breaks where it becomes shorter while open."""
    found = asking.similar(typed or "")
    known = [*found, *(name for name in seen if name not in found)]
    if not found or len(known) > MOST_SUGGESTED:
        return gr.skip(), seen
    return gr.Dropdown(choices=known), known


def trace_tab(session: gr.State) -> tuple[QuestionTab, Any, gr.Textbox]:
    """Returns the tab, the event that asks, and the hidden field with the question as part of an address."""
    tab = QuestionTab("trace", "Trace")
    tab.fields("One a line; leave it empty to have them found on the Hub")
    tab.buttons()
    tab.places()
    query = gr.Textbox(visible=False, label="query")
    with gr.Accordion("Take it with you: command, Python, link", open=False):
        command = gr.Textbox(label="Command", interactive=False, buttons=["copy"], elem_id="as-command")
        python = gr.Textbox(label="Python", interactive=False, lines=4, buttons=["copy"], elem_id="as-python")
        link = gr.Textbox(label="Link to this question", interactive=False, buttons=["copy"], elem_id="as-link")

    def ask(child: str, parents: str, kept: dict, token: gr.OAuthToken | None) -> Iterator[Update]:
        own = token_of(token)
        try:
            asked = asking.question(child, parents)
            job = Job(lambda progress: asking.trace(*asked, own, progress))
            yield from tab.work(job)
            lineage = job.result()
            view = view_of(lineage)
        except Exception as error:
            yield {**tab.failed(error, own), query: ""}
            return
        yield {
            tab.status: "", tab.answer: lineage_html(view), session: {**kept, "lineage": lineage},
            command: asking.as_command("trace", *asked), python: asking.as_python("trace", *asked),
            query: asking.as_link(*asked),
        }  # fmt: skip

    done = tab.connect(ask, [tab.child, tab.parents, session], [session, command, python, query], lineage_html)
    done.then(None, [query], [link], js=wording.LINK_JS, **HIDDEN)
    return tab, done, query


def layers_tab(session: gr.State) -> tuple[QuestionTab, Any]:
    tab = QuestionTab("layers", "Find the layers' origins")
    tab.fields("Models it may be made of, one a line; empty: what it declares")
    tab.buttons()
    tab.places(MAP_JS)
    with gr.Accordion("Take it with you: command, Python", open=False):
        command = gr.Textbox(label="Command", interactive=False, buttons=["copy"])
        python = gr.Textbox(label="Python", interactive=False, lines=4, buttons=["copy"])

    def ask(child: str, parents: str, kept: dict, token: gr.OAuthToken | None) -> Iterator[Update]:
        own = token_of(token)
        try:
            asked = asking.question(child, parents)
            job = Job(lambda progress: asking.layers(*asked, own, progress))
            yield from tab.work(job)
            found = job.result()
            shown = layers_html(asking.layers_view(found))
        except Exception as error:
            yield tab.failed(error, own)
            return
        yield {
            tab.status: "", tab.answer: shown, session: {**kept, "layers": found},
            command: asking.as_command("layers", *asked), python: asking.as_python("trace_layers", *asked),
        }  # fmt: skip

    return tab, tab.connect(ask, [tab.child, tab.parents, session], [session, command, python], layers_html)


def tree_tab() -> Tab:
    tab = Tab("tree", "Grow the tree")
    models = gr.Textbox(
        label="Models", info="Two or more repo ids, one a line, or the address of a collection", lines=4, max_lines=12,
        placeholder="org/base\nuser/a\nuser/b", elem_id="tree-models",
    )  # fmt: skip
    tab.buttons()
    tab.places()

    def ask(text: str, token: gr.OAuthToken | None) -> Iterator[Update]:
        own = token_of(token)

        def grow(progress: Progress) -> View:
            return asking.tree_view(asking.tree(asking.family(text, own), own, progress))

        try:
            job = Job(grow)
            yield from tab.work(job)
            shown = tree_html(job.result())
        except Exception as error:
            yield tab.failed(error, own)
            return
        yield {tab.status: "", tab.answer: shown}

    tab.connect(ask, [models], [], tree_html)
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
    ready = gr.State(None)  # the answers that the diff on the page was made of

    def arrived(kept: dict, profile: gr.OAuthProfile | None) -> Update:
        lineage = kept.get("lineage")
        if lineage is None:
            return {about: note_html(NOTHING)}
        who = f"You are signed in as {profile.username}." if profile else "To open a pull request, sign in above."
        told = f"The card of {lineage.child.name}: its section on lineage, as traced in this session. {who}"
        return {
            about: note_html(told), look: gr.Button(interactive=True), send: gr.Button(interactive=False),
            status: "", shown: "", ready: None,
        }  # fmt: skip

    def preview(kept: dict, token: gr.OAuthToken | None, profile: gr.OAuthProfile | None) -> Iterator[Update]:
        yield {status: note_html("Reading the card …"), shown: "", send: gr.Button(interactive=False)}
        own, answers = token_of(token), _answers(kept)
        try:
            lineage, layers = answers
            note = asking.annotation(lineage, layers, own, create_pr=False)
        except Exception as error:
            yield {status: _error(error, own)}
            return
        if not note.changed:
            yield {status: note_html("The card says it already: there is nothing to change."), shown: ""}
            return
        label = f"Open the pull request as {profile.username}" if profile else "Sign in to open the pull request"
        yield {
            status: "", shown: diff_html(note.diff, note.files, note.notes), ready: answers,
            send: gr.Button(value=label, interactive=profile is not None, variant="primary"),
        }  # fmt: skip

    def propose(answers: tuple | None, token: gr.OAuthToken | None) -> Iterator[Update]:
        yield {status: note_html("Opening the pull request …"), send: gr.Button(interactive=False)}
        own = token_of(token)
        try:
            if answers is None:
                raise RuntimeError("the button is only there with a diff")
            lineage, layers = answers
            note = asking.annotation(lineage, layers, own, create_pr=True)
        except Exception as error:
            yield {status: _error(error, own), send: gr.Button(interactive=True)}
            return
        told = "The pull request is open:" if note.url else "The card says it already: nothing was sent."
        yield {status: note_html(told, note.url or ""), ready: None}

    writing: dict[str, Any] = {**HIDDEN, "concurrency_id": "card", "concurrency_limit": 2, "show_progress": "hidden"}
    look.click(preview, [session], [status, shown, send, ready], **writing)
    send.click(propose, [ready], [status, send, ready], **writing)
    return lambda event: event.then(arrived, [session], [*places, ready], **AT_HAND)


def _answers(kept: dict) -> tuple[Any, Any]:
    """The lineage, and the layers if they are of the same model and are worth a table."""
    lineage, layers = kept["lineage"], kept.get("layers")
    return lineage, layers if layers is not None and layers.child == lineage.child else None
