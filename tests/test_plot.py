from __future__ import annotations

import json

import pytest
from conftest import only_error_line
from PIL import Image

from plot import read_curves, usual


def test_curves_of_two_runs(trained, script, tmp_path):
    pytest.importorskip("matplotlib")
    done = script("plot.py", trained, trained / "log.jsonl", "--output", tmp_path / "curves.png")
    assert done.returncode == 0, done.stderr
    picture = Image.open(tmp_path / "curves.png")
    assert picture.width > 600 and len(picture.convert("RGB").getcolors(2**20)) > 50
    assert "2 runs" in done.stdout


def test_what_is_drawn(trained):
    curves = read_curves(trained)
    names = usual(list(curves))
    assert {"train/segmentation", "train/depth", "val/segmentation/miou", "val/depth/rmse"} <= set(names)
    assert not [name for name in names if "lr_" in name or "/iou/" in name]


def test_a_report_that_stands_twice_counts_once(tmp_path):
    lines = [{"kind": "train", "step": step, "depth": value} for step, value in ((1, 3.0), (2, 2.0), (2, 2.5))]
    (tmp_path / "log.jsonl").write_text("\n".join(map(json.dumps, lines)))
    assert read_curves(tmp_path) == {"train/depth": {1: 3.0, 2: 2.5}}


@pytest.mark.parametrize(("text", "arguments", "message"), [
    (None, (), "no such log"), ("", (), "nothing was reported"), ("{", (), "log.jsonl:1: not a line"),
    ('{"kind": "train", "step": 1, "depth": 2}', ("--metrics", "train/dept"), "did you mean 'train/depth'"),
], ids=str)  # fmt: skip
def test_mistakes_get_one_line(script, tmp_path, text, arguments, message):
    if text is not None:
        (tmp_path / "log.jsonl").write_text(text)
    assert message in only_error_line(script("plot.py", tmp_path, *arguments, "--output", tmp_path / "x.png"))
    assert not (tmp_path / "x.png").exists()
