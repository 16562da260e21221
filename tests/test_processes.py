"""Several processes that torchrun starts: the same training, the same metrics, the same pictures as one process."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import ROOT, make_two_sets, wait_for

from networks.checkpoints import read_checkpoint

# Frozen batch norm and plain steps: what is left differs by rounding only.
OPTIONS = (
    "--long_side", 0, "--crop", "64,64", "--encoder", "resnet18", "--decoder_width", 16, "--crp_stages", 1,
    "--class_weights", "log", "--zoom", "0.4,1.4",
    "--freeze_bn", "true", "--optimizer", "sgd", "--momentum", 0, "--clip_norm", 0,
    "--lr_encoder", 1e-2, "--lr_decoder", 1e-2, "--warmup_steps", 0, "--epochs", 2, "--eval_every", 1, "--log_every", 1,
    "--workers", 0, "--device", "cpu", "--threads", 1, "--task_weighting", "uncertainty",
)  # fmt: skip


def command(processes: int, name: str, *arguments: object, restarts: int = 0) -> list[str]:
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    # Without --, torchrun takes --run for one of its own options.
    return [*start, f"--max-restarts={restarts}", "--", str(ROOT / name), *map(str, arguments)]


def environment() -> dict[str, str]:
    return {**os.environ, "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}


Torchrun = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def torchrun() -> Torchrun:
    def call(processes: int, name: str, *arguments: object) -> subprocess.CompletedProcess[str]:
        words = command(processes, name, *arguments)
        return subprocess.run(words, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=300)

    return call


@pytest.fixture(scope="module")
def data(rooms_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> list[object]:
    """One data set has masks, the other depth: in each step of four frames only one process has labels of depth.

    More than one such frame would not do: the threshold of the loss (berHu) is that of the frames of a process.
    """
    masks, depth = make_two_sets(rooms_folder, tmp_path_factory.mktemp("data"))
    return ["--data", f"{masks}=3,{depth}=1", *OPTIONS]


@pytest.fixture(scope="module")
def in_two(torchrun: Torchrun, data: list[object], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two processes with two frames each a step."""
    folder = tmp_path_factory.mktemp("runs") / "two"
    done = torchrun(2, "train.py", *data, "--batch_size", 2, "--run", folder)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("best masks_only/segmentation/miou") == 1, "one process speaks"
    return folder


def weights(folder: Path) -> dict[str, torch.Tensor]:
    content = read_checkpoint(folder / "last.pt")
    return {**content["training"]["network"], **content["training"]["weighting"]}


