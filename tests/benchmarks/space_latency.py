"""How long a visitor of the Space waits: first useful paint, answers, twenty users at once.

    python tests/benchmarks/space_latency.py [--write]

In front of the stand-in of the Hub, every request to which is answered 50 ms late, on this machine. `--write` keeps the
figures in results/space.json and a picture of the page beside it. Needs Chromium.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import statistics
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
from space_app import Tensors, furnish, running, tuned

LATENCY, ROUNDS, USERS = 0.05, 3, 20
RESULTS = Path(__file__).parent / "results" / "space.json"
BROWSER = next(filter(None, map(shutil.which, ("chromium-headless-shell", "chromium"))), None)
WIDTHS = (48, 96, 64, 10)


def perceptron(seed: int) -> Tensors:
    generator = torch.Generator().manual_seed(seed)
    shapes: dict[str, tuple[int, ...]] = {}
    for i in range(1, len(WIDTHS)):
        shapes |= {f"fc{i}.weight": (WIDTHS[i], WIDTHS[i - 1]), f"fc{i}.bias": (WIDTHS[i],)}
    return {name: torch.randn(shape, generator=generator) / 7 for name, shape in shapes.items()}


def nets() -> dict[str, Tensors]:
    parent = perceptron(1)
    child = tuned(parent, 2, 0.02)
    return {
        "parent": parent,
        "child": child,
        "grandchild": tuned(child, 3, 0.02),
        "stranger": perceptron(4),
        "stranger-2": perceptron(5),
    }


def measure(url: str) -> dict[str, Any]:
    from playwright.sync_api import sync_playwright

    figures: dict[str, list[float]] = {}
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        for _ in range(ROUNDS):
            page = browser.new_context().new_page()
            page.set_default_timeout(120_000)
            started = time.monotonic()
            page.goto(url)
            page.locator("#trace-child input").wait_for()
            figures.setdefault("first useful paint", []).append(time.monotonic() - started)
            started = time.monotonic()
            page.locator("#trace-example-lie").click()
            page.locator("#trace-answer section").wait_for()
            figures.setdefault("example", []).append(time.monotonic() - started)
            for name, query in (
                ("trace, two named", "?child=lab/child&parents=lab/parent,lab/stranger"),
                ("trace, found", "?child=lab/grandchild"),
            ):
                page = browser.new_context().new_page()
                page.set_default_timeout(120_000)
                started = time.monotonic()
                page.goto(f"{url}/{query}")
                page.locator("#trace-answer section").wait_for()
                figures.setdefault(f"{name}, with opening the page", []).append(time.monotonic() - started)
        if "--write" in sys.argv:
            page.locator("#trace-answer").get_by_text("The evidence", exact=True).click()
            page.screenshot(path=RESULTS.with_suffix(".png"), full_page=True)
        browser.close()
    from gradio_client import Client

    client = Client(url, verbose=False)
    calls = {
        "API: trace, two named": ("/trace", "lab/child", ["lab/parent", "lab/stranger"]),
        "API: layers, 12 blocks of three": ("/layers", "merges/hybrid", ["merges/a", "merges/b", "merges/c"]),
        "API: tree of three": ("/family_tree", ["lab/parent", "lab/child", "lab/stranger"]),
    }
    for name, (endpoint, *arguments) in calls.items():
        for _ in range(ROUNDS):
            started = time.monotonic()
            client.predict(*arguments, api_name=endpoint)
            figures.setdefault(name, []).append(time.monotonic() - started)
    told = {name: round(statistics.median(seconds), 2) for name, seconds in figures.items()}
    return {"median seconds": told, f"{USERS} users at once": crowd(url)}


def crowd(url: str) -> dict[str, float | int]:
    """Everybody asks at the same moment; the queue works on two."""
    from gradio_client import Client

    children = ["child", "grandchild", "stranger", "fresh"]
    clients = [Client(url, verbose=False) for _ in range(USERS)]

    def ask(number: int) -> tuple[float, bool]:
        child, started = f"lab/{children[number % 4]}", time.monotonic()
        answer = json.loads(clients[number].predict(child, ["lab/parent"], api_name="/trace"))
        return time.monotonic() - started, answer["child"]["ref"] == child

    with ThreadPoolExecutor(USERS) as pool:
        waited, right = zip(*pool.map(ask, range(USERS)), strict=True)
    return {
        "answered": len(waited), "with the own answer": sum(right), "median seconds": round(statistics.median(waited), 2),
        "longest": round(max(waited), 2),
    }  # fmt: skip


def main() -> None:
    with tempfile.TemporaryDirectory() as folder, running(Path(folder)) as space:
        furnish(space.hub, nets())
        time.sleep(8)  # the Space imports torch meanwhile
        space.hub.fault("delay", on="any", times=None, value=LATENCY)
        figures = measure(space.url)
    about = {
        "date": time.strftime("%Y-%m-%d"),
        "machine": f"{os.cpu_count()} cores, Python {platform.python_version()}",
    }
    text = json.dumps({**about, "latency of the Hub, seconds": LATENCY, "rounds": ROUNDS, **figures}, indent=2)
    print(text)
    if "--write" in sys.argv:
        RESULTS.write_text(text + "\n")


if __name__ == "__main__":
    main()
