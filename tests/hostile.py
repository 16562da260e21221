"""What becomes of hostile files in inference, `prepare.py check` and training, and of hostile checkpoints.

    PYTHONPATH=. python tests/hostile.py runs/demo/best.pt    # the table of docs/RELIABILITY.md

Inference, `prepare.py check` and the training's reader go through a folder of all cases of hostile_files.py. Each file
is read rightly, or refused in one line that names it; nothing is written outside of the output folder.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

import numpy as np
import torch
import yaml
from hostile_files import HEIGHT, WIDTH, Case, all_cases, checkpoints, picture, write_cases
from PIL import Image

from config import Config
from dataset import Frames
from deploy.image_folder import output_stems
from folders import make_tasks, parse_line, read_folder
from images import find_images, read_image
from model import load_network
from utils import printable

ROOT = Path(__file__).resolve().parents[1]
MEMORY_MIB = 2048

# Its own peak of memory: what the kernel tells a parent also counts the parent.
MEASURED = """
import atexit, pathlib, runpy, sys
_, peak, root, script, *arguments = sys.argv
atexit.register(lambda: pathlib.Path(peak).write_text(pathlib.Path("/proc/self/status").read_text()))
sys.path.insert(0, root)
sys.argv = [script, *arguments]
runpy.run_path(script, run_name="__main__")
"""


def run_measured(script: str, *arguments: object, cwd: Path) -> tuple[subprocess.CompletedProcess[str], float]:
    """What a script printed, and its peak of memory in MiB."""
    with tempfile.TemporaryDirectory() as folder:
        peak = Path(folder) / "status"
        words = [sys.executable, "-c", MEASURED, str(peak), str(ROOT), str(ROOT / script), *map(str, arguments)]
        done = subprocess.run(words, cwd=cwd, capture_output=True, text=True, timeout=600, errors="backslashreplace")
        return done, int(peak.read_text().split("VmHWM:")[1].split()[0]) / 1024


def through_inference(checkpoint: Path, where: Path, cases: list[Case]) -> dict[str, str]:
    """{name of a case: what went wrong}; {} is what we want."""
    source, output, wrong = where / "in", where / "out", {}
    write_cases(source, cases)
    before = set(where.rglob("*"))
    options = ["--checkpoint", checkpoint, "--input", source, "--output", output]
    done, peak = run_measured("inference.py", *options, cwd=where)
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    if "Traceback" in done.stderr or done.returncode != 1:
        wrong["the program"] = f"status {done.returncode}: {done.stderr[-800:]}"
    if peak > MEMORY_MIB:
        wrong["memory"] = f"{peak:.0f} MiB"
    strays = [path for path in set(where.rglob("*")) - before if path != output and output not in path.parents]
    if strays:
        wrong["other folders"] = f"written: {', '.join(map(str, strays))}"
    images = find_images(source, output)
    stems = dict(zip(images, output_stems(images, source, output), strict=True))
    for case in cases:
        path, found = source / case.name, "ignored"
        if path in stems:
            ids = stems[path].with_name(f"{stems[path].name}_segmentation.png")
            refused = any(names_it(line, case.name) for line in errors)
            found = "read" if os.path.isfile(ids) else "refused" if refused else ""
        if case.outcome != found and not (case.outcome == "either" and found in ("read", "refused")):
            wrong[case.name] = f"{found or 'nothing'} instead of {case.outcome}"
        elif found == "read":
            with Image.open(ids) as written:
                size = written.size[::-1]
            if case.outcome == "read" and size != case.size:
                wrong[case.name] = f"{size} instead of {case.size}"
    read = len(list(output.glob("*_overview.jpg")))
    if f"{read} of {len(images)} images predicted" not in done.stdout or len(errors) != len(images) - read:
        wrong["the count"] = f"{read} read, {len(errors)} refused: {done.stdout.splitlines()[-1:]}"
    return wrong


def names_it(line: str, name: str) -> bool:
    """Whether an error line, whose white space is single blanks, names the file."""
    return printable(" ".join(name.encode(errors="backslashreplace").decode().split())) in line


def make_data(folder: Path, cases: list[Case]) -> list[Case]:
    """A data set with a good frame and one of each case whose name can stand in a list file. Returns these cases."""
    listed = [
        case
        for case in cases
        if case.outcome != "ignored" and not set(case.name) & set("\n\t") and case.name == case.name.strip()
        and case.name.isprintable()
    ]  # fmt: skip
    write_cases(folder / "rgb", listed)
    (folder / "masks").mkdir()
    Image.fromarray(picture()).save(folder / "rgb" / "good.bmp")
    Image.fromarray(np.zeros((HEIGHT, WIDTH), np.uint8)).save(folder / "masks" / "good.png")
    lines = ["rgb/good.bmp\tmasks/good.png", *(f"rgb/{case.name}\t-" for case in listed)]
    (folder / "train.txt").write_text("\n".join(lines), encoding="utf-8")
    settings = {
        "name": "hostile", "splits": {"train": "train.txt"}, "columns": ["image", "segmentation"],
        "segmentation": {"classes": ["wall", "floor"]},
    }  # fmt: skip
    (folder / "dataset.yaml").write_text(yaml.safe_dump(settings))
    return listed


def readable(path: Path) -> bool:
    try:
        return read_image(path).ndim == 3
    except (ValueError, FileNotFoundError):
        return False


def through_check(where: Path, cases: list[Case]) -> dict[str, str]:
    """{name of a case: what went wrong} in `prepare.py check`."""
    wrong = {}
    listed = make_data(where / "data", cases)
    done, peak = run_measured("prepare.py", "check", where / "data", "--output", where, cwd=where)
    if "Traceback" in done.stderr or done.returncode not in (0, 1):
        wrong["the program"] = f"status {done.returncode}: {done.stderr[-800:]}"
    if peak > MEMORY_MIB:
        wrong["memory"] = f"{peak:.0f} MiB"
    found = [int(line.split(": ")[1]) for line in done.stdout.splitlines() if line.startswith("  unreadable image: ")]
    missing = [int(line.split(": ")[1]) for line in done.stdout.splitlines() if line.startswith("  missing file: ")]
    count = sum(found + missing)
    refused = [
        case.name for case in listed if case.outcome == "refused" or not readable(where / "data/rgb" / case.name)
    ]
    if count != len(refused):
        wrong["the count"] = f"{count} unreadable images, expected {len(refused)}"
    return wrong


def through_training(where: Path, cases: list[Case]) -> dict[str, str]:
    """{name of a case: what went wrong} where training reads its frames and makes views of them."""
    wrong = {}
    listed = make_data(where / "data", cases)
    folder = read_folder(where / "data")
    # The list names what is no file: `read_list` would refuse it as a whole, so frame by frame.
    config = Config(data={str(where / "data"): 1.0}, crop=(32, 32), long_side=48, tasks=("segmentation",))
    tasks = make_tasks(folder, config)
    for case in listed:
        frame = parse_line(folder, "train.txt:1", f"rgb/{case.name}\t-")
        frames = Frames(folder, [frame], tasks, config, train=True)
        try:
            view = frames[0, 0]["image"]
        except (ValueError, FileNotFoundError) as problem:
            found = "refused"
            if not names_it(" ".join(str(problem).split()), case.name):
                wrong[case.name] = f"refused without its name: {problem}"
        except Exception as problem:
            found = f"{type(problem).__name__} ({problem})"
        else:
            found = "read"
            if tuple(view.shape) != (3, 32, 32):
                wrong[case.name] = f"a view of {tuple(view.shape)}"
            pixels = frames.read(0)["image"]
            if case.outcome == "read" and pixels.shape[:2] != case.size:
                wrong[case.name] = f"{pixels.shape} instead of {case.size}"
            if case.pixels is not None and not np.array_equal(pixels, case.pixels):
                wrong[case.name] = "other pixels than were written"
        if case.outcome != found and not (case.outcome == "either" and found in ("read", "refused")):
            wrong[case.name] = f"{found} instead of {case.outcome}"
    return wrong


# ---------------------------------------------------------------------------------------------- checkpoints


def through_loading(good: Path, where: Path) -> dict[str, dict[str, str]]:
    """{group: {name: what went wrong}} of checkpoints that are not as they should be. No code in them may run."""
    found: dict[str, dict[str, str]] = {}
    reference = load_network(good).state_dict()
    here = Path.cwd()
    where.mkdir(parents=True)
    os.chdir(where)
    try:
        for group, name, content in checkpoints(good):
            wrong = found.setdefault(group, {})
            path = where / name
            path.write_bytes(content) if isinstance(content, bytes) else torch.save(content, path)
            try:
                loaded = load_network(path).state_dict()
            except (ValueError, FileNotFoundError) as problem:
                if str(path) not in str(problem) or "\n" in str(problem):
                    wrong[name] = f"the message does not name it in one line: {problem}"
            except Exception as problem:
                wrong[name] = f"{type(problem).__name__}: {problem}"
            else:
                same = loaded.keys() == reference.keys() and all(
                    torch.equal(loaded[key], value) for key, value in reference.items()
                )
                if not same or group not in ("one bit changed", "truncated"):
                    wrong[name] = "loaded"  # a bit that means nothing may change
            if Path("executed").exists():
                wrong[name] = "its code was executed"
                Path("executed").rmdir()
            path.unlink()
            found.setdefault(f"{group}: tried", {})[name] = ""
    finally:
        os.chdir(here)
    return found


def main() -> None:
    checkpoint = Path(sys.argv[1]).resolve()  # the scripts run in other folders
    cases = all_cases()
    with tempfile.TemporaryDirectory() as folder:
        where = Path(folder)
        ways = {
            "inference.py": through_inference(checkpoint, where / "inference", cases),
            "prepare.py check": through_check(where / "check", cases),
            "training": through_training(where / "training", cases),
        }
        print(f"| pictures | tried | {' | '.join(ways)} |\n|---|---|---|---|---|")
        for group, count in Counter(case.group for case in cases).items():
            names = [case.name for case in cases if case.group == group]
            good = [count - len(wrong.keys() & set(names)) for wrong in ways.values()]
            print(f"| {group} | {count} | {' | '.join(map(str, good))} |")
        for title, wrong in ways.items():
            for name, what in wrong.items():
                print(f"{title}: {name}: {what}", file=sys.stderr)
        print("\n| checkpoints | tried | as they should be |\n|---|---|---|")
        found = through_loading(checkpoint, where / "checkpoints")
        for group in [group for group in found if not group.endswith(": tried")]:
            tried = len(found[f"{group}: tried"])
            print(f"| {group} | {tried} | {tried - len(found[group])} |")
            for name, what in found[group].items():
                print(f"checkpoint: {name}: {what}", file=sys.stderr)


if __name__ == "__main__":
    main()
