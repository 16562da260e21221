"""Back ends that run a trained network: same call, same outputs, same metadata as `Network`.

A file that export.py wrote runs in the back end of its format; a checkpoint runs in each of them, and `auto` takes the
fastest that is installed and starts at once (README, Speed).
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import threading
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from deploy.backend_base import STATIC_SHAPES, Backend, DeviceUnavailable
from deploy.conversion import no_graph
from deploy.folding import simplified
from deploy.graph_backends import Onnx, OpenVino, TensorRt
from deploy.signature import make_signature
from geometry import taps_kept
from model import Network, load_network
from tasks import Task, completed, decoded
from user_input.values import near
from utils import pick_device, require

__all__ = ["BACKENDS", "FILES", "Backend", "fastest", "open_backend", "open_network"]


class Eager(Backend):
    """PyTorch with folded batch norms, channels_last, and weights of the wanted precision."""

    name = "eager"

    def __init__(self, network: Network, device: torch.device, precision: torch.dtype) -> None:
        super().__init__(make_signature(network, network.tasks), device)
        self.network = simplified(network).to(device, memory_format=torch.channels_last)
        for part in (self.network.encoder, self.network.decoder, *self.network.heads.values()):
            if not getattr(part, "needs_target", False):  # two-stage heads compute in fp32
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
        if not any(map(shutil.which, (os.environ.get("CC", ""), os.environ.get("CXX", ""), "gcc", "cc", "clang"))):
            raise ValueError("--backend compile needs a C compiler, such as gcc; eager needs none")
        super().__init__(network, device, precision)
        mode = "max-autotune-no-cudagraphs" if device.type == "cuda" else "default"
        self.network.compile(mode=mode, dynamic=False)


class CudaGraph(Eager):
    """One CUDA graph from the bytes to the predictions: the processor starts it once instead of every kernel.

    A graph holds for one size of images and predictions, and is made when that comes a second time. The STATIC_SHAPES
    that were used last are kept: for videos and pictures of few sizes. What a task takes of the others, such as the
    distances of boxes, is computed after the graph: how much there is to do depends on what was found.
    """

    name = "cudagraph"
    in_one = True
    capturing = threading.Lock()  # one at a time in the process

    def __init__(self, network: Network, device: torch.device, precision: torch.dtype) -> None:
        if device.type != "cuda":
            raise ValueError(f"--backend cudagraph needs a CUDA device, not {device}")
        super().__init__(network, device, precision)
        self.prepare()

    def prepare(self) -> None:
        self.graphs: OrderedDict[tuple[object, ...], tuple[torch.cuda.CUDAGraph, Tensor, dict[str, Tensor], object]]
        self.graphs, self.lock = OrderedDict(), threading.Lock()
        self.met: OrderedDict[tuple[object, ...], None] = OrderedDict()

    @torch.inference_mode()
    def predict(
        self, images: Tensor, sizes: Mapping[str, tuple[int, int]], tasks: Mapping[str, Task] | None = None
    ) -> dict[str, Tensor]:
        tasks = self.tasks if tasks is None else tasks
        key = (tuple(images.shape), *((task, sizes[name]) for name, task in tasks.items()))
        # Streams and graphs are those of the thread's current device, whichever GPU the network is on.
        with self.lock, torch.cuda.device(self.device):
            if key not in self.graphs and not self.came_before(key):
                return super().predict(images, sizes, tasks)
            if key not in self.graphs:
                while len(self.graphs) >= STATIC_SHAPES:
                    self.graphs.popitem(last=False)
                self.graphs[key] = self.capture(images, sizes, tasks)
            self.graphs.move_to_end(key)
            graph, static, found, _ = self.graphs[key]
            static.copy_(images, non_blocking=True)
            graph.replay()
            return completed({name: value.clone() for name, value in found.items()}, tasks)

    def came_before(self, key: tuple[object, ...]) -> bool:
        """Whether it is one of those that came last."""
        before = key in self.met
        self.met[key] = None
        self.met.move_to_end(key)
        if len(self.met) > 16 * STATIC_SHAPES:
            self.met.popitem(last=False)
        return before

    def capture(
        self, images: Tensor, sizes: Mapping[str, tuple[int, int]], tasks: Mapping[str, Task]
    ) -> tuple[torch.cuda.CUDAGraph, Tensor, dict[str, Tensor], object]:
        """The graph, its input, its predictions, and what must live as long as it."""
        static = images.to(self.device, memory_format=torch.channels_last, copy=True)
        # A stream of this GPU; torch.cuda.graph's own is of the one on which the process captured first.
        stream, graph = torch.cuda.Stream(self.device), torch.cuda.CUDAGraph()
        stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(stream):  # what is chosen at the first calls must not be in the graph
            for _ in range(3):
                decoded(self.outputs(static), sizes, tasks)
        torch.cuda.current_stream(self.device).wait_stream(stream)
        # thread_local: other threads pin memory and copy results meanwhile, which the default mode takes for a fault.
        recording = torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local")
        with self.capturing, taps_kept() as kept, recording:
            found = decoded(self.outputs(static), sizes, tasks)
        return graph, static, found, kept


# ---------------------------------------------------------------------------------------------- the table

BACKENDS: dict[str, type[Backend]] = {
    kind.name: kind for kind in (Eager, Compiled, CudaGraph, Onnx, TensorRt, OpenVino)
}
FILES = {".onnx": Onnx, ".xml": OpenVino}


def fastest(device: torch.device) -> str:
    """The name of the fastest back end here that needs no compilation for each new size."""
    if device.type == "cuda":
        return "eager"
    return "openvino" if importlib.util.find_spec("openvino") else "eager"


def open_backend(
    source: Path | Network | Backend,
    name: str = "auto",
    device: torch.device | str | None = None,
    precision: str = "auto",
    few: bool = False,
) -> Backend:
    """A checkpoint, a file of export.py, or a network -> what computes it. Raises ValueError or FileNotFoundError.

    device: None is the CPU; "auto" is a GPU where there is one on which the back end runs. few: for so few images that
    a back end which takes seconds to set up does not pay.
    """
    if isinstance(source, Backend):
        return source
    may_fall_back = device == "auto"
    device = pick_device(device) if isinstance(device, str) else device or torch.device("cpu")
    if name not in ("auto", *BACKENDS):
        raise ValueError(f"--backend: unknown name {name!r}{near(name, BACKENDS)}; known: auto, {', '.join(BACKENDS)}")
    suffix = source.suffix.lower() if isinstance(source, Path) else ""
    if suffix in FILES:
        kind = FILES[suffix]
        if not source.is_file():
            raise FileNotFoundError(f"{source}: no such file")
        if name == "tensorrt" and kind is Onnx:
            kind = TensorRt
        elif name not in ("auto", kind.name):
            raise ValueError(f"--backend {name}: {source} runs in {kind.name}")
    elif suffix == ".pt2":
        raise ValueError(
            f"{source}: programs of PyTorch, which may hold machine code, are for other programs "
            "(torch.export.load, torch._inductor.aoti_load_package); give the checkpoint, or an .onnx or .xml file"
        )
    else:
        require(*(BACKENDS[name].needs if name != "auto" else ()))
        source = load_network(source) if isinstance(source, Path) else source
        reason = no_graph(source)
        if name == "auto":
            name = "eager" if few or reason else fastest(device)
        elif reason and name != "eager":
            raise ValueError(f"--backend {name}: {reason}: eager alone runs it")
        kind = BACKENDS[name]
    require(*kind.needs)
    try:
        return kind(source, device, kind.pick_precision(precision, device))
    except DeviceUnavailable:
        if not may_fall_back or name == "tensorrt":
            raise
        device = torch.device("cpu")
        return kind(source, device, kind.pick_precision(precision, device))


def open_network(
    path: Path, backend: str = "", device: torch.device | str | None = None, precision: str = "auto", cfg: str = ""
) -> Network | Backend:
    """A checkpoint's network as it was trained, or in a back end; a file of export.py is in one. cfg: of .weights."""
    if backend or path.suffix.lower() in (*FILES, ".pt2"):
        source = load_network(path, cfg) if cfg else path
        return open_backend(source, backend or "auto", device, precision)
    return load_network(path, cfg)
