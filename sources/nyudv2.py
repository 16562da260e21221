"""NYUDv2, from the public archive or from the official files, as a data set folder: `python prepare.py nyudv2`."""

from __future__ import annotations

import shutil
import zipfile
from collections.abc import Mapping, Sequence
from itertools import chain, compress
from pathlib import Path, PurePosixPath

import numpy as np
from tqdm import tqdm

from folders import NYUD_LISTS, NYUD_YAML
from images import write_png
from networks.encoders import PaperMobileNetV2
from sources.archives import CHUNK, extract, finish, refuse_full_disk, refuse_unsafe, zip_errors
from sources.download import download
from sources.parallel import in_threads
from tasks import CLASS_LISTS, NO_CLASS
from user_input.flags import Parser, refuse
from user_input.layouts import MOST_LIST_BYTES
from user_input.text_files import read_text
from utils import refuse_existing, whole_folder

ARCHIVE_URL = "https://hydranets-data.s3.eu-west-3.amazonaws.com/hydranets-data-2.zip"
ARCHIVE_BYTES = 812_068_227
ENCODER_WEIGHTS = "mobilenetv2-e6e8dd43.pth"  # ImageNet weights that lie in the archive
UNITS_PER_METER = 5000  # of the depth files, as in the archive: 16 bits reach 13.107 m
MAT_NAMES = 894  # labels of the official file
COMMENT = f"NYUDv2, by python prepare.py nyudv2; depth in 1/{UNITS_PER_METER} m"
# With --hold_out: of the training frames in the order of their numbers, every eighth block of 16 is kept apart, so that
# neighboring frames of a room mostly stay together. 699 are left to train with.
HELD_OUT = {"train": "train.txt", "val": "val.txt", "trainval": "trainval.txt", "test": "test.txt"}
BLOCK, EVERY, FIRST = 16, 8, 3
# Numbers of things, of the official file alone: 256 * (place in THINGS + 1) + number, 0 = none, UNSAID = no label.
THINGS = tuple(name for name in CLASS_LISTS["nyu40"] if name not in ("wall", "floor", "ceiling"))
MOST_OF_A_CLASS, UNSAID = 255, 65535
THINGS_YAML: dict[str, object] = {
    "columns": [*NYUD_YAML["columns"], "instances"],
    "instances": {"divisor": 256, "ignore": UNSAID, "classes": list(THINGS)},
}


def command(argv: Sequence[str]) -> int:
    """`python prepare.py nyudv2`"""
    parser = Parser(prog="prepare.py nyudv2", description="makes the NYUDv2 folder: 795 training, 654 test frames")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--download", action="store_true", help="fetch the public archive (812 MB) and unpack it")
    source.add_argument("--archive", type=Path, metavar="ZIP", help="unpack hydranets-data-2.zip")
    source.add_argument("--mat", type=Path, metavar="MAT", help="convert nyu_depth_v2_labeled.mat")
    parser.add_argument("--splits", type=Path, metavar="MAT", help="with --mat: splits.mat")
    parser.add_argument("--class_map", type=Path, metavar="MAT", help="with --mat: classMapping40.mat, for masks")
    parser.add_argument("--hold_out", action="store_true", help="keeps 96 training frames apart: splits train, val, "
                        "trainval and test, as configs/nyudv2_lite0*.yaml want them")  # fmt: skip
    parser.add_argument("--output", type=Path, help="default: dataset/nyud, with --hold_out dataset/nyudv2")
    options = parser.parse_args(argv)
    if not options.mat:
        refuse(parser, options, ("splits", "class_map"), "goes with --mat only")
    if options.mat and not options.splits:
        raise ValueError("--mat needs --splits splits.mat, which says what is training and what test")
    output = options.output or Path("dataset/nyudv2" if options.hold_out else "dataset/nyud")
    if options.mat:
        convert_mat(options.mat, options.splits, options.class_map, output, options.hold_out)
        return 0
    archive = options.archive
    if options.download:
        refuse_existing(output)
        archive = output.parent / "hydranets-data-2.zip"
        download(ARCHIVE_URL, ARCHIVE_BYTES, archive, "python prepare.py nyudv2 --archive FILE")
    unpack(archive, output, options.hold_out)
    return 0


