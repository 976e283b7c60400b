"""Every test is a unit or an integration test, and a unit test starts no process, no server and no training."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Callable

import pytest
import torch


def bind() -> None:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))


def connect() -> None:
    with socket.socket() as one:
        one.connect(("127.0.0.1", 9))


def step() -> None:
    torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1).step()


STARTS: dict[str, Callable[[], object]] = {
    "a process": lambda: subprocess.run([sys.executable, "-c", ""]),
    "a shell": lambda: os.system("true"),
    "a server": bind,
    "a client": connect,
    "a training step": step,
}


@pytest.mark.parametrize("what", STARTS)
def test_a_unit_test_cannot_start(what: str) -> None:
    with pytest.raises(pytest.fail.Exception, match="mark it `integration`"):
        STARTS[what]()


@pytest.mark.integration
@pytest.mark.parametrize("what", ["a process", "a server", "a training step"])
def test_an_integration_test_can_start(what: str) -> None:
    STARTS[what]()


def test_each_test_is_one_of_the_two(request: pytest.FixtureRequest) -> None:
    marks = [{mark.name for mark in item.iter_markers()} & {"unit", "integration"} for item in request.session.items]
    assert all(len(found) == 1 for found in marks)
