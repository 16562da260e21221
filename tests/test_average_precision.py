"""Average precision of boxes: by hand, against pycocotools and faster-coco-eval, and against VOC's rules in loops."""

from __future__ import annotations

import contextlib
import importlib
import io

import numpy as np
import pytest
import torch
from conftest import shared
from PIL import Image

from drawing import CURVES, curves
from tasks.average_precision import DIRECTIONS, RECORD, BoxMetrics

NAN = float("nan")
COCO_VALUES = ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large", "ar1", "ar10", "ar100")
Frame = tuple[np.ndarray, np.ndarray]  # prediction (D, 7), label (G, 7)


def box(*corners: float, label: int = 0, ignore: int = 0, distance: float = NAN) -> list[float]:
    return [*corners, label, ignore, distance]


def seen(*corners: float, score: float, label: int = 0, distance: float = NAN) -> list[float]:
    return [*corners, score, label, distance]


def frame_of(detections: list[list[float]], truths: list[list[float]]) -> Frame:
    return tuple(np.array(rows, np.float32).reshape(-1, 7) for rows in (detections, truths))


def measured(frames: list[Frame], classes: int) -> BoxMetrics:
    """One frame a batch."""
    metrics = BoxMetrics(tuple(f"class_{number}" for number in range(classes)))
    for prediction, label in frames:
        metrics.update(torch.from_numpy(prediction)[None], [torch.from_numpy(label)])
    return metrics


def values_of(*frames: Frame, classes: int = 1) -> dict[str, float]:
    return measured(list(frames), classes).compute()


def in_order(frames: list[Frame], classes: int) -> list[Frame]:
    """The frames in the order in which detections of equal score stand."""
    digests = [digest for digest, _ in measured(frames, classes).frames]
    return [frames[number] for number in sorted(range(len(frames)), key=digests.__getitem__)]


def random_frames(
    seed: int, count: int = 30, classes: int = 3, most: int = 150, distances: bool = False
) -> list[Frame]:
    """Boxes near the truths, and elsewhere; equal scores and equal IoU, crowds, areas on the limits, empty frames."""
    random = np.random.default_rng(seed)
    frames = []
    for number in range(count):
        truths, detections = (np.full((random.integers(0, limit), 7), NAN, np.float32) for limit in (14, most))
        truths[:, :2] = random.integers(0, 300, (len(truths), 2))
        truths[:, 2:4] = truths[:, :2] + random.choice([8, 16, 31, 32, 33, 64, 95, 96, 97, 150], (len(truths), 2))
        truths[:, 4], truths[:, 5] = random.integers(0, classes, len(truths)), random.random(len(truths)) < 0.15
        places = np.concatenate([truths, box(20, 30, 90, 70) * np.ones((1, 1), np.float32)])
        near = places[random.integers(0, len(places), len(detections))]
        if number % 2:  # whole pixels
            shift = random.integers(-6, 7, (len(near), 4))
        else:
            shift = random.normal(0, 0.08, (len(near), 4)) * np.tile(near[:, 2:4] - near[:, :2], 2)
        detections[:, :4] = near[:, :4] + shift
        detections[:, 2:4] = np.maximum(detections[:, 2:4], detections[:, :2] + 1)
        detections[:, 4] = random.integers(1, 20, len(near)) / 20
        detections[:, 5] = np.where(random.random(len(near)) < 0.8, near[:, 4], random.integers(0, classes, len(near)))
        if distances:
            truths[:, 6] = np.where(random.random(len(truths)) < 0.8, random.uniform(1, 30, len(truths)), NAN)
            detections[:, 6] = np.where(random.random(len(near)) < 0.9, random.uniform(1, 30, len(near)), NAN)
        frames.append((detections, truths))
    return frames


