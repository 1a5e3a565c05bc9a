"""The colour of what a ray met: procedural surfaces, sun, sky, shadow, haze, exposure; and its laser echo.

Everything is a function of the place and the material, so any camera sees the same surface. Patterns
finer than a pixel's footprint fade into their mean.
"""

from math import exp, floor, sqrt
from typing import no_type_check

import numpy as np
from numba import njit

from cofield.data import ground as g
from cofield.data import shapes as m

Array = np.ndarray

_REFLECTIVITY = m.REFLECTIVITY
_GAMMA = (np.arange(4097) / 4096).astype(np.float32) ** np.float32(0.4545)
_GROUND_ECHO = np.array([0.12, 0.28, 0.36, 0.3, 0.14, 0.36, 0.25, 0.3], np.float32)


@njit(cache=True)
@no_type_check
def _hash(x, y, z):
    """A number in 0..1 for three integers."""
    h = (np.int64(x) * 374761393 + np.int64(y) * 668265263 + np.int64(z) * 2147483647) & 0xFFFFFFFF
    h = ((h ^ (h >> 13)) * 1274126177) & 0xFFFFFFFF
    h = ((h ^ (h >> 16)) * 2246822519) & 0xFFFFFFFF
    return (h ^ (h >> 15)) * (1.0 / 4294967296.0)


@njit(cache=True)
@no_type_check
def _noise(x, y, seed):
    """Smooth noise in 0..1 with features of unit size."""
    ix, iy = floor(x), floor(y)
    fx, fy = x - ix, y - iy
    fx, fy = fx * fx * (3 - 2 * fx), fy * fy * (3 - 2 * fy)
    a = _hash(ix, iy, seed) * (1 - fx) + _hash(ix + 1, iy, seed) * fx
    b = _hash(ix, iy + 1, seed) * (1 - fx) + _hash(ix + 1, iy + 1, seed) * fx
    return a * (1 - fy) + b * fy


@njit(cache=True)
@no_type_check
def _visible(size, footprint):
    """How much of a pattern of this size a pixel of this footprint still shows."""
    return min(1.0, max(0.0, size / footprint - 0.4))


@njit(cache=True)
@no_type_check
def _ground_albedo(x, y, code, footprint, grass):
    surface, paint = code & 7, (code >> g.PAINT_SHIFT) & 3
    grain = (_noise(x * 9, y * 9, 1) - 0.5) * _visible(0.12, footprint)
    patch = _noise(x * 0.3, y * 0.3, 2) - 0.5
    if paint:
        wear = 0.85 + 0.3 * patch + 0.35 * grain
        if paint == g.WHITE:
            return 0.62 * wear, 0.62 * wear, 0.59 * wear
        return 0.55 * wear, 0.36 * wear, 0.06 * wear
    if surface == g.ASPHALT or surface == g.CARPARK:
        tone = 0.085 if surface == g.ASPHALT else 0.125
        tone *= 1 + 0.4 * patch + 0.4 * grain
        crack = abs(_noise(x * 0.55, y * 0.55, 3) - 0.5)
        if crack < 0.007:
            tone *= 1 - 0.25 * _visible(0.08, footprint)
        return tone, tone, 1.05 * tone
    if surface == g.GRASS or surface == g.FIELD:
        blades = (_noise(x * 5, y * 5, 4) - 0.5) * _visible(0.2, footprint) + grain
        tone = 1 + 0.9 * blades + 0.7 * patch
        dry = max(0.0, _noise(x * 0.12, y * 0.12, 5) - 0.55)
        return (grass[0] + 0.25 * dry) * tone, (grass[1] + 0.12 * dry) * tone, grass[2] * tone
    if surface == g.KERBSTONE:
        tone = 0.36 * (1 + 0.2 * patch)
        return tone, tone, 0.97 * tone
    size = 1.3 if surface == g.SIDEWALK else 0.55
    joint = min((x / size) % 1.0, (y / size) % 1.0) * size
    slab = _hash(floor(x / size), floor(y / size), 6) - 0.5
    tone = 1 + 0.16 * slab * _visible(size, footprint) + 0.2 * patch + 0.35 * grain
    if joint < 0.035:
        tone *= 1 - 0.42 * _visible(0.09, footprint)
    if surface == g.SIDEWALK:
        return 0.3 * tone, 0.29 * tone, 0.27 * tone
    if surface == g.YARD:
        return 0.27 * tone, 0.23 * tone, 0.2 * tone
    return 0.26 * tone, 0.2 * tone, 0.17 * tone


