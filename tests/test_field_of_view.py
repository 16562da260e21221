"""Predictions follow the camera of a picture: by its EXIF data or by hand, and by what is known of the training."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT, make_two_sets, only_error_line
from helpers import settings, tasks
from PIL import ExifTags, Image

from config import make_config
from dataset import Frames
from deploy.backends import open_backend
from deploy.field_of_view import UNKNOWN_DEGREES
from deploy.file_formats import write_onnx, write_safetensors
from deploy.predictor import Predictor
from deploy.signature import make_signature
from folders import make_domains, read_folder, read_list
from geometry import focal_with, fov_with
from images import FILM_DIAGONAL_MM, SAMPLE, read_image, read_photo
from model import Network, build_network, camera_of, cameras_from_plain, load_network
from networks.checkpoints import SHIPPED, read_checkpoint, save_checkpoint
from reconstruct import image_to_cloud
from training.data import cameras_of
from training.mixture import Mixture

CAMERA = {"focal_px": 500.0, "long_side": 640.0}
EXIF_IFD, FOCAL = ExifTags.IFD.Exif, ExifTags.Base.FocalLengthIn35mmFilm


@pytest.fixture(scope="module")
def network() -> Network:
    config = settings("mobilenetv3_small_050", decoder_width=8, crp_stages=1, encoder_weights="none", long_side=96)
    made = build_network(config, tasks(5, normals=True)).eval()
    made.cameras = {"rooms": CAMERA}
    return made


def picture(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)


def save_with_exif(path: Path, image: np.ndarray, focal_mm: object, orientation: int = 1) -> Path:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    exif.get_ifd(EXIF_IFD)[FOCAL] = focal_mm
    Image.fromarray(image).save(path, exif=exif)
    return path


# ---------------------------------------------------------------------------------------------- one picture


@pytest.mark.parametrize("size", [(72, 96), (96, 72), (150, 200)])
def test_predictions_are_scaled_by_the_ratio_of_the_focal_lengths(network, size):
    """The network sees every picture with 96 pixels on the longer side, and so it saw frames of 640 with 500 px."""
    image = picture(*size)
    plain, scaled = (Predictor(network, "eager", fov=fov)(image) for fov in (0, 70))
    zoom = (size[1] / 2 / math.tan(math.radians(35))) / max(size) / (500 / 640)
    assert np.allclose(scaled["depth"], plain["depth"] * zoom, rtol=1e-6)
    x, y, z = plain["normals"] * np.array([1, 1, 1 / zoom])[:, None, None]
    assert np.allclose(scaled["normals"], np.array([x, y, z]) / np.sqrt(x * x + y * y + z * z), atol=1e-6)
    assert np.array_equal(scaled["segmentation"], plain["segmentation"])
    again = Predictor(network, "eager")(image, focal_with(70, *size))
    assert np.allclose(again["depth"], scaled["depth"])
    with torch.inference_mode():
        assert np.array_equal(Predictor(network, "eager")(image)["depth"], plain["depth"])


def test_the_camera_of_the_training_changes_nothing(network):
    image, own = picture(72, 96), fov_with(500 / 640, 72, 96)
    assert own == pytest.approx(65.24, abs=0.01)
    expected = Predictor(network, "eager")(image)
    found = Predictor(network, "eager", fov=own)(image)
    assert np.allclose(found["depth"], expected["depth"]) and np.allclose(found["normals"], expected["normals"])


def test_a_crop_of_the_middle_is_a_longer_focal_length(network):
    """Half of a picture: half of its field of view's tangent, so that twice as far is as large."""
    view = Predictor(network, "eager").field_of_view
    whole = focal_with(60, 480, 640)
    assert view.zoom(2 * whole, 240, 320) == pytest.approx(2 * view.zoom(whole, 480, 640))


def test_pictures_that_are_seen_as_they_are_count_in_pixels(network):
    """long_side 0: a picture of twice the pixels shows everything twice as large."""
    config = make_config({"long_side": 0}, "test", network.config)
    own = build_network(config, network.tasks).eval()
    own.cameras = network.cameras
    zooms = [Predictor(own, "eager").field_of_view.zoom(0.8, 3 * side, 4 * side) for side in (80, 160)]
    assert zooms == pytest.approx([0.8 * 320 / 500, 0.8 * 640 / 500])


def test_a_batch_takes_a_focal_length_for_each_picture(network):
    images = [picture(72, 96), picture(72, 96)[::-1].copy()]
    predictor = Predictor(network, "eager")
    plain, mixed = predictor.batch(images), predictor.batch(images, focals=[None, 2 * 500 / 640])
    assert np.array_equal(mixed[0]["depth"], plain[0]["depth"])
    assert np.allclose(mixed[1]["depth"], 2 * plain[1]["depth"])


