from __future__ import annotations

import hashlib
import shutil

import numpy as np
import pytest
import torch
from conftest import ROOT, only_error_line
from helpers import settings, tasks
from PIL import Image
from safetensors.torch import save_file

from deploy.backends import open_backend
from deploy.file_formats import write_torch
from deploy.predictor import Predictor
from deploy.signature import make_signature, network_input
from export import calibration_files, compare_metrics, make_parser
from folders import read_folder, read_list
from images import read_image
from model import build_network, load_network
from networks.checkpoints import SHIPPED

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")
pytest.importorskip("openvino")


@pytest.fixture(scope="module")
def exported(script, trained, rooms_folder, tmp_path_factory):
    """exported(format, option, ...) -> (file, what was printed); checked on the rooms."""
    folder, done = tmp_path_factory.mktemp("exported"), {}

    def call(kind: str, *options: object):
        key = (kind, *map(str, options))
        if key not in done:
            suffix = {"onnx": ".onnx", "openvino": ".xml"}.get(kind, ".pt2")
            file = folder / f"{len(done)}{suffix}"
            result = script("export.py", "--checkpoint", trained / "best.pt", "--format", kind, "--output", file,
                            "--images", rooms_folder / "rgb", *options)  # fmt: skip
            assert result.returncode == 0, result.stderr
            done[key] = file, result.stdout
        return done[key]

    return call


def same(mine: dict[str, np.ndarray], theirs: dict[str, np.ndarray]) -> None:
    assert (mine["segmentation"] == theirs["segmentation"]).mean() > 0.999
    assert np.allclose(mine["depth"], theirs["depth"], rtol=1e-3, atol=1e-3)
    assert np.allclose(mine["normals"], theirs["normals"], atol=1e-2)


@pytest.mark.parametrize("kind", ["onnx", "openvino"])
def test_a_file_works_like_the_checkpoint(exported, script, trained, rooms_folder, tmp_path, kind):
    file, printed = exported(kind)
    assert "segmentation  on 10 pictures: " in printed and "mean IoU with the checkpoint's 1.0" in printed
    assert "depth         on 10 pictures: " in printed and "largest difference" in printed
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    shutil.copy(rooms_folder / "rgb" / "000001.png", pictures / "a.png")
    odd = np.random.default_rng(0).integers(0, 256, (61, 133, 3), np.uint8)
    Image.fromarray(odd).resize((133, 61)).save(pictures / "odd.png")
    for checkpoint, output in ((file, "of_file"), (trained / "best.pt", "of_checkpoint")):
        done = script("inference.py", "--checkpoint", checkpoint, "--input", pictures, "--output", output,
                      "--precision", "fp32", cwd=tmp_path)  # fmt: skip
        assert done.returncode == 0, done.stderr
    for name in ("a_segmentation.png", "odd_segmentation.png", "a_depth.png", "odd_depth.png"):
        mine, theirs = (np.array(Image.open(tmp_path / folder / name)) for folder in ("of_file", "of_checkpoint"))
        assert mine.shape == theirs.shape
        close = np.abs(mine.astype(int) - theirs) <= (0 if "segmentation" in name else 20)  # millimetres
        assert close.mean() > 0.995, name


@pytest.mark.parametrize("kind", ["onnx", "openvino"])
@pytest.mark.parametrize("options", [
    ("--size", "96x72"), ("--outputs", "raw"), ("--input", "float"), ("--size", "96x72", "--outputs", "raw"),
    ("--batch", 1, "--outputs", "raw", "--input", "float"),
], ids=lambda options: " ".join(map(str, options)))  # fmt: skip
def test_what_is_inside_the_graph_can_be_chosen(exported, trained, rooms_folder, kind, options):
    file, _ = exported(kind, *options)
    image = read_image(rooms_folder / "rgb" / "000001.png")  # 96x72
    network = load_network(trained / "best.pt")
    same(Predictor(file, precision="fp32")(image), Predictor(network, "eager")(image))
    backend = open_backend(file)
    assert backend.signature.units_out == ("raw" not in options) and backend.signature.bytes_in == (
        "float" not in options
    )
    assert backend.tasks["segmentation"].classes == network.tasks["segmentation"].classes
    assert backend.tasks["depth"].max_m == network.tasks["depth"].max_m
    wanted = np.uint8 if backend.signature.bytes_in else np.float32
    assert network_input(torch.zeros(1, 3, 72, 96, dtype=torch.uint8), backend.signature).dtype == wanted