def coco128(seed: int) -> list[Frame]:
    """The real labels of coco128, some of them crowds; its boxes, shifted, some with another class, as detections."""
    root, random = shared("data/coco128"), np.random.default_rng(seed)
    frames = []
    for file in sorted((root / "labels/train2017").glob("*.txt")):
        picture = root / "images/train2017" / f"{file.stem}.jpg"
        if not picture.exists():
            continue
        with Image.open(picture) as image:
            sides = np.tile(image.size, 2)
        rows = np.array([line.split() for line in file.read_text().splitlines()], float).reshape(-1, 5)
        middle, half = rows[:, 1:3], rows[:, 3:5] / 2
        truths = np.full((len(rows), 7), NAN, np.float32)
        truths[:, :4] = np.hstack([middle - half, middle + half]) * sides
        truths[:, 4], truths[:, 5] = rows[:, 0], random.random(len(rows)) < 0.1
        detections = np.repeat(truths, 3, axis=0)
        detections[:, :4] += random.normal(0, 0.1, (len(detections), 4)) * np.tile(2 * np.repeat(half, 3, 0), 2) * sides
        detections[:, 2:4] = np.maximum(detections[:, 2:4], detections[:, :2] + 1)
        detections[:, 5] = np.where(random.random(len(detections)) < 0.9, detections[:, 4], 0)
        detections[:, 4] = np.round(random.uniform(0.1, 1, len(detections)), 1)
        frames.append((detections, truths))
    return frames


# ---------------------------------------------------------------------------------------------- COCO


def official(library: str, frames: list[Frame], classes: int) -> dict[str, float]:
    """What pycocotools or faster_coco_eval give for the frames in this order."""
    data: dict[str, list] = {"images": [], "annotations": [], "info": []}
    data["categories"] = [{"id": number + 1, "name": f"class_{number}"} for number in range(classes)]
    results = []
    for image, (detections, truths) in enumerate(frames, 1):
        data["images"].append({"id": image})
        for x1, y1, x2, y2, label, ignore, _ in truths.astype(float).tolist():
            data["annotations"].append({
                "id": len(data["annotations"]) + 1, "image_id": image, "category_id": int(label) + 1,
                "bbox": [x1, y1, x2 - x1, y2 - y1], "area": (x2 - x1) * (y2 - y1), "iscrowd": int(ignore),
            })  # fmt: skip
        for x1, y1, x2, y2, score, label, _ in detections.astype(float).tolist():
            corners = [x1, y1, x2 - x1, y2 - y1]
            results.append({"image_id": image, "category_id": int(label) + 1, "bbox": corners, "score": score})
    if library == "pycocotools":
        dataset = importlib.import_module("pycocotools.coco").COCO
        evaluation = importlib.import_module("pycocotools.cocoeval").COCOeval
    else:
        module = importlib.import_module(library)
        dataset, evaluation = module.COCO, module.COCOeval_faster
    with contextlib.redirect_stdout(io.StringIO()):
        truth = dataset()
        truth.dataset = data
        truth.createIndex()
        run = evaluation(truth, truth.loadRes(results), "bbox")
        run.evaluate()
        run.accumulate()
        run.summarize()
    precision = run.eval["precision"][..., 0, -1]
    each = {f"ap/class_{number}": precision[:, :, number].ravel().mean() for number in range(classes)}
    values = dict(zip(COCO_VALUES, run.stats, strict=False)) | each
    return {name: value for name, value in values.items() if value != -1 and name not in ("ar1", "ar10")}


@pytest.mark.parametrize("library", ["pycocotools", "faster_coco_eval"])
@pytest.mark.parametrize("data", ["random 1", "random 2", "random 3", "coco128"])
def test_coco_equals_the_official_code_to_the_last_digit(library, data):
    pytest.importorskip(library, reason="needs requirements/dev.txt")
    if data == "coco128":
        frames, classes = coco128(0), 80
    else:
        # Class 3 is predicted and never true: it must be left out.
        frames, classes = random_frames(int(data[-1]), most=220), 4
        frames.append(frame_of([seen(0, 0, 50, 50, score=0.8, label=3)], []))
        crowded = [np.unique(detections[:, 5], return_counts=True)[1].max(initial=0) for detections, _ in frames]
        assert max(crowded) > 100, "more of a class in a frame than count"
    wanted = official(library, in_order(frames, classes), classes)
    found = measured(frames, classes).compute()
    found = {name: value for name, value in found.items() if "voc" not in name}
    # faster-coco-eval leaves out the smallest step that pycocotools adds to the number of detections.
    assert found == (wanted if library == "pycocotools" else pytest.approx(wanted, rel=3e-16, abs=0))
    assert set(COCO_VALUES) - {"ar1", "ar10"} <= set(wanted) and 0.05 < wanted["ap"] < 0.95


