import math

import torch

from cofield.draw import generator
from cofield.frame import collate
from cofield.geometry import project, transform
from cofield.grid import BoxGrid
from cofield.rays import Rays, choose
from streets import frame

GRID = BoxGrid(lower=(-12.0, -10.0, -1.0), cell=(1.0, 1.0, 1.0), count=(24, 20, 5))


def test_a_camera_ray_projects_back_to_the_pixel_it_came_from_at_every_distance() -> None:
    batch = collate([frame("a"), frame("b")])
    pixels = choose(batch.valid.flatten(), 200, generator("pixels"))
    rays = Rays.from_cameras(batch, pixels, GRID)
    for distance in (0.5, 3.0, 40.0):
        place = rays.origin + rays.direction * distance
        view = pixels // (16 * 40)
        xyz_cam = transform(batch.cam_T_ego.flatten(0, 1)[view], place[:, None])
        uv, depth = project(batch.pix_T_cam.flatten(0, 1)[view], xyz_cam)
        expected = torch.stack([pixels % 40, pixels % 640 // 40], -1) + 0.5
        torch.testing.assert_close(uv[:, 0], expected, atol=1e-3, rtol=0)
        torch.testing.assert_close(depth[:, 0], distance * rays.cosine)
    assert torch.equal(rays.sample, pixels // (2 * 16 * 40))


def test_the_middle_of_a_forward_camera_looks_forward() -> None:
    batch = collate([frame("a")])
    middle = torch.tensor([8 * 40 + 20])
    rays = Rays.from_cameras(batch, middle, GRID)
    angle = math.atan(0.5 / 20)
    torch.testing.assert_close(rays.direction[0, 1], torch.tensor(-math.sin(angle)), atol=1e-3, rtol=0)
    torch.testing.assert_close(rays.origin[0], torch.tensor([0.5, 0.0, 1.5]))
    assert rays.far[0] > 11


def test_a_beam_ends_at_its_return_and_starts_where_its_sweep_stood() -> None:
    batch = collate([frame("a"), frame("b", count=20)])
    which = choose(batch.sample >= 0, 40, generator("beams"))
    rays = Rays.from_lidar(batch, which, GRID)
    origin = batch.origins_ego[batch.points.origin[which]]
    xyz = batch.points.xyz_ego[which]
    torch.testing.assert_close(rays.origin, origin)
    reach = (xyz - origin).norm(dim=-1)
    torch.testing.assert_close(rays.origin + rays.direction * reach[:, None], xyz)
    assert torch.equal(rays.sample, batch.sample[which])


def test_from_above_every_column_is_looked_through_from_its_lid_to_its_floor() -> None:
    cells = torch.arange(2 * 20 * 24)
    rays = Rays.from_above(cells, GRID)
    assert (rays.direction == torch.tensor([0.0, 0.0, -1.0])).all()
    assert (rays.near == 0).all()
    assert (rays.far == 5).all()
    assert (rays.origin[:, 2] == 4.0).all()
    torch.testing.assert_close(rays.origin[480 + 24 * 3 + 2], torch.tensor([-9.5, -6.5, 4.0]))
    assert rays.sample.tolist() == [0] * 480 + [1] * 480


def test_choosing_takes_only_what_is_eligible_without_repeating_and_repeats_with_its_seed() -> None:
    eligible = torch.rand(500, generator=generator("eligible")) < 0.5
    chosen = choose(eligible, 60, generator("choice"))
    assert len(chosen.unique()) == 60
    assert eligible[chosen].all()
    assert torch.equal(chosen, choose(eligible, 60, generator("choice")))
    assert not torch.equal(chosen, choose(eligible, 60, generator("another")))
    assert torch.equal(choose(eligible, 1000, generator("choice")), eligible.nonzero()[:, 0])
    assert len(choose(torch.zeros(5, dtype=torch.bool), 3, generator("none"))) == 0
