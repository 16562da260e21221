"""Writes a network as a file of each format: ONNX, OpenVINO IR, torch.export, AOTInductor, safetensors.

Each `write_...(network, signature, path, calibration)` writes the file whole and opens it again as a back end;
`calibration` are images (3, H, W) uint8 for int8, or nothing.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from checkpoints import CHECKPOINT_FORMAT, CHECKPOINT_VERSION
from config import plain
from deploy.backends import Backend, open_backend
from deploy.conversion import Graph, to_onnx, to_openvino
from deploy.folding import simplified
from deploy.signature import Signature, dynamic_shapes, example_image, network_input
from model import Network, load_network
from tasks import tasks_to_plain
from utils import require, whole_file


def quantize(model: object, signature: Signature, calibration: Sequence[Tensor]) -> object:
    """Post-training static quantisation by NNCF: weights and activations in 8 bits, ranges from the images."""
    require("nncf")
    import nncf

    key = model.inputs[0].get_any_name() if hasattr(model, "inputs") else None
    data = nncf.Dataset(calibration, lambda image: {key or "image": network_input(image[None], signature)})
    return nncf.quantize(
        model, data, subset_size=len(calibration), preset=nncf.QuantizationPreset.MIXED,
        target_device=nncf.TargetDevice.CPU,
    )  # fmt: skip


def write_onnx(network: Network, signature: Signature, path: Path, calibration: Sequence[Tensor]) -> Backend:
    model = to_onnx(network, signature)
    if calibration:
        model = quantize(model, signature, calibration)
    with whole_file(path) as temporary:
        temporary.write_bytes(model.SerializeToString())
    return open_backend(path)


def write_openvino(network: Network, signature: Signature, path: Path, calibration: Sequence[Tensor]) -> Backend:
    model = to_openvino(network, signature)
    import openvino

    if calibration:
        model = quantize(model, signature, calibration)
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".") as folder:
        written = Path(folder) / path.name
        openvino.save_model(model, written, compress_to_fp16=False)
        for suffix in (".bin", ".xml"):  # the .xml last: with it the pair is there
            written.with_suffix(suffix).replace(path.with_suffix(suffix))
    # Against the checkpoint in fp32: what bf16 changes is not the file's doing.
    return open_backend(path, precision="fp32")


class Program(Backend):
    """A torch.export program that was just written."""

    name = "torch"

    def __init__(self, program: Callable[[Tensor], Sequence[Tensor]], signature: Signature) -> None:
        super().__init__(signature, torch.device("cpu"))
        self.program = program

    def run(self, images: Tensor) -> list[Tensor]:
        return list(self.program(torch.from_numpy(network_input(images, self.signature))))


def exported(network: Network, signature: Signature) -> torch.export.ExportedProgram:
    graph = Graph(simplified(network), signature).eval()
    with torch.no_grad():
        return torch.export.export(graph, (example_image(signature),), dynamic_shapes=dynamic_shapes(signature))


def write_torch(network: Network, signature: Signature, path: Path, calibration: Sequence[Tensor]) -> Backend:
    with whole_file(path) as temporary, temporary.open("wb") as file:
        torch.export.save(exported(network, signature), file, extra_files={"signature.json": signature.to_json()})
    return Program(torch.export.load(path).module(), signature)


def write_aotinductor(network: Network, signature: Signature, path: Path, calibration: Sequence[Tensor]) -> Backend:
    if not shutil.which("g++") and not shutil.which("clang++"):
        raise ValueError("--format aotinductor compiles C++: it needs g++ or clang++")
    program = exported(network, signature)
    with tempfile.TemporaryDirectory() as folder:
        package = torch._inductor.aoti_compile_and_package(program, package_path=str(Path(folder) / "graph.pt2"))
        with whole_file(path) as temporary:
            shutil.copyfile(package, temporary)
    return Program(torch._inductor.aoti_load_package(str(path)), signature)


def write_safetensors(network: Network, signature: Signature, path: Path, calibration: Sequence[Tensor]) -> Backend:
    content = {
        "version": CHECKPOINT_VERSION, "config": plain(network.config), "tasks": tasks_to_plain(network.tasks),
        "domains": {name: tasks_to_plain(tasks) for name, tasks in network.domains.items()},
    }  # fmt: skip
    weights = {name: value.contiguous() for name, value in network.state_dict().items()}
    with whole_file(path) as temporary:
        save_file(weights, temporary, {CHECKPOINT_FORMAT: json.dumps(content)})
    return open_backend(load_network(path), "eager")


FORMATS = {
    "onnx": (".onnx", write_onnx), "openvino": (".xml", write_openvino), "torch": (".pt2", write_torch),
    "aotinductor": (".pt2", write_aotinductor), "safetensors": (".safetensors", write_safetensors),
}  # fmt: skip
