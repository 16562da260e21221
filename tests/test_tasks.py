"""What tasks with a value for each pixel have in common, and what each task answers by itself.

test_task_contract.py has what holds for every task."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from config import Config
from drawing import class_palette
from geometry import View
from metrics import Protocol
from tasks import (
    CLASS_LISTS,
    NO_CLASS,
    TASKS,
    DenseTask,
    Depth,
    Normals,
    Segmentation,
    Task,
    tasks_from_plain,
)
from tasks.depth import softplus

SECTIONS = {"segmentation": {"classes": "nyu40"}, "depth": {"metres_per_unit": "0.001", "max": "8"}, "normals": {}}


def make(name: str) -> tuple[Task, dict[str, object]]:
    section = TASKS[name].read_section(SECTIONS[name], "test")
    return TASKS[name].from_section(section, Config()), section


@pytest.fixture(params=[name for name, kind in TASKS.items() if issubclass(kind, DenseTask)])
def task(request) -> Task:
    return make(request.param)[0]


def test_raw_output_becomes_a_prediction_of_any_size(task):
    raw = torch.randn(2, task.channels, 19, 25)
    prediction = task.decode(raw, (73, 99))
    assert prediction.shape[0] == 2 and prediction.shape[-2:] == (73, 99)
    drawn = task.draw(prediction[0].numpy())
    assert drawn.shape == (73, 99, 3) and drawn.dtype == np.uint8
    assert all(len(color) == 3 for _, color in task.legend(prediction[0].numpy()))


def test_saved_values_read_back(task, tmp_path):
    prediction = task.decode(torch.randn(1, task.channels, 11, 13), (41, 53))
    task.save(prediction[0].numpy(), tmp_path / "x.png")
    label = task.read(tmp_path / "x.png", make(task.name)[1], tmp_path)
    back = task.to_tensor(label)[None]
    assert torch.allclose(back.float(), prediction.float(), atol=0.006)


def test_no_label_costs_nothing_and_counts_nothing(task):
    label = task.to_tensor(task.no_label(32, 40))[None]
    raw = torch.randn(1, task.channels, 8, 10, requires_grad=True)
    value, weight = task.loss(raw, label)
    value.backward()
    assert value == weight == task.weight(label) == 0 and not raw.grad.any()
    metrics = task.metrics(Protocol())
    metrics.update(task.decode(raw.detach(), (32, 40)), label)
    assert metrics.compute() == {}


def test_the_weight_is_known_before_the_loss(task):
    """A step divides by the weight of all its labels, which it must know before the first of its batches."""
    label = task.decode(torch.randn(2, task.channels, 5, 6), (32, 40))
    label[:, ..., :7, :] = task.fill
    whole = task.loss(torch.randn(2, task.channels, 8, 10), label)[1]
    assert float(whole) == task.weight(label) == 2 * 25 * 40
    assert float(whole) == sum(task.weight(label[frame : frame + 1]) for frame in range(2))


def test_class_weights_weigh_the_loss_and_its_weight():
    task = Segmentation(classes=("a", "b"), class_weights=(1.0, 3.0))
    label = torch.tensor([[[0, 1, 1, NO_CLASS]]], dtype=torch.uint8)
    raw = torch.tensor([[2.0, 0.0], [0.0, 1.0], [0.5, 0.5], [9.0, 0.0]]).T.view(1, 2, 1, 4)
    costs = [np.log(1 + np.exp(-2)), np.log(1 + np.exp(-1)), np.log(2)]
    total, weight = task.loss(raw, label)
    assert float(total) == pytest.approx(costs[0] + 3 * costs[1] + 3 * costs[2]) and float(weight) == 7
    assert task.weight(label) == 7


def test_a_perfect_prediction_scores_best(task):
    truth = task.decode(torch.randn(1, task.channels, 9, 9), (36, 36))
    metrics = task.metrics(Protocol())
    metrics.update(truth, truth)
    values = metrics.compute()
    assert task.best in values
    assert {name.partition("/")[0] for name in values} == set(task.directions)
    for name, value in values.items():
        ideal = 1 if task.directions[name.partition("/")[0]] > 0 else 0
        assert value == pytest.approx(ideal, abs=0.01), name


def test_several_views_of_one_scene_are_that_scene(task):
    """A scale of 2 shows everything at half the distance, a mirror image the left at the right."""
    raw = torch.randn(1, task.channels, 6, 7)
    plain = task.decode(raw, (24, 28))
    assert torch.allclose(task.merge([(raw, 1.0, False)] * 3, (24, 28)).float(), plain.float(), atol=1e-5)
    mirrored = task.merge([(raw.flip(-1), 1.0, True)], (24, 28))
    if task.name == "normals":
        mirrored = mirrored * torch.tensor([-1.0, 1, 1]).view(3, 1, 1)
    assert torch.allclose(mirrored.float(), plain.float(), atol=1e-5)


def test_depth_at_another_scale_is_that_of_the_frame():
    """What the network takes for 3 m in a picture of twice the size is 6 m away."""
    task, raw = Depth(activation="abs"), torch.full((1, 1, 4, 4), 3.0)
    assert (task.merge([(raw, 2.0, False)], (8, 8)) == 6).all()
    assert (task.merge([(raw, 0.5, True)], (8, 8)) == 1.5).all()
    assert (task.merge([(raw, 2.0, False), (raw, 1.0, False)], (8, 8)) == 4.5).all()
    view = View((8, 8), (16, 16), np.eye(2, 3), 16, 16, zoom=2.0)
    assert (task.view(np.full((8, 8), 6.0, np.float32), view) == 3).all(), "as in training"


def test_scores_of_a_mirrored_and_of_a_zoomed_picture_become_those_of_the_picture(task):
    """A wall enlarged twice looks half as far away, and steeper: its normal's z is twice as large against x and y."""
    scores = task.scores(torch.randn(1, task.channels, 6, 7), (24, 28))
    mirrored, zoomed = scores.flip(-1), scores.clone()
    if task.name == "depth":
        zoomed = scores / 2
    if task.name == "normals":
        mirrored = mirrored * torch.tensor([-1.0, 1.0, 1.0]).reshape(3, 1, 1)
        zoomed = torch.nn.functional.normalize(scores * torch.tensor([1.0, 1.0, 2.0]).reshape(3, 1, 1), dim=1)
    assert torch.allclose(task.undo(mirrored, 1.0, True), scores, atol=1e-5)
    assert torch.allclose(task.undo(zoomed, 2.0, False), scores, atol=1e-5)


