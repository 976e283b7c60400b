"""What is imported once, before the processes of questions begin as copies of this one (jobs.py)."""

from __future__ import annotations

import asking

asking.warm_up()
