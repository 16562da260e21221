"""Draws the curves of one or several runs into a PNG.

python plot.py runs/a runs/b --output curves.png
python plot.py runs/a --metrics train/depth,val/segmentation/miou
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import openmp  # noqa: F401 - before torch

from config import Parser, convert, near
from utils import require, run, whole_file

NOT_CURVES = {"kind", "step", "epoch"}
Curve = dict[int, float]  # step -> value


def read_curves(folder: Path) -> dict[str, Curve]:
    """{"train/depth": curve, "val/depth/rmse": curve, ...} of a run's log.jsonl, in its order.

    Raises FileNotFoundError or ValueError with the line. What a run that was killed had reported twice counts once.
    """
    path = folder / "log.jsonl" if folder.is_dir() else folder
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such log; give the folder of a run")
    curves: dict[str, Curve] = {}
    for number, line in enumerate(path.read_text().splitlines(), 1):
        try:
            entry = json.loads(line)
            kind, step = entry["kind"], int(entry["step"])
        except (ValueError, KeyError, TypeError):
            raise ValueError(f"{path}:{number}: not a line of a log") from None
        for name, value in entry.items():
            if name not in NOT_CURVES:
                curves.setdefault(f"{kind}/{name}", {})[step] = float(value)
    if not curves:
        raise ValueError(f"{path}: nothing was reported yet")
    return curves


def usual(names: Sequence[str]) -> list[str]:
    """Losses, and the metrics that are no details: not those of a single class, no rates."""
    details = ("lr_", "weight/", "images_per_s", "waiting_for_data")
    return [
        name for name in names
        if (name.startswith("train/") and not name.removeprefix("train/").startswith(details))
        or name.endswith(("/miou", "/rmse", "/abs_rel", "/mean"))
    ]  # fmt: skip


def draw(runs: Mapping[str, Mapping[str, Curve]], names: Sequence[str], path: Path) -> None:
    """One small chart for each name, one colour for each run."""
    require("matplotlib")
    from matplotlib.figure import Figure

    columns = min(3, len(names))
    rows = -(-len(names) // columns)
    figure = Figure((4.2 * columns, 3 * rows), layout="constrained")
    for axes, name in zip(figure.subplots(rows, columns, squeeze=False).flat, names, strict=False):
        for number, (run_name, curves) in enumerate(runs.items()):
            if curve := sorted(curves.get(name, {}).items()):
                marker = "o" if name.startswith("val/") else ""
                axes.plot(*zip(*curve, strict=True), color=f"C{number}", label=run_name, marker=marker, markersize=3)
        axes.set_title(name, fontsize=10)
        axes.set_xlabel("step", fontsize=8)
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    for axes in figure.axes[len(names) :]:
        axes.set_visible(False)
    if len(runs) > 1:
        figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=min(4, len(runs)))
    with whole_file(path) as temporary:
        figure.savefig(temporary, format="png", dpi=150)


def main() -> None:
    parser = Parser(description="Draws the curves of runs.")
    parser.add_argument("runs", nargs="+", metavar="RUN")
    parser.add_argument("--metrics", default="", metavar="NAME,NAME,...", help="default: the losses and main metrics")
    parser.add_argument("--output", default="curves.png", metavar="PNG")
    arguments = parser.parse_args()
    runs = {Path(folder).name: read_curves(Path(folder)) for folder in arguments.runs}
    if len(runs) < len(arguments.runs):
        runs = {folder: read_curves(Path(folder)) for folder in arguments.runs}
    known = list(dict.fromkeys(name for curves in runs.values() for name in curves))
    names = list(convert(arguments.metrics, tuple[str, ...], "--metrics")) if arguments.metrics else usual(known)
    for name in names:
        if name not in known:
            raise ValueError(f"--metrics: no run has {name!r}{near(name, known)}; known: {', '.join(known)}")
    draw(runs, names, Path(arguments.output))
    print(f"{arguments.output}: {len(names)} charts of {len(runs)} run{'s' if len(runs) > 1 else ''}")


if __name__ == "__main__":
    run(main)
