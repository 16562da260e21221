"""Back ends: what computes the network. Each is called like a Network, gives the same, and knows the same of itself.

A file that export.py wrote runs in the back end of its format; a checkpoint runs in each of them, and `auto` takes the
fastest that is installed (README, Speed).
"""

from __future__ import annotations

import functools
import importlib.util
import threading
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from queue import SimpleQueue
from typing import ClassVar

import torch
from torch import Tensor

from config import near
from deploy.conversion import to_onnx, to_openvino
from deploy.folding import simplified
from deploy.signature import INPUT, METADATA_KEY, Signature, network_input, sign
from geometry import fitted_size
from model import Network, decode, load_network
from tasks import Task
from utils import pick_precision, require

STATIC_SHAPES = 4  # as many sizes of images get a graph of their own; then one for any size takes over


class Backend(ABC):
    """Images (B, 3, H, W) uint8 -> {task: raw output (B, channels, h, w)}, like a Network, without gradients."""

    name: ClassVar[str]
    needs: ClassVar[tuple[str, ...]] = ()  # packages

    def __init__(self, signature: Signature, device: torch.device) -> None:
        self.signature, self.device = signature, device
        self.tasks, self.config, self.domains = signature.tasks, signature.config, signature.domains

    def concurrent(self) -> int:
        """Before many images: makes calls from several threads at once pay off, and returns from how many."""
        return 1

    @property
    def arithmetic(self) -> torch.dtype:
        """What most of the work is done in."""
        return torch.int8 if self.signature.int8 else torch.float32

    @abstractmethod
    def run(self, images: Tensor) -> list[Tensor]:
        """images (B, 3, H, W) uint8 -> the graph's outputs on `device`, which are the caller's to keep."""

    @classmethod
    def pick_precision(cls, name: str, device: torch.device) -> torch.dtype | None:
        """auto | fp32 | bf16 | fp16 -> what to compute in; None leaves it to the back end."""
        return pick_precision(name, device)

    def input_size(self, height: int, width: int) -> tuple[int, int]:
        """To which size a picture is brought."""
        fixed = self.signature.size
        if fixed is None:
            return fitted_size(height, width, self.config.long_side)
        scale = min(fixed[0] / height, fixed[1] / width)
        # In whole pixels of the raw output, so that what is added to fill the graph's size can be cut off again.
        return tuple(
            min(side, max(4, 4 * round(scale * of / 4))) for side, of in zip(fixed, (height, width), strict=True)
        )

    def outputs(self, images: Tensor) -> dict[str, Tensor]:
        fixed, (height, width) = self.signature.size, images.shape[-2:]
        if fixed is None or fixed == (height, width):
            return dict(zip(self.tasks, self.run(images), strict=True))
        if height > fixed[0] or width > fixed[1]:
            raise ValueError(f"images of {width}x{height} do not fit into a graph for {fixed[1]}x{fixed[0]}")
        rows, columns = (torch.arange(side).clamp(max=of - 1) for side, of in zip(fixed, (height, width), strict=True))
        values = self.run(images[:, :, rows][..., columns])
        raws = zip(self.tasks.items(), values, strict=True)
        return {name: task.crop(value, (height, width), fixed) for (name, task), value in raws}

    @torch.inference_mode()
    def __call__(self, images: Tensor) -> dict[str, Tensor]:
        """Floats in 0..1 are rounded to 8 bits. Raises ValueError when the graph gives predictions, not raw outputs."""
        if self.signature.units_out:
            raise ValueError("this file has its post-processing inside, which leaves no --mirror, --scales or --domain")
        if images.is_floating_point():
            images = (images * 255).round().to(torch.uint8)
        return self.outputs(images)

    @torch.inference_mode()
    def predict(
        self, images: Tensor, sizes: Mapping[str, tuple[int, int]], tasks: Mapping[str, Task] | None = None
    ) -> dict[str, Tensor]:
        """As Network.predict."""
        return self.finish(self.outputs(images), images.shape[-2:], sizes, self.tasks if tasks is None else tasks)

    def finish(
        self,
        outputs: Mapping[str, Tensor],
        seen: tuple[int, int],
        sizes: Mapping[str, tuple[int, int]],
        tasks: Mapping[str, Task],
    ) -> dict[str, Tensor]:
        """`outputs` for images of the size `seen` -> {task: prediction (B, ...) at sizes[task]}."""
        if self.signature.units_out:
            return {name: task.resize(outputs[name], seen, sizes[name]) for name, task in tasks.items()}
        return decode(outputs, sizes, tasks)


