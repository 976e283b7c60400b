"""The page's own words and scripts."""

from __future__ import annotations

from questions import MAX_BYTES, MAX_CANDIDATES, MAX_MODELS, MAX_SECONDS, tool

TITLE = "Model Lineage"
HEAD = """<div class="hl hl-head"><h1>Where does this model come from?</h1>
<p>Type the id of a model on the Hugging Face Hub. Its weights are compared with those of possible parents, and you get
the most probable one, how sure that is, and what the model card says about it. “None of these” is an answer,
too.</p></div>"""

HOW = f"""<div class="hl hl-how">
<h2>How it works</h2>
<ol>
<li><strong>Candidates.</strong> Those you name; else what the model's own files declare, then wider rings of the Hub
(other
models of the same base, of the same architecture and size) until one candidate is beyond doubt.</li>
<li><strong>A test.</strong> Tensors are lined up by name and shape. If two models share an origin, unit 7 of one still
resembles unit 7 of the other more than any other unit. How often would shuffled units agree as well? That is the
p-value.
It makes “none of these” a possible answer.</li>
<li><strong>A ranking.</strong> Among those that pass, the distance of the weights, what was done (rounded, pruned,
merged, …)
and the tree of all relatives say which one is the parent. The probabilities and “none of these” add up to 1.</li>
<li><strong>Layers.</strong> The same test for each block of the model against each block of every candidate, then
shares by least
squares: merges, frankenmerges and hybrids come apart again.</li>
</ol>
<h2>What it does not tell</h2>
<ul>
<li>A small p-value means a <em>common origin</em>, not descent: siblings pass, too. Who came first shows only where
the model
moved far enough; else the answer is “common origin”.</li>
<li>Of models on the Hub a sample is read: 0.5 % and at least 4 MB of each. A disguise (hidden units in another
order) is found
only where everything is read: use the command line with <code>--sample all</code>.</li>
<li>Only safetensors are read, and no model's code is run. Features and detectors are on the command line.</li>
<li>The probabilities were fitted on small families of networks. Before you accuse anybody, look at the evidence.</li>
</ul>
<h2>Limits of this page</h2>
<ul>
<li>{MAX_CANDIDATES} candidates named by hand (a search looks at up to 256), {MAX_MODELS} models in a tree,
{MAX_BYTES >> 20} MB read and {MAX_SECONDS:.0f} seconds for one question; two questions are worked on at once.</li>
<li>Public models, and gated ones that you may read, once you are signed in. Nothing is kept: your token and your
answers stay in
your session.</li>
</ul>
<h2>For programs</h2>
<p>The same questions as an API (“Use via API” below): <code>/trace</code>, <code>/layers</code>,
<code>/family_tree</code>, <code>/find_candidates</code>; and as MCP tools at <code>/gradio_api/mcp/</code>:
<code>{tool("trace")}</code>, <code>{tool("layers")}</code>, <code>{tool("family_tree")}</code>,
<code>{tool("find_candidates")}</code>. They read public models only, and write nothing. A link with
<code>?child=org/name&amp;parents=org/a,org/b</code> asks at once.</p>
</div>"""

NO_SIGN_IN = '<p class="hl hl-small hl-login">To sign in here, start this page with HF_TOKEN set.</p>'
FULL = "This page could not take the question: too many are waiting, or it was just restarted. Try again in a minute."
SIGN_IN = "Sign in with Hugging Face"
SIGN_OUT = "Sign out ({})"
# comes back with the question and the tab: gradio's own button loses all but the first parameter of the address
LOGIN_JS = """(label) => {
  const field = (id) => document.querySelector(`#${id} textarea, #${id} input`)?.value.trim() ?? '';
  const list = (text) => text.split(/[\\s,;]+/).filter(Boolean).join(',');
  const opened = document.querySelector('[role=tab][aria-selected=true]')?.textContent.trim();
  const tab = {'Layers': 'layers', 'Family tree': 'tree', 'Annotate': 'annotate'}[opened] ?? 'trace';
  const kind = tab === 'layers' ? 'layers' : 'trace';
  const asked = tab === 'tree' ? {models: list(field('tree-models'))}
    : {child: field(`${kind}-child`), parents: list(field(`${kind}-parents`))};
  const query = new URLSearchParams(Object.entries({...asked, tab}).filter(([key, value]) => value));
  const back = encodeURIComponent(asked.child || asked.models ? `/?${query}` : '/');
  const where = label === 'Sign in with Hugging Face' ? '/login/huggingface' : '/logout';
  setTimeout(() => window.location.assign(where + '?_target_url=' + back), 300);  // gradio's calls end first
}"""
# what is in the field when the question is sent: gradio's own event data is of the key before, where keys come fast
TYPED_JS = """(_, seen) => [document.querySelector('#{kind}-child input')?.value ?? '', seen]"""
LINK_JS = """(query) => {
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
# what gradio leaves undone: the page's language, Enter to ask (Ctrl+Enter in a field of several lines), "back"
PAGE_JS = """() => {
  document.documentElement.lang = 'en';
  window.addEventListener('popstate', () => window.location.reload());
  document.addEventListener('keydown', (event) => {
    const field = event.key === 'Enter' && event.target.closest?.('[id$="-child"], [id$="-parents"], [id$="-models"]');
    if (!field || (event.target.tagName === 'TEXTAREA' && !(event.ctrlKey || event.metaKey))) return;
    if (document.querySelector('ul.options .active, ul[role=listbox] .active')) return;  // this Enter takes an id
    const button = document.querySelector(`#${field.id.split('-')[0]}-go`);
    setTimeout(() => button?.click(), 200);
  }, true);
}"""

EXAMPLES = {  # file in examples/ → the button's words
    "trace": {"lie": "A card that lies", "none": "None of these", "origin": "A common origin"},
    "layers": {"hybrid": "Twelve blocks of three models", "merge": "A weighted merge"},
    "tree": {"family": "Twelve models and a merge"},
}
KEPT = (
    "An example that is kept in this page: a small family of networks, trained by hf-lineage demo. "
    "Nothing was read just now."
)
