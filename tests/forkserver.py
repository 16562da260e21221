"""Fork server: starts the project's scripts without importing torch again each time.

One child process of pytest imports the heavy packages and the scripts once. For each start it forks, and the fork runs
the script as `python script.py` would: its own process, working directory, environment, arguments, pipes, signals and
exit status. What a fork cannot show is what a process reads before the script's first line, so that `start` makes a
true start for changed environment variables outside AT_RUN_TIME. Hash seeds are the server's: the order of a set is
the same in all forks. Linux only; elsewhere each start is a true one.
"""

from __future__ import annotations

import array
import contextlib
import gc
import importlib
import json
import os
import random
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import types
from collections.abc import Mapping
from pathlib import Path
from typing import IO

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = (
    "torch", "torch._dynamo", "torch.utils.tensorboard", "torchvision", "timm", "albumentations", "cv2", "PIL.Image",
    "yaml", "safetensors.torch", "tqdm",
)  # fmt: skip
# The environment of a user. Libraries that tests import later put variables of their own into os.environ.
ENVIRONMENT = dict(os.environ)
# Environment variables that are read while a script runs, not when a package is imported or Python starts.
AT_RUN_TIME = {
    "TRACEBACK", "TMPDIR", "RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT",
    "TORCHELASTIC_USE_AGENT_STORE", "GLOO_SOCKET_IFNAME", "PYTEST_CURRENT_TEST", "PWD", "OLDPWD",
}  # fmt: skip


# ---------------------------------------------------------------------------------------------- in pytest