# ---------------------------------------------------------------------------------------------- PyTorch


class Eager(Backend):
    """PyTorch with folded batch norms, channels_last, and weights of the wanted precision."""

    name = "eager"

    def __init__(self, network: Network, device: torch.device, precision: torch.dtype) -> None:
        super().__init__(sign(network, network.tasks), device)
        self.network = simplified(network).to(device, memory_format=torch.channels_last)
        for part in (self.network.encoder, self.network.decoder, self.network.heads):
            part.to(precision)
        self.precision = precision

    @property
    def arithmetic(self) -> torch.dtype:
        return self.precision

    def run(self, images: Tensor) -> list[Tensor]:
        images = images.to(self.device, non_blocking=True, memory_format=torch.channels_last)
        return list(self.network(images).values())


class Compiled(Eager):
    """torch.compile; the first image of each size takes a minute."""

    name = "compile"

    def __init__(self, network: Network, device: torch.device, precision: torch.dtype) -> None:
        super().__init__(network, device, precision)
        mode = "max-autotune-no-cudagraphs" if device.type == "cuda" else "default"
        self.network.compile(mode=mode, dynamic=False)


class CudaGraph(Compiled):
    """One CUDA graph from the bytes to the predictions: the processor starts it once instead of every kernel."""

    name = "cudagraph"

    def __init__(self, network: Network, device: torch.device, precision: torch.dtype) -> None:
        if device.type != "cuda":
            raise ValueError(f"--backend cudagraph needs a CUDA device, not {device}")
        if importlib.util.find_spec("triton"):
            super().__init__(network, device, precision)
        else:
            Eager.__init__(self, network, device, precision)
        self.graphs: dict[tuple[object, ...], tuple[torch.cuda.CUDAGraph, Tensor, dict[str, Tensor]]] = {}

    @torch.inference_mode()
    def predict(
        self, images: Tensor, sizes: Mapping[str, tuple[int, int]], tasks: Mapping[str, Task] | None = None
    ) -> dict[str, Tensor]:
        tasks = self.tasks if tasks is None else tasks
        key = (tuple(images.shape), *((task, sizes[name]) for name, task in tasks.items()))
        if key not in self.graphs:
            static = images.to(self.device, memory_format=torch.channels_last, copy=True)
            stream = torch.cuda.Stream(self.device)
            stream.wait_stream(torch.cuda.current_stream(self.device))
            with torch.cuda.stream(stream):  # what is chosen or compiled at the first calls must not be in the graph
                for _ in range(3):
                    super().predict(static, sizes, tasks)
            torch.cuda.current_stream(self.device).wait_stream(stream)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                found = super().predict(static, sizes, tasks)
            if len(self.graphs) >= STATIC_SHAPES:
                self.graphs.pop(next(iter(self.graphs)))
            self.graphs[key] = graph, static, found
        graph, static, found = self.graphs[key]
        static.copy_(images, non_blocking=True)
        graph.replay()
        return {name: value.clone() for name, value in found.items()}


# ---------------------------------------------------------------------------------------------- graphs


class Onnx(Backend):
    """ONNX Runtime."""

    name, needs = "onnxruntime", ("onnxruntime",)
    providers: ClassVar = ("CUDAExecutionProvider", "CPUExecutionProvider")

    def __init__(self, source: Network | Path, device: torch.device, precision: torch.dtype) -> None:
        import onnxruntime

        onnxruntime.set_default_logger_severity(3)
        if isinstance(source, Network):
            if precision != torch.float32:
                raise ValueError(f"--backend {self.name} computes in fp32; export a file for other precisions")
            model = to_onnx(source, sign(source, source.tasks))
            content: str | bytes = model.SerializeToString()
            where = "the network"
        else:
            content = where = str(source)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        # Its threads would go on turning for a while after each call, against those of what comes after the network.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        if self.name == "tensorrt" and device.type != "cuda":
            raise ValueError(f"--backend tensorrt needs a CUDA device, not {device}")
        wanted = [item for item in self.providers if device.type == "cuda" or item == "CPUExecutionProvider"]
        available = onnxruntime.get_available_providers()
        if wanted[0] not in available:
            raise ValueError(
                f"--backend {self.name}: this onnxruntime has no {wanted[0]}; it has {', '.join(available)}"
            )
        try:
            # onnxruntime has error classes of its own for each way in which a file is not a model.
            self.session = onnxruntime.InferenceSession(content, options, providers=wanted)
        except Exception as problem:
            raise ValueError(
                f"{where}: not a model that onnxruntime reads ({' '.join(str(problem).split())})"
            ) from None
        text = self.session.get_modelmeta().custom_metadata_map.get(METADATA_KEY)
        if text is None:
            raise ValueError(f"{where}: not a file of export.py: it does not say what its outputs are")
        super().__init__(Signature.from_json(text, where), torch.device("cpu"))

    @classmethod
    def pick_precision(cls, name: str, device: torch.device) -> torch.dtype:
        return torch.float32 if name == "auto" else pick_precision(name, device)

    def run(self, images: Tensor) -> list[Tensor]:
        return [
            torch.from_numpy(value) for value in self.session.run(None, {INPUT: network_input(images, self.signature)})
        ]


