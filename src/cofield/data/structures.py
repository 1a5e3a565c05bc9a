"""What stands in a town and has no detection box: buildings, trees, poles, street furniture."""

from functools import cache

import numpy as np

from cofield.data.shapes import (
    BARK,
    BRICK,
    CURTAIN,
    DARK,
    FIRST,
    GRAVEL,
    GREY,
    HOUSE,
    LAMP,
    LEAF,
    LIGHT,
    METAL,
    PLAIN,
    PLASTER,
    SHOP,
    SIGN,
    TILES,
    Colour,
    Mesh,
    blob,
    block,
    frustum,
    joined,
    quads,
    soup,
    tube,
)

_WALLS: dict[int, list[Colour]] = {
    BRICK: [(0.33, 0.13, 0.08), (0.4, 0.2, 0.12), (0.28, 0.17, 0.13), (0.42, 0.29, 0.19)],
    PLASTER: [(0.62, 0.55, 0.42), (0.66, 0.62, 0.55), (0.56, 0.38, 0.25), (0.5, 0.52, 0.52), (0.6, 0.47, 0.38)],
    CURTAIN: [(0.25, 0.3, 0.33), (0.4, 0.41, 0.4), (0.18, 0.2, 0.24)],
    HOUSE: [(0.7, 0.67, 0.6), (0.55, 0.35, 0.22), (0.45, 0.5, 0.52), (0.72, 0.6, 0.38)],
}


def building(width: float, depth: float, floors: int, suburban: bool, near: bool, rng: np.random.Generator) -> Mesh:
    """A building on the rectangle [±width/2] × [±depth/2], its front towards -y; plainer from afar."""
    if suburban:
        return _house(width, depth, min(floors, 3), near, rng)
    material = int(rng.choice([BRICK, PLASTER, PLASTER, BRICK, CURTAIN] if floors < 8 else [CURTAIN, PLASTER]))
    colour = _WALLS[material][rng.integers(len(_WALLS[material]))]
    trim: Colour = tuple((0.5 * np.array(colour) + 0.3).tolist())
    x, y, height = width / 2, depth / 2, 3.2 * floors + 1.0
    shop = rng.random() < 0.6
    base = 4.2 if shop else 0.0
    parts = []
    if shop:
        parts.append(block((-x, x), (-y, y), (-0.1, base), SHOP, colour))
        awning: Colour = tuple((rng.random(3) ** 2 * 0.6 + 0.03).tolist())
        parts.append(block((-x, x), (-y - 0.15, -y), (base - 0.5, base), PLAIN, awning))
        if rng.random() < 0.5 and near:
            left = -x + rng.uniform(0.5, 0.3 * width)
            wedge = np.array(
                [
                    [left, -y - 1.3, 2.7],
                    [left + 0.45 * width, -y - 1.3, 2.7],
                    [left + 0.45 * width, -y, 3.4],
                    [left, -y, 3.4],
                ]
            )
            parts += [quads(wedge, PLAIN, awning), quads(wedge[::-1] - [0, 0, 0.03], PLAIN, awning)]
    parts.append(
        frustum((-x, x, -y, y, base or -0.1), (-x, x, -y, y, base + height), material, colour, top=(GRAVEL, GREY))
    )
    top = base + height
    for lower, upper, reach in ((top - 0.35, top + 0.55, 0.18), (base + 0.0, base + 0.25, 0.1)):
        parts.append(
            block((-x - reach, x + reach), (-y - reach, y + reach), (lower, upper), PLAIN, trim, (GRAVEL, GREY))
        )
    for _ in range(int(rng.integers(0, 3)) if near else 0):
        cx, cy, half = rng.uniform(-0.6, 0.6) * x, rng.uniform(-0.5, 0.5) * y, rng.uniform(0.8, 2.0)
        parts.append(block((cx - half, cx + half), (cy - half, cy + half), (top, top + 1.5 + half), METAL, LIGHT))
    if material != CURTAIN and near and rng.random() < 0.35:
        for storey in range(1, floors):
            z = base + 3.2 * storey + 0.3
            parts += [_balcony(cx, -y, z, trim) for cx in np.arange(-x + 2.4, x - 1.5, 5.6)]
    return joined(parts)


def _balcony(x: float, front: float, z: float, colour: Colour) -> Mesh:
    slab = block((x - 1.2, x + 1.2), (front - 1.0, front), (z, z + 0.15), PLAIN, colour)
    rail = block((x - 1.2, x + 1.2), (front - 1.0, front - 0.94), (z + 0.15, z + 1.05), METAL, DARK)
    return joined([slab, rail])


