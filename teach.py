"""Distillation labels: a teacher network's predictions become label files that a training can use.

    python teach.py --teacher runs/big/best.pt --data dataset/nyud_depth --task segmentation
    python teach.py --teacher ExpNYUD_joint.ckpt --data dataset/redkitchen --task segmentation --threshold 0.8
    python teach.py --teacher model.onnx --data FOLDER --task depth     # described by model.yaml, see model/README.md
    python train.py --data dataset/nyud=1,dataset/nyud_depth=1 --teacher_labels taught --teacher_weight 0.5

Only frames without a label of that task get one, and only those that are in no other split of the data set. Pixels of
which the teacher is not sure get no label, boxes of which it is not sure are ignored. The files go to
FOLDER/taught/TASK/, with teacher.yaml that says who made them and how; the data set itself stays as it is. Stop it and
run it again: frames that are done are left out.

Hard distillation for asymmetric annotations: Nekrasov et al., arXiv 1809.04766, section III-B.
"""

from __future__ import annotations

import startup  # noqa: F401 - first

import argparse
import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
import yaml
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from dataset import group_by_shape
from folders import TEACHER_FILE, Folder, Frame, read_folder, read_list, teacher_file
from geometry import fitted_size, resize_image
from images import read_image
from model import Network, load_network, tasks_of
from networks.checkpoints import file_sha256
from tasks import TASKS, Task
from tasks.base import check_keys
from user_input.flags import Parser, fraction
from user_input.flags import number as in_range
from user_input.text_files import parse_yaml, read_yaml
from user_input.values import convert, near
from utils import autocast, pick_device, pick_precision, run, setup_cpu, whole_file

LARGEST_SIDE = 8192  # pixels of an ONNX teacher's input


# ---------------------------------------------------------------------------------------------- teachers


class NetworkTeacher:
    """A checkpoint of ours, or one of the paper's authors."""

    def __init__(self, path: Path, task: str, domain: str, device: torch.device, precision: torch.dtype) -> None:
        self.network: Network = load_network(path).to(device, memory_format=torch.channels_last)
        tasks = tasks_of(self.network, domain, path)
        if task not in tasks:
            raise ValueError(f"--task: {path} does not predict {task!r}{near(task, tasks)}; it has: {', '.join(tasks)}")
        self.task, self.device, self.precision = tasks[task], device, precision

    def size(self, height: int, width: int) -> tuple[int, int]:
        """To which size a frame is brought."""
        return fitted_size(height, width, self.network.config.long_side, self.network.config.short_side)

    def raw(self, images: Tensor) -> Tensor:
        """images (B, 3, H, W) uint8 -> raw output of the task (B, channels, h, w)."""
        with autocast(self.device, self.precision):
            return self.task.select(self.network(images.to(self.device))[self.task.name])


class OnnxTeacher:
    """An ONNX file, with a YAML file of the same name beside it that describes its input and output."""

    KEYS = frozenset({"task", "section", "input", "output", "size", "mean", "std", "values", "scale"})

    def __init__(self, path: Path, task: str) -> None:
        try:
            import onnxruntime
        except ImportError as problem:
            hint = "install it with: pip install -r requirements/deploy.txt"
            raise ValueError(f"--teacher: {path} needs onnxruntime ({problem}); {hint}") from None
        if not path.is_file():
            raise FileNotFoundError(f"{path}: no such file")
        where = path.with_suffix(".yaml")
        values = read_yaml(where)
        check_keys(values, set(self.KEYS), str(where))
        if values.get("task") != task:
            raise ValueError(f"{where}: its task is {values.get('task')!r}, --task is {task!r}")
        self.task = TASKS[task].from_teacher(values.get("section") or {}, f"{where}: section")
        self.mean, self.std = (
            torch.tensor(convert(values.get(key, default), tuple[float, float, float], f"{where}: {key}")).view(3, 1, 1)
            for key, default in (("mean", "0,0,0"), ("std", "1,1,1"))
        )
        self.values = values.get("values", "raw")
        self.scale = convert(values.get("scale", 1.0), float, f"{where}: scale")
        if self.values not in ("raw", "probabilities"):
            raise ValueError(f"{where}: values is {self.values!r}; allowed: raw, probabilities")
        self.fixed = convert(values["size"], tuple[int, int], f"{where}: size") if "size" in values else None
        if self.fixed and not all(1 <= side <= LARGEST_SIDE for side in self.fixed):
            raise ValueError(f"{where}: size is {self.fixed}; height and width take 1 to {LARGEST_SIDE}")
        try:
            # onnxruntime has error classes of its own for each way in which a file is not a model.
            self.session = onnxruntime.InferenceSession(str(path), providers=onnxruntime.get_available_providers())
        except Exception as problem:
            raise ValueError(f"{path}: not a model that onnxruntime reads ({' '.join(str(problem).split())})") from None
        for kind, offered in (("input", self.session.get_inputs()), ("output", self.session.get_outputs())):
            names = [item.name for item in offered]
            name = values.get(kind, names[0])
            if name not in names:
                raise ValueError(f"{where}: {kind} is {name!r}{near(name, names)}; the model has: {', '.join(names)}")
            setattr(self, kind, name)

    def size(self, height: int, width: int) -> tuple[int, int]:
        return self.fixed or (height, width)

    def raw(self, images: Tensor) -> Tensor:
        pixels = ((images.float() / 255 - self.mean) / self.std).numpy()
        result = torch.from_numpy(self.session.run([self.output], {self.input: pixels})[0]).float() * self.scale
        return self.task.from_graph(result, self.values == "probabilities")