def test_unknown_tasks_in_a_checkpoint_are_named():
    with pytest.raises(ValueError, match="did you mean 'depth'"):
        tasks_from_plain({"dept": {}})
    with pytest.raises(ValueError, match="another version"):
        tasks_from_plain({"depth": {"unit": "feet"}})


def test_a_decoded_depth_is_never_negative():
    raw = torch.linspace(-50, 50, 64).reshape(1, 1, 8, 8)
    for activation in Depth.ACTIVATIONS:
        depth = Depth(activation=activation).decode(raw / (10 if activation == "exp" else 1), (32, 32))
        assert (depth >= 0).all() and depth.isfinite().all()


def test_depth_reads_units_and_leaves_out_what_is_too_far(tmp_path):
    from PIL import Image

    Image.fromarray(np.uint16([[0, 1, 1500, 8000, 8001, 65535]])).save(tmp_path / "d.png")
    task, section = make("depth")
    assert task.read(tmp_path / "d.png", section, tmp_path).tolist() == [pytest.approx([0, 0.001, 1.5, 8.0, 0, 0])]


def test_a_flat_wall_can_be_drawn():
    picture = Depth().draw(np.full((5, 7), 2.5, np.float32))
    assert (picture == picture[0, 0]).all() and picture.any()
    assert not Depth().draw(np.zeros((5, 7), np.float32)).any()


def test_depth_colors_are_of_a_fixed_range():
    frame = np.float32([[1.0, 2.0, 9.0]])
    assert np.array_equal(Depth().draw(frame)[0, :2], Depth().draw(frame[:, :2])[0])


def test_masks_may_use_another_number_for_no_label(tmp_path):
    from PIL import Image

    section = Segmentation.read_section({"classes": ["a", "b"], "ignore": "9"}, "test")
    Image.fromarray(np.uint8([[0, 1, 9]])).save(tmp_path / "m.png")
    assert Segmentation.from_section(section, Config()).read(tmp_path / "m.png", section, tmp_path).tolist() == [
        [0, 1, NO_CLASS]
    ]


def test_palette_masks_are_read_as_ids(tmp_path):
    task, section = make("segmentation")
    ids = np.arange(40, dtype=np.uint8).reshape(5, 8)
    task.save(ids, tmp_path / "m.png")
    assert np.array_equal(task.read(tmp_path / "m.png", section, tmp_path), ids)


def test_class_lists_and_colors():
    assert len(CLASS_LISTS["nyu40"]) == 40 and CLASS_LISTS["nyu40"][21] == "ceiling"
    # Known entries of the PASCAL VOC color map.
    assert class_palette()[[0, 1, 2, 15, 255]].tolist() == [
        [0, 0, 0],
        [128, 0, 0],
        [0, 128, 0],
        [192, 128, 128],
        [224, 224, 192],
    ]
    assert len({tuple(color) for color in class_palette().tolist()}) == 256


def test_the_legend_names_what_is_seen():
    task, _ = make("segmentation")
    ids = np.zeros((10, 10), np.uint8)
    ids[:, 7:] = 21
    assert [name for name, _ in task.legend(ids)] == ["wall", "ceiling"]


def test_normals_are_unit_vectors():
    prediction = Normals().decode(torch.randn(1, 3, 5, 6), (20, 24))
    assert torch.allclose(prediction.norm(dim=1), torch.ones(1, 20, 24), atol=1e-5)


def test_softplus_is_the_same_with_and_without_gradients():
    x = torch.tensor([-200.0, -20, -1, 0, 1e-3, 1, 20, 200])
    expected = nn.functional.softplus(x.double()).float()
    assert torch.allclose(softplus(x), expected, rtol=1e-6, atol=1e-7)
    assert torch.allclose(softplus(x.requires_grad_()), expected, rtol=1e-6, atol=1e-7)


def test_a_task_that_is_derived_must_say_how():
    with pytest.raises(TypeError, match=r"Edges: derived_from is 'segmentation', so it must define derive\(\)"):

        class Edges(DenseTask):
            derived_from = "segmentation"