@njit(cache=True)
@no_type_check
def _sky(dx, dy, dz, light):
    """The colour of the sky in a direction; `light` packs sun, sunlight, zenith, horizon and clouds."""
    up = max(dz, 0.0)
    t = sqrt(up) if up > 0 else 0.0
    r = light[9] * (1 - t) + light[6] * t
    gr = light[10] * (1 - t) + light[7] * t
    b = light[11] * (1 - t) + light[8] * t
    near = max(0.0, dx * light[0] + dy * light[1] + dz * light[2])
    glow = 0.12 * near**6 + 0.5 * near**60 + 6.0 * near**1500
    cloud = 0.0
    if dz > 0.01:
        px, py = 1.6 * dx / (dz + 0.15), 1.6 * dy / (dz + 0.15)
        seed = int(light[13])
        thick = (
            0.55 * _noise(px, py, seed)
            + 0.3 * _noise(2.3 * px, 2.3 * py, seed + 1)
            + 0.15 * _noise(5 * px, 5 * py, seed + 2)
        )
        cloud = min(1.0, max(0.0, (thick - 0.72 + 0.3 * light[12]) * 4.0)) * min(1.0, dz * 6.0)
    white = 0.75 + 0.35 * near
    mix = 0.75 * cloud
    level = 0.5 * (light[9] + light[10]) + 0.25
    r = r * (1 - mix) + white * level * mix
    gr = gr * (1 - mix) + white * level * mix
    b = b * (1 - mix) + white * level * mix
    return r + glow * light[3] * 0.5, gr + glow * light[4] * 0.5, b + glow * light[5] * 0.5


@njit(cache=True)
@no_type_check
def _wall(material, u, v, r, gr, b, footprint, key):
    """Albedo of a facade, and how much of it is glass."""
    if v < -10:
        return r, gr, b, 0.0
    bay, storey, left, right, low, high = 2.8, 3.2, 0.24, 0.76, 0.3, 0.82
    if material == m.CURTAIN:
        bay, storey, left, right, low, high = 1.5, 3.2, 0.04, 0.96, 0.2, 0.97
    elif material == m.HOUSE:
        bay, storey, left, right, low, high = 3.1, 2.9, 0.28, 0.72, 0.34, 0.8
    elif material == m.SHOP:
        bay, storey, left, right, low, high = 3.4, 4.25, 0.06, 0.94, 0.12, 0.78
    column, row = floor(u / bay), floor(v / storey)
    fu, fv = u / bay - column, v / storey - row
    chance = _hash(column, row, key)
    dirt = 1 + 0.16 * (_noise(u * 0.5, v * 0.2, key) - 0.5)
    if material == m.BRICK:
        course = floor(v / 0.085)
        brick = _hash(floor(u / 0.24 + 0.5 * (course % 2)), course, 9) - 0.5
        dirt *= 1 + 0.35 * brick * _visible(0.16, footprint)
    elif material == m.HOUSE:
        dirt *= 1 - 0.25 * _visible(0.15, footprint) * ((v / 0.2) % 1.0 < 0.18)
    elif material == m.SHOP and fv > 0.8:
        shift = _hash(floor(u / (3 * bay)), 0, key)
        letters = fv < 0.93 and fv > 0.84 and _hash(floor(u / 0.3), 1, key) > 0.45 and (u / 0.3) % 1.0 > 0.25
        if letters:
            return 0.75, 0.72, 0.62, 0.0
        return 0.08 + 0.5 * shift * shift, 0.1 + 0.25 * (1 - shift), 0.08 + 0.4 * (1 - shift) * shift, 0.0
    if material == m.HOUSE and row == 0 and chance > 0.72:
        # A door.
        if 0.32 < fu < 0.66 and fv < 0.72:
            return 0.16, 0.07 + 0.1 * chance, 0.06, 0.0
        return r * dirt, gr * dirt, b * dirt, 0.0
    blind = material == m.HOUSE and chance < 0.25
    if left < fu < right and low < fv < high and not blind:
        frame = 0.05 / bay
        middle = abs(fu - 0.5 * (left + right)) < 0.35 * frame and material != m.CURTAIN
        if fu < left + frame or fu > right - frame or fv < low + 0.018 or fv > high - 0.018 or middle:
            return 0.55, 0.55, 0.53, 0.0
        if material == m.SHOP:
            goods = 0.5 * _noise(u * 2.2, v * 2.2, key)
            return 0.22 * goods + 0.06, 0.19 * goods + 0.06, 0.14 * goods + 0.05, 0.45
        if chance > 0.8 and material != m.CURTAIN:
            return 0.4, 0.37, 0.3, 0.35  # curtains drawn
        deep = 0.6 if fv > high - 0.09 else 1.0  # the lintel's shade
        return 0.035 * deep, 0.045 * deep, 0.055 * deep, 0.85
    if low - 0.05 < fv <= low and left - 0.03 < fu < right + 0.03 and material != m.CURTAIN:
        return 0.5 * dirt, 0.48 * dirt, 0.45 * dirt, 0.0  # sill
    return r * dirt, gr * dirt, b * dirt, 0.0


