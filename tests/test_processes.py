"""Several processes that torchrun starts: the same training, the same metrics, the same pictures as one process.

Most jobs here are forks with the variables that torchrun sets. torchrun itself starts the job of Slurm, which ends with
the weights of the forks, and one with a mistake.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import forkserver
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


class Job:
    """The processes of a job, in forks. Its key-value store is in this process, as torchrun's is in torchrun."""

    def __init__(self, processes: int, name: str, *arguments: object) -> None:
        self.store = torch.distributed.TCPStore("localhost", 0, is_master=True, wait_for_workers=False)
        variables = {
            "WORLD_SIZE": str(processes), "LOCAL_WORLD_SIZE": str(processes), "MASTER_ADDR": "localhost",
            "MASTER_PORT": str(self.store.port), "TORCHELASTIC_USE_AGENT_STORE": "True", "GLOO_SOCKET_IFNAME": "lo",
        }  # fmt: skip
        self.ranks = []
        for rank in map(str, range(processes)):
            values = {**forkserver.ENVIRONMENT, **variables, "RANK": rank, "LOCAL_RANK": rank}
            self.ranks.append(forkserver.start(name, *arguments, cwd=ROOT, environment=values))

    def terminate(self) -> None:
        for process in self.ranks:
            process.terminate()

    def poll(self) -> int | None:
        """The status of one that failed, else of one that ended."""
        ended = [status for process in self.ranks if (status := process.poll()) is not None]
        return max(ended, key=bool, default=None)

    def communicate(self, timeout: float) -> tuple[str, str]:
        """What all of them printed. As by torchrun, the others are stopped when one has failed."""
        deadline, stopped = time.monotonic() + timeout, False
        printed: dict[int, tuple[str, str]] = {}
        try:
            while len(printed) < len(self.ranks):
                for rank, process in enumerate(self.ranks):
                    with contextlib.suppress(subprocess.TimeoutExpired):
                        printed[rank] = process.communicate(timeout=0.05)
                if any(process.returncode for process in self.ranks) and not stopped:
                    self.terminate()
                    stopped = True
                assert time.monotonic() < deadline, f"of {len(self.ranks)} processes, only {sorted(printed)} ended"
        finally:
            for process in self.ranks:
                process.kill()  # does nothing when it has ended
        return "".join(out for out, _ in printed.values()), "".join(errors for _, errors in printed.values())


