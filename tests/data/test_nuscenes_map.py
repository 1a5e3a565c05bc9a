import json
import math

import numpy as np
import pytest
import torch

from cofield.classes import MAP_LAYERS
from cofield.data.export_map import middle_lines, rectangles
from cofield.data.nuscenes_map import along, inside, open_map, rasterise
from cofield.geometry import pose, yaw_rotation
from cofield.grid import BoxGrid

GRID = BoxGrid((-8.0, -6.0, -1.0), (0.5, 0.25, 1.0), (32, 48, 2), origin_ego=(1.0, 0.5, 0.0))


def expansion(path, areas=None, holes=(), lines=()):
    """A map file with one polygon per named layer, holes in the drivable area, and lane dividers."""
    nodes, polygons, records = [], [], {name: [] for name in MAP_LAYERS.names[:5]}

    def ring(points):
        tokens = [f"n{len(nodes) + i}" for i in range(len(points))]
        nodes.extend({"token": t, "x": x, "y": y} for t, (x, y) in zip(tokens, points, strict=True))
        return tokens

    for name, points in (areas or {}).items():
        inner = [{"node_tokens": ring(hole)} for hole in holes] if name == "drivable_area" else []
        polygons.append({"token": name, "exterior_node_tokens": ring(points), "holes": inner})
        key = {"polygon_tokens": [name]} if name == "drivable_area" else {"polygon_token": name}
        records[name].append({"token": name, **key})
    drawn = [{"token": f"l{i}", "node_tokens": ring(line)} for i, line in enumerate(lines)]
    tables = {"node": nodes, "polygon": polygons, "line": drawn, **records, "road_divider": []}
    tables["lane_divider"] = [{"token": each["token"], "line_token": each["token"]} for each in drawn]
    path.write_text(json.dumps(tables))
    return open_map(path)


def world_of(xy_ego, world_T_ego):
    flat = np.concatenate([np.array(xy_ego, float), np.zeros((len(xy_ego), 1))], 1)
    return ((world_T_ego[:3, :3].numpy() @ flat.T).T + world_T_ego[:3, 3].numpy())[:, :2].tolist()


@pytest.mark.parametrize("yaw", [0.0, 0.7, -2.6])
def test_a_rectangle_with_a_hole_covers_the_cells_whose_centres_it_holds(tmp_path, yaw):
    there = pose(yaw_rotation(torch.tensor(yaw).double()), torch.tensor([600.0, 1500.0, 3.0]).double())
    outer, hole = [(-5.1, -4.2), (4.3, -4.2), (4.3, 5.1), (-5.1, 5.1)], [(0.1, 0.1), (2.1, 0.1), (2.1, 3.2), (0.1, 3.2)]
    vectors = expansion(tmp_path / "m.json", {"drivable_area": world_of(outer, there)}, [world_of(hole, there)])
    maps = rasterise(vectors, there, GRID)
    x, y, _ = GRID.flat().centres()[0].unbind(-1)
    expected = (x > -5.1) & (x < 4.3) & (y > -4.2) & (y < 5.1) & ~((x > 0.1) & (x < 2.1) & (y > 0.1) & (y < 3.2))
    assert maps.layers.shape == (6, 48, 32)
    assert torch.equal(maps.layers[0], expected)
    assert not maps.layers[1:].any()


def test_every_area_has_its_layer(tmp_path):
    squares = {name: [(i, 0), (i + 1, 0), (i + 1, 1), (i, 1)] for i, name in enumerate(MAP_LAYERS.names[:5])}
    maps = rasterise(expansion(tmp_path / "m.json", squares), torch.eye(4).double(), GRID)
    x, y, _ = GRID.flat().centres()[0].unbind(-1)
    for i, name in enumerate(MAP_LAYERS.names[:5]):
        assert torch.equal(maps.layers[MAP_LAYERS.index(name)], (x > i) & (x < i + 1) & (y > 0) & (y < 1))


def test_overlapping_shapes_of_a_layer_do_not_cancel(tmp_path):
    path = tmp_path / "m.json"
    expansion(path, {"walkway": [(0, 0), (3, 0), (3, 3), (0, 3)]})
    tables = json.loads(path.read_text())
    tables["walkway"] *= 2
    path.write_text(json.dumps(tables))
    assert rasterise(open_map(path), torch.eye(4).double(), GRID).layers[MAP_LAYERS.index("walkway")].any()


def test_a_divider_covers_the_cells_within_half_a_cell(tmp_path):
    vectors = expansion(tmp_path / "m.json", lines=[[(-3.0, 1.6), (2.0, 1.6)], [(50.0, 50.0), (60.0, 60.0)]])
    layer = rasterise(vectors, torch.eye(4).double(), GRID).layers[MAP_LAYERS.index("divider")]
    x, y, _ = GRID.flat().centres()[0].unbind(-1)
    # In cells: the end's round cap reaches half a cell further.
    across, beyond = (y - 1.6) / 0.25, (x - x.clamp(-3.0, 2.0)) / 0.5
    assert torch.equal(layer, torch.hypot(across, beyond) <= 0.5)
    assert layer.any()


def test_a_slanted_line_is_as_wide_as_a_straight_one():
    for angle in (0.3, 0.9, 2.2):
        end = 40 * np.array([math.cos(angle), math.sin(angle)])
        edges = np.array([[50.3, 50.1, 50.3 + end[0], 50.1 + end[1]]])
        marked = along(edges, (100, 100))
        assert marked.sum() == pytest.approx(40 + math.pi / 4, rel=0.12)
        y, x = np.mgrid[:100, :100]
        t = (((x - 50.3) * end[0] + (y - 50.1) * end[1]) / 1600).clip(0, 1)
        assert (marked == (np.hypot(x - 50.3 - t * end[0], y - 50.1 - t * end[1]) <= 0.5)).all()


def test_a_corner_on_a_row_counts_once():
    diamond = np.array([[2.0, 5], [5, 2], [8, 5], [5, 8]])
    edges = np.concatenate([diamond, np.roll(diamond, -1, 0)], 1)
    y, x = np.mgrid[:11, :11]
    marked = inside(edges, (11, 11))
    assert (marked[np.abs(x - 5) + np.abs(y - 5) < 3]).all()
    assert not (marked[np.abs(x - 5) + np.abs(y - 5) > 3]).any()


def test_what_is_far_away_is_not_drawn(tmp_path):
    vectors = expansion(tmp_path / "m.json", {"walkway": [(900, 900), (901, 900), (901, 901)]})
    assert not rasterise(vectors, torch.eye(4).double(), GRID).layers.any()


def test_a_file_that_is_no_map_is_named(tmp_path):
    (tmp_path / "m.json").write_text('{"node": []}')
    with pytest.raises(ValueError, match=r"m\.json is no map expansion \(KeyError\('polygon'\)\); fetch it again"):
        open_map(tmp_path / "m.json")


def test_rectangles_tile_exactly_what_is_marked():
    layer = np.random.default_rng(0).random((13, 17)) > 0.4
    covered = np.zeros(layer.shape, int)
    for ring in rectangles(layer):
        x0, y0, x1, y1 = (int(v) for v in (*ring[0], *ring[2]))
        covered[y0:y1, x0:x1] += 1
    assert (covered == layer).all()


def test_middle_lines_run_along_a_strip():
    layer = np.zeros((30, 20), bool)
    for y in range(30):
        layer[y, 4 + y // 4 : 7 + y // 4] = True
    lines = np.array(middle_lines(layer))
    offset = np.abs(lines[..., 0] - 5.5 - lines[..., 1] // 4)
    assert len(lines) >= 29
    assert offset.max() <= 1.5
