"""What has a detection box: cars, trucks, buses, riders, people, barriers, cones, each filling its box."""

from functools import cache

import numpy as np

from cofield.data.shapes import (
    BLACK,
    CLOTH,
    DARK,
    FIRST,
    GREY,
    LAMP,
    LIGHT,
    METAL,
    ORANGE,
    PAINT,
    PANEL,
    PLAIN,
    RED,
    SECOND,
    STRIPES,
    THIRD,
    WHEEL,
    WINDOWS,
    YELLOW,
    Colour,
    Mesh,
    Place,
    blob,
    block,
    frustum,
    joined,
    loft,
    quads,
    soup,
    tube,
)

Size = tuple[float, float, float]

# Length, width, height of each kind of body, by detection class.
KINDS: dict[str, dict[str, Size]] = {
    "car": {
        "sedan": (4.65, 1.84, 1.46),
        "hatchback": (4.05, 1.76, 1.5),
        "suv": (4.7, 1.92, 1.74),
        "van": (5.0, 1.96, 1.98),
    },
    "truck": {"box_truck": (7.6, 2.4, 3.3), "tractor": (5.6, 2.5, 3.2), "pickup": (5.4, 1.98, 1.85)},
    "construction_vehicle": {"excavator": (7.2, 2.7, 3.1), "loader": (6.4, 2.5, 3.0)},
    "bus": {"city_bus": (11.6, 2.55, 3.15)},
    "trailer": {"box_trailer": (10.2, 2.5, 3.7), "flat_trailer": (4.2, 1.9, 1.5)},
    "barrier": {"board": (0.5, 2.2, 1.05)},
    "motorcycle": {"motorcycle_rider": (2.1, 0.82, 1.68), "motorcycle_parked": (2.1, 0.8, 1.2)},
    "bicycle": {"bicycle_rider": (1.75, 0.62, 1.75), "bicycle_parked": (1.75, 0.6, 1.08)},
    "pedestrian": {f"{who}_{step}": (size[0] if step != "standing" else 0.6 * size[0], *size[1:])
                   for who, size in (("adult", (0.8, 0.68, 1.76)), ("child", (0.58, 0.5, 1.25)))
                   for step in ("standing", "left", "passing", "right")},
    "traffic_cone": {"cone": (0.4, 0.4, 0.75)},
}  # fmt: skip


@cache
def body(kind: str, coarse: bool = False) -> Mesh:
    """The mesh of a kind of body, its colours still open; a car, from afar, without what cannot be seen from there."""
    name, size = next((name, kinds[kind]) for name, kinds in KINDS.items() if kind in kinds)
    match name, kind:
        case "car", _:
            mesh = _car(kind, *size, coarse)
        case "truck", "pickup":
            mesh = _pickup(*size)
        case "truck", "box_truck":
            mesh = _truck(*size, cargo=True)
        case "truck", _:
            mesh = _truck(*size, cargo=False)
        case "construction_vehicle", _:
            mesh = _excavator() if kind == "excavator" else _loader()
        case "bus", _:
            mesh = _bus(*size)
        case "trailer", _:
            mesh = _trailer(*size) if kind == "box_trailer" else _cart(*size)
        case "barrier", _:
            mesh = _barrier(*size)
        case "motorcycle", _:
            mesh = joined([_motorcycle(), _rider(0.02, 0.78, 0.5)] if "rider" in kind else [_motorcycle()])
        case "bicycle", _:
            mesh = joined([_bicycle(), _rider(-0.12, 0.92, 0.38)] if "rider" in kind else [_bicycle()])
        case "pedestrian", _:
            mesh = _person(kind.partition("_")[2])
        case _:
            mesh = _cone()
    if name == "pedestrian":
        # A step is shorter than the box, which holds every step.
        return mesh.placed((-0.035 if "standing" not in kind else 0.0, 0.0, 0.0)).stretched(*[size[2] / 1.775] * 3)
    return mesh.fitted(*size)


def _wheels(places: list[tuple[float, float]], radius: float, width: float) -> list[Mesh]:
    """Wheels at (x, outer |y|) on both sides."""
    return [
        tube(
            (x, side * y, radius),
            (x, side * (y - width), radius),
            (radius, radius),
            10,
            PLAIN,
            BLACK,
            (WHEEL, GREY),
            "start",
        )
        for x, y in places
        for side in (-1, 1)
    ]


