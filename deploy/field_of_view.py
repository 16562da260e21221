"""Field of view: how predictions follow the camera of a picture.

A network knows sizes in pixels, as the camera of its training shows them. A camera with a longer focal length shows
things larger, as if they were nearer by the ratio of the focal lengths: metres are multiplied by it (Task.for_camera).
By the same rule, depth is divided by the zoom of a training view.
"""

from __future__ import annotations

import argparse

from deploy.backend_base import Backend
from geometry import focal_with, fov_with
from model import camera_of
from user_input.flags import number

FOV_HELP = "horizontal field of view of the pictures; 0: leave depth as the network gives it; default: by EXIF data"
UNKNOWN_DEGREES = 60.0  # of the points of a picture of whose camera nobody knows anything; a Kinect has 63


def fov_degrees(text: str) -> float:
    """An argparse type: 1 to 179 degrees, or 0."""
    value = number(float, least=0, most=179)(text)
    if 0 < value < 1:
        raise argparse.ArgumentTypeError(f"got {text!r}; it takes 1 to 179 degrees, or 0")
    return value


class FieldOfView:
    """The camera of pictures against that of the training of a back end's network.

    fov: horizontal, in degrees; 0 = nobody knows it; None = what is known of each picture counts. A focal length is in
    units of the longer side of its picture, None = not known.
    """

    def __init__(self, backend: Backend, domain: str, fov: float | None) -> None:
        self.backend, self.domain, self.fov = backend, domain, fov
        self.training = camera_of(backend, domain)

    def focal(self, known: float | None, height: int, width: int) -> float | None:
        """The focal length of a picture of this size, of which `known` is known, such as by its EXIF data."""
        if self.fov is None:
            return known
        return focal_with(self.fov, height, width) if self.fov else None

    def degrees(self, known: float | None, height: int, width: int) -> float:
        """The horizontal field of view of a picture; UNKNOWN_DEGREES when nobody knows it."""
        focal = self.focal(known, height, width)
        return UNKNOWN_DEGREES if focal is None else fov_with(focal, height, width)

    def zoom(self, known: float | None, height: int, width: int) -> float:
        """The focal length of a picture over that of the training, both as the network sees them; 1 = not known."""
        focal = self.focal(known, height, width)
        if focal is None or not self.training:
            return 1.0
        signature = self.backend.signature
        seen = max(self.backend.input_size(height, width))  # pixels on the longer side
        if signature.size:  # its graph brings this size to that of the training
            seen *= max(signature.network_size) / max(signature.size)
        trained = signature.config.long_side or self.training["long_side"]
        return focal * seen / (self.training["focal_px"] / self.training["long_side"] * trained)

    def line(self, known: float | None, height: int, width: int, source: str = "EXIF") -> str:
        """What becomes of the predictions for such a picture, in words; "" = they stay as they are."""
        focal = self.focal(known, height, width)
        if focal is None or not (self.training or self.fov):
            return ""
        names = ", ".join(name for name, task in self.backend.tasks.items() if task.follows_camera)
        degrees = self.degrees(known, height, width)
        view = f"for a field of view of {degrees:.0f} degrees ({'given' if self.fov else source})"
        if not names:
            return f"{', '.join(self.backend.tasks)}: the same {view}"
        if self.training:
            return f"{names}: scaled by {self.zoom(known, height, width):.2f} {view}"
        if self.domain not in self.backend.cameras and any(self.backend.cameras.values()):
            return f"{names}: not scaled {view}: the training's data sets have different cameras, --domain takes one"
        return f"{names}: not scaled {view}: the checkpoint does not know the camera of its training"