@torch.inference_mode()
def teach(
    teacher: NetworkTeacher | OnnxTeacher, images: Tensor, size: tuple[int, int]
) -> list[tuple[np.ndarray, np.ndarray]]:
    """images (B, 3, H, W) uint8 of frames of this size -> (prediction, confidence) of each frame.

    The teacher sees the images and their mirror images; how well the two agree can tell how sure it is.
    """
    return teacher.task.teach(teacher.raw(images), teacher.raw(images.flip(-1)), size)


# ---------------------------------------------------------------------------------------------- frames


class Unlabeled(Dataset):
    """Frames as the teacher wants to see them: {"image": (3, h, w) uint8, "index", "size": (2,) of the file}."""

    def __init__(self, frames: Sequence[Frame], teacher: NetworkTeacher | OnnxTeacher) -> None:
        self.frames, self.fit = frames, teacher.size

    def __len__(self) -> int:
        return len(self.frames)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        image = read_image(self.frames[index].image)
        small = resize_image(image, *self.fit(*image.shape[:2]))
        return {
            "image": torch.from_numpy(np.ascontiguousarray(small.transpose(2, 0, 1))),
            "index": torch.tensor(index),
            "size": torch.tensor(image.shape[:2]),
        }


def frames_to_teach(folder: Folder, split: str, task: str) -> list[Frame]:
    """The frames of a split that have no label of the task.

    Raises ValueError for a frame that is in another split as well: a training may be judged by it.
    """
    frames = read_list(folder, split)
    known = {frame.image.resolve(): frame for frame in frames}
    for other in folder.splits:
        for frame in read_list(folder, other, check_files=False) if other != split else ():
            if frame.image.resolve() in known:
                raise ValueError(f"{frame.where}: {frame.image} is a frame of {other!r} and of {split!r} as well")
    source = folder.derived.get(task)
    return [frame for frame in frames if task not in frame.labels and source not in frame.labels]


def label_files(folder: Folder, frames: Sequence[Frame], name: str, task: str) -> list[Path]:
    """Where the labels of the frames go. Raises ValueError where links would lead out of the data set's folder."""
    files = [teacher_file(folder, frame.image, name, task) for frame in frames]
    root = folder.root.resolve()
    for parent in {folder.root / name / task, *(file.parent for file in files)}:
        if not parent.resolve().is_relative_to(root):
            raise ValueError(f"--name: {parent} leads out of {folder.root}, to {parent.resolve()}; remove the link")
    return files


def check_same_teacher(path: Path, record: Mapping[str, object]) -> None:
    """Writes who the teacher is; raises ValueError where the labels that are there come from another one."""
    text = yaml.safe_dump(dict(record), sort_keys=False, default_flow_style=None, width=120)
    if path.is_file():
        before, now = read_yaml(path), parse_yaml(text, path)
        changed = [key for key in now if before.get(key) != now[key]]
        if changed:
            raise ValueError(
                f"{path}: the labels there are of another teacher or other settings ({', '.join(changed)}); remove the "
                "folder, or choose another --name"
            )
        return
    with whole_file(path) as temporary:
        temporary.write_text(text)


# ---------------------------------------------------------------------------------------------- the command


def folder_name(text: str) -> str:
    """An argparse type: the name of one folder, which is not hidden and leads nowhere else."""
    if not text or text.startswith(".") or Path(text).name != text:
        raise argparse.ArgumentTypeError(f"got {text!r}; it takes the name of one folder in the data set")
    return text


