from __future__ import annotations

import time
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from conftest import only_error_line

from deploy import video
from deploy.predictor import Predictor
from deploy.video import Camera, File, Frame, Newest, Smoother, video_writer, view_of
from tasks import Depth

av = pytest.importorskip("av")

SIZE = (61, 83)  # odd: H.264 has even sides


def scene(number: int) -> np.ndarray:
    """(61, 83, 3) uint8: a bright square that moves 2 pixels a frame over a slope."""
    rows, columns = np.mgrid[: SIZE[0], : SIZE[1]]
    image = np.stack([2 * rows, 2 * columns, 255 - 2 * rows], axis=2).astype(np.uint8)
    image[20:40, 2 * number : 2 * number + 15] = 255
    return image


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """20 frames at 10 a second; the second half has twice the time between its frames, as phones do it."""
    path = tmp_path_factory.mktemp("video") / "clip.mp4"
    with video_writer(path, Fraction(10)) as write:
        for number in range(20):
            write(number / 10 if number < 10 else 1 + 2 * (number - 10) / 10, scene(number))
    return path


def frames_of(path: Path) -> list[Frame]:
    source = File(str(path))
    try:
        return list(source)
    finally:
        source.close()


def test_what_is_written_is_read(clip):
    frames = frames_of(clip)
    assert len(frames) == 20 == File(str(clip)).count
    for number, frame in enumerate(frames):
        assert frame.image.shape == (60, 82, 3)
        assert frame.seconds == pytest.approx(number / 10 if number < 10 else number / 5 - 1, abs=1e-3)
        assert np.abs(frame.image.astype(int) - scene(number)[:60, :82]).mean() < 12  # colors at half the resolution


@pytest.mark.parametrize("view", ["side", "overlay"])
def test_the_command(clip, trained, script, tmp_path, view):
    pytest.importorskip("openvino")
    done = script("inference.py", "--checkpoint", trained / "best.pt", "--input", clip, "--output", tmp_path / "out",
                  "--view", view, "--smooth", 0.5)  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "clip_overview.mp4: 20 frames, " in done.stdout
    frames = frames_of(tmp_path / "out" / "clip_overview.mp4")
    assert [frame.seconds for frame in frames] == pytest.approx([frame.seconds for frame in frames_of(clip)], abs=1e-3)
    panels = 4 if view == "side" else 3
    height, width = frames[0].image.shape[:2]
    assert width == panels * 82 and height > 60
    if view == "side":
        assert np.abs(frames[3].image[:60, :82].astype(int) - frames_of(clip)[3].image).mean() < 12


def test_broken_packets_are_left_out(clip, trained, script, tmp_path):
    content = bytearray(clip.read_bytes())
    with av.open(str(clip)) as container:
        packets = [(packet.pos, packet.size) for packet in container.demux(video=0) if packet.size]
    for position, size in packets[8:12]:
        content[position : position + size] = bytes([0xFF]) * size
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(content)
    assert 8 <= len(frames_of(broken)) < 20
    done = script("inference.py", "--checkpoint", trained / "best.pt", "--input", broken, "--output", tmp_path / "out",
                  "--backend", "eager")  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "4 broken packets left out" in done.stdout
    assert len(frames_of(tmp_path / "out" / "broken_overview.mp4")) == len(frames_of(broken))


@pytest.mark.parametrize(("content", "message"), [
    (None, "no such file"), (b"", "not a video"), (b"no video at all" * 100, "not a video"),
], ids=["absent", "empty", "text"])  # fmt: skip
def test_no_videos(trained, script, tmp_path, content, message):
    path = tmp_path / "x.mp4"
    if content is not None:
        path.write_bytes(content)
    done = script("inference.py", "--checkpoint", trained / "best.pt", "--input", path, "--output", tmp_path / "out")
    assert message in only_error_line(done) and "x.mp4" in only_error_line(done)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("arguments", "message"), [
    (("--input", "camera:99"), "no such camera"),
    (("--input", "rtsp://127.0.0.1:9/x"), "rtsp://127.0.0.1:9/x"),
], ids=str)  # fmt: skip
def test_mistakes_get_one_line(trained, script, clip, tmp_path, arguments, message):
    done = script(
        "inference.py", "--checkpoint", trained / "best.pt", "--input", clip, "--output", tmp_path, *arguments
    )
    assert message in only_error_line(done)


def test_a_turned_phone_gives_upright_frames(clip, tmp_path):
    turned = tmp_path / "turned.mp4"
    with av.open(str(clip)) as source, av.open(str(turned), "w") as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.dts is not None:
                packet.stream = stream
                target.mux(packet)
    content = bytearray(turned.read_bytes())
    identity = np.array([1 << 16, 0, 0, 0, 1 << 16, 0, 0, 0, 1 << 30], ">i4").tobytes()
    quarter = np.array([0, 1 << 16, 0, -(1 << 16), 0, 0, 0, 0, 1 << 30], ">i4").tobytes()  # show it turned clockwise
    place = content.index(identity, content.index(b"tkhd"))
    content[place : place + 36] = quarter
    turned.write_bytes(content)
    for straight, upright in zip(frames_of(clip), frames_of(turned), strict=True):
        assert np.array_equal(np.rot90(straight.image, -1), upright.image)