@njit(cache=True)
@no_type_check
def _surface(material, u, v, x, y, z, r, gr, b, footprint, key):
    """Albedo, share of mirror-like glass, share of clear coat, and emission of an object's surface."""
    if (
        material == m.BRICK
        or material == m.PLASTER
        or material == m.CURTAIN
        or material == m.HOUSE
        or material == m.SHOP
    ):
        r, gr, b, glass = _wall(material, u, v, r, gr, b, footprint, key)
        return r, gr, b, glass, 0.0, 0.0
    if material == m.PAINT:
        return r, gr, b, 0.0, 1.0, 0.0
    if material == m.WINDOWS:
        fu = u - floor(u)
        if 0.06 < fu < 0.94 and 0.1 < v < 0.9:
            return 0.02, 0.022, 0.025, 0.9, 0.0, 0.0
        return r, gr, b, 0.0, 1.0, 0.0
    if material == m.WHEEL:
        if u < 0.62:
            tone = 0.38 if u > 0.16 else 0.12
            return tone, tone, tone, 0.0, 0.4, 0.0
        return 0.025, 0.025, 0.025, 0.0, 0.0, 0.0
    if material == m.LAMP:
        return r, gr, b, 0.0, 0.6, 0.45
    if material == m.LEAF:
        fine = _noise(x * 7 + 3 * z, y * 7 - 5 * z, 11) * _visible(0.15, footprint) + 0.5 * (
            1 - _visible(0.15, footprint)
        )
        coarse = _noise(x * 2.1 + z, y * 2.1 - 1.7 * z, 12)
        tone = 0.35 + 0.75 * fine + 0.55 * coarse
        return r * tone, gr * tone, b * tone, 0.0, 0.0, 0.0
    if material == m.BARK:
        tone = 0.7 + 0.6 * _noise(u * 14, v * 2, 13)
        return r * tone, gr * tone, b * tone, 0.0, 0.0, 0.0
    if material == m.TILES:
        tone = (
            1
            + 0.4 * _visible(0.3, footprint) * ((v / 0.33) % 1.0 - 0.5)
            + 0.3 * (_hash(floor(u / 0.28), floor(v / 0.33), 14) - 0.5) * _visible(0.3, footprint)
        )
        return r * tone, gr * tone, b * tone, 0.0, 0.0, 0.0
    if material == m.GRAVEL:
        tone = 0.8 + 0.4 * _noise(x * 3, y * 3, 15)
        return r * tone, gr * tone, b * tone, 0.0, 0.0, 0.0
    if material == m.STRIPES:
        if ((u + v) / 0.36) % 1.0 < 0.5:
            return 0.75, 0.75, 0.73, 0.0, 0.0, 0.0
        return r, gr, b, 0.0, 0.0, 0.0
    if material == m.PANEL:
        tone = 1 - 0.3 * _visible(0.15, footprint) * ((u / 0.42) % 1.0 < 0.16)
        return r * tone, gr * tone, b * tone, 0.0, 0.15, 0.0
    if material == m.METAL:
        return r, gr, b, 0.0, 0.3, 0.0
    if material == m.CLOTH:
        tone = 0.85 + 0.3 * _noise(u * 11 + 3, v * 9, 16)
        return r * tone, gr * tone, b * tone, 0.0, 0.0, 0.0
    return r, gr, b, 0.0, 0.0, 0.0


