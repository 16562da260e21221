"""What a training leaves as it is: a frozen encoder, and the boxes of a darknet file beside a new decoder."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from conftest import only_error_line, shared
from darknet_nets import thin, write_network
from small_training import _signals_and_memory as _signals_and_memory
from small_training import built, settings

import distributed
from folders import read_folder
from model import load_network
from networks.checkpoints import read_checkpoint
from tasks import CLASS_LISTS
from training.frozen import check_frozen, learned_maps, to_train_mode


def words(weights: Path, data: Path, run: Path, *more: object) -> tuple[object, ...]:
    return (
        "train.py", "--data", data, "--tasks", "segmentation,depth", "--keep", "boxes", "--encoder",
        f"darknet:{weights.with_suffix('.cfg')}", "--init", weights, "--box_layers", "yolo", "--long_side", 0,
        "--crop", "64,64", "--decoder_width", 16, "--crp_stages", 1, "--batch_size", 4, "--epochs", 2, "--eval_every",
        1, "--workers", 0, "--threads", 1, "--device", "cpu", "--run", run, *more,
    )  # fmt: skip


def boxes_of(path: Path, images: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return load_network(path)(images)["boxes"]


@pytest.mark.parametrize("name", ["thin yolov3", "yolo-fastest-1.1", "yolo-fastest-1.1-xl"])
def test_the_boxes_of_a_frozen_file_stay_bit_for_bit(name, script, rooms_folder, tmp_path):
    weights = write_network(tmp_path, thin("yolov3")) if "thin" in name else shared("weights/yolo-fastest")
    weights = weights if weights.is_file() else weights / f"{name}.weights"
    done = script(*words(weights, rooms_folder, tmp_path / "run", "--freeze_encoder"))
    assert done.returncode == 0, done.stderr
    assert "segmentation (weight 1), depth (weight 1), fixed; kept: boxes\n" in done.stdout
    assert "lr_encoder" not in (tmp_path / "run/log.jsonl").read_text()
    before, after = load_network(weights), load_network(tmp_path / "run/last.pt")
    assert tuple(after.tasks) == ("segmentation", "depth", "boxes") and after.tasks["boxes"] == before.tasks["boxes"]
    old, new = before.state_dict(), after.state_dict()
    assert old.keys() <= new.keys() and all(torch.equal(new[key], value) for key, value in old.items())
    pictures = torch.randint(0, 256, (2, 3, 75, 101), dtype=torch.uint8)
    found = boxes_of(tmp_path / "run/last.pt", pictures)
    assert torch.equal(found, boxes_of(weights, pictures)) and found.std() > 0.01
    trained = read_checkpoint(tmp_path / "run/last.pt")["training"]["network"]
    # Of what is trained the average differs.
    assert {key.partition(".")[0] for key in new if not torch.equal(trained[key], new[key])} == {"decoder", "heads"}


def test_a_kept_network_is_evaluated_used_and_resumed(script, rooms_folder, tmp_path):
    weights = write_network(tmp_path, thin("yolov3", classes=80))
    run = tmp_path / "run"
    done = script(*words(weights, rooms_folder, run))
    assert done.returncode == 0, done.stderr
    before, after = load_network(weights).state_dict(), load_network(run / "last.pt").state_dict()
    assert not torch.equal(before["encoder.layers.0.conv.weight"], after["encoder.layers.0.conv.weight"])
    same = [torch.equal(before[key], after[key]) for key in before if key.startswith("heads.boxes.")]
    assert all(same) and len(same) == 6, "a head without labels is not trained"
    data = tmp_path / "coco"
    (data / "images").mkdir(parents=True)
    (data / "labels").mkdir()
    picture = (rooms_folder / (rooms_folder / "val.txt").read_text().split("\t")[0]).read_bytes()
    (data / "images/a.png").write_bytes(picture)
    (data / "labels/a.txt").write_text("7 0.5 0.5 0.4 0.4\n")
    names = "\n".join(f"- {name}" for name in CLASS_LISTS["coco80"])
    (data / "data.yaml").write_text(f"names:\n{names}\ntrain: images\nval: images\n")
    for folder, task in ((rooms_folder, "depth"), (data, "boxes")):
        split = "val" if folder == rooms_folder else "train"
        done = script("evaluate.py", "--checkpoint", run / "last.pt", "--data", folder, "--split", split)
        assert done.returncode == 0, done.stderr
        assert f"\n{task} " in done.stdout, done.stdout
    given = ("inference.py", "--checkpoint", run / "last.pt", "--input", data / "images", "--output")
    for number, more in enumerate(((), ("--domain", read_folder(rooms_folder).name))):
        done = script(*given, tmp_path / f"out{number}", *more)
        assert done.returncode == 0, done.stderr
        written = {path.name for path in (tmp_path / f"out{number}").iterdir()}
        assert {"a_objects.json", "a_depth.png"} <= written
    done = script("train.py", "--resume", run)
    assert done.returncode == 0 and "is complete" in done.stdout, done.stderr


def test_frozen_parts_have_no_gradient_and_their_statistics_stay(rooms_folder):
    training, batches = built(rooms_folder, freeze_encoder="true")
    network = training.network
    before = {key: value.clone() for key, value in network.state_dict().items()}
    for batch in batches[:2]:
        training.take_step([batch])
    changed = {key for key, value in network.state_dict().items() if not torch.equal(value, before[key])}
    assert changed and not any(key.startswith("encoder.") for key in changed)
    to_train_mode(network)
    assert not any(module.training for module in network.encoder.modules()) and network.decoder.training
    assert {group["name"].partition(",")[0] for group in training.optimizer.param_groups} == {"decoder"}


@pytest.mark.parametrize("freeze", ["false", "true"])
@pytest.mark.parametrize("weighting", ["fixed", "uncertainty", "upgrad"])
def test_what_is_kept_takes_no_part_in_the_weighting(weighting, freeze, rooms_folder, tmp_path):
    if weighting == "upgrad":
        pytest.importorskip("torchjd")
    text = thin("yolov3")
    training, batches = built(
        rooms_folder, keep="boxes", init=write_network(tmp_path, text), encoder="darknet", darknet_cfg=text,
        box_layers="yolo", task_weighting=weighting, freeze_encoder=freeze,
    )  # fmt: skip
    network, images = training.network, batches[0]["image"]
    assert list(training.weighting.factors()) == ["segmentation", "depth"]
    maps = network.shared(images)
    assert len(maps) == 4 and [id(item) for item in learned_maps(network, maps)] == [id(maps[0])]
    assert learned_maps(network, [item.detach() for item in maps]) == []
    head = {key: value.clone() for key, value in network.heads["boxes"].state_dict().items()}
    losses = training.take_step([batches[0]])
    assert set(losses) == {"segmentation", "depth"}
    assert all(torch.equal(value, head[key]) for key, value in network.heads["boxes"].state_dict().items())


def test_what_cannot_be_kept_is_refused(script, rooms_folder, tmp_path, monkeypatch):
    for values, message in (
        ({"freeze_encoder": "true"}, "freeze_encoder: its weights would stay random; give --init or --encoder_weights"),
        ({"keep": "boxes"}, "keep: boxes: of which network\\? --init names it"),
        ({"keep": "depth", "init": "a"}, "keep: depth is also one of tasks; what is kept is not trained"),
    ):
        with pytest.raises(ValueError, match=message):
            check_frozen(settings(rooms_folder, **values))
    check_frozen(settings(rooms_folder, keep="boxes", init="a"))
    monkeypatch.setattr(distributed, "count", lambda: 2)
    with pytest.raises(ValueError, match="keep: with several processes it needs --freeze_encoder true"):
        check_frozen(settings(rooms_folder, keep="boxes", init="a"))
    weights = write_network(tmp_path, thin("yolov3"))
    given = words(weights, rooms_folder, tmp_path / "run")
    assert only_error_line(script(*given, "--keep", "bokses")) == (
        f"error: keep: {weights} has no task 'bokses' (did you mean 'boxes'?); it has: boxes"
    )
    line = only_error_line(script(*given, "--box_layers", "light"))
    assert line.startswith(f"error: keep: boxes of {weights} does not fit this network, such as heads.boxes.output.0")
