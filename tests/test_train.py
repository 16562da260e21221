"""The scripts as users run them: train -> evaluate -> inference, stopping and resuming, mistakes."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from conftest import ROOT, only_error_line, start_training, wait_for
from PIL import Image

import utils
from config import Config, make_config
from dataset import Frames, class_frequencies
from folders import make_tasks, read_folder, read_list
from model import build_network, load_network
from networks.checkpoints import read_checkpoint
from training import step
from training.optimizer import build_optimizer, rate_factor
from user_input.text_files import read_yaml

SAMPLE = ROOT / "media" / "sample.jpg"


def weights_of(path: Path) -> dict[str, torch.Tensor]:
    content = read_checkpoint(path)
    return content["network"] | {f"training.{name}": value for name, value in content["training"]["network"].items()}


def assert_same_weights(first: Path, second: Path) -> None:
    a, b = weights_of(first), weights_of(second)
    assert a.keys() == b.keys()
    different = [name for name in a if not torch.equal(a[name], b[name])]
    assert not different


# ---------------------------------------------------------------------------------------------- the main way


def test_a_run_leaves_what_it_promises(trained):
    assert {"config.yaml", "log.jsonl", "best.pt", "last.pt"} <= {path.name for path in trained.iterdir()}
    assert list(trained.glob("events.out.tfevents.*"))
    reports = [json.loads(line) for line in (trained / "log.jsonl").read_text().splitlines()]
    losses = [report for report in reports if report["kind"] == "train"]
    assert losses and all({"segmentation", "depth", "normals", "images_per_s"} <= report.keys() for report in losses)
    assert [report["step"] for report in reports if report["kind"] == "val"] == [6, 12]
    content = read_checkpoint(trained / "best.pt")
    assert {"segmentation/miou", "depth/rmse", "normals/mean"} <= content[
        "metrics"
    ].keys() and "training" not in content
    assert make_config(read_yaml(trained / "config.yaml"), "test") == make_config(content["config"], "test")


def test_train_evaluate_inference(trained, script, tmp_path):
    """The checkpoint alone tells the other scripts everything: evaluation repeats the stored numbers."""
    for name in ("best.pt", "last.pt"):
        output = tmp_path / f"{name}.json"
        done = script(
            "evaluate.py", "--checkpoint", trained / name, "--workers", 0, "--output", output, fresh=name == "best.pt"
        )
        assert done.returncode == 0, done.stderr
        report = json.loads(output.read_text())
        assert report["metrics"] == pytest.approx(read_checkpoint(trained / name)["metrics"], rel=1e-4, abs=1e-5)
        assert report["frames"] == 4 and "miou" in done.stdout and "rmse" in done.stdout
    image = np.random.default_rng(0).integers(0, 256, (61, 87, 3), np.uint8)
    Image.fromarray(image).save(tmp_path / "photo.png")
    done = script(
        "inference.py",
        "--checkpoint",
        trained / "best.pt",
        "--input",
        tmp_path / "photo.png",
        "--output",
        tmp_path / "out",
        fresh=True,
    )
    assert done.returncode == 0, done.stderr
    tasks = ["segmentation", "depth", "normals"]
    parts = [*(f"{task}.png" for task in tasks), *(f"{task}_color.jpg" for task in tasks), "overview.jpg"]
    expected = sorted(f"photo_{part}" for part in parts)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["photo.json", *expected]
    ids, depth = (Image.open(tmp_path / "out" / f"photo_{name}.png") for name in ("segmentation", "depth"))
    assert ids.mode == "P" and ids.size == (87, 61) and np.asarray(ids).max() < 40
    assert depth.mode == "I;16" and 0 < np.asarray(depth).max() < 20_000, "millimetres of a room"


def test_it_learns(rooms_folder, tiny_settings, script, tmp_path):
    """Twelve rooms by heart in a minute: all the parts together turn pictures into classes and metres."""
    # Each room stands in the list four times: fewer epochs for the same steps, so that fewer checkpoints are written.
    folder = shutil.copytree(rooms_folder, tmp_path / "rooms")
    (folder / "train.txt").write_text("\n".join((folder / "train.txt").read_text().splitlines() * 4))
    plain = ["--zoom", "1,1", "--mirror", "false", "--color", 0, "--crop", "72,96", "--loss_stride", 1]
    longer = "--epochs 40 --eval_every 40 --decoder_width 64 --crp_stages 2 --encoder mobilenetv3_small_050".split()
    where = ["--data", folder, "--val_split", "train", "--run", tmp_path / "run"]
    done = script("train.py", "--config", tiny_settings, *where, *plain, *longer)
    assert done.returncode == 0, done.stderr
    metrics = read_checkpoint(tmp_path / "run" / "best.pt")["metrics"]
    assert metrics["segmentation/pixel_accuracy"] > 0.75
    assert metrics["depth/rmse"] < 0.4 and metrics["depth/delta1"] > 0.85


def test_evaluation_options(trained, script, tmp_path):
    output = tmp_path / "e.json"
    options = "--mirror --scales 0.75,1 --cap 3 --per_image --split train --batch_size 5 --worst 1".split()
    done = script("evaluate.py", "--checkpoint", trained / "best.pt", "--workers", 0, "--output", output, *options)
    assert done.returncode == 0, done.stderr
    report = json.loads(output.read_text())
    assert report["frames"] == 12 and report["mirror"] and report["scales"] == [0.75, 1.0]
    assert report["protocol"] == {"crop": "none", "cap_m": 3.0, "per_image": True}
    (worst,) = report["worst"]["depth"]
    assert worst["rmse"] > report["metrics"]["depth/rmse"], "per image, the mean is below the worst"
    assert worst["picture"] == str(tmp_path / "e" / "depth-1.jpg") and Path(worst["picture"]).is_file()


def test_two_runs_with_one_seed_are_equal_and_another_seed_is_not(tiny_settings, trained, script, tmp_path):
    tasks = ["--tasks", "segmentation,depth,normals"]
    for run, seed in (("a", 0), ("b", 1)):
        done = script(
            "train.py", "--config", tiny_settings, "--run", tmp_path / run, "--seed", seed, "--workers", 2, *tasks,
            fresh=run == "a",  # with hash seeds of its own
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
    assert_same_weights(trained / "last.pt", tmp_path / "a" / "last.pt")
    with pytest.raises(AssertionError):
        assert_same_weights(trained / "last.pt", tmp_path / "b" / "last.pt")


# ---------------------------------------------------------------------------------------------- stopping and resuming


@pytest.fixture(scope="module")
def eight_epochs(tiny_settings, script, tmp_path_factory):
    """(options, folder) of a run without a break."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    options = ["--config", tiny_settings, "--epochs", 8, "--accumulate", 2, "--log_every", 1, "--class_weights", "log"]
    done = script("train.py", *options, "--run", folder)
    assert done.returncode == 0, done.stderr
    return options, folder


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGKILL, -9)])
def test_a_stopped_run_ends_like_one_that_was_not(eight_epochs, script, tmp_path, number, status):
    """Half the epochs, a signal, the rest: bit for bit the weights of a run without a break."""
    options, whole = eight_epochs
    process = start_training([*options, "--run", tmp_path / "broken"])
    wait_for(tmp_path / "broken" / "log.jsonl", '"epoch": 4.0', process)
    # From within an epoch. Only the training process gets it, as from a scheduler.
    os.kill(process.pid, number)
    process.communicate(timeout=60)
    # It may have ended first on a fast machine: then there is nothing to resume, and the comparison still holds.
    assert process.returncode in (status, 0)
    assert not list((tmp_path / "broken").glob(".*.tmp")) or number == signal.SIGKILL
    resumed = script("train.py", "--resume", tmp_path / "broken", "--workers", 2, cwd=tmp_path)
    assert resumed.returncode == 0, resumed.stderr
    assert_same_weights(whole / "last.pt", tmp_path / "broken" / "last.pt")
    first, second = (read_checkpoint(run / "last.pt")["metrics"] for run in (whole, tmp_path / "broken"))
    assert first == second