# ---------------------------------------------------------------------------------------------- EXIF


@pytest.mark.parametrize("ending", ["jpg", "png", "webp"])
@pytest.mark.parametrize(("stored", "orientation", "upright"), [
    ((60, 80), 1, (60, 80)), ((60, 80), 6, (80, 60)), ((80, 60), 1, (80, 60)), ((80, 60), 8, (60, 80)),
])  # fmt: skip
def test_the_focal_length_is_read_from_exif_data(tmp_path, ending, stored, orientation, upright):
    path = save_with_exif(tmp_path / f"photo.{ending}", picture(*stored), 26, orientation)
    image, focal = read_photo(path)
    assert image.shape[:2] == upright
    # Over the diagonal, 100 pixels, the field of view is that of 36 x 24 mm film.
    assert focal == pytest.approx(26 / math.hypot(36, 24) * 100 / 80)
    across = 2 * math.degrees(math.atan(math.hypot(36, 24) / 2 / 26))
    diagonal = 2 * math.degrees(math.atan(100 / 2 / (focal * 80)))
    assert diagonal == pytest.approx(across) and fov_with(focal, *image.shape[:2]) < across


@pytest.mark.parametrize("focal_mm", [0, 3, 65535, "26", "wide", b"\xff", (26, 26), None])
def test_a_focal_length_that_says_nothing_is_not_known(tmp_path, focal_mm):
    if focal_mm is None:
        Image.fromarray(picture(6, 8)).save(tmp_path / "photo.jpg")
    else:
        save_with_exif(tmp_path / "photo.jpg", picture(6, 8), focal_mm)
    assert read_photo(tmp_path / "photo.jpg")[1] in (None, 26 / FILM_DIAGONAL_MM * 10 / 8 * (focal_mm == "26"))


def test_damaged_exif_data_never_fail(tmp_path):
    """Each byte of them changed in turn, and all of them cut off at each place."""
    path = save_with_exif(tmp_path / "photo.jpg", picture(6, 8), 26)
    content, pixels = path.read_bytes(), read_image(path)
    start = content.index(b"Exif\0\0")
    length = int.from_bytes(content[start - 2 : start], "big") - 2
    assert read_photo(path)[1]
    for place in range(start, start + length):
        changed = content[:place] + bytes([content[place] ^ 0xFF]) + content[place + 1 :]
        short = content[: start - 2] + (place - start + 2).to_bytes(2, "big") + content[start:place]
        for damaged in (changed, short + content[start + length :]):
            path.write_bytes(damaged)
            image, focal = read_photo(path)
            assert image.size == pixels.size and (focal is None or 0.05 < focal < 150), place


# ---------------------------------------------------------------------------------------------- what a training knows


def test_a_training_stores_the_cameras_of_its_frames(trained):
    focal_px = read_folder(read_checkpoint(trained / "best.pt")["config"]["data"].popitem()[0]).camera["fx"]
    for name in ("best.pt", "last.pt"):
        assert read_checkpoint(trained / name)["cameras"] == {"rooms": {"focal_px": focal_px, "long_side": 96.0}}
    assert load_network(trained / "best.pt").cameras["rooms"]["focal_px"] == focal_px


@pytest.mark.parametrize("camera", ["sized", "any size", "none"])
def test_data_sets_whose_labels_depend_on_the_camera_count(rooms_folder, tmp_path, camera):
    folders = [read_folder(folder) for folder in make_two_sets(rooms_folder, tmp_path)]
    left_out = {"sized": (), "any size": ("width", "height"), "none": tuple(folders[0].camera)}[camera]
    for folder in folders:
        for name in left_out:
            del folder.camera[name]
    config = make_config({"long_side": 64}, "test")
    _, domains = make_domains(folders, config)
    lists = [Frames(folder, read_list(folder, "train"), domains[folder.name], config, True) for folder in folders]
    focal_px = {} if camera == "none" else {"focal_px": folders[1].camera["fx"], "long_side": 96.0}
    assert cameras_of(Mixture(lists, [1, 1])) == {"depth_only": focal_px}


def test_each_data_set_has_its_camera():
    own = tasks(3)
    network = build_network(
        settings("mobilenetv3_small_050", decoder_width=8, crp_stages=1, encoder_weights="none"), own
    )
    other = {"focal_px": 250.0, "long_side": 640.0}
    assert camera_of(network, "") == {}
    network.cameras = {"a": CAMERA, "b": dict(CAMERA)}
    assert camera_of(network, "") == camera_of(network, "a") == camera_of(network, "masks only") == CAMERA
    network.cameras = {"a": CAMERA, "b": other, "c": {}}
    assert (camera_of(network, "b"), camera_of(network, "c"), camera_of(network, "")) == (other, {}, {})
    smaller = {name: value / 2 for name, value in CAMERA.items()}  # frames of half the size by the same camera
    network.cameras = {"a": CAMERA, "b": smaller}
    assert camera_of(network, "") == CAMERA and camera_of(network, "b") == smaller
    network.cameras["b"]["focal_px"] *= 1.01
    assert camera_of(network, "") == {}


