import math
from dataclasses import replace

import pytest
import torch

from cofield.data.augment import Augment, beams_of, cropped, flipped, mixed, moved, resized, sectors, turned
from cofield.frame import Boxes, Camera, Frame, Maps, Points
from cofield.geometry import inverse, pose, project, rotation_from_quaternion, transform, yaw_rotation
from cofield.grid import BoxGrid

TRAINING = Augment(
    seed=3,
    resize=(0.7, 1.1),
    size=(30, 44),
    image_flip=0.5,
    image_turn_deg=8.0,
    scale=(0.9, 1.1),
    turn=math.pi / 4,
    shift=0.5,
    flip_x=0.5,
    flip_y=0.5,
    drop_points=0.3,
    drop_beams=0.3,
    beams=8,
)


def a_frame(points: int = 400) -> Frame:
    """Two tilted cameras of unequal size whose depth image is exact: a plane 12 m ahead of each, textured by place."""
    source = torch.Generator().manual_seed(5)
    xyz = torch.rand(points, 3, generator=source) * torch.tensor([40.0, 30.0, 4.0]) - torch.tensor([10.0, 15.0, 1.0])
    cameras = tuple(
        a_camera(name, size, yaw) for name, size, yaw in (("front", (36, 60), 0.1), ("left", (40, 52), 1.4))
    )
    origin = torch.arange(points) % 2
    return Frame(
        token="a",
        scene="s",
        time=1.5,
        world_T_ego=pose(yaw_rotation(torch.tensor(0.7).double()), torch.tensor([600.0, 1300, 2]).double()),
        cameras=cameras,
        points=Points(xyz, torch.rand(points, generator=source), 0.05 * origin, origin, labels=origin + 3),
        origins_ego=torch.tensor([[0.9, 0.0, 1.8], [0.2, 0.1, 1.8]]),
        boxes=Boxes(
            centre=torch.tensor([[8.0, 3, 1], [15, -4, 0.5]]),
            size=torch.tensor([[4.0, 2, 1.5], [5, 2.6, 3.8]]),
            yaw=torch.tensor([0.3, -2.0]),
            velocity=torch.tensor([[3.0, 1], [float("nan"), 0]]),
            label=torch.tensor([0, 8]),
            box2d=torch.tensor([[10.0, 5, 30, 20], [1, 2, 3, 4]]),
        ),
        maps=Maps(
            torch.rand(2, 24, 20, generator=source) > 0.5, BoxGrid((-10.0, -12.0, -1.0), (1.0, 1.0, 2.0), (20, 24, 2))
        ),
    )


