"""The page's charts (plotly)."""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from scene3d.fusion import Surface
from tasks import Task

if TYPE_CHECKING:
    import plotly.graph_objects

HOVER_SIDE = 320  # values of the depth chart along a side
CLOUD_POINTS = 20_000


def chart_step(size: tuple[int, int]) -> int:
    """Each so-many-th row and column of a frame of this size are in the chart."""
    return -(-max(size) // HOVER_SIDE)


def hover_plot(
    task: Task, depth: np.ndarray, ids: np.ndarray | None, classes: Sequence[str]
) -> plotly.graph_objects.Figure:
    """depth (H, W) in metres as a heat map; the pointer shows the value, and the class of ids (H, W)."""
    import plotly.graph_objects as go

    step = chart_step(depth.shape)
    seen, names = depth[::step, ::step], None
    if ids is not None:
        names = np.array([html.escape(name) for name in classes] + [""] * (256 - len(classes)), object)
        names = names[ids[::step, ::step]]
    # Near is red, as in the pictures that inference.py writes.
    heat = go.Heatmap(
        z=seen.round(3), dx=step, dy=step, zmin=0, zmax=task.max_m, colorscale="Turbo", reversescale=True,
        colorbar={"title": "m", "thickness": 12}, text=names,
        hovertemplate=("" if names is None else "%{text}<br>") + "<b>%{z:.2f} m</b><extra></extra>",
    )  # fmt: skip
    figure = go.Figure(heat)
    figure.update_layout(margin={"l": 0, "r": 0, "t": 0, "b": 0}, template="plotly_white", height=400)
    figure.update_xaxes(visible=False, constrain="domain")
    figure.update_yaxes(visible=False, autorange="reversed", scaleanchor="x", constrain="domain")
    return figure


def cloud_plot(
    surface: Surface, classes: Sequence[str], colors: Sequence[tuple[int, int, int]]
) -> plotly.graph_objects.Figure:
    """The points in 3D. Two buttons switch between the colors of the picture and those of the classes."""
    import plotly.graph_objects as go

    chosen = np.random.default_rng(0).permutation(len(surface.points))[:CLOUD_POINTS]
    points, ids = surface.points[chosen], surface.classes[chosen]
    own = np.array([f"rgb({r},{g},{b})" for r, g, b in surface.colors[chosen].tolist()], object)
    figure, by_picture, by_class = go.Figure(), [], []
    for class_id, count in enumerate(np.bincount(ids, minlength=256)):
        if not count:
            continue
        here = ids == class_id
        x, y, z = points[here].T.round(3)
        known = class_id < len(classes)
        by_picture.append(own[here])
        by_class.append("rgb({},{},{})".format(*colors[class_id]) if known else "gray")
        figure.add_scatter3d(
            x=x, y=z, z=-y, mode="markers", marker={"size": 2, "color": by_picture[-1]},
            name=html.escape(classes[class_id]) if known else "points", hovertemplate="%{y:.2f} m",
        )  # fmt: skip
    buttons = [
        {
            "label": "colors of the picture",
            "method": "update",
            "args": [{"marker.color": by_picture}, {"showlegend": False}],
        },
        {"label": "of the classes", "method": "update", "args": [{"marker.color": by_class}, {"showlegend": True}]},
    ]
    menu = {"type": "buttons", "direction": "left", "x": 0, "y": 0, "xanchor": "left", "yanchor": "bottom"}
    figure.update_layout(
        margin={"l": 0, "r": 0, "t": 0, "b": 0}, template="plotly_white", height=400, showlegend=False,
        legend={"itemsizing": "constant"},
        scene={
            "aspectmode": "data", "camera": {"eye": {"x": 0.3, "y": -1.6, "z": 0.4}},
            "xaxis_title": "x, m", "yaxis_title": "distance, m", "zaxis_title": "height, m",
        },
        updatemenus=[menu | {"buttons": buttons}] if classes else [],
    )  # fmt: skip
    return figure
