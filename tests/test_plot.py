from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from matplotlib.figure import Figure
from PIL import Image

import plot
from plot import default_metrics, read_curves


def write_log(folder: Path, *reports: dict[str, object]) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "log.jsonl").write_text("".join(json.dumps(report) + "\n" for report in reports))
    return folder


def run_plot(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> None:
    monkeypatch.setattr(sys, "argv", ["plot.py", *map(str, arguments)])
    plot.main()


def train(step: int, **values: object) -> dict[str, object]:
    return {"kind": "train", "step": step, **values}


def test_curves_of_two_runs(monkeypatch, tmp_path, capsys):
    runs = [write_log(tmp_path / name, *(train(step, depth=shift + 1 / step) for step in range(1, 9)))
            for name, shift in (("a", 0), ("b", 1))]  # fmt: skip
    run_plot(monkeypatch, *runs, "--output", tmp_path / "curves.png")
    picture = Image.open(tmp_path / "curves.png")
    assert picture.width > 600 and len(picture.convert("RGB").getcolors(2**20)) > 50
    assert "1 charts of 2 runs" in capsys.readouterr().out


def test_the_legend_names_runs_without_a_common_curve(monkeypatch, tmp_path):
    runs = [write_log(tmp_path / name, train(1, **{task: 1.0}), train(2, **{task: 2.0}))
            for name, task in (("masks", "segmentation"), ("metres", "depth"))]  # fmt: skip
    named = {}

    def legend(_: Figure, handles: object, labels: object, **__: object) -> None:
        named.update({label: handle.get_color() for label, handle in zip(labels, handles, strict=True)})

    monkeypatch.setattr(Figure, "legend", legend)
    run_plot(monkeypatch, *runs, "--output", tmp_path / "curves.png")
    assert named == {"masks": "C0", "metres": "C1"}


def test_what_is_drawn(trained):
    curves = read_curves(trained)
    names = default_metrics(list(curves))
    assert {"train/segmentation", "train/depth", "val/segmentation/miou", "val/depth/rmse"} <= set(names)
    assert not [name for name in names if "lr_" in name or "/iou/" in name]


def test_a_report_that_stands_twice_counts_once(tmp_path):
    write_log(tmp_path, *(train(step, depth=value) for step, value in ((1, 3.0), (2, 2.0), (2, 2.5))))
    assert read_curves(tmp_path) == {"train/depth": {1: 3.0, 2: 2.5}}


def test_values_that_cannot_be_drawn_are_gaps(monkeypatch, tmp_path):
    values = (1.0, float("nan"), float("inf"), 1e308, -1e308, 2.0)
    write_log(tmp_path, *(train(step, depth=value) for step, value in enumerate(values)))
    run_plot(monkeypatch, tmp_path, "--output", tmp_path / "x.png")
    assert Image.open(tmp_path / "x.png").width > 300


@pytest.mark.parametrize("line", [
    "{", "[1]", "3", '{"kind": "train"}', '{"kind": 1, "step": 1, "depth": 2}',
    '{"kind": "train", "step": "1", "depth": 2}', '{"kind": "train", "step": 1e400, "depth": 2}',
    '{"kind": "train", "step": 1, "depth": "x"}', '{"kind": "train", "step": 1, "depth": [1]}',
    '{"kind": "train", "step": 1, "depth": null}', '{"kind": "train", "step": 1, "depth": true}',
    f'{{"kind": "train", "step": 1, "depth": {"9" * 400}}}', f'{{"kind": "train", "step": 1, "depth": {"[" * 100_000}',
    "\xff\xfe",
], ids=lambda line: line[:50])  # fmt: skip
def test_a_line_that_is_no_report_is_named(tmp_path, line):
    (tmp_path / "log.jsonl").write_bytes(b'{"kind": "train", "step": 1, "depth": 2}\n' + line.encode("latin-1") + b"\n")
    with pytest.raises(ValueError, match=r"log.jsonl:2: not a line of a log: "):
        read_curves(tmp_path)


@pytest.mark.parametrize(("text", "arguments", "message"), [
    (None, (), "no such log"), ("", (), "nothing was reported"),
    ('{"kind": "train", "step": 1, "depth": 2}', ("--metrics", "train/dept"), "did you mean 'train/depth'"),
    ('{"kind": "train", "step": 1, "depth": 2}', ("--metrics", ","), "names no curve; known: train/depth"),
], ids=str)  # fmt: skip
def test_mistakes_get_one_line(monkeypatch, tmp_path, text, arguments, message):
    if text is not None:
        (tmp_path / "log.jsonl").write_text(text)
    with pytest.raises((ValueError, FileNotFoundError)) as caught:
        run_plot(monkeypatch, tmp_path, *arguments, "--output", tmp_path / "x.png")
    assert message in str(caught.value) and "\n" not in str(caught.value)
    assert not (tmp_path / "x.png").exists()
