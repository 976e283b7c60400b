"""What can go wrong, as one tree.

    LineageError
    ├── ReferenceSyntaxError      a string that is neither a repo id nor a path      (also ValueError)
    ├── ArgumentError             an option outside its range                        (also ValueError)
    │   └── LimitError            more would be read than `max_bytes` allows
    ├── NoCandidatesError         nothing to compare the child with                  (also ValueError)
    ├── ModelNotFoundError        the repo, revision or folder does not exist
    │   ├── NoRevisionError       the repo exists, the revision does not
    │   └── AccessDeniedError     it exists, or may exist, but this token may not read it
    │       ├── GatedError        its terms have to be accepted first
    │       ├── TokenRefusedError the Hub does not know the token: wrong, expired or revoked
    │       └── WriteRefusedError it may be read, but not be changed by this token
    ├── HubUnavailableError       the Hub did not answer: network, offline mode, rate limit
    ├── CheckpointError           the weights cannot be read
    │   ├── NoWeightsError        no safetensors file where one is expected
    │   ├── PickleRefusedError    only pickled weights, and `allow_pickle` was not given
    │   └── BrokenFileError       a header, index or byte range that contradicts itself
    ├── CardError                 a model card that cannot be edited, or that the Hub refuses
    ├── NothingToCompareError     weights were read, but none of them can be judged
    └── ProcessLostError          one of several processes died, hangs or failed

Every message says what was expected, what came instead, and what to do next; `repo` says of which repo on the Hub.
"No parent" is not here: it is an answer (`Lineage.verdict == "none"`).
"""

from __future__ import annotations


class LineageError(Exception):
    """Base of everything hf_lineage raises on purpose; the command line prints it as one line.

    `repo`: the id of the repo on the Hub that it is about, None where there is none or it is not known.
    """

    def __init__(self, *args: object, repo: str | None = None) -> None:
        super().__init__(*args)
        self.repo = repo


class ReferenceSyntaxError(LineageError, ValueError):
    """A model reference that is neither a repo id nor a path."""


class ArgumentError(LineageError, ValueError):
    """An option outside its range."""


class LimitError(ArgumentError):
    """More would have to be read than `max_bytes` allows."""


class NoCandidatesError(LineageError, ValueError):
    """No candidate parent was given or declared."""


class ModelNotFoundError(LineageError):
    """The repo, revision or folder does not exist."""


class NoRevisionError(ModelNotFoundError):
    """The repo has no such branch, tag or commit."""


class AccessDeniedError(ModelNotFoundError):
    """The repo is private or gated and this token may not read it."""


class GatedError(AccessDeniedError):
    """The repo is gated, and its terms were not accepted with this token."""


class TokenRefusedError(AccessDeniedError):
    """The Hub does not know the token that was sent: it would refuse public repos, too."""


class WriteRefusedError(AccessDeniedError):
    """This token may not push to the repo, or not open a pull request of it."""


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


class NoCandidateReadError(NothingToCompareError):
    """No candidate could be read; each says why in its `reasons`."""


class ProcessLostError(LineageError):
    """Of the processes that a launcher started, one died, did not answer in time or failed."""