def test_ap_by_hand():
    truths = [box(0, 0, 100, 100), box(200, 0, 300, 100)]
    # Hit, miss, hit: precision 1, 1/2, 2/3 at recall 1/2, 1/2, 1. Up to a recall of 0.5 the best is 1, then 2/3.
    detections = [
        seen(0, 0, 100, 100, score=0.9), seen(0, 200, 100, 300, score=0.8), seen(200, 0, 300, 100, score=0.7),
    ]  # fmt: skip
    found = values_of(frame_of(detections, truths))
    area, eleven = 1 / 2 + 2 / 3 / 2, (6 + 5 * 2 / 3) / 11
    assert found == pytest.approx({
        **dict.fromkeys(("ap", "ap50", "ap75", "ap_large", "ap/class_0"), (51 + 50 * 2 / 3) / 101), "ar100": 1,
        "voc_ap50": area, "voc_ap50_11": eleven,
    })  # fmt: skip
    # As the only detections, the miss and a bad box: IoU 0.6 is a hit at 0.5, 0.55 and 0.6.
    found = values_of(frame_of([seen(0, 0, 60, 100, score=0.5)], truths[:1]))
    assert found["ap"] == pytest.approx(0.3) and found["ap50"] == pytest.approx(1) and found["ap75"] == 0


def test_a_crowd_takes_any_number_of_detections_and_is_not_to_be_found():
    crowd, person = box(0, 0, 200, 200, ignore=1), box(300, 0, 400, 100)
    inside = [seen(x, 0, x + 40, 40, score=0.9) for x in (0, 50, 100)]
    found = values_of(frame_of([*inside, seen(300, 0, 400, 100, score=0.5)], [crowd, person]))
    assert found["ap"] == pytest.approx(1)
    assert found["voc_ap50"] == pytest.approx(1 / 4), "IoU with a difficult box is the plain one, so they are misses"
    assert values_of(frame_of(inside, [crowd])) == {}, "nothing is to be found"


def test_only_detections_on_frames_without_truths_lower_the_precision():
    hit = frame_of([seen(0, 0, 50, 50, score=0.5)], [box(0, 0, 50, 50)])
    ghost = frame_of([seen(0, 0, 50, 50, score=0.9)], [])
    for name in ("ap", "voc_ap50", "voc_ap50_11"):
        assert values_of(hit)[name] == pytest.approx(1) and values_of(hit, ghost)[name] == pytest.approx(1 / 2)
    assert values_of(ghost) == {} and values_of(frame_of([], [])) == {}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    "corners",
    [
        (50, 50, 0, 0),
        (50, 0, 0, 50),
        (NAN, 0, 50, 50),
        (0, 0, float("inf"), 50),
        (10, 10, 10, 40),
        (0, 9, float("inf"), 9),
    ],
    ids=["turned twice", "turned", "NaN", "infinite", "thin", "infinitely thin"],
)
def test_a_box_that_is_none_is_a_false_positive(corners):
    found = values_of(frame_of([seen(*corners, score=0.9), seen(0, 0, 50, 50, score=0.5)], [box(0, 0, 50, 50)]))
    assert found["ap"] == pytest.approx(1 / 2) and found["voc_ap50"] == pytest.approx(1 / 2)


# ---------------------------------------------------------------------------------------------- VOC


