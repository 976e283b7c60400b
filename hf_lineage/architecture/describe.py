"""What the tensors of a checkpoint are, from names and shapes: weights or not, head or trunk, block, hidden units.

The rules of names are tables (here, and `conventions.py`); nothing here reads a weight or runs a model's code.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from . import structure
from .conventions import ADAPTERS_OWN, Shaped, by_kind, canonical_names, once_a_header

FLOATS = frozenset({"F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ", "F4"})
MIN_COVERAGE = 0.5  # of the child's trunk that a candidate must have, tensor by tensor, to be compared
MIN_SHARED_VOCABULARY = 0.5  # of the longer table that the shorter one must have, to be its beginning

# Buffers: counters, running statistics of the data, masks, tables that are computed
_NOT_WEIGHTS = re.compile(
    r"(?:^|\.)(?:num_batches_tracked|running_mean|running_var|position_ids|token_type_ids|inv_freq|masked_bias|"
    r"attn_mask|relative_position_index|relative_coords_table)$|(?:^|\.)h\.\d+\.attn\.bias$"
)
_HEAD = re.compile(
    r"^(?:head|heads|head_dist|fc|classifier|pre_classifier|lm_head|score|cls|qa_outputs|embed_out|last_linear|"
    r"classification_head|mlm_head|vocab_projector|vocab_transform|vocab_layer_norm)(?:\.|$)"
)
_BLOCK = re.compile(
    r"^(?P<block>(?:.*?\.)?(?:layers?|blocks?|h|stages?|resblocks)\.\d+(?:\.(?:blocks|layers|\d+)(?:\.\d+)?)?"
    r"|(?:.*?\.)?layer\d+\.\d+)\."
)

_INNER_LISTS = frozenset(["block", "blocks", "layer", "layers", "resnets", "attentions", "motion_modules", "stage"])
MIN_LIST = 0.01  # of all elements, that a numbered list of parts holds to be one of blocks


@dataclass(frozen=True, slots=True)
class _Rule:
    """Where the hidden units of one layer are: the rows of a matrix, and the columns of those that read them.

    rows: pattern of the matrix's name; its group `order` names the order of the units. columns: modules of that order
    whose matrices read the units. taller: only if the matrix has more rows than columns, which distinguishes GPT-2's
    (in, out) layout from a Linear of the same name. transposed: the matrix is stored (in, out).
    """

    rows: re.Pattern[str]
    columns: tuple[str, ...]
    taller: bool = False
    transposed: bool = False


# Matrices whose rows are hidden units, in an order that training leaves arbitrary; matrices of one order (gate and up)
# are tested together. A matrix counts only if another one of its module reads exactly its rows: fused gate-and-up and
# grouped convolutions have fewer symmetries.
_UNIT_ROWS: tuple[_Rule, ...] = (
    _Rule(
        re.compile(r"(?P<order>.*\bmlp)\.(?:gate_proj|up_proj|fc1|fc1_g|fc1_x|fc11|fc12|w1|dense_h_to_4h)\.weight"),
        ("down_proj", "fc2", "w2", "w3", "c_proj", "dense_4h_to_h"),
    ),
    _Rule(
        re.compile(
            r"(?P<order>.*\b(?:feed_forward|shared_experts?|experts\.\d+))\.(?:w1|w3|gate_proj|up_proj)\.weight"
        ),
        ("w2", "down_proj"),
    ),
    _Rule(re.compile(r"(?P<order>.*)\.intermediate\.dense\.weight"), ("output.dense",)),
    _Rule(re.compile(r"(?P<order>.*\bmlp)\.c_fc\.weight"), ("c_proj",), taller=True),
    _Rule(re.compile(r"(?P<order>.*\bmlp)\.c_proj\.weight"), ("c_fc",), taller=True, transposed=True),
    _Rule(re.compile(r"(?P<order>.*\bffn)\.lin1\.weight"), ("lin2",)),
    _Rule(re.compile(r"(?P<order>.*\bDenseReluDense)\.wi(?:_[01])?\.weight"), ("wo",)),
    _Rule(re.compile(r"(?P<order>.*\blayers\.\d+)\.fc1\.weight"), ("fc2",)),
    _Rule(re.compile(r"(?P<order>.*)\.pwconv1\.weight"), ("pwconv2",)),
)
_INNER_NORMS = ("norm", "ffn_ln", "grn")  # between the two matrices of a feed-forward layer
# Convolutions inside a residual block, all but its last one: the next one must read their rows.
_INNER_CONV = re.compile(r"(?P<stem>.*\b(?:layer\d+\.\d+|blocks\.\d+)\.conv|.*\blayers\.\d+\.layer\.)"
                         r"(?P<number>\d)(?P<tail>\.weight|\.convolution\.weight)")  # fmt: skip

# Projections whose columns are the residual stream; not those of cross-attention, which read another stream
_PROJECTION = re.compile(
    r"(?:^|.*\.)(?:attn|attention|self_attn|self_attention|SelfAttention|attention\.self|attention\.attention)\."
    r"(?:(?:[qkv]|qkv|[qkv]_proj|qkv_proj|query|key|value|[qkv]_lin|w[qkv]|query_key_value|Wqkv|W_pack|q_a_proj|"
    r"kv_a_proj_with_mqa)\.weight|in_proj_weight)"
)
_CONV1D_PROJECTION = re.compile(r"(?P<attention>.*\battn)\.c_attn\.weight")
_STREAM = re.compile(
    r"(?P<stream>(?:.*?\.)?(?:(?:stages|layers)\.\d+\.(?:blocks|layers)|layers?|blocks?|h|resblocks|stages?))\.\d+\."
)
_RESIDUAL_BLOCK = re.compile(r"(?P<block>(?P<stage>layer\d+)\.\d+)\.conv1\.weight")
_BRANCH = re.compile(r"(?P<block>layer\d+\.\d+)\.(?:downsample|shortcut)\.")


@dataclass(frozen=True, slots=True)
class Architecture:
    """What the tensors of one checkpoint are, by name and shape.

    weights: the float tensors that take part, in a stable order; heads: those of them that a new task replaces.
    left_out: every other tensor, and why. blocks: each weight's block, by its path, or "stem" or "head". orders: a
    hidden-unit order → the matrices whose rows are its units; reads: → those whose columns (second axis) are, a head
    among them if it follows a chain; vectors: → the one-dimensional tensors indexed by them. residual: a residual
    stream → the matrices whose columns are its channels: they read it, or in GPT-2's (in, out) layout write it.
    rules: order → what told it: "convention", "chain", or one of `structure.RULES`. groups: order → how many units can
    be exchanged among themselves, where it is not all of them: those of one group of a grouped convolution.
    """

    weights: tuple[str, ...]
    heads: frozenset[str]
    left_out: dict[str, str]
    blocks: dict[str, str]
    orders: dict[str, tuple[str, ...]]
    reads: dict[str, tuple[str, ...]]
    vectors: dict[str, tuple[str, ...]]
    residual: dict[str, tuple[str, ...]]
    rules: dict[str, str]
    groups: dict[str, int]

    @property
    def trunk(self) -> tuple[str, ...]:
        """The weights without the heads."""
        return tuple(name for name in self.weights if name not in self.heads)


@once_a_header
def describe(entries: Mapping[str, Shaped]) -> Architecture:
    """What each tensor is. What no convention of names tells is looked for by structure.

    Names are asked by their kind (`by_kind`): a block is looked at once for all that are spelled alike.
    """
    plain = canonical_names(entries)
    kinds = by_kind(plain)
    no_weights = {short: why for kind, names in kinds.items() if (why := _no_weight(kind)) for short in names}
    left_out: dict[str, str] = {}
    for short, name in plain.items():
        if short in no_weights:
            left_out[name] = no_weights[short]
        elif entries[name].dtype not in FLOATS:
            left_out[name] = f"dtype {entries[name].dtype} is no float"
        elif entries[name].count == 0:
            left_out[name] = "empty"
    weights = {short: name for short, name in sorted(plain.items()) if name not in left_out}
    shapes = {short: entries[name].shape for short, name in weights.items()}
    chain = _chain(shapes)
    heads = {short for kind, names in kinds.items() if _HEAD.match(kind) for short in names if short in weights}
    if chain:
        heads = {short for short in weights if _module(short) == _module(chain[-1])}
    of_heads = frozenset(weights[short] for short in heads)
    trunk = {short: shape for short, shape in shapes.items() if short not in heads}
    blocks = dict.fromkeys(weights.values(), "head")
    blocks |= _blocks({name: entries[name].count for name in weights.values() if name not in of_heads})
    links = {_module(link) for link in chain}
    blocks |= {weights[short]: _module(short) for short in trunk if _module(short) in links}
    units = _Units({}, {}, {})
    residual: dict[str, list[str]] = {}
    rules: dict[str, str] = {}
    groups: dict[str, int] = {}
    if chain:
        _chain_units(units, shapes, chain)
        rules |= dict.fromkeys((order for order, rows in units.rows.items() if rows), "chain")
    else:
        kinds = {kind: [short for short in names if short in trunk] for kind, names in kinds.items()}
        ruled = _ruled(trunk, kinds)
        _ruled_units(units, trunk, ruled)
        _inner_units(units, trunk, kinds)
        rules |= dict.fromkeys((order for order, rows in units.rows.items() if rows), "convention")
        structural = _structural_units(units, trunk)
        rules |= {order: found.rule for order, found in structural.items()}
        groups |= {order: found.group for order, found in structural.items() if found.group}
        residual = _streams(trunk, kinds, ruled) | _stages(trunk, kinds)
    rows, columns, vectors, streams = (
        _named(found, weights) for found in (units.rows, units.columns, units.vectors, residual)
    )
    return Architecture(
        tuple(weights.values()), of_heads, left_out, blocks, rows, columns, vectors, streams, rules, groups
    )


def _no_weight(kind: str) -> str:
    """Why tensors of a kind of canonical names take no part, by name alone; "" where they may."""
    if ADAPTERS_OWN.search(kind):
        return "an adapter's own tensor"
    return "a buffer, not a weight" if _NOT_WEIGHTS.search(kind) else ""


def short_names(names: Iterable[str]) -> dict[str, str]:
    """Each name → its canonical name."""
    return {name: short for short, name in canonical_names(names).items()}


def block_of(name: str) -> str | None:
    """The path of the block a tensor belongs to.

    >>> block_of("model.layers.7.mlp.up_proj.weight"), block_of("layer2.0.conv1.weight")
    ('model.layers.7', 'layer2.0')
    >>> block_of("stages.1.blocks.2.conv_dw.weight"), block_of("patch_embed.proj.weight")
    ('stages.1.blocks.2', None)
    """
    match = _BLOCK.match(name)
    return match["block"] if match else None


def _blocks(counts: Mapping[str, int]) -> dict[str, str]:
    """The block of each tensor: by the names of lists of layers, else the member of a numbered list, else "stem"."""
    kinds = by_kind(counts)
    lists = _lists(counts, kinds)
    found: dict[str, str] = {}
    known: dict[str, str] = {}  # one text for all tensors of a block
    for kind, names in kinds.items():
        block, path, number, below = block_of(kind), *_numbered(kind)
        if block is None and not number:
            found |= dict.fromkeys(names, "stem")
            continue
        depth = (block or _member(path, number, below)).count(".") + 1
        for name in names:
            parts = name.split(".", depth)[:depth]
            named = ".".join(parts) if block or ".".join(parts[: path.count(".") + 1]) in lists else "stem"
            found[name] = known.setdefault(named, named)
    return found


def _lists(counts: Mapping[str, int], kinds: Mapping[str, Sequence[str]]) -> set[str]:
    """Modules whose children are numbered and repeated parts, of at least two members and 1 % of all elements.

    counts: name → elements, of the weights without heads; kinds: their names by kind. Only the outermost number of a
    name counts.

    >>> counts = {"down.0.res.1.w": 6, "down.1.w": 6, "mid.w": 9}
    >>> sorted(_lists(counts, by_kind(counts)))
    ['down']
    """
    members: dict[str, Counter[str]] = {}
    for kind, names in kinds.items():
        path, number, _ = _numbered(kind)
        depth = path.count(".") + 1
        for name in names if number else ():
            parts = name.split(".", depth + 1)
            members.setdefault(".".join(parts[:depth]), Counter())[parts[depth]] += counts[name]
    least = MIN_LIST * sum(counts.values())
    return {path for path, found in members.items() if len(found) > 1 and found.total() >= least}


def numbered_members(counts: Mapping[str, int]) -> dict[str, str]:
    """Which tensors stand in repeated parts, by their numbers alone: name → the member of the list. counts: elements.

    >>> numbered_members({"down.0.res.1.w": 6, "down.1.w": 6, "mid.w": 9})
    {'down.0.res.1.w': 'down.0', 'down.1.w': 'down.1'}
    """
    lists = _lists(counts, by_kind(counts))
    return {
        name: f"{path}.{number}" for name in counts for path, number, _ in [_numbered(name)] if number and path in lists
    }


def _member(path: str, number: str, below: Sequence[str]) -> str:
    """The member of a numbered list, or the member of a list right inside that; the name as `_numbered` cuts it."""
    inner = below[:1] if below[:1] and below[0].isdigit() else below[:2]
    nested = len(inner) < len(below) and inner[-1].isdigit() and (len(inner) == 1 or inner[0] in _INNER_LISTS)
    return ".".join([path, number, *(inner if nested else ())])


def _numbered(name: str) -> tuple[str, str, list[str]]:
    """The path before a name's first number, that number, and the components after it; no number: two empty ones."""
    parts = name.split(".")
    at = next((i for i, part in enumerate(parts) if i and part.isdigit()), len(parts))
    return ".".join(parts[:at]), "".join(parts[at : at + 1]), parts[at + 1 :]


