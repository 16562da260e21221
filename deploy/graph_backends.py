"""Back ends that run a graph, from a file of export.py or made from a network: ONNX Runtime, TensorRT, OpenVINO."""

from __future__ import annotations

import functools
import threading
from pathlib import Path
from queue import SimpleQueue
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from deploy.backend_base import STATIC_SHAPES, Backend, DeviceUnavailable
from deploy.conversion import to_onnx, to_openvino
from deploy.signature import INPUT, METADATA_KEY, MIN_DYNAMIC_SIDE, Signature, make_signature, network_input
from model import Network
from utils import pick_precision


def _one_line(problem: Exception) -> str:
    return " ".join(str(problem).split())


class Onnx(Backend):
    """ONNX Runtime."""

    name, needs = "onnxruntime", ("onnxruntime",)
    min_side = MIN_DYNAMIC_SIDE
    providers: ClassVar = ("CUDAExecutionProvider", "CPUExecutionProvider")

    def __init__(self, source: Network | Path, device: torch.device, precision: torch.dtype) -> None:
        import onnxruntime

        onnxruntime.set_default_logger_severity(3)
        if precision != torch.float32:
            raise ValueError(f"--precision: {self.name} computes in fp32, or in what the file was exported with")
        where = "" if isinstance(source, Network) else str(source)
        if self.name == "tensorrt" and device.type != "cuda":
            raise ValueError(f"--backend tensorrt needs a CUDA device, not {device}")
        wanted = [item for item in self.providers if device.type == "cuda" or item == "CPUExecutionProvider"]
        available = onnxruntime.get_available_providers()
        if wanted[0] not in available:
            raise DeviceUnavailable(
                f"--backend {self.name}: this onnxruntime has no {wanted[0]}; it has {', '.join(available)}; "
                "use --device cpu"
            )
        content = where or to_onnx(source, make_signature(source, source.tasks)).SerializeToString()
        gpu = {"device_id": str(device.index or 0)}
        try:
            # onnxruntime has error classes of its own for each way in which a file is not a model.
            self.session = onnxruntime.InferenceSession(
                content,
                self.session_options(),
                providers=[(item, {} if item.startswith("CPU") else gpu) for item in wanted],
            )
        except Exception as problem:
            raise ValueError(f"{where}: not a model that onnxruntime reads ({_one_line(problem)})") from None
        check_provider(self.name, wanted[0], self.session.get_providers())
        text = self.session.get_modelmeta().custom_metadata_map.get(METADATA_KEY)
        if text is None:
            raise ValueError(f"{where}: not a file of export.py: it does not say what its outputs are")
        super().__init__(Signature.from_json(text, where), torch.device("cpu"), where, device)

    @classmethod
    def session_options(cls) -> object:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        # Its threads would go on turning for a while after each call, against those of what comes after the network.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        return options

    @classmethod
    def pick_precision(cls, name: str, device: torch.device) -> torch.dtype:
        return torch.float32 if name == "auto" else pick_precision(name, device)

    def run(self, images: Tensor) -> list[Tensor]:
        try:
            values = self.session.run(None, {INPUT: network_input(images, self.signature)})
        except Exception as problem:  # as above; the memory that a graph of others wants is one of them
            raise ValueError(f"{self.where}: onnxruntime cannot run it ({_one_line(problem)})") from None
        return [as_tensor(value, self.where) for value in values]


def check_provider(backend: str, wanted: str, loaded: list[str]) -> None:
    """Raises DeviceUnavailable when onnxruntime could not load what it was built with, which it says in its log alone:
    a library of CUDA or TensorRT is missing, and the next provider took its place."""
    if wanted not in loaded:
        raise DeviceUnavailable(
            f"--backend {backend}: onnxruntime could not load {wanted} (a library of CUDA, cuDNN or TensorRT is "
            f"missing, or of another version) and would run in {loaded[0]}; use --device cpu"
        )


def as_tensor(value: object, where: str) -> Tensor:
    """An output of another program -> tensor; half and double floats in fp32. Raises ValueError for other types."""
    if not isinstance(value, np.ndarray) or value.dtype.kind not in "iuf":
        kind = getattr(value, "dtype", type(value).__name__)
        raise ValueError(f"{where}: an output of it is {kind}; expected numbers")
    if value.dtype.kind == "f":
        return torch.from_numpy(value.astype(np.float32, copy=False))
    return torch.from_numpy(value.astype(np.int64) if value.dtype.kind == "u" and value.itemsize > 1 else value)


