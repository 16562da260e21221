"""What a training must survive: kills at any moment, a full disk, dead loaders, files that vanish, NaN, SIGTERM.

    PYTHONPATH=. python tests/faults.py --kills 30    # the table of docs/RELIABILITY.md

Each fault ends a small training; its checkpoint must load, and the run that goes on from it must end with the weights
of one that met no fault, bit for bit.
"""

from __future__ import annotations

import startup  # noqa: F401 - so that the fork server has the environment of the trainings

import argparse
import contextlib
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import forkserver
import torch

from networks.checkpoints import read_checkpoint
from rooms import generate

ROOT = Path(__file__).resolve().parents[1]
Process = forkserver.Fork | subprocess.Popen[str]
SETTINGS = {
    "long_side": 0, "crop": "64,64", "encoder": "mobilenetv3_small_050", "decoder_width": 8, "crp_stages": 1,
    "class_weights": "none", "batch_size": 4, "epochs": 8, "eval_every": 2, "warmup_steps": 2, "workers": 0,
    "device": "cpu", "threads": 1, "log_every": 1, "save_minutes": 0.0001,
}  # fmt: skip


def options(**changes: object) -> list[str]:
    """The command line of the small training; with `save_minutes` as above it writes last.pt after each step."""
    return [word for name, value in {**SETTINGS, **changes}.items() for word in (f"--{name}", str(value))]


def start(*arguments: object, preexec_fn: Callable[[], None] | None = None) -> Process:
    """Starts train.py in a session of its own: in a fork, or with `preexec_fn` truly."""
    if preexec_fn is None:
        return forkserver.start("train.py", *arguments, new_session=True)
    words = [sys.executable, str(ROOT / "train.py"), *map(str, arguments)]
    return subprocess.Popen(
        words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True, preexec_fn=preexec_fn
    )


def finish(process: Process) -> subprocess.CompletedProcess[str]:
    """Waits for the end; raises TimeoutExpired when it hangs."""
    try:
        out, errors = process.communicate(timeout=300)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    return subprocess.CompletedProcess(process.args, process.returncode, out, errors)


def wait_until(condition: Callable[[], bool], process: Process, seconds: float = 120, pause_s: float = 0.001) -> bool:
    """Looks each `pause_s`; False when the process ended first."""
    deadline = time.monotonic() + seconds
    while not condition():
        if process.poll() is not None:
            return False
        assert time.monotonic() < deadline, "the training does not get there"
        time.sleep(pause_s)
    return True


def steps_logged(run: Path) -> int:
    log = run / "log.jsonl"
    return log.read_text().count('"kind": "train"') if log.is_file() else 0


def same_weights(first: Path, second: Path) -> bool:
    """Whether two runs ended alike: weights, averaged weights and optimizer, bit for bit."""
    one, two = (read_checkpoint(run / "last.pt") for run in (first, second))
    if one["step"] != two["step"] or one["training"]["data_steps"] != two["training"]["data_steps"]:
        return False
    pairs = [(one["network"], two["network"]), (one["training"]["network"], two["training"]["network"])]
    alike = all(torch.equal(mine[name], theirs[name]) for mine, theirs in pairs for name in mine)
    states = zip(*(item["training"]["optimizer"]["state"].values() for item in (one, two)), strict=True)
    return alike and all(torch.equal(mine["exp_avg"], theirs["exp_avg"]) for mine, theirs in states)


def one_error_line(done: subprocess.CompletedProcess[str], text: str) -> str:
    """'' when the training ended with one clear line that holds `text`, else what it did."""
    lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    if done.returncode == 2 and len(lines) == 1 and text in lines[0] and "Traceback" not in done.stderr:
        return ""
    return f"status {done.returncode}: {done.stderr[-500:]}"


def steps_lost(run: Path) -> str:
    """'' when the checkpoint has every step that was taken."""
    saved, taken = read_checkpoint(run / "last.pt")["step"], steps_logged(run)
    return "" if saved == taken else f"step {saved} saved of {taken}"


def goes_on(run: Path, whole: Path, *arguments: object) -> str:
    """'' when the run, resumed, ends with the weights of the whole one."""
    done = finish(start("--resume", run, *arguments))
    return "" if done.returncode == 0 and same_weights(run, whole) else f"other weights {done.stderr[-300:]}"


