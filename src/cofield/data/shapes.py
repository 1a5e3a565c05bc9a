"""Triangle meshes of what stands and moves in a street, each in its own frame: x forward, z up, z = 0 the ground.

A `Mesh` is a soup of triangles with a material and a colour each; `tinted` fills the colours that differ
from one car to the next. Everything with a detection box fills that box to the millimetre.
"""

from dataclasses import dataclass, replace
from functools import cache

import numpy as np
from jaxtyping import Float, Int

Array = np.ndarray

# Materials: how `shade` paints a surface, and how much of a laser pulse it sends back.
(PLAIN, PAINT, WINDOWS, WHEEL, LAMP, LEAF, BARK, BRICK, PLASTER, CURTAIN, HOUSE, TILES, GRAVEL, METAL, SIGN, CLOTH,
 STRIPES, SHOP, PANEL) = range(19)  # fmt: skip
REFLECTIVITY = np.array(
    [0.3, 0.45, 0.2, 0.08, 0.6, 0.4, 0.25, 0.35, 0.55, 0.2, 0.45, 0.3, 0.25, 0.5, 1.0, 0.35, 0.9, 0.3, 0.5], np.float32
)

# Colours that `tinted` replaces.
FIRST, SECOND, THIRD = (-1.0, 0.0, 0.0), (-2.0, 0.0, 0.0), (-3.0, 0.0, 0.0)
BLACK, DARK, GREY, LIGHT = (0.03, 0.03, 0.03), (0.08, 0.08, 0.09), (0.3, 0.3, 0.31), (0.6, 0.6, 0.6)
ORANGE, YELLOW, RED = (0.85, 0.25, 0.03), (0.8, 0.5, 0.04), (0.6, 0.03, 0.03)

_NEXT, _LAST = [1, 2, 0], [2, 0, 1]  # of a cross product

Number = float | int
Place = tuple[Number, Number, Number]
Colour = tuple[Number, Number, Number]


@dataclass(frozen=True)
class Mesh:
    """Triangles by their corners, with shading normals and texture coordinates at each corner."""

    corners: Float[Array, "t 3 3"]
    normals: Float[Array, "t 3 3"]
    uv: Float[Array, "t 3 2"]
    material: Int[Array, "t"]
    colour: Float[Array, "t 3"]

    def __len__(self) -> int:
        return len(self.corners)

    def placed(self, xyz: Place, yaw: float = 0.0, scale: float = 1.0) -> "Mesh":
        """The mesh scaled, turned about z and moved."""
        cos, sin = np.cos(yaw), np.sin(yaw)
        turn = np.array([[cos, sin, 0], [-sin, cos, 0], [0, 0, 1]], np.float32)
        corners = self.corners.reshape(-1, 3) @ (turn * np.float32(scale)) + np.array(xyz, np.float32)
        normals = self.normals.reshape(-1, 3) @ turn
        shape = self.corners.shape
        return Mesh(corners.reshape(shape), normals.reshape(shape), self.uv, self.material, self.colour)

    def stretched(self, x: Number, y: Number, z: Number) -> "Mesh":
        """The mesh scaled along its own axes."""
        factor = np.array([x, y, z], np.float32)
        normals = self.normals / factor
        normals /= np.linalg.norm(normals, axis=-1, keepdims=True)
        return replace(self, corners=self.corners * factor, normals=normals)

    def fitted(self, length: Number, width: Number, height: Number) -> "Mesh":
        """The mesh moved and stretched so that it just fills a box of this size on the ground."""
        lower, upper = self.corners.reshape(-1, 3).min(0), self.corners.reshape(-1, 3).max(0)
        centre = np.array([(lower[0] + upper[0]) / 2, (lower[1] + upper[1]) / 2, lower[2]], np.float32)
        extent = np.array([length, width, height]) / (upper - lower)
        return replace(self, corners=self.corners - centre).stretched(*extent.tolist())

    def tinted(self, first: Colour, second: Colour = GREY, third: Colour = GREY) -> "Mesh":
        """The mesh with its open colours decided."""
        colour = self.colour.copy()
        for mark, tint in ((FIRST, first), (SECOND, second), (THIRD, third)):
            colour[self.colour[:, 0] == mark[0]] = tint
        return replace(self, colour=colour)


def joined(parts: list[Mesh]) -> Mesh:
    """All triangles of several meshes."""
    return Mesh(
        np.concatenate([part.corners for part in parts]),
        np.concatenate([part.normals for part in parts]),
        np.concatenate([part.uv for part in parts]),
        np.concatenate([part.material for part in parts]),
        np.concatenate([part.colour for part in parts]),
    )


def soup(corners: Array, material: int, colour: Colour, uv: Array | None = None, normals: Array | None = None) -> Mesh:
    """Triangles of one material and colour; flat normals unless given."""
    corners = np.asarray(corners, np.float32).reshape(-1, 3, 3)
    if normals is None:
        normals = np.repeat(facing(corners)[:, None], 3, 1)
    count = len(corners)
    return Mesh(
        corners,
        np.asarray(normals, np.float32).reshape(count, 3, 3),
        np.zeros((count, 3, 2), np.float32) if uv is None else np.asarray(uv, np.float32).reshape(count, 3, 2),
        np.full(count, material, np.int32),
        np.full((count, 3), colour, np.float32),
    )