def test_a_run_of_an_earlier_version_is_not_resumed(trained, script, tmp_path):
    content = torch.load(trained / "last.pt", weights_only=True)
    del content["domains"]
    torch.save(content, tmp_path / "last.pt")
    assert "an earlier version of this code wrote it" in only_error_line(script("train.py", "--resume", tmp_path))


def test_the_network_of_carvana_is_a_configuration(tiny_settings, script, tmp_path):
    """U-Net with its own encoder at full resolution, Dice and cross-entropy together, on odd sizes afterwards."""
    unet = ["--encoder", "unet", "--decoder", "unet", "--unet_upsampling", "transposed",
            "--segmentation_loss", "cross_entropy+dice", "--tasks", "segmentation",
            "--best_metric", "segmentation/dice", "--crop", "32,48", "--batch_size", 2, "--epochs", 1]  # fmt: skip
    done = script("train.py", "--config", tiny_settings, *unet, "--run", tmp_path / "run")
    assert done.returncode == 0, done.stderr
    network = load_network(tmp_path / "run" / "best.pt")
    # 31,037,568 of the network without its last layer (tests/test_decoders.py), and our head of a scale and 3x3.
    assert sum(item.numel() for item in network.parameters()) == 31_037_568 + 64 + 9 * 64 * 40 + 40
    raw = network(torch.zeros(1, 3, 51, 77, dtype=torch.uint8))["segmentation"]
    assert raw.shape == (1, 40, 51, 77)


