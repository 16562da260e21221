"""Where a network's milliseconds go, layer by layer, as OpenVINO and ONNX Runtime report them. Run by benchmark.py."""

from __future__ import annotations

import json
import math
import statistics
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.latency import write_int8
from benchmarks.timing import MakeNetwork, Options, bandwidth, describe, in_turn, peak_rate, print_table
from deploy.graph_backends import Onnx, OpenVino
from deploy.signature import network_input
from model import Network
from user_input.values import near

WARM_UP = 3  # calls before those that are measured
SLOWEST = 8  # layers that have a row of their own
LEAST_SHARE = 0.01  # of all milliseconds: kinds of layers below it share a row

# What the programs call a layer -> its kind; convolutions are told apart by their weights.
KINDS = {
    "MaxPool": "max-pooling", "Pooling": "max-pooling", "Interpolate": "upsampling", "Resize": "upsampling",
    "Reorder": "other order of the numbers", "Transpose": "other order of the numbers",
    "ReorderInput": "other order of the numbers", "ReorderOutput": "other order of the numbers",
    "Subgraph": "number by number", "Eltwise": "number by number", "Add": "number by number", "Mul": "number by number",
    "Clip": "number by number", "Relu": "number by number", "Convert": "number by number",
}  # fmt: skip
WEIGHTS_AT = {"Convolution": 1, "Conv": 1, "FusedConv": 1, "QLinearConv": 3}  # of convolutions: which input
# Names of types, OpenVINO's and ONNX Runtime's -> torch's. Integers count as int8: they are maps of quantized networks.
TYPES = {
    "f32": torch.float32, "float": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16,
    "float16": torch.float16, "u8": torch.int8, "i8": torch.int8, "uint8": torch.int8, "int8": torch.int8,
}  # fmt: skip
NAMES = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16", torch.int8: "int8"}


@dataclass(frozen=True)
class Layer:
    """A layer as a program runs it, in which several of the network's may be one."""

    name: str
    kind: str
    arithmetic: str  # fp32 | bf16 | fp16 | int8 | the program's name of another type
    ms: float
    multiply_adds: int  # of convolutions
    moved: int  # bytes read and written, weights included


Shape = Sequence[int]
Value = tuple[str, Shape]  # type, shape


def kind_of(program_kind: str, weights: Shape | None, groups: int) -> str:
    if weights is None:
        return KINDS.get(program_kind, program_kind)
    if groups > 1 and weights[1] == 1:
        return "convolution, depthwise"
    return f"convolution {weights[-2]}x{weights[-1]}"


