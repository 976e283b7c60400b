"""What can go wrong, as one tree of errors; and notes, the texts that errors and answers carry.

    LineageError                      base of everything that is raised on purpose
    ├── ReferenceSyntaxError          a text that is neither a repo id nor a path               (also ValueError)
    ├── ArgumentError                 an option outside its range                               (also ValueError)
    │   └── LimitError                more would have to be read than `max_bytes` allows
    ├── TimeOverError                 the time that was given (`timeout`, `--timeout`) is over
    ├── NoCandidatesError             there is nothing to compare the child with                (also ValueError)
    ├── ModelNotFoundError            the repo, revision or folder does not exist
    │   ├── NoRevisionError           the repo exists, the revision does not
    │   └── AccessDeniedError         it exists, or may exist, but this token may not read it
    │       ├── GatedError            the terms of the repo have to be accepted first
    │       ├── TokenRefusedError     the Hub does not know the token: wrong, expired or revoked
    │       └── WriteRefusedError     the token may read the repo, but not change it
    ├── HubUnavailableError           the Hub did not answer: network, offline mode, rate limit
    ├── CheckpointError               the weights cannot be read
    │   ├── NoWeightsError            there is no safetensors file where one is expected
    │   ├── PickleRefusedError        there are only pickled weights, and `allow_pickle` was not given
    │   └── BrokenFileError           a header, an index or a byte range contradicts itself
    ├── CardError                     a model card cannot be edited, or the Hub refuses it
    ├── NothingToCompareError         weights were read, but none of them can be judged
    │   └── NoCandidateReadError      none of the candidates could be read
    ├── MissingExtraError             a package that only one extra installs is not there
    └── ProcessLostError              one of several processes died, hangs or failed

Each error and each note has a code of `CODES`, a sentence for everybody (what was expected, what came instead, what
to do about it), and where a command helps, a hint for the command line and one for Python. Programs read the code and
these fields, never the text. An error says in `repo` which repo on the Hub it is about.
"No parent" is not an error: it is an answer (`Lineage.verdict == "none"`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

# Every code with what it means. A code is never used again for something else.
CODES: Mapping[str, str] = {
    # of errors, one for each class
    "error": "an error of no special kind",
    "reference_syntax": "a text is neither a repo id nor a path",
    "argument": "an option is outside its range",
    "limit": "more would have to be read than max_bytes allows",
    "time_over": "the time that was given is over",
    "no_candidates": "there is nothing to compare the child with",
    "model_not_found": "the repo, revision or folder does not exist",
    "no_revision": "the repo exists, the revision does not",
    "access_denied": "this token may not read the repo",
    "gated": "the terms of the repo have to be accepted first",
    "token_refused": "the Hub does not know the token",
    "write_refused": "the token may read the repo, but not change it",
    "hub_unavailable": "the Hub did not answer",
    "checkpoint": "the weights cannot be read",
    "no_weights": "there is no safetensors file where one is expected",
    "pickle_refused": "there are only pickled weights, and they were not allowed",
    "broken_file": "a header, an index or a byte range contradicts itself",
    "card": "a model card cannot be edited, or the Hub refuses it",
    "nothing_to_compare": "weights were read, but none of them can be judged",
    "no_candidate_read": "none of the candidates could be read",
    "missing_extra": "a package that only one extra installs is not there",
    "process_lost": "one of several processes died, hangs or failed",
    "usage": "a command was typed in a way that it does not know",
    # of what an older version wrote
    "older_text": "a text of the schema hf_lineage/1, which kept no code",
    # of notes: candidates
    "child_dropped": "the child is one of its own candidates and was dropped",
    "named_twice": "a model was named more than once and counts once",
    "model_unreadable": "a candidate could not be read",
    "not_comparable": "the tensors of a candidate do not line up with the child's",
    "adapter_without_weights": "a candidate is a LoRA adapter, which holds no weights of its own",
    "adapter_products": "how alike what two adapters do to the weights is",
    "adapter_merged": "a candidate is an adapter that was merged into the child",
    "adapter_not_merged": "how far a candidate that is an adapter is from being merged into the child",
    "adapter_no_evidence": "comparing a candidate shows nothing of the child, which is an adapter",
    "inputs_rotated": "what reads the input is the same in other coordinates: a rotated residual stream",
    "units_permuted": "what reads the input is the same and the sampled hidden units are not: they may be permuted",
    "order_not_checked": "whether somebody put the hidden units in this order was not looked into",
    "little_compared": "less than half of a model could be compared",
    "mostly_unusable": "most of a model's weights are NaN, Inf or only zeros",
    "names_differ": "two models of a tree line up by order and shapes, and not by names",
    "aligned_by_structure": "names differ: order and shapes tell which tensors belong together",
    "tensors_without_partner": "tensors of the child that a candidate has no partner for were left out",
    "equal_copies": "the parent has equal copies",
    "adapter_base_traced": "the child is an adapter; its declared base was traced in its place",
    "adapter_not_read": "the factors of an adapter are pickled and were not looked at, or it holds none",
    "component_not_read": "components of a pipeline have no safetensors file of their own and were not read",
    "adapter_without_blocks": "a candidate is an adapter and holds no blocks",
    "folder_for_claim": "a local folder was taken for a declared model, by its name",
    "merge_found": "the child is a merge of several candidates",
    "merge_of_child": "a candidate is a merge that the child is a source of, or lies as one does",
    "merge_like": "the child lies towards several candidates as a merge of them that was trained on does",
    "own_base_not_read": "a declared base of a candidate was not compared, for it would have been too many bytes",
    "own_base_compared": "the declared base of what seems to be the parent was compared unasked",
    "unnamed_origin": "the child was trained from another half-precision model, and its files name none",
    "older_taken": "that the candidates are older was taken from the caller, not measured",
    "older_not_taken": "that the candidates are older was not taken from the caller: the weights speak against it",
    # of notes: the search
    "searched": "candidates were searched for: with how many requests, by which rules",
    "search_failed": "an error ended the search early",
    "search_incomplete": "the search left something out because of an error",
    "search_unreadable": "some models that the search found could not be read",
    "search_limit": "the search stopped at its limit of models, requests or bytes",
    # of notes: what was read
    "sampled": "a sample of the weights was read",
    "index_not_asked": "there is an index to ask before the Hub is searched, and it could not be asked",
    "left_early": "candidates that a few hidden units show to be unrelated were read no further",
    "units_in_memory": "the hidden units of some layers only fit in memory",
    "equal_in_sample": "all that was read of a candidate is equal",
    "zeros_left_out": "tensors of the child that hold only zeros were left out",
    "broken_left_out": "tensors of the child that hold NaN or Inf were left out",
    "candidate_left_out": "tensors of a candidate that hold NaN, Inf or only zeros were left out",
    "tensors_left_out": "tensors of the child that hold integers or no elements were left out: their share",
    "unknown_dtype": "tensors of an unknown dtype, or packed in an unknown or broken way, were left out",
    "config_not_read": "`config.json` is no JSON object: what it declares is not known",
    "index_left_aside": "an index names files that are not there; another copy was read",
    "index_entry_lost": "an index promises tensors that no shard holds",
    "copy_left_aside": "a copy beside the files that the index names was not read",
    # of notes: the test
    "p_value_floor": "a p-value is as small as the number of permutations allows",
    "no_p_value": "the permutation test does not apply",
    # of notes: blocks
    "no_common_block": "a candidate has no block of a kind and shape of the child's",
    "equal_blocks": "candidates hold the same block",
    "units_in_order": "a candidate's hidden units were put in the child's order",
    # of notes: trees
    "other_depth": "two models have different numbers of layers, and are in different trees",
    "only_of_architecture": "a model is the only one of its architecture",
    "no_common_matrix": "models share no matrix of which rows could be kept",
    # of notes: features and detectors
    "features_compared": "how features were compared",
    "features_refused": "why a candidate's features could not be compared",
    "features_left_out": "blocks whose features are known, and whose weights are not",
    "linearisation_poor": "no candidate's linearisation holds at that step",
    "no_taylor_form": "why the Taylor form was left out",
    "nearest_by_features": "the candidate whose features are nearest",
    "detector_probability": "the probability that a detector has learned to give",
    "detector_disagrees": "detector and weights disagree",
    "detector_refused": "why a detector could not judge a candidate",
    # of notes: an index
    "no_sketches": "the model has no layer that an index can be asked about",
    # of notes: cards
    "private_model_named": "the card would name a private model",
    "base_model_not_added": "no base_model is added to the card, and why",
    "metadata_kept": "metadata of the card were left as they are, and why",
    "no_bill_of_materials": "the package that writes a bill of materials is not installed",
}


class Note(str):
    """A text for people that programs read by its fields. It is the text itself wherever a text is expected.

    `code`: of `CODES`. `sentence`: what holds everywhere. `hint`: what to type on a command line, a sentence of
    its own, empty where there is nothing to type. `python`: the same in Python, empty where it is no different.
    The text is the sentence, the hint and the Python hint one after the other, unless `text` gives it.

    >>> note = Note("pickle_refused", "It can run code.", "If you trust it: --allow-pickle.", "allow_pickle=True.")
    >>> print(note)
    It can run code. If you trust it: --allow-pickle, or allow_pickle=True.
    >>> note.code, note.sentence
    ('pickle_refused', 'It can run code.')
    """

    code: str
    sentence: str
    hint: str
    python: str

    def __new__(cls, code: str, sentence: str, hint: str = "", python: str = "", *, text: str | None = None) -> Note:
        if code not in CODES:
            raise ValueError(f"unknown code {code!r}: add it to CODES")
        typed = f"{hint.removesuffix('.')}, or {python}" if hint and python else hint or python
        note = super().__new__(cls, " ".join(filter(None, (sentence, typed))) if text is None else text)
        note.code, note.sentence, note.hint, note.python = code, sentence, hint, python
        return note

    def to_dict(self) -> dict[str, str]:
        """The JSON contract: code, sentence, and what to type on a command line, empty where there is nothing."""
        return {"code": self.code, "text": self.sentence, "hint": self.hint}

    @classmethod
    def from_dict(cls, data: Mapping[str, str] | str) -> Note:
        """What `to_dict` wrote, or the plain text of schema `hf_lineage/1`. Raises `KeyError`, `ValueError`."""
        if isinstance(data, str):
            return cls("older_text", data)
        return cls(data["code"], data["text"], data["hint"])

    def __reduce__(self) -> tuple[Any, ...]:
        return _restored, (self.code, self.sentence, self.hint, self.python, str(self))

    def prefixed(self, words: str, code: str | None = None) -> Note:
        """The note with words in front, such as the model that it is about; under another code if one is given."""
        return Note(code or self.code, words + self.sentence, self.hint, self.python, text=words + self)


def _restored(code: str, sentence: str, hint: str, python: str, text: str) -> Note:
    return Note(code, sentence, hint, python, text=text)


def join_notes(code: str, texts: Iterable[str]) -> Note:
    """Notes and plain texts as one note: texts, sentences and hints are each joined by blanks.

    >>> both = join_notes("no_candidate_read", ["None.", Note("gated", "a: is gated.", "Log in.")])
    >>> str(both), both.sentence, both.hint
    ('None. a: is gated. Log in.', 'None. a: is gated.', 'Log in.')
    """
    parts = [text for text in texts if text]
    notes = [part for part in parts if isinstance(part, Note)]
    return Note(
        code,
        " ".join(filter(None, map(sentence_of, parts))),
        " ".join(dict.fromkeys(note.hint for note in notes if note.hint)),
        " ".join(dict.fromkeys(note.python for note in notes if note.python)),
        text=" ".join(parts),
    )


def as_note(code: str, text: str) -> Note:
    """A text as a note: one that is a note already keeps its own code."""
    return text if isinstance(text, Note) else Note(code, text)


def prefixed(words: str, text: str) -> str:
    """A text with words in front of it; a note keeps its fields."""
    return text.prefixed(words) if isinstance(text, Note) else words + text


def code_of(text: str) -> str:
    """A note's code; "" of a plain text."""
    return text.code if isinstance(text, Note) else ""