def voc_by_the_book(frames: list[Frame], label: int) -> tuple[float, float] | None:
    """(area, 11-point) of a class, as the devkit's text says, with its corners: first and last pixel, 1-based."""
    truths = []
    detections = []
    positives = 0
    for number, (found, true) in enumerate(frames):
        truths.append([])
        for x1, y1, x2, y2, kind, difficult, _ in true.astype(float).tolist():
            if kind == label:
                truths[number].append({"box": (x1 + 1, y1 + 1, x2, y2), "difficult": difficult == 1, "used": False})
                positives += difficult == 0
        for x1, y1, x2, y2, score, kind, _ in found.astype(float).tolist():
            if kind == label:
                detections.append((score, number, (x1 + 1, y1 + 1, x2, y2)))
    if positives == 0:
        return None
    detections.sort(key=lambda item: -item[0])  # stable
    hits, misses, precisions, recalls, elevenths = 0, 0, [], [], [0.0] * 11
    for _, number, (x1, y1, x2, y2) in detections:
        best, target = 0.0, None
        for truth in truths[number]:
            left, top, right, bottom = truth["box"]
            width, height = min(x2, right) - max(x1, left) + 1, min(y2, bottom) - max(y1, top) + 1
            if width > 0 and height > 0:
                own = (x2 - x1 + 1) * (y2 - y1 + 1)
                overlap = width * height / (own + (right - left + 1) * (bottom - top + 1) - width * height)
                if overlap > best:
                    best, target = overlap, truth
        if target is not None and best > 0.5:
            if target["difficult"]:
                continue
            if target["used"]:
                misses += 1
            else:
                hits += 1
                target["used"] = True
        else:
            misses += 1
        recalls.append(hits / positives)
        precisions.append(hits / (hits + misses))
        for tenth in range(11):
            if 10 * hits >= tenth * positives:
                elevenths[tenth] = max(elevenths[tenth], precisions[-1])
    area = before = 0.0
    for number, recall in enumerate(recalls):
        area += (recall - before) * max(precisions[number:])
        before = recall
    return area, sum(elevenths) / 11


@pytest.mark.parametrize("data", ["random 4", "random 5", "random 6", "coco128"])
def test_voc_equals_the_rules_in_loops(data):
    frames, classes = (coco128(1), 80) if data == "coco128" else (random_frames(int(data[-1])), 3)
    ordered = in_order(frames, classes)
    wanted = [values for label in range(classes) if (values := voc_by_the_book(ordered, label))]
    found = measured(frames, classes).compute()
    areas, elevens = zip(*wanted, strict=True)
    assert found["voc_ap50"] == pytest.approx(sum(areas) / len(areas), rel=1e-12)
    assert found["voc_ap50_11"] == pytest.approx(sum(elevens) / len(elevens), rel=1e-12)
    assert abs(found["voc_ap50"] - found["voc_ap50_11"]) > 1e-4 and abs(found["voc_ap50"] - found["ap50"]) > 1e-4


def test_what_voc_and_coco_count_differently():
    half = values_of(frame_of([seen(0, 0, 50, 100, score=0.9)], [box(0, 0, 100, 100)]))
    assert half["ap50"] == pytest.approx(1) and half["voc_ap50"] == half["voc_ap50_11"] == 0, "IoU of exactly 0.5"
    # The second detection overlaps both truths, more the one that is taken.
    truths = [box(0, 0, 100, 100), box(30, 0, 130, 100)]
    second = values_of(frame_of([seen(0, 0, 100, 100, score=0.9), seen(10, 0, 110, 100, score=0.8)], truths))
    assert second["ap50"] == pytest.approx(1) and second["voc_ap50"] == pytest.approx(1 / 2)


def test_of_equal_overlaps_coco_takes_the_last_truth_and_voc_the_first():
    """As the code of both does: >= while it goes through the truths, and the first maximum."""
    left, right = box(0, 0, 100, 100), box(40, 0, 140, 100)
    detections = [seen(20, 0, 120, 100, score=0.9), seen(*right[:4], score=0.8)]  # between them, and the right one
    for truths, coco, voc in (([left, right], 51 / 101, 1), ([right, left], 1, 1 / 2)):
        found = values_of(frame_of(detections, truths))
        assert (found["ap50"], found["voc_ap50"]) == pytest.approx((coco, voc))


def test_recall_of_three_tenths_reaches_the_point_at_three_tenths():
    truths = [box(100 * x, 0, 100 * x + 50, 50) for x in range(10)]
    for count in range(11):
        found = values_of(frame_of([seen(*truth[:4], score=0.5) for truth in truths[:count]], truths))
        assert found["voc_ap50_11"] == pytest.approx((count + 1) / 11 if count else 0)


# ---------------------------------------------------------------------------------------------- distances


