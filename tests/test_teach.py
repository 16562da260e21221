"""Labels of teachers: what is written, what is refused, and what a training makes of it."""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from conftest import only_error_line
from helpers import published
from PIL import Image

from deploy.predictor import Predictor
from folders import read_folder, read_list, teacher_file
from images import read_image
from model import load_network
from tasks import NO_CLASS, Depth, Segmentation
from teach import NetworkTeacher, folder_name, frames_to_teach, label_files, teach


@pytest.fixture()
def partial(rooms_folder, tmp_path) -> Path:
    """Rooms of which 8 of 12 training frames have no mask, and 4 others no depth."""
    folder = tmp_path / "partial"
    shutil.copytree(rooms_folder, folder)
    lines = [line.split("\t") for line in (folder / "train.txt").read_text().splitlines()]
    for number, cells in enumerate(lines):
        cells[1 if number < 8 else 2] = "-"
    (folder / "train.txt").write_text("\n".join("\t".join(cells) for cells in lines))
    return folder


def run_teacher(script, folder: Path, teacher: Path, *options: object):
    return script(
        "teach.py", "--teacher", teacher, "--data", folder, "--task", "segmentation", "--workers", 0, *options
    )


def median_confidence(folder: Path, checkpoint: Path, task: str) -> float:
    """Of the first training frame: the tiny network is sure of little."""
    teacher = NetworkTeacher(checkpoint, task, "", torch.device("cpu"), torch.float32)
    image = torch.from_numpy(read_image(read_list(read_folder(folder), "train")[0].image).transpose(2, 0, 1).copy())
    return round(float(np.median(teach(teacher, image[None], tuple(image.shape[1:]))[0][1])), 4)


def test_confident_predictions_become_labels_that_training_uses(script, partial, trained, tiny_settings, tmp_path):
    threshold = median_confidence(partial, trained / "best.pt", "segmentation")
    done = run_teacher(script, partial, trained / "best.pt", "--threshold", threshold, "--batch_size", 3)
    assert done.returncode == 0, done.stderr
    assert "8 frames of" in done.stdout and "8 labels written" in done.stdout
    folder = read_folder(partial, "taught")
    frames = read_list(folder, "train", "taught")
    assert [sorted(frame.taught) for frame in frames] == [["segmentation"]] * 8 + [[]] * 4
    record = yaml.safe_load((partial / "taught/segmentation/teacher.yaml").read_text())
    assert record["teacher"] == "best.pt" and record["threshold"] == threshold and len(record["sha256"]) == 64

    # Known answers: where both views of the teacher agree with probability above the threshold, its class.
    network = load_network(trained / "best.pt")
    task = network.tasks["segmentation"]
    image = read_image(frames[0].image)
    plain, mirrored = (Predictor(network, "eager", mirror=mirror)(image) for mirror in (False, True))
    label = task.read(frames[0].taught["segmentation"], folder.taught["segmentation"], frames[0].image)
    sure = label != NO_CLASS
    assert 0.4 < sure.mean() < 0.6, "half of the pixels by the choice of the threshold"
    assert (label[sure] == mirrored["segmentation"][sure]).all()
    assert plain["segmentation"].shape == label.shape

    # The list file and the data set are as they were, and the training says what it uses.
    assert "taught" not in (partial / "train.txt").read_text()
    done = script("train.py", "--config", tiny_settings, "--data", partial, "--epochs", 2,
                  "--teacher_labels", "taught", "--teacher_weight", 0.25, "--run", tmp_path / "run")  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "4 segmentation + 8 of a teacher (weight 0.25), 8 depth" in done.stdout
    names = {name for line in (tmp_path / "run/log.jsonl").read_text().splitlines() for name in json.loads(line)}
    assert {"segmentation", "segmentation/teacher", "depth"} <= names


def test_it_goes_on_where_it_stopped_but_not_with_another_teacher(script, partial, trained, tmp_path):
    assert run_teacher(script, partial, trained / "best.pt").returncode == 0
    folder = read_folder(partial, "taught")
    files = [teacher_file(folder, frame.image, "taught", "segmentation") for frame in read_list(folder, "train")[:8]]
    times = [file.stat().st_mtime_ns for file in files]
    before = files[3].read_bytes()
    files[3].unlink()
    done = run_teacher(script, partial, trained / "best.pt")
    assert "7 of them were taught before" in done.stdout and "1 labels written" in done.stdout
    assert files[3].read_bytes() == before
    assert [file.stat().st_mtime_ns for number, file in enumerate(files) if number != 3] == times[:3] + times[4:]
    line = only_error_line(run_teacher(script, partial, trained / "best.pt", "--threshold", 0.9))
    assert "other settings (threshold)" in line and "--name" in line
    copy = tmp_path / "best.pt"  # the same name, another teacher
    torch.save(torch.load(trained / "best.pt", weights_only=True) | {"step": -1}, copy)
    assert "other settings (sha256)" in only_error_line(run_teacher(script, partial, copy))