def sentence_of(text: str) -> str:
    """A note's sentence, without what is to be typed; a plain text as it is."""
    return text.sentence if isinstance(text, Note) else text


class LineageError(Exception):
    """Base of everything hf_lineage raises on purpose; the command line prints it as one line.

    `code`: of `CODES`, one for each class. `note`: the text with its sentence and its hints. `repo`: the id of the repo
    on the Hub that the error is about, None where there is none or it is not known.
    """

    code = "error"

    def __init__(self, sentence: str = "", hint: str = "", python: str = "", *, repo: str | None = None) -> None:
        if isinstance(sentence, Note):
            note = Note(self.code, sentence.sentence, sentence.hint, sentence.python, text=str(sentence))
        else:
            note = Note(self.code, sentence, hint, python)
        super().__init__(note)
        self.note, self.repo = note, repo


class ReferenceSyntaxError(LineageError, ValueError):
    """A model reference that is neither a repo id nor a path."""

    code = "reference_syntax"


class ArgumentError(LineageError, ValueError):
    """An option outside its range."""

    code = "argument"


class LimitError(ArgumentError):
    """More would have to be read than `max_bytes` allows."""

    code = "limit"


class TimeOverError(LineageError):
    """The time that was given to a question, or to a command, is over."""

    code = "time_over"


