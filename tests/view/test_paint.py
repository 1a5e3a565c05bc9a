import numpy as np
import pytest
import torch
from PIL import Image

from cofield.classes import DETECTION, LIDARSEG, MAP_LAYERS, UNKNOWN
from cofield.data.simulate import World
from cofield.frame import Boxes, Frame, Maps, Points
from cofield.grid import BoxGrid
from cofield.view import paint
from cofield.view.gallery import render_world

GRID = BoxGrid((-8.0, -4.0, -1.0), (0.5, 0.5, 3.0), (32, 16, 1))


def frame(maps: Maps | None, boxes: Boxes | None = None) -> Frame:
    points = Points(torch.zeros(0, 3), torch.zeros(0), torch.zeros(0), torch.zeros(0).long())
    return Frame("t", "s", 0.0, torch.eye(4).double(), (), points, torch.zeros(1, 3), boxes, maps)


def test_colours_survive_the_way_to_bytes():
    image = torch.zeros(3, 2, 5)
    image[0, 1, 4], image[2, 0, 1] = 1.0, 0.5
    shown = paint.picture(image)
    assert shown.shape == (2, 5, 3)
    assert shown[1, 4].tolist() == [255, 0, 0]
    assert shown[0, 1].tolist() == [0, 0, 128]


def test_near_is_brighter_than_far_and_the_sky_is_white():
    depth = torch.tensor([[2.0, 5.0, 20.0, 80.0, torch.inf, 0.0]])
    shown = paint.depth_picture(depth)[0]
    bright = shown[:4].astype(int).sum(-1)
    assert (np.diff(bright) < 0).all()
    assert shown[4].tolist() == [255, 255, 255]
    assert shown[5].tolist() == [0, 0, 0]


def test_every_class_has_a_colour_of_its_own():
    shown = paint.semantic_picture(torch.arange(-1, len(LIDARSEG))[None])[0]
    assert len({tuple(colour) for colour in shown.tolist()}) == len(LIDARSEG) + 1
    assert len({tuple(colour) for colour in paint.BOX_PALETTE.tolist()}) == len(DETECTION)


def test_neighbouring_tracks_are_told_apart():
    shown = paint.instance_picture(torch.tensor([[UNKNOWN, 0, 1, 2, 3]]))[0].astype(int)
    assert np.abs(shown[1:, None] - shown[None, 1:]).sum(-1)[~np.eye(4, dtype=bool)].min() > 60
    assert np.ptp(shown[0]) == 0


def test_the_map_has_ahead_at_the_top_and_left_on_the_left():
    layers = torch.zeros(len(MAP_LAYERS), 16, 32, dtype=torch.bool)
    drivable = layers[MAP_LAYERS.index("drivable_area")]
    drivable[15, 31] = True  # the cell furthest to the left and ahead
    shown = paint.map_picture(Maps(layers, GRID))
    assert shown.shape == (32, 16, 3)
    differs = (shown != shown[5, 5]).any(-1)
    assert differs.nonzero()[0].tolist() == [0]
    assert differs.nonzero()[1].tolist() == [0]


def test_a_box_is_drawn_where_it_is():
    box = Boxes(
        torch.tensor([[5.0, 2.0, 0.5]]), torch.tensor([[2.0, 1.0, 1.0]]), torch.zeros(1), torch.zeros(1, 2),
        torch.tensor([DETECTION.index("bus")]),
    )  # fmt: skip
    bare, boxed = (paint.bird_picture(frame(None, boxes), GRID, scale=10) for boxes in (None, box))
    rows, columns = (bare != boxed).any(-1).nonzero()
    # Row (8 - x) · 20, column (4 - y) · 20 of a 16 m × 8 m area at 20 pixels per metre.
    assert rows.min() == pytest.approx((8 - 6) * 20, abs=3)
    assert rows.max() == pytest.approx((8 - 4) * 20, abs=3)
    assert columns.min() == pytest.approx((4 - 2.5) * 20, abs=3)
    assert columns.max() == pytest.approx((4 - 1.5) * 20, abs=3)


def test_tiles_keep_every_picture_at_one_width():
    wide, tall = np.full((10, 40, 3), 200, np.uint8), np.full((30, 20, 3), 90, np.uint8)
    sheet = paint.tiles([("wide", wide), ("tall", tall), ("again", wide)], columns=2)
    assert sheet.shape == (14 + 60 + 14 + 10, 80, 3)
    assert (sheet[16:20, :40] == 200).all()
    assert (sheet[20:60, 42:] == 90).all()
    with pytest.raises(ValueError, match="at least one"):
        paint.tiles([], 2)


def test_a_ply_file_holds_the_points_and_colours(tmp_path):
    xyz, colour = torch.tensor([[1.0, 2.0, 3.0], [-4.0, 5.5, 0.25]]), np.array([[1, 2, 3], [250, 0, 9]], np.uint8)
    path = tmp_path / "cloud.ply"
    paint.write_ply(path, xyz, colour)
    head, body = path.read_bytes().split(b"end_header\n")
    assert b"element vertex 2" in head
    table = np.frombuffer(body, [("xyz", "<f4", 3), ("rgb", "u1", 3)])
    np.testing.assert_array_equal(table["xyz"], xyz.numpy())
    np.testing.assert_array_equal(table["rgb"], colour)


def test_a_rendered_world_is_a_folder_of_pictures(tmp_path):
    world = World("tiny", split="val")
    render_world(world, tmp_path, frames=2)
    names = sorted(path.name for path in tmp_path.iterdir())
    assert sum(name.endswith(".ply") for name in names) == 2
    assert sum(name.endswith(".png") for name in names) == 2 * (4 * 4 + 1) + 1
    assert "contact_sheet.png" in names
    with Image.open(tmp_path / "tiny-tune-val-0000-0_front_depth.png") as picture:
        assert picture.size == (160, 64)
    with pytest.raises(ValueError, match="1 to 70"):
        render_world(world, tmp_path, frames=0)
