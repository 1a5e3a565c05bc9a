import math

import pytest
import torch

from cofield.draw import generator
from cofield.frame import Boxes, Hidden, Maps, collate
from cofield.geometry import pose, yaw_rotation
from cofield.grid import BoxGrid
from streets import boxes, frame, points


def test_a_box_contains_its_corners_moved_inward_and_not_outward() -> None:
    some = boxes(4)
    corners = some.corners()
    assert corners.shape == (4, 8, 3)
    for index in range(4):
        one = some.select(torch.tensor([index]))
        inner = one.centre + (corners[index] - one.centre) * 0.99
        outer = one.centre + (corners[index] - one.centre) * 1.01
        assert one.contains(inner).all()
        assert not one.contains(outer).any()
        assert one.contains(outer, margin=0.2).all()


def test_corners_are_numbered_by_the_far_sides_of_x_y_z() -> None:
    box = Boxes(
        centre=torch.tensor([[1.0, 2.0, 3.0]]),
        size=torch.tensor([[4.0, 2.0, 1.0]]),
        yaw=torch.tensor([math.pi / 2]),
        velocity=torch.zeros(1, 2),
        label=torch.tensor([0]),
    )
    # Turned by a quarter, the box's own x points to the left.
    torch.testing.assert_close(box.corners()[0, 4], torch.tensor([1.0 + 1.0, 2.0 + 2.0, 3.0 - 0.5]))
    torch.testing.assert_close(box.corners()[0, 2], torch.tensor([1.0 - 1.0, 2.0 - 2.0, 3.0 - 0.5]))


def test_moving_boxes_moves_their_corners_and_turns_their_velocity() -> None:
    some = boxes(3)
    a_T_b = pose(yaw_rotation(torch.tensor(2.5)), torch.tensor([3.0, -1.0, 0.5]))
    moved = some.moved(a_T_b)
    expected = some.corners() @ a_T_b[:3, :3].mT + a_T_b[:3, 3]
    torch.testing.assert_close(moved.corners(), expected)
    torch.testing.assert_close(moved.velocity.norm(dim=-1), some.velocity.norm(dim=-1))
    assert (moved.yaw.abs() <= math.pi).all()


def test_a_batch_keeps_every_frame_apart() -> None:
    batch = collate([frame("a", count=50), frame("b", count=0), frame("c", count=30)])
    assert batch.offsets.tolist() == [0, 50, 50, 80]
    assert batch.sample.bincount(minlength=3).tolist() == [50, 0, 30]
    assert batch.origins_ego.shape == (6, 3)
    assert batch.points.origin[50:].min() >= 4
    torch.testing.assert_close(batch.points.xyz_ego[50:], points(30, key="c").xyz_ego)
    assert batch.images.shape == (3, 2, 3, 16, 40)


def test_smaller_images_are_padded_and_the_padding_is_not_valid() -> None:
    batch = collate([frame("a", height=16, width=40), frame("b", height=8, width=24)])
    assert batch.valid[0].all()
    assert batch.valid[1, :, :8, :24].all()
    assert batch.valid[1].sum() == 2 * 8 * 24
    assert not batch.images[1, :, :, 8:].any()


def test_frames_without_cameras_without_labels_and_without_boxes_collate() -> None:
    from dataclasses import replace

    bare = replace(frame("a", cameras=0), boxes=None)
    bare = replace(bare, points=replace(bare.points, labels=None, instances=None))
    batch = collate([bare, bare])
    assert batch.images.shape == (2, 0, 3, 0, 0)
    assert batch.points.labels is None
    assert batch.boxes == (None, None)
    assert batch.maps is None


def test_what_does_not_fit_in_one_batch_is_refused() -> None:
    from dataclasses import replace

    grid = BoxGrid((0.0, 0.0, 0.0), (1.0, 1.0, 1.0), (3, 2, 1))
    mapped = replace(frame("m"), maps=Maps(torch.zeros(6, 2, 3, dtype=torch.bool), grid))
    assert collate([mapped, mapped]).maps is not None
    with pytest.raises(ValueError, match="1 of 2 frames of one batch have no map"):
        collate([mapped, frame("a")])
    with pytest.raises(ValueError, match="same number of cameras"):
        collate([frame("a", cameras=2), frame("b", cameras=1)])
    with pytest.raises(ValueError, match="at least one frame"):
        collate([])


def test_the_visible_batch_has_nothing_of_what_is_hidden_and_the_batch_itself_is_untouched() -> None:
    batch = collate([frame("a"), frame("b", count=20)])
    draw = generator("hidden")
    hidden = Hidden(torch.rand(2, 2, 4, 10, generator=draw) < 0.5, torch.rand(70, generator=draw) < 0.7)
    before = batch.images.clone(), batch.points.xyz_ego.clone()
    seen = batch.visible(hidden)
    assert torch.equal(batch.images, before[0])
    assert torch.equal(batch.points.xyz_ego, before[1])
    pixels = hidden.pixels(16, 40)
    assert pixels[..., :4, :4].all(-1).all(-1).equal(hidden.patches[..., 0, 0])
    assert not seen.images.permute(0, 1, 3, 4, 2)[pixels].any()
    assert torch.equal(seen.valid, batch.valid)
    assert torch.equal(seen.points.xyz_ego, before[1][~hidden.points])
    assert seen.offsets[-1] == (~hidden.points).sum()
    assert seen.offsets[1] == (~hidden.points[:50]).sum()


def test_patches_that_do_not_tile_the_image_are_refused() -> None:
    hidden = Hidden(torch.zeros(1, 1, 3, 10, dtype=torch.bool), torch.zeros(0, dtype=torch.bool))
    with pytest.raises(ValueError, match="do not tile"):
        hidden.pixels(16, 40)


def test_a_batch_moves_as_a_whole() -> None:
    batch = collate([frame("a"), frame("b")]).to("meta")
    assert batch.images.is_meta
    assert batch.points.xyz_ego.is_meta
    assert batch.boxes[1] is not None
    assert batch.boxes[1].centre.is_meta
    assert batch.tokens == ("a", "b")