def _arch(x: float, y: float, z: float, radius: float, floor: float = 0.15) -> Mesh:
    """The dark round opening around a wheel."""
    angle = np.arange(11) * 2 * np.pi / 10 * np.sign(y)
    rim = np.stack([x + radius * np.sin(angle), np.full(11, y), np.maximum(z + radius * np.cos(angle), floor)], -1)
    fan = np.stack([np.broadcast_to([x, y, z], (10, 3)), rim[:-1], rim[1:]], 1)
    return soup(fan, PLAIN, BLACK)


def _sheet(
    x: float, y: tuple[float, float], z: tuple[float, float], lean: float, material: int, colour: Colour
) -> Mesh:
    """An upright plate that looks ahead (x > 0) or back, its top `lean` metres nearer to the middle."""
    (y0, y1), ahead = y, 1 if x > 0 else -1
    top = x - ahead * lean
    corners = np.array([[x, y0, z[0]], [x, y1, z[0]], [top, y1, z[1]], [top, y0, z[1]]])
    return quads(corners if ahead > 0 else corners[[1, 0, 3, 2]], material, colour)


def _lamps(front: float, back: float, y: float, z: float, size: float = 0.16, lean: float = 0.0) -> list[Mesh]:
    parts = []
    for side in (-1, 1):
        across = (min(side * (y - 2 * size), side * y), max(side * (y - 2 * size), side * y))
        parts.append(_sheet(front + 0.015, across, (z, z + size), lean, LAMP, (0.9, 0.9, 0.85)))
        parts.append(_sheet(back - 0.015, across, (z + 0.08, z + 0.08 + size), 0.0, LAMP, (0.55, 0.02, 0.02)))
    return parts


def _car(kind: str, length: float, width: float, height: float, coarse: bool) -> Mesh:
    half, wide = length / 2, 0.485 * width
    # Waist height, cabin (rear foot, rear roof, front roof, front foot) and tail height, as shares.
    waist, rear, roof_rear, roof_front, front, tail = {
        "sedan": (0.93, -0.80, -0.42, 0.16, 0.50, 0.93),
        "hatchback": (0.92, -0.97, -0.74, 0.20, 0.56, 0.92),
        "suv": (1.06, -0.98, -0.82, 0.20, 0.48, 1.06),
        "van": (1.08, -0.985, -0.93, 0.42, 0.78, 1.08),
    }[kind]
    side = [
        (-0.96, 0.22, 0.92), (0.94, 0.2, 0.92), (0.99, 0.3, 0.88), (1.0, 0.52, 0.88), (0.985, 0.7, 0.9),
        (0.94, 0.82, 0.93),
        (front + 0.1, waist - 0.03, 0.97), (front, waist, 0.97), (rear, tail, 0.97), (-0.965, tail - 0.07, 0.95),
        (-1.0, 0.7, 0.94), (-1.0, 0.4, 0.92),
    ]  # fmt: skip
    parts = [loft([(x * half, z, w * wide) for x, z, w in side], PAINT, FIRST)]
    foot, roof = 0.93 * wide, 0.74 * wide
    parts.append(
        frustum(
            (rear * half, front * half, -foot, foot, waist - 0.02),
            (roof_rear * half, roof_front * half, -roof, roof, height),
            WINDOWS,
            FIRST,
            top=(PAINT, FIRST),
            panes=(1, 2 if kind != "van" else 3),
        )
    )
    radius = 0.32 if kind in ("sedan", "hatchback") else 0.36
    axles = (0.6 * half, -0.58 * half)
    if coarse:
        parts += [_arch(x, side * 0.5 * width, radius, radius, 0.0) for x in axles for side in (-1, 1)]
        return joined(parts + _lamps(half, -half, 0.88 * wide, 0.58, 0.14, 0.03 * half))
    for x in axles:
        parts += [_arch(x, side * 0.975 * width / 2, radius + 0.02, radius + 0.06) for side in (-1, 1)]
    sill = 0.975 * width / 2
    parts.append(block((-0.4 * half, 0.42 * half), (-sill, sill), (0.2, 0.3), PLAIN, DARK))
    parts += _wheels([(x, 0.5 * width) for x in axles], radius, 0.2)
    parts += _lamps(half, -half, 0.88 * wide, 0.58, 0.14, 0.03 * half)
    parts += [_sheet(x, (-0.26, 0.26), (0.4, 0.51), 0.0, PLAIN, LIGHT) for x in (half + 0.012, -half - 0.012)]
    parts.append(_sheet(half + 0.01, (-0.5 * wide, 0.5 * wide), (0.24, 0.36), 0.0, PLAIN, BLACK))
    for hand in (-1, 1):
        inner, outer = sorted((hand * 0.93 * wide, hand * 0.5 * width))
        parts.append(block((0.36 * half, 0.42 * half), (inner, outer), (waist, waist + 0.14), PAINT, FIRST))
    return joined(parts)


