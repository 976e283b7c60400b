"""Fifty visitors of the Space at once, two of them abusive: how long the others wait, and how much memory it takes.

    python tests/benchmarks/space_load.py [--write]

In front of the stand-in of the Hub, on this machine; each visitor has an address of its own. First 48 visitors ask one
question each; then the same 48 while two more ask the dearest questions there are, without a pause, and send long
bodies. A visitor that is told that the queue is full asks again a second later. Meanwhile two real browsers, where
Chromium is there: one asks, the other one is on another site's page, which asks in its visitor's name. `--write` keeps
the figures in results/space_load.json.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1]))
from space_app import APP, Space, furnish, running
from space_latency import BROWSER, nets

sys.path.insert(0, str(APP))
from questions import AT_ONCE, MAX_MEMORY, MAX_OF_ONE, WAITING

RESULTS = Path(__file__).parent / "results" / "space_load.json"
VISITORS, ABUSIVE = 50, 2
DEAR = ("merges/deep", ["merges/deep-a", "merges/deep-b", "merges/a", "merges/b", "merges/c"])
CHILDREN = ("child", "grandchild", "stranger", "fresh")
AGAIN, PATIENCE = 1.0, 900.0  # seconds before a visitor asks again, and for which it waits


def ask(space: Space, address: str, child: str, parents: list[str]) -> dict[str, Any]:
    """One question over the API, as a visitor of this address; `status` 200 with the answer, or why there is none."""
    headers = {"X-Forwarded-For": address}
    with httpx.Client(base_url=f"{space.url}/gradio_api/call", headers=headers, timeout=PATIENCE) as client:
        sent = client.post("/trace", json={"data": [child, parents]})
        if sent.status_code != 200:
            return {"status": sent.status_code}
        event = ""
        with client.stream("GET", f"/trace/{sent.json()['event_id']}") as answer:
            for line in answer.iter_lines():
                if line.startswith("event: "):
                    event = line[7:]
                elif line.startswith("data: ") and event in ("complete", "error"):
                    return {"status": 200 if event == "complete" else 503, "data": json.loads(line[6:])}
    return {"status": 0}


def wait(space: Space, number: int) -> dict[str, Any]:
    """How long one visitor waits for the own answer, asking again where the queue is full."""
    child, started, refused = f"lab/{CHILDREN[number % 4]}", time.monotonic(), 0
    while True:
        found = ask(space, f"8.8.{number // 200}.{1 + number % 200}", child, ["lab/parent"])
        seconds = time.monotonic() - started
        if found["status"] == 200:
            said = json.loads(found["data"][0])
            return {"seconds": seconds, "refused": refused, "own": said["child"]["ref"] == child}
        if seconds > PATIENCE:
            return {"seconds": seconds, "refused": refused, "own": False}
        refused += 1
        time.sleep(AGAIN)


def abuse(space: Space, number: int, over: threading.Event, said: list[int]) -> None:
    """Ask the dearest question without a pause, eight at a time, and send a body that is too long."""

    def again(_: int) -> None:
        while not over.is_set():
            with suppress(httpx.HTTPError):
                said.append(ask(space, f"9.9.9.{number + 1}", *DEAR)["status"])
                said.append(httpx.post(f"{space.url}/gradio_api/queue/join", content=b"x" * (1 << 19)).status_code)

    with ThreadPoolExecutor(2 * MAX_OF_ONE) as pool:
        list(pool.map(again, range(2 * MAX_OF_ONE)))


class Memory:
    """Peak of what the Space's processes take together, in bytes (proportional set size, /proc)."""

    def __init__(self) -> None:
        self.peak, self._over = 0, threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Memory:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._over.wait(0.5):
            self.peak = max(self.peak, sum(map(_taken, _descendants(os.getpid()))))


def _descendants(root: int) -> list[int]:
    parents: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        parents.setdefault(int(fields[1]), []).append(int(stat.parent.name))
    found = [*parents.get(root, [])]
    for pid in found:
        found += parents.get(pid, [])
    return [pid for pid in found if b"chrom" not in _command(pid) and b"node" not in _command(pid)]


