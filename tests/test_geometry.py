import math

import torch
from hypothesis import given
from hypothesis import strategies as st

from cofield.draw import generator
from cofield.geometry import (
    inverse,
    pose,
    project,
    quaternion_from_rotation,
    rotate,
    rotation_from_quaternion,
    transform,
    unproject,
    wrap_angle,
    yaw_of,
    yaw_rotation,
)

ANGLES = st.floats(-20, 20, allow_nan=False)


def some_pose(*batch: int) -> torch.Tensor:
    draw = generator("pose", *batch)
    rotation = rotation_from_quaternion(torch.randn(*batch, 4, generator=draw, dtype=torch.float64))
    return pose(rotation, torch.randn(*batch, 3, generator=draw, dtype=torch.float64))


def test_a_pose_moves_and_its_inverse_moves_back() -> None:
    a_T_b = some_pose(2, 3)
    xyz = torch.randn(2, 3, 7, 3, generator=generator("xyz"), dtype=torch.float64)
    there = transform(a_T_b, xyz)
    assert not torch.allclose(there, xyz)
    torch.testing.assert_close(transform(inverse(a_T_b), there), xyz)


def test_a_quarter_turn_to_the_left_takes_forward_to_left() -> None:
    a_T_b = pose(yaw_rotation(torch.tensor(math.pi / 2)), torch.tensor([10.0, 0.0, 0.0]))
    torch.testing.assert_close(transform(a_T_b, torch.tensor([[1.0, 0.0, 0.0]])), torch.tensor([[10.0, 1.0, 0.0]]))
    torch.testing.assert_close(rotate(a_T_b, torch.tensor([[1.0, 0.0, 0.0]])), torch.tensor([[0.0, 1.0, 0.0]]))


def test_a_point_on_the_axis_projects_to_the_principal_point() -> None:
    pix_T_cam = torch.eye(4)
    pix_T_cam[0, 0], pix_T_cam[1, 1], pix_T_cam[0, 2], pix_T_cam[1, 2] = 100.0, 90.0, 80.0, 32.0
    uv, depth = project(pix_T_cam, torch.tensor([[0.0, 0.0, 5.0], [1.0, -2.0, 10.0], [0.0, 0.0, 0.0]]))
    torch.testing.assert_close(uv[:2], torch.tensor([[80.0, 32.0], [90.0, 14.0]]))
    torch.testing.assert_close(depth, torch.tensor([5.0, 10.0, 0.0]))
    assert uv.isfinite().all()


def test_unprojecting_undoes_projecting_for_a_mirrored_and_rotated_image() -> None:
    xyz = torch.rand(2, 9, 3, generator=generator("points")) + torch.tensor([0.0, 0.0, 1.0])
    pix_T_cam = torch.eye(4).repeat(2, 1, 1)
    pix_T_cam[:, :2, :3] = torch.tensor([[-70.0, 9.0, 80.0], [8.0, 71.0, 30.0]])
    uv, depth = project(pix_T_cam, xyz)
    torch.testing.assert_close(unproject(pix_T_cam, uv, depth), xyz)


@given(ANGLES)
def test_wrapping_keeps_the_angle_and_stays_within_half_a_turn(angle: float) -> None:
    value = torch.tensor(angle, dtype=torch.float64)
    wrapped = wrap_angle(value)
    assert -math.pi <= wrapped <= math.pi
    torch.testing.assert_close(yaw_rotation(wrapped), yaw_rotation(value))
    torch.testing.assert_close(yaw_rotation(yaw_of(yaw_rotation(value))), yaw_rotation(value))


def test_quaternions_and_rotations_convert_both_ways_even_at_half_turns() -> None:
    wxyz = torch.randn(200, 4, generator=generator("quaternions"), dtype=torch.float64)
    half_turns = torch.eye(4, dtype=torch.float64)[1:]
    rotation = rotation_from_quaternion(torch.cat([wxyz, half_turns]))
    torch.testing.assert_close(rotation @ rotation.mT, torch.eye(3, dtype=torch.float64).expand(203, 3, 3))
    again = quaternion_from_rotation(rotation)
    assert (again[:, 0] >= 0).all()
    torch.testing.assert_close(rotation_from_quaternion(again), rotation)


def test_a_quaternion_about_z_is_a_yaw() -> None:
    yaw = torch.tensor([0.7, -2.0])
    wxyz = torch.stack([(yaw / 2).cos(), 0 * yaw, 0 * yaw, (yaw / 2).sin()], -1)
    torch.testing.assert_close(rotation_from_quaternion(wxyz), yaw_rotation(yaw))