def _module(name: str) -> str:
    return name.rpartition(".")[0]


def _named(found: Mapping[str, Iterable[str]], weights: Mapping[str, str]) -> dict[str, tuple[str, ...]]:
    return {key: tuple(weights[short] for short in dict.fromkeys(found[key])) for key in sorted(found) if found[key]}


@dataclass(frozen=True, slots=True)
class _Units:
    """Hidden-unit order → tensors that have its units as rows, as columns, as elements; filled while names are read."""

    rows: dict[str, list[str]]
    columns: dict[str, list[str]]
    vectors: dict[str, list[str]]

    def add(
        self, order: str, row: str, columns: Iterable[str], vectors: Iterable[str],
        shapes: Mapping[str, tuple[int, ...]],
    ) -> None:  # fmt: skip
        """Add a matrix to an order, if one of `columns` reads exactly its rows."""
        readers = [name for name in columns if name != row and _reads(shapes.get(name, ()), shapes[row])]
        rows = self.rows.setdefault(order, [])
        if readers and (not rows or shapes[rows[0]][0] == shapes[row][0]):
            rows.append(row)
            self.columns.setdefault(order, []).extend(readers)
            self.vectors.setdefault(order, []).extend(n for n in vectors if shapes.get(n) == shapes[row][:1])