def test_depth_is_sure_where_the_mirror_image_agrees(script, partial, trained):
    threshold = median_confidence(partial, trained / "best.pt", "depth")
    done = script("teach.py", "--teacher", trained / "best.pt", "--data", partial, "--task", "depth",
                  "--threshold", threshold, "--workers", 0)  # fmt: skip
    assert done.returncode == 0, done.stderr
    folder = read_folder(partial, "taught")
    frame = read_list(folder, "train", "taught")[-1]
    label = Depth().read(frame.taught["depth"], folder.taught["depth"], frame.image)
    network = load_network(trained / "best.pt")
    image = read_image(frame.image)
    predictor = Predictor(network, "eager")
    one = predictor(image)["depth"]
    other = predictor(np.ascontiguousarray(image[:, ::-1]))["depth"][:, ::-1]
    ratio = np.minimum(one, other) / np.maximum(one, other)
    clear = np.abs(ratio - threshold) > 1e-4  # rounding may decide on the edge
    assert ((label > 0) == (ratio >= threshold))[clear].all() and 0.1 < (label > 0).mean() < 0.9
    assert np.allclose(label[label > 0], ((one + other) / 2)[label > 0], atol=2e-3)


def test_only_training_frames_are_taught(script, partial, trained):
    line = only_error_line(run_teacher(script, partial, trained / "best.pt", "--split", "val"))
    assert "what a training is judged by" in line
    with (partial / "train.txt").open("a") as file:
        file.write("\n" + (partial / "val.txt").read_text().splitlines()[0])
    line = only_error_line(run_teacher(script, partial, trained / "best.pt"))
    assert "is a frame of 'val' and of 'train' as well" in line
    line = only_error_line(script("train.py", "--data", partial, "--device", "cpu"))
    assert "is a training frame as well" in line


def test_frames_of_any_other_split_are_not_taught(partial):
    """A training may be judged by a split of any name: --val_split is a setting."""
    values = yaml.safe_load((partial / "dataset.yaml").read_text())
    values["splits"]["holdout"] = "holdout.txt"
    (partial / "dataset.yaml").write_text(yaml.safe_dump(values))
    lines = (partial / "train.txt").read_text().splitlines()
    (partial / "holdout.txt").write_text("\n".join([(partial / "val.txt").read_text().splitlines()[0], lines[5]]))
    with pytest.raises(ValueError, match=r"holdout\.txt:2: .* is a frame of 'holdout' and of 'train' as well"):
        frames_to_teach(read_folder(partial), "train", "segmentation")
    (partial / "train.txt").write_text("\n".join(lines[:5] + lines[6:]))
    assert len(frames_to_teach(read_folder(partial), "train", "segmentation")) == 7


@pytest.mark.parametrize("name", ["..", ".", "", "a/b", "/tmp", "../x", ".git"])
def test_the_name_leads_nowhere_else(name):
    with pytest.raises(argparse.ArgumentTypeError, match="the name of one folder in the data set"):
        folder_name(name)


@pytest.mark.parametrize("link", ["taught", "taught/segmentation", "taught/segmentation/rgb"])
def test_links_out_of_the_data_set_are_not_followed(link, partial, tmp_path):
    folder = read_folder(partial)
    frames = read_list(folder, "train")[:1]
    assert label_files(folder, frames, "taught", "segmentation")[0].is_relative_to(partial)
    (tmp_path / "elsewhere").mkdir()
    (partial / link).parent.mkdir(parents=True, exist_ok=True)
    (partial / link).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match=r"taught.* leads out of .*partial, to .*elsewhere"):
        label_files(folder, frames, "taught", "segmentation")


def rename_classes(folder: Path, change: dict[str, str]) -> list[str]:
    values = yaml.safe_load((folder / "dataset.yaml").read_text())
    names = list(read_folder(folder).sections["segmentation"]["classes"])
    names = [change.get(name, name) for name in names]
    (folder / "dataset.yaml").write_text(yaml.safe_dump(values | {"segmentation": {"classes": names}}))
    return names