class TensorRt(Onnx):
    """TensorRT, through ONNX Runtime."""

    name = "tensorrt"
    providers: ClassVar = ("TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider")


@functools.cache
def openvino_core() -> object:
    """One for the process. Each gives the thread a stack for signals and takes it back when it goes; where they go in
    another order than they came, a stack stays set that is gone, and the next signal ends the process (2026.4).
    """
    import openvino

    return openvino.Core()


class OpenVino(Backend):
    """OpenVINO, for the CPU: bf16 where the processor has it, unless another precision is wanted."""

    name, needs = "openvino", ("openvino",)

    def __init__(self, source: Network | Path, device: torch.device, precision: torch.dtype | None) -> None:
        if isinstance(source, Network):
            signature = sign(source, source.tasks)
            self.model = to_openvino(source, signature)
        else:
            try:
                # openvino has one error class for everything.
                self.model = openvino_core().read_model(source)
            except Exception as problem:
                raise ValueError(
                    f"{source}: not a model that openvino reads ({' '.join(str(problem).split())})"
                ) from None
            if METADATA_KEY not in self.model.rt_info:
                raise ValueError(f"{source}: not a file of export.py: it does not say what its outputs are")
            signature = Signature.from_json(self.model.rt_info[METADATA_KEY].astype(str), str(source))
        super().__init__(signature, torch.device("cpu"))
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
                # A graph for one size is faster, but each takes seconds to make.
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
        idle = self.requests(pixels.shape)
        request = idle.get()
        try:
            request.infer([pixels], share_inputs=True)
            return [torch.from_numpy(request.get_output_tensor(i).data.copy()) for i in range(len(self.tasks))]
        finally:
            idle.put(request)


# ---------------------------------------------------------------------------------------------- the table

BACKENDS: dict[str, type[Backend]] = {
    kind.name: kind for kind in (Eager, Compiled, CudaGraph, Onnx, TensorRt, OpenVino)
}
FILES = {".onnx": Onnx, ".xml": OpenVino}


def fastest(device: torch.device) -> str:
    """The name of the fastest back end here."""
    if device.type == "cuda":
        return "cudagraph"
    return "openvino" if importlib.util.find_spec("openvino") else "eager"


def open_backend(
    source: Path | Network | Backend, name: str = "auto", device: torch.device | None = None, precision: str = "auto"
) -> Backend:
    """A checkpoint, a file of export.py, or a network -> what computes it. Raises ValueError or FileNotFoundError."""
    if isinstance(source, Backend):
        return source
    device = device or torch.device("cpu")
    kind = FILES.get(source.suffix.lower()) if isinstance(source, Path) else None
    if kind is not None:
        if not source.is_file():
            raise FileNotFoundError(f"{source}: no such file")
        if name == "tensorrt" and kind is Onnx:
            kind = TensorRt
        elif name not in ("auto", kind.name):
            raise ValueError(f"--backend {name}: {source} runs in {kind.name}")
    else:
        name = fastest(device) if name == "auto" else name
        if name not in BACKENDS:
            raise ValueError(
                f"--backend: unknown name {name!r}{near(name, BACKENDS)}; known: auto, {', '.join(BACKENDS)}"
            )
        kind = BACKENDS[name]
        source = load_network(source) if isinstance(source, Path) else source
    require(*kind.needs)
    return kind(source, device, kind.pick_precision(precision, device))


def open_network(
    path: Path, backend: str = "", device: torch.device | None = None, precision: str = "auto"
) -> Network | Backend:
    """A checkpoint's network as it was trained, or in a back end; a file of export.py is in one."""
    if backend or path.suffix in FILES:
        return open_backend(path, backend or "auto", device, precision)
    return load_network(path)
