"""The page's own words and scripts."""

from __future__ import annotations

from pages import page
from questions import MAX_BYTES, MAX_CANDIDATES, MAX_MODELS, MAX_OF_ONE, MAX_RUN, MAX_SECONDS, tool

TITLE = "Model Lineage"
EVIDENCE = "Evidence: weights, features, or a detector"
EVIDENCE_INFO = (
    f"Features and detector run the model and up to {MAX_RUN} candidates that you name on synthetic inputs, built from "
    "their configs, without anybody's code. The verdict stays that of the weights."
)
HEAD = page("head")
HOW = page(
    "how", max_candidates=MAX_CANDIDATES, max_models=MAX_MODELS, max_megabytes=MAX_BYTES >> 20,
    max_seconds=f"{MAX_SECONDS:.0f}", tool=tool,
)  # fmt: skip

NO_SIGN_IN = '<p class="hl hl-small hl-login">To sign in here, start this page with HF_TOKEN set.</p>'
FULL = (
    f"This page could not take the question: too many are waiting, or {MAX_OF_ONE} of yours (one "
    "while others wait), or it was just restarted. "
    "Try again in a minute, or open the page again."
)
SIGN_IN = "Sign in with Hugging Face"
SIGN_OUT = "Sign out ({})"
# comes back with the question and the tab: gradio's own button loses all but the first parameter of the address
LOGIN_JS = """(label) => {
  const field = (id) => document.querySelector(`#${id} textarea, #${id} input`)?.value.trim() ?? '';
  const list = (text) => text.split(/[\\s,;]+/).filter(Boolean).join(',');
  const opened = document.querySelector('[role=tab][aria-selected=true]')?.textContent.trim();
  const tabs = {Compare: 'compare', Layers: 'layers', 'Family tree': 'tree', Annotate: 'annotate'};
  const tab = tabs[opened] ?? 'trace';
  const kind = tab === 'layers' ? 'layers' : 'trace';
  const asked = tab === 'tree' ? {models: list(field('tree-models'))}
    : tab === 'compare' ? {models: list(`${field('compare-one')} ${field('compare-other')}`)}
    : {child: field(`${kind}-child`), parents: list(field(`${kind}-parents`))};
  const query = new URLSearchParams(Object.entries({...asked, tab}).filter(([key, value]) => value));
  const back = encodeURIComponent(asked.child || asked.models ? `/?${query}` : '/');
  const where = label === 'Sign in with Hugging Face' ? '/login/huggingface' : '/logout';
  setTimeout(() => window.location.assign(where + '?_target_url=' + back), 300);  // gradio's calls end first
}"""
# what is in the field when the question is sent: gradio's own event data is of the key before, where keys come fast
TYPED_JS = """(_, seen) => [document.querySelector('#{kind}-child input')?.value ?? '', seen]"""
LINK_JS = """(query) => {
  query = query ?? '';  // of a question that was stopped before it was read
  const url = new URL(window.location.href);
  const kept = new URLSearchParams([...url.searchParams].filter(
    ([key]) => !['child', 'parents', 'models', 'tab'].includes(key))).toString();
  const search = query + (kept ? (query ? '&' : '?') + kept : '');
  if (search !== window.location.search) window.history.pushState(null, '', search || url.pathname);
  return query ? url.origin + url.pathname + query : '';
}"""
# asks what the address asks: the button of a tab is there once the tab was opened
ASK_JS = """(kind) => {
  const press = (left) => {
    const button = document.querySelector(`#${kind}-go`);
    if (button) button.click(); else if (left) setTimeout(press, 50, left - 1);
  };
  if (kind) setTimeout(press, 50, 100);
}"""
# what gradio leaves undone: the page's language, the numbers of presses, Enter to ask (with Ctrl in a field of
# several lines), "back"
PAGE_JS = """() => {
  document.documentElement.lang = 'en';
  document.addEventListener('click', (event) => {
    const button = event.target.closest?.('button[id]');
    if (button) window.pressed = {...window.pressed, [button.id]: window.presses = (window.presses ?? 0) + 1};
  }, true);
  window.addEventListener('popstate', () => window.location.reload());
  document.addEventListener('keydown', (event) => {
    const field = event.key === 'Enter' && event.target.closest?.(
      '[id$="-child"], [id$="-parents"], [id$="-models"], [id$="-one"], [id$="-other"]');
    if (!field || (event.target.tagName === 'TEXTAREA' && !(event.ctrlKey || event.metaKey))) return;
    if (document.querySelector('ul.options .active, ul[role=listbox] .active')) return;  // this Enter takes an id
    const button = document.querySelector(`#${field.id.split('-')[0]}-go`);
    setTimeout(() => button?.click(), 200);
  }, true);
}"""

EXAMPLES = {  # file in examples/ → the button's words
    "trace": {"lie": "A card that lies", "none": "None of these", "origin": "A common origin"},
    "layers": {
        "hybrid": "Twelve blocks of three models",
        "merge": "A weighted merge",
        "features": "Twelve blocks, by features too",
    },
    "tree": {"family": "Twelve models and a merge"},
    "compare": {"related": "A fine-tune and its base", "unrelated": "Two unrelated models"},
}
KEPT = (
    "An example that is kept in this page, of small networks that hf_lineage trained itself. Nothing was read just now."
)
