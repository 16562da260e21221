"""File formats: a network as ONNX, OpenVINO IR, torch.export program, AOTInductor package, or safetensors.

Each `write_...(network, signature, path, calibration)` writes the file and opens it again as a back end; `calibration`
are images (3, H, W) uint8 for int8, or nothing. `replacing` makes the writing atomic.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from config import plain
from deploy.backends import Backend, open_backend
from deploy.conversion import Graph, to_onnx, to_openvino
from deploy.folding import simplified
from deploy.signature import (
    INPUT,
    METADATA_KEY,
    MIN_DYNAMIC_SIDE,
    Signature,
    dynamic_shapes,
    example_image,
    network_input,
)
from model import Network, load_network
from networks.checkpoints import CHECKPOINT_FORMAT, CHECKPOINT_VERSION
from networks.darknet_files import write_darknet
from tasks import tasks_to_plain
from utils import require


@contextlib.contextmanager
def replacing(output: Path) -> Iterator[Path]:
    """Atomic write of a file, or of an OpenVINO pair: a temporary path with `output`'s name, whose files take the place
    of `output`'s at the end. After an error what was there stays.

    Raises OSError or ValueError that name `output`.
    """
    folder = ""
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=output.parent, prefix=".") as folder:
            yield Path(folder) / output.name
            # The named file last: with it the pair is there.
            for file in sorted(Path(folder).iterdir(), key=lambda file: file.name == output.name):
                with file.open("rb") as content:
                    os.fsync(content.fileno())
                file.replace(output.with_name(file.name))
    except OSError as problem:
        reason = problem.strerror or str(problem).removeprefix(f"{Path(folder) / output.name}: ")
        raise OSError(f"{output}: could not be written, what was there stays ({reason})") from None
    except ValueError as problem:
        raise ValueError(str(problem).replace(str(Path(folder) / output.name), str(output))) from None


@contextlib.contextmanager
def saving(path: Path) -> Iterator[None]:
    """Turns what the libraries raise for a full disk, each its own error class, into OSError."""
    try:
        yield
    except (RuntimeError, SafetensorError) as problem:
        free = shutil.disk_usage(path.parent).free / 2**20
        raise OSError(f"{' '.join(str(problem).split())}; {free:.0f} MiB are free on its disk") from None


def quantize(model: object, signature: Signature, calibration: Sequence[Tensor]) -> object:
    """Post-training static quantisation by NNCF: weights and activations in 8 bits, ranges from the images."""
    require("nncf")
    import nncf

    batch = max(1, signature.batch)
    data = nncf.Dataset(
        calibration, lambda image: {INPUT: network_input(image[None].expand(batch, -1, -1, -1), signature)}
    )
    # A graph of a fixed size resizes its input by two matrices, which need their precision.
    resizing = signature.network_size != signature.size
    return nncf.quantize(
        model, data, subset_size=len(calibration), preset=nncf.QuantizationPreset.MIXED,
        target_device=nncf.TargetDevice.CPU,
        ignored_scope=nncf.IgnoredScope(types=["MatMul"], validate=False) if resizing else None,
    )  # fmt: skip


def write_onnx(network: Network, signature: Signature, path: Path, calibration: Sequence[Tensor]) -> Backend:
    model = to_onnx(network, signature)
    if calibration:
        model = quantize(model, signature, calibration)
    path.write_bytes(model.SerializeToString())
    return open_backend(path)


def write_openvino(network: Network, signature: Signature, path: Path, calibration: Sequence[Tensor]) -> Backend:
    model = to_openvino(network, signature)
    import openvino

    if calibration:
        model = quantize(model, signature, calibration)
    with saving(path):
        openvino.save_model(model, path, compress_to_fp16=False)
    # Against the checkpoint in fp32: what bf16 changes is not the file's doing.
    return open_backend(path, precision="fp32")


class Program(Backend):
    """A torch.export program that was just written."""

    name = "torch"
    min_side = MIN_DYNAMIC_SIDE

    def __init__(self, program: Callable[[Tensor], Sequence[Tensor]], signature: Signature, where: str) -> None:
        super().__init__(signature, torch.device("cpu"), where)
        self.program = program

    def run(self, images: Tensor) -> list[Tensor]:
        return list(self.program(torch.from_numpy(network_input(images, self.signature))))


def exported(network: Network, signature: Signature) -> torch.export.ExportedProgram:
    graph = Graph(simplified(network), signature).eval()
    with torch.no_grad():
        return torch.export.export(graph, (example_image(signature),), dynamic_shapes=dynamic_shapes(signature))


def write_torch(network: Network, signature: Signature, path: Path, calibration: Sequence[Tensor]) -> Backend:
    extra = {"signature.json": signature.to_json(), **signature.in_words()}
    with saving(path), path.open("wb") as file:
        torch.export.save(exported(network, signature), file, extra_files=extra)
    return Program(torch.export.load(path).module(), signature, str(path))


def write_aotinductor(network: Network, signature: Signature, path: Path, calibration: Sequence[Tensor]) -> Backend:
    if not shutil.which("g++") and not shutil.which("clang++"):
        raise ValueError("--format aotinductor compiles C++: it needs g++ or clang++")
    program = exported(network, signature)
    metadata = {METADATA_KEY: signature.to_json(), **signature.in_words()}
    with tempfile.TemporaryDirectory() as folder:
        package = torch._inductor.aoti_compile_and_package(
            program, package_path=str(Path(folder) / "graph.pt2"),
            inductor_configs={"aot_inductor.metadata": metadata},
        )  # fmt: skip
        shutil.copyfile(package, path)
    return Program(torch._inductor.aoti_load_package(str(path)), signature, str(path))


def write_safetensors(network: Network, signature: Signature, path: Path, calibration: Sequence[Tensor]) -> Backend:
    content = {
        "version": CHECKPOINT_VERSION, "config": plain(network.config), "tasks": tasks_to_plain(network.tasks),
        "domains": {name: tasks_to_plain(tasks) for name, tasks in network.domains.items()},
        "cameras": network.cameras,
    }  # fmt: skip
    weights = {name: value.contiguous() for name, value in network.state_dict().items()}
    with saving(path):
        save_file(weights, path, {CHECKPOINT_FORMAT: json.dumps(content)})
    return open_backend(load_network(path), "eager")


def write_weights(network: Network, signature: Signature, path: Path, calibration: Sequence[Tensor]) -> Backend:
    classes = next(iter(network.tasks.values())).section().get("classes", ())
    write_darknet(path, network.config, classes, network.state_dict())
    return open_backend(load_network(path), "eager")


FORMATS = {
    "onnx": (".onnx", write_onnx), "openvino": (".xml", write_openvino), "torch": (".pt2", write_torch),
    "aotinductor": (".pt2", write_aotinductor), "safetensors": (".safetensors", write_safetensors),
    "darknet": (".weights", write_weights),
}  # fmt: skip
