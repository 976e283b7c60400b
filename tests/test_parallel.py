"""Several processes and devices: shares, the same answer as one process to the last bit, and what happens when one dies."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from builders import processes
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

import hf_lineage
from hf_lineage.architecture.align import align
from hf_lineage.architecture.describe import describe
from hf_lineage.checkpoints.opener import open_checkpoint
from hf_lineage.errors import ArgumentError, LineageError, ProcessLostError
from hf_lineage.parallel import World, shared, together, world
from hf_lineage.weights.reader import SPANS, Readings, _agree, _spans, read_aligned
from hf_lineage.weights.sampling import BLOCK, grid, make_plan

pytestmark = pytest.mark.usefixtures("no_launcher")

Folders = dict[str, Path]
SIZES = st.lists(st.integers(0, 10**12), max_size=60)


def python(*arguments: object) -> list[str]:
    return [sys.executable, *map(str, arguments)]


class TestShares:
    @given(SIZES, st.integers(1, 9))
    def test_every_item_has_one_owner(self, sizes: list[int], size: int) -> None:
        shares = [World(rank, size).share(sizes) for rank in range(size)]
        assert [i for share in shares for i in share] == list(range(len(sizes))), "runs of neighbours, in order"

    @given(SIZES.filter(any), st.integers(1, 9))
    def test_they_are_balanced_but_for_one_item(self, sizes: list[int], size: int) -> None:
        for rank in range(size):
            ours = sum(sizes[i] for i in World(rank, size).share(sizes))
            assert abs(ours - sum(sizes) / size) <= max(sizes) + 1

    def test_one_huge_tensor_is_shared_too(self) -> None:
        pieces = grid("t", (40, BLOCK))
        sizes = [sum(p.stop - p.start for p in span) for span in _spans(pieces, 40 * BLOCK)]
        assert [len(World(rank, 4).share(sizes)) for rank in range(4)] == [10] * 4

    def test_spans_are_few_and_of_one_tensor(self) -> None:
        pieces = [piece for name in ("a", "b", "c") for piece in grid(name, (2000, BLOCK))]
        spans = _spans(pieces, 6000 * BLOCK)
        assert [piece for span in spans for piece in span] == pieces and len(spans) <= 1.1 * SPANS
        assert all(len({piece.name for piece in span}) == 1 for span in spans)


class TestWorld:
    def test_alone(self) -> None:
        assert world() == World(0, 1) and world().main and world().gather("x") == ["x"]

    def test_a_launchers(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("RANK", "2")
        assert world() == World(0, 1), "somebody else's variable"
        monkeypatch.setenv("WORLD_SIZE", "3")
        assert world() == World(2, 3) and not world().main

    @pytest.mark.parametrize(
        ("rank", "size"), [("3", "3"), ("", "2"), ("x", "2"), ("0", "0"), ("-1", "2"), ("0", "two")]
    )
    def test_nonsense_is_refused(self, monkeypatch: pytest.MonkeyPatch, rank: str, size: str) -> None:
        monkeypatch.setenv("RANK", rank)
        monkeypatch.setenv("WORLD_SIZE", size)
        with pytest.raises(ArgumentError, match="Expected RANK below WORLD_SIZE"):
            world()

    def test_a_timeout_is_a_number(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("HF_LINEAGE_TIMEOUT", "soon")
        with pytest.raises(ArgumentError, match="HF_LINEAGE_TIMEOUT"):
            World(0, 2).gather(1)

    def test_alone_an_error_stays_what_it_is(self) -> None:
        with pytest.raises(ZeroDivisionError):
            together(lambda: 1 / 0)()

    @pytest.mark.integration
    def test_nothing_heavy_without_a_launcher(self) -> None:
        code = (
            "import sys; from hf_lineage.parallel import world, together; world().gather(together(lambda: 1)());"
            "print({m.split('.')[0] for m in sys.modules} & {'torch', 'accelerate', 'numpy'});"
            "import hf_lineage.weights.reader; print('accelerate' in sys.modules)"
        )
        assert subprocess.check_output(python("-c", code), text=True).split() == ["set()", "False"]

    def test_it_has_one_home(self) -> None:
        for path in Path(hf_lineage.__file__).parent.rglob("*.py"):
            if path.name != "parallel.py":
                assert not re.search(r"torch\.distributed|PartialState|import distributed", path.read_text()), path


class TestShared:
    def test_alone_it_is_the_work_itself(self) -> None:
        assert shared(lambda mine: [x + 1 for x in mine], range(5)) == [1, 2, 3, 4, 5] and shared(list, []) == []

    @given(SIZES, st.integers(1, 9))
    def test_each_item_is_done_once_and_everybody_has_all(self, sizes: list[int], size: int) -> None:
        done: list[int] = []

        class Gathering(World):
            def gather(self, value: list[int]) -> list[list[int]]:
                every = [World(rank, size).share(sizes or []) for rank in range(size)]
                assert value == [10 * i for i in every[self.rank]]
                return [[10 * i for i in mine] for mine in every]

        def work(mine: list[int]) -> list[int]:
            done.extend(mine)
            return [10 * i for i in mine]

        for rank in range(size):
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr("hf_lineage.parallel.world", lambda rank=rank: Gathering(rank, size))
                assert shared(work, range(len(sizes)), sizes) == [10 * i for i in range(len(sizes))]
        assert done == [*range(len(sizes))]


class TestDevices:
    @pytest.mark.parametrize("many", [["cpu", "cpu"], ["cpu"] * 5])
    def test_several_give_what_one_gives(self, make_net, tmp_path: Path, many: list[str]) -> None:
        one, other = (read(make_net, tmp_path / str(len(device)), device) for device in (["cpu"], many))
        for name, moments in one.moments.items():
            for field in ("gram", "s1", "squares"):
                np.testing.assert_array_equal(getattr(moments, field), getattr(other.moments[name], field))
        for name in one.units.rows:
            assert all(torch.equal(one.units.matrix(m, name), other.units.matrix(m, name)) for m in range(3))


def read(make_net, folder: Path, device: list[str]) -> Readings:
    widths = (700, 900, 700, 10)
    folder.mkdir()
    for i in range(3):
        save_file(make_net(i, widths=widths), folder / f"{i}.safetensors")
    child, *others = (open_checkpoint(folder / f"{i}.safetensors") for i in range(3))
    known = describe(child)
    plan = make_plan(child, {n: child[n].nbytes for n in child}, known.orders, budget=None, keep=8 << 20, seed=0)
    return read_aligned(child, others, [align(child, other, known) for other in others], plan, device=device)


# Every process answers a few questions and prints what it found, what it read itself and how often progress was shown
QUESTIONS = """
import json, sys
import hf_lineage as hl
from hf_lineage.errors import BrokenFileError
from hf_lineage.checkpoints import local
from hf_lineage.parallel import world
read, shown = [0], []
plain = local.LocalFile.read
def counted(self, extents):
    if "broken" in self.name and extents[-1][1] > 0.6 * self.size:  # not every process meets it
        raise BrokenFileError("It ends early.")
    read[0] += sum(stop - start for start, stop in extents)
    return plain(self, extents)
