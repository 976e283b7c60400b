"""What the reader of an answer must know about how it was reached: samples, broken tensors, tests that do not apply."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet

from ..answers.layers import BlockOrigin
from ..answers.lineage import Candidate, Claim
from ..architecture.describe import Architecture
from ..checkpoints.checkpoint import Checkpoint
from ..errors import Note, join_notes
from ..report.sentences import assumption
from ..weights.evidence import WeightsComparison
from ..weights.hidden_permutation import HiddenPermutation
from ..weights.reader import Readings
from ..weights.sampling import MIN_UNITS, Plan
from .session import Question, some

CHECK_ORDER = ("Check it: --check-order.", "check_order=True.")  # hints
LEAST_UNUSED = 0.001  # share of the child's bytes that is worth a word
MAX_REASONS = 5  # candidates whose trouble is told where none can be read


def of_own_base(candidate: Candidate, bases: Sequence[str]) -> Note:
    """That what a candidate declares as its base was compared, though nobody named it."""
    named = " and ".join(bases)
    text = f"{candidate.ref} names {named} as its own base, which was compared, too: they may be siblings."
    return Note("own_base_compared", text)


def of_base_not_read(candidate: Candidate, bases: Sequence[str]) -> Note:
    """That what a candidate declares as its base was not compared, since too many bytes had been read."""
    text = f"{candidate.ref} names {' and '.join(bases)} as its base, for which `max_bytes` leaves no room."
    return Note("own_base_not_read", text)


def of_older(ranked: Sequence[Candidate], parent: str | None) -> list[Note]:
    """What became of the caller's word that the candidates are older, for the first of them."""
    best = ranked[0]
    if best.order_taken:
        text = "That the candidates are older was taken from the caller, not measured"
        return [Note("older_taken", f"{text}: the weights do not show whether {best.ref} came first.")]
    if best.facts.get("older") != "not_taken" or parent is not None:
        return []
    why = "the weights say that the child was not made from it"
    if best.first == "child":
        why = "the weights say that the child came first"
    elif "own_base" in best.facts and best.order and (best.order.position or 0.0) > 0:
        why = "it was itself trained from another model, which may be the parent of both; name that one, too"
    return [Note("older_not_taken", f"That {best.ref} is older was not taken from the caller: {why}.")]


def of_order_of_units(ranked: Sequence[Candidate], known: Sequence[Note]) -> list[Note]:
    """What the p-value of the first candidate, a relative, assumes where it was not looked into. known: other notes."""
    best = ranked[0]
    equal = best.facts.get("equal_share") == 1.0  # whatever the order of units: there is no other explanation
    if not assumption(best) or "agreement" in best.facts or equal:
        return []
    text = f"That {best.ref} is related assumes that nobody arranged the hidden units, which was not checked."
    return [Note("order_not_checked", text, *(CHECK_ORDER if any(n.code == "sampled" for n in known) else ()))]


def of_unnamed_origin(question: Question, readings: Readings) -> list[Note]:
    """For a child that shows as plainly as `inspect` wants it that it was trained from another half-precision model,
    where its files name none: a fact about the file, nobody is meant. Nothing more is read."""
    if question.claims or question.is_adapter or question.asked.ref.kind == "module":
        return []
    if not readings.counts.past(0).trained_since:
        return []
    name, hint = question.asked.ref.name, f"What its values show: hf-lineage inspect {question.asked.ref.name}"
    made = "was trained from, or is a multiple or a merge of, another half-precision model that its files do not name"
    text = f"{name} {made}."
    return [Note("unnamed_origin", text, hint)]


def of_memory(plan: Plan) -> list[Note]:
    """For a plan that keeps the hidden units of some layers only."""
    kept, known = plan.layers
    if kept == known:
        return []
    text = f"Hidden units of {kept:,} of {known:,} layers fit in memory; the seed chose which."
    return [Note("units_in_memory", text, "--memory 4GB keeps more.", 'memory="4GB" keeps more.')]


