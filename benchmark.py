"""Prints what networks cost: parameters, multiply-adds, and the time of one image in fp32.

python benchmark.py                                    # the networks of the README's table, at 640x480
python benchmark.py --encoders resnet34 --size 320x240 --classes 11
"""

from __future__ import annotations

import platform
import statistics
import time

import torch

from config import Config, Parser, convert
from model import Network, build_network, count_cost
from tasks import Depth, Segmentation
from utils import class_palette, machine, pick_device, run, setup_cpu

ENCODERS = "mobilenetv2_paper,mobilenetv2_100,tf_efficientnet_lite0,resnet18,resnet34,resnet50,resnet101,resnet152"


@torch.inference_mode()
def latency_ms(network: Network, images: torch.Tensor, repeats: int) -> list[float]:
    """Milliseconds of each of `repeats` calls on images (B, 3, H, W), after two that do not count."""
    times = []
    for number in range(repeats + 2):
        began = time.perf_counter()
        network(images)
        if images.is_cuda:
            torch.cuda.synchronize()
        if number >= 2:
            times.append(1000 * (time.perf_counter() - began))
    return times


def main() -> None:
    parser = Parser(description="Prints what networks cost.")
    parser.add_argument("--encoders", default=ENCODERS, metavar="NAME,NAME,...")
    parser.add_argument("--size", default="640x480", metavar="WIDTHxHEIGHT")
    parser.add_argument("--classes", default="40")
    parser.add_argument("--repeats", default="10")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--threads", default="0", help="CPU threads; 0 = torch's choice")
    arguments = parser.parse_args()
    setup_cpu(convert(arguments.threads, int, "command line: threads"))
    width, height = convert(arguments.size.replace("x", ","), tuple[int, int], "command line: size")
    classes = convert(arguments.classes, int, "command line: classes")
    repeats = convert(arguments.repeats, int, "command line: repeats")
    if min(width, height) < 32 or not 1 <= classes <= 255 or repeats < 1:
        raise ValueError("command line: size must be at least 32x32, classes 1 to 255, repeats at least 1")
    device = pick_device(arguments.device)
    names = tuple(f"class_{number}" for number in range(classes))
    colors = tuple(tuple(color) for color in class_palette()[1 : classes + 1].tolist())
    tasks = {"segmentation": Segmentation(classes=names, colors=colors), "depth": Depth()}
    print(
        f"Network alone, {width}x{height}, batch 1, {classes} classes + depth, eager fp32 channels_last; "
        f"{machine(device)}, torch {torch.__version__}, Python {platform.python_version()}; "
        f"median of {repeats} calls (fastest .. slowest)\n"
    )
    print("| encoder | parameters | multiply-adds | ms |\n|---|---|---|---|")
    for encoder in convert(arguments.encoders, tuple[str, ...], "command line: encoders"):
        network = build_network(Config(encoder=encoder, encoder_weights="none"), tasks)
        network = network.to(device, memory_format=torch.channels_last).eval()
        parameters, operations = count_cost(network, height, width)
        images = torch.rand(1, 3, height, width, device=device).to(memory_format=torch.channels_last)
        times = latency_ms(network, images, repeats)
        spread = f"{statistics.median(times):.0f} ({min(times):.0f} .. {max(times):.0f})"
        print(f"| `{encoder}` | {parameters:,} | {operations / 1e9:.2f} G | {spread} |", flush=True)


if __name__ == "__main__":
    run(main)