@pytest.mark.parametrize("outputs", [(), ("--outputs", "raw")], ids=["units", "raw"])
def test_a_picture_of_another_shape_fits_into_a_graph_of_one_size(exported, trained, outputs):
    file, _ = exported("onnx", "--size", "96x72", *outputs)
    rng = np.random.default_rng(0)
    image = np.array(Image.fromarray(rng.integers(0, 256, (6, 12, 3), np.uint8)).resize((96, 48), Image.BICUBIC))
    mine, theirs = (Predictor(source, *kind)(image) for source, kind in ((file, ()), (trained / "best.pt", ("eager",))))
    assert mine["segmentation"].shape == (48, 96) and mine["depth"].shape == (48, 96)
    # What is added below the picture reaches into it, but not far.
    assert np.abs(mine["depth"] / theirs["depth"] - 1)[:8].mean() < 0.1
    portrait = np.ascontiguousarray(image.transpose(1, 0, 2))
    assert Predictor(file)(portrait)["segmentation"].shape == (96, 48)


def test_torch_export(exported, trained):
    file, printed = exported("torch", "--outputs", "raw")
    assert "of the pixels changed" in printed
    extra = {"signature.json": ""}
    program = torch.export.load(file, extra_files=extra).module()
    image = torch.randint(0, 256, (1, 61, 87, 3), dtype=torch.uint8)
    network = load_network(trained / "best.pt")
    with torch.inference_mode():
        expected = network(image.permute(0, 3, 1, 2))
        for value, name in zip(program(image), network.tasks, strict=True):
            assert torch.allclose(value, expected[name], atol=1e-3 * float(expected[name].abs().max()))
    assert '"segmentation"' in extra["signature.json"]


@pytest.mark.parametrize("encoder", ["mobilenetv2_100", "tf_efficientnet_lite0"])
def test_a_program_of_any_size_gives_units(encoder, tmp_path):
    """Whatever the encoder's padding makes of the sizes; trained weights are no part of the question."""
    network = build_network(settings(encoder, long_side=0, decoder_width=16, crp_stages=1), tasks(6)).eval()
    program = write_torch(
        network, make_signature(network, network.tasks, units_out=True, batch=1), tmp_path / "x.pt2", []
    )
    for height, width in ((61, 87), (96, 64)):
        image = torch.randint(0, 256, (1, 3, height, width), dtype=torch.uint8)
        sizes = dict.fromkeys(network.tasks, (height, width))
        mine, theirs = program.predict(image, sizes), network.predict(image, sizes)
        assert (mine["segmentation"] == theirs["segmentation"]).float().mean() > 0.999
        assert torch.allclose(mine["depth"], theirs["depth"], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(("kind", "options"), [
    ("openvino", ("--outputs", "raw")), ("openvino", ("--size", "96x72")), ("onnx", ()),
], ids=str)  # fmt: skip
def test_int8_says_what_it_costs(exported, trained, rooms_folder, kind, options):
    """Also with the outputs that are the default, and in batches."""
    pytest.importorskip("nncf")
    file, printed = exported(kind, "--int8", "--frames", 8, "--limit", 1, *options)
    assert "segmentation/miou" in printed and "depth/rmse" in printed and " -> " in printed
    image = read_image(rooms_folder / "rgb" / "000001.png")
    mine, theirs = Predictor(file)(image), Predictor(trained / "best.pt", "eager")(image)
    assert 0 < np.abs(mine["depth"] / theirs["depth"] - 1).mean() < 0.2


def test_pictures_without_labels_calibrate_where_the_training_data_are_not(rooms_folder, capsys):
    images = str(rooms_folder / "rgb")
    given = make_parser().parse_args(["--int8", "--images", images, "--frames", "3"])
    files = calibration_files(given, ["dataset/none"], "train")
    assert len(files) == 3 and all(file.parent == rooms_folder / "rgb" for file in files)
    assert f"calibrated on 3 pictures of {images}: no dataset/none here" in capsys.readouterr().out
    trained_on = read_list(read_folder(rooms_folder), "train")
    assert calibration_files(given, [str(rooms_folder)], "train")[0] == trained_on[0].image
    for words in (["--int8"], ["--int8", "--images", images, "--data", "dataset/none"]):
        with pytest.raises(FileNotFoundError, match="dataset/none: no such data set"):
            calibration_files(make_parser().parse_args(words), ["dataset/none"], "train")


def test_a_file_is_not_compared_on_other_classes(trained, rooms_folder, tmp_path, capsys):
    shutil.copytree(rooms_folder, tmp_path / "mine")
    description = tmp_path / "mine" / "dataset.yaml"
    description.write_text(description.read_text().replace("classes: nyu40", "classes: [a, b, c]"))
    network = load_network(trained / "best.pt")
    compare_metrics(network, open_backend(network, "eager"), str(tmp_path / "mine"), trained / "best.pt")
    printed = capsys.readouterr().out
    assert "not compared (" in printed and "40" in printed and " -> " not in printed


def test_a_file_that_differs_is_an_error(script, trained, rooms_folder, tmp_path):
    pytest.importorskip("nncf")
    line = only_error_line(
        script("export.py", "--checkpoint", trained / "best.pt", "--format", "openvino", "--int8", "--frames", 4,
               "--limit", 0, "--output", tmp_path / "x.xml", "--images", rooms_folder / "rgb")
    )  # fmt: skip
    assert "would differ from" in line and "segmentation" in line
    assert not list(tmp_path.iterdir())


def test_evaluation_takes_files(exported, script, trained, tmp_path):
    file, _ = exported("onnx")
    for checkpoint, report in ((file, "file.json"), (trained / "best.pt", "checkpoint.json")):
        done = script("evaluate.py", "--checkpoint", checkpoint, "--output", tmp_path / report)
        assert done.returncode == 0, done.stderr
    import json

    mine, theirs = (json.loads((tmp_path / name).read_text())["metrics"] for name in ("file.json", "checkpoint.json"))
    for name, value in theirs.items():
        assert mine[name] == pytest.approx(value, rel=0.01, abs=2e-3), name


def test_mistakes_get_one_line(exported, script, trained, tmp_path):
    checkpoint = ("--checkpoint", trained / "best.pt")
    line = only_error_line(script("export.py", *checkpoint, "--domain", "nowhere"))
    assert "does not know 'nowhere'" in line
    file, _ = exported("onnx")
    for options, message in (
        (("--mirror",), "post-processing inside"), (("--domain", "x"), "does not know 'x'"),
        (("--backend", "openvino"), "runs in onnxruntime"),
    ):  # fmt: skip
        done = script("inference.py", "--checkpoint", file, "--output", tmp_path / "out", *options)
        assert message in only_error_line(done), options
    import onnx
    from onnx import TensorProto, helper

    node = helper.make_node("Identity", ["image"], ["segmentation"])
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in ("image", "segmentation")]
    model = helper.make_model(
        helper.make_graph([node], "x", values[:1], values[1:]),
        opset_imports=[helper.make_opsetid("", 17)],
        ir_version=9,
    )
    onnx.save(model, tmp_path / "other.onnx")
    (tmp_path / "text.onnx").write_text("text")
    (tmp_path / "text.xml").write_text("text")
    for name, message in (
        ("other.onnx", "not a file of export.py"), ("text.onnx", "not a model that onnxruntime reads"),
        ("text.xml", "not a model that openvino reads"),
    ):  # fmt: skip
        done = script("inference.py", "--checkpoint", tmp_path / name, "--output", tmp_path / "out")
        assert message in only_error_line(done), name


