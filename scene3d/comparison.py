"""How far two surfaces are apart."""

from __future__ import annotations

import numpy as np

from scene3d.fusion import Surface
from utils import require

POINTS = 200_000  # sampled on each surface


def surface_metrics(surface: Surface, reference: Surface, within_m: float = 0.05) -> dict[str, float]:
    """Metrics of two meshes, by points that are sampled evenly on both.

    accuracy (completeness): mean distance in metres from a point of the surface (reference) to the nearest point of
    the other. precision (recall): share of these distances below `within_m`; f_score: their harmonic mean, as in Tanks
    and Temples (Knapitsch et al., 2017). Open3D's `compute_metrics` gives only the sum of distances and the F-score.
    """
    require("open3d")
    import open3d

    open3d.utility.random.seed(0)
    clouds = [
        open3d.geometry.TriangleMesh(
            open3d.utility.Vector3dVector(item.points.astype(np.float64)),
            open3d.utility.Vector3iVector(item.triangles),
        ).sample_points_uniformly(POINTS)
        for item in (surface, reference)
    ]
    to_reference, to_surface = (
        np.asarray(one.compute_point_cloud_distance(other)) for one, other in (clouds, clouds[::-1])
    )
    precision, recall = float((to_reference < within_m).mean()), float((to_surface < within_m).mean())
    f_score = 2 * precision * recall / (precision + recall) if precision + recall else 0.0
    return {
        "accuracy": float(to_reference.mean()), "completeness": float(to_surface.mean()),
        "precision": precision, "recall": recall, "f_score": f_score,
    }  # fmt: skip
