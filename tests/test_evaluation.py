"""Evaluation in this process: devices, crops, and what a data set must share with a network."""

from __future__ import annotations

import contextlib
import dataclasses

import pytest
import torch

from config import make_config
from dataset import Frames, eval_loader
from folders import make_tasks, read_folder, read_list
from images import read_image
from metrics import Protocol
from tasks import Segmentation
from training.evaluation import accumulate, pick_tasks, values_of
from training.worst_frames import write_worst

SETTINGS = make_config({"long_side": "0", "workers": "0", "batch_size": "3"}, "test")


class OnTheCpu:
    """A back end that computes on the CPU, whatever device the caller works with; it finds 2 m everywhere."""

    def __init__(self, tasks, domains=()):
        self.tasks, self.domains, self.config = tasks, dict(domains), SETTINGS

    def predict(self, images, sizes, tasks=None):
        raws = {name: torch.full((len(images), self.tasks[name].channels, 4, 4), 2.0) for name in tasks}
        return {name: task.decode(raws[name], sizes[name]) for name, task in tasks.items()}


@pytest.fixture
def frames(rooms_folder) -> Frames:
    folder = read_folder(rooms_folder)
    tasks = make_tasks(folder, dataclasses.replace(SETTINGS, tasks=("segmentation", "depth")))
    return Frames(folder, read_list(folder, "val"), tasks, SETTINGS, train=False)


def test_targets_go_where_the_predictions_are(frames, monkeypatch):
    """As with a file of export.py on a machine with a GPU: the frames go there, the predictions come from the CPU."""
    monkeypatch.setattr("training.evaluation.autocast", lambda *_: contextlib.nullcontext())  # there is none for meta
    network, loader = OnTheCpu(frames.tasks), eval_loader(frames, SETTINGS)
    found = values_of(accumulate(network, loader, torch.device("meta"), tasks=frames.tasks))
    assert found == values_of(accumulate(network, loader, torch.device("cpu"), tasks=frames.tasks))
    assert found["depth/rmse"] > 0 and "segmentation/miou" in found


def test_a_crop_changes_what_is_counted(frames):
    network, loader = OnTheCpu(frames.tasks), eval_loader(frames, SETTINGS)
    whole, inside = (
        accumulate(network, loader, torch.device("cpu"), protocol=Protocol(crop=crop), tasks=frames.tasks)["depth"]
        for crop in ("none", "garg")
    )
    whole, inside = (torch.cat(metrics.rows)[:, -1] for metrics in (whole, inside))  # valid pixels of each frame
    assert (inside <= 42 * 89).all() and (inside < whole).all(), "72 rows and 96 columns become 42 and 89"


def test_the_tasks_that_fit_a_data_set_are_picked(frames, tmp_path):
    folder, tasks = frames.folder, frames.tasks
    other = dataclasses.replace(tasks["segmentation"], classes=("a", "b"), colors=((0, 0, 0),) * 2)
    joint = {"segmentation": Segmentation(classes=("c",), colors=((0, 0, 0),)), "depth": tasks["depth"]}
    network = OnTheCpu(joint, {"x": {**tasks, "segmentation": other}, "y": tasks})
    assert pick_tasks(network, folder, tmp_path) is network.domains["y"]
    with pytest.raises(ValueError, match=r"not those of .*: it has 40 classes and not 2 or 40 classes and not 1$"):
        pick_tasks(OnTheCpu(joint, {"x": network.domains["x"]}), folder, tmp_path)
    with pytest.raises(ValueError, match="does not know 'z'; it has: x, y"):
        pick_tasks(network, folder, tmp_path, "z")


def test_the_worst_frames_are_found_and_drawn(frames, tmp_path):
    """A frame alone, evaluated as a list of one, has the same value; a frame without a label has none."""
    network, cpu = OnTheCpu(frames.tasks), torch.device("cpu")
    frames.frames = list(frames.frames)
    without = dict(frames.frames[0].labels)
    del without["depth"]
    frames.frames[0] = dataclasses.replace(frames.frames[0], labels=without)
    wanted: dict[str, dict[str, float]] = {"miou": {}, "rmse": {}}
    for frame in frames.frames:
        alone = Frames(frames.folder, [frame], frames.tasks, SETTINGS, train=False)
        values = values_of(accumulate(network, eval_loader(alone, SETTINGS), cpu, tasks=frames.tasks))
        for task, metric in (("segmentation", "miou"), ("depth", "rmse")):
            if f"{task}/{metric}" in values:
                wanted[metric][str(frame.image)] = values[f"{task}/{metric}"]
    assert len(wanted["rmse"]) == len(wanted["miou"]) - 1 >= 2
    worst = write_worst(network, frames, 2, tmp_path / "worst", cpu)
    for task, metric, sign in (("segmentation", "miou", 1), ("depth", "rmse", -1)):
        first = sorted(wanted[metric].items(), key=lambda item: sign * item[1])[:2]
        assert [(row["image"], row[metric]) for row in worst[task]] == first
    files = {path.name for path in (tmp_path / "worst").iterdir()}
    assert files == {"segmentation-1.jpg", "segmentation-2.jpg", "depth-1.jpg", "depth-2.jpg"}
    height, width = read_image(frames.frames[1].image).shape[:2]
    drawn = read_image(tmp_path / "worst" / "depth-1.jpg")
    assert drawn.shape[1] == 5 * width and drawn.shape[0] > height, "the image, and of two tasks label and prediction"
