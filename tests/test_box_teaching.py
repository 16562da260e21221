"""Boxes from a teacher: what becomes a label, what is ignored, and what a training makes of it."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from conftest import only_error_line

from config import Config
from folders import read_folder, read_list
from networks.box_head import FIRST_CLASS
from tasks import Boxes
from tasks.box_objects import write_objects

COLORS = ((1, 2, 3), (4, 5, 6), (7, 8, 9))
TASK = Boxes(classes=("chair", "table", "lamp"), colors=COLORS)
SECTION = {"format": "objects", "classes": ("lamp", "seat"), "other_classes": "error"}


def objects_of(*scored: tuple[int, float]) -> np.ndarray:
    """Objects of these classes and scores."""
    rows = [[0.0, 0, 30, 40, score, kind, math.nan] for kind, score in scored]
    return Boxes(TASK.classes, COLORS, least_score=0.0).objects(np.array(rows, np.float32).reshape(-1, 7))


def test_sure_boxes_become_labels_unsure_ones_are_ignored_others_are_background(tmp_path):
    found = objects_of((0, 0.9), (1, 0.4), (2, 0.3), (0, 0.2), (1, 0.19))
    label, sure, count = TASK.keep_sure(found, found["score"], 0.4)
    assert (sure, count) == (2, 4) and label["ignore"].tolist() == [False, False, True, True]
    TASK.save_frame(label, tmp_path / "a.json", "a.png", (50, 60))
    assert [item.get("ignore") for item in json.loads((tmp_path / "a.json").read_text())["objects"]] == [
        None,
        None,
        1,
        1,
    ]
    section = TASK.read_section(TASK.section(), "test")
    read = TASK.at_size(TASK.read(tmp_path / "a.json", section, tmp_path / "a.png"), (50, 60), section, tmp_path)
    assert read[:, 4:6].tolist() == [[0, 0], [1, 0], [2, 1], [0, 1]]
    none, *counts = TASK.keep_sure(objects_of(), np.zeros(0, np.float32), 0.4)
    TASK.save_frame(none, tmp_path / "b.json", "b.png", (50, 60))
    assert counts == [0, 0] and json.loads((tmp_path / "b.json").read_text())["objects"] == []


def test_ignore_is_true_or_false(tmp_path):
    write_objects(tmp_path / "a.json", objects_of((0, 0.9)), TASK.classes, "a.png", (50, 60))
    (tmp_path / "a.json").write_text((tmp_path / "a.json").read_text().replace('"score"', '"ignore": 1, "score"'))
    with pytest.raises(ValueError, match="object 1: ignore is 1; it takes true or false"):
        TASK.read(tmp_path / "a.json", TASK.read_section(TASK.section(), "test"), tmp_path / "a.png")


def test_classes_are_renamed_and_dropped():
    target, translate = TASK.translation(SECTION, {"chair": "seat", "table": "-"}, "test")
    assert target.classes == ("lamp", "seat")
    found = translate(objects_of((0, 0.9), (1, 0.8), (2, 0.7)))
    assert found["class"].tolist() == [1, -1, 0]
    assert target.keep_sure(found, found["score"], 0.5)[0]["class"].tolist() == [1, 0]
    target, translate = TASK.translation(None, {"chair": "seat", "table": "-"}, "test")
    assert target.classes == ("seat", "lamp") and translate(objects_of((2, 0.5)))["class"].tolist() == [1]
    assert TASK.translation(None, {}, "test")[0].classes == TASK.classes


@pytest.mark.parametrize(("section", "names", "message"), [
    (SECTION, {}, "2 of the teacher's 3 classes are not the data set's, such as 'chair'"),
    (SECTION, {"chair": "-", "table": "-"}, "the teacher finds no 'seat', one of 1 such classes"),
    (None, dict.fromkeys(TASK.classes, "-"), "it drops all classes"),
    (None, {"chairs": "seat"}, r"no class 'chairs' \(did you mean 'chair'\?\)"),
], ids=str)  # fmt: skip
def test_classes_that_do_not_fit_are_refused(section, names, message):
    with pytest.raises(ValueError, match=message):
        TASK.translation(section, names, "test")


@torch.inference_mode()
def test_the_mirror_image_adds_its_boxes_where_they_are():
    head = TASK.head([8], [8], Config())
    head.initialise()
    raw = head(torch.rand(1, 8, 6, 8))
    nothing = raw.clone()
    nothing[..., FIRST_CLASS:] = -30
    (plain, scores), (mirrored, _) = TASK.teach(raw, nothing, (48, 64))[0], TASK.teach(nothing, raw, (48, 64))[0]
    assert len(scores) > 5 and (np.diff(scores) <= 0).all() and np.array_equal(scores, plain["score"])
    left, top, right, bottom = plain["box"][:5].T
    np.testing.assert_allclose(mirrored["box"][:5], np.stack([64 - right, top, 64 - left, bottom], 1), atol=1e-3)


@pytest.fixture(scope="module")
def teacher(script, tiny_settings, tmp_path_factory) -> Path:
    """A checkpoint that predicts boxes."""
    folder = tmp_path_factory.mktemp("teacher") / "run"
    done = script("train.py", "--config", tiny_settings, "--tasks", "boxes", "--epochs", 2, "--run", folder)
    assert done.returncode == 0, done.stderr
    return folder / "best.pt"


@pytest.fixture
def partial(rooms_folder, tmp_path) -> Path:
    """Rooms of which 8 of 12 training frames have no boxes."""
    folder = tmp_path / "partial"
    shutil.copytree(rooms_folder, folder)
    lines = [line.split("\t") for line in (folder / "train.txt").read_text().splitlines()]
    for cells in lines[:8]:
        cells[4] = "-"
    (folder / "train.txt").write_text("\n".join("\t".join(cells) for cells in lines))
    return folder


def taught(script, folder: Path, teacher: Path, *options: object):
    return script("teach.py", "--teacher", teacher, "--data", folder, "--task", "boxes", "--workers", 0, *options)


def test_frames_without_boxes_get_some_and_a_training_reads_them(script, partial, teacher, tiny_settings, tmp_path):
    done = taught(script, partial, teacher, "--threshold", 0.02)
    assert done.returncode == 0, done.stderr
    assert "8 labels written" in done.stdout and "% of the boxes" in done.stdout
    folder = read_folder(partial, "taught")
    frames = read_list(folder, "train", "taught")
    assert [sorted(frame.taught) for frame in frames] == [["boxes"]] * 8 + [[]] * 4
    content = json.loads(frames[0].taught["boxes"].read_text())
    assert (content["image"], content["width"], content["height"]) == (frames[0].image.name, 96, 72)
    scores = {bool(item.get("ignore")): item["score"] for item in content["objects"]}
    assert content["objects"] and all(
        (item["score"] < 0.02) == item.get("ignore", False) for item in content["objects"]
    )
    assert min(scores.values()) >= 0.01
    done = script("train.py", "--config", tiny_settings, "--data", partial, "--tasks", "boxes", "--epochs", 1,
                  "--eval_every", 1, "--teacher_labels", "taught", "--run", tmp_path / "run")  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "4 boxes + 8 of a teacher" in done.stdout


def test_a_data_set_without_boxes_takes_the_teachers_classes(script, partial, teacher, tmp_path):
    values = yaml.safe_load((partial / "dataset.yaml").read_text())
    classes = values.pop("boxes")["classes"]
    values["columns"] = ["image", "segmentation", "depth", "normals"]
    (partial / "dataset.yaml").write_text(yaml.safe_dump(values))
    for split in ("train.txt", "val.txt"):
        lines = [line.rpartition("\t")[0] for line in (partial / split).read_text().splitlines()]
        (partial / split).write_text("\n".join(lines))
    (tmp_path / "map.yaml").write_text(yaml.safe_dump({classes[0]: "-", classes[1]: "renamed"}))
    done = taught(script, partial, teacher, "--threshold", 0.02, "--map", tmp_path / "map.yaml")
    assert done.returncode == 0, done.stderr
    assert "12 labels written" in done.stdout
    assert read_folder(partial, "taught").taught["boxes"]["classes"] == ("renamed", *classes[2:])


def test_networks_of_others_teach_no_boxes(script, partial, tmp_path):
    (tmp_path / "model.onnx").touch()
    (tmp_path / "model.yaml").write_text("task: boxes\n")
    assert "takes a checkpoint of train.py" in only_error_line(taught(script, partial, tmp_path / "model.onnx"))
