from __future__ import annotations

import json
import os
import re
import shutil
import signal
import sys
import threading
import time
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT, only_error_line
from PIL import Image

import images
import inference
from deploy.image_folder import (
    WRITTEN_BY,
    expand_patterns,
    find_inputs,
    output_stems,
    refuse_files_of_others,
    write_description,
)
from deploy.pipeline import Pipeline, throughput_mode
from deploy.predictor import Predictor
from drawing import side_by_side
from geometry import fitted_size
from images import SAMPLE, find_images, read_image
from model import load_network, predict_batch, predict_scales
from tasks import TASKS, Depth
from utils import printable

RAMP = np.linspace(0, 255, 60 * 80).reshape(60, 80)


@pytest.fixture(scope="module")
def network(trained):
    return load_network(trained / "best.pt").to(memory_format=torch.channels_last)


def test_the_readmes_program(trained, rooms_folder):
    predictor = Predictor(str(trained / "best.pt"), backend="eager")
    result = predictor(read_image(str(rooms_folder / "rgb" / "000001.png")))
    assert result["segmentation"].shape == result["depth"].shape == (72, 96)


@pytest.mark.parametrize("size", [(48, 64), (61, 47), (33, 200), (1, 1), (1, 300)])
def test_predictions_have_the_size_and_units_that_they_promise(network, size):
    result = Predictor(network, "eager")(np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8))
    assert result["segmentation"].shape == size and result["segmentation"].dtype == np.uint8
    assert result["segmentation"].max() < 40
    assert result["depth"].shape == size and result["depth"].dtype == np.float32 and (result["depth"] > 0).all()
    assert result["normals"].shape == (3, *size)
    assert np.allclose(np.linalg.norm(result["normals"], axis=0), 1, atol=1e-3)


def test_averaging_with_the_mirrored_picture_is_symmetric(network):
    image = np.random.default_rng(1).integers(0, 256, (64, 96, 3), np.uint8)
    predictor = Predictor(network, "eager", mirror=True)
    straight = predictor(image)
    mirrored = predictor(np.ascontiguousarray(image[:, ::-1]))
    assert np.allclose(straight["depth"], mirrored["depth"][:, ::-1], rtol=1e-4)
    assert (straight["segmentation"] == mirrored["segmentation"][:, ::-1]).mean() > 0.999
    flipped = mirrored["normals"][:, :, ::-1] * np.float32([-1, 1, 1])[:, None, None]
    assert np.allclose(straight["normals"], flipped, atol=1e-3)


def test_pictures_at_several_scales_are_merged(network):
    """Depth at a scale is divided by it before the mean is taken; a scale of 1 alone changes nothing."""
    pixels = torch.randint(0, 256, (2, 3, 64, 96), dtype=torch.uint8)
    larger = torch.randint(0, 256, (2, 3, 96, 144), dtype=torch.uint8)
    sizes = dict.fromkeys(network.tasks, (70, 100))
    with torch.inference_mode():
        plain = predict_batch(network, pixels, sizes)
        alone = predict_scales(network, {1.0: pixels}, sizes)
        large = predict_batch(network, larger, sizes)
        both = predict_scales(network, {1.0: pixels, 1.5: larger}, sizes)
    assert all(torch.equal(value, alone[name]) for name, value in plain.items())
    assert torch.allclose(both["depth"], (plain["depth"] + 1.5 * large["depth"]) / 2, rtol=1e-4)


# ---------------------------------------------------------------------------------------------- image files


def save(path: Path, mode: str) -> np.ndarray:
    """Writes RAMP in a Pillow mode and returns what it should be read as, (60, 80, 3)."""
    grey = RAMP.round().astype(np.uint8)
    expected = np.repeat(grey[..., None], 3, axis=2)
    if mode == "16 bit":
        Image.fromarray((RAMP * 257).round().astype(np.uint16)).save(path)
    elif mode == "float":
        Image.fromarray((RAMP / 255).astype(np.float32)).save(path)
    elif mode == "palette":
        picture = Image.fromarray(grey)
        picture.putpalette(np.repeat(np.arange(255, -1, -1, dtype=np.uint8)[:, None], 3, axis=1).tobytes())
        picture.save(path)
        expected = 255 - expected
    elif mode == "alpha":
        alpha = np.where(np.arange(80) < 40, 255, 0)[None].repeat(60, 0).astype(np.uint8)
        Image.fromarray(np.dstack([expected, alpha])).save(path)
        expected = np.where(alpha[..., None] > 0, expected, 255)  # what is transparent shows the page: white
    elif mode == "1 bit":
        Image.fromarray(grey > 127).save(path)
        expected = np.where(expected > 127, 255, 0)
    else:
        Image.fromarray(expected).convert(mode).save(path, quality=100) if mode == "CMYK" else Image.fromarray(
            grey
        ).save(path)
    return expected