@njit(cache=True)
@no_type_check
def normals_at(direction, triangle, mover, turns, u, v, corner_normals, corners):
    """The shading normal and the facing geometric normal where rays met triangles; up on the ground."""
    count = len(triangle)
    shading, flat = np.zeros((count, 3), np.float32), np.zeros((count, 3), np.float32)
    for i in range(count):
        t = triangle[i]
        if t < 0:
            shading[i, 2] = flat[i, 2] = 1.0
            continue
        c, s = turns[mover[i], 0], turns[mover[i], 1]
        w = 1 - u[i] - v[i]
        e, f = corners[t, 1] - corners[t, 0], corners[t, 2] - corners[t, 0]
        for kind in range(2):
            if kind == 0:
                nx = w * corner_normals[t, 0, 0] + u[i] * corner_normals[t, 1, 0] + v[i] * corner_normals[t, 2, 0]
                ny = w * corner_normals[t, 0, 1] + u[i] * corner_normals[t, 1, 1] + v[i] * corner_normals[t, 2, 1]
                nz = w * corner_normals[t, 0, 2] + u[i] * corner_normals[t, 1, 2] + v[i] * corner_normals[t, 2, 2]
            else:
                nx, ny, nz = e[1] * f[2] - e[2] * f[1], e[2] * f[0] - e[0] * f[2], e[0] * f[1] - e[1] * f[0]
            nx, ny = c * nx - s * ny, s * nx + c * ny
            size = 1.0 / max(1e-12, sqrt(nx * nx + ny * ny + nz * nz))
            if nx * direction[i, 0] + ny * direction[i, 1] + nz * direction[i, 2] > 0 and kind == 1:
                size = -size
            out = shading if kind == 0 else flat
            out[i, 0], out[i, 1], out[i, 2] = nx * size, ny * size, nz * size
        if shading[i, 0] * flat[i, 0] + shading[i, 1] * flat[i, 1] + shading[i, 2] * flat[i, 2] < 0:
            shading[i, 0], shading[i, 1], shading[i, 2] = -shading[i, 0], -shading[i, 1], -shading[i, 2]
    return shading, flat


@njit(cache=True)
@no_type_check
def towards_sun(origin, direction, distance, flat, sun, softness, seed):
    """Where rays met something, which of those face the sun, and for them rays there, over its disc or a cloudy sky."""
    place, count = np.empty_like(direction), 0
    asked = np.empty(len(place), np.int64)
    for i in range(len(place)):
        far = distance[i] if distance[i] < 1e29 else np.float32(0)
        for k in range(3):
            place[i, k] = origin[i, k] + far * direction[i, k]
        if far > 0 and flat[i, 0] * sun[0] + flat[i, 1] * sun[1] + flat[i, 2] * sun[2] > 0:
            asked[count] = i
            count += 1
    asked = asked[:count]
    start, way = np.empty((count, 3), np.float32), np.empty((count, 3), np.float32)
    for j in range(count):
        i = asked[j]
        h = int(abs(place[i, 0]) * 977.0) * 31 + int(abs(place[i, 1]) * 977.0)
        a, b, c = _hash(h, j, seed) - 0.5, _hash(h, j, seed + 1) - 0.5, _hash(h, j, seed + 2) - 0.5
        x, y, z = sun[0] + softness * a * 2, sun[1] + softness * b * 2, sun[2] + softness * c
        size = 1.0 / sqrt(x * x + y * y + z * z)
        way[j, 0], way[j, 1], way[j, 2] = x * size, y * size, max(z * size, 0.05)
        for k in range(3):
            start[j, k] = place[i, k] + 0.012 * flat[i, k]
    return place, asked, start, way