def largest_change(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> float:
    assert found.keys() == expected.keys()
    return max(float((found[name].double() - expected[name].double()).abs().max()) for name in expected)


def entries(folder: Path, kind: str) -> list[dict[str, float]]:
    lines = map(json.loads, (folder / "log.jsonl").read_text().splitlines())
    return [line for line in lines if line["kind"] == kind]


@pytest.mark.parametrize(("batch", "accumulate"), [(4, 1), (2, 2)])
def test_two_processes_take_the_steps_of_one(in_two, data, script, tmp_path, batch, accumulate):
    options = ["--batch_size", batch, "--accumulate", accumulate, "--run", tmp_path / "one"]
    done = script("train.py", *data, *options)
    assert done.returncode == 0, done.stderr
    one, two = weights(tmp_path / "one"), weights(in_two)
    assert largest_change(one, two) < 1e-5
    for alone, together in zip(entries(tmp_path / "one", "train"), entries(in_two, "train"), strict=True):
        assert alone.keys() == together.keys()
        for name in alone.keys() - {"images_per_s", "waiting_for_data", "kind"}:
            assert together[name] == pytest.approx(alone[name], rel=1e-4), name
    losses = [entry["segmentation"] for entry in entries(in_two, "train")]
    assert abs(losses[-1] - losses[0]) > 2e-4 * losses[0], "the steps are large enough to tell them apart"


def test_accumulated_batches_of_two_processes_with_adamw_and_clipping(torchrun, data, script, tmp_path):
    others = ["--optimizer", "adamw", "--clip_norm", 0.5, "--lr_encoder", 1e-4, "--lr_decoder", 1e-3]
    done = torchrun(2, "train.py", *data, *others, "--batch_size", 1, "--accumulate", 2, "--run", tmp_path / "two")
    assert done.returncode == 0, done.stderr
    done = script("train.py", *data, *others, "--batch_size", 4, "--run", tmp_path / "one")
    assert done.returncode == 0, done.stderr
    # The first moment is the mean of the clipped gradients. AdamW makes whole steps of the rounding of small ones, so
    # that the weights themselves tell less.
    one, two = (read_checkpoint(tmp_path / name / "last.pt")["training"]["optimizer"] for name in ("one", "two"))
    moments = [torch.cat([entry["exp_avg"].flatten() for entry in item["state"].values()]) for item in (one, two)]
    assert torch.linalg.norm(moments[0] - moments[1]) < 0.02 * torch.linalg.norm(moments[0])
    for alone, together in zip(entries(tmp_path / "one", "train"), entries(tmp_path / "two", "train"), strict=True):
        for name in ("segmentation", "depth", "lr_encoder", "lr_decoder"):
            assert together[name] == pytest.approx(alone[name], rel=2e-3), name


def test_every_frame_is_evaluated_once(in_two, script, torchrun, tmp_path):
    options = ["--checkpoint", in_two / "best.pt", "--batch_size", 1]
    reports = {}
    for processes in (1, 3):  # for 4 frames
        done = script("evaluate.py", *options) if processes == 1 else torchrun(3, "evaluate.py", *options)
        assert done.returncode == 0, done.stderr
        files = [in_two / f"best-{name}-val.json" for name in ("masks_only", "depth_only")]
        reports[processes] = [json.loads(file.read_text()) for file in files]
        assert done.stdout.count("on 4 frames of") == 2
        for file in files:
            file.unlink()
    assert reports[1] == reports[3], "equal in every bit"


def test_another_number_of_processes_goes_on(in_two, data, script, tmp_path):
    folder = tmp_path / "stopped"
    words = command(2, "train.py", *data, "--batch_size", 2, "--run", folder)
    process = subprocess.Popen(
        words, cwd=ROOT, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    wait_for(folder / "log.jsonl", '"step": 4', process)
    process.send_signal(signal.SIGTERM)  # as a scheduler does: torchrun hands it on
    printed, _ = process.communicate(timeout=60)
    stopped = int(printed.split("stopped after step ")[1].split(";")[0])
    assert stopped == read_checkpoint(folder / "last.pt")["step"] >= 4
    done = script("train.py", "--resume", folder)
    assert done.returncode == 0, done.stderr
    assert "accumulate=2" in done.stdout and "batch_size=2" in done.stdout
    assert largest_change(weights(folder), weights(in_two)) < 1e-5
    # A step of 4 frames is not for 3 processes.
    content = read_checkpoint(folder / "last.pt")
    assert content["training"]["processes"] == 1


def test_a_killed_process_is_started_again(in_two, data, tmp_path):
    folder = tmp_path / "killed"
    words = command(2, "train.py", *data, "--batch_size", 2, "--save_minutes", 0.0001, "--run", folder, restarts=1)
    process = subprocess.Popen(
        words, cwd=ROOT, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    wait_for(folder / "log.jsonl", '"step": 5', process)
    children = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True).stdout.split()
    os.kill(int(children[-1]), signal.SIGKILL)
    printed, errors = process.communicate(timeout=200)
    assert process.returncode == 0, errors
    assert printed.count("run       ") == 2, "started twice"
    assert largest_change(weights(folder), weights(in_two)) == 0


def test_slurm_job_stops_in_time_and_goes_on(tiny_settings, tmp_path):
    tools, run = tmp_path / "bin", tmp_path / "run"
    tools.mkdir()
    (tools / "scontrol").write_text(f'#!/bin/sh\n[ $1 = show ] && echo localhost || echo "$@" >> {tmp_path}/asked\n')
    (tools / "srun").write_text('#!/bin/sh\nexec "$@"\n')
    (tools / "torchrun").write_text(f'#!/bin/sh\nexec {sys.executable} -m torch.distributed.run "$@"\n')
    for tool in tools.iterdir():
        tool.chmod(0o755)
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    variables = {
        "PATH": f"{tools}:{os.environ['PATH']}", "SLURM_JOB_NODELIST": "localhost", "SLURM_NNODES": "1",
        "SLURM_GPUS_PER_NODE": "h100:2", "SLURM_CPUS_PER_TASK": "2", "SLURM_JOB_ID": "7", "MASTER_PORT": str(port),
    }  # fmt: skip
    config = tmp_path / "longer.yaml"
    config.write_text(
        tiny_settings.read_text().replace("epochs: 4", "epochs: 30").replace("eval_every: 2", "eval_every: 30")
        + "log_every: 1\n"
    )
    words = ["bash", str(ROOT / "tools" / "slurm.sh"), str(config), str(run)]
    for attempt in range(2):
        process = subprocess.Popen(
            words, cwd=ROOT, env=environment() | variables, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        if attempt == 0:
            wait_for(run / "log.jsonl", '"step": 2', process)
            process.send_signal(signal.SIGTERM)
        printed, errors = process.communicate(timeout=200)
        assert process.returncode == 0, errors
        assert ("stopped after step" in printed) == (attempt == 0), printed
    assert (tmp_path / "asked").read_text() == "requeue 7\n"
    assert "best segmentation/miou" in printed


@pytest.mark.parametrize(("arguments", "message"), [
    ((), "--run is needed with several processes"),
    (("--run", "RUN", "--task_weighting", "upgrad"), "one process only"),
    (("--run", "RUN", "--sync_bn", "true"), "for GPUs only"),
    (("--run", "RUN", "--batch_size", 30), "batch_size x processes is 60, but the data set has 24"),
], ids=str)  # fmt: skip
def test_mistakes_get_one_line_a_process(torchrun, data, tmp_path, arguments, message):
    arguments = [tmp_path / "run" if item == "RUN" else item for item in arguments]
    done = torchrun(2, "train.py", *data, "--batch_size", 2, *arguments)
    lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert done.returncode and [line for line in lines if message in line], done.stderr
    assert len({line.replace("process 1: ", "") for line in lines}) == 1
    assert not (tmp_path / "run" / "last.pt").exists()


def test_a_folder_is_shared_out(in_two, script, torchrun, rooms_folder, tmp_path):
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for number, path in enumerate(sorted((rooms_folder / "rgb").iterdir())[:7]):
        (pictures / f"{number}.png").write_bytes(path.read_bytes())
    (pictures / "2b.png").write_text("no picture")
    options = ["--checkpoint", in_two / "best.pt", "--input", pictures, "--batch_size", 2, "--output"]
    assert script("inference.py", *options, tmp_path / "one").returncode == 1
    done = torchrun(2, "inference.py", *options, tmp_path / "two")
    assert done.stderr.count("error: ") == 1 and "2b.png" in done.stderr
    one, two = ({path.name: path.read_bytes() for path in (tmp_path / name).iterdir()} for name in ("one", "two"))
    assert one == two and len(one) == 7 * 6
    # Killed before it was done: the rest is made, and nothing is made again.
    (tmp_path / "two" / "3_overview.jpg").unlink()
    before = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "two").iterdir()}
    done = torchrun(3, "inference.py", *options, tmp_path / "two", "--resume")
    assert done.returncode and done.stdout.count("images predicted") == 3, done.stdout  # who fails waits for the others
    after = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "two").iterdir()}
    assert after.keys() == one.keys()
    assert {name for name in after if after[name] != before.get(name)} == {name for name in one if name[0] == "3"}