def _command(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()[:200]
    except OSError:
        return b""


def _taken(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) << 10 for line in lines if line.startswith("Pss:"))


def browsers(space: Space) -> dict[str, Any]:
    """Two browsers: one asks on our page; the other one, signed in, is on a page of another origin, which asks for it."""
    from playwright.sync_api import sync_playwright
    from test_space_browser import ATTACK, SecondSite

    config = httpx.get(f"{space.url}/config", timeout=60).json()
    button = next(each["id"] for each in config["components"] if each["props"].get("elem_id") == "trace-go")
    asks = next(each for each in config["dependencies"] if [button, "click"] in each["targets"] and each["backend_fn"])
    with sync_playwright() as playwright, SecondSite() as site:
        honest, robbed = (playwright.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"]) for _ in "ab")
        page = robbed.new_context().new_page()
        page.set_default_timeout(PATIENCE * 1000)
        page.goto(space.url)
        page.locator("#login").click()
        page.locator("#login", has_text="Sign out").wait_for()
        page.goto(site.url)
        attack = page.evaluate(ATTACK, [space.url, asks["id"], ["vault/gated", "lab/parent", None]])
        page = honest.new_context().new_page()
        page.set_default_timeout(PATIENCE * 1000)
        started = time.monotonic()
        page.goto(f"{space.url}/?child=lab/child&parents=lab/parent,lab/stranger")
        page.locator("#trace-answer section").wait_for()
        seconds = time.monotonic() - started
        robbed.close()
        honest.close()
    return {"answer on our page, seconds": round(seconds, 1), "another origin is told": attack}


def crowd(space: Space, visitors: int, abusive: int) -> dict[str, Any]:
    """So many visitors at the same moment, and so many abusive ones all the while."""
    over, said = threading.Event(), list[int]()
    others = [threading.Thread(target=abuse, args=(space, n, over, said), daemon=True) for n in range(abusive)]
    for thread in others:
        thread.start()
    if abusive:
        time.sleep(2)  # they are there first
    with Memory() as memory, ThreadPoolExecutor(visitors) as pool:
        found = list(pool.map(lambda number: wait(space, number), range(visitors)))
        shown = browsers(space) if abusive and BROWSER and "--no-browser" not in sys.argv else {}
        over.set()
    waited = [each["seconds"] for each in found]
    told = {str(status): said.count(status) for status in sorted({*said})}
    return {
        "visitors": visitors, "abusive": abusive, "with the own answer": sum(each["own"] for each in found),
        "median seconds": round(statistics.median(waited), 1), "longest": round(max(waited), 1),
        "told that the queue is full": sum(each["refused"] for each in found),
        "peak memory, MB": memory.peak >> 20, **({"the abusive were told": told} if abusive else {}), **shown,
    }  # fmt: skip


def main(visitors: int = VISITORS - ABUSIVE, abusive: int = ABUSIVE) -> dict[str, Any]:
    """Without the abusive ones, then with them."""
    with tempfile.TemporaryDirectory() as folder, running(Path(folder)) as space:
        furnish(space.hub, nets())
        ask(space, "8.8.8.8", "lab/child", ["lab/parent"])  # it has started
        rows = [crowd(space, visitors, count) for count in (0, abusive)]
    return {
        "date": time.strftime("%Y-%m-%d"), "machine": f"{os.cpu_count()} cores, Python {platform.python_version()}",
        "at once": AT_ONCE, "places": WAITING, "of one visitor": MAX_OF_ONE, "bound of one question, MB": MAX_MEMORY >> 20,
        "load of the machine before": round(os.getloadavg()[0], 1), "rows": rows,
    }  # fmt: skip


if __name__ == "__main__":
    figures = json.dumps(main(), indent=1)
    print(figures)
    if "--write" in sys.argv:
        RESULTS.write_text(figures + "\n")
