"""The class lists that a dataset.yaml can name."""

from __future__ import annotations

# Everingham et al., IJCV 2010: PASCAL VOC, 2007 to 2012, in the order of its mask values from 1 on.
VOC = tuple(
    (
        "aeroplane bicycle bird boat bottle bus car cat chair cow diningtable dog horse motorbike person pottedplant "
        "sheep sofa train tvmonitor"
    ).split()
)

CLASS_LISTS = {
    # Gupta et al., CVPR 2013: the 40 classes of NYUDv2, in the order of classMapping40.mat.
    "nyu40": tuple(
        (
            "wall floor cabinet bed chair sofa table door window bookshelf picture counter blinds desk shelves "
            "curtain dresser pillow mirror floor_mat clothes ceiling books refrigerator television paper towel "
            "shower_curtain box whiteboard person night_stand toilet sink lamp bathtub bag other_structure "
            "other_furniture other_prop"
        ).split()
    ),
    "voc20": VOC,  # its boxes
    "voc21": ("background", *VOC),  # its masks, whose 255 is the border of the objects ("void")
    # Lin et al., ECCV 2014: the 80 classes of COCO that have boxes, in the order of their ids, which go to 90. The
    # names are those of its json files.
    "coco80": (
        "person", "bicycle", "car", "motorcycle", "airplane", "bus", "train", "truck", "boat", "traffic light",
        "fire hydrant", "stop sign", "parking meter", "bench", "bird", "cat", "dog", "horse", "sheep", "cow",
        "elephant", "bear", "zebra", "giraffe", "backpack", "umbrella", "handbag", "tie", "suitcase", "frisbee",
        "skis", "snowboard", "sports ball", "kite", "baseball bat", "baseball glove", "skateboard", "surfboard",
        "tennis racket", "bottle", "wine glass", "cup", "fork", "knife", "spoon", "bowl", "banana", "apple",
        "sandwich", "orange", "broccoli", "carrot", "hot dog", "pizza", "donut", "cake", "chair", "couch",
        "potted plant", "bed", "dining table", "toilet", "tv", "laptop", "mouse", "remote", "keyboard", "cell phone",
        "microwave", "oven", "toaster", "sink", "refrigerator", "book", "clock", "vase", "scissors", "teddy bear",
        "hair drier", "toothbrush",
    ),
    # Kirillov et al., CVPR 2019: the stuff of COCO panoptic, in the order of its ids, 92 to 200.
    "coco53": tuple(
        (
            "banner blanket bridge cardboard counter curtain door-stuff floor-wood flower fruit gravel house light "
            "mirror-stuff net pillow platform playingfield railroad river road roof sand sea shelf snow stairs tent "
            "towel wall-brick wall-stone wall-tile wall-wood water-other window-blind window-other tree-merged "
            "fence-merged ceiling-merged sky-other-merged cabinet-merged table-merged floor-other-merged "
            "pavement-merged mountain-merged grass-merged dirt-merged paper-merged food-other-merged "
            "building-other-merged rock-merged wall-other-merged rug-merged"
        ).split()
    ),
}  # fmt: skip

# Other names of classes: those of VOC and of darknet's coco.names -> those of COCO.
OTHER_NAMES = {
    "aeroplane": "airplane", "diningtable": "dining table", "motorbike": "motorcycle", "pottedplant": "potted plant",
    "sofa": "couch", "tvmonitor": "tv", "tv monitor": "tv",
}  # fmt: skip