def _pickup(length: float, width: float, height: float) -> Mesh:
    half, wide = length / 2, 0.485 * width
    side = [
        (-0.99, 0.4, 0.95),
        (0.97, 0.38, 0.95),
        (1.0, 0.6, 0.94),
        (0.97, 0.95, 0.95),
        (0.42, 1.1, 0.96),
        (-1.0, 1.1, 0.96),
    ]
    parts = [loft([(x * half, z, w * wide) for x, z, w in side], PAINT, FIRST)]
    foot, roof = 0.93 * wide, 0.76 * wide
    parts.append(
        frustum(
            (-0.12 * half, 0.44 * half, -foot, foot, 1.08), (-0.06 * half, 0.2 * half, -roof, roof, height),
            WINDOWS, FIRST, top=(PAINT, FIRST), panes=(1, 2),
        )
    )  # fmt: skip
    parts.append(block((-0.97 * half, -0.14 * half), (-0.8 * wide, 0.8 * wide), (1.09, 1.12), PLAIN, BLACK))
    parts += _wheels([(0.62 * half, 0.5 * width), (-0.6 * half, 0.5 * width)], 0.4, 0.25)
    return joined(parts + _lamps(half, -half, 0.88 * wide, 0.72))


def _truck(length: float, width: float, height: float, cargo: bool) -> Mesh:
    half, wide = length / 2, width / 2
    cab = half - 1.9
    parts = [
        block((-half, half - 0.3), (-0.4 * wide, 0.4 * wide), (0.55, 0.85), PLAIN, DARK),
        block((cab, half), (-0.94 * wide, 0.94 * wide), (0.5, 1.45), PAINT, FIRST),
        frustum(
            (cab, half, -0.94 * wide, 0.94 * wide, 1.45), (cab, half - 0.25, -0.9 * wide, 0.9 * wide, 2.35),
            WINDOWS, FIRST, top=(PAINT, FIRST), panes=(1, 1),
        ),
        frustum((cab, half - 0.25, -0.9 * wide, 0.9 * wide, 2.35),
                (cab, half - 0.9, -0.85 * wide, 0.85 * wide, 2.9 if cargo else height), PAINT, FIRST),
        block((half - 0.03, half + 0.02), (-0.6 * wide, 0.6 * wide), (0.75, 1.25), PLAIN, BLACK),
    ]  # fmt: skip
    if cargo:
        parts.append(block((-half, cab - 0.15), (-wide, wide), (0.95, height), PANEL, SECOND))
    axles = [half - 1.1, -half + 1.3] + ([] if cargo else [-half + 2.35])
    parts += _wheels([(x, 0.99 * wide) for x in axles], 0.48, 0.32)
    return joined(parts + _lamps(half, -half, 0.85 * wide, 0.6))


def _bus(length: float, width: float, height: float) -> Mesh:
    half, wide = length / 2, width / 2 - 0.01
    parts = [
        block((-half, half), (-wide, wide), (0.32, 1.05), PAINT, FIRST),
        frustum(
            (-half, half, -wide, wide, 1.05), (-half, half, -wide, wide, 2.55),
            WINDOWS, FIRST, top=(PAINT, FIRST), panes=(1, 8),
        ),
        block((-half, half), (-wide, wide), (2.55, 2.95), PAINT, SECOND),
        block((-0.5 * half, 0.6 * half), (-0.7 * wide, 0.7 * wide), (2.95, height), PLAIN, LIGHT),
        block((half - 0.02, half + 0.02), (-0.7 * wide, 0.7 * wide), (2.6, 2.88), LAMP, (0.8, 0.45, 0.05)),
    ]  # fmt: skip
    parts += _wheels([(0.62 * half, width / 2), (-0.5 * half, width / 2)], 0.48, 0.3)
    return joined(parts + _lamps(half, -half, 0.9 * wide, 0.55))


