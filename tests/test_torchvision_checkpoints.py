"""torchvision's detectors: state dicts of its own models with random weights give what those models give."""

from __future__ import annotations

import json
from collections.abc import Callable

import numpy as np
import pytest
import torch
from conftest import only_error_line
from torch import nn
from torchvision.models import detection
from torchvision.models.detection._utils import overwrite_eps
from torchvision.models.detection.backbone_utils import mobilenet_backbone, resnet_fpn_backbone
from torchvision.ops.misc import FrozenBatchNorm2d

from geometry import fitted_size
from images import read_photo, write_png
from model import load_network
from tasks import CLASS_LISTS
from tasks.mask_pasting import paste

SIZE = (75, 100)  # no multiples of 32


def resnet(layer: type[nn.Module] = FrozenBatchNorm2d, outputs: int = 91, name: str = "resnet50") -> nn.Module:
    backbone = resnet_fpn_backbone(backbone_name=name, weights=None, norm_layer=layer)
    return detection.FasterRCNN(backbone, outputs, min_size=SIZE[0], max_size=SIZE[1])


def published() -> nn.Module:
    """As `fasterrcnn_resnet50_fpn(weights="DEFAULT")`: frozen batch norm without an epsilon."""
    made = resnet()
    overwrite_eps(made, 0.0)
    return made


def mobile(small: bool = False) -> nn.Module:
    """As `fasterrcnn_mobilenet_v3_large_fpn(weights="DEFAULT")` and its sister for 320 pixels."""
    backbone = mobilenet_backbone(
        backbone_name="mobilenet_v3_large", weights=None, fpn=True, norm_layer=FrozenBatchNorm2d
    )
    sides = ((32, 64, 128, 256, 512),) * 3
    anchors = detection.anchor_utils.AnchorGenerator(sides, ((0.5, 1.0, 2.0),) * 3)
    few = {"rpn_pre_nms_top_n_test": 150, "rpn_post_nms_top_n_test": 150} if small else {}
    return detection.FasterRCNN(
        backbone, 91, min_size=SIZE[0], max_size=SIZE[1], rpn_anchor_generator=anchors, rpn_score_thresh=0.05, **few
    )


def masks() -> nn.Module:
    """As `maskrcnn_resnet50_fpn(weights="DEFAULT")`."""
    backbone = resnet_fpn_backbone(backbone_name="resnet50", weights=None, norm_layer=FrozenBatchNorm2d)
    made = detection.MaskRCNN(backbone, 91, min_size=SIZE[0], max_size=SIZE[1])
    overwrite_eps(made, 0.0)
    return made


def second_masks() -> nn.Module:
    return detection.maskrcnn_resnet50_fpn_v2(weights=None, weights_backbone=None, min_size=SIZE[0], max_size=SIZE[1])


def second_version() -> nn.Module:
    return detection.fasterrcnn_resnet50_fpn_v2(weights=None, weights_backbone=None, min_size=SIZE[0], max_size=SIZE[1])


def lively(made: nn.Module, images: list[torch.Tensor]) -> nn.Module:
    """With statistics of batch norm near what it sees, some variances far below 1e-5, and scores that differ."""
    generator = torch.Generator().manual_seed(3)

    def random(like: torch.Tensor, low: float, high: float) -> torch.Tensor:
        return torch.rand(like.shape, generator=generator) * (high - low) + low

    def adapt(module: nn.Module, given: tuple[torch.Tensor]) -> None:
        x = given[0]
        over = tuple(range(x.dim()))[:1] + tuple(range(2, x.dim()))
        module.running_mean.copy_(x.mean(over))
        module.running_var.copy_(x.var(over).clamp(min=1e-3))
        module.weight.copy_(random(module.weight, 0.5, 1.0))
        if getattr(module, "eps", 1) == 0:
            # A channel whose variance is tiny, and so is its scale, as in weights that were decayed.
            module.running_var[0], module.weight[0] = 1e-9, 1e-9
        module.bias.copy_(random(module.bias, -0.2, 0.2))

    norms = [module for module in made.modules() if hasattr(module, "running_var")]
    hooks = [module.register_forward_pre_hook(adapt) for module in norms]
    seen = []
    predictor = made.roi_heads.box_predictor
    with torch.no_grad():
        made.rpn.head.cls_logits.weight.mul_(20)
        predictor.cls_score.weight.normal_(generator=generator)
        hooks.append(predictor.register_forward_hook(lambda _, given, found: seen.append(found[0])))
        made.eval()(images)
        for hook in hooks:
            hook.remove()
        scale = 3 / seen[0].std(0).mean()
        predictor.cls_score.weight *= scale
        predictor.cls_score.bias.copy_(-seen[0].mean(0) * scale)
    return made