def test_classes_must_fit_or_be_mapped(script, partial, trained, tmp_path):
    rename_classes(partial, {"wall": "stone_wall", "lamp": "light"})
    line = only_error_line(run_teacher(script, partial, trained / "best.pt"))
    assert "2 of the teacher's 40 classes are not the data set's, such as 'wall'" in line and "--map" in line
    names = tmp_path / "map.yaml"
    names.write_text("{wall: stone_wall, lamp: '-'}")
    done = run_teacher(script, partial, trained / "best.pt", "--map", names, "--threshold", 0)
    assert done.returncode == 0, done.stderr
    folder = read_folder(partial, "taught")
    section = folder.taught["segmentation"]
    assert section["classes"] == folder.sections["segmentation"]["classes"] and "stone_wall" in section["classes"]
    names.write_text("{wal: stone_wall}")
    line = only_error_line(run_teacher(script, partial, trained / "best.pt", "--map", names, "--name", "b"))
    assert "no class 'wal' (did you mean 'wall'?)" in line


def test_images_outside_of_the_data_set_are_not_taught(script, partial, trained):
    (partial / "train.txt").write_text("../elsewhere.png\t-\t-\t-\t-")
    shutil.copy(next((partial / "rgb").iterdir()), partial.parent / "elsewhere.png")
    line = only_error_line(run_teacher(script, partial, trained / "best.pt"))
    assert "elsewhere.png: it is outside of" in line and not (partial / "taught").exists()


def test_a_published_checkpoint_teaches(script, partial, tmp_path):
    """Of NYUDv2 and KITTI, as for NYUDv2: the rooms have its 40 classes."""
    torch.save({"state_dict": published(46).state_dict()}, tmp_path / "ExpNYUDKITTI_joint.ckpt")
    call = (partial, tmp_path / "ExpNYUDKITTI_joint.ckpt", "--threshold", 0.2)
    assert "6 of the teacher's 46 classes are not the data set's" in only_error_line(run_teacher(script, *call))
    done = run_teacher(script, *call, "--domain", "nyud")
    assert done.returncode == 0, done.stderr
    assert yaml.safe_load((partial / "taught/segmentation/teacher.yaml").read_text())["domain"] == "nyud"


def test_translation_of_classes():
    teacher = Segmentation(classes=("a", "b", "c"), colors=((0, 0, 0),) * 3)
    section = {"classes": ("c", "x"), "colors": ((0, 0, 0),) * 2, "ignore": 255}
    target, translate = teacher.translation(section, {"a": "x", "b": "-"}, "test")
    assert translate(np.array([[0, 1, 2]], np.uint8)).tolist() == [[1, NO_CLASS, 0]]
    assert target.classes == ("c", "x")
    assert teacher.translation(None, {}, "test")[0] is teacher


def test_a_data_set_without_masks_takes_the_teachers_classes(script, partial, trained, tiny_settings, tmp_path):
    """Depth-only frames, as red kitchen's, get masks; two data sets of one class list then share their outputs."""
    values = yaml.safe_load((partial / "dataset.yaml").read_text())
    values["columns"] = ["image", "depth"]
    del values["segmentation"]
    for split in ("train.txt", "val.txt"):
        lines = [line.split("\t") for line in (partial / split).read_text().splitlines()]
        (partial / split).write_text("\n".join(f"{cells[0]}\t{cells[2]}" for cells in lines))
    (partial / "dataset.yaml").write_text(yaml.safe_dump(values | {"name": "depth_only"}))
    done = run_teacher(script, partial, trained / "best.pt", "--threshold", 0.3)
    assert done.returncode == 0, done.stderr
    done = script("train.py", "--config", tiny_settings, "--data", partial, "--teacher_labels", "taught",
                  "--best_metric", "depth/rmse", "--epochs", 2, "--run", tmp_path / "run")  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert load_network(tmp_path / "run/best.pt").tasks["segmentation"].classes[0] == "wall"


class Halves:
    """A teacher that is sure of class 1 on the left, and torn on the right."""

    task = Segmentation(classes=("a", "b"), colors=((0, 0, 0),) * 2)

    def raw(self, images: torch.Tensor) -> torch.Tensor:
        left = images[:, :1].float()  # 255 where it is sure
        return torch.cat([torch.zeros_like(left), left / 25], dim=1)


def test_confidence_belongs_to_its_pixel():
    images = torch.zeros(1, 3, 8, 12, dtype=torch.uint8)
    images[..., :6] = 255
    prediction, confidence = teach(Halves(), images, (8, 12))[0]
    assert (prediction[:, :6] == 1).all() and (confidence[:, :6] > 0.99).all()
    assert np.allclose(confidence[:, 6:], 0.5)