def _trailer(length: float, width: float, height: float) -> Mesh:
    half, wide = length / 2, width / 2
    parts = [
        block((-half, half), (-wide, wide), (1.05, height), PANEL, FIRST),
        block((-half + 0.2, half - 0.2), (-0.4 * wide, 0.4 * wide), (0.75, 1.05), PLAIN, DARK),
        block((0.45 * half, 0.5 * half), (-0.6 * wide, -0.5 * wide), (0.0, 0.8), PLAIN, DARK),
        block((0.45 * half, 0.5 * half), (0.5 * wide, 0.6 * wide), (0.0, 0.8), PLAIN, DARK),
        block((-half, -half + 0.1), (-0.95 * wide, 0.95 * wide), (0.5, 0.62), STRIPES, RED),
    ]
    parts += _wheels([(-half + shift, 0.98 * wide) for shift in (1.1, 2.3, 3.5)], 0.48, 0.32)
    return joined(parts + _lamps(half, -half, 0.85 * wide, 0.75)[1::2])


def _cart(length: float, width: float, height: float) -> Mesh:
    half, wide = length / 2, width / 2
    parts = [
        block((-half, half - 1.1), (-0.8 * wide, 0.8 * wide), (0.5, height), PANEL, FIRST),
        block((half - 1.1, half), (-0.05, 0.05), (0.45, 0.55), METAL, GREY),
        block((half - 0.35, half - 0.25), (-0.04, 0.04), (0.0, 0.5), METAL, GREY),
    ]
    return joined(parts + _wheels([(-0.3 * half, wide)], 0.33, 0.2))


def _excavator() -> Mesh:
    parts = [
        block((-1.9, 1.9), (side * 0.85 - 0.28, side * 0.85 + 0.28), (0.12, 0.85), PLAIN, BLACK) for side in (-1, 1)
    ]
    for side in (-1, 1):
        parts += [
            tube((x, side * 1.14 - 0.01, 0.48), (x, side * 1.14 + 0.01, 0.48), (0.42, 0.42), 10, PLAIN, DARK)
            for x in (-1.6, 1.6)
        ]
    parts += [
        block((-1.2, 1.2), (-0.6, 0.6), (0.4, 1.0), PLAIN, DARK),
        frustum((-2.1, 1.1, -1.2, 1.2, 1.0), (-1.9, 1.0, -1.15, 1.15, 1.95), PAINT, YELLOW),
        frustum(
            (-0.2, 1.1, 0.25, 1.2, 1.9),
            (-0.1, 0.8, 0.3, 1.1, 2.9),
            WINDOWS,
            YELLOW,
            top=(PAINT, YELLOW),
            panes=(1, 1),
        ),
        tube((0.8, -0.35, 1.4), (2.9, -0.35, 3.05), (0.3, 0.2), 6, PAINT, YELLOW),
        tube((2.8, -0.35, 3.1), (4.2, -0.35, 1.3), (0.2, 0.14), 6, PAINT, YELLOW),
        tube((1.4, -0.35, 1.5), (2.3, -0.35, 2.5), (0.09, 0.09), 6, METAL, LIGHT),
        frustum((3.7, 4.5, -0.75, 0.05, 0.25), (3.9, 4.4, -0.75, 0.05, 1.25), METAL, DARK),
        block((-2.15, -2.05), (-1.1, 1.1), (1.1, 1.35), STRIPES, RED),
    ]
    return joined(parts)


def _loader() -> Mesh:
    parts = [
        frustum((-2.9, 0.2, -0.85, 0.85, 0.7), (-2.7, 0.1, -0.8, 0.8, 1.9), PAINT, YELLOW),
        frustum(
            (-1.1, 0.5, -0.7, 0.7, 1.7),
            (-1.0, 0.3, -0.65, 0.65, 3.0),
            WINDOWS,
            YELLOW,
            top=(PAINT, YELLOW),
            panes=(1, 1),
        ),
        block((0.2, 1.9), (-0.6, 0.6), (0.7, 1.35), PAINT, YELLOW),
        frustum((2.4, 3.4, -1.25, 1.25, 0.1), (2.3, 2.8, -1.25, 1.25, 1.1), METAL, GREY),
    ]
    parts += [tube((0.9, side * 0.5, 1.3), (2.5, side * 0.5, 0.6), (0.15, 0.12), 6, PAINT, YELLOW) for side in (-1, 1)]
    return joined(parts + _wheels([(-1.8, 1.25), (1.3, 1.25)], 0.72, 0.5))


