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
    root = Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=ref.repo_id, repo_type="model")
    revision = ref.revision or "main"
    try:
        sha = (root / "refs" / revision).read_text().strip()
    except (OSError, UnicodeDecodeError):
        sha = revision
    folder = root / "snapshots" / sha
    # what stands in refs is anybody's text, and may lead outside
    if COMMIT.fullmatch(sha) and folder.is_dir():
        return sha, folder
    there = _commits(root)
    noted = (root / "refs" / revision).exists()
    if ref.revision is None and not noted and len(there) == 1:  # fetched by its commit: no branch is noted
        return there[0], root / "snapshots" / there[0]
    if there:
        named = ", ".join(f"`{ref.repo_id}@{commit}`" for commit in there[:3])
        raise HubUnavailableError(
            f"`{ref}` is not in the cache, and offline mode is on (HF_HUB_OFFLINE). It has {named}: name that commit."
        )
    raise HubUnavailableError(
        f"`{ref}` is not in the cache, and offline mode is on (HF_HUB_OFFLINE).",
        f"Download it first: `hf download {ref.repo_id}`.",
    )


def snapshot_of(folder: Path) -> tuple[str, str] | None:
    """(repo id, commit) of a folder that is, or lies in, a snapshot in a cache; None where it does not.

    >>> snapshot_of(Path(f"/hub/models--org--name/snapshots/{'a' * 40}"))[0]
    'org/name'
    """
    for place in (folder, *folder.parents):
        name = place.parent.parent.name
        if place.parent.name == "snapshots" and COMMIT.fullmatch(place.name) and name.startswith("models--"):
            repo = "/".join(name.removeprefix("models--").split("--"))
            return (repo, place.name) if is_repo_id(repo) else None
    return None


def newest_snapshot(root: Path) -> Path | None:
    """The snapshot that a repo's folder in a cache (`models--org--name`) stands for: of main, or the only one there
    is."""
    try:
        main = (root / "refs" / "main").read_text().strip()
    except (OSError, UnicodeDecodeError):
        main = ""
    there = _commits(root)
    if main in there:
        return root / "snapshots" / main
    return root / "snapshots" / there[0] if len(there) == 1 else None


def _commits(root: Path) -> list[str]:
    try:
        return sorted(path.name for path in (root / "snapshots").iterdir() if COMMIT.fullmatch(path.name))
    except OSError:
        return []


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