def parse_arguments() -> argparse.Namespace:
    parser = Parser(description="Labels training frames with a teacher's predictions.")
    parser.add_argument(
        "--teacher", required=True, type=Path, metavar="FILE", help="of train.py, a published .ckpt, or .onnx"
    )
    parser.add_argument("--data", required=True, metavar="FOLDER")
    parser.add_argument("--task", required=True, help=f"one of: {', '.join(TASKS)}")
    parser.add_argument("--split", default="train", help="of the data set; default: train")
    parser.add_argument("--name", default="taught", type=folder_name, help="folder in the data set; default: taught")
    parser.add_argument(
        "--threshold", type=fraction, metavar="0..1", help="what is surer gets a label; default: the task's"
    )
    parser.add_argument("--domain", default="", help="of a teacher that learned several data sets: as for this one")
    parser.add_argument("--map", metavar="YAML", help="teacher's class: class of the data set, or - for no label")
    parser.add_argument("--batch_size", type=in_range(int, least=1, most=1024), default=4)
    parser.add_argument("--workers", type=in_range(int, least=0, most=256), default=2)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--precision", default="auto", choices=("auto", "fp32", "bf16", "fp16"))
    arguments = parser.parse_args()
    if arguments.task not in TASKS:
        hint = near(arguments.task, TASKS)
        raise ValueError(f"--task: unknown task {arguments.task!r}{hint}; allowed: {', '.join(TASKS)}")
    if arguments.split in ("val", "test"):
        raise ValueError(
            f"--split: frames of {arguments.split!r} are what a training is judged by; a teacher labels others"
        )
    if arguments.threshold is None:
        arguments.threshold = TASKS[arguments.task].sure
    return arguments


def open_teacher(arguments: argparse.Namespace) -> NetworkTeacher | OnnxTeacher:
    path, task = arguments.teacher, arguments.task
    if path.suffix == ".onnx":
        return OnnxTeacher(path, task)
    device = pick_device(arguments.device)
    return NetworkTeacher(path, task, arguments.domain, device, pick_precision(arguments.precision, device))


def main() -> None:
    arguments = parse_arguments()
    setup_cpu()
    path, task = arguments.teacher, arguments.task
    folder = read_folder(arguments.data)
    frames = frames_to_teach(folder, arguments.split, task)
    files = label_files(folder, frames, arguments.name, task)
    teacher = open_teacher(arguments)
    names = convert(read_yaml(Path(arguments.map)), dict[str, str], arguments.map) if arguments.map else {}
    target, translate = teacher.task.translation(folder.sections.get(task), names, f"{path}, {folder.root}")
    record = {
        "teacher": path.name, "sha256": file_sha256(path), "domain": arguments.domain, "task": task,
        "threshold": arguments.threshold, "map": names, "section": target.section(),
    }  # fmt: skip
    missing = [number for number, file in enumerate(files) if not file.is_file()]
    print(f"{len(frames)} frames of {folder.root} ({arguments.split}) have no {task} label", end="; ")
    print(f"{len(frames) - len(missing)} of them were taught before" if frames else "nothing to do")
    if not frames:
        return
    check_same_teacher(folder.root / arguments.name / task / TEACHER_FILE, record)
    share = write_labels(teacher, [(frames[number], files[number]) for number in missing], target, translate, arguments)
    if missing:
        sure = f"the teacher was sure (above {arguments.threshold:g}) of {share:.1%} of the {target.counted}"
        print(f"{len(missing)} labels written; {sure}")
    print(f"train with: python train.py --data {folder.root} --teacher_labels {arguments.name}")


def write_labels(
    teacher: NetworkTeacher | OnnxTeacher,
    pairs: Sequence[tuple[Frame, Path]],
    target: Task,
    translate: Callable[[np.ndarray], np.ndarray],
    arguments: argparse.Namespace,
) -> float:
    """Writes a label of the task `target` for each (frame, file). Returns the share of what the teacher is sure of, of
    pixels, or what else the task counts."""
    data = Unlabeled([frame for frame, _ in pairs], teacher)
    together = functools.partial(group_by_shape, tasks={})
    loader = DataLoader(data, arguments.batch_size, num_workers=arguments.workers, collate_fn=together)
    sure_count, count = 0, 0
    with tqdm(total=len(pairs), desc="teach", unit="frame", disable=None) as bar:
        for groups in loader:
            for group in groups:
                size = tuple(group["size"][0].tolist())
                answers = teach(teacher, group["image"], size)
                for index, (prediction, confidence) in zip(group["index"].tolist(), answers, strict=True):
                    label, sure, parts = target.keep_sure(translate(prediction), confidence, arguments.threshold)
                    target.save_frame(label, pairs[index][1], pairs[index][0].image.name, size)
                    sure_count, count = sure_count + sure, count + parts
                bar.update(len(answers))
    return sure_count / max(1, count)


if __name__ == "__main__":
    run(main)
