"""Fixtures that every test may use."""

from __future__ import annotations

import json
import os
import platform
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

if "PYTEST_XDIST_WORKER" in os.environ:  # threads of several workers that wait for each other would spin
    os.environ.setdefault("OMP_NUM_THREADS", "1")
if OFFLINE := {"HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"} & {*os.environ}:  # the Hub's client reads them when imported
    for name in OFFLINE:
        del os.environ[name]

import hypothesis
import pytest
import torch
from builders import LAUNCHER
from filelock import FileLock
from safetensors.torch import save, save_file
from torch.optim.optimizer import register_optimizer_step_pre_hook

import hf_lineage as hl
from hf_lineage.experiments.families import Family, Member, train_family, train_trees, train_twins, train_unrelated

pytest_plugins = ["hf_lineage.testing"]

ROOT = Path(__file__).parents[1]
# A test that uses one of these is an integration test: they train, start a server or a process, or are asked for whole
# answers about stored models
INTEGRATION = {"browser", "hub_server", "nursery", "recorder", "space", "folders"}
PROCESSES = {"os.exec", "os.fork", "os.forkpty", "os.posix_spawn", "os.system", "subprocess.Popen"}
FORBIDDEN = PROCESSES | {"socket.bind", "socket.connect"}

# The files of half a minute and more: one of them at the end would be waited for by a worker that has nothing to do.
# Neighbours train no family of each other, or train it in another order
FIRST = (
    "test_space_browser", "test_trace_measured", "test_trust", "test_layers_measured", "test_phylogeny", "test_edits",
    "test_trees_measured", "test_features", "test_recorded_answers", "test_parallel", "test_search_measured", "test_families",
    "test_search", "test_space", "test_lint", "test_audit", "test_memory", "test_demo", "test_learning_free",
    "test_lineage_detector", "test_extras",
)  # fmt: skip

hypothesis.settings.register_profile("tests", deadline=None)  # another test may have the processor
hypothesis.settings.load_profile("tests")

WIDTHS = (48, 96, 64, 10)
Tensors = dict[str, torch.Tensor]


def net(seed: int, base: Tensors | None = None, change: float = 0.3, widths: tuple[int, ...] = WIDTHS) -> Tensors:
    """A multilayer perceptron's state dict: random, or `base` with a random change of that relative size."""
    generator = torch.Generator().manual_seed(seed)
    result: Tensors = {}
    for i in range(1, len(widths)):
        for name, shape in ((f"fc{i}.weight", (widths[i], widths[i - 1])), (f"fc{i}.bias", (widths[i],))):
            fresh = torch.randn(shape, generator=generator) / widths[i - 1] ** 0.5
            result[name] = fresh if base is None else base[name] + change * fresh
    return result


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Each test is `integration` by its fixtures, by hand, or as a large one; else `unit`, doctests too. FIRST first."""
    items.sort(key=lambda item: FIRST.index(item.path.stem) if item.path.stem in FIRST else len(FIRST))
    for item in items:
        started = INTEGRATION.intersection(getattr(item, "fixturenames", ()))
        if started or any(item.get_closest_marker(name) for name in ("large", "hub")):
            item.add_marker("integration")
        if item.get_closest_marker("integration") is None:
            item.add_marker("unit")


class Guard:
    """While a unit test and its fixtures run, a new process, a socket and a step of training raise."""

    def __init__(self) -> None:
        self.test: str | None = None
        sys.addaudithook(lambda event, _: self.refuse(event) if event in FORBIDDEN else None)
        register_optimizer_step_pre_hook(lambda *_: self.refuse("a training step"))

    def refuse(self, what: str) -> None:
        if self.test:
            pytest.fail(f"{what} in {self.test}: mark it `integration`")

    @contextmanager
    def watching(self, item: pytest.Item) -> Iterator[None]:
        self.test = item.name if item.get_closest_marker("unit") else None
        try:
            yield
        finally:
            self.test = None


GUARD = Guard()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(item: pytest.Item) -> Iterator[None]:
    yield
    client = sys.modules.get("huggingface_hub.constants")
    if client and client.HF_HUB_OFFLINE:
        client.HF_HUB_OFFLINE = False  # the tests after it are not to blame
        pytest.fail(f"{item.name} left the Hub's client offline")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup(item: pytest.Item) -> Iterator[None]:
    with GUARD.watching(item):
        return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    with GUARD.watching(item):
        return (yield)


@pytest.fixture(scope="session", autouse=True)
def no_certificates(request: pytest.FixtureRequest) -> Iterator[None]:
    """The stand-in of the Hub speaks no TLS: reading the certificates would take 20 ms for each test's client."""
    with pytest.MonkeyPatch.context() as patch:
        if not any(item.get_closest_marker("hub") for item in request.session.items):
            patch.setattr(ssl.SSLContext, "load_verify_locations", lambda *_, **__: None)
        yield


