"""The fork server of the tests: a fork behaves as `python script.py` does, and nothing of it stays."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import forkserver
import pytest
from conftest import ROOT

SCRIPTS = [path.name for path in sorted(ROOT.glob("*.py")) if "\ndef main(" in path.read_text()]
WAYS = pytest.mark.parametrize("fresh", [False, True], ids=["fork", "true start"])
only_forks = pytest.mark.skipif(sys.platform != "linux", reason="forks are made on Linux only")


@pytest.fixture
def program(tmp_path: Path):
    """program("lines", fresh=...) starts a script with these lines."""

    def start(code: str, *arguments: object, **settings: object) -> forkserver.Fork | subprocess.Popen[str]:
        path = tmp_path / "program.py"
        path.write_text(code)
        return forkserver.start(path, *arguments, **settings)

    return start


@WAYS
@pytest.mark.parametrize(("code", "status", "printed_by", "error"), [
    ("", 0, "begin\n", ""),
    ("raise SystemExit(7)", 7, "begin\n", ""),
    ("raise SystemExit('told')", 1, "begin\n", "told\n"),
    ("def f():\n    raise KeyError('torch')\nf()", 1, "begin\n", "KeyError: 'torch'\n"),
    ("import os; os.abort()", -signal.SIGABRT, "begin\n", ""),
    ("import atexit; atexit.register(print, 'end'); import threading; threading.Timer(0.1, print, ['thread']).start()",
     0, "begin\nthread\nend\n", ""),
    ("import ctypes; ctypes.CDLL(None).puts(b'from C')", 0, "begin\nfrom C\n", ""),
])  # fmt: skip
def test_exit_status_and_output(program, code, status, printed_by, error, fresh):
    process = program(f"print('begin', flush=True)\n{code}\n", fresh=fresh)
    printed, errors = process.communicate(timeout=60)
    assert process.returncode == status and errors.endswith(error)
    assert ("Traceback" in errors) == ("KeyError" in errors)
    assert printed == printed_by


@WAYS
def test_what_a_script_sees_of_itself(program, tmp_path, fresh):
    code = """
import json, multiprocessing, os, pickle, sys, tempfile, dataclasses
@dataclasses.dataclass
class Here:
    x: int = 1
if __name__ == "__main__":
    assert pickle.loads(pickle.dumps(Here(2))) == Here(2)
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.map(Here, [3]) == [Here(3)]
    print(json.dumps([__name__, __file__, sys.argv, sys.path[0], os.getcwd(), tempfile.gettempdir(), os.environ["RANK"],
    "PYTEST_CURRENT_TEST" in os.environ, sys.stdin.read(), sys.stdout.isatty(), sys.stdout.encoding,
    os.getpgrp() == os.getpid(), os.getsid(0) == os.getpid()]))
"""
    values = {**forkserver.ENVIRONMENT, "RANK": "3", "TMPDIR": str(tmp_path)}
    process = program(code, "a b", 2, cwd=tmp_path, environment=values, new_session=True, fresh=fresh)
    printed, errors = process.communicate(timeout=60)
    path = str(tmp_path / "program.py")
    assert (process.returncode, errors) == (0, "")
    assert printed == (
        f'["__main__", "{path}", ["{path}", "a b", "2"], "{tmp_path}", "{tmp_path}", "{tmp_path}", "3", false, "", '
        'false, "utf-8", true, true]\n'
    )


@WAYS
@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, -15), (signal.SIGKILL, -9)])
def test_signals(program, number, status, fresh):
    code = """
import time
try:
    print("ready", flush=True)
    time.sleep(60)
except KeyboardInterrupt:
    exit(130)
