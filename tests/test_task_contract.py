"""What holds for every task, maps and lists alike, and the way of a list through the project."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from list_task import Spots
from PIL import Image

from config import Config, make_config
from dataset import Frames, collate, eval_loader
from deploy.backends import Eager
from deploy.predictor import Predictor, save_predictions
from deploy.video import Smoother
from folders import make_domains, read_folder, read_list
from geometry import View
from metrics import Protocol
from model import Network, build_network, predict_batch
from sources.validate import check_folder
from tasks import TASKS, DenseTask, Task, tasks_from_plain, tasks_to_plain
from training.evaluation import Settings, accumulate, evaluate_folder, values_of
from training.mixture import Mixture, train_loader
from training.step import Training

SECTIONS = {
    "segmentation": {"classes": ["a", "b", "c"]}, "depth": {"metres_per_unit": "0.001", "max": "8"},
    "boxes": {"format": "objects", "classes": ["a", "b", "c"]}, "instances": {"classes": ["a", "b", "c"]},
    "masks": {"classes": ["a", "b", "c"]},
}  # fmt: skip
SIZE = (100, 100)
STRIDES = (4, 8, 16, 32)  # of a decoder's maps


@pytest.fixture(params=[*TASKS, "spots"])
def task(request, monkeypatch) -> Task:
    monkeypatch.setitem(TASKS, "spots", Spots)
    kind = TASKS[request.param]
    made = kind.from_section(kind.read_section(SECTIONS.get(kind.name, {}), "test"), Config())
    return made.with_thresholds(0.005, None)  # a new network is sure of nothing


def raw_of(task: Task, batch: int = 2, size: tuple[int, int] = SIZE) -> torch.Tensor:
    """What a new head gives for random maps."""
    levels = task.levels(STRIDES)
    head = task.head([16] * len(levels), [STRIDES[level] for level in levels], Config())
    head.initialise()
    if getattr(head, "needs_target", False):
        head.eval()  # in training its raw outputs are losses
    return head(*(9 * torch.rand(batch, 16, -(-size[0] // STRIDES[i]), -(-size[1] // STRIDES[i])) for i in levels))


def saved_label(task: Task, prediction: np.ndarray, folder: Path) -> np.ndarray:
    path = folder / f"label{task.suffix}"
    task.save_frame(prediction, path, "image.png", SIZE)
    section = task.read_section(task.section(), "test")
    assert task.misfit(section) == ""
    return task.at_size(task.read(path, section, folder / "image.png"), SIZE, section, path)


@torch.inference_mode()
def test_raw_output_becomes_predictions_and_pictures(task):
    prediction = task.decode(raw_of(task), SIZE)
    frames = task.arrays(prediction)
    assert prediction.shape[0] == len(frames) == 2
    for shown in (SIZE, (37, 61)):
        picture = task.draw(frames[0], SIZE, shown)
        assert picture.shape == (*shown, 3) and picture.dtype == np.uint8 and picture.any()
    assert all(len(color) == 3 for _, color in task.legend(frames[0]))
    assert task.difference(prediction, prediction, 0.01)[:2] == (0, 0)
    larger = task.resize(prediction, SIZE, (200, 300))
    assert task.draw(task.arrays(larger)[1], (200, 300)).any()


@torch.inference_mode()
def test_another_camera_is_a_zoom(task):
    """A prediction for a camera of 1.5 times the focal length is that for a picture that was zoomed by 1.5."""
    raw = raw_of(task)
    plain, zoomed = task.arrays(task.decode(raw, SIZE)), task.arrays(task.merge([(raw, 1.5, False)], SIZE))
    for one, other in zip(plain, zoomed, strict=True):
        found = task.for_camera(one, 1.5)
        if task.name in (
            "boxes",
            "instances",
            "masks",
        ):  # distances come from another task: test_objects_stand_in_space
            assert found.dtype == one.dtype
        elif task.follows_camera:
            assert found.dtype == other.dtype and np.allclose(found, other, atol=1e-6) and not np.allclose(found, one)
        else:
            assert found is one


@torch.inference_mode()
def test_views_of_the_same_frames_become_one_prediction(task):
    raw = raw_of(task)
    plain, merged = task.arrays(task.decode(raw, SIZE)), task.arrays(task.merge([(raw, 1.0, False)] * 2, SIZE))
    for one, other in zip(plain, merged, strict=True):
        assert np.array_equal(task.draw(one, SIZE), task.draw(other, SIZE))


@torch.inference_mode()
def test_saved_predictions_read_back_as_labels(task, tmp_path):
    prediction = task.decode(raw_of(task, 1), SIZE)
    label = saved_label(task, task.arrays(prediction)[0], tmp_path)
    if isinstance(task, DenseTask):  # on boxes stand scores, which labels have not
        drawn, again = (task.draw(item, SIZE).astype(int) for item in (task.arrays(prediction)[0], label))
        assert np.abs(drawn - again).mean() < 1
    metrics = task.metrics(Protocol())
    metrics.update(prediction, task.collate([task.to_tensor(label)]))
    values = metrics.compute()
    names = {name.partition("/")[0] for name in values}
    assert task.best in values and names <= set(task.directions)
    # Of boxes, some ask for sizes and distances; of instances, some for stuff.
    assert names == set(task.directions) or task.name in ("boxes", "instances", "masks")
    if task.name == "masks":
        return  # of things that share pixels, which those of a new network do, the label has each pixel once
    ideal = 1 if task.directions[task.best] > 0 else 0
    assert values[task.best] == pytest.approx(ideal, abs=0.5 if task.name == "normals" else 0.01)  # degrees


def test_without_a_label_nothing_is_learned_and_nothing_counted(task):
    raw = raw_of(task).detach().requires_grad_()
    target = task.collate([task.to_tensor(task.no_label(*SIZE))] * 2)
    value, weight = task.loss(raw, target)
    value.backward()
    assert value == weight == task.weight(target) == 0 and not raw.grad.any()
    metrics = task.metrics(Protocol())
    metrics.update(task.decode(raw.detach(), SIZE), target)
    assert metrics.compute() == {}


@torch.inference_mode()
def test_a_batch_gives_its_frames_back(task, tmp_path):
    labels = [
        task.to_tensor(saved_label(task, item, tmp_path)) for item in task.arrays(task.decode(raw_of(task, 3), SIZE))
    ]
    target = task.move(task.collate(labels), torch.clone)
    some, wanted = task.pick(target, [2, 0]), task.collate([labels[2], labels[0]])
    for got, want in zip(some, wanted, strict=True):  # a list may be filled up to the longest of its batch
        torch.testing.assert_close(got[: len(want)], want, rtol=0, atol=0, equal_nan=True)


def test_a_label_that_is_mirrored_twice_is_the_label(task, tmp_path):
    label = saved_label(task, task.arrays(task.decode(raw_of(task, 1).detach(), SIZE))[0], tmp_path)
    mirror = View(SIZE, SIZE, np.array([[-1.0, 0, SIZE[1] - 1], [0, 1, 0]]), *SIZE, mirror=True)
    once = task.view(label, mirror)
    assert not np.array_equal(task.draw(once, SIZE), task.draw(label, SIZE))
    difference = task.draw(task.view(once, mirror), SIZE).astype(int) - task.draw(label, SIZE)
    assert (difference != 0).mean() < 0.01


def test_surveys_of_labels_add_up(task, tmp_path):
    found = task.arrays(task.decode(raw_of(task, 2).detach(), SIZE))
    section = task.read_section(task.section(), "test")
    labels = [saved_label(task, item, tmp_path) for item in found]
    total = sum(task.survey(label, section) for label in labels)
    assert total[0] > 0 and task.coverage(total)
    assert all(isinstance(line, str) for line in task.survey_lines({"train": total}, section))
    shares = task.class_counts(labels[0])
    assert shares.ndim == 1 and task.with_class_weights([1.0] * len(shares)).name == task.name


def test_the_checkpoint_knows_the_task(task):
    assert tasks_from_plain(tasks_to_plain({task.name: task}))[task.name] == task


# ---------------------------------------------------------------------------------------------- a list


@pytest.fixture
def spotted(tmp_path, monkeypatch) -> Path:
    """Frames with none to three spots; of the last two of each split nobody says where they are."""
    monkeypatch.setitem(TASKS, "spots", Spots)
    rng = np.random.default_rng(0)
    for split, count in (("train", 6), ("val", 5)):
        lines = []
        for number in range(count):
            stem, size = f"{split}{number}", (96, 64) if number != 1 else (64, 96)
            Image.fromarray(rng.integers(0, 256, (*size, 3), np.uint8)).save(tmp_path / f"{stem}.png")
            Image.fromarray(rng.integers(1000, 5000, size).astype(np.uint16)).save(tmp_path / f"{stem}_depth.png")
            (tmp_path / f"{stem}.txt").write_text("".join(f"{x} {y}\n" for x, y in rng.random((number % 4, 2))))
            spots = f"{stem}.txt" if number < count - 2 else "-"
            lines.append(f"{stem}.png\t{spots}\t{stem}_depth.png")
        (tmp_path / f"{split}.txt").write_text("\n".join(lines))
    (tmp_path / "dataset.yaml").write_text(yaml.safe_dump({
        "name": "spotted", "splits": {"train": "train.txt", "val": "val.txt"}, "columns": ["image", "spots", "depth"],
        "depth": {"metres_per_unit": 0.001},
    }))  # fmt: skip
    return tmp_path


SETTINGS = make_config(
    {"tasks": "spots,depth", "encoder": "mobilenetv2_100", "decoder_width": "8", "crp_stages": "1", "crop": "64,64",
     "long_side": "96", "workers": "0", "batch_size": "3", "color": "0"}, "test",
)  # fmt: skip


def spot_network(folder: Path) -> tuple[Network, Frames, Frames]:
    data = read_folder(folder)
    heads, domains = make_domains([data], SETTINGS)
    lists = (read_list(data, split) for split in ("train", "val"))
    train, val = (
        Frames(data, frames, domains["spotted"], SETTINGS, kind)
        for frames, kind in zip(lists, (True, False), strict=True)
    )
    return build_network(SETTINGS, heads, domains).eval(), train, val


def test_a_head_reads_the_maps_that_it_asks_for(spotted):
    network, _, _ = spot_network(spotted)
    images = torch.rand(1, 3, 96, 64)
    shared = network.shared(images)
    assert [tuple(item.shape[-2:]) for item in shared] == [(24, 16), (12, 8), (6, 4)]
    raws = network(images)
    assert raws["spots"].shape == (1, 3, 12 * 8 + 6 * 4) and raws["depth"].shape == (1, 1, 24, 16)
    # The gradient by a map is that of the heads which read it, although the finer maps are made of it.
    by_depth = torch.autograd.grad(network.heads_of(shared)["depth"].sum(), shared, allow_unused=True)
    assert [grad is not None for grad in by_depth] == [True, False, False]


def test_batches_of_lists_for_training_and_evaluation(spotted):
    _, train, val = spot_network(spotted)
    batch = next(iter(train_loader(Mixture([train], [1.0]), SETTINGS, steps=1)))
    assert isinstance(batch["spots"], list) and len(batch["spots"]) == 3 and batch["depth"].shape == (3, 64, 64)
    batches = [batch for group in eval_loader(val, SETTINGS) for batch in group]
    assert sorted(len(batch["spots"]) for batch in batches) == [1, 2, 2], "by the size of the frame, not of its list"
    assert sum(tuple(batch["size"][0].tolist()) == (64, 96) for batch in batches) == 1


@pytest.mark.parametrize("stride", [1, 2])
def test_lists_are_trained_beside_maps(spotted, stride):
    """Frames of which nobody says where spots are add nothing to their loss; one without a spot counts."""
    network, train, _ = spot_network(spotted)
    settings = dataclasses.replace(SETTINGS, loss_stride=stride)
    training = Training(network.train(), settings, torch.device("cpu"), torch.float32, 10)
    mixture = Mixture([train], [1.0])
    before = {name: value.clone() for name, value in network.heads.named_parameters()}
    batch = collate([mixture[0, 0, index] for index in (0, 1, 5)], network.tasks)
    losses = training.take_step([batch])
    assert losses.keys() == {"spots", "depth"} and all(value > 0 for value in losses.values())
    assert all(not torch.equal(value, before[name]) for name, value in network.heads.named_parameters())
    network.eval()
    alone = collate([mixture[0, 0, 5]], network.tasks)
    assert training.take_step([alone]).keys() == {"depth"}


def test_nobody_says_is_not_nothing_there(spotted):
    network, _, val = spot_network(spotted)
    metrics = accumulate(network, eval_loader(val, SETTINGS), torch.device("cpu"), tasks=network.tasks)
    assert values_of(metrics)["spots/frames"] == 3, "the first has no spot, of the last two nobody says"
    assert metrics["spots"].all == 3 and "depth/rmse" in values_of(metrics)


def test_lists_are_evaluated_at_several_scales_and_mirrored(spotted):
    network, _, _ = spot_network(spotted)
    settings = Settings(SETTINGS, torch.device("cpu"), Protocol(), (1.0, 1.5), True)
    values, count = evaluate_folder(network, read_folder(spotted), "val", network.tasks, settings)
    assert count == 5 and values["spots/frames"] == 3


def test_lists_are_predicted_drawn_and_saved(spotted, tmp_path):
    network, _, _ = spot_network(spotted)
    predictor = Predictor(network, "eager")
    image = np.random.default_rng(1).integers(0, 256, (90, 60, 3), np.uint8)
    found = predictor(image)
    assert found["spots"].shape == (5, 3) and found["depth"].shape == (90, 60)
    save_predictions(tmp_path / "out", image, predictor.tasks, found)
    assert len((tmp_path / "out_spots.txt").read_text().splitlines()) == 5
    assert (tmp_path / "out_spots_color.jpg").is_file() and (tmp_path / "out_overview.jpg").is_file()
    smoother = Smoother(0.5, predictor.backend.tasks)
    first, second = (predictor.batch([image], smoother)[0] for _ in range(2))
    assert np.array_equal(first["spots"], second["spots"])
    pixels = torch.from_numpy(image).permute(2, 0, 1)[None]
    both = predict_batch(network, pixels, dict.fromkeys(network.tasks, (90, 60)), mirror=True)
    assert both["spots"].shape == (1, 10, 3)


def test_a_graph_of_a_fixed_size_asks_the_tasks(spotted):
    """What is added to fill the graph's size is taken away again by each task, and predictions follow the frame."""
    network, _, _ = spot_network(spotted)
    backend = Eager(network, torch.device("cpu"), torch.float32)
    backend.signature = dataclasses.replace(backend.signature, size=(96, 96))
    image = torch.randint(0, 256, (1, 3, 96, 64), dtype=torch.uint8)
    raws = backend.outputs(image)
    assert raws["depth"].shape[-2:] == (24, 16)
    assert backend.predict(image, dict.fromkeys(network.tasks, (192, 128)))["depth"].shape == (1, 192, 128)
    backend.signature = dataclasses.replace(backend.signature, size=None, units_out=True)
    answers = {"spots": torch.tensor([[[8.0, 12.0, 0.5]]]), "depth": torch.rand(1, 96, 64)}
    found = backend.finish(answers, (96, 64), dict.fromkeys(network.tasks, (192, 128)), network.tasks)
    assert found["spots"][0, 0].tolist() == [16, 24, 0.5] and found["depth"].shape == (1, 192, 128)


def test_a_task_that_cannot_be_taught_says_so():
    with pytest.raises(ValueError, match="--task: spots cannot be taught"):
        Spots().translation(None, {}, "test")


def test_lists_are_checked(spotted, capsys):
    picture = spotted / "check.png"
    assert check_folder(spotted, picture=picture) == []
    printed = capsys.readouterr().out
    assert "4, 6 objects" in printed and "3, 3 objects" in printed and picture.is_file()
    (spotted / "train1.txt").write_text("0.5\n0.5 0.5 0.5\n")
    kinds = {fault.kind for fault in check_folder(spotted)}
    assert kinds == {"wrong spots values"}
