"""What can go wrong, as one tree.

    LineageError
    ├── ReferenceSyntaxError      a string that is neither a repo id nor a path      (also ValueError)
    ├── ArgumentError             an option outside its range, or over a limit       (also ValueError)
    ├── NoCandidatesError         nothing to compare the child with                  (also ValueError)
    ├── ModelNotFoundError        the repo, revision or folder does not exist
    │   └── AccessDeniedError     it exists, or may exist, but this token may not read it
    ├── HubUnavailableError       the Hub did not answer: network, offline mode, rate limit
    ├── CheckpointError           the weights cannot be read
    │   ├── NoWeightsError        no safetensors file where one is expected
    │   ├── PickleRefusedError    only pickled weights, and `allow_pickle` was not given
    │   └── BrokenFileError       a header, index or byte range that contradicts itself
    ├── CardError                 a model card that cannot be edited, or that the Hub refuses
    ├── NothingToCompareError     weights were read, but none of them can be judged
    └── ProcessLostError          one of several processes died, hangs or failed

Every message says what was expected, what came instead, and what to do next.
"No parent" is not here: it is an answer (`Lineage.verdict == "none"`).
"""

from __future__ import annotations


class LineageError(Exception):
    """Base of everything hf_lineage raises on purpose; the command line prints it as one line."""


class ReferenceSyntaxError(LineageError, ValueError):
    """A model reference that is neither a repo id nor a path."""


class ArgumentError(LineageError, ValueError):
    """An option outside its range, or a request over a limit."""


class NoCandidatesError(LineageError, ValueError):
    """No candidate parent was given or declared."""


class ModelNotFoundError(LineageError):
    """The repo, revision or folder does not exist."""


class AccessDeniedError(ModelNotFoundError):
    """The repo is private or gated and this token may not read it."""


class HubUnavailableError(LineageError):
    """The Hub did not answer in a usable way."""


class CheckpointError(LineageError):
    """The weights cannot be read."""


class NoWeightsError(CheckpointError):
    """There is no safetensors file where one is expected."""


class PickleRefusedError(CheckpointError):
    """Only pickled weights are there, and `allow_pickle` was not given."""


class BrokenFileError(CheckpointError):
    """A header, an index or an answered byte range contradicts itself."""


class CardError(LineageError):
    """A model card that cannot be edited without harm, or whose metadata the Hub refuses."""


class NothingToCompareError(LineageError):
    """Weights were read, but none of them can be judged."""


class ProcessLostError(LineageError):
    """Of the processes that a launcher started, one died, did not answer in time or failed."""