def test_distances_by_hand():
    places = [(100 * x, 0, 100 * x + 50, 50) for x in range(7)]
    true = [10, 20, NAN, 5, 8, 4, 0]
    found = [11, 16, 3, NAN, float("inf"), 5, 99]
    truths = [box(*place, distance=metres) for place, metres in zip(places, true, strict=True)]
    detections = [seen(*place, score=0.9, distance=metres) for place, metres in zip(places, found, strict=True)]
    # Counted: 10 as 11, 20 as 16 and 4 as 5 m. Not: two without a true and two without a predicted distance, a second
    # detection of the first truth, one that hits nothing, a crowd.
    more = [seen(*places[0], score=0.3, distance=99), seen(0, 300, 50, 350, score=0.8, distance=99)]
    more.append(seen(400, 300, 450, 350, score=0.8, distance=99))
    frame = frame_of([*detections, *more], [*truths, box(400, 300, 450, 350, ignore=1, distance=1)])
    values = values_of(frame)
    assert values["distance_median"] == pytest.approx(1) and values["distance_rel"] == pytest.approx(0.2)
    assert not {"distance_median", "distance_rel"} & set(values_of(frame_of([detections[2]], [truths[2]])))


# ---------------------------------------------------------------------------------------------- accumulation


def merged(parts: list[list[Frame]], batch: int, padded: bool) -> dict[str, float]:
    """Each part in a process of its own, `batch` frames at once."""
    everyones = []
    for part in parts:
        metrics = BoxMetrics(tuple(f"class_{number}" for number in range(3)))
        for start in range(0, len(part), batch):
            frames = part[start : start + batch]
            most = [max(len(frame[which]) for frame in frames) for which in (0, 1)]
            prediction = torch.zeros(len(frames), most[0] + 1, 7)
            target = torch.full((len(frames), most[1] + 2, 7), -1.0)
            for number, (detections, truths) in enumerate(frames):
                prediction[number, : len(detections)] = torch.from_numpy(detections)
                target[number, 1 : len(truths) + 1] = torch.from_numpy(truths)
            labels = [torch.from_numpy(truths) for _, truths in frames]
            metrics.update(prediction, target if padded else labels)
        file = io.BytesIO()
        torch.save(metrics, file)  # as distributed.gather sends it
        file.seek(0)
        everyones.append(torch.load(file, map_location="cpu", weights_only=False))
    first, *others = everyones
    for other in others:
        first.merge(other)
    return first.compute()


def test_the_split_changes_no_bit():
    frames = random_frames(7, count=24, most=60, distances=True)
    frames.append(frames[0])  # a frame that is there twice
    random = np.random.default_rng(0)
    wanted = merged([frames], 1, padded=False)
    assert set(wanted) >= set(DIRECTIONS)
    for processes in (1, 2, 3, 7):
        for batch, padded in ((1, True), (4, False), (5, True)):
            shuffled = [frames[number] for number in random.permutation(len(frames))]
            parts = [shuffled[rank::processes] for rank in range(processes)]
            assert merged(parts, batch, padded) == wanted
    assert merged([[], frames, []], 6, padded=True) == wanted, "a process without frames"


def test_frames_with_the_same_truths_stand_in_the_same_order():
    hit = frame_of([seen(0, 0, 50, 50, score=0.5)], [box(0, 0, 50, 50)])
    miss = frame_of([seen(90, 0, 99, 50, score=0.5)], [box(0, 0, 50, 50)])
    assert values_of(hit, miss) == values_of(miss, hit)


def test_the_order_of_equal_scores_matters_here():
    """Or else the test above would show nothing."""
    frames = in_order(random_frames(7, count=24, most=60), 3)
    pytest.importorskip("faster_coco_eval", reason="needs requirements/dev.txt")
    assert official("faster_coco_eval", frames, 3) != official("faster_coco_eval", frames[::-1], 3)


def test_frames_of_which_nobody_says_anything_are_left_out():
    metrics = BoxMetrics(("a",))
    prediction = torch.tensor([[seen(0, 0, 50, 50, score=0.9)], [seen(0, 0, 50, 50, score=0.5)]])
    nobody, known = torch.full((1, 7), NAN), torch.tensor([box(0, 0, 50, 50)])
    metrics.update(prediction[:1], [nobody])
    assert metrics.compute() == {} and metrics.frames == []
    metrics.update(prediction, [nobody, known])
    metrics.update(prediction, torch.stack([torch.cat([nobody, torch.full((1, 7), -1.0)]), torch.cat([known, nobody])]))
    assert metrics.compute()["ap"] == pytest.approx(1) and len(metrics.frames) == 1
    metrics.update(prediction[:1], [torch.zeros(0, 7)])  # somebody says that nothing is there
    assert metrics.compute()["ap"] == pytest.approx(1 / 2)