def of_layers(
    plan: Plan, readings: Readings, origins: Sequence[BlockOrigin], in_order: Mapping[str, HiddenPermutation]
) -> list[Note]:
    """For `trace_layers`. in_order: the candidates whose hidden units were put in the child's order."""
    notes = [*_left_out(*_defects(readings)), *of_memory(plan)]
    if plan.sampled:
        share = f"A sample was read: {100 * plan.share:.2g} % of the weights; what is equal in it may differ elsewhere."
        notes.append(Note("sampled", share))
    notes += [of_units_in_order(ref, found) for ref, found in in_order.items()]
    untested = [
        block.block for block in origins
        if block.index is not None and block.p_value is None and block.parent not in in_order
    ]  # fmt: skip
    if untested:
        why = "the sample is too small for that" if plan.sampled else "none are known there"
        missing = f"No p-value for {some(untested)}: the test needs {MIN_UNITS} hidden units of a layer; {why}."
        notes.append(Note("no_p_value", missing))
    return notes


def of_units_in_order(ref: str, found: HiddenPermutation) -> Note:
    """For a candidate of `trace_layers` whose hidden units stand in another order than the child's."""
    facts = found.to_dict()
    units = f"{facts['units_agreeing']} of {facts['units']}"
    sure = f"; p {found.test.p:.1g} whatever their order" if found.test else ""
    text = (
        f"The hidden units of {ref} stand in another order than the child's (two matchings agree on {units}{sure}). "
        "They were put in the child's order; its blocks have no p-value of their own then."
    )
    return Note("units_in_order", text)


def of_search(rules: Mapping[str, Sequence[str]], requests: int, cut_short: Sequence[Note]) -> list[Note]:
    """For candidates that nobody named: which rules led to how many of them; nothing of those the child declares."""
    if all(rule.startswith("declared") for found in rules.values() for rule in found[:1]):
        return list(cut_short)
    counts = Counter(found[0] for found in rules.values() if found)
    described = ", ".join(f"{rule} ({count})" if count > 1 else rule for rule, count in counts.most_common(5))
    found_by = f"Candidates were searched for, with {requests} requests, and found by: {described}."
    return [Note("searched", found_by), *cut_short]


def of_copies(candidates: Sequence[Candidate]) -> list[Note]:
    """For a parent of which there are equal copies: mirrors are common on the Hub."""
    copies = [ref for c in candidates[:1] for ref in c.copies]
    if not copies:
        return []
    text = f"{candidates[0].ref} has an equal copy: {some(copies)}. The weights cannot tell which of them was used."
    return [Note("equal_copies", text)]


def of_unreadable(candidates: Sequence[Candidate]) -> Note:
    """For a question none of whose candidates could be read: why, of the first ones."""
    why = [join_notes("model_unreadable", c.reasons).prefixed(f"{c.ref}: ") for c in candidates[:MAX_REASONS]]
    more = [f"So it is with {len(candidates) - MAX_REASONS} more."] if len(candidates) > MAX_REASONS else []
    return join_notes("no_candidate_read", ["No candidate could be read.", *why, *more])


def of_unread(candidates: Sequence[Candidate]) -> list[Note]:
    """For candidates that could not be read, beside others that could; the reasons are theirs."""
    unread = [c.ref for c in candidates if c.status == "unreadable"]
    if not unread or len(unread) == len(candidates):
        return []
    text = f"{some(unread)} could not be read: this answer says nothing of {'them' if unread[1:] else 'it'}."
    return [Note("model_unreadable", text)]


def of_one_unreadable(ref: str, *reasons: str) -> Note:
    """For a candidate that could not be read, beside others that could."""
    return join_notes("model_unreadable", reasons).prefixed(f"{ref} could not be read: ")