def stop_while_writing(run: Path, process: Process, rng: random.Random) -> bool:
    """Stops a training in the middle of writing a file, however fast it writes; False when it ended before."""
    while wait_until(lambda: steps_logged(run) > 0 and any(run.glob(".*.tmp")), process):
        time.sleep(rng.uniform(0, 0.01))
        with contextlib.suppress(ProcessLookupError, FileNotFoundError):
            os.killpg(process.pid, signal.SIGSTOP)
            # The signal is on its way; 'R', 'S' or 'D' stands behind the name until it has arrived, then 'T'.
            while Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[0] in "RSD":
                time.sleep(0.001)
            if any(run.glob(".*.tmp")):  # else the file was complete by then: the next one
                return True
            os.killpg(process.pid, signal.SIGCONT)
    return False


# ---------------------------------------------------------------------------------------------- faults


def kill_often(data: Path, folder: Path, whole: Path, kills: int, seed: int = 0) -> dict[str, int]:
    """Kills a training at random moments, every other time while a checkpoint is written, and lets it go on.

    Returns counts: kills, of them in the writing of a checkpoint, checkpoints that loaded, and runs that ended as if
    nothing had happened.
    """
    rng = random.Random(seed)
    counts = {"kills": 0, "while writing": 0, "checkpoint loads": 0, "runs": 0, "same weights": 0}
    while counts["kills"] < kills:
        run = folder / f"killed{counts['runs']}"
        arguments = ["--data", data, *options(), "--run", run]
        while True:
            process = start(*arguments)
            if counts["kills"] >= kills:
                done = finish(process)
                assert done.returncode == 0, done.stderr
                break
            if counts["kills"] % 2:
                alive = stop_while_writing(run, process, rng)
            else:
                alive = wait_until(lambda run=run: (run / "last.pt").exists(), process)
                try:
                    process.wait(rng.uniform(0, 8))
                except subprocess.TimeoutExpired:
                    pass
                else:
                    alive = False
            if not alive:
                done = finish(process)
                assert done.returncode == 0, done.stderr
                break
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
            partly = list(run.glob(".*.tmp"))
            counts["kills"] += 1
            counts["while writing"] += bool(partly)
            read_checkpoint(run / "last.pt")
            counts["checkpoint loads"] += 1
            arguments = ["--resume", run]
        counts["runs"] += 1
        assert not list(run.glob(".*.tmp")), "parts of killed writes are left"
        counts["same weights"] += same_weights(run, whole)
        shutil.rmtree(run)
    return counts


@contextlib.contextmanager
def small_disk(folder: Path, megabytes: int) -> Iterator[Path | None]:
    """A file system of this size, or None where we may not make one."""
    folder.mkdir()
    words = ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(folder)]
    if subprocess.run(words, capture_output=True).returncode:
        yield None
        return
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def full_disk(data: Path, folder: Path, whole: Path) -> str:
    """The disk fills up in training: '' when the checkpoint survives, or what went wrong."""
    checkpoint_mb = (whole / "last.pt").stat().st_size / 2**20
    with small_disk(folder / "disk", int(2.5 * checkpoint_mb) + 4) as disk:
        if disk is None:
            return "not tried: no right to mount a tmpfs"
        process = start("--data", data, *options(), "--run", disk / "run")
        wait_until(lambda: steps_logged(disk / "run") >= 4, process)
        filler = disk / "others"
        with contextlib.suppress(OSError), filler.open("wb") as file:
            while True:
                file.write(bytes(2**16))
                file.flush()
        done = finish(process)
        if problem := one_error_line(done, "could not be written"):
            return problem
        read_checkpoint(disk / "run" / "last.pt")
        filler.unlink()
        return goes_on(disk / "run", whole)


def file_limit(data: Path, folder: Path, whole: Path) -> str:
    """The same by a limit on the size of files, which needs no rights."""
    size = (whole / "last.pt").stat().st_size
    run = folder / "limited"
    process = start("--data", data, *options(), "--run", run)
    wait_until(lambda: steps_logged(run) >= 3, process)
    process.send_signal(signal.SIGTERM)
    finish(process)
    before = (run / "last.pt").read_bytes()
    limit = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size // 2, size // 2))  # noqa: E731
    if problem := one_error_line(finish(start("--resume", run, preexec_fn=limit)), "could not be written"):
        return problem
    if (run / "last.pt").read_bytes() != before:
        return "the old checkpoint did not survive"
    return goes_on(run, whole)