def photo() -> torch.Tensor:
    image = read_photo("media/photo.jpg")[0]
    return torch.from_numpy(image[200 : 200 + SIZE[0], 300 : 300 + SIZE[1]].copy()).permute(2, 0, 1)


def whole(row: np.ndarray) -> np.ndarray:
    """A detection's mask in its frame."""
    left, top, own = paste(row)
    found = np.zeros(SIZE, bool)
    found[top : top + own.shape[0], left : left + own.shape[1]] = own
    return found


KINDS: dict[str, tuple[Callable[[], nn.Module], str, tuple[int, int]]] = {
    "fasterrcnn_resnet50_fpn_coco-258fb6c6.pth": (published, "resnet50", (1333, 800)),
    "fasterrcnn_resnet50_fpn_v2_coco-dd69338a.pth": (second_version, "resnet50", (1333, 800)),
    "maskrcnn_resnet50_fpn_coco-bf2d0c1e.pth": (masks, "resnet50", (1333, 800)),
    "maskrcnn_resnet50_fpn_v2_coco-73cbd019.pth": (second_masks, "resnet50", (1333, 800)),
    "fasterrcnn_mobilenet_v3_large_fpn-fb6a3cc7.pth": (mobile, "torchvision_mobilenetv3", (1333, 800)),
    "fasterrcnn_mobilenet_v3_large_320_fpn-907ea3f9.pth": (
        lambda: mobile(small=True), "torchvision_mobilenetv3", (640, 320),
    ),
}  # fmt: skip


@pytest.mark.parametrize("file", KINDS)
@torch.inference_mode()
def test_it_gives_what_torchvisions_model_gives(file, tmp_path):
    make, encoder, sides = KINDS[file]
    image = photo()
    made = lively(make(), [image.float() / 255])
    torch.save(made.state_dict(), tmp_path / file)
    network = load_network(tmp_path / file)
    (task,), config = network.tasks.values(), network.config
    assert task.name == ("masks" if file.startswith("mask") else "boxes")
    assert (config.encoder, (config.long_side, config.short_side)) == (encoder, sides)
    assert task.classes == CLASS_LISTS["coco80"] and task.spare == 10
    found = network.predict(image[None], {task.name: SIZE})[task.name][0]
    wanted = made([image.float() / 255])[0]
    categories = detection.FasterRCNN_ResNet50_FPN_Weights.COCO_V1.meta["categories"]
    names = [categories[label] for label in wanted["labels"].tolist()]
    used = torch.tensor([name != "N/A" for name in names])
    count = int(used.sum())
    assert count > 10 and len(set(names)) > 3
    wanted = {name: value[used] for name, value in wanted.items()}
    classes = torch.tensor([task.classes.index(name) for name in names if name != "N/A"])
    assert not found[count:, 4].any()
    # A random network multiplies rounding errors, so that detections of nearly equal scores change places.
    off = (found[:count, None, :4] - wanted["boxes"]).abs().amax(2) + 100 * (found[:count, None, 5] != classes)
    nearest = off.argmin(1)
    assert off.amin(1).max() < 0.05 and len(nearest.unique()) == count
    assert torch.allclose(found[:count, 4], wanted["scores"][nearest], atol=1e-3)
    if task.name == "masks":
        masks = wanted["masks"][nearest, 0].numpy() > 0.5
        changed = [(whole(row) != mask).sum() for row, mask in zip(found[:count].numpy(), masks, strict=True)]
        assert max(changed) < 0.05 * image[0].numel() and np.mean(changed) < 3


def test_names_of_older_files_and_of_the_references_script(tmp_path):
    backbone = resnet_fpn_backbone(backbone_name="resnet18", weights=None, norm_layer=FrozenBatchNorm2d)
    made = detection.MaskRCNN(backbone, 4)
    state, older = made.state_dict(), {}
    for name, value in state.items():
        new = name.replace("rpn.head.conv.0.0.", "rpn.head.conv.")
        for number in range(4):
            new = new.replace(f"mask_head.{number}.0.", f"mask_head.mask_fcn{number + 1}.")
        for block in ("inner_blocks", "layer_blocks"):
            for level in range(4):
                new = new.replace(f"fpn.{block}.{level}.0.", f"fpn.{block}.{level}.")
        older[new] = value
    assert len(older.keys() - state.keys()) == 26
    torch.save(state, tmp_path / "new.pth")
    torch.save({"model": older, "epoch": 3, "optimizer": {"state": {}}}, tmp_path / "old.pth")
    (tmp_path / "old.names").write_text("cat\ndog\nhorse\n")
    new, old = load_network(tmp_path / "new.pth"), load_network(tmp_path / "old.pth")
    assert all(torch.equal(value, old.state_dict()[name]) for name, value in new.state_dict().items())
    assert old.tasks["masks"].classes == ("cat", "dog", "horse") and old.tasks["masks"].spare == 0
    assert old.config.encoder == "resnet18" and old.config.freeze_bn