def _house(width: float, depth: float, floors: int, near: bool, rng: np.random.Generator) -> Mesh:
    colour = _WALLS[HOUSE][rng.integers(len(_WALLS[HOUSE]))]
    tiles: Colour = [(0.28, 0.09, 0.05), (0.12, 0.11, 0.12), (0.2, 0.12, 0.09)][rng.integers(3)]
    x, y, height = width / 2, depth / 2, 2.9 * floors + 0.3
    ridge, reach = height + rng.uniform(0.3, 0.45) * depth, 0.45
    walls = block((-x, x), (-y, y), (-0.1, height), HOUSE, colour)
    gables = [soup(np.array([[s * x, -s * y, height], [s * x, s * y, height], [s * x, 0, ridge]]), PLASTER, colour,
                   uv=np.full((1, 3, 2), -50.0)) for s in (-1, 1)]  # fmt: skip
    slope = (ridge - height) / y
    eaves = height - reach * slope
    roof = [
        [
            [-x - reach, -y - reach, eaves],
            [x + reach, -y - reach, eaves],
            [x + reach, 0, ridge],
            [-x - reach, 0, ridge],
        ],
        [[x + reach, y + reach, eaves], [-x - reach, y + reach, eaves], [-x - reach, 0, ridge], [x + reach, 0, ridge]],
    ]
    below = np.array(roof)
    upper = below + np.array([0, 0, 0.12])
    parts = [walls, *gables, quads(upper, TILES, tiles), quads(below[:, ::-1], PLAIN, LIGHT)]
    if near:
        edges = np.stack([below[:, 0], below[:, 1], upper[:, 1], upper[:, 0]], 1)
        parts.append(quads(edges, PLAIN, LIGHT))
    chimney = rng.uniform(-0.5, 0.5) * x
    parts.append(block((chimney - 0.35, chimney + 0.35), (0.2, 0.9), (height, ridge + 0.8), BRICK, (0.3, 0.13, 0.09)))
    if near and rng.random() < 0.6:
        parts.append(block((-1.3, 1.3), (-y - 1.5, -y), (2.35, 2.5), PLAIN, LIGHT))
        parts += [
            block((s * 1.2 - 0.06, s * 1.2 + 0.06), (-y - 1.45, -y - 1.33), (0, 2.35), PLAIN, LIGHT) for s in (-1, 1)
        ]
    return joined(parts)


@cache
def tree(kind: int, detail: int) -> Mesh:
    """One of eight trees, about 7 m tall; its leaves take the first colour.

    Args:
        detail: 2 with branches, 1 from some way off, 0 from afar.
    """
    rng = np.random.default_rng(1000 + kind)
    crown, near, lumps = 2.4 + 0.2 * (kind % 3), detail == 2, min(detail, 1)
    parts = [tube((0, 0, -0.1), (0.08, 0, crown + 1.2), (0.2, 0.11), 6 if near else 4, BARK, (0.13, 0.095, 0.07),
                  ends="both" if detail else "none")]  # fmt: skip
    if kind % 4 == 3:  # a conifer
        for step in range(4 if near else 3):
            low, radius = 1.1 + 1.5 * step, 2.0 - 0.45 * step
            parts.append(blob((0, 0, low + 1.0), (radius, radius, 1.25), 0.16, kind * 10 + step, LEAF, FIRST, lumps))
        return joined(parts)
    for branch in range(3 if near else 0):
        angle = 2.1 * branch + rng.uniform(0, 1)
        tip = (1.1 * np.cos(angle), 1.1 * np.sin(angle), crown + 1.5)
        parts.append(tube((0.03, 0, crown - 0.3), tip, (0.09, 0.05), 4, BARK, (0.13, 0.095, 0.07)))
    parts.append(blob((0, 0, crown + 2.2), (1.7, 1.7, 1.6), 0.22, kind * 10, LEAF, FIRST, 2 if near else 1))
    for clump in range(4 if near else 2):
        angle = (1.57 if near else 2.6) * clump + rng.uniform(-0.5, 0.5)
        out, radius = rng.uniform(0.9, 1.4), rng.uniform(0.95, 1.35)
        centre = (out * np.cos(angle), out * np.sin(angle), crown + rng.uniform(1.1, 2.7))
        parts.append(blob(centre, (radius, radius, 0.85 * radius), 0.26, kind * 10 + clump + 1, LEAF, FIRST, lumps))
    return joined(parts)


@cache
def bush() -> Mesh:
    """A shrub of about a metre."""
    return joined(
        [
            blob((x, y, 0.4), (0.6, 0.55, 0.55), 0.22, 7 + i, LEAF, FIRST)
            for i, (x, y) in enumerate(((0, 0), (0.5, 0.25)))
        ]
    )


