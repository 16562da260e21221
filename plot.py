"""Draws the curves of one or several runs into a PNG.

python plot.py runs/a runs/b --output curves.png
python plot.py runs/a --metrics train/depth,val/segmentation/miou
"""

from __future__ import annotations

import startup  # noqa: F401 - first

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from user_input.flags import Parser
from user_input.values import convert, near
from utils import run, whole_file

NOT_CURVES = {"kind", "step", "epoch"}
LARGEST = 1e100  # of a value: matplotlib's axes overflow somewhat below 1e308
Curve = dict[int, float]  # step -> value


def read_curves(folder: Path) -> dict[str, Curve]:
    """log.jsonl of a run -> {"train/depth": curve, "val/depth/rmse": curve, ...}, in the order of the file.

    Of two reports of one step, which a resumed run may have, the later one counts. Raises FileNotFoundError, or
    ValueError that names the line.
    """
    path = folder / "log.jsonl" if folder.is_dir() else folder
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such log; give the folder of a run")
    curves: dict[str, Curve] = {}
    with path.open(encoding="utf-8", errors="replace") as file:
        for number, line in enumerate(file, 1):
            try:
                kind, step, values = read_report(line)
            except (ValueError, KeyError, TypeError, RecursionError, OverflowError):
                raise ValueError(f"{path}:{number}: not a line of a log: {line.strip()[:60]!r}") from None
            for name, value in values.items():
                curves.setdefault(f"{kind}/{name}", {})[step] = value
    if not curves:
        raise ValueError(f"{path}: nothing was reported yet")
    return curves


def read_report(line: str) -> tuple[str, int, dict[str, float]]:
    """A line of log.jsonl -> kind, step, {name: value}. NaN and infinite values, which a diverged loss has, are kept.

    Raises ValueError, KeyError, TypeError, RecursionError or OverflowError.
    """
    entry = json.loads(line)
    kind, step = entry["kind"], entry["step"]
    values = {name: value for name, value in entry.items() if name not in NOT_CURVES}
    numbers = all(isinstance(value, int | float) and not isinstance(value, bool) for value in values.values())
    if not isinstance(kind, str) or type(step) is not int or not 0 <= step < 2**53 or not numbers:
        raise ValueError
    return kind, step, {name: float(value) for name, value in values.items()}


def default_metrics(names: Sequence[str]) -> list[str]:
    """The losses and main metrics among the names: no learning rates, weights or speeds, and no single classes."""
    details = ("lr_", "weight/", "images_per_s", "waiting_for_data")
    return [
        name for name in names
        if (name.startswith("train/") and not name.removeprefix("train/").startswith(details))
        or name.endswith(("/miou", "/rmse", "/abs_rel", "/mean"))
    ]  # fmt: skip


def draw(runs: Mapping[str, Mapping[str, Curve]], names: Sequence[str], path: Path) -> None:
    """One small chart for each name, one color for each run; values beyond LARGEST are gaps."""
    from matplotlib.figure import Figure

    columns = min(3, len(names))
    rows = -(-len(names) // columns)
    figure = Figure((4.2 * columns, 3 * rows), layout="constrained")
    lines = {}
    for axes, name in zip(figure.subplots(rows, columns, squeeze=False).flat, names, strict=False):
        for number, (run_name, curves) in enumerate(runs.items()):
            if curve := sorted(curves.get(name, {}).items()):
                steps, values = zip(*curve, strict=True)
                values = [value if abs(value) < LARGEST else math.nan for value in values]
                marker = "o" if name.startswith("val/") else ""
                lines[run_name] = axes.plot(steps, values, color=f"C{number}", marker=marker, markersize=3)[0]
        axes.set_title(name, fontsize=10)
        axes.set_xlabel("step", fontsize=8)
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    for axes in figure.axes[len(names) :]:
        axes.set_visible(False)
    if len(runs) > 1:
        shown = {name: lines[name] for name in runs if name in lines}
        figure.legend(shown.values(), shown.keys(), loc="outside lower center", ncols=min(4, len(shown)))
    with whole_file(path) as temporary:
        figure.savefig(temporary, format="png", dpi=150)


def main() -> None:
    parser = Parser(description="Draws the curves of runs.")
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="a run's folder, or its log.jsonl")
    parser.add_argument("--metrics", metavar="NAME,NAME,...", help="default: the losses and main metrics")
    parser.add_argument("--output", type=Path, default=Path("curves.png"), metavar="PNG")
    arguments = parser.parse_args()
    runs = {folder.name: read_curves(folder) for folder in arguments.runs}
    if len(runs) < len(arguments.runs):
        runs = {str(folder): read_curves(folder) for folder in arguments.runs}
    known = list(dict.fromkeys(name for curves in runs.values() for name in curves))
    if arguments.metrics is None:
        names = default_metrics(known) or known
    else:
        names = list(dict.fromkeys(convert(arguments.metrics, tuple[str, ...], "--metrics")))
    for name in names:
        if name not in known:
            raise ValueError(f"--metrics: no run has {name!r}{near(name, known)}; known: {', '.join(known)}")
    if not names:
        raise ValueError(f"--metrics {arguments.metrics!r} names no curve; known: {', '.join(known)}")
    draw(runs, names, arguments.output)
    print(f"{arguments.output}: {len(names)} charts of {len(runs)} run{'s' if len(runs) > 1 else ''}")


if __name__ == "__main__":
    run(main)