@pytest.fixture(scope="session")
def make_net() -> Callable[..., Tensors]:
    return net


@pytest.fixture(scope="session")
def nets() -> dict[str, Tensors]:
    """A parent, its child, the child's child, an unrelated network; and one of another architecture."""
    parent = net(1)
    child = net(2, parent)
    return {
        "parent": parent, "child": child, "grandchild": net(3, child), "stranger": net(4), "stranger-2": net(5),
        "other": net(6, widths=(20, 70, 30)),
    }  # fmt: skip


@pytest.fixture
def folders(tmp_path: Path, nets: dict[str, Tensors]) -> dict[str, Path]:
    """The same as model folders."""
    for name, tensors in nets.items():
        (tmp_path / "lab" / name).mkdir(parents=True)
        save_file(tensors, tmp_path / "lab" / name / "model.safetensors")
    return {name: tmp_path / "lab" / name for name in nets}


@pytest.fixture
def lab(hub, nets: dict[str, Tensors]):
    """The same as repos on the stand-in of the Hub; the child's card names its parent."""
    for name, tensors in nets.items():
        files = {"model.safetensors": save(tensors), "config.json": b"{}"}
        if name == "child":
            files["README.md"] = b"---\nbase_model: lab/parent\nbase_model_relation: finetune\n---\n# A child\n"
        hub.add(f"lab/{name}", files)
    return hub


TRACED: dict[str, hl.Lineage] = {}


@pytest.fixture
def lineage(server: Any, request: pytest.FixtureRequest) -> hl.Lineage:
    """The child of a test file's own `server`, traced once: the stand-in gives the same commits the same names. With a
    prior, for such small models: a base that is written into a card takes 0.75."""
    file = request.node.path.name
    if file not in TRACED:
        TRACED[file] = hl.trace("lab/child", ["lab/parent", "lab/stranger"], prior=0.7, token=False)
    return TRACED[file]


# Sizes of the networks of the reduced forms: the smallest that still learn their tasks
SMALL: dict[str, dict[str, Any]] = {
    "fc": {"widths": [256, 96, 64]}, "resnet": {"side": 20}, "vit": {"depth": 2, "patch_size": 14},
    "llama": {"num_hidden_layers": 2}, "bert": {"num_hidden_layers": 1},
}  # fmt: skip
# What the claims of the README are measured on. `large` is the full form; the tests run the reduced one.
FAMILIES: dict[str, dict[str, dict[str, Any]]] = {
    "reduced": {
        "fc": {"roots": 4, "children": 4}, "resnet": {"roots": 3, "children": 2}, "vit": {"roots": 3, "children": 3},
        "llama": {"roots": 3, "children": 2}, "bert": {"roots": 2, "children": 2},
    },
    "large": {
        "fc": {"roots": 12, "children": 16}, "resnet": {"roots": 6, "children": 9}, "vit": {"roots": 6, "children": 6},
        "llama": {"roots": 4, "children": 6}, "bert": {"roots": 4, "children": 6},
    },
}  # fmt: skip
# Checkpoints above 10 MB, for samples of 0.5 %; with the recipes for small ViTs most of these large ones are dropped
BIG: dict[str, dict[str, dict[str, Any]]] = {
    "fc": {"widths": [2560, 256, 128]},
    "resnet": {"channels": [32, 64, 128, 480]},
    "vit": {"embed_dim": 96, "mlp_ratio": 36},
    "llama": {"hidden_size": 256, "intermediate_size": 768, "num_hidden_layers": 3},
}
UNRELATED = {
    "reduced": {"fc": 15, "fc-decayed": 15, "resnet": 6, "vit": 6, "llama": 6},
    "large": {"fc": 57, "fc-decayed": 57, "resnet": 22, "vit": 22},
}


# Four generations and twins, for verdicts: no seed, recipe or width of experiments/calibration.py
_NARROW = {"widths": [384, 128]}
LINES: dict[str, dict[str, dict[str, Any]]] = {
    "reduced": {"fc": {"roots": 3, "children": 2, "sizes": _NARROW}},
    "large": {
        "fc": {"roots": 10, "children": 5}, "resnet": {"roots": 3, "children": 4}, "vit": {"roots": 3, "children": 4},
        "llama": {"roots": 3, "children": 4},
    },
}  # fmt: skip
TWINS = {"reduced": {"fc": 6}, "large": {"fc": 25, "resnet": 8, "vit": 8, "llama": 8}}
SHORTENED = (1.0, 0.4, 0.15)  # twins that trained as long, and less and less