local.LocalFile.read = counted
for child, candidates, sample in json.loads(sys.argv[1]):
    read[0] = 0
    lineage = hl.trace(child, candidates, sample=sample, progress=lambda *a: shown.append(a))
    print(json.dumps([lineage.to_dict(), read[0], len(shown)]))
layers = hl.trace_layers(*json.loads(sys.argv[1])[0][:2])
print(json.dumps([layers.to_dict(), read[0], len(shown)]))
"""


@pytest.fixture
def questions(make_net, tmp_path: Path) -> list:
    """(child, candidates, sample): a family with many tensors, its sample, a disguised child, a broken candidate."""
    widths = (40, 48, 40, *range(20, 32), *range(20, 32), 10)  # only the first two layers are wide enough to test
    nets = {"parent": make_net(1, widths=widths), "stranger": make_net(4, widths=widths)}
    nets["child"] = make_net(2, nets["parent"], widths=widths)
    nets["hidden"] = dict(nets["child"])
    for i in range(1, len(widths) - 1):  # the units of each hidden layer in another order
        order = torch.randperm(widths[i], generator=torch.Generator().manual_seed(i))
        for kind in ("weight", "bias"):
            nets["hidden"][f"fc{i}.{kind}"] = nets["hidden"][f"fc{i}.{kind}"][order].contiguous()
        nets["hidden"][f"fc{i + 1}.weight"] = nets["hidden"][f"fc{i + 1}.weight"][:, order].contiguous()
    nets["broken"] = nets["stranger"]
    paths = {name: str(tmp_path / f"{name}.safetensors") for name in nets}
    for name, tensors in nets.items():
        save_file(tensors, paths[name])
    both = [paths["parent"], paths["stranger"]]
    return [
        (paths["child"], both, None), (paths["child"], both, 0.2), (paths["hidden"], both, None),
        (paths["child"], [*both, paths["broken"]], None),
    ]  # fmt: skip


@pytest.mark.integration
def test_three_processes_say_what_one_says(questions: list) -> None:
    script = python("-c", QUESTIONS, json.dumps(questions))
    done = subprocess.run(script, capture_output=True, text=True, check=True)
    alone = [json.loads(line) for line in done.stdout.splitlines()]
    told = processes([script] * 3)
    assert [code for code, _, _ in told] == [0, 0, 0], told
    several = [[json.loads(line) for line in out.splitlines()] for _, out, _ in told]
    assert len(alone) == len(questions) + 1 and alone[-1][0]["blocks"]
    assert "disguise" in json.dumps(alone[2][0]) and "It ends early." in json.dumps(alone[3][0])
    for (one, _, _), *others in zip(alone, *several, strict=True):
        assert others[0][0]["seconds"] == others[1][0]["seconds"] == others[2][0]["seconds"]
        same_bytes = "It ends early." not in json.dumps(one) and "blocks" not in one  # each looks for the blocks itself
        free = {"seconds"} if same_bytes else {"seconds", "bytes_read"}
        for answer, _, _ in others:  # to the last bit, and the same bytes in all
            assert {k: v for k, v in answer.items() if k not in free} == {k: v for k, v in one.items() if k not in free}
    _, whole, _ = alone[0]
    for rank, (_, ours, shown) in enumerate(answers[0] for answers in several):
        assert ours == pytest.approx(whole / 3, rel=0.2) and (shown > 0) == (rank == 0)


@pytest.mark.integration
def test_accelerate_launch_with_one_process(folders: Folders) -> None:
    launch = python("-m", "accelerate.commands.launch", "--cpu", "--num_processes", 1, "-m", "hf_lineage")
    run = [*launch, "trace", str(folders["child"]), "-c", str(folders["parent"]), "--json"]
    done = subprocess.run(run, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and json.loads(done.stdout)["verdict"] == "parent", done.stderr


# The command line, in which the process of rank 1 meets with an accident in the middle of reading
ACCIDENT = """
import os, sys, time
from hf_lineage import cli, errors
from hf_lineage.checkpoints import local
plain = local.LocalFile.read
def read(self, extents):
    if os.environ["RANK"] == "1" and "child" in str(self._path) and extents[0][0] > 8:
        {accident}
    return plain(self, extents)