def layer_of(name: str, program_kind: str, ms: float, inputs: Sequence[Value], outputs: Sequence[Value]) -> Layer:
    """inputs, outputs: types and shapes. OpenVINO's weights of a grouped convolution are (groups, out, in, kernel)."""
    weights, groups, operations, place = None, 1, 0, WEIGHTS_AT.get(program_kind, len(inputs))
    if place < len(inputs):
        weights = tuple(inputs[place][1])
        if len(weights) == len(outputs[0][1]) + 1:
            weights = (weights[0] * weights[1], *weights[2:])
        groups = max(1, inputs[0][1][1] // max(1, weights[1]))
        operations = math.prod(outputs[0][1]) * math.prod(weights[1:])
    moved = sum(math.prod(shape) * size_of(kind) for kind, shape in (*inputs, *outputs))
    arithmetic = inputs[0][0] if inputs else outputs[0][0]
    known = TYPES.get(arithmetic)
    return Layer(
        name, kind_of(program_kind, weights, groups), NAMES[known] if known else arithmetic, ms, operations, moved
    )


def size_of(kind: str) -> int:
    """Bytes of a number."""
    return TYPES[kind].itemsize if kind in TYPES else 8 if "64" in kind else 4


# ---------------------------------------------------------------------------------------------- the two programs


def openvino_layers(backend: OpenVino, images: Tensor, repeats: int) -> list[Layer]:
    """The layers that OpenVINO ran, in order, with their median milliseconds. Changes the back end's options."""
    backend.options |= {"PERF_COUNT": True}
    backend.idle.clear()
    pixels = network_input(images, backend.signature)
    request = backend.requests(pixels.shape).get()
    times: dict[str, list[float]] = {}
    for call in range(WARM_UP + repeats):
        request.infer([pixels], share_inputs=True)
        for entry in request.get_profiling_info() if call >= WARM_UP else ():
            times.setdefault(entry.node_name, []).append(1000 * entry.real_time.total_seconds())
    layers = []
    for node in request.get_compiled_model().get_runtime_model().get_ordered_ops():
        about, name = node.get_rt_info(), node.get_friendly_name()
        kind = _text(about["layerType"])
        if kind in ("Const", "Input", "Output", "Result") or name not in times:
            continue
        values = [[(item.get_element_type().get_type_name(), tuple(item.get_shape())) for item in items]
                  for items in (node.inputs(), node.outputs())]  # fmt: skip
        layers.append(layer_of(name, kind, statistics.median(times[name]), *values))
    return layers


def _text(entry: object) -> str:
    return str(getattr(entry, "value", entry))


def onnxruntime_layers(source: Network | Path, images: Tensor, repeats: int) -> list[Layer]:
    """The layers that ONNX Runtime ran, in order, with their median milliseconds."""
    with tempfile.TemporaryDirectory() as folder:

        class Profiled(Onnx):
            @classmethod
            def session_options(cls) -> object:
                options = super().session_options()
                options.enable_profiling, options.profile_file_prefix = True, str(Path(folder) / "profile")
                return options

        backend = Profiled(source, torch.device("cpu"), torch.float32)
        for _ in range(WARM_UP + repeats):
            backend.run(images)
        events = json.loads(Path(backend.session.end_profiling()).read_text())
    found: dict[str, list[Mapping[str, object]]] = {}
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            found.setdefault(event["name"].removesuffix("_kernel_time"), []).append(event)
    return [_onnxruntime_layer(name, calls[-repeats:]) for name, calls in found.items()]


def _onnxruntime_layer(name: str, calls: Sequence[Mapping[str, object]]) -> Layer:
    about = calls[0]["args"]
    values = [[next(iter(item.items())) for item in about[part] if item] for part in
              ("input_type_shape", "output_type_shape")]  # fmt: skip
    ms = statistics.median(call["dur"] / 1000 for call in calls)
    return layer_of(name, about["op_name"], ms, *values)


# ---------------------------------------------------------------------------------------------- the tables


ROWS = ("openvino", "openvino fp32", "openvino int8", "onnxruntime")


def measure_layers(
    options: Options, networks: Mapping[str, MakeNetwork], rows: Sequence[str] = (), files: Sequence[Path] = ()
) -> list[dict[str, object]]:
    """Layers of each network in each of `rows` (of ROWS; () = the first), and those of files of export.py.

    Raises ValueError for an unknown row, for a CUDA device and for a file of another kind.
    """
    if options.device.type != "cpu":
        raise ValueError(f"layers are measured on the CPU, not on {options.device}: --device cpu")
    for row in rows:
        if row not in ROWS:
            raise ValueError(f"--rows: unknown name {row!r}{near(row, ROWS)}; known: {', '.join(ROWS)}")
    results = []
    bound = Bound(options.device)
    with tempfile.TemporaryDirectory() as folder:
        for name, make in networks.items():
            for row in rows or (() if files else ROWS[:1]):
                network = options.network(make)
                source: Network | Path = network
                if row == "openvino int8":
                    source = write_int8(network, Path(folder) / f"{len(results)}.xml", options.picture())
                about = f"`{name}`, {describe(network.tasks)}"
                results.append(measure_source(options, source, about, row, bound))
    for path in files:
        results.append(measure_source(options, path, f"`{path.name}`", "", bound))
    return results


def measure_source(options: Options, source: Network | Path, about: str, row: str, bound: Bound) -> dict[str, object]:
    """row: of ROWS, "" = a file in the program of its kind."""
    in_network = not isinstance(source, Path)
    precision = "fp32" if row == "openvino fp32" else ""
    predictor = options.predictor(source, row.split()[0] if in_network else "auto", precision)
    backend, images = predictor.backend, predictor.pixels([options.picture()])
    if not isinstance(backend, OpenVino | Onnx):
        raise ValueError(f"--files: {source} runs in {backend.name}, which does not say what its layers take")
    whole = in_turn({"all": lambda: backend.run(images)}, options.device, options.repeats)["all"]
    if isinstance(backend, OpenVino):
        layers = openvino_layers(backend, images, options.repeats)
    else:
        layers = onnxruntime_layers(source, images, options.repeats)
    height, width = images.shape[-2:]
    program = row or backend.name
    print_layers(f"{about}, {width}x{height}, {program}", layers, whole, options.repeats, bound)
    return {"network": about, "row": program, "ms": whole, "layers": [asdict(layer) for layer in layers]}


class Bound:
    """The least time for a layer on this machine: its multiply-adds at the rate of a matrix product, or its bytes at
    that of a copy, whichever takes longer."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.bytes_per_s = device, bandwidth(device)
        self.rates: dict[str, float] = {}

    def ms(self, layer: Layer) -> float:
        by_memory = 1000 * layer.moved / self.bytes_per_s
        dtype = next((dtype for dtype, name in NAMES.items() if name == layer.arithmetic), torch.float32)
        if not layer.multiply_adds:
            return by_memory
        if layer.arithmetic not in self.rates:
            self.rates[layer.arithmetic] = peak_rate(self.device, dtype)
        return max(by_memory, 1000 * layer.multiply_adds / self.rates[layer.arithmetic])


def print_layers(title: str, layers: Sequence[Layer], whole: Sequence[float], repeats: int, bound: Bound) -> None:
    """Two tables: the kinds of layers, and the slowest of them."""
    total = sum(layer.ms for layer in layers)
    groups: dict[tuple[str, str], list[Layer]] = {}
    for layer in layers:
        groups.setdefault((layer.kind, layer.arithmetic), []).append(layer)
    few = [key for key, items in groups.items() if _sum(items, lambda layer: layer.ms) < LEAST_SHARE * total]
    if len(few) > 1:
        groups["everything else", ""] = [layer for key in few for layer in groups.pop(key)]
    ordered = sorted(groups.items(), key=lambda item: -_sum(item[1], lambda layer: layer.ms))
    rows = [[kind, arithmetic, len(items), *_cells(items, total, bound)] for (kind, arithmetic), items in ordered]
    rows.append(["all", "", len(layers), *_cells(layers, total, bound)])
    columns = ["ms", "of all", "G multiply-adds", "MB moved", "roofline ms", "of the roofline"]
    print_table(
        f"{title}: layers by kind. A call of the network takes {statistics.median(whole):.1f} ms, its layers together "
        f"{total:.1f}.",
        ["layers", "in", "how many", *columns], rows, repeats,
    )  # fmt: skip
    slowest = sorted(layers, key=lambda layer: -layer.ms)[:SLOWEST]
    rows = [[f"`{short(layer.name)}`", layer.kind, layer.arithmetic, *_cells([layer], total, bound)]
            for layer in slowest]  # fmt: skip
    print_table(f"{title}: the slowest layers.", ["layer", "kind", "in", *columns], rows, repeats)


def _sum(layers: Iterable[Layer], of: Callable[[Layer], float]) -> float:
    return sum(map(of, layers))


def _cells(layers: Sequence[Layer], total: float, bound: Bound) -> list[str]:
    ms, least = _sum(layers, lambda layer: layer.ms), _sum(layers, bound.ms)
    return [
        f"{ms:.2f}", f"{ms / total:.0%}" if total else "",
        f"{_sum(layers, lambda layer: layer.multiply_adds) / 1e9:.2f}",
        f"{_sum(layers, lambda layer: layer.moved) / 1e6:.1f}", f"{least:.2f}", f"{least / ms:.0%}" if ms else "",
    ]  # fmt: skip


def short(name: str) -> str:
    """`__module.network.heads.depth.1/aten::conv2d/Convolution` -> `heads.depth.1`"""
    return name.split("/")[0].removeprefix("__module.").removeprefix("network.").removesuffix("_nchwc")