def test_resume_with_a_relative_path_goes_on_in_the_same_folder(tiny_settings, script, tmp_path):
    process = start_training(
        ["--config", tiny_settings, "--epochs", 30, "--run", tmp_path / "runs" / "x", "--log_every", 1]
    )
    wait_for(tmp_path / "runs" / "x" / "log.jsonl", '"epoch": 1.0', process)
    os.kill(process.pid, signal.SIGTERM)
    assert "go on with" in process.communicate(timeout=60)[0]
    before = read_checkpoint(tmp_path / "runs/x/last.pt")["training"]["data_steps"]
    process = start_training(["--resume", "runs/x/last.pt"], cwd=tmp_path)
    wait_for(tmp_path / "runs" / "x" / "log.jsonl", f'"epoch": {before // 3 + 2}.0', process)
    os.kill(process.pid, signal.SIGTERM)
    process.communicate(timeout=60)
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["x"]
    assert read_checkpoint(tmp_path / "runs/x/last.pt")["training"]["data_steps"] > before


def test_a_complete_run_is_not_trained_again(trained, script):
    done = script("train.py", "--resume", trained)
    assert done.returncode == 0 and "is complete" in done.stdout


# ---------------------------------------------------------------------------------------------- optimisation


@pytest.mark.parametrize("options", [
    ["--precision", "bf16"], ["--precision", "fp16"], ["--optimizer", "sgd", "--ema", 0], ["--freeze_bn"],
    ["--schedule", "cosine", "--channels_last", "false", "--clip_norm", 0],
    ["--encoder", "mobilenetv2_paper", "--loss_stride", 4],
], ids=str)  # fmt: skip
def test_ways_to_train(tiny_settings, script, tmp_path, options):
    done = script("train.py", "--config", tiny_settings, "--epochs", 2, "--run", tmp_path / "run", *options)
    assert done.returncode == 0, done.stderr
    assert "best segmentation/miou" in done.stdout


def test_mixed_precision_predicts_what_full_precision_does(trained):
    from deploy.predictor import Predictor

    network = load_network(trained / "best.pt").to(memory_format=torch.channels_last)
    image = np.random.default_rng(1).integers(0, 256, (64, 96, 3), np.uint8)
    full, mixed = (Predictor(network, "eager", precision=name)(image) for name in ("fp32", "bf16"))
    assert np.abs(mixed["depth"] / full["depth"] - 1).mean() < 0.02, "bf16 has 8 bits: 0.4 % a rounding"


def test_the_optimizers_groups_hold_what_the_settings_say(rooms_folder):
    config = make_config(
        {"encoder": "resnet18", "lr_encoder": "1e-4", "lr_decoder": "2e-3", "weight_decay": "0.05"}, "test"
    )
    network = build_network(config, make_tasks(read_folder(rooms_folder), config))
    optimizer = build_optimizer(network, config)
    names = {id(parameter): name for name, parameter in network.named_parameters()}
    kernels = {id(module.weight) for module in network.modules() if isinstance(module, torch.nn.Conv2d)}
    seen = 0
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            name = names[id(parameter)]
            assert group["lr"] == (1e-4 if name.startswith("encoder.") else 2e-3), name
            assert group["weight_decay"] == (0.05 if id(parameter) in kernels else 0), name
            seen += 1
    assert seen == len(names)


