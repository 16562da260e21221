"""Trainings that are killed, starved and stopped (tests/faults.py; there also the long form)."""

from __future__ import annotations

from pathlib import Path

import pytest
from faults import FAULTS, finish, kill_often, options, start, steps_logged, train_whole, wait_until


@pytest.fixture(scope="module")
def prepared(rooms_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A small data set, and a run on it that meets no fault."""
    return rooms_folder, train_whole(rooms_folder, tmp_path_factory.mktemp("faults") / "whole")


def test_kills_at_random_moments(prepared, tmp_path):
    counts = kill_often(*prepared[:1], tmp_path, prepared[1], kills=4)
    assert counts["kills"] == counts["checkpoint loads"] == 4 and counts["while writing"] >= 2
    assert counts["same weights"] == counts["runs"] >= 1


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_gets_one_line_and_loses_nothing(name, prepared, tmp_path):
    problem = FAULTS[name](prepared[0], tmp_path, prepared[1])
    if problem.startswith("not tried"):
        pytest.skip(problem)
    assert problem == ""


def test_memory_does_not_grow(prepared, tmp_path):
    """Of 600 steps: what the process holds near the end is what it held after the first evaluation."""
    run = tmp_path / "long"
    # Small batches, so that an epoch has 6 steps: what is written after each epoch costs more than a step.
    longer = options(epochs=100, eval_every=30, batch_size=2, save_minutes=0)
    process = start("--data", prepared[0], *longer, "--run", run)
    held = []
    for steps in (210, 570):
        wait_until(lambda steps=steps: steps_logged(run) >= steps, process, seconds=280, pause_s=0.1)
        status = Path(f"/proc/{process.pid}/status").read_text()
        held.append(int(status.split("VmRSS:")[1].split()[0]) / 1024)
    assert finish(process).returncode == 0
    assert held[1] - held[0] < 24, f"{held} MiB"  # 70 kB a step