def vanished_file(data: Path, folder: Path, whole: Path) -> str:
    """A picture is gone in the middle of the training."""
    copy, run = folder / "copy", folder / "vanished"
    shutil.copytree(data, copy)
    process = start("--data", copy, *options(cache="false", save_minutes=0), "--run", run)
    wait_until(lambda: steps_logged(run) >= 4, process)
    picture = copy / (copy / "train.txt").read_text().splitlines()[3].split("\t")[0]
    picture.rename(folder / "kept.png")
    if problem := one_error_line(finish(process), str(picture)):
        return problem
    (folder / "kept.png").rename(picture)
    return steps_lost(run) or goes_on(run, whole)


def dead_loader(data: Path, folder: Path, whole: Path) -> str:
    """A loader process is killed, as by the kernel when memory runs out."""
    run = folder / "loader"
    process = start("--data", data, *options(workers=1, save_minutes=0), "--run", run)
    wait_until(lambda: steps_logged(run) >= 4, process)
    children = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True).stdout.split()
    os.kill(int(children[0]), signal.SIGKILL)
    if problem := one_error_line(finish(process), "a loader process died"):
        return problem
    return steps_lost(run) or goes_on(run, whole, "--workers", 0)


def not_finite(data: Path, folder: Path, whole: Path) -> str:
    """The loss becomes NaN: a learning rate out of all bounds."""
    run = folder / "nan"
    changes = {"lr_encoder": 1e30, "lr_decoder": 1e30, "clip_norm": 0, "warmup_steps": 0, "ema": 0}
    if problem := one_error_line(finish(start("--data", data, *options(**changes), "--run", run)), "Lower --lr"):
        return problem
    content = read_checkpoint(run / "last.pt")
    finite = all(value.isfinite().all() for value in content["network"].values() if value.is_floating_point())
    return "" if finite else "the checkpoint holds weights that are not finite"


def stopped_by_scheduler(data: Path, folder: Path, whole: Path) -> str:
    """SIGTERM to the whole process group, with loader processes, as Slurm sends it."""
    run = folder / "stopped"
    process = start("--data", data, *options(workers=1, save_minutes=0), "--run", run)
    wait_until(lambda: steps_logged(run) >= 3, process)
    os.killpg(process.pid, signal.SIGTERM)
    done = finish(process)
    if done.returncode != 128 + signal.SIGTERM or "go on with" not in done.stdout or "rror" in done.stderr:
        return f"status {done.returncode}: {done.stdout[-200:]} {done.stderr[-300:]}"
    return goes_on(run, whole)


def read_only(data: Path, folder: Path, whole: Path) -> str:
    """A run folder that cannot be written to."""
    place = folder / "closed"
    place.mkdir()
    place.chmod(0o555)
    # Root may write everywhere, unless it gives up that right.
    without = ["setpriv", "--bounding-set=-dac_override", "--inh-caps=-dac_override", "--"] if not os.geteuid() else []
    if without and not shutil.which("setpriv"):
        return "not tried: root without setpriv"
    words = [*without, sys.executable, str(ROOT / "train.py"), "--data", str(data), *options(), "--run"]
    done = subprocess.run([*words, str(place / "run")], capture_output=True, text=True, timeout=300)
    return one_error_line(done, "closed")


FAULTS = {
    "disk full (tmpfs)": full_disk, "limit on the size of files": file_limit, "picture vanishes": vanished_file,
    "loader process killed": dead_loader, "loss not finite": not_finite, "SIGTERM to the process group":
    stopped_by_scheduler, "run folder read-only": read_only,
}  # fmt: skip


def train_whole(data: Path, run: Path) -> Path:
    """A run that meets no fault."""
    done = finish(start("--data", data, *options(), "--run", run))
    assert done.returncode == 0, done.stderr
    return run


def main() -> None:
    parser = argparse.ArgumentParser(description="Puts faults into trainings and looks at what is left.")
    parser.add_argument("--kills", type=int, default=30)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        data = folder / "rooms"
        generate.write(data, train=12, val=4, width=96, height=72, seed=3)
        whole = train_whole(data, folder / "whole")
        counts = kill_often(data, folder, whole, arguments.kills)
        print("| fault | tried | survived |\n|---|---|---|")
        print(f"| SIGKILL, {counts['while writing']} of them in the writing of a checkpoint: last.pt loads "
              f"| {counts['kills']} | {counts['checkpoint loads']} |")  # fmt: skip
        print(f"| runs that went on after them: the same weights | {counts['runs']} | {counts['same weights']} |")
        for title, fault in FAULTS.items():
            place = folder / fault.__name__
            place.mkdir()
            problem = fault(data, place, whole)
            print(f"| {title} | 1 | {problem or 1} |", flush=True)


if __name__ == "__main__":
    main()
