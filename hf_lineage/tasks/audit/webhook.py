"""A webhook of the Hub in a Job: `python -m hf_lineage.tasks.audit.webhook` audits what the event is about.

The Hub gives a Job the event in `WEBHOOK_PAYLOAD` (JSON) and the repo in `WEBHOOK_REPO_ID`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

from ...answers.refs import is_repo_id


def subject_of(environment: Mapping[str, str]) -> str:
    """The model that an event is about: `org/name`, of a pull request `org/name@refs/pr/3`; "" for anything else.

    Nothing of an event is believed but a repo id and a number: anybody can open a discussion.

    >>> event = {"repo": {"type": "model", "name": "org/name"}, "discussion": {"num": 3, "isPullRequest": True}}
    >>> subject_of({"WEBHOOK_PAYLOAD": json.dumps(event)}), subject_of({"WEBHOOK_REPO_ID": "org/name"})
    ('org/name@refs/pr/3', 'org/name')
    """
    try:
        event: Any = json.loads(environment.get("WEBHOOK_PAYLOAD") or "{}")
    except ValueError:
        return ""
    repo, about = (event.get(key) or {} for key in ("repo", "discussion")) if isinstance(event, dict) else ({}, {})
    kind = repo.get("type", environment.get("WEBHOOK_REPO_TYPE", "model"))
    name = repo.get("name", environment.get("WEBHOOK_REPO_ID", ""))
    if kind != "model" or not isinstance(name, str) or not is_repo_id(name) or event.get("comment"):
        return ""
    if not about:
        return name
    number = about.get("num")
    return f"{name}@refs/pr/{number}" if about.get("isPullRequest") is True and type(number) is int else ""


def main() -> int:
    """Audit it with the command line, whose exit code is the Job's."""
    subject = subject_of(os.environ)
    if not subject:
        print("This event is about no model: nothing to audit.", file=sys.stderr)
        return 0
    command = [sys.executable, "-m", "hf_lineage", "audit", "-", "--comment"]
    return subprocess.run(command, input=f"{subject}\n", text=True, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
