"""What the tensors of a checkpoint are, told from their names: weights or not, head or trunk, block, hidden units.

A naming convention is a row of a table; nothing here reads a weight or runs a model's code.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol

FLOATS = frozenset({"F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ", "F4"})
COMPARABLE = 0.5  # share of the child's trunk a candidate must have, tensor by tensor, to be compared at all

# wrappers and base-model prefixes that come and go when a model is saved with another head
_PREFIX = re.compile(
    r"^(?:(?:module|_orig_mod|model|base_model|bert|roberta|distilbert|electra|deberta|albert|mpnet|vit|deit|beit|"
    r"swin|convnext|resnet|transformer|gpt_neox|backbone)\.)+"
)
# buffers: counters, running statistics of the data, masks, tables that are computed
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

# Where the rows of a matrix are the hidden units of one layer, in an order that training leaves arbitrary. `order`
# names that order; tensors of one order (gate and up) are tested together. `taller`: only if it has more rows
# than columns, which tells GPT-2's (in, out) layout from a Linear of the same name. A matrix counts only if another
# one of its module reads exactly its rows: fused gate-and-up and grouped convolutions have fewer symmetries.
_UNIT_ROWS: tuple[tuple[re.Pattern[str], bool], ...] = (
    (re.compile(r"(?P<order>.*\bmlp)\.(?:gate_proj|up_proj|fc1|fc1_g|fc1_x|w1|dense_h_to_4h)\.weight"), False),
    (re.compile(r"(?P<order>.*\b(?:feed_forward|experts\.\d+))\.(?:w1|w3|gate_proj|up_proj)\.weight"), False),
    (re.compile(r"(?P<order>.*)\.intermediate\.dense\.weight"), False),
    (re.compile(r"(?P<order>.*\bmlp)\.(?:c_fc|c_proj)\.weight"), True),
    (re.compile(r"(?P<order>.*\bffn)\.lin1\.weight"), False),
    (re.compile(r"(?P<order>.*\bDenseReluDense)\.wi(?:_[01])?\.weight"), False),
    (re.compile(r"(?P<order>.*\blayers\.\d+)\.fc1\.weight"), False),
    (re.compile(r"(?P<order>.*)\.pwconv1\.weight"), False),
)
# Rows of the convolutions inside a residual block, all but its last one: the next one must read them.
_INNER_CONV = re.compile(r"(?P<stem>.*\b(?:layer\d+\.\d+|blocks\.\d+)\.conv|.*\blayers\.\d+\.layer\.)"
                         r"(?P<number>\d)(?P<tail>\.weight|\.convolution\.weight)")  # fmt: skip


class Shaped(Protocol):
    """What this module needs to know of a tensor: `records.Entry` has it."""

    @property
    def dtype(self) -> str: ...
    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def count(self) -> int: ...


@dataclass(frozen=True, slots=True)
class Architecture:
    """The tensors of one checkpoint, told apart by name and shape.

    `weights` are the float tensors that take part, in a stable order, `heads` those of them that a new task
    replaces; `left_out` says why any other does not; `orders` maps a hidden-unit order to the matrices whose rows
    are its units.
    """

    weights: tuple[str, ...]
    heads: frozenset[str]
    left_out: dict[str, str]
    blocks: dict[str, str]
    orders: dict[str, tuple[str, ...]]

    @property
    def trunk(self) -> tuple[str, ...]:
        """The weights without the heads."""
        return tuple(name for name in self.weights if name not in self.heads)


@dataclass(frozen=True, slots=True)
class Alignment:
    """Which tensor of the candidate lines up with which of the child: child's name → candidate's name.

    `coverage` is the share of the child's trunk, in elements, that has a partner.
    """

    pairs: dict[str, str]
    unmatched: dict[str, str]
    coverage: float

    @property
    def comparable(self) -> bool:
        """Whether enough lines up to judge the candidate."""
        return self.coverage >= COMPARABLE

    def explain(self) -> str:
        """Why the candidate is not comparable: the share that lines up, and the first tensor that does not."""
        share = f"{100 * self.coverage:.0f} % of the child's weights have a partner of the same name and shape"
        if not self.unmatched:
            return share
        name = min(self.unmatched)
        return f"only {share}; for example {name}: {self.unmatched[name]}"


def describe(entries: Mapping[str, Shaped]) -> Architecture:
    """Tell the tensors of a checkpoint apart. An unknown convention still has weights, only no hidden units."""
    plain = normalise(entries)
    left_out: dict[str, str] = {}
    for short, name in plain.items():
        if _NOT_WEIGHTS.search(short):
            left_out[name] = "a buffer, not a weight"
        elif entries[name].dtype not in FLOATS:
            left_out[name] = f"dtype {entries[name].dtype} is no float"
        elif entries[name].count == 0:
            left_out[name] = "empty"
    weights = {short: name for short, name in sorted(plain.items()) if name not in left_out}
    shapes = {short: entries[name].shape for short, name in weights.items()}
    chain = _chain(shapes)
    heads = {name for short, name in weights.items() if _HEAD.match(short)}
    if chain:
        heads = {name for short, name in weights.items() if short.rpartition(".")[0] == chain[-1].rpartition(".")[0]}
    blocks = {name: "head" if name in heads else _block(short, name, chain) for short, name in weights.items()}
    orders: dict[str, list[str]] = {}
    for short, name in weights.items():
        if name not in heads and (order := _unit_order(short, shapes, chain)):
            orders.setdefault(order, []).append(name)
    return Architecture(
        tuple(weights.values()), frozenset(heads), left_out, blocks, {k: tuple(v) for k, v in sorted(orders.items())}
    )


def align(
    child: Mapping[str, Shaped], candidate: Mapping[str, Shaped], architecture: Architecture | None = None
) -> Alignment:
    """Line up two checkpoints by normalised name and equal shape; `architecture` is the child's, if known already."""
    ours, plain, theirs = architecture or describe(child), normalise(child), normalise(candidate)
    short_of = {name: short for short, name in plain.items()}
    pairs: dict[str, str] = {}
    unmatched: dict[str, str] = {}
    for name in ours.weights:
        partner = theirs.get(short_of[name])
        if partner is None:
            unmatched[name] = "no such tensor in the candidate"
        elif candidate[partner].shape != child[name].shape:
            unmatched[name] = f"shape {list(child[name].shape)} against {list(candidate[partner].shape)}"
        elif candidate[partner].dtype not in FLOATS:
            unmatched[name] = f"dtype {candidate[partner].dtype} is no float"
        else:
            pairs[name] = partner
    total = sum(child[name].count for name in ours.trunk)
    matched = sum(child[name].count for name in ours.trunk if name in pairs)
    return Alignment(pairs, unmatched, matched / total if total else 0.0)


