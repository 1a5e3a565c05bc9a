import math
from dataclasses import replace

import pytest
import torch

from cofield.draw import generator
from cofield.frame import Batch, collate
from cofield.geometry import inverse, pose, transform, yaw_rotation
from cofield.grid import Volume
from cofield.models.blocks import compute_in
from cofield.models.camera import MaskToken
from cofield.models.field import light
from cofield.models.lift import DepthBins, Lift, depth_image, places
from cofield.models.mask import hide
from cofield.models.trunk import Trunk
from cofield.train.build import build_trunk, seeded
from cofield.train.config import Model
from streets import GRID, camera, config, frame


def trunk(**changes: str) -> Trunk:
    with seeded("trunk"):
        return build_trunk(replace(config().model, **changes), GRID, patch=8).eval()


def scrambled(batch: Batch, hidden_pixels: torch.Tensor, hidden_points: torch.Tensor) -> Batch:
    """The batch with everything hidden replaced by something wild."""
    draw = generator("scrambled")
    noise = torch.rand(batch.images.shape, generator=draw) * 50 - 20
    images = torch.where(hidden_pixels[:, :, None], noise, batch.images)
    shift = torch.randn(batch.points.xyz_ego.shape, generator=draw) * 30
    xyz = torch.where(hidden_points[:, None], batch.points.xyz_ego + shift, batch.points.xyz_ego)
    return replace(batch, images=images, points=replace(batch.points, xyz_ego=xyz))


def test_nothing_hidden_reaches_an_encoder() -> None:
    batch = collate([frame("a", count=300), frame("b", count=200)])
    hidden = hide(batch, config().mask, 0)
    pixels = hidden.pixels(16, 40)
    other = scrambled(batch, pixels, hidden.points)
    model = trunk()
    assert not torch.equal(batch.images, other.images)
    assert torch.equal(model(batch, hidden).features, model(other, hidden).features)
    assert torch.equal(light(batch.visible(hidden), hidden), light(other.visible(hidden), hidden))
    # The test can fail: without hiding, the same change is seen.
    assert not torch.equal(model(batch).features, model(other).features)


def test_what_is_visible_does_reach_the_volume() -> None:
    batch = collate([frame("a", count=300)])
    hidden = hide(batch, config().mask, 0)
    for other in (
        replace(batch, images=batch.images * 0.5),
        replace(batch, points=replace(batch.points, intensity=batch.points.intensity * 0.5)),
    ):
        assert not torch.equal(trunk()(batch, hidden).features, trunk()(other, hidden).features)


@pytest.mark.parametrize(("camera", "lidar"), [("conv", "none"), ("none", "pillars"), ("conv", "pillars")])
def test_a_trunk_gives_one_volume_whichever_sensors_it_has(camera: str, lidar: str) -> None:
    model = trunk(camera=camera, lidar=lidar)
    volume = model(collate([frame("a"), frame("b")]))
    assert volume.features.shape == (2, 8, 5, 16, 24)
    assert volume.features.std() > 0
    assert (model.camera is None, model.lidar is None) == (camera == "none", lidar == "none")


def test_a_trunk_without_sensors_and_a_camera_trunk_without_cameras_are_refused() -> None:
    with pytest.raises(ValueError, match="a camera encoder, a LiDAR encoder, or both"):
        trunk(camera="none", lidar="none")
    with pytest.raises(ValueError, match="the frames have no cameras"):
        trunk()(collate([frame("a", cameras=0)]))


def test_frames_do_not_see_each_other() -> None:
    model = trunk()
    one = model(collate([frame("a"), frame("b", count=70)])).features
    two = model(collate([frame("b", count=70), frame("a")])).features
    torch.testing.assert_close(one, two.flip(0), atol=1e-5, rtol=1e-4)


def test_the_order_of_the_cameras_does_not_matter() -> None:
    one = frame("a", cameras=3)
    two = replace(one, cameras=one.cameras[::-1])
    model = trunk()
    torch.testing.assert_close(model(collate([one])).features, model(collate([two])).features, atol=1e-5, rtol=1e-4)


def test_frames_without_points_and_cameras_that_see_nothing_are_fine() -> None:
    empty = frame("a", count=0)
    dark = replace(empty, cameras=tuple(replace(c, image=c.image * 0) for c in empty.cameras))
    for model in (trunk(), trunk(camera="none")):
        assert model(collate([empty, dark])).features.isfinite().all()


def test_half_precision_layers_leave_coordinates_alone() -> None:
    batch = collate([frame("a", count=200)])
    model = trunk()
    exact = model(batch).features
    compute_in(model, torch.bfloat16)
    rough = model(batch).features
    assert rough.dtype == torch.float32
    assert not torch.equal(exact, rough)
    assert (exact - rough).abs().max() < 0.05 * exact.abs().max()