def test_rows_with_score_0_are_no_boxes():
    metrics = measured([frame_of([seen(0, 0, 50, 50, score=0), seen(0, 0, 5, 5, score=NAN)], [box(0, 0, 50, 50)])], 1)
    assert len(metrics.frames[0][1]) == 0 and metrics.compute()["ap"] == metrics.compute()["ar100"] == 0


def test_a_detection_takes_22_bytes():
    metrics = measured(random_frames(8, count=5), 3)
    assert RECORD.itemsize == 22
    assert all(records.nbytes == 22 * len(records) for _, records in metrics.frames)


@pytest.mark.parametrize(
    ("prediction", "label", "message"),
    [
        (torch.zeros(1, 4, 6), torch.zeros(0, 7), r"boxes: got predictions of shape \(1, 4, 6\) for 1 frames; they"),
        (torch.zeros(2, 4, 7), torch.zeros(0, 7), r"of shape \(2, 4, 7\) for 1 frames"),
        (torch.tensor([[seen(0, 0, 1, 1, score=1, label=2)]]), torch.zeros(0, 7), r"a prediction has class 2;"),
        (torch.zeros(1, 0, 7), torch.tensor([box(0, 0, 1, 1, label=-2)]), r"a label has class -2; allowed: 0\.\.1"),
        (torch.zeros(1, 0, 7), torch.tensor([box(0, 0, 1, 1, label=0.5)]), r"a label has class 0\.5"),
        (torch.zeros(1, 0, 7), torch.tensor([box(0, 0, NAN, 1)]), "a label has corners that are not finite"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused(prediction, label, message):
    with pytest.raises(ValueError, match=message):
        BoxMetrics(("a", "b")).update(prediction, [label])


# ---------------------------------------------------------------------------------------------- charts


def test_curves_of_precision():
    frames = random_frames(9)
    metrics = measured(frames, 4)
    values, lines = metrics.compute(), metrics.precision_recall()
    areas = [precision.mean() for _, precision in lines.values()]
    assert areas == pytest.approx([values["ap50"], values["ap75"], values["ap"]])
    assert next(iter(lines)) == f"IoU .50  AP {values['ap50']:.3f}" and len(lines) == 3
    assert all(
        (np.diff(precision) <= 0).all() and recall[[0, -1]].tolist() == [0, 1] for recall, precision in lines.values()
    )
    assert BoxMetrics(("a",)).precision_recall() == {}


def shade(picture: np.ndarray, color: tuple[int, int, int]) -> np.ndarray:
    return (np.abs(picture.astype(int) - color) < 60).all(2)


def test_a_line_chart_shows_where_the_lines_go():
    x = np.linspace(0, 1, 11)
    gap = np.where((x > 0.35) & (x < 0.65), NAN, 0.8)
    picture = curves({"down": (x, 1 - x), "gap": (x, gap)}, "recall", "precision")
    assert picture.dtype == np.uint8 and picture.shape[2] == 3
    plot = picture[24:294, 36:396]  # PLOT, below a line for the name of the axis and beside the numbers
    falling, level = (shade(plot, color) for color in CURVES[:2])
    for column in (60, 180, 330):
        assert abs(np.flatnonzero(falling[:, column]).mean() - 270 * column / 360) < 2
    rows, columns = np.nonzero(level)
    assert abs(rows.mean() - 0.2 * 270) < 1 and columns.min() < 3 and columns.max() > 356
    assert not level[:, 120:240].any() and level[:, 100].any() and level[:, 260].any()
    legend = picture[320:]
    assert all(shade(legend, color)[:, 10:30].any() for color in CURVES[:2])
    assert (legend[:, 38:80] < 100).all(2).sum() > 20, "names beside them"
    more = curves({f"line {number}": (x, x) for number in range(12)}, "a", "b")
    assert more.shape[0] == picture.shape[0] + 10 * 18
    assert (
        curves({"a name that is longer than the plot is wide " * 3: (x, x)}, "a", "b").shape[1] > picture.shape[1] + 100
    )
    assert curves({}, "a", "b").shape[2] == 3