def _chain_units(units: _Units, shapes: Mapping[str, tuple[int, ...]], chain: list[str]) -> None:
    for link, following in pairwise(chain):
        module = link.rpartition(".")[0]
        units.add(module, link, [following], [f"{module}.bias"], shapes)


@dataclass(frozen=True, slots=True)
class _Ruled:
    """A matrix to which a rule of _UNIT_ROWS applies: its order; below that, the readers and vectors there may be."""

    order: str
    columns: tuple[str, ...]
    vectors: tuple[str, ...]


def _ruled(shapes: Mapping[str, tuple[int, ...]], kinds: Mapping[str, Sequence[str]]) -> dict[str, _Ruled]:
    """Matrix → the rule of _UNIT_ROWS that applies to it."""
    found: dict[str, _Ruled] = {}
    for kind, names in kinds.items():
        for rule in _UNIT_ROWS:
            if not (match := rule.rows.fullmatch(kind)):
                continue
            order = match["order"]
            own = kind[len(order) :]
            columns = [own_of for module in rule.columns if order + (own_of := f".{module}.weight") in kinds]
            # in the (in, out) layout the matrix with the units for columns is the one that makes them
            biases = [name.removesuffix("weight") + "bias" for name in (columns if rule.transposed else [own])]
            inner = [f".{norm}.{parameter}" for norm in _INNER_NORMS for parameter in ("weight", "bias")]
            vectors = tuple(own_of for own_of in (*biases, *inner) if order + own_of in kinds)
            for name in names:
                shape = shapes[name]
                if name not in found and len(shape) > 1 and (not rule.taller or shape[0] > shape[1]):
                    found[name] = _Ruled(name[: -len(own)], tuple(columns), vectors)
    return {name: found[name] for name in shapes if name in found}


