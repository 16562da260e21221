"""Things of a surface: the masks of many posed pictures become a number for each vertex.

Each picture's masks are laid on the fused surface, where its camera sees it: depth that differs between pictures tears
nothing apart. `Matcher` joins what the pictures show, class by class:

- A mask belongs to the thing with which it shares most vertices, if that is at least MATCH of the smaller of the two;
  each thing has at most one mask of a picture. A mask without a thing begins one.
- At the end, two things become one when more pictures have shown them under one mask than as two.
- A vertex gets the thing that most of the pictures in which it is visible show there.
"""

from __future__ import annotations

import itertools
import zlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from tasks import Task, task_giving
from utils import require

if TYPE_CHECKING:
    from scene3d.fusion import Surface

MATCH = 0.3  # share of the vertices of the smaller one
LONGEST_PX = 640  # of the masks that are kept until there is a surface
NEAREST_M = 0.05  # to a camera
CRUMB, LEAST_VERTICES = 0.05, 10  # a loose part with a smaller share of a thing's vertices, or fewer, is none of it

FOUND = np.dtype([("class", "i8"), ("score", "f8"), ("pictures", "i8"), ("vertices", "i8")])


@dataclass(frozen=True)
class PictureThings:
    """The things of a picture, packed."""

    pose: np.ndarray  # (4, 4): camera to world
    camera: Mapping[str, float]  # fx, fy, cx, cy for `size`
    size: tuple[int, int]
    packed: bytes  # (H, W) uint16: place in `items` from 1 on, 0 = none
    kinds: np.ndarray  # (n,) classes
    scores: np.ndarray  # (n,)

    def numbers(self) -> np.ndarray:
        return np.frombuffer(zlib.decompress(self.packed), np.uint16).reshape(self.size)


def pack_things(
    name: str,
    tasks: Mapping[str, Task],
    found: Mapping[str, np.ndarray],
    depth: np.ndarray,
    camera: Mapping[str, float],
    pose: np.ndarray,
) -> PictureThings:
    """What the task `name` found in a picture whose depth (H, W) is in metres; camera: fx, fy, cx, cy for its size."""
    numbers, items = tasks[name].thing_map(found[name], depth.shape)
    if tasks[name].gives == "objects":
        numbers = _without_background(numbers, items, name, tasks, found, depth, camera)
    step = -(-max(depth.shape) // LONGEST_PX)
    few = np.ascontiguousarray(numbers[::step, ::step], np.uint16)
    smaller = {key: camera[key] / step for key in ("fx", "fy", "cx", "cy")}
    return PictureThings(pose, smaller, few.shape, zlib.compress(few, 1), items["class"].copy(), items["score"].copy())


def _without_background(
    numbers: np.ndarray,
    items: np.ndarray,
    name: str,
    tasks: Mapping[str, Task],
    found: Mapping[str, np.ndarray],
    depth: np.ndarray,
    camera: Mapping[str, float],
) -> np.ndarray:
    """Numbers (H, W) of boxes, without the pixels that are farther from the thing than half of its box's longer side,
    or that are of another class where the classes of the pixels know the box's."""
    sides_m = (items["box"][:, 2:] - items["box"][:, :2]) / [camera["fx"], camera["fy"]] * items["distance_m"][:, None]
    reach = np.concatenate([[0], sides_m.max(1, initial=0) / 2])
    middle = np.concatenate([[0], items["distance_m"]])
    own = (numbers > 0) & (np.abs(depth - middle[numbers]) <= reach[numbers])
    if by_class := task_giving("classes", tasks):
        names = tasks[by_class].classes
        kinds = [names.index(kind) if kind in names else -1 for kind in tasks[name].classes]
        wanted = np.concatenate([[-1], np.array(kinds, np.int64)[items["class"]]])[numbers]
        own &= (wanted < 0) | (found[by_class] == wanted)
    return np.where(own, numbers, 0)


# ---------------------------------------------------------------------------------------------- matching


@dataclass
class Thing:
    kind: int
    score: float = 0.0
    pictures: set[int] = field(default_factory=set)
    vertices: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))  # sorted
    votes: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))  # pictures that say so, for each of them

    def add(self, vertices: np.ndarray, votes: np.ndarray | int = 1) -> None:
        every = np.union1d(self.vertices, vertices)
        counts = np.zeros(len(every), np.int64)
        counts[np.searchsorted(every, self.vertices)] = self.votes
        counts[np.searchsorted(every, vertices)] += votes
        self.vertices, self.votes = every, counts


