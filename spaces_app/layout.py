"""The whole page: tabs, login, endpoints, and how they are served. `app.py` starts it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import agents
import gradio as gr
import links
import tabs
import wording
from guard import Guard
from questions import WAITING
from show import note_html
from starlette.middleware import Middleware

HERE = Path(__file__).resolve().parent

FONTS = ["system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif"]
MONO = ["ui-monospace", "SFMono-Regular", "Menlo", "Consolas", "monospace"]

READABLE = {  # gradio's greys are too pale for small text, its blue for white on it
    "block_info_text_color": "*neutral_600", "block_info_text_color_dark": "*neutral_300",
    "block_label_text_color": "*neutral_700", "block_label_text_color_dark": "*neutral_200",
    "block_title_text_color": "*neutral_700", "block_title_text_color_dark": "*neutral_200",
    "body_text_color_subdued": "*neutral_600", "body_text_color_subdued_dark": "*neutral_300",
    "input_placeholder_color": "*neutral_500", "input_placeholder_color_dark": "*neutral_400",
    "button_primary_background_fill": "*primary_700", "button_primary_background_fill_hover": "*primary_800",
    "button_primary_background_fill_dark": "*primary_700", "button_primary_background_fill_hover_dark": "*primary_800",
}  # fmt: skip


def can_sign_in() -> bool:
    """On a Space with `hf_oauth`, or where gradio can stand in for the login, with the name of this machine's user."""
    on_space = os.environ.get("SYSTEM") == "spaces" and os.environ.get("SPACE_ID")
    return bool(os.environ.get("OAUTH_CLIENT_ID") if on_space else os.environ.get("HF_TOKEN"))


def build() -> gr.Blocks:
    """The whole page, its endpoints included."""
    with gr.Blocks(title=wording.TITLE, analytics_enabled=False) as demo:
        session = gr.State({}, time_to_live=tabs.SESSION_SECONDS)
        with gr.Row(elem_classes="hl-top"):
            gr.HTML(wording.HEAD, **tabs.STILL)
            login = _login(demo)
        with gr.Tabs() as opened:
            with gr.Tab("Trace", id="trace"):
                trace, traced = tabs.trace_tab(session)
            with gr.Tab("Compare", id="compare"):
                pair = tabs.compare_tab()
            with gr.Tab("Layers", id="layers"):
                layers, layered = tabs.layers_tab(session)
            with gr.Tab("Family tree", id="tree"):
                tree = tabs.tree_tab()
            with gr.Tab("Annotate", id="annotate"):
                refresh = tabs.annotate_tab(session)
            with gr.Tab("How it works", id="how"):
                gr.HTML(wording.HOW, **tabs.STILL)
        for answered in (traced, layered):
            refresh(answered)
            if login:
                answered.then(_who, None, [login], **tabs.AT_HAND)  # they may have signed out in another window
        traced.then(
            _offer, [trace.child, session, layers.child, layers.parents], [layers.child, layers.parents], **tabs.AT_HAND
        )
        linked = gr.Textbox(visible=False, label="linked")
        fields = [trace.child, trace.parents, layers.child, layers.parents, pair.one, pair.other, tree.models]
        filled = demo.load(_fill, None, [linked, opened, trace.status, *fields], js=wording.PAGE_JS, **tabs.AT_HAND)
        filled.then(None, [linked], None, js=wording.ASK_JS, **tabs.HIDDEN)
        agents.expose()
    for function in demo.fns.values():  # gradio's own, such as the login's, are nobody else's either
        if function.api_name not in agents.ENDPOINTS:
            function.api_visibility = "private"
    demo.space_id = None  # else gradio's frontend loads a header from huggingface.co: this page contacts no other host
    return demo.queue(max_size=WAITING)


def launch(demo: gr.Blocks, **options: Any) -> Any:
    """Serve it behind the guard: no server-side rendering, no uploads, no run history, nothing from other hosts."""

    def waiting() -> list[Any]:
        return [event.request for event in [*demo._queue.event_ids_to_events.values()]]

    theme = gr.themes.Default(font=FONTS, font_mono=MONO, primary_hue="blue").set(**READABLE)
    return demo.launch(
        theme=theme, css_paths=HERE / "style.css", mcp_server=True, ssr_mode=False, max_file_size="1mb",
        show_error=False, footer_links=["api"], share=False, run_history=False,
        app_kwargs={"middleware": [Middleware(Guard, waiting=waiting)]}, **options,
    )  # fmt: skip


def _login(demo: gr.Blocks) -> gr.Button | None:
    if not can_sign_in():
        gr.HTML(wording.NO_SIGN_IN, **tabs.STILL)
        return None
    gr.LoginButton(visible=False)  # makes gradio add the login's routes
    button = gr.Button(wording.SIGN_IN, size="sm", variant="huggingface", elem_id="login", scale=0, min_width=220)
    button.click(None, [button], None, js=wording.LOGIN_JS, **tabs.HIDDEN)
    demo.load(_who, None, [button], **tabs.AT_HAND)
    return button


def _who(profile: gr.OAuthProfile | None) -> str:
    return wording.SIGN_OUT.format(profile.username) if profile else wording.SIGN_IN


def _fill(request: gr.Request) -> tuple[Any, ...]:
    """The question of the address, if it carries one; else what somebody types meanwhile is left alone."""
    asked = links.from_link(dict(request.query_params))
    trouble = note_html(asked.trouble) if asked.trouble else gr.skip()
    child = gr.Dropdown(value=asked.child, choices=[asked.child]) if asked.child else gr.skip()
    parents = asked.parents if asked.child else gr.skip()
    nothing = (gr.skip(), gr.skip())
    of_child = (nothing, (child, parents)) if asked.tab == "layers" else ((child, parents), nothing)
    of_two = (*asked.models.splitlines(), *nothing)[:2] if asked.tab == "compare" else nothing
    models = asked.models if asked.tab == "tree" and asked.models else gr.skip()
    opened = gr.Tabs(selected=asked.tab) if asked.asks else gr.skip()
    return asked.asks, opened, trouble, *of_child[0], *of_child[1], *of_two, models


def _offer(child: str, kept: dict, asked: str | None, parents: str) -> tuple[Any, str]:
    """Put the model that was traced into the Layers tab, with the candidates that could be compared."""
    lineage = kept.get("lineage")
    if asked or lineage is None:
        return gr.Dropdown(value=asked, choices=[asked] if asked else []), parents
    refs = [c.ref for c in lineage.candidates if c.status == "compared" and c.relation != "none"]
    return gr.Dropdown(value=child, choices=[child]), "\n".join(refs[:4])