# ---------------------------------------------------------------------------------------------- ONNX


def onnx_model(path: Path, channels: int) -> None:
    """A 1x1 convolution as a network of others: its output k is k times the red channel, at input size."""
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    weights = np.zeros((channels, 3, 1, 1), np.float32)
    weights[:, 0, 0, 0] = np.arange(channels)
    helper, kind = onnx.helper, onnx.TensorProto.FLOAT
    graph = helper.make_graph(
        [helper.make_node("Conv", ["pixels", "w"], ["out"])], "g",
        [helper.make_tensor_value_info("pixels", kind, ["b", 3, "h", "w"])],
        [helper.make_tensor_value_info("out", kind, ["b", channels, "h", "w"])],
        [onnx.numpy_helper.from_array(weights, "w")],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.save(model, path)


def test_an_onnx_file_teaches_depth(script, partial, tmp_path):
    onnx_model(tmp_path / "model.onnx", 2)
    (tmp_path / "model.yaml").write_text("task: depth\nsection: {max: 10}\nscale: 4\n")
    call = ("teach.py", "--teacher", tmp_path / "model.onnx", "--data", partial, "--task", "depth", "--workers", 0)
    assert "its output is" in only_error_line(script(*call))
    shutil.rmtree(partial / "taught")
    onnx_model(tmp_path / "model.onnx", 1)
    done = script(*call)
    assert done.returncode == 0, done.stderr
    folder = read_folder(partial, "taught")
    frame = read_list(folder, "train", "taught")[-1]
    label = Depth().read(frame.taught["depth"], folder.taught["depth"], frame.image)
    assert label.shape == (72, 96) and not label.any(), "a depth of 0 m everywhere (k = 0) is no label"


def test_an_onnx_file_teaches_classes(script, partial, tmp_path):
    """Class 1 wins wherever the picture is not black in red; probabilities and a fixed size work too."""
    rename_classes(partial, {})
    names = list(read_folder(partial).sections["segmentation"]["classes"])
    onnx_model(tmp_path / "model.onnx", 2)
    (tmp_path / "model.yaml").write_text(yaml.safe_dump({
        "task": "segmentation", "section": {"classes": [names[3], names[7]]}, "input": "pixels", "output": "out",
        "mean": [0.1, 0, 0], "std": [0.01, 1, 1], "size": [72, 96],
    }))  # fmt: skip
    done = run_teacher(script, partial, tmp_path / "model.onnx", "--threshold", 0.9)
    assert done.returncode == 0, done.stderr
    folder = read_folder(partial, "taught")
    frame = read_list(folder, "train", "taught")[0]
    label = np.array(Image.open(frame.taught["segmentation"]))
    red = read_image(frame.image)[..., 0] / 255
    assert set(np.unique(label)) <= {3, 7, NO_CLASS}
    assert (label[red > 0.13] == 7).all() and (label[red < 0.07] == 3).all()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("task: depth", "its task is 'depth', --task is 'segmentation'"),
        ("task: segmentation\nsecton: {}", "unknown key 'secton' (did you mean 'section'?)"),
        ("task: segmentation\nsection: {classes: [a, b]}\ninput: pixel", "did you mean 'pixels'?"),
        ("task: segmentation\nsection: {classes: [a, b]}\nvalues: logit", "allowed: raw, probabilities"),
        (
            "task: segmentation\nsection: {classes: [a, b]}\nsize: [0, 64]",
            "size is (0, 64); height and width take 1 to",
        ),
        ("task: segmentation\nsection: {classes: [a, b]}\nsize: [64, 1000000]", "height and width take 1 to 8192"),
    ],
)
def test_a_wrong_description_of_a_model_is_named(script, partial, tmp_path, text, message):
    onnx_model(tmp_path / "model.onnx", 2)
    (tmp_path / "model.yaml").write_text(text)
    assert message in only_error_line(run_teacher(script, partial, tmp_path / "model.onnx"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--task", "segmentatio"], "did you mean 'segmentation'?"),
        (["--threshold", "2"], "--threshold: got '2'; it takes a number, at least 0 and at most 1"),
        (["--name", "a/b"], "name of one folder"),
        (["--domain", "nowhere"], "does not know 'nowhere'"),
        (["--teacher", "nowhere.pt"], "nowhere.pt: no such file"),
        (["--teacher", "nowhere.onnx"], "nowhere.onnx: no such file"),
    ],
)
def test_mistakes_get_one_line(script, partial, trained, options, message):
    assert message in only_error_line(run_teacher(script, partial, trained / "best.pt", *options))