def test_a_pixels_depth_bins_lie_along_its_ray() -> None:
    batch = collate([frame("a")])
    bins = DepthBins(lower=1.0, step=1.0, count=12)
    where = places(batch, GRID, bins, 8).view(1, 2, 2, 5, 12)
    # The forward camera's feature pixel (0, 2) covers image rows 0 to 8 and columns 16 to 24: its centre is the
    # middle column, 4 pixels above the principal point, so a metre ahead is a fifth of a metre up.
    ahead = bins.centres()
    xyz = torch.stack([0.5 + ahead, 0 * ahead, 1.5 + ahead * 4 / 20], -1)
    cell, inside = GRID.cell_of(xyz)
    assert inside.sum() == 10
    assert torch.equal(where[0, 0, 0, 2], torch.where(inside, cell, -1))


def test_the_depth_image_shows_the_nearest_point_and_where_there_is_none() -> None:
    base = frame("a", count=3)
    xyz = torch.tensor([[4.5, 0.01, 1.49], [8.5, 0.01, 1.49], [-5.0, 0.0, 1.5]])
    batch = collate([replace(base, points=replace(base.points, xyz_ego=xyz))])
    image = depth_image(batch, DepthBins(1.0, 1.0, 19))
    assert image.shape == (1, 2, 2, 16, 40)
    assert image[0, 0, 1].sum() == 1
    torch.testing.assert_close(image[0, 0, 0].max(), torch.tensor(4.0 / 20))
    assert image[0, 0, 0].argmax() == image[0, 0, 1].argmax()
    assert not image[0, 1].any()


def test_turning_the_world_and_the_cameras_turns_the_lifted_volume() -> None:
    """On a square grid a quarter turn maps cells to cells, so the splat must follow exactly."""
    square = replace(GRID, lower=(-10.0, -10.0, -1.0), count=(20, 20, 5))
    with seeded("lift"):
        model = Lift(16, 8, square, 8, DepthBins(1.0, 0.83, 12))
    features = torch.randn(1, 2, 16, 2, 5, generator=generator("features"))
    # Not along the axes: there every second bin's centre would lie on a cell's border, and fall to either side.
    cameras = tuple(camera(name, yaw_deg=yaw) for name, yaw in (("left", 17.0), ("right", -71.0)))
    still = collate([replace(frame("a"), cameras=cameras)])
    a_T_b = pose(yaw_rotation(torch.tensor(math.pi / 2)), torch.zeros(3))
    turned = replace(
        still,
        cam_T_ego=still.cam_T_ego @ inverse(a_T_b),
        points=replace(still.points, xyz_ego=transform(a_T_b, still.points.xyz_ego)),
    )
    one: Volume = model(features, still, still.valid)
    two: Volume = model(features, turned, turned.valid)
    expected = torch.rot90(one.features, 1, (-1, -2))
    torch.testing.assert_close(two.features, expected, atol=1e-4, rtol=0)
    occupied = (one.features != 0).any(1)
    assert 100 < occupied.sum() < 240
    assert not torch.allclose(two.features, one.features, atol=1e-4)


def test_the_mask_token_is_tiled_over_hidden_patches() -> None:
    token = MaskToken(4)
    with torch.no_grad():
        token.patch.copy_(torch.randn(3, 4, 4, generator=generator("token")))
    images = torch.rand(1, 2, 3, 8, 12, generator=generator("images"))
    hidden = torch.zeros(1, 2, 8, 12, dtype=torch.bool)
    hidden[0, 1, 4:, 8:] = hidden[0, 1, :4, :4] = True
    out = token(images, hidden)
    torch.testing.assert_close(out[0, 1, :, 4:, 8:], token.patch)
    torch.testing.assert_close(out[0, 1, :, :4, :4], token.patch)
    torch.testing.assert_close(out[0, 0], token(images, None)[0, 0])
    with pytest.raises(ValueError, match="does not tile"):
        token(torch.zeros(1, 1, 3, 6, 8), torch.zeros(1, 1, 6, 8, dtype=torch.bool))


def test_no_geometry_is_stored_in_a_trunk() -> None:
    learned = {name for name, _ in trunk().named_parameters()}
    assert set(trunk().state_dict()) == learned


def test_padding_is_not_lifted() -> None:
    batch = collate([frame("a")])
    valid = batch.valid.clone()
    valid[..., 20:] = False
    where = places(replace(batch, valid=valid), GRID, DepthBins(), 8).view(2, 2, 5, -1)
    assert (where[:, :, 3:] == -1).all()
    assert (where[:, :, :2] >= 0).any()


def test_width_is_what_the_model_says() -> None:
    assert Model().width == 32
    assert trunk().fuse(
        [Volume(torch.zeros(1, 8, 5, 16, 24), GRID), Volume(torch.zeros(1, 8, 5, 16, 24), GRID)]
    ).features.shape == (1, 8, 5, 16, 24)


@pytest.mark.parametrize("lift", ["mean", "depth"])
def test_a_trunk_of_cameras_alone_knows_no_points(lift: str) -> None:
    alone, both = trunk(lidar="none", lift=lift, fuse="conv"), trunk(lift=lift, fuse="conv")
    batch = collate([frame("a")])
    nothing = batch.select_points(torch.zeros(len(batch.points), dtype=torch.bool))
    assert torch.equal(alone(batch).features, alone(nothing).features)
    assert not torch.equal(both(batch).features, both(nothing).features)