class Fork:
    """A script that runs in a fork of the server. Its interface is the part of subprocess.Popen that tests use."""

    def __init__(self, args: list[str], pid: int, status: int, stdout: IO[str], stderr: IO[str]) -> None:
        self.args, self.pid, self.returncode = args, pid, None
        self.stdout, self.stderr = stdout, stderr
        self._status = status
        self._printed: dict[str, str] = {}
        self._readers: list[threading.Thread] = []

    def wait(self, timeout: float | None = None) -> int:
        """The exit status, -N after signal N. Raises TimeoutExpired."""
        if self.returncode is None:
            if not select.select([self._status], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired(self.args, timeout)
            status = os.read(self._status, 4)
            os.close(self._status)
            if not status:
                raise RuntimeError("the fork server ended before the script that it started")
            self.returncode = int.from_bytes(status, "little", signed=True)
        return self.returncode

    def poll(self) -> int | None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            return self.wait(0)
        return None

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """What it printed, (stdout, stderr). Raises TimeoutExpired; another call goes on reading."""
        deadline = None if timeout is None else time.monotonic() + timeout
        if not self._readers:
            for name in ("stdout", "stderr"):
                reader = threading.Thread(target=self._read, args=(name,), daemon=True)
                reader.start()
                self._readers.append(reader)
        for reader in self._readers:
            reader.join(None if deadline is None else max(0, deadline - time.monotonic()))
            if reader.is_alive():
                raise subprocess.TimeoutExpired(self.args, timeout)
        self.wait(None if deadline is None else max(0, deadline - time.monotonic()))
        return self._printed["stdout"], self._printed["stderr"]

    def _read(self, name: str) -> None:
        with getattr(self, name) as file:
            self._printed[name] = file.read()

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def __enter__(self) -> Fork:
        return self

    def __exit__(self, *_: object) -> None:
        self.stdout.close()
        self.stderr.close()
        self.wait()


def imports() -> list[str]:
    """What the server imports: the heavy packages, and the scripts, which import the rest of the project."""
    return [*PACKAGES, *(path.stem for path in sorted(ROOT.glob("*.py")) if "\ndef main(" in path.read_text())]


class Server:
    """The server's end in pytest: started with the first fork, ended with the process that holds it.

    modules: the names of what it imports, else `imports()`.
    """

    def __init__(self, modules: list[str] | None = None) -> None:
        self.modules = modules
        self.process: subprocess.Popen[bytes] | None = None
        self.socket: socket.socket | None = None

    def _launch(self) -> None:
        self.socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        modules = imports() if self.modules is None else self.modules
        words = [sys.executable, str(Path(__file__).resolve()), str(theirs.fileno()), *modules]
        self.process = subprocess.Popen(
            words, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, pass_fds=[theirs.fileno()], env=ENVIRONMENT
        )
        theirs.close()

    def fork(self, words: list[str], cwd: Path, environment: Mapping[str, str], new_session: bool = False) -> Fork:
        """`python WORDS...`; words[0] is the script's full path. `environment`: as `can_fork` allows."""
        if not self.process:
            self._launch()
        (out, out_of_script), (errors, errors_of_script), (status, status_of_server) = (os.pipe() for _ in range(3))
        request = {"words": words, "cwd": str(cwd), "environment": dict(environment), "new_session": new_session}
        handles = [out_of_script, errors_of_script, status_of_server]
        try:
            ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", handles))]
            self.socket.sendmsg([json.dumps(request).encode()], ancillary)
        finally:
            for handle in handles:
                os.close(handle)
        pid = os.read(status, 4)
        if not pid:
            raise RuntimeError(f"the fork server ended (status {self.process.poll()})")
        files = (os.fdopen(handle, encoding="utf-8") for handle in (out, errors))
        return Fork([sys.executable, *words], int.from_bytes(pid, "little"), status, *files)

    def stop(self) -> None:
        if self.process:
            self.socket.close()  # the server ends when it sees this, also when pytest was killed
            self.process.wait(60)
            self.process = None


SERVER = Server()


def can_fork(environment: Mapping[str, str]) -> bool:
    """Whether a fork of a server sees the environment that a new process would."""
    changed = ENVIRONMENT.items() ^ environment.items()
    return {name for name, _ in changed} <= AT_RUN_TIME


def start(
    *words: object,
    cwd: Path | None = None,
    environment: Mapping[str, str] | None = None,
    new_session: bool = False,
    fresh: bool = False,
) -> Fork | subprocess.Popen[str]:
    """Starts `python WORDS...` with pipes for both outputs; words[0] is the script, relative to the repository, or the
    dotted name of a module, which is started with -m.

    fresh: a true start, for what a fork cannot show: imports that are missing, packages that are not installed, limits.
    """
    words = [str(word) for word in words]
    values = dict(ENVIRONMENT if environment is None else environment)
    if words[0].endswith(".py"):
        words[0] = str(ROOT / words[0])
    else:
        words, values, fresh = ["-m", *words], {**values, "PYTHONPATH": str(ROOT)}, True
    if not fresh and sys.platform == "linux" and can_fork(values):
        return SERVER.fork(words, cwd or Path.cwd(), values, new_session)
    return subprocess.Popen(
        [sys.executable, *words], cwd=cwd, env=values, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        start_new_session=new_session,
    )  # fmt: skip


# ---------------------------------------------------------------------------------------------- in the server


def preload(names: list[str]) -> None:
    """Imports the modules. No tensor is touched, so that no thread exists when the server forks."""
    for name in names:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    gc.collect()
    gc.freeze()  # garbage collections of the forks leave these objects, and so their memory pages, alone


class Requests:
    """The server's loop: reads requests, forks, and reports exit statuses."""

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        self.parent = os.getppid()
        self.running: dict[int, int] = {}  # process id: the pipe for its status
        self.interrupt = signal.getsignal(signal.SIGINT)
        self.awake, self.wake = os.pipe()
        for handle in (self.awake, self.wake):
            os.set_blocking(handle, False)
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C ends pytest, and that ends the server
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(self.wake)

    def next(self) -> dict[str, object] | None:
        """In a fork: the request that it is to run. In the server, None when pytest has ended."""
        while os.getppid() == self.parent:
            ready = select.select([self.connection, self.awake], [], [], 2)[0]
            if self.awake in ready:
                os.read(self.awake, 4096)
                self._report()
            if self.connection in ready:
                data, handles, _, _ = socket.recv_fds(self.connection, 2**20, 3)
                if not data:
                    break
                request = json.loads(data)
                if self._fork(*handles):
                    return request
        for pid in self.running:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return None

    def _fork(self, out: int, errors: int, status: int) -> bool:
        """Forks; True in the fork."""
        pid = os.fork()
        if pid:
            self.running[pid] = status
            os.close(out)
            os.close(errors)
            os.write(status, pid.to_bytes(4, "little"))
            return False
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        signal.signal(signal.SIGINT, self.interrupt)
        os.dup2(out, 1)
        os.dup2(errors, 2)
        for handle in (out, errors, status, self.awake, self.wake, *self.running.values()):
            os.close(handle)
        self.connection.close()
        return True

    def _report(self) -> None:
        while self.running:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if not pid:
                break
            handle = self.running.pop(pid)
            with contextlib.suppress(BrokenPipeError):  # nobody waits for it
                os.write(handle, os.waitstatus_to_exitcode(status).to_bytes(4, "little", signed=True))
            os.close(handle)


def leave(status: int) -> None:
    """Ends the process with what Python does at its end, except for taking its modules apart: that writes to nearly
    all memory pages that the fork shares with the server, two thirds of a short script's CPU time."""
    import atexit
    import ctypes
    import os
    import sys
    import threading

    threading._shutdown()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    ctypes.CDLL(None).fflush(None)
    os._exit(status & 0xFF)


def become(words: list[str], cwd: str, environment: dict[str, str], new_session: bool) -> types.CodeType:
    """Turns the fork into the process of `python WORDS...`; returns the script's code."""
    if new_session:
        os.setsid()
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(cwd)
    sys.argv = words
    sys.orig_argv = [sys.executable, *words]
    sys.path[0] = str(Path(words[0]).parent)
    tempfile.tempdir = None  # TMPDIR may be another
    random.seed()
    for name, module in (("numpy", "random"), ("torch", "default_generator")):
        if name in sys.modules:
            getattr(sys.modules[name], module).seed()
    code = compile(Path(words[0]).read_bytes(), words[0], "exec", dont_inherit=True)
    main = vars(sys.modules["__main__"])
    for name in [name for name in main if not name.startswith("__")]:  # what this file defines
        del main[name]
    main |= {"__file__": words[0], "__doc__": None, "__annotations__": {}}
    return code


def run(request: dict[str, object]) -> None:
    """Runs the script as __main__. What it raises ends the process as it does in a true start."""
    main, end = vars(sys.modules["__main__"]), leave  # `become` deletes the names of this file
    code, status = become(**request), 0
    try:
        exec(code, main)
    except SystemExit as exit:
        if not isinstance(exit.code, int | None):
            raise
        status = exit.code or 0
    end(status)


if __name__ == "__main__":
    sys.path[0] = str(ROOT)
    preload(sys.argv[2:])
    request = Requests(socket.socket(fileno=int(sys.argv[1]))).next()
    if request:
        run(request)