def facing(corners: Float[Array, "t 3 3"]) -> Float[Array, "t 3"]:
    """The unit normal of each triangle."""
    a, b = corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]
    normal = a[:, _NEXT] * b[:, _LAST] - a[:, _LAST] * b[:, _NEXT]
    return normal / np.maximum(np.sqrt((normal * normal).sum(-1, keepdims=True)), 1e-9)


def quads(corners: Array, material: int, colour: Colour, cells: Array | None = None) -> Mesh:
    """Four-cornered faces [n 4 3], counter-clockwise from outside.

    Args:
        cells: texture extent of each face along its first and second edge; their lengths in metres if not given.
    """
    corners = np.asarray(corners, np.float32).reshape(-1, 4, 3)
    if cells is None:
        sides = corners[:, 1::2] - corners[:, :1]
        cells = np.sqrt((sides * sides).sum(-1))
    unit = np.array([[0, 0], [1, 0], [1, 1], [0, 1]], np.float32)
    uv = unit * np.asarray(cells, np.float32).reshape(-1, 1, 2)
    order = [0, 1, 2, 0, 2, 3]
    return soup(corners[:, order], material, colour, uv[:, order])


# Faces of a hexahedron whose corner index bits 4, 2, 1 are far in x, y, z: front, back, left, right, top, bottom.
_FACES = np.array([[4, 6, 7, 5], [2, 0, 1, 3], [6, 2, 3, 7], [0, 4, 5, 1], [5, 7, 3, 1], [0, 2, 6, 4]])


def frustum(
    lower: tuple[Number, ...],
    upper: tuple[Number, ...],
    material: int,
    colour: Colour,
    top: tuple[int, Colour] | None = None,
    panes: tuple[int, int] | None = None,
) -> Mesh:
    """A block between two level rectangles (x0, x1, y0, y1, z).

    Args:
        top: material and colour of the top and bottom where they differ.
        panes: split the ends (x) and sides (y) into so many panes, each textured 0..1; metres if not given.
    """
    corners = np.array(
        [[side[0 + far_x], side[2 + far_y], side[4]] for far_x in (0, 1) for far_y in (0, 1) for side in (lower, upper)]
    )
    walls = corners[_FACES[:4]]
    if panes is None:
        parts = [quads(walls, material, colour)]
    else:
        ends, sides = _columns(walls[:2], panes[0]), _columns(walls[2:], panes[1])
        split = np.concatenate([ends, sides])
        parts = [quads(split, material, colour, np.ones((len(split), 2)))]
    return joined([*parts, quads(corners[_FACES[4:]], *(top or (material, colour)))])


def _columns(faces: Array, count: int) -> Array:
    """Each four-cornered face cut into upright strips."""
    cut = np.linspace(0, 1, count + 1)[:, None, None]
    low = faces[None, :, 0] * (1 - cut) + faces[None, :, 1] * cut
    high = faces[None, :, 3] * (1 - cut) + faces[None, :, 2] * cut
    return np.stack([low[:-1], low[1:], high[1:], high[:-1]], 2).reshape(-1, 4, 3)


@cache
def _cube() -> tuple[Mesh, Int[Array, "t 3 2"]]:
    """The unit cube, and for each texture coordinate the axis whose length it counts."""
    cube = frustum((0, 1, 0, 1, 0), (0, 1, 0, 1, 1), PLAIN, GREY)
    across = np.repeat([[1, 2], [1, 2], [0, 2], [0, 2], [1, 0], [1, 0]], 2, 0)
    return cube, np.repeat(across[:, None], 3, 1)


def block(
    x: tuple[Number, Number],
    y: tuple[Number, Number],
    z: tuple[Number, Number],
    material: int,
    colour: Colour,
    top: tuple[int, Colour] | None = None,
) -> Mesh:
    """An upright cuboid; its top and bottom of another material where `top` says so."""
    cube, axes = _cube()
    lower, extent = (
        np.array([x[0], y[0], z[0]], np.float32),
        np.array([x[1] - x[0], y[1] - y[0], z[1] - z[0]], np.float32),
    )
    materials, colours = np.full(12, material, np.int32), np.full((12, 3), colour, np.float32)
    if top is not None:
        materials[8:], colours[8:] = top
    return Mesh(cube.corners * extent + lower, cube.normals, cube.uv * extent[axes], materials, colours)