def _barrier(length: float, width: float, height: float) -> Mesh:
    wide = width / 2
    boards = [block((-0.03, 0.03), (-wide, wide), (z * height, z * height + 0.26), STRIPES, RED) for z in (0.3, 0.74)]
    posts = [
        block((-0.05, 0.05), (y - 0.04, y + 0.04), (0.05, 0.9 * height), PLAIN, GREY)
        for y in (-0.75 * wide, 0.75 * wide)
    ]
    feet = [
        block((-length / 2, length / 2), (y - 0.08, y + 0.08), (0, 0.1), PLAIN, DARK)
        for y in (-0.75 * wide, 0.75 * wide)
    ]
    lamps = [
        tube((0, y, height), (0, y, height + 0.12), (0.07, 0.07), 6, LAMP, (0.9, 0.5, 0.05))
        for y in (-0.8 * wide, 0.8 * wide)
    ]
    return joined(boards + posts + feet + lamps)


def _cone() -> Mesh:
    return joined(
        [
            block((-0.2, 0.2), (-0.2, 0.2), (0.0, 0.05), PLAIN, ORANGE),
            tube((0, 0, 0.05), (0, 0, 0.75), (0.16, 0.03), 10, STRIPES, ORANGE),
        ]
    )


def _limb(start: Place, end: Place, thick: float, colour: Colour) -> Mesh:
    return tube(start, end, (thick, 0.72 * thick), 6, CLOTH, colour, None, "none")


def _head(x: float, z: float) -> list[Mesh]:
    return [
        blob((x, 0, z), (0.1, 0.085, 0.125), 0.0, 1, PLAIN, THIRD),
        blob((x - 0.02, 0, z + 0.035), (0.108, 0.098, 0.11), 0.0, 1, PLAIN, DARK),
        tube((x, 0, z - 0.2), (x, 0, z - 0.08), (0.05, 0.05), 6, PLAIN, THIRD),
    ]


def _person(step: str) -> Mesh:
    stride = {"standing": 0.0, "left": 0.2, "passing": 0.03, "right": -0.2}[step]
    parts = []
    for side, swing in ((1, stride), (-1, -stride)):
        knee = (0.75 * swing + 0.06 * abs(swing) / 0.2, side * 0.095, 0.48)
        foot = (1.15 * swing, side * 0.1, 0.08)
        parts += [_limb((0, side * 0.09, 0.9), knee, 0.09, SECOND), _limb(knee, foot, 0.07, SECOND)]
        parts.append(block((foot[0] - 0.1, foot[0] + 0.17), (foot[1] - 0.05, foot[1] + 0.05), (0, 0.1), PLAIN, BLACK))
        elbow = (-0.5 * swing - 0.02, side * 0.27, 1.14)
        hand = (-0.9 * swing + 0.06, side * 0.27, 0.9)
        parts += [_limb((0, side * 0.2, 1.42), elbow, 0.06, FIRST), _limb(elbow, hand, 0.052, FIRST)]
        parts.append(blob(hand, (0.045, 0.03, 0.06), 0.0, 1, PLAIN, THIRD, 0))
    parts.append(blob((0, 0, 1.18), (0.135, 0.2, 0.34), 0.0, 2, CLOTH, FIRST))
    parts.append(blob((0, 0, 1.36), (0.12, 0.225, 0.14), 0.0, 2, CLOTH, FIRST))
    parts.append(blob((0, 0, 0.93), (0.13, 0.17, 0.14), 0.0, 2, CLOTH, SECOND))
    return joined(parts + _head(0.01, 1.63))