# Children that are then disguised, and strangers of the same data, recipe and size: 78 of them make 3,003 pairs. The
# reduced ones are of FAMILIES and UNRELATED
HIDDEN: dict[str, dict[str, tuple[dict[str, Any], dict[str, int], int]]] = {
    "large": {
        "fc": ({"widths": [256, 128]}, {"roots": 8, "children": 3}, 80), "resnet": ({}, {"roots": 8, "children": 3}, 84),
        "vit": ({"depth": 2}, {"roots": 8, "children": 3}, 84), "llama": ({}, {"roots": 8, "children": 3}, 90),
    },
}  # fmt: skip


# Sources of hybrids and merges: roots of depth 12 (reduced: 4) and 4, and fine-tunes of one base; the reduced Llamas are
# those of FAMILIES
SOURCES: dict[str, dict[str, dict[str, Any]]] = {
    "reduced": {
        "vit": {"roots": 4, "children": 0, "seed": 21, "sizes": {"depth": 4, "mlp_ratio": 2, "patch_size": 14}},
        "resnet": {"roots": 1, "children": 0, "seed": 21, "sizes": SMALL["resnet"]},
    },
    "large": {
        "vit": {"roots": 9, "children": 0, "seed": 31, "sizes": {"depth": 12, "mlp_ratio": 2}},
        "llama": {"roots": 6, "children": 0, "seed": 31, "sizes": {"num_hidden_layers": 4}},
        "llama-siblings": {"roots": 1, "children": 4, "seed": 32, "sizes": {"num_hidden_layers": 4}},
        "resnet": {"roots": 6, "children": 0, "seed": 31},
    },
}  # fmt: skip


# Whole trees with weight decay for every other child, and light fine-tunes: no seed of experiments/phylogenies.py, nor one
# that its rules were looked at with
TREES: dict[str, dict[str, dict[str, Any]]] = {
    "reduced": {
        "fc": {"seed": 71, "roots": 2, "branching": (2, 2, 1), "sizes": {"widths": [512, 128]}},
        "fc-light": {"seed": 72, "roots": 2, "branching": (3, 1), "shorten": 0.1, "sizes": SMALL["fc"]},
    },
    "large": {
        "fc": {"seed": 71}, "fc-many": {"seed": 73, "branching": (6, 3, 1)}, "resnet": {"seed": 71}, "vit": {"seed": 71},
        "llama": {"seed": 71}, **{
            f"{architecture}-light": {"seed": 72, "roots": roots, "branching": (4, 2, 1), "shorten": 0.1}
            for architecture, roots in (("fc", 5), ("resnet", 3), ("llama", 3))
        },
    },
}  # fmt: skip


# What the Lineage Detector is measured on: the paper's protocol at a size for two cores, and its four generations
_FC16 = {"widths": [256, 128, 64], "side": 16}
DETECTOR: dict[str, tuple[Callable[..., Family], str, dict[str, Any]]] = {
    "fc": (train_family, "fc", {"roots": 13, "children": 11, "seed": 901, "sizes": _FC16}),
    "resnet": (train_family, "resnet", {"roots": 7, "children": 18, "seed": 902}),
    "generations": (
        train_trees,
        "fc",
        {"roots": 8, "branching": (9, 9, 9), "seed": 903, "sizes": _FC16, "continued": 1},
    ),
    "bert": (train_family, "bert", {"roots": 4, "children": 6, "seed": 904}),
    "fc-wide": (train_family, "fc", {"roots": 6, "children": 6, "seed": 905, "sizes": {"widths": [384, 96]}}),
    "vit-wide": (train_family, "vit", {"roots": 6, "children": 6, "seed": 906, "sizes": {"embed_dim": 96, "depth": 3}}),
}


def once(train: Callable[..., Family], folder: Path | str, *args: Any, **kwargs: Any) -> Family:
    """Train a family, or read it: the first of pytest's workers trains, another one that needs it waits."""
    Path(folder).parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"), pytest.MonkeyPatch.context() as patch:
        if "PYTEST_XDIST_WORKER" in os.environ:  # the cores are taken; processes for each family would only start up
            patch.setattr(os, "cpu_count", lambda: 1)
        return train(folder, *args, **kwargs)