@pytest.mark.parametrize("cameras", [
    [], {"a": 1}, {"a": {"focal_px": 1}}, {"a": {"focal_px": 0, "long_side": 1}}, {1: {"focal_px": 1, "long_side": 1}},
    {"a": {"focal_px": 1, "long_side": "1"}}, {"a": {"focal_px": math.inf, "long_side": 1}},
    {"a": {"focal_px": math.nan, "long_side": 1}}, {"a": {"focal_px": True, "long_side": 1}},
    {"a": {"focal_px": 1, "long_side": 1, "x": 1}},
])  # fmt: skip
def test_cameras_that_lie_are_refused(trained, tmp_path, cameras):
    with pytest.raises(ValueError, match="cameras"):
        cameras_from_plain(cameras)
    save_checkpoint(tmp_path / "c.pt", read_checkpoint(trained / "best.pt") | {"cameras": cameras})
    with pytest.raises(ValueError, match=f"{tmp_path}/c.pt: .*cameras"):
        load_network(tmp_path / "c.pt")


def test_earlier_checkpoints_do_not_know_it(trained, script, tmp_path):
    content = read_checkpoint(trained / "best.pt")
    del content["cameras"]
    save_checkpoint(tmp_path / "c.pt", content)
    path = save_with_exif(tmp_path / "photo.jpg", picture(60, 80), 26)
    for options, line in ((("--fov", 70), "depth, normals: not scaled for a field of view of 70 degrees (given): the "
                           "checkpoint does not know the camera of its training\n"), ((), "")):  # fmt: skip
        words = ("--checkpoint", tmp_path / "c.pt", "--input", path, "--output", tmp_path / "out")
        done = script("inference.py", *words, "--backend", "eager", *options)
        assert done.returncode == 0 and re.findall("(?m)^depth.*\n", done.stdout) == [line] * bool(line), done.stderr
        assert "scaled_by" not in json.loads((tmp_path / "out/photo.json").read_text())


def test_exported_files_know_the_camera(network, tmp_path):
    pytest.importorskip("onnxruntime")
    signature = make_signature(network, network.tasks, units_out=True)
    written = write_onnx(network, signature, tmp_path / "n.onnx", [])
    write_safetensors(network, signature, tmp_path / "n.safetensors", [])
    assert written.cameras == load_network(tmp_path / "n.safetensors").cameras == network.cameras
    image, zoom = picture(72, 96), Predictor(network, "eager", fov=90).field_of_view.zoom(None, 72, 96)
    plain, scaled = (Predictor(open_backend(tmp_path / "n.onnx"), fov=fov)(image)["depth"] for fov in (0, 90))
    assert zoom == pytest.approx(0.5 * 640 / 500) and np.allclose(scaled, plain * zoom)


def test_a_graph_of_one_size_sees_a_picture_that_does_not_fit_smaller(network, tmp_path):
    pytest.importorskip("onnxruntime")
    signature = make_signature(network, network.tasks, size=(144, 192))
    backend = write_onnx(network, signature, tmp_path / "n.onnx", [])
    view, reference = Predictor(backend).field_of_view, Predictor(network, "eager").field_of_view
    assert view.zoom(0.8, 300, 400) == pytest.approx(reference.zoom(0.8, 300, 400))
    assert view.zoom(0.8, 400, 300) == pytest.approx(0.75 * reference.zoom(0.8, 400, 300), rel=0.01)


# ---------------------------------------------------------------------------------------------- commands