@pytest.mark.parametrize(("mode", "suffix"), [
    ("L", ".png"), ("16 bit", ".png"), ("16 bit", ".tif"), ("float", ".tif"), ("palette", ".png"), ("alpha", ".png"),
    ("alpha", ".webp"), ("1 bit", ".png"), ("CMYK", ".jpg"), ("L", ".bmp"),
])  # fmt: skip
def test_every_kind_of_image_is_converted_rightly(tmp_path, mode, suffix):
    path = tmp_path / f"image{suffix}"
    expected = save(path, mode)
    got = read_image(path)
    assert got.shape == (60, 80, 3) and got.dtype == np.uint8
    assert np.abs(got.astype(int) - expected).max() <= (8 if suffix in (".jpg", ".webp") else 1)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_honoured(tmp_path, orientation):
    upright = np.zeros((40, 60, 3), np.uint8)
    upright[:10, :10] = 255  # the marked corner is on top, left
    turn = Image.Transpose
    undo = {
        2: turn.FLIP_LEFT_RIGHT, 3: turn.ROTATE_180, 4: turn.FLIP_TOP_BOTTOM, 5: turn.TRANSPOSE, 6: turn.ROTATE_90,
        7: turn.TRANSVERSE, 8: turn.ROTATE_270,
    }  # fmt: skip
    stored = Image.fromarray(upright)
    stored = stored.transpose(undo[orientation]) if orientation in undo else stored
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored.save(tmp_path / "x.png", exif=exif)
    assert np.array_equal(read_image(tmp_path / "x.png"), upright)


@pytest.mark.parametrize("kind", ["text", "empty", "truncated", "bomb"])
def test_a_damaged_image_is_named(tmp_path, kind, monkeypatch):
    path = tmp_path / "x.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 80, 3), np.uint8)).save(path)
    if kind == "text":
        path.write_text("no picture")
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "truncated":
        path.write_bytes(path.read_bytes()[:3000])
    else:
        monkeypatch.setattr(images, "MAX_PIXELS", 1000)
    with pytest.raises(ValueError, match=r"x\.png"):
        read_image(path)


# ---------------------------------------------------------------------------------------------- folders


def test_a_folder_keeps_its_shape_and_stems_do_not_collide(trained, script, tmp_path):
    images = {"a.jpg", "a.png", "a.jpg.png", "b.PNG", "sub/a.png", "sub/deeper/c.webp"}
    for number, name in enumerate(sorted(images)):
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((40, 50, 3), 20 * number, np.uint8)).save(tmp_path / "in" / name)
    (tmp_path / "in" / "notes.txt").write_text("not an image")
    (tmp_path / "in" / "broken.png").write_text("not an image either")
    output = tmp_path / "in" / "out"  # inside the input: the second call must not take the results for input
    for _ in range(2):
        done = script(
            "inference.py", "--checkpoint", trained / "best.pt", "--input", tmp_path / "in", "--output", output
        )
        assert done.returncode == 1, "one image was skipped"
        assert done.stderr.count("error: ") == 1 and "broken.png" in done.stderr
        assert "6 of 7 images predicted" in done.stdout
    stems = {str(path.relative_to(output)).removesuffix("_depth.png") for path in output.rglob("*_depth.png")}
    assert stems == {"a.jpg", "a.png", "a.jpg.png", "b", "sub/a", "sub/deeper/c"}


def test_stems_never_collide():
    source = ROOT
    images = [source / name for name in ("x.png", "x.jpg", "x.png.jpg", "y.png", "z/x.png", "x.png.jpg.bmp")]
    stems = output_stems(images, source, Path("out"))
    assert len(set(stems)) == len(images)


def test_a_picture_that_is_called_as_an_output_of_another(tmp_path):
    """photo_objects.json would be the objects of photo.jpg and the description of photo_objects.jpg."""
    names = ["photo.jpg", "photo_objects.jpg", "photo_depth.png", "other_objects.jpg", "in/photo_masks.jpg"]
    stems = output_stems([tmp_path / name for name in names], tmp_path, Path("out"))
    assert stems == [Path("out") / name for name in (
        "photo", "photo_objects.jpg", "photo_depth.png", "other_objects", "in/photo_masks"
    )]  # fmt: skip
    files = [name for stem in stems for task in TASKS.values() for name in (
        f"{stem}.json", *map(str, map(stem.with_name, task.file_names(stem.name)))
    )]  # fmt: skip
    assert all(files.count(f"{stem}.json") == len(TASKS) for stem in stems), "one description each"