class Nursery:
    """Families by name, trained when first asked for and kept for the session."""

    planned = TREES  # tests cannot import this file

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def family(self, architecture: str, scale: str) -> Family:
        sizes = SMALL[architecture] if scale == "reduced" else None
        folder = self.folder / scale / architecture
        return once(train_family, folder, architecture, seed=1, sizes=sizes, **FAMILIES[scale][architecture])

    def lines(self, architecture: str, scale: str) -> Family:
        folder = self.folder / scale / f"lines-{architecture}"
        return once(train_family, folder, architecture, generations=4, seed=7, **LINES[scale][architecture])

    def twins(self, architecture: str, scale: str) -> list[Family]:
        shortened = SHORTENED if scale == "large" else SHORTENED[:2]
        return [
            once(
                train_twins, self.folder / scale / f"twins-{architecture}-{shorten}", architecture,
                TWINS[scale][architecture], seed=8, shorten=shorten, sizes=_NARROW if scale == "reduced" else None,
            )
            for shorten in shortened
        ]  # fmt: skip

    def sources(self, kind: str, scale: str) -> Family:
        if kind not in SOURCES[scale]:
            return self.family(kind, scale)
        return once(train_family, self.folder / scale / f"sources-{kind}", kind.split("-")[0], **SOURCES[scale][kind])

    def trees(self, kind: str, scale: str) -> Family:
        folder = self.folder / scale / f"trees-{kind}"
        return once(train_trees, folder, kind.split("-")[0], **TREES[scale][kind])

    def detector(self, kind: str) -> Family:
        train, architecture, arguments = DETECTOR[kind]
        return once(train, self.folder / "large" / f"detector-{kind}", architecture, **arguments)

    def hidden(self, architecture: str, scale: str) -> tuple[Family, Family]:
        if scale == "reduced":
            return self.family(architecture, scale), self.unrelated(architecture, scale)
        sizes, counts, strangers = HIDDEN[scale][architecture]
        folder = self.folder / scale / f"hidden-{architecture}"
        return (
            once(train_family, f"{folder}-family", architecture, seed=11, sizes=sizes, **counts),
            once(train_unrelated, f"{folder}-unrelated", architecture, strangers, seed=11, sizes=sizes),
        )

    def big(self, architecture: str) -> Family:
        folder = self.folder / "big" / architecture
        return once(train_family, folder, architecture, roots=3, children=1, seed=2, sizes=BIG[architecture])

    def unrelated(self, kind: str, scale: str) -> Family:
        decay = {"reduced": 0.04, "large": 0.03}[scale] if kind == "fc-decayed" else 0.0  # narrow layers die later
        folder = self.folder / scale / f"unrelated-{kind}"
        architecture, count = kind.split("-")[0], UNRELATED[scale][kind]
        sizes = SMALL[architecture] if scale == "reduced" else None
        return once(train_unrelated, folder, architecture, count, seed=3, weight_decay=decay, sizes=sizes)

    def strangers(self, architecture: str) -> list[Member]:
        """Networks of a family's shapes and recipes that have nothing to do with it."""
        kinds = [architecture, "fc-decayed"] if architecture == "fc" else [architecture]
        return [member for kind in kinds for member in self.unrelated(kind, "reduced").members]


@pytest.fixture(scope="session")
def nursery(tmp_path_factory: pytest.TempPathFactory, pytestconfig: pytest.Config) -> Nursery:
    """Trained families; `--families FOLDER` keeps them between runs."""
    kept, base = pytestconfig.getoption("--families"), tmp_path_factory.getbasetemp()
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base  # each worker has a folder in there
    return Nursery(Path(kept) if kept else shared / "families")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--families", metavar="FOLDER", help="keep trained families here between runs")


@pytest.fixture(scope="session")
def record() -> Callable[[str, dict[str, Any]], None]:
    """Write the figures of a full measurement beside the commit and the machine they were taken on."""
    commit = subprocess.run(["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True)
    cpu = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line]
    machine = f"{len(cpu)} x {cpu[0].partition(': ')[2]}, Python {platform.python_version()}, torch {torch.__version__}"

    def write(name: str, figures: dict[str, Any]) -> None:
        about = {"commit": commit.stdout.strip(), "date": time.strftime("%Y-%m-%d"), "machine": machine}
        path = ROOT / "tests" / "benchmarks" / "results" / f"{name}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({**about, **figures}, indent=2) + "\n")

    return write


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Torch on one thread: small trainings are faster so, and the same on every machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def no_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if no torchrun had started this process: what the test starts inherits that."""
    for name in LAUNCHER:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")


@pytest.fixture
def run(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., tuple[int, str, str]]:
    """The command line, with its exit code, stdout and stderr: `run("trace", child, "-c", parent)`."""
    from hf_lineage import cli

    if "HF_HOME" not in os.environ:  # the last answer is kept there: not that of who runs the tests
        monkeypatch.setenv("HF_HOME", str(tmp_path_factory.mktemp("home")))

    def call(*arguments: object) -> tuple[int, str, str]:
        code = 0
        try:
            cli.main([str(argument) for argument in arguments])
        except SystemExit as error:
            code = int(error.code or 0)
        return code, *capsys.readouterr()

    return call


@pytest.fixture(scope="module")
def space(tmp_path_factory: pytest.TempPathFactory, nets: dict[str, Tensors]) -> Iterator[Any]:
    """The Gradio Space in a process of its own, in front of a furnished stand-in of the Hub."""
    import space_app

    with space_app.running(tmp_path_factory.mktemp("space")) as running:
        space_app.furnish(running.hub, nets)
        yield running
