"""Repos in the Hub's cache on this machine: all there is in offline mode."""

from __future__ import annotations

import re
from pathlib import Path

from huggingface_hub import CachedRevisionInfo, constants, scan_cache_dir
from huggingface_hub.errors import CacheNotFound
from huggingface_hub.file_download import repo_folder_name

from ..answers.refs import ModelRef, is_repo_id
from ..errors import HubUnavailableError

COMMIT = re.compile("[0-9a-f]{40}")


def snapshot(ref: ModelRef) -> tuple[str, Path]:
    """(commit, folder) of the newest snapshot of a branch, tag or commit. `HubUnavailableError` if none is."""
    root = Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=ref.name, repo_type="model")
    revision = ref.revision or "main"
    try:
        sha = (root / "refs" / revision).read_text().strip()
    except (OSError, UnicodeDecodeError):
        sha = revision
    folder = root / "snapshots" / sha
    if not COMMIT.fullmatch(sha) or not folder.is_dir():  # what stands in refs is anybody's text, and may lead outside
        raise HubUnavailableError(
            f"`{ref}` is not in the cache, and offline mode is on (HF_HUB_OFFLINE).",
            f"Download it first: `hf download {ref.name}`.",
        )
    return sha, folder


def cached_models() -> dict[str, int]:
    """Models in the cache that have weights there, by name, each with the bytes of its largest snapshot's weights."""
    try:
        repos = scan_cache_dir().repos
    except (CacheNotFound, OSError, ValueError):  # ValueError: the cache is a file
        return {}
    found = {
        repo.repo_id: max((_weights(revision) for revision in repo.revisions), default=0)
        for repo in repos if repo.repo_type == "model" and is_repo_id(repo.repo_id)
    }  # fmt: skip
    return {name: found[name] for name in sorted(found) if found[name]}


def _weights(revision: CachedRevisionInfo) -> int:
    return sum(file.size_on_disk for file in revision.files if file.file_name.endswith(".safetensors"))
