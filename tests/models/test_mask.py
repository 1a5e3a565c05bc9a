import math
from dataclasses import replace

import pytest
import torch

from cofield.draw import generator
from cofield.frame import collate
from cofield.grid import CylinderGrid
from cofield.models.mask import Masking, hide, random_mask
from streets import frame

MASKING = Masking(patch=4, image_ratio=0.5, lidar_ratio=0.7, lidar_cell=2.0)


def test_a_mask_hides_exactly_its_share() -> None:
    for length, ratio in ((40, 0.5), (7, 0.7), (10, 0.0), (10, 1.0), (0, 0.5)):
        assert random_mask(length, ratio, generator("mask")).sum() == round(ratio * length)


def test_every_entry_is_hidden_equally_often() -> None:
    draws = torch.stack([random_mask(10, 0.3, generator("mask", i)) for i in range(3000)])
    torch.testing.assert_close(draws.float().mean(0), torch.full((10,), 0.3), atol=0.04, rtol=0)


def test_each_camera_and_each_frame_has_its_own_mask_of_the_right_share() -> None:
    hidden = hide(collate([frame("a"), frame("b")]), MASKING, 0)
    assert hidden.patches.shape == (2, 2, 4, 10)
    assert (hidden.patches.sum((-1, -2)) == 20).all()
    flat = hidden.patches.flatten(0, 1).flatten(1)
    assert len(flat.unique(dim=0)) == 4


def test_points_are_hidden_by_whole_cubes() -> None:
    batch = collate([frame("a", count=400)])
    hidden = hide(batch, MASKING, 0)
    cubes, slot = (batch.points.xyz_ego / 2.0).floor().unique(dim=0, return_inverse=True)
    share = torch.zeros(len(cubes)).index_add(0, slot, hidden.points.float()) / slot.bincount()
    assert ((share == 0) | (share == 1)).all()
    assert share.sum() == round(0.7 * len(cubes))


def test_on_a_cylinder_points_are_hidden_by_whole_columns_as_many_around_as_outwards() -> None:
    batch = collate([frame("a", count=1000)])
    grid = CylinderGrid((0.0, -math.pi, -3.0), (1.0, math.pi / 16, 1.0), (12, 32, 6), (0.9, 0.0, 1.8))
    for cell, columns in ((0.3, 1), (2.2, 2)):
        hidden = hide(batch, replace(MASKING, lidar_cell=cell), 0, grid).points
        x, y = (batch.points.xyz_ego[:, :2] - torch.tensor([0.9, 0.0])).unbind(-1)
        outwards = (torch.hypot(x, y) / columns).floor()
        around = ((torch.atan2(y, x) + math.pi) / (math.pi / 16 * columns)).floor()
        bundles, slot = torch.stack([outwards, around], -1).unique(dim=0, return_inverse=True)
        share = torch.zeros(len(bundles)).index_add(0, slot, hidden.float()) / slot.bincount()
        assert ((share == 0) | (share == 1)).all()
        assert share.sum() == round(0.7 * len(bundles))


def test_what_a_frame_hides_depends_on_neither_its_batch_nor_its_place_in_it() -> None:
    alone = hide(collate([frame("b")]), MASKING, 0)
    among = hide(collate([frame("a", count=30), frame("b"), frame("c")]), MASKING, 0)
    assert torch.equal(alone.patches[0], among.patches[1])
    assert torch.equal(alone.points, among.points[30:80])


def test_another_seed_and_another_epoch_hide_otherwise() -> None:
    frames = [frame("a")]
    masks = [hide(collate(frames, [epoch]), MASKING, seed).patches for seed, epoch in ((0, 0), (0, 1), (1, 0))]
    assert not torch.equal(masks[0], masks[1])
    assert not torch.equal(masks[0], masks[2])


def test_distant_cubes_can_be_hidden_less() -> None:
    batch = collate([frame("a", count=4000)])
    spread = replace(batch, points=replace(batch.points, xyz_ego=batch.points.xyz_ego * 4))
    hidden = hide(spread, replace(MASKING, lidar_ratio=0.9, lidar_ratio_far=0.1, lidar_cell=0.5), 0).points
    distance = spread.points.xyz_ego.norm(dim=-1)
    assert hidden[distance < 10].float().mean() > 0.75
    assert hidden[distance > 50].float().mean() < 0.25


def test_patches_that_do_not_tile_are_refused() -> None:
    with pytest.raises(ValueError, match="patches of 7 pixels do not tile an image of 16×40"):
        hide(collate([frame("a")]), replace(MASKING, patch=7), 0)