@cache
def lamp_post() -> Mesh:
    """A street lamp whose arm reaches towards +y."""
    return joined(
        [
            tube((0, 0, 0), (0, 0, 0.9), (0.11, 0.1), 6, METAL, DARK),
            tube((0, 0, 0.9), (0, 0, 7.4), (0.075, 0.05), 6, METAL, DARK),
            tube((0, 0, 7.35), (0, 1.9, 7.7), (0.045, 0.035), 5, METAL, DARK),
            block((-0.13, 0.13), (1.5, 2.2), (7.66, 7.76), LAMP, (0.8, 0.8, 0.75)),
        ]
    )


@cache
def traffic_light() -> Mesh:
    """A signal facing +x."""
    parts = [
        tube((0, 0, 0), (0, 0, 3.5), (0.07, 0.06), 6, METAL, DARK),
        block((0.06, 0.26), (-0.16, 0.16), (2.5, 3.45), PLAIN, (0.02, 0.02, 0.02)),
    ]
    for z, colour in ((3.2, (0.9, 0.05, 0.03)), (2.95, (0.25, 0.15, 0.02)), (2.68, (0.03, 0.2, 0.08))):
        parts.append(tube((0.26, 0, z), (0.29, 0, z), (0.1, 0.1), 8, LAMP, colour))
    return joined(parts)


@cache
def sign(kind: int) -> Mesh:
    """A traffic sign facing +x: round, square, three-cornered or a place name."""
    post = tube((0, 0, 0), (0, 0, 2.7), (0.035, 0.035), 6, METAL, LIGHT)
    colours: list[Colour] = [(0.65, 0.03, 0.03), (0.03, 0.12, 0.5), (0.7, 0.45, 0.02), (0.02, 0.28, 0.12)]
    if kind == 0:
        face = tube((0.04, 0, 2.4), (0.06, 0, 2.4), (0.33, 0.33), 12, SIGN, colours[0])
        return joined([post, face, tube((0.06, 0, 2.4), (0.07, 0, 2.4), (0.22, 0.22), 12, SIGN, (0.75, 0.75, 0.75))])
    if kind == 2:
        face = tube((0.04, 0, 2.35), (0.06, 0, 2.35), (0.42, 0.42), 4, SIGN, colours[2])
        return joined([post, face])
    wide, tall = (0.3, 0.6) if kind == 1 else (0.8, 0.45)
    face = block((0.04, 0.06), (-wide, wide), (2.1, 2.1 + tall), SIGN, colours[kind])
    mark = block(
        (0.06, 0.065), (-0.6 * wide, 0.6 * wide), (2.1 + 0.35 * tall, 2.1 + 0.6 * tall), SIGN, (0.75, 0.75, 0.75)
    )
    return joined([post, face, mark])


@cache
def shelter() -> Mesh:
    """A bus shelter open towards -y."""
    posts = [
        block((x - 0.04, x + 0.04), (y - 0.04, y + 0.04), (0, 2.3), METAL, DARK)
        for x in (-1.9, 1.9)
        for y in (-0.6, 0.6)
    ]
    roof = block((-2.1, 2.1), (-0.8, 0.8), (2.3, 2.42), METAL, GREY)
    bench = block((-1.3, 1.3), (0.15, 0.5), (0.4, 0.48), PLAIN, (0.25, 0.14, 0.07))
    back = block((-1.9, 1.9), (0.62, 0.66), (0.3, 2.2), PLAIN, (0.3, 0.36, 0.38))
    advert = block((-1.97, -1.9), (-0.5, 0.5), (0.4, 2.0), PLAIN, (0.55, 0.2, 0.1))
    return joined([*posts, roof, bench, back, advert])


@cache
def bench() -> Mesh:
    """A bench facing -y."""
    wood: Colour = (0.22, 0.12, 0.06)
    legs = [block((x - 0.05, x + 0.05), (-0.2, 0.25), (0, 0.42), METAL, DARK) for x in (-0.7, 0.7)]
    return joined(
        [
            *legs,
            block((-0.9, 0.9), (-0.25, 0.22), (0.42, 0.48), PLAIN, wood),
            block((-0.9, 0.9), (0.22, 0.27), (0.55, 0.9), PLAIN, wood),
        ]
    )


@cache
def litter_bin() -> Mesh:
    """A litter bin."""
    return tube((0, 0, 0), (0, 0, 0.95), (0.24, 0.27), 8, PLAIN, (0.05, 0.13, 0.08), (PLAIN, DARK))


def fence(length: float, height: float, hedge: bool, colour: Colour) -> Mesh:
    """A hedge or a wall along x, from 0 to `length`."""
    if hedge:
        return frustum((0, length, -0.4, 0.4, 0), (0, length, -0.32, 0.32, height), LEAF, colour)
    return block((0, length), (-0.1, 0.1), (0, height), BRICK, colour)