def _ruled_units(units: _Units, shapes: Mapping[str, tuple[int, ...]], ruled: Mapping[str, _Ruled]) -> None:
    for short, one in ruled.items():
        readers = [name for own in one.columns if (name := one.order + own) not in ruled]
        units.add(one.order, short, readers, [one.order + own for own in one.vectors], shapes)


def _inner_units(
    units: _Units, shapes: Mapping[str, tuple[int, ...]], kinds: Mapping[str, Sequence[str]]
) -> None:  # fmt: skip
    for short in _of_kinds(_INNER_CONV, shapes, kinds):
        shape = shapes[short]
        inner = _INNER_CONV.fullmatch(short) if len(shape) > 1 else None
        if not inner:
            continue
        stem, number, tail = inner["stem"], int(inner["number"]), inner["tail"]
        before = shapes.get(f"{stem}{number - 1}{tail}", ())
        if len(before) > 1 and not _reads(shape, before):  # grouped
            continue
        order = short.removesuffix(".weight")
        norm = f"{stem[:-4]}bn{number}" if stem.endswith("conv") else f"{stem}{number}.normalization"
        vectors = [f"{order}.bias", f"{norm}.weight", f"{norm}.bias"]
        units.add(order, short, [f"{stem}{number + 1}{tail}"], vectors, shapes)


