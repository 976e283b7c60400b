"""Cards as they are now, and commits and pull requests that change them: all that is ever written to the Hub."""

from __future__ import annotations

import hashlib
import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

from huggingface_hub import CommitOperationAdd, HfApi, get_token
from huggingface_hub.errors import (
    EntryNotFoundError,
    HfHubHTTPError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import httpx

from ..answers.refs import ModelRef, printable
from ..errors import (
    AccessDeniedError,
    CardError,
    CheckpointError,
    HubUnavailableError,
    ModelNotFoundError,
    TokenRefusedError,
    WriteRefusedError,
)
from .client import Hub, HubRepo, RemoteFile, explained, server_name

WEIGHTS = re.compile(r"[^/]+\.safetensors|pytorch_model[^/]*\.bin|adapter_model\.bin")
MAX_PAGES = 100  # of somebody's open pull requests of one repo that are looked through
MAX_IN_GIT = 10 << 20  # bytes of a file that the Hub keeps in git, without a SHA-256 of its own
LOGIN = "Log in with `hf auth login`, or set HF_TOKEN to a token with write access."


class Stale(Exception):
    """The branch has another commit by now: read again."""


class Lost(Exception):
    """No answer came: it may have taken effect or not. Read again."""


class PullRequest(NamedTuple):
    """An open one: its number, where it is, and the ref of its commits."""

    number: int
    url: str
    ref: str


class CardRepository:
    """Reads and writes the cards of model repos with one token (None: the machine's own login)."""

    def __init__(self, token: str | bool | None = None) -> None:
        self.hub = Hub(token)
        self.api = HfApi(endpoint=self.hub.endpoint, token=token, library_name="hf_lineage")

    def repo(self, name: str, revision: str | None = None) -> HubRepo:
        """The repo as it is now at a branch or commit, `main` if none is named."""
        if self.hub.offline:
            raise HubUnavailableError(f"`{name}` can be annotated on the Hub only, but HF_HUB_OFFLINE is set.")
        return self.hub.repo(ModelRef("hub", name, revision))

    def card(self, repo: HubRepo, limit: int) -> bytes:
        """README.md of the repo, byte for byte, counted and held against the hash that the server names; empty where
        the repo has none.

        Raises `CardError` if it is longer than `limit`, `HubUnavailableError` where what came is not the whole file:
        what was not read must not be taken for empty, since the card is replaced by what is made of it.
        """
        try:
            file = RemoteFile(repo, "README.md", whole_repo=True)
        except (CheckpointError, ModelNotFoundError) as error:
            if repo.has_card or type(error) not in (CheckpointError, ModelNotFoundError):
                raise
            return b""  # neither listed nor there
        if file.size > limit:
            raise CardError(f"Expected a README.md of at most {limit:,} bytes, got {file.size:,}. Shorten it.")
        raw = bytes(file.read([(0, file.size)])[0])
        digest, size = (file.digest, None) if _is_hash(file.digest) else self._listed_card(repo)
        if not _is_whole(raw, digest) or size not in (None, len(raw)):
            raise HubUnavailableError(
                f"Expected the README.md of `{repo.ref.name}`, got {len(raw):,} bytes that are not the whole of it, "
                f"from {server_name(self.hub.endpoint)}: a mirror or a proxy changes what it hands on. "
                "Nothing was written.",
                "Use the Hub itself, without HF_ENDPOINT.",
            )
        return raw

    def _listed_card(self, repo: HubRepo) -> tuple[str | None, int | None]:
        """Hash and size of README.md as the API has them; None where it does not tell."""
        for file in self._files(repo.ref):
            if file.get("rfilename") == "README.md":
                digest, size = file.get("blobId"), file.get("size")
                return digest if isinstance(digest, str) else None, size if type(size) is int else None
        return None, None

    def terms(self, ref: ModelRef) -> dict[str, Any]:
        """`license`, `license_name`, `gated` and `private` of a model."""
        data = self.hub.model_data(ref, ["cardData", "gated", "private"])
        card = data.get("cardData")
        licence = {name: card.get(name) if isinstance(card, dict) else None for name in ("license", "license_name")}
        return licence | {name: data.get(name) for name in ("gated", "private")}

    def weights(self, ref: ModelRef) -> dict[str, tuple[str, str]]:
        """Blob id and SHA-256 of each file of weights; the digest is empty where the Hub does not give it.

        Those at the top; only where there are none, those in folders.
        """
        found = {}
        for file in self._files(ref):
            name, large = str(file.get("rfilename")), file.get("lfs")
            if WEIGHTS.fullmatch(name.rpartition("/")[2]):
                if not isinstance(file.get("blobId"), str):  # unknown twice is not the same
                    raise HubUnavailableError(
                        f"Expected the hash of `{name}` of `{ref}` from {server_name(self.hub.endpoint)}, got none.",
                        "Use the Hub itself, without HF_ENDPOINT.",
                    )
                digest = str(large.get("sha256") or "") if isinstance(large, dict) else ""
                found[name] = (str(file.get("blobId")), digest)
        return {name: found[name] for name in found if "/" not in name} or found

    def _files(self, ref: ModelRef) -> list[dict[str, Any]]:
        """The files of a model with size and hashes, as sent."""
        data, _ = self.hub.get(self._url(ref), {"blobs": True}, f"`{ref}`", ref.repo_id)
        files = data.get("siblings") if isinstance(data, dict) else None
        return [file for file in files if isinstance(file, dict)] if isinstance(files, list) else []

    def digests(self, ref: ModelRef) -> dict[str, str]:
        """SHA-256 of each file of weights, as the Hub has it; only what it keeps in git is read for that."""
        repo, result = self.repo(ref.name, ref.revision), {}
        for name, (_, digest) in self.weights(repo.ref).items():
            result[name] = digest or hashlib.sha256(repo.read_small(name, MAX_IN_GIT)).hexdigest()
        return result

    def me(self) -> str:
        """The name of the token's user. Raises `AccessDeniedError` where there is none."""
        self.need_token()
        try:
            data, _ = self.hub.get(f"{self.hub.endpoint}/api/whoami-v2", {}, "Your account")
        except AccessDeniedError as error:
            raise TokenRefusedError("The Hub does not know this token.", LOGIN) from error
        name = data.get("name") if isinstance(data, dict) else None
        if not isinstance(name, str) or not name:
            raise HubUnavailableError("Expected the name of your account, got none from the Hub.", "Try again later.")
        return name

    def need_token(self) -> None:
        """Raises `AccessDeniedError` where there is no token: writing needs one."""
        if self.hub.token is False or (self.hub.token in (None, True) and not get_token()):
            raise AccessDeniedError("Writing to the Hub needs a token, and there is none.", LOGIN)

    def pull_request(self, name: str, title: str, author: str) -> PullRequest | None:
        """The first open pull request of this author with this title."""
        url = f"{self.hub.endpoint}/api/models/{name}/discussions"
        asked = {"type": "pull_request", "status": "open", "author": author}
        found: list[int] = []
        for page in range(MAX_PAGES):
            data, _ = self.hub.get(url, {**asked, "p": page}, f"The list of pull requests of `{name}`", name)
            rows = data.get("discussions") if isinstance(data, dict) else None
            rows = [row for row in rows if isinstance(row, dict)] if isinstance(rows, list) else []
            found += [row["num"] for row in rows if _is_ours(row, title, author)]
            if not rows or int(data.get("start") or 0) + len(rows) >= int(data.get("count") or 0):
                break
        if not found:
            return None
        first = min(found)
        return PullRequest(first, f"{self.hub.endpoint}/{name}/discussions/{first}", f"refs/pr/{first}")

    def commit(
        self, name: str, files: Mapping[str, bytes], *, title: str, text: str = "", parent: str,
        revision: str | None = None, create_pr: bool = False,
    ) -> str:  # fmt: skip
        """One commit of all files on top of `parent`; the address of the pull request or of the commit.

        Raises `Stale` or `Lost` where it has to be looked at again, `CardError` where the Hub refuses the metadata, and
        `WriteRefusedError` with the Hub's own words where this token may not do it.
        """
        operations = [CommitOperationAdd(path, content) for path, content in files.items()]
        with _written(name, self.hub.token, create_pr or revision is not None), warnings.catch_warnings():
            # of a card without metadata, which is the owner's choice, and of the client's own calls
            warnings.simplefilter("ignore")
            done = self.api.create_commit(
                name, operations, commit_message=title, commit_description=text, parent_commit=parent,
                revision=revision, create_pr=create_pr,
            )  # fmt: skip
        return str(done.pr_url or done.commit_url)

    def comment(self, name: str, number: int, text: str) -> str:
        """Say something once in a discussion or pull request; the comment's address, "" where it stands there already.

        Raises `AccessDeniedError` without a token, `WriteRefusedError`, `HubUnavailableError`.
        """
        self.need_token()
        with _written(name, self.hub.token, True):
            about = self.api.get_discussion_details(name, number)
            if any(getattr(event, "content", None) == text for event in about.events):
                return ""
            self.api.comment_discussion(name, number, text)
        return f"{self.hub.endpoint}/{name}/discussions/{number}"

    def _url(self, ref: ModelRef) -> str:
        revision = f"/revision/{quote(ref.revision, safe='')}" if ref.revision else ""
        return f"{self.hub.endpoint}/api/models/{ref.repo_id}{revision}"


def _is_whole(raw: bytes, digest: str | None) -> bool:
    """Whether bytes have the hash that a server names for their file: git's, SHA-1 or SHA-256, by its length.

    Without a hash of these, bytes that were counted are believed, and no bytes are not.
    """
    plain = hashlib.sha1(raw, usedforsecurity=False).hexdigest()
    git = hashlib.sha1(b"blob %d\0" % len(raw) + raw, usedforsecurity=False).hexdigest()
    known = {40: (git, plain), 64: (hashlib.sha256(raw).hexdigest(),)}
    return digest in known[len(digest)] if digest is not None and _is_hash(digest) else bool(raw)


def _is_hash(digest: str | None) -> bool:
    return bool(re.fullmatch("[0-9a-f]{40}|[0-9a-f]{64}", digest or ""))


def _is_ours(row: dict[str, Any], title: str, author: str) -> bool:
    """Whether a row of the list is an open pull request of that title and author, whatever was asked for."""
    by = row.get("author")
    about = (row.get("isPullRequest"), row.get("title"), by.get("name") if isinstance(by, dict) else by)
    return about == (True, title, author) and row.get("status") in ("open", "draft") and isinstance(row.get("num"), int)


@contextmanager
def _written(name: str, token: str | bool | None, pull_request: bool) -> Iterator[None]:
    """Turn what can go wrong with a commit into ours; `explained` has the rest."""
    with explained(f"`{name}`", name):
        try:
            yield
        except (RepositoryNotFoundError, RevisionNotFoundError, EntryNotFoundError):
            raise
        except (httpx.TransportError, HfHubHTTPError) as error:
            _refused(error, name, token, pull_request)
            raise
        except RuntimeError as error:  # of a large file: the client wraps what went wrong
            if isinstance(error.__cause__, (httpx.TransportError, HfHubHTTPError)):
                _refused(error.__cause__, name, token, pull_request)
                raise error.__cause__ from None
            raise
        except ValueError as error:  # of the metadata's validation
            raise CardError(f"The Hub refuses the card of `{name}`{_reply(str(error), token)}.") from error


def _refused(
    error: httpx.TransportError | HfHubHTTPError, name: str, token: str | bool | None, pull_request: bool
) -> None:
    """Raise what a refused or unanswered write means; come back where `explained` knows better."""
    if not isinstance(error, HfHubHTTPError):
        raise Lost(type(error).__name__) from error
    status, reply = error.response.status_code, _reply(error.server_message, token)
    if status == 412:
        raise Stale from error
    if status >= 500:
        raise Lost(f"HTTP {status}") from error
    if status == 401:
        raise TokenRefusedError(f"The Hub does not know this token (HTTP 401){reply}.", LOGIN, repo=name) from error
    if status == 403:
        what = "open a pull request of" if pull_request else "push to"
        other = "unless the owner has disabled pull requests" if pull_request else "or propose it by a pull request"
        raise WriteRefusedError(
            f"This token may not {what} `{name}` (HTTP {status}){reply}. Use one with write access, {other}.", repo=name
        ) from error
    if status in (400, 409, 413, 422):
        raise CardError(f"The Hub refuses the change of `{name}` (HTTP {status}){reply}.", repo=name) from error


def _reply(text: str | None, token: str | bool | None) -> str:
    """The Hub's own words, in one line, never with a token in them."""
    words = re.sub(r"hf_\w+", "hf_…", printable(text or ""))
    if isinstance(token, str) and token:
        words = words.replace(token, "…")
    return f": {words[:300].rstrip('. ')}" if words else ""


def folder_digests(folder: Path) -> dict[str, str]:
    """SHA-256 of each file of weights in a folder, read piece by piece."""
    result = {}
    try:
        for path in sorted(folder.iterdir()):
            if WEIGHTS.fullmatch(path.name) and path.is_file():
                with path.open("rb") as file:
                    result[path.name] = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise CheckpointError(f"Expected to read the weights in `{folder}`, got: {error.strerror}.") from error
    return result
