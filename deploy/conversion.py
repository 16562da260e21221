"""The network as a graph for other programs: what goes in, what comes out, and what a file says about itself."""

from __future__ import annotations

import logging
import warnings

import torch
from torch import Tensor, nn

from deploy.folding import simplified
from deploy.signature import INPUT, METADATA_KEY, Signature, dynamic_shapes, example_image
from model import Network
from utils import require


class Graph(nn.Module):
    """A network with pre-processing and post-processing as its signature says; outputs in the order of the tasks."""

    def __init__(self, network: Network, signature: Signature) -> None:
        super().__init__()
        self.network, self.signature = network, signature

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        if self.signature.bytes_in:
            image = image.permute(0, 3, 1, 2).float() / 255
            image = (image - self.network.mean) / self.network.std
        size = image.shape[-2:]
        raws = self.network.heads_of(self.network.maps(image))
        outputs = [task.select(raws[name]) for name, task in self.signature.tasks.items()]
        if self.signature.units_out:
            tasks = self.signature.tasks.values()
            outputs = [task.decode(raw, size) for task, raw in zip(tasks, outputs, strict=True)]
        return tuple(outputs)


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
    entry = model.metadata_props.add()
    entry.key, entry.value = METADATA_KEY, signature.to_json()
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
    model.set_rt_info(signature.to_json(), METADATA_KEY)
    return model
