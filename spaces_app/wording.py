"""The page's own words and scripts."""

from __future__ import annotations

from questions import MOST_BYTES, MOST_CANDIDATES, MOST_MODELS, MOST_SECONDS

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
<li>{MOST_CANDIDATES} candidates named by hand (a search looks at up to 256), {MOST_MODELS} models in a tree,
{MOST_BYTES >> 20} MB read and {MOST_SECONDS:.0f} seconds for one question; two questions are worked on at once.</li>
<li>Public models, and gated ones that you may read, once you are signed in. Nothing is kept: your token and your
answers stay in
your session.</li>
</ul>
<h2>For programs</h2>
<p>The same questions as an API (“Use via API” below) and as MCP tools at <code>/gradio_api/mcp/</code>:
<code>trace</code>, <code>layers</code>, <code>family_tree</code>, <code>find_candidates</code>. A link with
<code>?child=org/name&amp;parents=org/a,org/b</code> asks at once.</p>
</div>"""

NO_SIGN_IN = (
    '<p class="hl hl-small hl-login">Signing in is off: a Space needs hf_oauth: true, a local page HF_TOKEN.</p>'
)
SIGN_IN = "Sign in with Hugging Face"
SIGN_OUT = "Sign out ({})"
# comes back with the question: gradio's own button loses all but the first parameter of the address
LOGIN_JS = """(label) => {
  const back = encodeURIComponent('/' + window.location.search);
  const where = label === 'Sign in with Hugging Face' ? '/login/huggingface' : '/logout';
  setTimeout(() => window.location.assign(where + '?_target_url=' + back), 300);  // gradio's calls end first
}"""
# what is in the field when the question is sent: gradio's own event data is of the key before, where keys come fast
TYPED_JS = """(_, seen) => [document.querySelector('#{kind}-child input')?.value ?? '', seen]"""
LINK_JS = """(query) => {
  if (!query) return '';
  const url = new URL(window.location.href);
  url.searchParams.delete('child');
  url.searchParams.delete('parents');
  const rest = url.searchParams.toString();
  window.history.replaceState(null, '', query + (rest ? '&' + rest : ''));
  return url.origin + url.pathname + query;
}"""
ASK_JS = """(linked) => { if (linked) setTimeout(() => document.querySelector('#trace-go')?.click(), 50); }"""
# what the templates of gradio leave without a name or a language
PAGE_JS = """() => { document.documentElement.lang = 'en'; }"""

EXAMPLES = {  # file in examples/ → the button's words
    "trace": {"lie": "A card that lies", "none": "None of these", "origin": "A common origin"},
    "layers": {"hybrid": "Twelve blocks of three models", "merge": "A weighted merge"},
    "tree": {"family": "Twelve models and a merge"},
}
KEPT = (
    "An example that is kept in this page: a small family of networks, trained by hf-lineage demo. "
    "Nothing was read just now."
)