def _rider(x: float, seat: float, reach: float) -> Mesh:
    """Somebody sitting at (x, seat height), hands `reach` ahead."""
    parts = [tube((x, 0, seat), (x + 0.18, 0, seat + 0.52), (0.15, 0.19), 8, CLOTH, FIRST)]
    for side in (-1, 1):
        shoulder, hip = (x + 0.18, side * 0.18, seat + 0.5), (x, side * 0.1, seat)
        parts.append(_limb(shoulder, (x + reach, side * 0.24, seat + 0.14), 0.055, FIRST))
        knee, foot = (
            (x + 0.36, side * 0.13, seat - 0.12 - 0.1 * side),
            (x + 0.18, side * 0.12, seat - 0.52 - 0.1 * side),
        )
        parts += [_limb(hip, knee, 0.09, SECOND), _limb(knee, foot, 0.07, SECOND)]
        parts.append(
            block(
                (foot[0] - 0.08, foot[0] + 0.16),
                (foot[1] - 0.05, foot[1] + 0.05),
                (foot[2] - 0.05, foot[2] + 0.04),
                PLAIN,
                BLACK,
            )
        )
    return joined(parts + [mesh.placed((0.06, 0.0, 0.0)) for mesh in _head(x + 0.16, seat + 0.76)])


def _ring(x: float, radius: float, width: float, tyre: float) -> list[Mesh]:
    """A spoked wheel as a rim of short bars and thin spokes."""
    angle = np.arange(13) * 2 * np.pi / 12
    rim = [(x + (radius - tyre) * np.cos(a), 0.0, radius + (radius - tyre) * np.sin(a)) for a in angle]
    parts = [tube(rim[i], rim[i + 1], (tyre, tyre), 4, PLAIN, BLACK, None, "none") for i in range(12)]
    parts += [tube((x, 0, radius), rim[i], (0.008, 0.008), 3, METAL, GREY, None, "none") for i in (0, 2, 4, 6, 8, 10)]
    return [*parts, tube((x, -width, radius), (x, width, radius), (0.05, 0.05), 6, METAL, GREY)]


def _bicycle() -> Mesh:
    hub, head, saddle, crank = (-0.52, 0, 0.34), (0.38, 0, 0.82), (-0.2, 0, 0.86), (-0.08, 0, 0.3)
    parts = _ring(-0.52, 0.34, 0.05, 0.022) + _ring(0.52, 0.34, 0.05, 0.022)
    bars = (
        (hub, crank),
        (crank, saddle),
        (saddle, hub),
        (saddle, head),
        (crank, head),
        ((0.52, 0, 0.34), head),
    )
    parts += [tube(start, end, (0.024, 0.024), 5, PAINT, THIRD) for start, end in bars]
    parts.append(tube((0.34, -0.28, 1.0), (0.34, 0.28, 1.0), (0.02, 0.02), 5, METAL, DARK))
    parts.append(tube(head, (0.34, 0, 1.02), (0.022, 0.022), 5, METAL, DARK))
    parts.append(block((-0.34, -0.08), (-0.07, 0.07), (0.88, 0.95), PLAIN, BLACK))
    return joined(parts)


def _motorcycle() -> Mesh:
    wheels = [
        tube((x, -0.07, 0.31), (x, 0.07, 0.31), (0.31, 0.31), 12, PLAIN, BLACK, (WHEEL, GREY)) for x in (-0.7, 0.7)
    ]
    parts = [
        *wheels,
        blob((0.15, 0, 0.78), (0.36, 0.17, 0.2), 0.0, 3, PAINT, FIRST),
        block((-0.6, 0.05), (-0.13, 0.13), (0.66, 0.78), PLAIN, BLACK),
        block((-0.2, 0.3), (-0.16, 0.16), (0.32, 0.64), METAL, DARK),
        block((-0.85, -0.5), (-0.1, 0.1), (0.66, 0.84), PAINT, FIRST),
        tube((0.7, 0.0, 0.31), (0.42, 0.0, 0.98), (0.06, 0.06), 6, METAL, GREY),
        tube((0.4, -0.38, 1.04), (0.4, 0.38, 1.04), (0.025, 0.025), 5, METAL, DARK),
        block((0.46, 0.58), (-0.1, 0.1), (0.84, 1.0), LAMP, (0.9, 0.9, 0.8)),
        tube((-0.75, -0.17, 0.4), (-0.1, -0.17, 0.36), (0.05, 0.05), 6, METAL, LIGHT),
        frustum((0.3, 0.5, -0.14, 0.14, 1.0), (0.28, 0.36, -0.1, 0.1, 1.22), WINDOWS, DARK, panes=(1, 1)),
    ]
    return joined(parts)