class NoCandidatesError(LineageError, ValueError):
    """No candidate parent was given or declared."""

    code = "no_candidates"


class ModelNotFoundError(LineageError):
    """The repo, revision or folder does not exist."""

    code = "model_not_found"


class NoRevisionError(ModelNotFoundError):
    """The repo has no such branch, tag or commit."""

    code = "no_revision"


class AccessDeniedError(ModelNotFoundError):
    """The repo is private or gated and this token may not read it."""

    code = "access_denied"


class GatedError(AccessDeniedError):
    """The repo is gated, and its terms were not accepted with this token."""

    code = "gated"


class TokenRefusedError(AccessDeniedError):
    """The Hub does not know the token that was sent: it would refuse public repos, too."""

    code = "token_refused"


class WriteRefusedError(AccessDeniedError):
    """This token may not push to the repo, or not open a pull request of it."""

    code = "write_refused"


class HubUnavailableError(LineageError):
    """The Hub did not answer in a usable way."""

    code = "hub_unavailable"


class CheckpointError(LineageError):
    """The weights cannot be read."""

    code = "checkpoint"


class NoWeightsError(CheckpointError):
    """There is no safetensors file where one is expected."""

    code = "no_weights"


class PickleRefusedError(CheckpointError):
    """Only pickled weights are there, and `allow_pickle` was not given."""

    code = "pickle_refused"


class BrokenFileError(CheckpointError):
    """A header, an index or an answered byte range contradicts itself."""

    code = "broken_file"


class CardError(LineageError):
    """A model card that cannot be edited without harm, or whose metadata the Hub refuses."""

    code = "card"


class NothingToCompareError(LineageError):
    """Weights were read, but none of them can be judged."""

    code = "nothing_to_compare"


class NoCandidateReadError(NothingToCompareError):
    """None of the candidates could be read; the note says why, of the first ones."""

    code = "no_candidate_read"


class MissingExtraError(LineageError):
    """A package is missing that only the extra `extra` installs.

    >>> print(MissingExtraError("Expected datasets, found none", "papers"))
    Expected datasets, found none: pip install 'hf_lineage[papers]'.
    """

    code = "missing_extra"

    def __init__(self, sentence: str, extra: str = "") -> None:
        hint = f"pip install 'hf_lineage[{extra}]'."
        text = f"{sentence}: {hint}"
        super().__init__(sentence if isinstance(sentence, Note) else Note(self.code, f"{sentence}.", hint, text=text))


class ProcessLostError(LineageError):
    """Of the processes that a launcher started, one died, did not answer in time or failed."""

    code = "process_lost"