@njit(cache=True)
@no_type_check
def colours(direction, place, distance, code, triangle, agent, u, v, shading, lit, tables, tints, light, grass, pixel):
    """Linear light from each ray's surface to the eye, hazed; `pixel` is the angle of its pixel."""
    corner_uv, material, colour = tables
    out = np.empty((len(direction), 3), np.float32)
    haze = light[14]
    for i in range(len(direction)):
        dx, dy, dz = direction[i, 0], direction[i, 1], direction[i, 2]
        if distance[i] >= 1e29:
            out[i, 0], out[i, 1], out[i, 2] = _sky(dx, dy, dz, light)
            continue
        x, y, z = place[i, 0], place[i, 1], place[i, 2]
        nx, ny, nz = shading[i, 0], shading[i, 1], shading[i, 2]
        facing = max(0.05, -(nx * dx + ny * dy + nz * dz))
        size = distance[i] * pixel[i]
        footprint = size / facing
        glass, coat, glow = 0.0, 0.0, 0.0
        t = triangle[i]
        leaf = False
        if t < 0:
            r, gr, b = _ground_albedo(x, y, code[i], footprint, grass)
        else:
            w = 1 - u[i] - v[i]
            tu = w * corner_uv[t, 0, 0] + u[i] * corner_uv[t, 1, 0] + v[i] * corner_uv[t, 2, 0]
            tv = w * corner_uv[t, 0, 1] + u[i] * corner_uv[t, 1, 1] + v[i] * corner_uv[t, 2, 1]
            r, gr, b = colour[t, 0], colour[t, 1], colour[t, 2]
            if r < 0:
                tint = int(-r) - 1
                r, gr, b = tints[agent[i], tint, 0], tints[agent[i], tint, 1], tints[agent[i], tint, 2]
            key = int(1000 * (colour[t, 0] + 3 * colour[t, 1]) + 7 * round(nx * 3) + 13 * round(ny * 3)) & 1023
            r, gr, b, glass, coat, glow = _surface(material[t], tu, tv, x, y, z, r, gr, b, size, key)
            leaf = material[t] == m.LEAF
        sun = nx * light[0] + ny * light[1] + nz * light[2]
        if leaf:
            sun = 0.75 * max(sun, 0.0) + 0.25  # leaves let light through
        sun = max(sun, 0.0) * lit[i]
        open_sky = 0.5 + 0.5 * nz
        if z < 1.2 and nz < 0.7:
            open_sky *= 0.65 + 0.29 * z  # near the ground, walls and cars see less sky
        bounce = 0.16 * (1 - open_sky)
        for k in range(3):
            albedo = r if k == 0 else (gr if k == 1 else b)
            sky = 0.32 * light[6 + k] + 0.6 * light[9 + k]
            ambient = open_sky * sky + bounce * (light[3 + k] * light[2] + sky)
            out[i, k] = albedo * (light[3 + k] * sun + ambient) + albedo * glow * 1.5
        if glass > 0 or coat > 0:
            dot = nx * dx + ny * dy + nz * dz
            rx, ry, rz = dx - 2 * dot * nx, dy - 2 * dot * ny, dz - 2 * dot * nz
            fresnel = 0.05 + 0.95 * (1 - facing) ** 5
            share = glass * (0.1 + 0.9 * fresnel) * 1.4 + coat * fresnel * 0.8
            share = min(share, 0.85)
            er, eg, eb = _sky(rx, ry, max(rz, 0.02), light)
            # Towards the horizon the other side of the street is mirrored.
            town = min(1.0, max(0.0, 1.0 - (rz - 0.02) / 0.3)) * 0.75
            base = 0.22 * (light[10] + 0.35 * light[4])
            er, eg, eb = (
                er * (1 - town) + base * town,
                eg * (1 - town) + base * 0.95 * town,
                eb * (1 - town) + base * 0.9 * town,
            )
            shine = max(0.0, rx * light[0] + ry * light[1] + rz * light[2])
            shine = lit[i] * (coat * 1.6 + glass * 2.0) * shine**90
            out[i, 0] = out[i, 0] * (1 - share) + share * min(er, 1.5) + shine * light[3]
            out[i, 1] = out[i, 1] * (1 - share) + share * min(eg, 1.5) + shine * light[4]
            out[i, 2] = out[i, 2] * (1 - share) + share * min(eb, 1.5) + shine * light[5]
        mist = 1 - exp(-distance[i] / haze)
        for k in range(3):
            out[i, k] = out[i, k] * (1 - mist) + 0.92 * light[9 + k] * mist
    return out


@njit(cache=True)
@no_type_check
def exposed(linear, exposure, grain, seed):
    """What the sensor makes of linear light: exposure, a film-like curve, gamma, a little noise; 0..1 in bytes."""
    out = np.empty_like(linear)
    for i in range(len(linear)):
        for k in range(3):
            x = max(0.0, linear[i, k]) * exposure
            x = (x * (2.51 * x + 0.03)) / (x * (2.43 * x + 0.59) + 0.14)
            x = _GAMMA[int(4096 * min(1.0, x) + 0.5)]
            x += grain * 1.4 * (_hash(i, k, seed) - 0.5)
            out[i, k] = np.float32(floor(255 * min(1.0, max(0.0, x)) + 0.5)) / np.float32(255)  # a camera gives bytes
    return out


@njit(cache=True)
@no_type_check
def echoes(direction, distance, code, triangle, agent, shading, material, colour, tints):
    """The intensity of each return, 0..1: reflectivity, angle and range."""
    out = np.empty(len(distance), np.float32)
    for i in range(len(distance)):
        t = triangle[i]
        facing = abs(
            shading[i, 0] * direction[i, 0] + shading[i, 1] * direction[i, 1] + shading[i, 2] * direction[i, 2]
        )
        if t < 0:
            back = _GROUND_ECHO[code[i] & 7]
            if (code[i] >> g.PAINT_SHIFT) & 3:
                back = 0.8
        else:
            r, gr, b = colour[t, 0], colour[t, 1], colour[t, 2]
            if r < 0:
                tint = int(-r) - 1
                r, gr, b = tints[agent[i], tint, 0], tints[agent[i], tint, 1], tints[agent[i], tint, 2]
            back = _REFLECTIVITY[material[t]] * (0.6 + 0.8 * (r + gr + b) / 3)
        out[i] = min(1.0, back * (0.4 + 0.6 * facing) * exp(-distance[i] / 150.0))
    return out