"""
    process = program(code, fresh=fresh)
    assert process.stdout.readline() == "ready\n" and process.poll() is None
    os.kill(process.pid, number)
    process.communicate(timeout=60)
    assert process.returncode == process.poll() == status


def test_random_numbers_differ_from_start_to_start(program):
    code = "import random, numpy, torch\nprint(random.random(), numpy.random.rand(), torch.rand(1).item())"
    first, second = (program(code).communicate(timeout=60)[0].split() for _ in range(2))
    assert len(first) == 3 and not set(first) & set(second)


@only_forks
def test_a_fork_begins_with_torch_and_with_one_thread(program):
    code = "import os, sys\nprint('torch' in sys.modules, len(os.listdir('/proc/self/task')))"
    assert program(code).communicate(timeout=60)[0] == "True 1\n"
    assert program(code, fresh=True).communicate(timeout=60)[0] == "False 1\n"


@only_forks
def test_what_python_reads_at_its_start_makes_a_true_start(program):
    process = program(
        "import sys\nprint(sys.flags.dev_mode)", environment={**forkserver.ENVIRONMENT, "PYTHONDEVMODE": "1"}
    )
    assert isinstance(process, subprocess.Popen) and process.communicate(timeout=60)[0] == "True\n"


@only_forks
def test_a_fork_holds_no_file_of_others(program):
    """An open pipe of another fork would keep its reader waiting."""
    code = "import os\nprint(*sorted(os.listdir('/proc/self/fd')))"
    with program("import time; print(1, flush=True); time.sleep(60)") as other:
        other.stdout.readline()
        assert program(code).communicate(timeout=60)[0] == "0 1 2 3\n", "3 is the listing's own"
        other.kill()


def runs(pid: str) -> bool:
    """Whether the process is there, and no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


@only_forks
def test_the_server_ends_with_pytest_and_takes_its_forks_along(tmp_path):
    """Also when pytest is killed."""
    (tmp_path / "sleep.py").write_text("import os, time\nprint(os.getpid(), flush=True)\ntime.sleep(60)\n")
    holder = f"""
import sys, time
sys.path.insert(0, {str(ROOT / "tests")!r})
import forkserver
forkserver.imports = list
process = forkserver.start({str(tmp_path / "sleep.py")!r})
print(process.stdout.readline().strip(), forkserver.SERVER.process.pid, flush=True)
time.sleep(60)
"""
    with subprocess.Popen([sys.executable, "-c", holder], stdout=subprocess.PIPE, text=True) as process:
        pids = process.stdout.readline().split()
        process.kill()
    deadline = time.monotonic() + 60
    while any(runs(pid) for pid in pids):
        assert time.monotonic() < deadline, pids
        time.sleep(0.05)
    assert len(pids) == 2


@pytest.fixture(scope="module")
def bare_server() -> Iterator[forkserver.Server]:
    """A server that has imported torch alone: most of the time that a start takes, and part of each script's."""
    server = forkserver.Server(["torch"])
    yield server
    server.stop()


@only_forks
@pytest.mark.parametrize("name", SCRIPTS)
def test_each_script_starts_where_nothing_but_torch_was_imported(bare_server, name, tmp_path):
    """An import that is missing in a script, and that the fork server's own imports would hide, fails here."""
    process = bare_server.fork([str(ROOT / name), "--help"], tmp_path, forkserver.ENVIRONMENT)
    printed, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (0, "") and name in printed


@only_forks
def test_a_bare_server_has_not_what_the_other_has(bare_server, program, tmp_path):
    code = "import sys\nprint(*({'torch', 'timm', 'train'} & set(sys.modules)))"
    assert program(code).communicate(timeout=60)[0].split() != ["torch"]
    process = bare_server.fork([str(tmp_path / "program.py")], tmp_path, forkserver.ENVIRONMENT)
    assert process.communicate(timeout=60)[0].split() == ["torch"]


@only_forks
def test_what_libraries_put_into_the_environment_of_the_tests_costs_no_fork(program, monkeypatch):
    monkeypatch.setenv("SET_BY_A_LIBRARY", "1")
    code = "import os, sys\nprint('torch' in sys.modules, 'SET_BY_A_LIBRARY' in os.environ)"
    assert program(code).communicate(timeout=60)[0] == "True False\n"