def normalise(names: Iterable[str]) -> dict[str, str]:
    """Normalised name → name: wrappers and base-model prefixes stripped where that stays unambiguous.

    >>> normalise(["bert.pooler.dense.bias", "classifier.bias"])
    {'pooler.dense.bias': 'bert.pooler.dense.bias', 'classifier.bias': 'classifier.bias'}
    """
    names = list(names)
    short = {_PREFIX.sub("", name): name for name in names}
    return short if len(short) == len(names) else {name: name for name in names}


def block_of(name: str) -> str | None:
    """The path of the block a tensor belongs to.

    >>> block_of("model.layers.7.mlp.up_proj.weight"), block_of("layer2.0.conv1.weight")
    ('model.layers.7', 'layer2.0')
    >>> block_of("stages.1.blocks.2.conv_dw.weight"), block_of("patch_embed.proj.weight")
    ('stages.1.blocks.2', None)
    """
    match = _BLOCK.match(name)
    return match["block"] if match else None


def _block(short: str, name: str, chain: list[str]) -> str:
    module = short.rpartition(".")[0]
    if any(module == link.rpartition(".")[0] for link in chain):
        return module
    return block_of(name) or "stem"


def _unit_order(short: str, shapes: Mapping[str, tuple[int, ...]], chain: list[str]) -> str | None:
    shape = shapes[short]
    if short in chain:
        return short.rpartition(".")[0]
    if len(shape) < 2:
        return None
    for pattern, taller in _UNIT_ROWS:
        match = pattern.fullmatch(short)
        if match and (not taller or shape[0] > shape[1]):
            readers = (shapes[other] for other in shapes if other.startswith(match["order"]) and other != short)
            return match["order"] if any(_reads(reader, shape) for reader in readers) else None
    inner = _INNER_CONV.fullmatch(short)
    if inner:
        number = int(inner["number"])
        before, after = (shapes.get(f"{inner['stem']}{n}{inner['tail']}", ()) for n in (number - 1, number + 1))
        grouped = len(before) > 1 and not _reads(shape, before)
        return short.rpartition(".")[0] if _reads(after, shape) and not grouped else None
    return None


def _reads(reader: tuple[int, ...], rows: tuple[int, ...]) -> bool:
    """Whether a matrix takes exactly these rows as its inputs: not so where gate and up are fused, or groups differ.

    >>> _reads((32, 64), (64, 32)), _reads((32, 64), (128, 32)), _reads((64, 4, 3, 3), (64, 64, 1, 1))
    (True, False, False)
    """
    return len(reader) > 1 and reader[1] == rows[0]


def _chain(shapes: Mapping[str, tuple[int, ...]]) -> list[str]:
    """Matrices of a plain multilayer perceptron in order, the last one its head; empty for anything else.

    >>> _chain({"fc1.weight": (8, 4), "fc1.bias": (8,), "fc2.weight": (6, 8), "fc2.bias": (6,)})
    ['fc1.weight', 'fc2.weight']
    """
    matrices = sorted((name for name, shape in shapes.items() if len(shape) > 1), key=_natural)
    if len(matrices) < 2 or any(len(shapes[name]) != 2 for name in matrices):
        return []
    # one numbered series; a head called `head` or `classifier` comes last whatever its name. Encoder and decoder, or
    # q, k, v and o, may fit each other without being a chain.
    matrices.sort(key=lambda name: bool(_HEAD.match(name)))
    series = {re.sub(r"\d+\.weight$", "#", name) for name in matrices if not _HEAD.match(name)}
    if len(series) != 1 or not min(series).endswith("#"):
        return []
    linked = all(shapes[a][0] == shapes[b][1] for a, b in pairwise(matrices))
    return matrices if linked else []


def _natural(name: str) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]