def a_camera(name: str, size: tuple[int, int], yaw: float) -> Camera:
    look = torch.tensor([[0.0, -1, 0], [0, 0, -1], [1, 0, 0]]) @ yaw_rotation(torch.tensor(-yaw))
    tilt = rotation_from_quaternion(torch.tensor([1.0, 0.05, 0.02, 0.03]))
    cam_T_ego = pose(tilt @ look, torch.tensor([0.3, 1.4, -0.6]))
    pix_T_cam = pose(torch.tensor([[50.0, 0.5, 31], [0, 55, 17], [0, 0, 1]]), torch.zeros(3))
    v, u = torch.meshgrid(torch.arange(size[0]), torch.arange(size[1]), indexing="ij")
    image = torch.stack([u / size[1], v / size[0], 0.5 + 0.2 * torch.sin(u / 9 + v / 7)])
    depth = 10 + 0.05 * u + 0.02 * v
    return Camera(name, image, pix_T_cam, cam_T_ego, 1.45, depth, (u // 7).long(), (v // 5).long())


def moves():
    return {
        "turn": {"turn": 0.6},
        "scale": {"scale": 1.3},
        "shift": {"shift": torch.tensor([1.0, -2.0, 0.5])},
        "flip y": {"flip": (False, True)},
        "flip x": {"flip": (True, False)},
        "both flips": {"flip": (True, True)},
        "all": {"scale": 0.8, "flip": (False, True), "turn": -1.1, "shift": torch.tensor([0.5, 1.5, -0.3])},
        "about another centre": {"scale": 1.1, "flip": (True, False), "turn": 0.4, "centre": (0.9, -0.2, 1.8)},
    }


@pytest.mark.parametrize("name", moves())
def test_pixel_depth_and_range_of_a_point_agree_after_the_world_moves(name):
    frame, change = a_frame(), moves()[name]
    after, scale = moved(frame, **change), change.get("scale", 1.0)
    for before_camera, camera in zip(frame.cameras, after.cameras, strict=True):
        uv, depth = project(before_camera.pix_T_ego, frame.points.xyz_ego)
        uv_after, depth_after = project(camera.pix_T_ego, after.points.xyz_ego)
        front = depth > 1
        assert (uv - uv_after)[front].abs().max() < 2e-2 * 0.1
        assert torch.allclose(depth_after[front], depth[front] * scale, atol=1e-4)
        assert torch.allclose(camera.depth, before_camera.depth * scale)
        assert torch.equal(camera.image, before_camera.image)
        eye = inverse(before_camera.cam_T_ego)[:3, 3], inverse(camera.cam_T_ego)[:3, 3]
        ranges = [(f.points.xyz_ego - e).norm(dim=-1) for f, e in zip((frame, after), eye, strict=True)]
        assert torch.allclose(ranges[1], ranges[0] * scale, atol=1e-4)


@pytest.mark.parametrize("name", moves())
def test_every_pose_stays_rigid_and_right_handed(name):
    after = moved(a_frame(), **moves()[name])
    for matrix in (*(camera.cam_T_ego for camera in after.cameras), after.world_T_ego):
        assert torch.allclose(matrix[:3, :3] @ matrix[:3, :3].mT, torch.eye(3, dtype=matrix.dtype), atol=1e-5)
        assert torch.linalg.det(matrix[:3, :3]) == pytest.approx(1.0, abs=1e-5)


def test_a_mirrored_world_has_a_negative_focal_length_and_the_same_picture():
    frame = a_frame()
    camera = moved(frame, flip=(False, True)).cameras[0]
    assert camera.pix_T_cam[0, 0] == -frame.cameras[0].pix_T_cam[0, 0]
    assert camera.pix_T_cam[0, 2] == frame.cameras[0].pix_T_cam[0, 2]
    assert camera.pix_T_cam[1, 1] == frame.cameras[0].pix_T_cam[1, 1]


@pytest.mark.parametrize("name", moves())
def test_boxes_hold_the_same_points_and_beams_keep_their_length(name):
    frame, change = a_frame(4000), moves()[name]
    after, scale = moved(frame, **change), change.get("scale", 1.0)
    assert torch.equal(after.boxes.contains(after.points.xyz_ego), frame.boxes.contains(frame.points.xyz_ego))
    assert frame.boxes.contains(frame.points.xyz_ego).any(1).all()
    lengths = [(f.points.xyz_ego - f.origins_ego[f.points.origin]).norm(dim=-1) for f in (frame, after)]
    assert torch.allclose(lengths[1], lengths[0] * scale, atol=1e-4)
    # A box moves along its heading before and after; the other's velocity stays unknown.
    along = [b.velocity[0].norm() for b in (frame.boxes, after.boxes)]
    assert along[1] == pytest.approx(float(along[0]) * scale, abs=1e-5)
    ends = [b.centre[0, :2] + 0.1 * b.velocity[0] for b in (frame.boxes, after.boxes)]
    there = moved(
        replace(frame, boxes=replace(frame.boxes, centre=torch.cat([ends[0], torch.ones(1)])[None].repeat(2, 1))),
        **change,
    )
    assert torch.allclose(there.boxes.centre[0, :2], ends[1], atol=1e-4)
    assert after.boxes.velocity[1].isnan().any()


@pytest.mark.parametrize("name", moves())
def test_the_world_is_moved_as_the_points_are(name):
    frame, change = a_frame(), moves()[name]
    after, scale = moved(frame, **change), change.get("scale", 1.0)
    world = [transform(f.world_T_ego, f.points.xyz_ego.double()) for f in (frame, after)]
    sign = torch.tensor([-1.0 if each else 1.0 for each in (*change.get("flip", (False, False)), False)]).double()
    assert torch.allclose(world[1], scale * sign * world[0], atol=1e-3)


@pytest.mark.parametrize("name", moves())
def test_map_cells_go_where_their_places_go(name):
    frame, change = a_frame(), moves()[name]
    change = change | ({"shift": torch.tensor([1.0, -2.0, 0.0])} if "shift" in change else {})
    after = moved(frame, **change)
    grid = frame.maps.grid.flat()
    # The old cells' centres, carried along as points, find their own value near the cell they end in.
    centres = grid.centres()[0].flatten(0, 1)
    carried = moved(replace(frame, points=Points(*points_at(centres))), **change).points.xyz_ego
    carried[:, 2] = centres[:, 2]
    cell, inside = grid.cell_of(carried)
    old, new = frame.maps.layers.flatten(1)[:, inside], after.maps.layers.flatten(1)[:, cell[inside]]
    whole = name in ("shift", "flip y", "flip x", "both flips")
    assert (old == new).float().mean() > (0.999 if whole else 0.7)


def points_at(xyz):
    return xyz, torch.zeros(len(xyz)), torch.zeros(len(xyz)), torch.zeros(len(xyz)).long()


def pictures():
    return {
        "resize": lambda camera: resized(camera, (45, 33)),
        "crop": lambda camera: cropped(camera, 5, 9, (20, 31)),
        "crop beyond": lambda camera: cropped(camera, -4, -3, (50, 70)),
        "flip": flipped,
        "turn": lambda camera: turned(camera, 0.3),
        "all": lambda camera: turned(flipped(cropped(resized(camera, (50, 90)), 3, -2, (44, 60))), -0.2),
    }


@pytest.mark.parametrize("name", pictures())
def test_a_point_keeps_its_colour_depth_and_range_when_the_image_changes(name):
    camera = a_frame().cameras[0]
    after = pictures()[name](camera)
    # The place that an old pixel's centre shows, at any depth, is now seen at another pixel.
    v, u = torch.meshgrid(torch.arange(8, 28, 3), torch.arange(8, 52, 3), indexing="ij")
    uv = torch.stack([u, v], -1).flatten(0, 1) + 0.5
    old = uv.long()
    depth = camera.depth[old[:, 1], old[:, 0]]
    ray = torch.cat([uv, torch.ones(len(uv), 1)], -1) @ torch.linalg.inv(camera.pix_T_cam[:3, :3]).mT
    xyz_ego = transform(inverse(camera.cam_T_ego), ray * depth[:, None])
    place, after_depth = project(after.pix_T_ego, xyz_ego)
    assert torch.equal(after.cam_T_ego, camera.cam_T_ego)
    assert torch.allclose(after_depth, depth, atol=1e-4)
    height, width = after.image.shape[-2:]
    inside = ((place > 1) & (place < torch.tensor([width - 1, height - 1]))).all(-1)
    if after.valid is not None:
        # Away from the border, where colours mix with the black beyond.
        near = torch.nn.functional.max_pool2d((~after.valid).float()[None], 3, 1, 1)[0] > 0
        at = place.long().clamp(min=0).minimum(torch.tensor([width, height]) - 1)
        inside &= ~near[at[:, 1], at[:, 0]]
    assert inside.sum() > 30
    grid = (place[inside] / torch.tensor([width, height]) * 2 - 1)[None, None]
    seen = torch.nn.functional.grid_sample(after.image[None], grid, align_corners=False)[0, :, 0]
    assert (seen - camera.image[:, old[inside, 1], old[inside, 0]]).abs().max() < 0.03
    new = place[inside].long()
    assert (after.depth[new[:, 1], new[:, 0]] - depth[inside]).abs().max() < 0.12
    same = after.semantics[new[:, 1], new[:, 0]] == camera.semantics[old[inside, 1], old[inside, 0]]
    assert same.float().mean() > 0.8
    if after.valid is not None:
        assert after.valid[new[:, 1], new[:, 0]].all()


def test_what_was_never_in_the_image_is_black_and_not_valid():
    camera = a_frame().cameras[0]
    for after in (cropped(camera, -4, 0, (40, 60)), turned(camera, 0.4)):
        assert not after.valid[0, 0]
        assert (after.image[:, ~after.valid] == 0).all()
        assert after.depth[~after.valid].isinf().all()
        assert (after.semantics[~after.valid] == -1).all()
        assert after.valid.any()


def test_flipping_twice_and_turning_back_are_nothing():
    camera = a_frame().cameras[0]
    twice = flipped(flipped(camera))
    assert torch.equal(twice.image, camera.image)
    assert torch.allclose(twice.pix_T_cam, camera.pix_T_cam)
    back = turned(turned(camera, 0.3), -0.3)
    assert torch.allclose(back.pix_T_cam, camera.pix_T_cam, atol=1e-4)


def test_an_augmented_frame_is_consistent_as_a_whole():
    frame = a_frame(3000)
    for epoch in range(6):
        after = TRAINING(frame, epoch)
        assert all(camera.image.shape == (3, 30, 44) for camera in after.cameras)
        assert 0 < len(after.points) <= len(frame.points)
        # Points of one colour per place: the first box's corners, seen where the picture shows them.
        change = after.cameras[0].pix_T_ego.double(), frame.cameras[0].pix_T_ego.double()
        corners = frame.boxes.corners()[0].double(), after.boxes.corners()[0].double()
        depth = [project(m, c)[1] for m, c in zip(change, reversed(corners), strict=True)]
        scale = float(after.boxes.size[0, 0] / frame.boxes.size[0, 0])
        assert torch.allclose(depth[0].sort().values, scale * depth[1].sort().values, atol=1e-3)


def test_draws_depend_on_seed_epoch_and_frame_and_on_nothing_else():
    frame = a_frame()
    first, again = TRAINING(frame, 2), TRAINING(frame, 2)
    assert torch.equal(first.points.xyz_ego, again.points.xyz_ego)
    assert all(torch.equal(a.image, b.image) for a, b in zip(first.cameras, again.cameras, strict=True))
    for other in (
        TRAINING(frame, 3),
        replace(TRAINING, seed=4)(frame, 2),
        TRAINING(replace(frame, token="b"), 2),
    ):
        assert not torch.equal(first.world_T_ego, other.world_T_ego)
    # A camera's draw does not depend on which other cameras there are.
    alone = TRAINING(replace(frame, cameras=frame.cameras[1:]), 2)
    assert torch.equal(alone.cameras[0].pix_T_cam, first.cameras[1].pix_T_cam)


def test_without_arguments_nothing_happens():
    frame = a_frame()
    after = Augment()(frame, 7)
    assert torch.allclose(after.points.xyz_ego, frame.points.xyz_ego)
    assert torch.allclose(after.world_T_ego, frame.world_T_ego)
    assert torch.equal(after.maps.layers, frame.maps.layers)
    for a, b in zip(after.cameras, frame.cameras, strict=True):
        assert torch.equal(a.image, b.image)
        assert torch.allclose(a.pix_T_ego, b.pix_T_ego, atol=1e-4)


def test_evaluation_is_the_same_size_without_chance():
    frame, steady = a_frame(), TRAINING.evaluation()
    first, other = steady(frame, 0), steady(frame, 1)
    assert first.cameras[1].image.shape == (3, 30, 44)
    assert torch.equal(first.cameras[1].pix_T_cam, other.cameras[1].pix_T_cam)
    assert torch.allclose(first.points.xyz_ego, frame.points.xyz_ego)


def test_a_flipped_rectangle_stays_around_what_it_was_around():
    frame = a_frame()
    after = Augment(image_flip=1.0)(frame, 0)
    assert after.boxes.box2d[0].tolist() == pytest.approx([30.0, 5, 50, 20], abs=1e-4)


def test_sectors_cut_by_inclination_and_azimuth():
    xyz = torch.tensor([[10.0, 1, 5], [10, 1, -5], [-10, -1, -5], [-10, 1, 5]])
    frame = replace(a_frame(), points=Points(*points_at(xyz)), origins_ego=torch.zeros(1, 3))
    assert sectors(frame, (0.0,), 1).tolist() == [1, 0, 0, 1]
    assert sectors(frame, (0.0,), 2).tolist() == [3, 1, 0, 3]


def test_mixing_takes_even_sectors_of_one_and_odd_of_the_other():
    first, second = a_frame(100), a_frame(60)
    parts = [sectors(f, (-0.1, 0.0, 0.1)) for f in (first, second)]
    both = mixed(first, second, *parts)
    kept = [int((parts[0] % 2 == 0).sum()), int((parts[1] % 2 == 1).sum())]
    assert len(both.points) == sum(kept)
    assert min(kept) > 0
    beams = both.points.xyz_ego - both.origins_ego[both.points.origin]
    expected = second.points.xyz_ego - second.origins_ego[second.points.origin]
    assert torch.equal(beams[kept[0] :], expected[parts[1] % 2 == 1])
    bare = replace(second, points=replace(second.points, labels=None))
    with pytest.raises(ValueError, match="one of the two scans has point labels"):
        mixed(first, bare, *parts)


def test_dropping_beams_drops_whole_beams():
    frame = a_frame(2000)
    after = Augment(drop_beams=0.9, beams=8)(frame, 1)
    place = {tuple(row) for row in after.points.xyz_ego.tolist()}
    kept = torch.tensor([tuple(row) in place for row in moved(frame).points.xyz_ego.tolist()])
    share = [kept[beams_of(frame, 8) == beam].float().mean() for beam in range(8)]
    assert set(map(float, share)) == {0.0, 1.0}


def test_a_lidar_in_the_middle_of_the_grid_stays_there_when_the_world_turns_about_the_grids_zero():
    middle = (0.94, 0.1, 1.84)
    frame = replace(a_frame(), origins_ego=torch.tensor([middle, middle]))
    wild = Augment(seed=3, scale=(0.9, 1.1), turn=math.pi, flip_x=0.5, flip_y=0.5)
    for epoch in range(6):
        assert torch.allclose(wild(frame, epoch, middle).origins_ego, frame.origins_ego, atol=1e-5)
        assert (wild(frame, epoch).origins_ego - frame.origins_ego).norm(dim=-1).max() > 0.05
