"""The page's tables: lists of rows of text; a row begins with HTML, a square in the color of its class."""

from __future__ import annotations

import numpy as np

from tasks import Task


def square(color: tuple[int, int, int]) -> str:
    return '<span style="color:rgb({},{},{})">&#9632;</span>'.format(*color)


def shares(task: Task, ids: np.ndarray, depth: np.ndarray | None) -> list[list[str]]:
    """A row for each class in the picture, largest first: HTML of its color, name, share, median distance."""
    rows = []
    counts = np.bincount(ids.ravel(), minlength=256)[: len(task.classes)]
    for class_id in np.argsort(-counts, kind="stable")[: np.count_nonzero(counts)]:
        share = f"{100 * counts[class_id] / ids.size:.1f} %"
        metres = f"{np.median(depth[ids == class_id]):.2f} m" if depth is not None else ""
        rows.append([square(task.colors[class_id]), task.classes[class_id], share, metres])
    return rows


def things(task: Task, prediction: np.ndarray, size: tuple[int, int]) -> list[list[str]]:
    """A row for each thing of a frame of this size, best score first: HTML of its color, name, score, distance,
    position; empty where they are not known."""
    rows = []
    for item in task.thing_map(prediction, size)[1]:
        name, color = task.classes[item["class"]].replace("_", " "), square(task.colors[item["class"]])
        metres = "" if np.isnan(item["distance_m"]) else f"{item['distance_m']:.2f} m"
        place = "" if np.isnan(item["xyz_m"]).any() else "{:.2f}, {:.2f}, {:.2f}".format(*item["xyz_m"])
        rows.append([color, name, f"{item['score']:.0%}", metres, place])
    return rows