def with_lists(part: Path, hold_out: bool, source: Path) -> Mapping[str, object]:
    """The description of the data set in `part`; with hold_out, its lists are replaced by those of HELD_OUT.

    Raises ValueError at `source` for a missing list.
    """
    described = {**NYUD_YAML, **(THINGS_YAML if (part / "instances").is_dir() else {})}
    if not hold_out:
        return described
    for name in NYUD_LISTS.values():
        if not (part / name).is_file():
            raise ValueError(f"{source}: no {name} in it, which --hold_out needs")
    train, test = (read_text(part / NYUD_LISTS[split], MOST_LIST_BYTES).splitlines() for split in ("train", "val"))
    for name in NYUD_LISTS.values():
        (part / name).unlink()
    trainval = sorted(train)  # by the numbers of the frames, which begin their names
    apart = [number // BLOCK % EVERY == FIRST for number in range(len(trainval))]
    splits = {
        "train": [line for line, held in zip(trainval, apart, strict=True) if not held],
        "val": list(compress(trainval, apart)), "trainval": trainval, "test": test,
    }  # fmt: skip
    for split, lines in splits.items():
        (part / HELD_OUT[split]).write_text("".join(f"{line}\n" for line in lines))
    return {**described, "splits": HELD_OUT}


# ---------------------------------------------------------------------------------------------- public archive


def unpack(archive: Path, output: Path, hold_out: bool = False) -> None:
    """Unpacks the data set of the public archive to folder `output`, and the encoder's weights to model/.

    Raises FileNotFoundError, FileExistsError, or ValueError for another, a damaged or an unsafe archive.
    """
    if not archive.is_file():
        raise FileNotFoundError(f"{archive}: no such file; `python prepare.py nyudv2 --download` fetches it")
    sizes = f"it has {archive.stat().st_size:,} bytes, the public archive {ARCHIVE_BYTES:,}"
    advice = f"{sizes}: delete it and download it again"
    with zip_errors(archive, advice), zipfile.ZipFile(archive) as file, whole_folder(output) as part:
        members = archive_members(file, archive)
        refuse_full_disk(output.parent, sum(member.file_size for member in members.values()))
        for name, member in tqdm(members.items(), "unpack", leave=False, disable=None):
            extract(file, member, part / name)
        finish(part, output, archive, with_lists(part, hold_out, archive), COMMENT)
        place_weights(part / ENCODER_WEIGHTS, Path("model") / ENCODER_WEIGHTS)


def archive_members(file: zipfile.ZipFile, archive: Path) -> dict[str, zipfile.ZipInfo]:
    """{path in the data set: member}, with the encoder's weights.

    Raises ValueError for a member that would be written elsewhere, for a link, and without a data set.
    """
    refuse_unsafe(file, archive)
    files = {PurePosixPath(member.filename): member for member in file.infolist() if not member.is_dir()}
    lists = [path for path in files if path.name == NYUD_LISTS["train"] and path.parts[0] != "__MACOSX"]
    if not lists:
        raise ValueError(f"{archive}: no {NYUD_LISTS['train']} in it, so it is not the NYUDv2 archive ({ARCHIVE_URL})")
    root = min(lists, key=lambda path: len(path.parts)).parent
    members = {}
    for path, member in files.items():
        inside = path.relative_to(root) if path.is_relative_to(root) else None
        if inside and (str(inside) in NYUD_LISTS.values() or inside.parts[0] in ("rgb", "masks", "depth")):
            members[str(inside)] = member
        elif path.name == ENCODER_WEIGHTS and path.parts[0] != "__MACOSX":
            members[ENCODER_WEIGHTS] = member
    return members


def place_weights(found: Path, target: Path) -> None:
    """Moves the encoder's weights out of the data set and says so; keeps weights that are there already.

    A file that only has the name of the weights is deleted.
    """
    if not found.exists():
        print(f"{target.name}, for the encoder mobilenetv2_paper, is not in this archive, but in {ARCHIVE_URL}")
    elif target.exists():
        found.unlink()
        print(f"{target}: exists already and stays as it is")
    elif problem := wrong_weights(found):
        found.unlink()
        print(f"the archive's {found.name} was left out: {problem}")
    else:
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.move(found, target)
        print(f"{target}: ImageNet weights, for --encoder mobilenetv2_paper --encoder_weights {target}")


def wrong_weights(path: Path) -> str:
    """Why a file does not hold the weights of the paper's encoder, or ''."""
    try:
        PaperMobileNetV2().load_file(path)
    except ValueError as problem:
        return str(problem).replace(f"{path.parent}/", "")
    return ""


# ---------------------------------------------------------------------------------------------- official files


def convert_mat(mat: Path, splits: Path, class_map: Path | None, output: Path, hold_out: bool = False) -> None:
    """The official NYUDv2 files -> folder `output`, in the layout of the public archive.

    Raises FileNotFoundError, FileExistsError, or ValueError for a file that is not what its name says.
    """
    try:
        import h5py
        import scipy.io  # noqa: F401 - read_variables uses it
    except ImportError as problem:
        hint = "install them with: pip install -r requirements/prepare.txt"
        raise ValueError(f"--mat needs h5py and scipy ({problem}); {hint}") from None
    for path in (mat, splits, class_map):
        if path is not None and not path.is_file():
            raise FileNotFoundError(f"{path}: no such file")
    table = None if class_map is None else read_class_map(class_map)
    numbers = read_splits(splits)
    try:
        file = h5py.File(mat, "r", rdcc_nbytes=16 * CHUNK)  # for files whose chunks span several frames
    except OSError as problem:
        raise ValueError(f"{mat}: not an HDF5 file (MATLAB v7.3), or cut off ({problem})") from None
    with file, whole_folder(output) as part:
        frames = open_arrays(file, mat, table is not None)
        for split, chosen in numbers.items():
            if max(chosen) > len(frames["images"]):
                count = len(frames["images"])
                raise ValueError(f"{splits}: the {split} split has frame {max(chosen)}, but {mat} has {count} frames")

        def write(number: int) -> int:
            """Writes the files of a frame. Returns the number of depth values that do not fit into 16 bits."""
            try:
                arrays = {name: array[number - 1].T for name, array in frames.items()}
            except OSError as problem:
                raise ValueError(f"{mat}: frame {number} cannot be read ({problem})") from None
            name = f"{number:06d}.png"
            write_png(part / "rgb" / name, np.ascontiguousarray(arrays["images"]))
            depth, beyond = encode_depth(arrays["depths"])
            write_png(part / "depth" / name, depth)
            if table is not None:
                if (top := arrays["labels"].max()) >= len(table):
                    raise ValueError(f"{mat}: frame {number} has label {top}; allowed: 0..{MAT_NAMES}")
                write_png(part / "masks" / name, table[arrays["labels"]])
                if "instances" in arrays:
                    write_png(part / "instances" / name, things(arrays["labels"], arrays["instances"], table))
            return beyond

        too_far = sum(in_threads(write, sorted(chain(*numbers.values())), "convert"))
        for split, chosen in numbers.items():
            mask = "-" if table is None else "masks/{0:06d}.png"
            thing = "\tinstances/{0:06d}.png" if "instances" in frames else ""
            line = f"rgb/{{0:06d}}.png\t{mask}\tdepth/{{0:06d}}.png{thing}\n"
            (part / NYUD_LISTS[split]).write_text("".join(line.format(number) for number in chosen))
        finish(part, output, mat, with_lists(part, hold_out, mat), COMMENT)
    if too_far:
        print(f"{too_far:,} depth values do not fit into 16 bits (13.107 m) and became 'no reading'")
    if table is None:
        print("no masks were written: they need --class_map classMapping40.mat, which is in Gupta et al.'s repository")
        print("https://github.com/s-gupta/rcnn-depth")


def things(labels: np.ndarray, instances: np.ndarray, table: np.ndarray) -> np.ndarray:
    """Labels (H, W) of the official file and its numbers of things (H, W) -> (H, W) uint16, as THINGS says.

    In the official file a thing has a label and a number, and each label counts its own; several labels are one of the
    40 classes. Things beyond MOST_OF_A_CLASS of a class have no label here.
    """
    names = CLASS_LISTS["nyu40"]
    place = np.zeros(256, np.int64)
    place[: len(names)] = [THINGS.index(name) + 1 if name in THINGS else 0 for name in names]
    classes = table[labels]
    result = np.where(classes == NO_CLASS, UNSAID, 0).astype(np.uint16)
    of_things = place[classes] > 0
    pairs = place[classes[of_things]] * 2**32 + labels[of_things].astype(np.int64) * 2**16 + instances[of_things]
    found, which = np.unique(pairs, return_inverse=True)
    kinds = found // 2**32  # sorted, so that things of a class stand together
    numbers = np.arange(len(found)) - np.searchsorted(kinds, kinds) + 1
    result[of_things] = np.where(numbers > MOST_OF_A_CLASS, UNSAID, 256 * kinds + numbers)[which]
    return result


def read_variables(path: Path, *names: str) -> list[np.ndarray]:
    """Variables of a MATLAB 5 file that hold whole numbers, each (N,) int64. Raises ValueError."""
    from scipy.io import loadmat

    try:
        content: Mapping[str, object] = loadmat(path)
    # A damaged file makes scipy raise errors of many types.
    except Exception as problem:
        raise ValueError(f"{path}: not a MATLAB 5 file ({' '.join(str(problem).split())})") from None
    for name in names:
        if name not in content:
            has = ", ".join(key for key in content if not key.startswith("__")) or "nothing"
            raise ValueError(f"{path}: no variable {name!r}; it has: {has}")
    arrays = [np.asarray(content[name]).ravel() for name in names]
    for name, array in zip(names, arrays, strict=True):
        if array.dtype.kind not in "iuf" or not array.size or (array != array.astype(np.int64)).any():
            raise ValueError(f"{path}: {name} must hold whole numbers; it has {array.size} of type {array.dtype}")
    return [array.astype(np.int64) for array in arrays]


def read_splits(path: Path) -> dict[str, list[int]]:
    """splits.mat -> {"train": 1-based numbers of frames, "val": those of the test set}."""
    train, test = (array.tolist() for array in read_variables(path, "trainNdxs", "testNdxs"))
    if min(train + test) < 1:
        raise ValueError(f"{path}: frame {min(train + test)}; frames are counted from 1")
    if len({*train, *test}) < len(train + test):
        raise ValueError(f"{path}: a frame stands twice in trainNdxs and testNdxs")
    return {"train": train, "val": test}


def read_class_map(path: Path) -> np.ndarray:
    """classMapping40.mat -> (895,) uint8: from the label of the official file to 0..39, 255 = no label."""
    (classes,) = read_variables(path, "mapClass")
    if len(classes) != MAT_NAMES or classes.min() < 1 or classes.max() > 40:
        got = f"{len(classes)} values {classes.min()}..{classes.max()}"
        raise ValueError(f"{path}: mapClass has {got}; expected {MAT_NAMES} of 1..40")
    return np.concatenate([[255], classes - 1]).astype(np.uint8)


def open_arrays(file: Mapping[str, object], mat: Path, with_labels: bool) -> dict[str, object]:
    """{name: array on disk} with checked shapes. MATLAB's axes are in reverse order. Raises ValueError."""
    kinds = {"images": "uint8 (N, 3, W, H)", "depths": "float (N, W, H)"}
    if with_labels:
        kinds["labels"] = "uint (N, W, H)"
        kinds |= {"instances": "uint (N, W, H)"} if "instances" in file else {}
    arrays = {name: file.get(name) for name in kinds}
    for name, array in arrays.items():
        if not hasattr(array, "shape"):
            raise ValueError(f"{mat}: no array {name!r}; it has: {', '.join(file) or 'nothing'}")
        shape = arrays["images"].shape
        wanted = (*shape[:1], 3, *shape[2:]) if name == "images" else (*shape[:1], *shape[2:])
        if len(shape) != 4 or array.shape != wanted or not array.dtype.name.startswith(kinds[name].split()[0]):
            raise ValueError(f"{mat}: {name} is {array.dtype} {array.shape}, images {shape}; expected {kinds[name]}")
    return arrays


def encode_depth(depth: np.ndarray) -> tuple[np.ndarray, int]:
    """depth (H, W) [m] -> (H, W) uint16 in 1/5000 m, 0 = no reading, and the number of values beyond 16 bits."""
    units = np.round(np.nan_to_num(depth.astype(np.float64), nan=0, posinf=np.inf, neginf=0) * UNITS_PER_METER)
    beyond = units > np.iinfo(np.uint16).max
    return np.where(beyond | (units < 0), 0, units).astype(np.uint16), int(beyond.sum())