class TensorRt(Onnx):
    """TensorRT, through ONNX Runtime."""

    name = "tensorrt"
    providers: ClassVar = ("TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider")


@functools.cache
def openvino_core() -> object:
    """One Core for the process.

    OpenVINO 2026.4 installs a signal stack (sigaltstack) with each Core and removes it when that is destroyed. Several
    Cores destroyed out of order leave a dangling one, and the next signal crashes the process.
    """
    import openvino

    return openvino.Core()


class OpenVino(Backend):
    """OpenVINO, for the CPU: bf16 where the processor has it, unless another precision is wanted."""

    name, needs = "openvino", ("openvino",)
    min_side = MIN_DYNAMIC_SIDE

    def __init__(self, source: Network | Path, device: torch.device, precision: torch.dtype | None) -> None:
        where = "" if isinstance(source, Network) else str(source)
        if not where:
            signature = make_signature(source, source.tasks)
            self.model = to_openvino(source, signature)
        else:
            try:
                # openvino has one error class for everything.
                self.model = openvino_core().read_model(source)
            except Exception as problem:
                raise ValueError(f"{where}: not a model that openvino reads ({_one_line(problem)})") from None
            if METADATA_KEY not in self.model.rt_info:
                raise ValueError(f"{where}: not a file of export.py: it does not say what its outputs are")
            signature = Signature.from_json(self.model.rt_info[METADATA_KEY].astype(str), where)
            if len(self.model.outputs) != len(signature.tasks):
                raise ValueError(f"{where}: it has {len(self.model.outputs)} outputs for {len(signature.tasks)} tasks")
        super().__init__(signature, torch.device("cpu"), where)
        hint = {torch.float32: "f32", torch.bfloat16: "bf16", torch.float16: "f16"}
        self.threads = torch.get_num_threads()
        self.options = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": self.threads}
        if precision is not None:
            self.options["INFERENCE_PRECISION_HINT"] = hint[precision]
        self.chosen = torch.float32
        self.idle: dict[tuple[int, ...], SimpleQueue] = {}  # shape of the input, () for any -> requests not in use
        self.lock = threading.Lock()

    @property
    def arithmetic(self) -> torch.dtype:
        """Once it has run: what OpenVINO chose."""
        return torch.int8 if self.signature.int8 else self.chosen

    @classmethod
    def pick_precision(cls, name: str, device: torch.device) -> torch.dtype | None:
        return None if name == "auto" else pick_precision(name, device)

    def concurrent(self) -> int:
        self.options |= {"PERFORMANCE_HINT": "THROUGHPUT", "NUM_STREAMS": self.threads}
        self.idle.clear()
        return self.threads

    def requests(self, shape: tuple[int, ...]) -> SimpleQueue:
        with self.lock:
            idle = self.idle.get(shape) or self.idle.get(())
            if idle is None:
                # A graph for one size is faster, but each takes seconds to make: then one for any size takes over.
                model, key = self.model.clone(), shape if len(self.idle) < STATIC_SHAPES else ()
                if key:
                    model.reshape(list(key))
                compiled = openvino_core().compile_model(model, "CPU", self.options)
                name = compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name()
                self.chosen = {"bf16": torch.bfloat16, "f16": torch.float16}.get(name, torch.float32)
                idle = self.idle[key] = SimpleQueue()
                for _ in range(self.options.get("NUM_STREAMS", 1)):
                    idle.put(compiled.create_infer_request())
            return idle

    def run(self, images: Tensor) -> list[Tensor]:
        pixels = network_input(images, self.signature)
        try:
            idle = self.requests(pixels.shape)
            request = idle.get()
            try:
                request.infer([pixels], share_inputs=True)
                values = [request.get_output_tensor(i).data.copy() for i in range(len(self.tasks))]
            finally:
                idle.put(request)
        except RuntimeError as problem:  # openvino has one error class for everything
            raise ValueError(f"{self.where or 'the network'}: openvino cannot run it ({_one_line(problem)})") from None
        return [as_tensor(value, self.where) for value in values]