def test_schedules():
    config = make_config({"warmup_steps": 10, "schedule": "poly"}, "test")
    factors = [rate_factor(config, number, 110) for number in range(110)]
    assert factors[0] == pytest.approx(0.1) and factors[9] == factors[10] == 1
    assert factors[60] == pytest.approx(0.5**0.9) and 0 < factors[-1] < 0.02
    cosine = dataclasses.replace(config, schedule="cosine")
    assert rate_factor(cosine, 60, 110) == pytest.approx(0.5)
    assert rate_factor(dataclasses.replace(config, schedule="constant"), 109, 110) == 1


def test_the_average_follows_the_weights_and_the_statistics():
    """Of numbers that grow by 1 an update: 9/11 of the first, 3/4 of the second, and in the long run 9 behind."""
    network = build_network(
        make_config({"encoder": "mobilenetv2_100", "decoder_width": 8, "tasks": "depth"}, "test"), {}
    )
    mean = next(name for name in network.state_dict() if name.endswith("running_mean"))
    names = [next(name for name, _ in network.named_parameters()), mean]
    values = [network.state_dict()[name].zero_() for name in names]
    average = step.Average(network, decay=0.9)
    expected = {1: 9 / 11, 2: 9 / 44 + 3 / 2, 200: 200 - 9}
    for update in range(1, 201):
        for value in values:
            value.add_(1)
        average.update(network)
        for name in names if update in expected else ():
            followed = average.network.state_dict()[name]
            assert torch.allclose(followed, torch.full_like(followed, expected[update]), rtol=1e-4), (name, update)


def test_class_weights_count_the_training_masks(rooms_folder, tmp_path):
    data = read_folder(rooms_folder)
    tasks = make_tasks(data, Config())
    frames = Frames(data, read_list(data, "train"), tasks, Config(), train=True)
    shares = class_frequencies(frames, tasks["segmentation"])
    counted = np.zeros(40)
    for line in (rooms_folder / "train.txt").read_text().splitlines():
        counted += np.bincount(np.asarray(Image.open(rooms_folder / line.split("\t")[1])).ravel(), minlength=256)[:40]
    assert shares == pytest.approx(counted / counted.sum())


# ---------------------------------------------------------------------------------------------- mistakes


def test_a_nan_loss_names_task_and_step_and_keeps_the_checkpoint(tiny_settings, script, tmp_path):
    options = ["--config", tiny_settings, "--log_every", 1]
    first = script("train.py", *options, "--epochs", 1, "--run", tmp_path / "run")
    assert first.returncode == 0, first.stderr
    # A learning rate that explodes. exp overflows, so that depth is the task that fails.
    exploding = ["--lr_decoder", 1e6, "--clip_norm", 0, "--depth_activation", "exp", "--optimizer", "sgd"]
    done = script("train.py", *options, "--epochs", 20, "--run", tmp_path / "nan", *exploding)
    line = only_error_line(done)
    assert "loss is" in line and "step" in line and ("depth" in line or "segmentation" in line)
    if (tmp_path / "nan" / "last.pt").exists():
        assert all(
            value.isfinite().all() for value in read_checkpoint(tmp_path / "nan" / "last.pt")["network"].values()
        )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--epoch", 3], "did you mean '--epochs'?"),
        (["--data", "dataset/nowhere"], "Three ways to get one"),
        (["--encoder", "resnet5"], "did you mean 'resnet50'?"),
        (["--encoder_weights", "nowhere.pth"], "nowhere.pth: no such file"),
        (["--tasks", "depht"], "did you mean 'depth'?"),
        (["--best_metric", "depth/rmes"], "did you mean 'depth/rmse'?"),
        (["--best_metric", "rmse"], "allowed: segmentation/miou"),
        (["--device", "gpu"], "allowed: auto, cpu, cuda, cuda:N"),
        (["--resume", "nowhere"], "no such file"),
        (["--val_split", "vla"], "did you mean 'val'?"),
        (["--batch_size", 99], "has 12 training frames"),
        pytest.param(["--device", "cuda"], "torch sees 0 CUDA devices", marks=pytest.mark.skipif(
            torch.cuda.is_available(), reason="there is a GPU here")),
    ],
    ids=str,
)  # fmt: skip
def test_mistakes_get_one_line(tiny_settings, script, tmp_path, arguments, message):
    settings = [] if "--resume" in arguments else ["--config", tiny_settings, "--epochs", 1, "--run", tmp_path / "run"]
    assert message in only_error_line(script("train.py", *settings, *arguments))


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("cache", ["true", "false"])
def test_a_wrong_label_gets_one_line_wherever_it_is_read(rooms_folder, tiny_settings, script, tmp_path, workers, cache):
    folder = tmp_path / "rooms"
    shutil.copytree(rooms_folder, folder)
    mask = folder / (folder / "train.txt").read_text().splitlines()[5].split("\t")[1]
    Image.fromarray(np.full((72, 96), 40, np.uint8)).save(mask)
    options = ["--data", folder, "--run", tmp_path / "run", "--workers", workers, "--cache", cache]
    line = only_error_line(script("train.py", "--config", tiny_settings, *options))
    assert line == f"error: {mask}: class id 40; allowed: 0..39 and 255 (no label)"