def test_safetensors_is_the_checkpoint(trained, script, tmp_path):
    file = tmp_path / "best.safetensors"
    done = script("export.py", "--checkpoint", trained / "best.pt", "--format", "safetensors", "--output", file)
    assert done.returncode == 0, done.stderr
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    assert f"sha256 {digest}" in done.stdout
    before, after = load_network(trained / "best.pt"), load_network(file)
    assert before.tasks == after.tasks and before.config == after.config and before.domains == after.domains
    assert all(torch.equal(value, after.state_dict()[name]) for name, value in before.state_dict().items())
    half = tmp_path / "half.safetensors"
    options = ("--checkpoint", file, "--format", "safetensors", "--half", "--output", half)
    done = script("export.py", *options)
    assert done.returncode == 0, done.stderr
    assert half.stat().st_size < 0.6 * file.stat().st_size
    rounded = load_network(half).state_dict()
    assert all(torch.equal(value.half().to(value), rounded[name]) for name, value in before.state_dict().items()
               if value.is_floating_point())  # fmt: skip
    assert "more than 0.00% of what is compared" in only_error_line(script("export.py", *options, "--limit", 0))
    # Checked when given, and refused in a line without its settings.
    options = ["--output", tmp_path / "out", "--checkpoint", file]
    assert script("inference.py", *options, "--sha256", digest.upper()).returncode == 0
    assert "it is another file" in only_error_line(script("inference.py", *options, "--sha256", "0" * 64))
    save_file({"x": torch.zeros(1)}, file)
    assert "not a file of export.py" in only_error_line(script("inference.py", *options))
    file.write_bytes(b"no tensors")
    assert "not readable as safetensors" in only_error_line(script("inference.py", *options))


def test_the_weights_in_the_repository_are_not_replaced(script, tmp_path):
    """Without a run they are the default, and their file is where this format's would go by default."""
    (tmp_path / "model").mkdir()
    shutil.copy(ROOT / SHIPPED, tmp_path / SHIPPED)
    line = only_error_line(script("export.py", "--format", "safetensors", cwd=tmp_path))
    assert f"--output: {SHIPPED} is the checkpoint" in line