def in_processes(number: int, name: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """A job's end: what it printed, and a status that is 0 when no process failed."""
    job = Job(number, name, *arguments)
    out, errors = job.communicate(300)
    return subprocess.CompletedProcess([name, *arguments], job.poll(), out, errors)


TORCHRUN = [sys.executable, "-m", "torch.distributed.run"]


def torchrun(number: int, name: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    # Without --, torchrun takes --run for one of its own options.
    words = [*TORCHRUN, "--standalone", f"--nproc-per-node={number}", "--", str(ROOT / name), *map(str, arguments)]
    return subprocess.run(words, cwd=ROOT, env=torchrun_environment(), capture_output=True, text=True, timeout=300)


def torchrun_environment() -> dict[str, str]:
    return {**os.environ, "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def data(rooms_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> list[object]:
    """One data set has masks, the other depth: in each step of four frames only one process has labels of depth.

    More than one such frame would not do: the threshold of the loss (berHu) is that of the frames of a process.
    """
    masks, depth = make_two_sets(rooms_folder, tmp_path_factory.mktemp("data"))
    return ["--data", f"{masks}=3,{depth}=1", *OPTIONS]


@pytest.fixture(scope="module")
def in_two(data: list[object], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two processes with two frames each a step."""
    folder = tmp_path_factory.mktemp("runs") / "two"
    done = in_processes(2, "train.py", *data, "--batch_size", 2, "--run", folder)
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


def test_accumulated_batches_of_two_processes_with_adamw_and_clipping(data, script, tmp_path):
    others = ["--optimizer", "adamw", "--clip_norm", 0.5, "--lr_encoder", 1e-4, "--lr_decoder", 1e-3]
    done = in_processes(2, "train.py", *data, *others, "--batch_size", 1, "--accumulate", 2, "--run", tmp_path / "two")
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


def test_every_frame_is_evaluated_once(in_two, script, tmp_path):
    options = ["--checkpoint", in_two / "best.pt", "--batch_size", 1]
    reports = {}
    for processes in (1, 3):  # for 4 frames
        done = script("evaluate.py", *options) if processes == 1 else in_processes(3, "evaluate.py", *options)
        assert done.returncode == 0, done.stderr
        files = [in_two / f"best-{name}-val.json" for name in ("masks_only", "depth_only")]
        reports[processes] = [json.loads(file.read_text()) for file in files]
        assert done.stdout.count("on 4 frames of") == 2
        for file in files:
            file.unlink()
    assert reports[1] == reports[3], "equal in every bit"


def test_another_number_of_processes_goes_on(in_two, data, script, tmp_path):
    folder = tmp_path / "stopped"
    job = Job(2, "train.py", *data, "--batch_size", 2, "--run", folder)
    wait_for(folder / "log.jsonl", '"step": 4', job)
    job.terminate()  # as torchrun does when a scheduler stops it
    printed, _ = job.communicate(timeout=60)
    stopped = int(printed.split("stopped after step ")[1].split(";")[0])
    assert stopped == read_checkpoint(folder / "last.pt")["step"] >= 4
    done = script("train.py", "--resume", folder)
    assert done.returncode == 0, done.stderr
    assert "accumulate=2" in done.stdout and "batch_size=2" in done.stdout
    assert largest_change(weights(folder), weights(in_two)) < 1e-5
    # A step of 4 frames is not for 3 processes.
    content = read_checkpoint(folder / "last.pt")
    assert content["training"]["processes"] == 1


def test_slurm_job_survives_a_kill_stops_in_time_and_goes_on(in_two, tmp_path):
    """Step 2: a process is killed, and torchrun starts both again. Then the time is over, and a second job ends it."""
    tools, run = tmp_path / "bin", tmp_path / "run"
    tools.mkdir()
    (tools / "scontrol").write_text(f'#!/bin/sh\n[ $1 = show ] && echo localhost || echo "$@" >> {tmp_path}/asked\n')
    (tools / "srun").write_text('#!/bin/sh\nexec "$@"\n')
    (tools / "torchrun").write_text(f'#!/bin/sh\nexec {" ".join(TORCHRUN)} "$@"\n')
    for tool in tools.iterdir():
        tool.chmod(0o755)
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    variables = {
        "PATH": f"{tools}:{os.environ['PATH']}", "SLURM_JOB_NODELIST": "localhost", "SLURM_NNODES": "1",
        "SLURM_GPUS_PER_NODE": "h100:2", "SLURM_CPUS_PER_TASK": "2", "SLURM_JOB_ID": "7", "MASTER_PORT": str(port),
    }  # fmt: skip
    words = ["bash", str(ROOT / "tools" / "slurm.sh"), str(in_two / "config.yaml"), str(run)]
    for attempt in range(2):
        process = subprocess.Popen(
            words, cwd=ROOT, env=torchrun_environment() | variables, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            text=True,
        )  # fmt: skip
        if attempt == 0:
            wait_for(run / "log.jsonl", '"step": 2,', process)
            (training,) = children(process.pid)
            os.kill(children(training)[-1], signal.SIGKILL)
            wait_for(run / "log.jsonl", '"step": 2,', process, times=2)
            process.send_signal(signal.SIGTERM)
        printed, errors = process.communicate(timeout=200)
        assert process.returncode == 0, errors
        assert printed.count("run       ") == 2 - attempt, printed
        assert ("stopped after step" in printed) == (attempt == 0), printed
    assert (tmp_path / "asked").read_text() == "requeue 7\n"
    assert "best masks_only/segmentation/miou" in printed
    assert largest_change(weights(run), weights(in_two)) == 0


def children(pid: int) -> list[int]:
    return [int(word) for word in subprocess.run(["pgrep", "-P", str(pid)], capture_output=True).stdout.split()]


@pytest.mark.parametrize(("arguments", "message"), [
    ((), "--run is needed with several processes"),  # by torchrun
    (("--run", "RUN", "--task_weighting", "upgrad"), "one process only"),
    (("--run", "RUN", "--sync_bn", "true"), "for GPUs only"),
    (("--run", "RUN", "--batch_size", 30), "batch_size x processes is 60, but the data set has 24"),
], ids=str)  # fmt: skip
def test_mistakes_get_one_line_a_process(data, tmp_path, arguments, message):
    arguments = [tmp_path / "run" if item == "RUN" else item for item in arguments]
    start = in_processes if arguments else torchrun
    done = start(2, "train.py", *data, "--batch_size", 2, *arguments)
    lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert done.returncode and [line for line in lines if message in line], done.stderr
    assert len({line.replace("process 1: ", "") for line in lines}) == 1
    assert not (tmp_path / "run" / "last.pt").exists()


def test_a_folder_is_shared_out(in_two, script, rooms_folder, tmp_path):
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for number, path in enumerate(sorted((rooms_folder / "rgb").iterdir())[:7]):
        (pictures / f"{number}.png").write_bytes(path.read_bytes())
    (pictures / "2b.png").write_text("no picture")
    options = ["--checkpoint", in_two / "best.pt", "--input", pictures, "--batch_size", 2, "--output"]
    assert script("inference.py", *options, tmp_path / "one").returncode == 1
    done = in_processes(2, "inference.py", *options, tmp_path / "two")
    assert done.stderr.count("error: ") == 1 and "2b.png" in done.stderr
    one, two = ({path.name: path.read_bytes() for path in (tmp_path / name).iterdir()} for name in ("one", "two"))
    assert one == two and len(one) == 7 * 6
    # Killed before it was done: the rest is made, and nothing is made again.
    (tmp_path / "two" / "3_overview.jpg").unlink()
    before = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "two").iterdir()}
    done = in_processes(3, "inference.py", *options, tmp_path / "two", "--resume")
    assert done.returncode and done.stdout.count("images predicted") == 3, done.stdout  # who fails waits for the others
    after = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "two").iterdir()}
    assert after.keys() == one.keys()
    assert {name for name in after if after[name] != before.get(name)} == {name for name in one if name[0] == "3"}
