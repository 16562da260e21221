"""Errors in one line, and files and folders that are written whole or not at all, whatever ends the process."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import ROOT, only_holds

from utils import pick_device, pick_precision, printable, run, whole_file, whole_folder

HOLDS_THE_LOCK = """
import fcntl, sys
file = open(sys.argv[1], "a")
fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
print("locked", flush=True)
sys.stdin.read()
"""
STOPPED = """
import os, signal, sys
from pathlib import Path
from utils import run, whole_file, whole_folder

def main():
    with whole_folder(Path("folder")), whole_file(Path("file.txt")) as temporary:
        temporary.write_text("half")
        os.kill(os.getpid(), signal.SIGTERM)
        signal.pause()

run(main)
"""


def fail(message: str) -> None:
    raise ValueError(message)


def test_escape_sequences_in_names_do_not_reach_the_terminal(capsys):
    with pytest.raises(SystemExit):
        run(lambda: fail("a\x1b[2J\x07\x9b31m\u202e.png: küche 木\nis no picture"))
    assert capsys.readouterr().err == "error: a\\x1b[2J\\x07\\x9b31m\\u202e.png: küche 木 is no picture\n"
    assert printable(os.fsdecode(b"\xff.png")) == "\\udcff.png"


@pytest.mark.parametrize(("name", "rank", "found"), [
    ("auto", None, "cuda:0"), ("cuda", None, "cuda:0"), ("cuda", 1, "cuda:1"), ("auto", 1, "cuda:1"),
    ("cuda:1", 0, "cuda:1"), ("cpu", 1, "cpu"),
])  # fmt: skip
def test_a_gpu_has_its_number(monkeypatch, name, rank, found):
    """torch.cuda.set_device refuses a device without one."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    if rank is not None:
        monkeypatch.setenv("LOCAL_RANK", str(rank))
    assert pick_device(name) == torch.device(found)
    with pytest.raises(ValueError, match="device is 'cuda:2', but torch sees 2"):
        pick_device("cuda:2")


@pytest.mark.parametrize(("found", "trained_in"), [
    ({"avx512_bf16": True, "amx_bf16": False}, torch.bfloat16), ({"amx_bf16": True}, torch.bfloat16),
    ({"avx512_bf16": False, "avx2": True}, torch.float32), ({}, torch.float32),
])  # fmt: skip
def test_a_cpu_trains_in_bf16_where_it_has_it(monkeypatch, found, trained_in):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: found)
    cpu = torch.device("cpu")
    assert pick_precision("auto", cpu, training=True) == trained_in and pick_precision("auto", cpu) == torch.float32
    for training in (True, False):
        assert pick_precision("bf16", cpu, training) == torch.bfloat16
        assert pick_precision("fp32", cpu, training) == torch.float32
    with pytest.raises(ValueError, match="precision 'fp8' is none of auto, fp32, bf16, fp16"):
        pick_precision("fp8", cpu)


def test_sigterm_removes_temporary_files(here):
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", STOPPED], cwd=here, env=environment, capture_output=True, timeout=120)
    assert (done.returncode, done.stderr) == (128 + signal.SIGTERM, b"")
    only_holds(here)


def test_a_handler_of_the_script_stays(monkeypatch):
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        with pytest.raises(SystemExit):
            run(lambda: 0)
        assert signal.getsignal(signal.SIGTERM) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGTERM, before)


def test_two_cannot_write_one_folder(here):
    with subprocess.Popen(
        [sys.executable, "-c", HOLDS_THE_LOCK, ".out.lock"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        assert other.stdout.readline() == b"locked\n"
        with pytest.raises(ValueError, match="out: another process writes it") as problem, whole_folder(Path("out")):
            pass
        assert "\n" not in str(problem.value)
        only_holds(here, ".out.lock")
        other.communicate()
    with whole_folder(Path("out")) as part:  # what a process that was killed has left locks nothing
        (part / "mine").touch()
    only_holds(here, "out")
    only_holds(here / "out", "mine")


def test_folders_of_others_stay_and_only_what_we_left_goes(here):
    for name in ("out.part", ".out.abcdefgh.part", ".out.mine.part", ".out2.abcdefgh.part"):
        (here / name).mkdir()
        (here / name / "x").touch()
    with whole_folder(here / "out") as part:
        assert part.parent == here
    assert (here / "out").stat().st_mode & 0o777 == 0o777 & ~current_umask()
    only_holds(here, "out", "out.part", ".out.mine.part", ".out2.abcdefgh.part")


def current_umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_a_failed_folder_leaves_nothing(here):
    with pytest.raises(KeyError), whole_folder(here / "out") as part:
        (part / "half").touch()
        raise KeyError
    only_holds(here)


@pytest.mark.parametrize("inside", [True, False])
def test_a_full_disk_names_the_folder(inside, here):
    message = r"out: could not be written \(No space left on device\)"
    with pytest.raises(OSError, match=message), whole_folder(here / "out") as part:
        full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        full.filename = str(part / "x.png") if inside else None
        raise full
    with pytest.raises(PermissionError, match="source"), whole_folder(here / "out"):
        raise PermissionError(errno.EACCES, "Permission denied", "source.png")
    only_holds(here)


def test_a_file_appears_whole_or_not_at_all(here):
    (here / "a.txt").write_text("before")
    with pytest.raises(KeyError), whole_file(here / "a.txt") as temporary:
        temporary.write_text("half")
        raise KeyError
    only_holds(here, "a.txt")
    assert (here / "a.txt").read_text() == "before"
