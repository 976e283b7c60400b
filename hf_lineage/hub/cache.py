"""Repos in the Hub's cache on this machine: all there is in offline mode."""

from __future__ import annotations

import os
from pathlib import Path

from huggingface_hub import constants, scan_cache_dir
from huggingface_hub.errors import CacheNotFound
from huggingface_hub.file_download import repo_folder_name

from ..errors import HubUnavailableError
from ..records import ModelRef, is_repo_id
from .local import LocalRepo


class CachedRepo(LocalRepo):
    """A snapshot in the cache, under the name it has on the Hub. Only what was downloaded is there."""

    def __init__(self, ref: ModelRef, requested: str, folder: Path) -> None:
        super().__init__(ModelRef("local", str(folder)))
        self.ref, self.requested = ref, requested
        self.created: str | None = None


def cached_repo(ref: ModelRef) -> CachedRepo:
    """The newest snapshot of a branch, tag or commit. Raises `HubUnavailableError` where there is none."""
    root = Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=ref.name, repo_type="model")
    revision = ref.revision or "main"
    try:
        sha = (root / "refs" / revision).read_text().strip()
    except (OSError, UnicodeDecodeError):
        sha = revision
    folder = root / "snapshots" / sha
    inside = os.path.normpath(folder).startswith(os.path.normpath(root) + os.sep)
    if not inside or not sha or not folder.is_dir():
        raise HubUnavailableError(
            f"`{ref}` is not in the cache, and offline mode is on (HF_HUB_OFFLINE). Download it first: "
            f"`hf download {ref.name}`."
        )
    return CachedRepo(ModelRef("hub", ref.name, sha), str(ref), folder)


def cached_models() -> list[str]:
    """Ids of the models in the cache that have weights there, by name."""
    try:
        repos = scan_cache_dir().repos
    except (CacheNotFound, OSError):
        return []
    found = [
        repo.repo_id for repo in repos if repo.repo_type == "model" and is_repo_id(repo.repo_id) and _weights(repo)
    ]
    return sorted(found)


def _weights(repo: object) -> bool:
    revisions = getattr(repo, "revisions", ())
    return any(file.file_name.endswith(".safetensors") for revision in revisions for file in revision.files)
