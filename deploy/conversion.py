"""Conversion of a network to the graphs of other programs: ONNX and OpenVINO."""

from __future__ import annotations

import logging
import math
import warnings

import cv2
import numpy as np
import torch
from torch import Tensor, nn

from deploy.folding import simplified
from deploy.signature import INPUT, METADATA_KEY, Signature, dynamic_shapes, example_image
from model import Network
from utils import require


def no_graph(network: Network) -> str:
    """Why the network cannot become a graph; "" = it can."""
    return next((f"{name}: {task.no_graph}" for name, task in network.tasks.items() if task.no_graph), "")


class Graph(nn.Module):
    """A network with pre-processing and post-processing as its signature says; outputs in the order of the tasks.

    Raises ValueError for a network with a task that cannot be in a graph.
    """

    def __init__(self, network: Network, signature: Signature) -> None:
        super().__init__()
        if reason := no_graph(network):
            raise ValueError(f"{reason}: no graph; the checkpoint itself and --format safetensors run in PyTorch")
        self.network, self.signature = network, signature
        self.resize = Resize(signature) if signature.network_size != signature.size else None

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        size = image.shape[1:3] if self.signature.bytes_in else image.shape[2:4]
        if self.signature.bytes_in:
            image = image.permute(0, 3, 1, 2).float()
        if self.resize is not None:
            image = self.resize(image)
        if self.signature.bytes_in:
            image = (image / 255 - self.network.mean) / self.network.std
        raws = self.network.heads_of(self.network.maps(image), image.shape[-2:])
        outputs = [task.select(raws[name]) for name, task in self.signature.heads.items()]
        if self.signature.units_out:
            tasks = self.signature.tasks.values()
            outputs = [task.decode(raw, size) for task, raw in zip(tasks, outputs, strict=True)]
        return tuple(outputs)


class Resize(nn.Module):
    """`geometry.resize_image` inside a graph of a fixed size, from the size of the picture to that of the training.

    A resize is linear in rows and in columns: its two matrices are what it makes of unit matrices.
    """

    def __init__(self, signature: Signature) -> None:
        super().__init__()
        self.rounds = signature.bytes_in  # floats are normalized: neither whole numbers nor between 0 and 255
        # OpenCV rounds a half to the even number where it averages, and up where it halves both sides or interpolates.
        whole, seen = signature.size, signature.network_size
        self.half_up = math.prod(seen) >= math.prod(whole) or whole == tuple(2 * side for side in seen)
        for name, inputs, outputs in zip(("rows", "columns"), signature.size, signature.network_size, strict=True):
            # Of the interpolation that `resize_image` chooses by the whole picture's size, not by one side's.
            shrinks = math.prod(signature.network_size) < math.prod(signature.size)
            method = cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC
            unit = np.eye(inputs, dtype=np.float32)
            matrix = unit if inputs == outputs else cv2.resize(unit, (inputs, outputs), interpolation=method)
            self.register_buffer(name, torch.from_numpy(matrix))

    def forward(self, image: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, 3, height, width)"""
        resized = self.rows @ image @ self.columns.T
        if not self.rounds:
            return resized
        return ((resized + 0.5).floor() if self.half_up else resized.round()).clamp(0, 255)


# ---------------------------------------------------------------------------------------------- conversion


def to_onnx(network: Network, signature: Signature) -> object:
    """The graph as an onnx.ModelProto with its signature in the metadata."""
    require("onnx", "onnxscript")
    graph, example = Graph(simplified(network).cpu().float(), signature).eval(), example_image(signature)
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings(), torch.inference_mode():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            graph, (example,), dynamo=True, input_names=[INPUT], output_names=list(signature.tasks),
            dynamic_shapes=dynamic_shapes(signature), verbose=False,
        )  # fmt: skip
    model = program.model_proto
    for key, value in {METADATA_KEY: signature.to_json(), **signature.in_words()}.items():
        entry = model.metadata_props.add()
        entry.key, entry.value = key, value
    return model


def to_openvino(network: Network, signature: Signature) -> object:
    """The graph as an openvino.Model with its signature in the metadata."""
    require("openvino")
    import openvino

    graph, example = Graph(simplified(network).cpu().float(), signature).eval(), example_image(signature)
    batch, (height, width) = signature.batch or -1, signature.size or (-1, -1)
    shape = [batch, height, width, 3] if signature.bytes_in else [batch, 3, height, width]
    with warnings.catch_warnings(), torch.inference_mode():
        warnings.simplefilter("ignore")
        model = openvino.convert_model(graph, example_input=example, input=[(INPUT, shape)])
    model.inputs[0].set_names({INPUT})
    for output, name in zip(model.outputs, signature.tasks, strict=True):
        output.set_names({name})
    for key, value in {METADATA_KEY: signature.to_json(), **signature.in_words()}.items():
        model.set_rt_info(value, key)
    return model