class Matcher:
    """Masks of one picture after the other -> things. vertices: how many the surface has."""

    def __init__(self, vertices: int) -> None:
        self.things: list[Thing] = []
        self.nothing = np.zeros(vertices, np.int64)  # pictures that show a vertex and no thing there
        self.together: Counter[tuple[int, int]] = Counter()  # pictures that show both under one mask
        self.apart: Counter[tuple[int, int]] = Counter()  # pictures that show them as two
        self.mark = np.zeros(vertices, bool)

    def add(self, masks: Sequence[tuple[int, float, np.ndarray]], nothing: np.ndarray, picture: int) -> None:
        """masks: class, score and sorted vertices of each thing of a picture; nothing: vertices without a thing."""
        self.nothing[nothing] += 1
        shared = {}
        for number, (kind, _, vertices) in enumerate(masks):
            self.mark[vertices] = True
            for place, thing in enumerate(self.things):
                if thing.kind == kind:
                    count = int(self.mark[thing.vertices].sum())
                    if count >= MATCH * min(len(vertices), len(thing.vertices)):
                        shared[number, place] = count
            self.mark[vertices] = False
        owner: dict[int, int] = {}
        for number, place in sorted(shared, key=lambda pair: -shared[pair]):
            if number not in owner and place not in owner.values():
                owner[number] = place
        for number, place in shared:
            if number in owner and place not in owner.values():
                self.together[_pair(owner[number], place)] += 1
        for number, (kind, score, vertices) in enumerate(masks):
            if number not in owner:
                owner[number] = len(self.things)
                self.things.append(Thing(kind))
            thing = self.things[owner[number]]
            thing.add(vertices)
            thing.pictures.add(picture)
            thing.score = max(thing.score, score)
        for one, other in itertools.combinations(owner.values(), 2):
            self.apart[_pair(one, other)] += 1

    def joined(self) -> list[Thing]:
        """The things, each of which is one, seen from however many sides."""
        groups = {place: [place] for place in range(len(self.things))}
        home = list(range(len(self.things)))
        for pair, _ in self.together.most_common():
            one, other = (home[place] for place in pair)
            crossing = [_pair(a, b) for a in groups[one] for b in groups[other]]
            if one != other and sum(self.together[p] for p in crossing) > sum(self.apart[p] for p in crossing):
                groups[one] += groups.pop(other)
                for place in groups[one]:
                    home[place] = one
        return [self._united([self.things[place] for place in members]) for members in groups.values()]

    @staticmethod
    def _united(members: Sequence[Thing]) -> Thing:
        first, *others = members
        for other in others:
            first.add(other.vertices, other.votes)
            first.pictures |= other.pictures
            first.score = max(first.score, other.score)
        return first


def _pair(one: int, other: int) -> tuple[int, int]:
    return min(one, other), max(one, other)


# ---------------------------------------------------------------------------------------------- a surface