def _of_kinds(
    pattern: re.Pattern[str], shapes: Mapping[str, tuple[int, ...]], kinds: Mapping[str, Sequence[str]]
) -> list[str]:  # fmt: skip
    """The names of the kinds that a pattern begins, in the order of `shapes`."""
    found = {name for kind, names in kinds.items() if pattern.match(kind) for name in names}
    return [name for name in shapes if name in found] if found else []


def _structural_units(units: _Units, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, structure.Found]:
    """Add what `structure.py` finds beyond the conventions; order → what was found."""
    settled, read = ({name for names in side.values() for name in names} for side in (units.rows, units.columns))
    added = {}
    for order, found in structure.units(shapes, settled, read).items():
        order = order if not units.rows.get(order) else f"{order}.weight"
        units.rows[order], units.columns[order] = [*found.rows], [*found.columns]
        units.vectors[order] = [*found.vectors]
        added[order] = found
    return added


def _streams(
    shapes: Mapping[str, tuple[int, ...]], kinds: Mapping[str, Sequence[str]], ruled: Iterable[str]
) -> dict[str, list[str]]:  # fmt: skip
    """Residual streams of transformers: one, named `stream`, or one for each tower or stage, named by its path."""
    readers = {*ruled}
    for kind, names in kinds.items():
        if _PROJECTION.fullmatch(kind):
            readers.update(names)
        if _CONV1D_PROJECTION.fullmatch(kind):
            for name in (name for name in names if len(shapes[name]) == 2):
                fused = shapes[name][0] == 3 * shapes[name][1]
                readers.add(name if fused else f"{_module(_module(name))}.c_proj.weight")
    found: dict[str, list[str]] = {}
    for kind, names in kinds.items():
        match = _STREAM.match(kind)
        depth = match["stream"].count(".") + 1 if match else 0
        for name in names:
            if name in readers and len(shapes[name]) > 1:
                found.setdefault(".".join(name.split(".", depth)[:depth]) or "stream", []).append(name)
    found = dict(sorted((stream, sorted(names)) for stream, names in found.items()))
    for stream, names in found.items():
        width = Counter(shapes[name][1] for name in names).most_common(1)[0][0]
        found[stream] = [name for name in names if shapes[name][1] == width]
    return {"stream": next(iter(found.values()))} if len(found) == 1 else found