def test_inference_follows_exif_data_or_the_option(trained, script, tmp_path):
    camera = load_network(trained / "best.pt").cameras["rooms"]
    (tmp_path / "in").mkdir()
    save_with_exif(tmp_path / "in/a.jpg", picture(60, 80), 26)
    save_with_exif(tmp_path / "in/b.jpg", picture(60, 80), 52)
    Image.fromarray(picture(60, 80)).save(tmp_path / "in/c.jpg")
    zooms = [read_photo(tmp_path / "in" / name)[1] / (camera["focal_px"] / 96) for name in ("a.jpg", "b.jpg")]

    def call(*options):
        words = ("--checkpoint", trained / "best.pt", "--input", tmp_path / "in", "--output", tmp_path / "out")
        done = script("inference.py", *words, "--backend", "eager", *options)
        assert done.returncode == 0, done.stderr
        described = [json.loads((tmp_path / f"out/{name}.json").read_text()).get("scaled_by", 1.0) for name in "abc"]
        depth = [np.array(Image.open(tmp_path / f"out/{name}_depth.png")).astype(float) for name in "abc"]
        return re.findall("(?m)^depth.*$", done.stdout), described, depth

    lines, described, plain = call("--fov", 0)
    assert lines == [] and described == [1, 1, 1]
    lines, described, scaled = call()  # long_side 0: 80 pixels wide, where the training had 96
    zooms = [80 / 96 * zoom for zoom in zooms]
    assert described == pytest.approx([*zooms, 1.0])
    assert lines == [
        f"depth, normals: scaled by {zoom:.2f} for a field of view of {degrees} degrees (EXIF)"
        for zoom, degrees in zip(zooms, (67, 37), strict=True)
    ] or lines == sorted(lines)
    for before, after, zoom in zip(plain, scaled, [*zooms, 1], strict=True):
        assert np.abs(after - zoom * before).max() <= 1 + zoom / 2
    lines, described, _ = call("--fov", 90)
    assert lines == [f"depth, normals: scaled by {described[0]:.2f} for a field of view of 90 degrees (given)"]
    assert described == pytest.approx([40 / camera["focal_px"]] * 3)


def test_many_fields_of_view_are_three_lines(trained, script, tmp_path):
    (tmp_path / "in").mkdir()
    for focal_mm in range(20, 70, 10):
        save_with_exif(tmp_path / f"in/{focal_mm}.jpg", picture(60, 80), focal_mm)
    words = ("--checkpoint", trained / "best.pt", "--input", tmp_path / "in", "--output", tmp_path / "out")
    done = script("inference.py", *words, "--backend", "eager")
    assert done.stdout.count("(EXIF)") == 3 and "\nand 2 more such lines" in done.stdout, done.stdout + done.stderr


@pytest.mark.parametrize("value", ["-1", "0.5", "180", "nan", "none"])
def test_a_field_of_view_is_in_degrees(trained, script, value):
    line = only_error_line(script("inference.py", "--checkpoint", trained / "best.pt", "--fov", value))
    assert f"--fov: got '{value}'" in line


def test_a_video_takes_the_option(trained, script, tmp_path):
    pytest.importorskip("av")
    from fractions import Fraction

    from deploy.video import video_writer

    with video_writer(tmp_path / "clip.mp4", Fraction(5)) as write:
        for number in range(3):
            write(number / 5, picture(72, 96))
    words = ("--checkpoint", trained / "best.pt", "--input", tmp_path / "clip.mp4", "--output", tmp_path / "out")
    done = script("inference.py", *words, "--fov", 90, "--backend", "eager")
    scaled_by = json.loads((tmp_path / "out/clip.json").read_text())["scaled_by"]
    assert scaled_by == pytest.approx(48 / load_network(trained / "best.pt").cameras["rooms"]["focal_px"])
    assert f"depth, normals: scaled by {scaled_by:.2f} for a field of view of 90 degrees (given)\n" in done.stdout


def test_points_of_a_picture_have_its_camera(network, tmp_path, capsys):
    path = save_with_exif(tmp_path / "photo.jpg", picture(72, 96), 26)

    def corner(fov: float | None, intrinsics: dict[str, float] | None = None) -> tuple[float, float]:
        """The slope of the ray of the first pixel, and its metres."""
        cloud = image_to_cloud(Predictor(network, "eager", fov=fov), path, intrinsics, 999)
        x, _, z = cloud.points[0]
        return -x / z, z

    slope, plain_m = corner(0)
    assert slope == pytest.approx(47.5 / 48 * math.tan(math.radians(UNKNOWN_DEGREES / 2)), rel=1e-4)
    assert capsys.readouterr().out == ""
    intrinsics = {"fx": 60.0, "fy": 60.0, "cx": 47.5, "cy": 35.5}
    for fov, given, focal, source in (
        (None, None, read_photo(path)[1], "EXIF"), (100, None, focal_with(100, 72, 96), "given"),
        (None, intrinsics, 60 / 96, "--camera"),
    ):  # fmt: skip
        zoom = focal / (500 / 640)
        assert corner(fov, given) == pytest.approx((47.5 / 96 / focal, plain_m * zoom), rel=1e-4)
        assert re.fullmatch(
            rf"depth, normals: scaled by {zoom:.2f} for a field of view of \d+ degrees \({source}\)\n",
            capsys.readouterr().out,
        )


def test_the_weights_in_the_repository_know_the_camera_of_nyudv2():
    network = load_network(ROOT / SHIPPED)
    assert camera_of(network, "") == camera_of(network, "nyud") == {"focal_px": 518.9, "long_side": 640.0}
    image, focal = read_photo(ROOT / SAMPLE)
    view = Predictor(network, "eager").field_of_view
    assert view.zoom(focal, *image.shape[:2]) == pytest.approx(451.03 / 611 / (518.9 / 640), rel=0.03)