class Live:
    """30 frames, one each 5 ms."""

    def __iter__(self) -> Iterator[Frame]:
        for number in range(30):
            yield Frame(number / 200, np.full((2, 2, 3), number, np.uint8))
            time.sleep(0.005)


def test_a_slow_network_sees_the_newest_frame():
    newest = Newest(Live())
    seen = []
    for frame in newest:
        seen.append(int(frame.image[0, 0, 0]))
        time.sleep(0.03)
    assert seen == sorted(set(seen)), "each once, in order"
    assert seen[-1] == 29, "the last one too"
    assert len(seen) + newest.dropped == 30 and newest.dropped > 10


def test_an_error_of_the_camera_is_not_lost():
    class Breaks:
        def __iter__(self) -> Iterator[Frame]:
            yield Frame(0.0, np.zeros((2, 2, 3), np.uint8))
            raise OSError("unplugged")

    with pytest.raises(OSError, match="unplugged"):
        list(Newest(Breaks()))


def test_smoothing_holds_what_stands_still_and_lets_go_of_what_moves():
    rng = np.random.default_rng(0)
    smoother = Smoother(0.8, {"depth": Depth()})
    picture = torch.from_numpy(rng.integers(60, 90, (1, 3, 16, 16), np.uint8))
    values = []
    for _ in range(60):
        noisy = {"depth": 3 + torch.from_numpy(rng.normal(0, 0.1, (1, 1, 4, 4)).astype(np.float32))}
        values.append(smoother(picture, noisy)["depth"])
    spread = torch.stack(values[20:]).std()
    # An average with weights (1 - s) s^k has the variance (1 - s) / (1 + s) of one value.
    assert spread == pytest.approx(0.1 * (0.2 / 1.8) ** 0.5, rel=0.15)
    assert torch.stack(values[20:]).mean() == pytest.approx(3, abs=0.01)
    moved = picture.clone()
    moved[..., :8] = 255 - moved[..., :8]
    after = smoother(moved, {"depth": torch.full((1, 1, 4, 4), 9.0)})["depth"]
    assert torch.equal(after[..., :2], torch.full((1, 1, 4, 2), 9.0)), "other colors: what is there now"
    assert (after[..., 2:] < 5).all()


def test_without_strength_it_changes_nothing(trained):
    predictor = Predictor(trained / "best.pt", "eager")
    image = cv2.resize(scene(3), (96, 72))
    smoother = Smoother(0.0, predictor.tasks)
    for _ in range(2):
        plain, smooth = predictor(image), predictor.batch([image], smoother)[0]
        assert plain.keys() == smooth.keys()
        for name in plain:
            assert np.allclose(plain[name], smooth[name], atol=1e-5), name


def test_frames_that_fill_the_memory(clip, monkeypatch):
    monkeypatch.setattr(video, "MAX_FRAME_PIXELS", 60 * 82 - 1)
    with pytest.raises(ValueError, match=r"clip\.mp4: frames of 82x60; at most"):
        File(str(clip))


@pytest.mark.parametrize("number", ["x", "100", "99999999999999999999", "-1", ""])
def test_cameras_have_small_numbers(number):
    with pytest.raises(ValueError, match=r"expected a number of 0\.\.99"):
        Camera(number)


def test_a_damaged_time_does_not_stop_the_clock(tmp_path):
    path = tmp_path / "jump.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mjpeg", 10)
        stream.width, stream.height, stream.pix_fmt = 82, 60, "yuvj420p"
        for number in range(6):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(scene(number)[:60, :82]), "rgb24")
            frame.pts, frame.time_base = number + (10**8 if number >= 3 else 0), Fraction(1, 10)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    seconds = [frame.seconds for frame in frames_of(path)]
    assert len(seconds) == 6 and seconds == pytest.approx([0, 0.1, 0.2, 0.3, 0.4, 0.5], abs=0.02)


@pytest.mark.parametrize("size", [(2, 30_000), (240, 5760), (30_000, 2), (1, 1)])
def test_views_that_a_video_can_hold(tmp_path, size):
    tasks, values = {}, {}
    for name in ("one", "two", "three"):
        tasks[name], values[name] = Depth(), np.ones(size, np.float32)
    sheet = view_of(Frame(0.0, np.zeros((*size, 3), np.uint8)), tasks, values, "side")
    assert max(sheet.shape) <= 16_384
    path = tmp_path / "x.mp4"
    with video_writer(path, Fraction(10)) as write:
        write(0.0, sheet)
    assert len(frames_of(path)) == 1
