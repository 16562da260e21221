"""The instances task: its label files, what its head learns, grouping, and the way of a thing through the project."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from box_sets import write_boxes
from conftest import only_error_line

from config import Config
from deploy.image_folder import refuse_files_of_others
from folders import Folder, make_domains, read_folder, read_list
from geometry import Pixels, View
from images import write_png
from sources.validate import check_folder
from tasks import Depth, Instances, Segmentation, all_beside
from tasks.instance_files import PART, VOID, read_codes
from tasks.instance_grouping import CLASS, DISTANCE, NUMBER, SCORE, group, label_things, peaks, with_distances
from tasks.instance_records import record_of_label
from tasks.instance_sections import read_instance_section
from tasks.instance_targets import HEAT_WEIGHT, OFFSET_WEIGHT, SIGMA_PX, encode
from user_input.values import ManyErrors

CLASSES = ("wall", "chair", "lamp", "floor")
COLORS = ((255, 0, 0), (0, 255, 0), (0, 0, 255), (9, 9, 9))
SEGMENTATION = Segmentation(classes=CLASSES, colors=COLORS)
ALONE = Instances(("lamp", "chair"), ((1, 2, 3), (4, 5, 6)))
TASK = all_beside({"segmentation": SEGMENTATION, "instances": ALONE})["instances"]
LAMP, CHAIR = PART, 2 * PART  # codes without numbers
SIZE = (32, 40)


def codes_with(*things: tuple[int, slice, slice], size: tuple[int, int] = SIZE) -> np.ndarray:
    codes = np.zeros(size, np.int32)
    for code, rows, columns in things:
        codes[rows, columns] = code
    return codes


TWO = codes_with((LAMP + 1, slice(4, 12), slice(4, 16)), (CHAIR + 2, slice(16, 28), slice(20, 36)))


def raw_for(codes: np.ndarray, stride: int = 4) -> torch.Tensor:
    """(1, 3, h, w): what a perfect head gives."""
    size = codes.shape
    pixels = Pixels(size, stride, stride // 2, stride // 2)
    raw = encode(torch.from_numpy(codes)[None], pixels).nan_to_num()
    raw[:, 0] = raw[:, 0].clamp(min=0).logit(1e-4)
    raw[:, 1:] /= stride
    return raw


# ---------------------------------------------------------------------------------------------- label files


def read_with(tmp_path: Path, mask: np.ndarray, **section: object) -> np.ndarray:
    write_png(tmp_path / "mask.png", mask)
    return read_codes(tmp_path / "mask.png", read_instance_section({"classes": ["chair", "lamp"], **section}, "test"))


@pytest.mark.parametrize("kind", [np.uint8, np.uint16])
def test_numbers_become_codes(tmp_path, kind):
    mask = np.array([[0, 3, 3], [7, 9, 200]], kind)
    codes = read_with(tmp_path, mask, values={3: "lamp", 7: "chair", 9: "lamp"}, ignore=200)
    assert codes.tolist() == [[0, 2 * PART + 1, 2 * PART + 1], [PART + 2, 2 * PART + 3, VOID]]
    assert codes.dtype == np.int32


def test_the_divisor_says_the_class(tmp_path):
    mask = np.array([[0, 257, 258, 513]], np.uint16)
    assert read_with(tmp_path, mask, divisor=256).tolist() == [[0, PART + 1, PART + 2, 2 * PART + 3]]
    assert read_with(tmp_path, mask, divisor=256, things=["lamp"]).tolist() == [[0, 0, 0, PART + 1]]


def test_things_of_no_class_are_named_or_left_out(tmp_path):
    mask = np.array([[3, 4, 5]], np.uint8)
    with pytest.raises(ManyErrors, match=r"mask\.png: number 4: class 'lump' \(did you mean 'lamp'\?\); .*and 1 more"):
        read_with(tmp_path, mask, values={3: "lamp", 4: "lump"})
    assert read_with(tmp_path, mask, values={3: "lamp", 4: "x"}, other_classes="leave_out").tolist() == [
        [2 * PART + 1, 0, 0]
    ]


def test_masks_that_are_no_masks(tmp_path):
    with pytest.raises(ValueError, match="a mask has one integer a pixel"):
        read_with(tmp_path, np.zeros((2, 2, 3), np.uint8))
    with pytest.raises(ValueError, match=r"more than 1,000 boxes in a frame"):
        read_with(tmp_path, np.arange(1200, dtype=np.uint16).reshape(30, 40))
    write_png(tmp_path / "mask.png", np.zeros((2, 3), np.uint8))
    with pytest.raises(ValueError, match=r"mask\.png: instances is 3x2, but its image is 5x4"):
        TASK.at_size(np.zeros((2, 3), np.int32), (4, 5), {}, tmp_path / "mask.png")


@pytest.mark.parametrize(
    ("section", "message"),
    [
        (
            {"format": "yolo", "classes": ["a"]},
            "test.format is 'yolo'; allowed: instances, coco, coco_panoptic, citysc",
        ),
        ({"classes": ["a"], "things": ["b"]}, "test.things: 'b' is none of its classes"),
        ({"classes": ["lamp"], "things": ["lamb"]}, "did you mean 'lamp'"),
        ({"classes": ["a"], "stuff": ["a"]}, "test.stuff: 'a' is a thing as well"),
        ({"classes": [f"n{i}" for i in range(255)]}, "255 things and stuff; allowed: 1 to 254"),
        ({"classes": ["a"], "thinks": ["a"]}, "unknown key 'thinks'"),
    ],
)
def test_wrong_sections(section, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        read_instance_section(section, "test")


def boxes_set(tmp_path: Path, own: dict[str, object] | None = None, form: str = "instances") -> Path:
    """A data set whose boxes are masks, with what its dataset.yaml says about instances."""
    label = np.array([[0, 1], [2, 2]], np.uint8) if form == "instances" else "0 .5 .5 .2 .2"
    root = write_boxes(tmp_path, {"format": form, "classes": ["chair", "lamp"]}, {"a": label, "b": None}, (2, 2))
    if own is not None:
        text = yaml.safe_load((root / "dataset.yaml").read_text())
        (root / "dataset.yaml").write_text(yaml.safe_dump(text | {"instances": own}))
    return root


def test_masks_of_boxes_are_labels_of_instances(tmp_path):
    folder = read_folder(boxes_set(tmp_path))
    assert folder.columns == ("image", "boxes") and folder.sections["instances"]["things"] == ("chair", "lamp")
    first, second = read_list(folder, "train")
    assert first.labels["instances"] == first.labels["boxes"] and not second.labels


def test_what_is_wrong_with_a_file_is_said_once(tmp_path, capsys):
    root = boxes_set(tmp_path)
    (root / "labels/a.png").write_bytes(b"broken")
    assert len(check_folder(root)) == 1 and capsys.readouterr().out.count("labels/a.png") == 1
    other = boxes_set(tmp_path / "other")
    write_png(other / "labels/a.png", np.zeros((3, 2), np.uint8))
    assert len(check_folder(other)) == 1


def test_things_that_follow_from_boxes_are_listed(tmp_path, capsys):
    assert check_folder(boxes_set(tmp_path)) == []
    printed = capsys.readouterr().out
    assert re.search(r"boxes labels +instances labels", printed) and "masks labels" not in printed
    assert "1, 2 things" in printed and "instances: 2 chair" in printed


def test_dataset_yaml_says_things_and_stuff_of_the_masks_of_boxes(tmp_path):
    sections = read_folder(boxes_set(tmp_path, {"things": ["lamp"], "stuff": ["chair"]})).sections
    assert sections["instances"]["things"] == ("lamp",) and sections["instances"]["stuff"] == ("chair",)
    assert "instances" not in read_folder(boxes_set(tmp_path / "yolo", form="yolo")).sections
    with pytest.raises(ValueError, match=r"instances\.stuf: its labels .* \(did you mean 'stuff'\?\); allowed here"):
        read_folder(boxes_set(tmp_path / "wrong", {"stuf": ["wall"]}))


# ---------------------------------------------------------------------------------------------- what is learned


def test_targets_by_hand():
    target = encode(torch.from_numpy(TWO)[None], Pixels(SIZE))[0]
    assert target.shape == (3, *SIZE)
    lamp, chair = (7.5, 9.5), (21.5, 27.5)  # centers of mass
    for row, column in ((4, 4), (11, 15), (20, 30), (0, 39)):
        heat = max(np.exp(-((row - y) ** 2 + (column - x) ** 2) / (2 * SIGMA_PX**2)) for y, x in (lamp, chair))
        assert float(target[0, row, column]) == pytest.approx(heat, abs=1e-6)
    assert target[1:, 4, 15].tolist() == [3.5, -5.5] and target[1:, 16, 35].tolist() == [5.5, -7.5]
    assert target[1:, 0, 0].isnan().all()


def test_centers_are_those_of_the_whole_view_at_any_stride():
    codes = torch.from_numpy(np.stack([TWO, np.roll(TWO, 3, axis=1), np.full_like(TWO, VOID)]))
    whole = encode(codes, Pixels(SIZE))
    for pixels in (Pixels(SIZE, 2, 1, 0), Pixels(SIZE, 4, 3, 2)):
        some = TASK.thin(codes, pixels)
        torch.testing.assert_close(some, whole[..., pixels.rows, pixels.columns], equal_nan=True)
        assert TASK.weight(some) == float((codes[:, pixels.rows, pixels.columns] >= 0).sum())
    assert (whole[2, 0] == -1).all() and whole[2, 1:].isnan().all()


def test_nothing_there_is_learned_and_nobody_says_is_not():
    raw = torch.zeros(2, 3, 8, 10, requires_grad=True)
    codes = torch.from_numpy(np.stack([np.zeros(SIZE, np.int32), TASK.no_label(*SIZE)]))
    value, weight = TASK.loss(raw, codes)
    value.backward()
    wanted = HEAT_WEIGHT * 32 * 40 * math.log(2) * 0.5**2  # half a center everywhere
    assert value.item() == pytest.approx(wanted) and weight == TASK.weight(codes) == 32 * 40
    assert raw.grad[0, 0].all() and not raw.grad[1].any() and not raw.grad[0, 1:].any()


def test_offsets_are_learned_in_pixels_of_things_alone():
    codes = torch.from_numpy(codes_with((LAMP + 1, slice(0, 8), slice(0, 8))))[None]
    perfect = raw_for(TWO)
    off, weight = TASK.loss(torch.zeros(1, 3, *SIZE), codes)
    target = encode(codes, Pixels(SIZE))
    far = 2 * 8 * 2 * (3.5 + 2.5 + 1.5 + 0.5)  # two axes, 8 lines, to both sides of the center
    wanted = HEAT_WEIGHT * float((math.log(2) * (target[0, 0] - 0.5).square()).sum()) + OFFSET_WEIGHT * far
    assert float(off) == pytest.approx(wanted, rel=1e-5) and weight == 32 * 40
    good = TASK.loss(perfect, torch.from_numpy(TWO)[None])[0]
    assert good < 0.2 * TASK.loss(torch.zeros_like(perfect), torch.from_numpy(TWO)[None])[0]
    for stride in (1, 2):  # sampled as in a step of training
        pixels = Pixels(SIZE, stride, stride - 1, 0)
        sampled = TASK.loss(TASK.sample(perfect, pixels), TASK.thin(torch.from_numpy(TWO)[None], pixels))
        assert sampled[0] / sampled[1] == pytest.approx(float(good / 1280), rel=0.05)


def test_raw_offsets_are_in_cells_and_become_pixels():
    raw, pixels = torch.ones(1, 3, 8, 5), Pixels(SIZE, 2, 1, 0)
    sampled = TASK.sample(raw, pixels)
    assert sampled.shape == (1, 3, 16, 20)
    for channel, pixels_of_a_cell in enumerate((1, 32 / 8, 40 / 5)):
        torch.testing.assert_close(sampled[:, channel], torch.full((1, 16, 20), float(pixels_of_a_cell)))
    raw, codes = torch.randn(1, 3, 8, 5), torch.from_numpy(TWO)[None]
    whole = Pixels(SIZE)
    torch.testing.assert_close(TASK.loss(raw, codes), TASK.loss(TASK.sample(raw, whole), TASK.thin(codes, whole)))


def test_a_mirrored_view_moves_labels_and_its_targets():
    mirror = View(SIZE, SIZE, np.array([[-1.0, 0, SIZE[1] - 1], [0, 1, 0]]), *SIZE, mirror=True)
    np.testing.assert_array_equal(TASK.view(TWO, mirror), TWO[:, ::-1])
    shifted = View(SIZE, SIZE, np.array([[1.0, 0, 10], [0, 1, 0]]), *SIZE)
    assert (TASK.view(TWO, shifted)[:, :10] == VOID).all(), "outside of the frame nobody says"


# ---------------------------------------------------------------------------------------------- grouping


def brute_force(raw: torch.Tensor, size: tuple[int, int], least: float) -> np.ndarray:
    """The number of each pixel's thing, by resized offsets and all distances."""
    scores, rows, columns = (item[0] for item in peaks(raw[:, 0].sigmoid(), least))
    _, _, height, width = raw.shape
    grid = torch.stack(torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")).float()
    points = torch.nn.functional.interpolate(grid[None] + raw[:, 1:], size, mode="bilinear", align_corners=False)[0]
    far = (points[0] - rows[:, None, None]) ** 2 + (points[1] - columns[:, None, None]) ** 2
    return (far + torch.where(scores > 0, 0, 1e9)[:, None, None]).argmin(0).numpy() + 1


@pytest.mark.parametrize("seed", range(4))
def test_pixels_go_to_the_center_that_they_point_at(seed):
    torch.manual_seed(seed)
    raw = torch.cat([torch.rand(1, 1, 12, 15).logit(), 3 * torch.randn(1, 2, 12, 15)], dim=1)
    grouped = group(raw, (95, 121), 0.5)
    assert grouped.shape == (1, 4, 95, 121) and grouped[:, NUMBER].amax() > 3
    same = grouped[0, NUMBER].numpy() == brute_force(raw, (95, 121), 0.5)
    assert same.mean() > 0.999, "but for rounding where two are as near"


def test_a_perfect_head_gives_its_label_back():
    grouped = group(raw_for(TWO), SIZE, 0.5)
    classes = torch.where(torch.from_numpy(TWO) > 0, torch.from_numpy(TWO) // PART - 1, 2)[None].long()
    found = label_things(grouped, classes, len(TASK.classes))
    metrics = TASK.metrics(None)
    metrics.update(found, TASK.complete_target(torch.from_numpy(TWO)[None], {}, {}))
    measured = metrics.compute()
    assert measured["pq_things"] == 1 and measured["ap"] == measured["box_ap"] == pytest.approx(1)
    assert set(found[0, CLASS].unique().tolist()) == {0, 1, 2} and not found[0, NUMBER][found[0, CLASS] == 2].any()


def test_without_a_center_there_is_no_thing():
    grouped = group(torch.full((2, 3, 8, 10), -3.0), SIZE, 0.1)
    assert not grouped[:, NUMBER].any() and (grouped[:, CLASS] == -1).all()
    found = label_things(grouped, torch.zeros(2, *SIZE, dtype=torch.long), 2)
    assert (found[:, CLASS] == -1).all(), "pixels with a thing's class that belong to none"
    (record,) = TASK.arrays(found[:1])
    assert len(record["things"]) == 0 and TASK.draw(record).any() and TASK.legend(record) == []


def test_the_most_pixels_say_the_class_of_a_thing_in_its_own_frame():
    grouped = torch.zeros(2, 4, 4, 4)
    grouped[:, NUMBER], grouped[:, SCORE] = 1, 0.5
    classes = torch.tensor([[1] * 4] * 3 + [[0] * 2 + [2] * 2]).expand(2, 4, 4).clone()
    classes[1] = 1 - classes[1].clamp(max=1)
    found = label_things(grouped, classes, 2)
    assert found[0, CLASS, 3].tolist() == [1, 1, 2, 2] and found[0, NUMBER, 3].tolist() == [1, 1, 0, 0]
    assert (found[1, CLASS, :3] == 0).all() and found[0, SCORE, 3].tolist() == [0.5, 0.5, 0, 0]


def test_a_thing_is_as_far_as_the_median_of_its_pixels():
    grouped = torch.zeros(2, 4, 2, 3)
    grouped[0, NUMBER] = torch.tensor([[1, 1, 1], [2, 2, 0]])
    grouped[1, NUMBER] = torch.tensor([[1, 1, 0], [0, 0, 0]])
    depth = torch.tensor([[[1.0, 9, 2], [0, 4, 7]], [[0, 0, 3], [3, 3, 3]]])
    far = with_distances(grouped, depth)[:, DISTANCE]
    assert far.tolist() == [[[2, 2, 2], [4, 4, 0]], [[0, 0, 0], [0, 0, 0]]]


def test_peaks_are_apart_and_not_more_than_fit():
    heat = torch.zeros(1, 9, 9)
    heat[0, 2, 2], heat[0, 2, 4], heat[0, 2, 7] = 0.9, 0.8, 0.7
    scores, rows, columns = peaks(heat, 0.1)
    assert list(zip(rows[0].tolist(), columns[0].tolist(), strict=True)) == [(2, 2), (2, 7)]
    assert scores[0].tolist() == pytest.approx([0.9, 0.7])
    assert peaks(torch.rand(1, 200, 200), 0.0)[0].shape == (1, 100)


def test_the_mirror_image_agrees():
    raw, sign = raw_for(TWO), torch.tensor([1, 1, -1]).view(3, 1, 1)
    noisy = torch.cat([raw[:, :1], 3 * torch.randn(1, 2, 8, 10)], dim=1)
    merged = TASK.merge([(noisy, 1.0, False), (noisy.flip(-1) * sign, 1.0, True)], SIZE)
    assert merged.equal(TASK.decode(noisy, SIZE))
    plain = TASK.decode(raw, SIZE)
    one, other = (encode(torch.from_numpy(codes.copy())[None], Pixels(SIZE)) for codes in (TWO, TWO[:, ::-1]))
    torch.testing.assert_close(one, other.flip(-1) * sign, equal_nan=True)  # labels are mirrored alike
    large = torch.nn.functional.interpolate(raw, scale_factor=2) * torch.tensor([1, 2, 2]).view(3, 1, 1)
    _, changed, pixels = TASK.difference(TASK.merge([(raw, 1.0, False), (large, 2.0, False)], SIZE), plain, 0.01)
    assert changed < 0.05 * pixels


# ---------------------------------------------------------------------------------------------- beside other tasks


def test_stuff_is_what_is_no_thing():
    assert TASK.stuff == ("wall", "floor") and TASK.colors == ((0, 0, 255), (0, 255, 0)), "segmentation's colors"
    chosen = all_beside({"s": SEGMENTATION, "i": Instances(("lamp",), ((1, 2, 3),), ("wall",), ((1, 1, 1),))})["i"]
    assert chosen.stuff == ("wall",) and chosen.stuff_colors == ((255, 0, 0),)


def test_a_head_may_start_from_one_of_the_same_things():
    assert TASK.continues(TASK) and TASK.continues(ALONE)
    assert not TASK.continues(Instances(("lamp",), ((1, 2, 3),)))


def test_what_is_missing_is_said():
    with pytest.raises(ValueError, match="instances needs a task that gives the class of each pixel; add segmentation"):
        all_beside({"instances": ALONE, "depth": Depth()})
    with pytest.raises(ValueError, match="'bench' of its things is no class of segmentation"):
        all_beside({"segmentation": SEGMENTATION, "instances": Instances(("bench",), ((1, 2, 3),))})


def test_targets_are_completed_by_the_classes_of_the_pixels():
    codes = torch.tensor([[[LAMP + 1, 0, 0, 0, VOID]]], dtype=torch.int32)
    classes = torch.tensor([[[0, 0, 255, 1, 0]]], dtype=torch.uint8)
    target = TASK.complete_target(codes, {"s": classes}, {"s": SEGMENTATION})
    wall = (2 + 1) * PART
    assert target.tolist() == [[[LAMP + 1, wall, 0, VOID, VOID]]], "a chair without a number is nobody's"


def test_several_data_sets_share_the_head(rooms_folder, tmp_path):
    config = Config(tasks=("segmentation", "instances"))
    folder = read_folder(rooms_folder)
    heads, domains = make_domains([folder], config)
    assert heads["instances"] == domains["rooms"]["instances"] and "wall" in heads["instances"].stuff
    other = Instances(("lamp", "bed"), ((1, 2, 3), (4, 5, 6)), ("chair", "sky"), ((0, 0, 0), (1, 1, 1)))
    head, parts = Instances.join({"a": ALONE, "b": other}, False)
    assert head.classes == ("lamp", "chair", "bed") and head.stuff == ("sky",) and parts == {"a": ALONE, "b": other}
    assert len(head.stuff_colors) == 1 and len(head.colors) == 3


def folder_with(root: Path, name: str, columns: list[str], **sections: object) -> Folder:
    (root / name).mkdir()
    (root / name / "t.txt").write_text("")
    content = {"name": name, "splits": {"train": "t.txt"}, "columns": ["image", *columns], **sections}
    (root / name / "dataset.yaml").write_text(yaml.safe_dump(content))
    return read_folder(root / name)


def test_a_data_set_without_things_may_have_other_classes(tmp_path):
    things = {"classes": ["chair"], "divisor": 256}
    first = folder_with(tmp_path, "a", ["segmentation", "instances"], instances=things,
                        segmentation={"classes": ["wall", "chair"]})  # fmt: skip
    streets = folder_with(tmp_path, "b", ["segmentation"], segmentation={"classes": ["road", "car"]})
    rooms = folder_with(tmp_path, "c", ["segmentation"], segmentation={"classes": ["wall", "chair", "lamp"]})
    config = Config(tasks=("segmentation", "instances"))
    heads, domains = make_domains([first, streets], config)
    assert heads["instances"].stuff == ("wall", "road", "car") and domains["a"]["instances"].stuff == ("wall",)
    assert domains["b"]["instances"] == heads["instances"], "its roads are stuff"
    with pytest.raises(ValueError, match=r"'chair' .* wall \(c\), chair \(c\), lamp; --merge_classes makes one of"):
        make_domains([first, rooms], config)
    heads, domains = make_domains([first, rooms], dataclasses.replace(config, merge_classes=True))
    assert domains["c"]["instances"].stuff == ("wall", "lamp")


# ---------------------------------------------------------------------------------------------- records and files


def test_things_stand_in_space_and_in_files(tmp_path):
    found = torch.zeros(1, 4, 20, 30)
    found[0, CLASS] = 2
    found[0, :, 4:8, 10:14] = torch.tensor([1.0, 1, 0.8, 2])[:, None, None]
    found[0, :, 10:20, 0:2] = torch.tensor([2.0, 0, 0.05, 3])[:, None, None]  # below least_score
    (record,) = TASK.arrays(found)
    (thing,) = record["things"]
    assert thing["box"].tolist() == [10, 4, 14, 8] and thing["middle"].tolist() == [11.5, 5.5]
    assert thing["pixels"] == 16 and (record["class"][10:, :2] == 255).all() and record["class"][0, 0] == 2
    placed = TASK.in_space(TASK.for_camera(record, 1.5), {"fx": 10, "fy": 20, "cx": 1.5, "cy": 15.5})
    assert placed["things"]["xyz_m"][0].tolist() == pytest.approx([3, -1.5, 3]) and np.isnan(thing["xyz_m"]).all()
    path = tmp_path / "a_instances.png"
    TASK.save_frame(placed, path, "a.jpg", (20, 30))
    section = TASK.read_section(TASK.section(), "test")
    again = record_of_label(TASK.read(path, section, path))
    assert (again["number"] > 0).sum() == 16 and again["things"]["class"].tolist() == [1]
    written = json.loads((tmp_path / "a_instances.json").read_text())
    (item,) = written["objects"]
    mask = item.pop("mask")
    assert item == {
        "class": "chair", "score": 0.8, "box": [10, 4, 14, 8], "distance_m": 3, "xyz_m": [3, -1.5, 3], "number": 1,
        "share": round(16 / 600, 5),
    }  # fmt: skip
    from pycocotools import mask as coco

    np.testing.assert_array_equal(coco.decode(mask), record["number"] == 1)
    with pytest.raises(ValueError, match=r"exists, and is not a result"):
        path.unlink()
        refuse_files_of_others([tmp_path / "a"], {"instances": TASK})


def test_each_thing_has_its_outline_and_its_color():
    picture = np.full((*SIZE, 3), 100, np.uint8)
    codes = codes_with((CHAIR + 1, slice(4, 28), slice(4, 20)), (CHAIR + 2, slice(4, 28), slice(20, 36)))
    drawn = TASK.draw_over(picture, codes)
    assert drawn.shape == picture.shape and (drawn[0, 39] == 100).all(), "what is no thing stays as it is"
    left, right = drawn[24, 10], drawn[24, 30]
    assert (left != right).any() and (drawn[26, 19].astype(int) > left).any()
    assert TASK.draw_over(np.zeros((64, 80, 3), np.uint8), codes).shape == (64, 80, 3)
    assert [entry[0] for entry in TASK.legend(codes)] == ["chair 2"]


def test_other_numbers_of_the_same_things_are_no_difference():
    raw = raw_for(TWO)
    one = TASK.decode(raw, SIZE)
    other = one.clone()
    other[:, NUMBER] = 3 - one[:, NUMBER]
    assert TASK.difference(other, one, 0.01)[1:] == (0, 32 * 40)
    other[0, NUMBER, :2] = 5 - other[0, NUMBER, :2]
    assert TASK.difference(other, one, 0.01)[1] == 2 * 40


# ---------------------------------------------------------------------------------------------- the real commands


def test_from_training_to_files(script, tiny_settings, rooms_folder, tmp_path):
    run = tmp_path / "run"
    words = ["--config", tiny_settings, "--tasks", "segmentation,depth,instances", "--epochs", 2, "--run", run]
    done = script("train.py", *words)
    assert done.returncode == 0, done.stderr
    assert "instances/pq" in done.stdout
    done = script("evaluate.py", "--checkpoint", run / "best.pt")
    assert done.returncode == 0 and re.search(r"instances +pq [\d.e-]+  sq .* rq ", done.stdout), done.stderr
    image = rooms_folder / "rgb/000013.png"
    done = script("inference.py", "--checkpoint", run / "best.pt", "--input", image, "--output", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert {"000013_instances.png", "000013_instances.json", "000013_instances_color.jpg"} <= {
        path.name for path in (tmp_path / "out").iterdir()
    }
    again = script("inference.py", "--checkpoint", run / "best.pt", "--input", image, "--output", tmp_path / "out")
    assert again.returncode == 0, again.stderr
    for number, options in enumerate(([], ["--outputs", "raw"], ["--size", "96x72"])):
        file = tmp_path / f"{number}.onnx"
        done = script("export.py", "--checkpoint", run / "best.pt", "--images", image, "--output", file, *options)
        assert done.returncode == 0 and re.search(r"instances +on \d pictures: 0\.0\d+% of", done.stdout), done.stderr


def test_training_without_classes_of_pixels_is_refused(script, tiny_settings, tmp_path):
    done = script("train.py", "--config", tiny_settings, "--tasks", "depth,instances", "--run", tmp_path / "run")
    assert "instances needs a task that gives the class of each pixel" in only_error_line(done)