def of_trace(
    plan: Plan, architecture: Architecture, comparison: WeightsComparison, child: Checkpoint
) -> list[Note]:  # fmt: skip
    """For `trace`. child: as it is stored."""
    notes = of_memory(plan)
    if plan.sampled:
        notes.append(
            Note("sampled", f"A sample was read: {100 * plan.share:.2g} % of the weights; distances are estimates.")
        )
    if plan.sampled and any(len(item.equal) == len(item.compared) for item in comparison.evidence.values()):
        equal, hint = "All that was read of a candidate is equal", "--sample all tells a copy from a partial change."
        notes.append(Note("equal_in_sample", f"{equal}.", hint, text=f"{equal}; {hint}"))
    if any(item.at_floor for item in comparison.evidence.values()):
        floor = "No random permutation came near a candidate's: its p-value is as small as so many draws can show."
        notes.append(Note("p_value_floor", floor))
    bad = {name for item in comparison.evidence.values() for name in item.left_out}
    notes += _left_out(comparison.child_defects, bad)
    if comparison.evidence and all(item.log10_p is None for item in comparison.evidence.values()):
        why = "none of this architecture are known"
        if child.skipped:
            why = "what is left without tensors of unknown dtypes has none"
        if any(reason == "empty" or reason.endswith("is no float") for reason in architecture.left_out.values()):
            why = "what is left without integers and empty tensors has none"
        if architecture.orders:
            why = "the sample is too small for that, read more" if plan.sampled else "its layers have fewer"
        missing = f"No p-value: the permutation test needs layers of at least {MIN_UNITS} hidden units; {why}."
        notes.append(Note("no_p_value", missing))
    return notes


def _defects(readings: Readings) -> tuple[dict[str, str], set[str]]:
    """The child's tensors that cannot be used, and why; the candidates', by the child's names."""
    lost = {name: readings.child_defect(name) for name in readings.moments if not readings.child_usable(name)}
    bad = {
        name for name, having in readings.candidates_with.items() if not all(readings.usable(name, k) for k in having)
    }
    return lost, bad


def _left_out(lost: Mapping[str, str], bad: AbstractSet[str]) -> list[Note]:
    zeros, broken = ([n for n in lost if (lost[n] == "zeros") is zero] for zero in (True, False))
    theirs = sorted({*bad} - {*lost})
    found = (
        ("zeros_left_out", "all zeros in the child", zeros),
        ("broken_left_out", "NaN or Inf in the child", broken),
        ("candidate_left_out", "NaN, Inf or all zeros in a candidate", theirs),
    )
    return [Note(code, f"Left out, {why}: {some(names)}.") for code, why, names in found if names]


def of_unused(child: Checkpoint, architecture: Architecture) -> list[Note]:
    """For tensors of the child that take no part because of what they hold, with their share of its bytes: integers,
    where they are more than `LEAST_UNUSED` of it, and matrices without elements."""
    whole = sum(entry.nbytes for entry in child.values()) + child.skipped_bytes
    integers = [name for name, why in architecture.left_out.items() if why.endswith("is no float")]
    empty = [name for name, why in architecture.left_out.items() if why == "empty"]
    share = sum(child[name].nbytes for name in integers) / max(1, whole)
    notes = []
    if share > LEAST_UNUSED:
        text = f"Left out, integers in the child: {len(integers)} tensors, {100 * share:.2g} % of its bytes"
        notes.append(Note("tensors_left_out", f"{text} ({some(integers, 3)})."))
    if empty:
        text = f"Left out, without an element in the child: {len(empty)} of {len(child)} tensors ({some(empty, 3)})"
        notes.append(
            Note("tensors_left_out", f"{text}. Weights that were not gathered before they were saved look so.")
        )
    return notes


def of_folders(
    claims: Sequence[Claim], candidates: Sequence[Candidate], same: Callable[[str, Candidate], bool]
) -> list[Note]:
    """For claims that a local folder was taken for, by its name."""
    notes: list[Note] = []
    for claim in claims:
        folders = [c.ref for c in candidates if c.ref[0] in "./~" and c.ref != claim.ref and same(claim.ref, c)]
        if claim.status != "not_testable" and folders:
            notes.append(Note("folder_for_claim", f"The folder {folders[0]} was taken for {claim.ref}, by its name."))
    return notes


def of_adapter(child: Checkpoint, base: Checkpoint, misfit: bool = False) -> Note:
    """For both, of an adapter; misfit: its factors cannot belong to the base."""
    if misfit:
        named = f"{child.ref.name} is a LoRA adapter; the base that its files declare, {base.ref.name}, has matrices of"
        return Note("adapter_base_traced", f"{named} other shapes than its factors: nothing was traced in its place.")
    sentence = (
        f"{child.ref.name} is a LoRA adapter and holds no copy of a base; the base its adapter_config.json declares, "
        f"{base.ref.name}, was traced in its place."
    )
    return Note("adapter_base_traced", sentence)
