"""What only a GPU can show, in one command: the tests that need one, speed, and a training.

    python -m tools.gpu --output gpu                                    # all; minutes
    python -m tools.gpu --output gpu --parts tests speed                # without the training
    python -m tools.gpu --output gpu --parts train --config FILE --minutes 60

Each part writes what it prints into a log in the folder, speed also every single time as JSON, and the training its
weights in half precision. Run it in the root of the repository; needs requirements/dev.txt.
"""

from __future__ import annotations

import itertools
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.timing import Options, random_network
from config import Config
from user_input.flags import Parser, number
from utils import run, whole_file

ENCODERS = ("mobilenetv2_paper", "tf_efficientnet_lite0", "resnet50")
ROWS = "channels_last,autocast,eager,cudagraph"
PARTS = ("tests", "speed", "train")
CONFIG = "configs/nyudv2_lite0_gpu.yaml"


def call(name: str, words: Sequence[object], folder: Path, minutes: float = 0) -> bool:
    """Runs `python WORDS`, its output in the folder's NAME.log, and says how it ended. Returns whether it went well.

    After `minutes` (0 = never) it is asked to stop.
    """
    began, log = time.monotonic(), folder / f"{name}.log"
    with log.open("w") as out:
        process = subprocess.Popen([sys.executable, *map(str, words)], stdout=out, stderr=subprocess.STDOUT)
        try:
            process.wait(60 * minutes or None)
        except subprocess.TimeoutExpired:
            process.terminate()  # Ctrl-C would not reach it where this program runs in a shell's background
            process.wait()
    stopped = bool(minutes) and process.returncode in (128 + signal.SIGTERM, -signal.SIGTERM)
    ending = "done" if process.returncode == 0 else "stopped in time" if stopped else f"FAILED ({process.returncode})"
    print(f"{name}: {ending}, {time.monotonic() - began:.0f} s, {log}", flush=True)
    return process.returncode == 0 or stopped


def speed(folder: Path, repeats: int) -> Iterator[tuple[str, list[object]]]:
    """(name, words) of each measurement."""
    for encoder in ENCODERS:
        common = ["benchmark.py", "backends", "--encoders", encoder, "--rows", ROWS, "--repeats", repeats, "--no_start"]
        for batch in (1, 32):
            name = f"speed_{encoder}_{batch}"
            yield name, [*common, "--batch_size", batch, "--json", folder / f"{name}.json"]
    for precision in ("fp32", "auto"):
        words = ["benchmark.py", "train", "--encoders", ",".join(ENCODERS), "--batch_size", 16, "--size", "480x368"]
        yield f"speed_steps_{precision}", [*words, "--precision", precision, "--repeats", repeats]


def write_profile(encoder: str, backend: str, device: torch.device, path: Path) -> None:
    """Torch's own table of where a prediction spends its time, by operator or kernel and shapes: the slowest 40."""
    options = Options(480, 640, 1, device)
    predictor = options.predictor(options.network(partial(random_network, Config(encoder=encoder), 40)), backend)
    pictures = [options.picture()]
    for _ in range(3):
        predictor.batch(pictures)
    kinds = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device.type == "cuda" else [])]
    with profile(activities=kinds, record_shapes=True) as found:
        predictor.batch(pictures)
    sort = "self_device_time_total" if device.type == "cuda" else "self_cpu_time_total"
    table = found.key_averages(group_by_input_shape=True).table(sort, row_limit=40, max_shapes_column_width=60)
    with whole_file(path) as temporary:
        temporary.write_text(table)


def main() -> int:
    """Returns the exit status: 1 where a part failed. Raises ValueError."""
    parser = Parser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--output", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--parts", nargs="+", default=PARTS, choices=PARTS, help="default: all")
    parser.add_argument("--config", default=CONFIG, metavar="FILE", help=f"of the training; default: {CONFIG}")
    parser.add_argument("--minutes", type=number(float, 0, 10**5), default=0, help="of training; 0 = all epochs")
    parser.add_argument("--repeats", type=number(int, 1, 10**4), default=50, help="of each time; default: 50")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        raise ValueError("torch sees no CUDA device")
    folder = arguments.output
    folder.mkdir(parents=True, exist_ok=True)
    fine = True
    if "tests" in arguments.parts:
        fine &= call("tests", ["-m", "pytest", "-m", "gpu", "-n", "6", "--durations=20", "tests/test_gpu.py"], folder)
    if "speed" in arguments.parts:
        for name, words in speed(folder, arguments.repeats):
            fine &= call(name, words, folder)
        for encoder, backend in itertools.product(ENCODERS, ("eager", "cudagraph")):
            write_profile(encoder, backend, torch.device("cuda:0"), folder / f"profile_{encoder}_{backend}.log")
    if "train" in arguments.parts:
        given = folder / "run"
        fine &= call("train", ["train.py", "--config", arguments.config, "--run", given], folder, arguments.minutes)
        # best.pt comes with the first evaluation, which a training that is stopped in time may not reach.
        kept = [path for path in (given / "best.pt", given / "last.pt") if path.is_file()]
        if kept:
            shutil.copy(given / "log.jsonl", folder)
            words = ["export.py", "--checkpoint", kept[0], "--format", "safetensors", "--half"]
            fine &= call("export", [*words, "--output", folder / f"{kept[0].stem}.safetensors"], folder)
    return 0 if fine else 1


if __name__ == "__main__":
    run(main)