def test_nothing_to_predict_is_an_error(trained, script, tmp_path):
    (tmp_path / "empty").mkdir()
    assert "choose another" in only_error_line(
        script("inference.py", "--checkpoint", trained / "best.pt", "--input", tmp_path, "--output", tmp_path)
    )
    for source, message in ((tmp_path / "empty", "no image in it"), (tmp_path / "nowhere", "no such file or folder")):
        line = only_error_line(script("inference.py", "--checkpoint", trained / "best.pt", "--input", source))
        assert message in line and str(source) in line


def test_without_arguments_the_newest_run_and_the_sample_are_used(trained, script, tmp_path):
    shutil.copytree(trained, tmp_path / "runs" / "mine")
    for name in ("media", "model"):
        (tmp_path / name).symlink_to(ROOT / name)
    done = script("inference.py", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("checkpoint runs/mine/best.pt (the newest run)\n")
    assert (tmp_path / "predictions" / f"{SAMPLE.stem}_overview.jpg").is_file()


def test_without_a_run_the_weights_in_the_repository_are_used(script, tmp_path):
    for name in ("media", "model"):
        (tmp_path / name).symlink_to(ROOT / name)
    done = script("inference.py", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("checkpoint model/nyudv2_lite0.safetensors (the weights in the repository: ")
    described = json.loads((tmp_path / "predictions" / f"{SAMPLE.stem}.json").read_text())
    assert len(described["tasks"]["segmentation"]["classes"]) == 40


def test_find_images_does_not_follow_itself(tmp_path):
    (tmp_path / "loop").symlink_to(tmp_path)
    Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(tmp_path / "a.png")
    assert find_images(tmp_path, tmp_path / "out") == [tmp_path / "a.png"]


def test_side_by_side_fits_long_legends():
    picture = np.zeros((60, 90, 3), np.uint8)
    entries = [(f"class number {number}", (255, 0, 0)) for number in range(30)]
    sheet = side_by_side([("image", picture, []), ("segmentation", picture, entries)])
    assert sheet.shape[1] == 180 and sheet.shape[0] > 60 and (sheet[:60] == 0).all()


def test_the_image_is_seen_at_the_size_of_the_training(network):
    assert fitted_size(480, 640, network.config.long_side) == (480, 640)


# ---------------------------------------------------------------------------------------------- several inputs


def small_images(folder: Path, *names: str) -> list[Path]:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.zeros((4, 5, 3), np.uint8)).save(folder / name)
    return [folder / name for name in names]


def test_patterns_and_several_inputs(here):
    small_images(here, "a/x.png", "b/x.png", "b/deep/y.png", "odd [1] name.png")
    assert expand_patterns(["a/*.png", "odd [1] name.png"]) == ["a/x.png", "odd [1] name.png"]
    with pytest.raises(FileNotFoundError, match=r"--input c/\*: nothing matches"):
        expand_patterns(["c/*"])
    found, root = find_inputs(["a", "b", "b/x.png"], here / "out")
    assert found == [Path("a/x.png"), Path("b/deep/y.png"), Path("b/x.png")], "each once"
    stems = output_stems(found, root, Path("out"))
    assert stems == [Path("out/a/x"), Path("out/b/deep/y"), Path("out/b/x")]
    alone, root = find_inputs(["a"], here / "out")
    assert output_stems(alone, root, Path("out")) == [Path("out/x")]


# ---------------------------------------------------------------------------------------------- files of others


def test_files_that_others_made_are_not_replaced(tmp_path):
    tasks = {"depth": Depth()}
    stems = [tmp_path / name for name in ("photo", "other")]
    refuse_files_of_others(stems, tasks)
    (tmp_path / "photo_depth.png").write_text("measured")
    with pytest.raises(ValueError, match=r"photo_depth\.png: exists, .*choose another --output"):
        refuse_files_of_others(stems, tasks)
    write_description(stems[0], "photo.jpg", 48, 64, tasks, video=False)
    refuse_files_of_others(stems, tasks)
    (tmp_path / "other.json").write_text('{"shapes": []}')
    with pytest.raises(ValueError, match=r"other\.json: exists"):
        refuse_files_of_others(stems, tasks)


def test_the_description_has_the_unit(tmp_path):
    write_description(tmp_path / "street", "street.jpg", 48, 64, {"depth": Depth(max_m=80.0)}, video=False)
    content = json.loads((tmp_path / "street.json").read_text())
    assert content == {
        "written_by": WRITTEN_BY, "image": "street.jpg", "width": 64, "height": 48,
        "tasks": {"depth": {"file": "street_depth.png", "metres_per_unit": 1 / 256, "max": 80.0}},
    }  # fmt: skip


# ---------------------------------------------------------------------------------------------- the pipeline


def test_a_pipeline_keeps_the_order_and_the_budget():
    running, most, written, lock = 0, 0, [], threading.Lock()

    def predict(item: int) -> int:
        time.sleep(0.01 * (item % 3))
        return 10 * item

    def write(item: int, result: int) -> None:
        nonlocal running
        written.append((item, result))
        with lock:
            running -= 1

    with Pipeline(predict, write, budget=3, calls=2) as pipeline:
        for item in range(12):
            pipeline.reserve(1)
            with lock:
                running += 1
                most = max(most, running)
            pipeline.put(item, 1)
        pipeline.reserve(100)  # more than the budget goes alone
        assert len(written) == 12
        running += 1
        pipeline.put(12, 100)
    assert written == [(item, 10 * item) for item in range(13)] and most <= 3


@pytest.mark.parametrize("where", ["predict", "write"])
def test_an_error_in_a_pipeline_drops_what_has_not_begun(where):
    done = []

    def fail_in(name: str, item: int) -> int:
        if name == where and item == 0:
            raise ValueError("no")
        time.sleep(0.01)
        done.append(item)
        return item

    with (
        pytest.raises(ValueError, match=r"^no$"),
        Pipeline(lambda item: fail_in("predict", item), lambda item, _: fail_in("write", item), 1000) as pipeline,
    ):
        for item in range(500):
            pipeline.reserve(1)
            pipeline.put(item, 1)
    assert len(set(done)) < 499


def test_ctrl_c_in_a_pipeline_waits_for_what_runs(request):
    # Trainings of other tests leave a handler of their own.
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    request.addfinalizer(lambda: signal.signal(signal.SIGINT, handler))
    ended, began = [], threading.Event()

    def predict(item: int) -> None:
        began.set()
        time.sleep(0.1)
        ended.append(item)

    with pytest.raises(KeyboardInterrupt), Pipeline(predict, lambda item, result: None, 1000) as pipeline:
        for item in range(100):
            pipeline.put(item, 1)
        began.wait()
        signal.raise_signal(signal.SIGINT)
    count = len(ended)
    assert 1 <= count < 50
    time.sleep(0.15)
    assert len(ended) == count, "nothing runs any more"


def test_the_number_of_threads_comes_back():
    before = torch.get_num_threads()
    backend = types.SimpleNamespace(concurrent=lambda: 2)
    with pytest.raises(ValueError, match="no"), throughput_mode(backend) as calls:
        assert calls == 2 and torch.get_num_threads() == 1
        raise ValueError("no")
    assert torch.get_num_threads() == before


# ---------------------------------------------------------------------------------------------- the command line


@pytest.mark.parametrize(("options", "message"), [
    (("--batch_size", 0), "--batch_size: got '0'; it takes a whole number, at least 1"),
    (("--threads", -1), "--threads: got '-1'"), (("--threads", "many"), "--threads: got 'many'"),
    (("--smooth", 1), "below 1"), (("--seconds", "nan"), "--seconds"),
    (("--view", "overlay"), "--view is for videos"), (("--seconds", 3), "--seconds is for videos"),
    (("--smooth", 0.5), "--smooth is for videos"),
    (("--input", "x.mp4", "--resume"), "--resume is for images"),
    (("--input", "x.mp4", "--batch_size", 4), "--batch_size is for images"),
    (("--input", "x.mp4", "--smooth", 0.5, "--mirror"), "--mirror and --smooth do not go together"),
    (("--input", "x.mp4", "y.png"), "calls of their own"),
], ids=str)  # fmt: skip
def test_options_that_mean_nothing(monkeypatch, options, message):
    monkeypatch.setattr(inference, "setup_cpu", lambda threads: None)
    monkeypatch.setattr(sys, "argv", ["inference.py", *map(str, options)])
    with pytest.raises(ValueError, match=re.escape(message)):
        inference.main()


def test_names_are_printable():
    assert printable("a b \u00e9 \u2713.png") == "a b \u00e9 \u2713.png"
    assert printable("\x1b[31mred\x07\u202e.png") == "\\x1b[31mred\\x07\\u202e.png"
    assert printable(os.fsdecode(b"\xff.png")) == "\\udcff.png"