def tube(
    start: Place,
    end: Place,
    radii: tuple[Number, Number],
    sides: int,
    material: int,
    colour: Colour,
    cap: tuple[int, Colour] | None = None,
    ends: str = "both",
) -> Mesh:
    """A round bar, or a cone; the caps' texture is 0 at the axis and 1 at the rim.

    Args:
        ends: which are closed: both, none, or only the start.
    """
    axis = np.subtract(end, start)
    axis = axis / np.linalg.norm(axis)
    helper = np.array([0.0, 0.0, 1.0]) if abs(axis[2]) < 0.9 else np.array([1.0, 0.0, 0.0])
    first = np.cross(helper, axis)
    first /= np.linalg.norm(first)
    angle = np.arange(sides + 1) * 2 * np.pi / sides
    ring = np.cos(angle)[:, None] * first + np.sin(angle)[:, None] * np.cross(axis, first)
    low, high = np.asarray(start) + radii[0] * ring, np.asarray(end) + radii[1] * ring
    wall = np.stack([low[:-1], low[1:], high[1:], high[:-1]], 1)
    order = [0, 1, 2, 0, 2, 3]
    normal = np.stack([ring[:-1], ring[1:], ring[1:], ring[:-1]], 1)
    length = float(np.linalg.norm(np.subtract(end, start)))
    turn = angle * max(radii)
    flat = np.zeros(sides)
    uv = np.stack(
        [
            np.stack([turn[:-1], turn[1:], turn[1:], turn[:-1]], 1),
            np.stack([flat, flat, flat + length, flat + length], 1),
        ],
        -1,
    )
    parts = [soup(wall[:, order], material, colour, uv[:, order], normal[:, order])]
    rim = np.tile(np.array([[0, 0], [1, 0], [1, 0]], np.float32), (sides, 1, 1))
    closed = ((start, low, True), (end, high, False))[: {"both": 2, "start": 1, "none": 0}[ends]]
    for centre, edge, reverse in closed:
        fan = np.stack([np.broadcast_to(centre, low[:-1].shape), edge[:-1], edge[1:]], 1)
        parts.append(
            soup(fan[:, ::-1] if reverse else fan, *(cap or (material, colour)), uv=rim[:, ::-1] if reverse else rim)
        )
    return joined(parts)


def loft(profile: list[Place], material: int, colour: Colour) -> Mesh:
    """A body by its closed side view: points (x, z, half width), counter-clockwise seen from the right (-y)."""
    outline = np.array(profile)
    left = np.stack([outline[:, 0], outline[:, 2], outline[:, 1]], -1)
    right = left * np.array([1, -1, 1])
    skin = np.stack([right, left, np.roll(left, -1, 0), np.roll(right, -1, 0)], 1)
    parts = [quads(skin, material, colour)]
    centre = outline.mean(0)
    for side, flip in ((right, False), (left, True)):
        middle = np.array([centre[0], side[:, 1].mean(), centre[1]])
        fan = np.stack([np.broadcast_to(middle, side.shape), side, np.roll(side, -1, 0)], 1)
        parts.append(
            soup(fan[:, ::-1] if flip else fan, material, colour, uv=fan[:, :: -1 if flip else 1][..., [0, 2]])
        )
    return joined(parts)


def icosphere(subdivisions: int) -> Float[Array, "t 3 3"]:
    """Triangles of the unit sphere, 20 · 4^subdivisions of them."""
    golden = (1 + 5**0.5) / 2
    corner = np.array([[s, t * golden, 0] for s in (-1, 1) for t in (-1, 1)])
    points = np.concatenate([np.roll(corner, shift, 1) for shift in range(3)])
    points /= np.linalg.norm(points[0])
    near = np.linalg.norm(points[:, None] - points[None], axis=-1) < 1.2
    faces = [
        (i, j, k) for i in range(12) for j in range(i) for k in range(j) if near[i, j] and near[j, k] and near[i, k]
    ]
    triangles = points[np.array(faces)]
    inward = (np.cross(triangles[:, 1] - triangles[:, 0], triangles[:, 2] - triangles[:, 0]) * triangles[:, 0]).sum(
        -1
    ) < 0
    triangles[inward] = triangles[inward][:, ::-1]
    for _ in range(subdivisions):
        a, b, c = triangles[:, 0], triangles[:, 1], triangles[:, 2]
        ab, bc, ca = a + b, b + c, c + a
        triangles = np.stack([a, ab, ca, ab, b, bc, ca, bc, c, ab, bc, ca], 1).reshape(-1, 3, 3)
        triangles /= np.linalg.norm(triangles, axis=-1, keepdims=True)
    return triangles


def blob(
    centre: Place,
    radius: Place,
    lumps: Number,
    seed: int,
    material: int,
    colour: Colour,
    subdivisions: int = 1,
) -> Mesh:
    """A lumpy ball; `lumps` is the relative depth of its dents."""
    sphere = icosphere(subdivisions)
    wave = np.random.default_rng(seed).normal(size=(6, 3)) * 2.2
    dent = np.sin(sphere @ wave.T + np.arange(6)).mean(-1, keepdims=True)
    corners = sphere * (1 + lumps * 2 * dent) * np.array(radius) + np.array(centre)
    normals = sphere / np.array(radius)
    normals /= np.linalg.norm(normals, axis=-1, keepdims=True)
    return soup(corners, material, colour, uv=sphere[..., :2], normals=normals)