class Looks:
    """Which vertices of a surface a camera sees."""

    def __init__(self, surface: Surface, voxel_m: float, max_depth_m: float) -> None:
        require("open3d")
        import open3d

        self.core, self.points = open3d.core, surface.points
        self.voxel_m, self.max_depth_m = voxel_m, max_depth_m
        self.scene = open3d.t.geometry.RaycastingScene()
        triangles = np.ascontiguousarray(surface.triangles.astype(np.uint32))
        self.scene.add_triangles(self.core.Tensor(surface.points), self.core.Tensor(triangles))

    def from_view(self, view: PictureThings) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(n,) sorted vertices, and the rows and columns of the pixels that show them."""
        camera, (height, width) = view.camera, view.size
        inverse = np.linalg.inv(view.pose)
        x, y, z = (self.points @ inverse[:3, :3].T.astype(np.float32) + inverse[:3, 3].astype(np.float32)).T
        ahead = np.flatnonzero((z > NEAREST_M) & (z <= self.max_depth_m))
        x, y, z = x[ahead], y[ahead], z[ahead]
        columns = np.rint(x / z * camera["fx"] + camera["cx"]).astype(np.int64)
        rows = np.rint(y / z * camera["fy"] + camera["cy"]).astype(np.int64)
        inside = (columns >= 0) & (columns < width) & (rows >= 0) & (rows < height)
        ahead, z, rows, columns = ahead[inside], z[inside], rows[inside], columns[inside]
        # What hides a vertex is nearer by more than the surface may change within two pixels.
        near = np.abs(self._depth(view)[rows, columns] - z) < self.voxel_m + 2 * z / camera["fx"]
        return ahead[near], rows[near], columns[near]

    def _depth(self, view: PictureThings) -> np.ndarray:
        """(H, W) metres to the surface, infinite where there is none."""
        camera, (height, width) = view.camera, view.size
        ways = np.ones((height, width, 3))
        ways[..., 0] = (np.arange(width) - camera["cx"]) / camera["fx"]
        ways[..., 1] = ((np.arange(height) - camera["cy"]) / camera["fy"])[:, None]
        rays = np.concatenate([np.broadcast_to(view.pose[:3, 3], ways.shape), ways @ view.pose[:3, :3].T], axis=2)
        return self.scene.cast_rays(self.core.Tensor(rays.astype(np.float32)))["t_hit"].numpy()


def number_vertices(
    surface: Surface, views: Sequence[PictureThings], voxel_m: float, max_depth_m: float, least: int = 1
) -> tuple[np.ndarray, np.ndarray]:
    """(N,) uint16: the number of the thing that each vertex belongs to, from 1 on, 0 = none; and the things in this
    order (n,) FOUND, the largest first. Those that fewer than `least` pictures show are left out."""
    looks, matcher = Looks(surface, voxel_m, max_depth_m), Matcher(len(surface.points))
    for picture, view in enumerate(views):
        vertices, rows, columns = looks.from_view(view)
        shown = view.numbers()[rows, columns]
        masks = [
            (int(kind), float(score), own)
            for number, (kind, score) in enumerate(zip(view.kinds, view.scores, strict=True), 1)
            if len(own := vertices[shown == number])
        ]
        matcher.add(masks, vertices[shown == 0], picture)
    things = [thing for thing in matcher.joined() if len(thing.pictures) >= least]
    numbers = _most_seen(things, matcher.nothing, surface.triangles)
    numbers = _without_crumbs(numbers, surface.triangles)
    counts = np.bincount(numbers, minlength=len(things) + 1)[1:]
    order = [place for place in np.argsort(-counts, kind="stable") if counts[place]]
    found = np.array(
        [(things[k].kind, things[k].score, len(things[k].pictures), counts[k]) for k in order], FOUND
    ).reshape(-1)  # fmt: skip
    renamed = np.zeros(len(things) + 1, np.uint16)
    renamed[np.array(order, np.int64) + 1] = np.arange(1, len(order) + 1)
    return renamed[numbers], found


def _most_seen(things: Sequence[Thing], nothing: np.ndarray, triangles: np.ndarray) -> np.ndarray:
    """(N,) int64: the thing that more than half of the pictures show at each vertex, 0 = none; those that no picture
    shows get what a neighbor has."""
    total, numbers = nothing.copy(), np.zeros(len(nothing), np.int64)
    for thing in things:
        total[thing.vertices] += thing.votes
    for number, thing in enumerate(things, 1):
        numbers[thing.vertices[2 * thing.votes > total[thing.vertices]]] = number
    edges = triangles[:, [0, 1, 1, 2, 2, 0]].reshape(-1, 2)
    edges = np.concatenate([edges, edges[:, ::-1]])
    unseen = edges[(total[edges[:, 0]] == 0) & (numbers[edges[:, 1]] > 0)]
    numbers[unseen[:, 0]] = numbers[unseen[:, 1]]
    return numbers


def _without_crumbs(numbers: np.ndarray, triangles: np.ndarray) -> np.ndarray:
    """The numbers of the vertices, 0 for loose parts of a thing that are small or a small share of it."""
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    own = (numbers[triangles] == numbers[triangles[:, :1]]).all(1) & (numbers[triangles[:, 0]] > 0)
    edges = triangles[own][:, [0, 1, 1, 2]].reshape(-1, 2)
    graph = coo_matrix((np.ones(len(edges), np.int8), edges.T), (len(numbers), len(numbers)))
    part = connected_components(graph, directed=False)[1]
    sizes, totals = np.bincount(part)[part], np.bincount(numbers)[numbers]
    return np.where(sizes >= np.maximum(CRUMB * totals, LEAST_VERTICES), numbers, 0)