def _stages(shapes: Mapping[str, tuple[int, ...]], kinds: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
    """Residual streams of a ResNet, named by the stage that makes them; its first block still reads the one before.

    >>> small = {"layer1.0.conv1.weight": (4, 4, 3, 3), "layer1.1.conv1.weight": (4, 4, 3, 3)}
    >>> shapes = small | {"layer2.0.conv1.weight": (8, 4, 3, 3), "layer2.1.conv1.weight": (8, 8, 3, 3)}
    >>> {stream: len(names) for stream, names in _stages(shapes, by_kind(shapes)).items()}
    {'layer1': 3, 'layer2': 1}
    """
    names = [name for name in _of_kinds(_RESIDUAL_BLOCK, shapes, kinds) if len(shapes[name]) == 4]
    blocks = [match for name in names if (match := _RESIDUAL_BLOCK.fullmatch(name))]
    blocks.sort(key=lambda match: natural_key(match[0]))
    branching = {match["block"] for name in _of_kinds(_BRANCH, shapes, kinds) if (match := _BRANCH.match(name))}
    found: dict[str, list[str]] = {}
    stream = "stem"
    for i, block in enumerate(blocks):
        found.setdefault(stream, []).append(block[0])
        wider = i + 1 < len(blocks) and shapes[blocks[i + 1][0]][1] != shapes[block[0]][1]
        if wider or block["block"] in branching:
            stream = block["stage"] if block["stage"] not in found else block["block"]
        elif stream == "stem":  # an identity: the first stage goes on with what the stem made
            stream = block["stage"]
            found = {stream: found["stem"]}
    return found


def _reads(reader: tuple[int, ...], rows: tuple[int, ...]) -> bool:
    """Whether a matrix takes exactly these rows as its inputs; not so where gate and up are fused, or groups differ.

    >>> _reads((32, 64), (64, 32)), _reads((32, 64), (128, 32)), _reads((64, 4, 3, 3), (64, 64, 1, 1))
    (True, False, False)
    """
    return len(reader) > 1 and reader[1] == rows[0]


def _chain(shapes: Mapping[str, tuple[int, ...]]) -> list[str]:
    """Matrices of a plain multilayer perceptron in order, the last one its head; empty for anything else.

    >>> _chain({"fc1.weight": (8, 4), "fc1.bias": (8,), "fc2.weight": (6, 8), "fc2.bias": (6,)})
    ['fc1.weight', 'fc2.weight']
    """
    matrices = [name for name, shape in shapes.items() if len(shape) > 1]
    if len(matrices) < 2 or any(len(shapes[name]) != 2 for name in matrices):
        return []
    # One numbered series, then possibly a head. Encoder and decoder, or q, k, v and o, may fit each other without being
    # a chain.
    body = [name for name in matrices if not _HEAD.match(name)]
    series = [re.sub(r"\d+\.weight$", "#", name) for name in body[:1]]
    if not body or not series[0].endswith("#") or any(re.sub(r"\d+\.weight$", "#", name) != series[0] for name in body):
        return []
    matrices.sort(key=lambda name: (bool(_HEAD.match(name)), natural_key(name)))
    linked = all(shapes[a][0] == shapes[b][1] for a, b in pairwise(matrices))
    return matrices if linked else []


def natural_key(name: str) -> list[tuple[int, str]]:
    """A sort key by which `layers.10` comes after `layers.9`; numbers are compared by their length and then as text.

    >>> sorted(["h.10", "h.9", "h.x"], key=natural_key)
    ['h.9', 'h.10', 'h.x']
    """
    parts = ((part, part.lstrip("0")) for part in re.split("([0-9]+)", name))
    return [(len(bare), bare) if re.fullmatch("[0-9]+", part) else (-1, part) for part, bare in parts]