@pytest.mark.parametrize(
    "problem",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        MemoryError(),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"),
    ],
)
def test_out_of_memory_says_what_to_lower(problem, capsys):
    def main():
        raise problem

    with pytest.raises(SystemExit) as caught:
        utils.run(main)
    assert caught.value.code == 2
    assert capsys.readouterr().err.startswith("error: out of memory: lower --batch_size")


def test_bugs_keep_their_traceback():
    def main():
        raise RuntimeError("a bug of ours")

    with pytest.raises(RuntimeError):
        utils.run(main)


def test_an_existing_run_is_not_overwritten(trained, tiny_settings, script):
    assert "--resume" in only_error_line(script("train.py", "--config", tiny_settings, "--run", trained))


def test_settings_that_make_another_training_cannot_change_on_resume(trained, script):
    assert "--batch_size cannot change" in only_error_line(script("train.py", "--resume", trained, "--batch_size", 2))


@pytest.mark.parametrize("kind", ["truncated", "text", "code", "other", "newer", "classes", "empty"])
def test_bad_checkpoints_get_one_line(trained, script, tmp_path, kind):
    """As the scripts read them; with one kind the scripts themselves."""
    path, marker = tmp_path / "c.pt", tmp_path / "executed"
    content = read_checkpoint(trained / "best.pt")
    if kind == "truncated":
        whole = (trained / "best.pt").read_bytes()
        path.write_bytes(whole[: len(whole) // 2])
    elif kind == "text":
        path.write_text("weights")
    elif kind == "empty":
        path.touch()
    elif kind == "code":

        class Code:
            def __reduce__(self):
                return (os.system, (f"touch {marker}",))

        torch.save({"state_dict": Code()}, path)
    elif kind == "other":
        torch.save({"epoch": 3, "weights": {}}, path)
    elif kind == "newer":
        torch.save(content | {"version": 99}, path)
    else:
        content["tasks"]["segmentation"]["classes"] = ("wall", "floor")
        torch.save(content, path)
    with pytest.raises(ValueError) as caught:
        load_network(path)
    lines = [str(caught.value)]
    if kind == "code":
        lines.append(only_error_line(script("evaluate.py", "--checkpoint", path)))
        lines.append(only_error_line(script("inference.py", "--checkpoint", path, "--input", SAMPLE)))
    assert all(str(path) in line for line in lines) and not marker.exists()
    expected = {
        "truncated": "damaged", "text": "damaged", "empty": "damaged", "code": "code", "newer": "version 99",
        "other": "not a checkpoint of this project", "classes": "colors",
    }  # fmt: skip
    assert all(expected[kind] in line for line in lines)


def test_a_run_folder_is_not_a_checkpoint(trained, script):
    line = only_error_line(script("inference.py", "--checkpoint", trained, "--input", SAMPLE))
    assert f"is a folder; give a file in it, such as {trained / 'best.pt'}" in line


def test_evaluating_on_other_classes_is_refused(trained, rooms_folder, script, tmp_path):
    folder = tmp_path / "other"
    shutil.copytree(rooms_folder, folder)
    values = yaml.safe_load((folder / "dataset.yaml").read_text())
    values["segmentation"]["classes"] = [f"c{number}" for number in range(40)]
    (folder / "dataset.yaml").write_text(yaml.safe_dump(values))
    line = only_error_line(script("evaluate.py", "--checkpoint", trained / "best.pt", "--data", folder))
    assert "its classes are not those of" in line


def test_no_run_yet(script, tmp_path):
    for name in ("evaluate.py", "inference.py"):
        arguments = ["--input", SAMPLE] if name == "inference.py" else []
        line = only_error_line(script(name, *arguments, cwd=tmp_path))
        assert "no run in runs/, no model/nyudv2_lite0.safetensors: train one" in line