local.LocalFile.read = read
assert "torch" not in sys.modules
cli.main(sys.argv[1:])
"""


@pytest.mark.integration
@pytest.mark.parametrize(
    ("accident", "words"),
    [
        ("os._exit(1)", r"2 processes, the one of rank 1 gave none: its connection closed\. It died"),
        ("raise errors.CheckpointError('The disk is on fire.')", r"rank 1 \(of 2\) failed: The disk is on fire\."),
    ],
)
def test_an_accident_is_one_line_from_one_process(folders: Folders, accident: str, words: str) -> None:
    script = ACCIDENT.format(accident=accident)
    command = python("-c", script, "trace", folders["child"], "-c", folders["parent"])
    (code, out, err), (other, silent, quiet) = processes([command] * 2)
    assert (code, other, out, silent, quiet) == (1, 1, "", "", ""), (err, quiet)
    assert re.search(words, err) and err.startswith("error: ") and err.count("\n") == 1, err


# What `together` and `gather` promise, one after the other in one run of three processes
PROMISES = """
import os, time
from hf_lineage.errors import LineageError, ModelNotFoundError
from hf_lineage.checkpoints.opener import open_checkpoint
from hf_lineage.parallel import together, world
here = world()
def attempt(work):
    try:
        print(together(work)(), flush=True)
    except LineageError as error:
        print(type(error).__name__, error, flush=True)
def fail(kind, ranks, rest=lambda: "fine"):
    if here.rank in ranks:
        raise kind("words of %d" % here.rank)
    return rest()
attempt(lambda: here.gather(here.rank * 11))
attempt(lambda: fail(LineageError, {2}))
attempt(lambda: fail(LineageError, {1}, lambda: here.gather(1)))
attempt(lambda: fail(ModelNotFoundError, {0, 1, 2}))
attempt(lambda: here.gather(0) if here.rank else "I am done")
attempt(lambda: "still here")
attempt(lambda: fail(TypeError, {1}))
os.environ["HF_LINEAGE_TIMEOUT"] = "1"
if here.rank == 2:
    time.sleep(3)
    os.kill(os.getpid(), 9)
attempt(lambda: here.gather(0))
"""


@pytest.mark.integration
def test_what_fails_in_one_fails_in_all() -> None:
    told = processes([python("-c", PROMISES)] * 3, TORCH_CPP_LOG_LEVEL="FATAL")
    assert [code for code, _, _ in told] == [0, 0, -9], told
    for rank, (_, out, _) in enumerate(told):
        lines = out.splitlines()
        assert lines[0] == "[0, 11, 22]"
        assert lines[1] == "ProcessLostError The process of rank 2 (of 3) failed: words of 2"
        assert lines[2] == "ProcessLostError The process of rank 1 (of 3) failed: words of 1"
        assert lines[3] == f"ModelNotFoundError words of {rank}", "the same in all: it stays what it is"
        assert lines[4].startswith("ProcessLostError Expected 3 processes to go the same way")
        assert lines[5] == "still here"
        assert lines[6] in (
            "ProcessLostError The process of rank 1 (of 3) failed: TypeError: words of 1 (<string>:14)",
            "TypeError words of 1",
        )
        assert rank == 2 or lines[7].startswith("ProcessLostError Expected an answer from 3 processes")
    assert "the one of rank 2 gave none: 1 s passed (HF_LINEAGE_TIMEOUT" in told[0][1]


def test_processes_that_see_different_models_do_not_read() -> None:
    class Divided(World):
        def gather(self, value: str) -> list[str]:
            return [value, "something else"]

    with pytest.raises(LineageError, match="2 processes to see the same models"):
        _agree(Divided(0, 2), make_plan({}, {}, {}, budget=None, keep=0, seed=0), [], [])


def test_it_is_an_error_of_ours() -> None:
    assert issubclass(ProcessLostError, LineageError)
