"""Rigid transforms, pinhole projection and yaw.

`a_T_b` maps coordinates of frame b to frame a, so adjacent letters meet:
`pix_T_ego = pix_T_cam @ cam_T_ego`. Frames are ego (x forward, y left, z up), cam (x right, y down,
z forward), lidar, world, and pix: pixel (0, 0) covers [0, 1)², its centre is (0.5, 0.5).
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor


def transform(a_T_b: Float[Tensor, "*#b 4 4"], xyz_b: Float[Tensor, "*#b p 3"]) -> Float[Tensor, "*b p 3"]:
    """Points of frame b, in frame a."""
    rotation, translation = a_T_b[..., :3, :3], a_T_b[..., None, :3, 3]
    return xyz_b @ rotation.mT + translation


def rotate(a_T_b: Float[Tensor, "*#b 4 4"], vector_b: Float[Tensor, "*#b p 3"]) -> Float[Tensor, "*b p 3"]:
    """Directions of frame b, in frame a: the transform without its translation."""
    return vector_b @ a_T_b[..., :3, :3].mT


def inverse(a_T_b: Float[Tensor, "*b 4 4"]) -> Float[Tensor, "*b 4 4"]:
    """b_T_a of a rigid a_T_b, exactly: the rotation transposed, the translation turned back."""
    rotation = a_T_b[..., :3, :3].mT
    return pose(rotation, -(rotation @ a_T_b[..., :3, 3:])[..., 0])


def pose(rotation: Float[Tensor, "*#b 3 3"], translation: Float[Tensor, "*#b 3"]) -> Float[Tensor, "*b 4 4"]:
    """The 4×4 matrix [rotation | translation; 0 0 0 1]."""
    batch = torch.broadcast_shapes(rotation.shape[:-2], translation.shape[:-1])
    matrix = torch.zeros(*batch, 4, 4, dtype=rotation.dtype, device=rotation.device)
    matrix[..., :3, :3] = rotation
    matrix[..., :3, 3] = translation
    matrix[..., 3, 3] = 1.0
    return matrix


def project(
    pix_T_cam: Float[Tensor, "*#b 4 4"], xyz_cam: Float[Tensor, "*#b p 3"]
) -> tuple[Float[Tensor, "*b p 2"], Float[Tensor, "*b p"]]:
    """Pixel coordinates and z-depth of points in the camera frame.

    A point at or behind the pinhole has depth <= 0; its pixel means nothing and is finite.
    """
    pix = transform(pix_T_cam, xyz_cam)
    depth = pix[..., 2]
    safe = torch.where(depth.abs() < 1e-6, torch.full_like(depth, 1e-6), depth)
    return pix[..., :2] / safe[..., None], depth


def unproject(
    pix_T_cam: Float[Tensor, "*#b 4 4"], uv: Float[Tensor, "*#b p 2"], depth: Float[Tensor, "*#b p"]
) -> Float[Tensor, "*b p 3"]:
    """The camera-frame points that project to `uv` at z-depth `depth`."""
    pix = torch.cat([uv * depth[..., None], depth[..., None].expand(*uv.shape[:-1], 1)], -1)
    return transform(torch.linalg.inv(pix_T_cam), pix)


def yaw_rotation(yaw: Float[Tensor, "*b"]) -> Float[Tensor, "*b 3 3"]:
    """The rotation about z by `yaw` radians, counter-clockwise seen from above."""
    cos, sin, zero = yaw.cos(), yaw.sin(), torch.zeros_like(yaw)
    rows = [cos, -sin, zero, sin, cos, zero, zero, zero, zero + 1]
    return torch.stack(rows, -1).unflatten(-1, (3, 3))


def yaw_of(rotation: Float[Tensor, "*b 3 3"]) -> Float[Tensor, "*b"]:
    """The heading of the rotated x axis in the xy plane."""
    return torch.atan2(rotation[..., 1, 0], rotation[..., 0, 0])


def wrap_angle(angle: Float[Tensor, "*b"]) -> Float[Tensor, "*b"]:
    """The same angle in [-π, π)."""
    return torch.remainder(angle + math.pi, 2 * math.pi) - math.pi


def rotation_from_quaternion(wxyz: Float[Tensor, "*b 4"]) -> Float[Tensor, "*b 3 3"]:
    """The rotation of a unit quaternion (w x y z), normalised first."""
    w, x, y, z = (wxyz / wxyz.norm(dim=-1, keepdim=True)).unbind(-1)
    rows = [
        1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y),
        2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x),
        2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y),
    ]  # fmt: skip
    return torch.stack(rows, -1).unflatten(-1, (3, 3))


def quaternion_from_rotation(rotation: Float[Tensor, "*b 3 3"]) -> Float[Tensor, "*b 4"]:
    """The unit quaternion (w x y z), w >= 0, of a rotation.

    Its outer product with itself is linear in the rotation's entries; the column with the largest
    diagonal is the quaternion times that component, which is never small.
    """
    (xx, xy, xz), (yx, yy, yz), (zx, zy, zz) = (row.unbind(-1) for row in rotation.unbind(-2))
    outer = torch.stack(
        [
            1 + xx + yy + zz, zy - yz, xz - zx, yx - xy,
            zy - yz, 1 + xx - yy - zz, yx + xy, xz + zx,
            xz - zx, yx + xy, 1 - xx + yy - zz, zy + yz,
            yx - xy, xz + zx, zy + yz, 1 - xx - yy + zz,
        ],
        -1,
    ).unflatten(-1, (4, 4))  # fmt: skip
    largest = outer.diagonal(dim1=-2, dim2=-1).argmax(-1)
    index = largest[..., None, None].expand(*largest.shape, 1, 4)
    wxyz = outer.gather(-2, index)[..., 0, :]
    wxyz = wxyz / wxyz.norm(dim=-1, keepdim=True)
    return torch.where(wxyz[..., :1] < 0, -wxyz, wxyz)