@pytest.mark.parametrize("outputs", [21, 81])
def test_as_many_classes_as_voc_or_coco_are_not_theirs(tmp_path, outputs):
    """Nor are those of a .names file that is called otherwise."""
    backbone = resnet_fpn_backbone(backbone_name="resnet18", weights=None, norm_layer=FrozenBatchNorm2d)
    path, names = tmp_path / "mine.pth", [f"thing {number}" for number in range(outputs - 1)]
    torch.save(detection.FasterRCNN(backbone, outputs).state_dict(), path)
    (tmp_path / "others.names").write_text("\n".join(names))
    assert load_network(path).tasks["boxes"].classes == tuple(f"class_{number}" for number in range(outputs - 1))
    (tmp_path / "mine.names").write_text("\n".join(names))
    assert load_network(path).tasks["boxes"].classes == tuple(names)
    (tmp_path / "mine.names").write_text("a\nb\n")
    with pytest.raises(ValueError, match=rf"mine.names: it has 2 names, but mine.pth has {outputs - 1} classes"):
        load_network(path)


def test_the_size_of_a_picture_is_that_of_the_training():
    assert fitted_size(480, 640, 1333, 800) == (800, 1067)
    assert fitted_size(400, 1000, 1333, 800) == (533, 1333) and fitted_size(640, 480, 1333) == (1333, 1000)
    assert fitted_size(9, 7, 0, 3) == (9, 7)


def test_a_file_is_used_by_its_name_alone(script, tmp_path):
    image = photo()
    made = lively(resnet(name="resnet18", outputs=3), [image.float() / 255])
    path, picture = tmp_path / "mine.pth", tmp_path / "a.png"
    torch.save(made.state_dict(), path)
    write_png(picture, np.ascontiguousarray(image.permute(1, 2, 0).numpy()))
    done = script("inference.py", "--checkpoint", path, "--input", picture, "--output", tmp_path / "out", "--score", 0)
    assert done.returncode == 0, done.stderr
    objects = json.loads((tmp_path / "out/a_objects.json").read_text())["objects"]
    assert {item["class"] for item in objects} <= {"class_0", "class_1"} and objects


class Evil:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (print, ("executed",))


def test_what_does_not_fit_is_one_line(script, tmp_path):
    state = resnet(name="resnet18").state_dict()
    torch.save({"model": state, "args": Evil()}, tmp_path / "evil.pth")
    done = script("inference.py", "--checkpoint", tmp_path / "evil.pth", "--input", "media/photo.jpg")
    assert only_error_line(done).endswith("evil.pth: it holds code or objects besides weights, and is not loaded")
    assert "executed" not in done.stdout + done.stderr
    mark, norm = "roi_heads.box_predictor.cls_score.weight", "backbone.body.bn1."
    for values, message in (
        ({"roi_heads.keypoint_head.0.weight": torch.zeros(1)}, "a detector of keypoints, which this code"),
        ({mark: torch.zeros(91)}, r"cls_score.weight has shape \(91,\); it takes 2 to 256 outputs"),
        ({mark: torch.zeros(257, 3)}, r"cls_score.weight has shape \(257, 3\)"),
        ({f"{norm}weight": torch.zeros(1).expand(2**40)}, "its tensors take 4,398,"),
        ({f"{norm}weight": torch.zeros(3)}, "the tensors of backbone.body.bn1 are not floats of one shape"),
        ({f"{norm}weight": torch.zeros(64).to_sparse()}, "weights are dense tensors"),
        ({"roi_heads.box_predictor.bbox_pred.bias": torch.zeros(8)}, "it takes 91 outputs"),
        ({f"{norm}bias": None}, r"bn1\.bias is not in it"),
        ({f"{norm}running_var": torch.zeros(64)}, "variances that are not above 0"),
        ({"backbone.body.layer3.2.conv1.weight": torch.zeros(1)}, "whose encoder is none of resnet50"),
        ({"backbone.body.conv1.weight": torch.zeros(1)}, r"encoder.body.conv1.weight has shape \(1,\)"),
        ({"extra": 3}, "holds more than named tensors"),
    ):
        changed = {name: value for name, value in (state | values).items() if value is not None}
        torch.save(changed, tmp_path / "changed.pth")
        with pytest.raises(ValueError, match=message):
            load_network(tmp_path / "changed.pth")
