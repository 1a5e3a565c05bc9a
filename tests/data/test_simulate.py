import hashlib
import pickle
import subprocess
import sys
from dataclasses import replace
from functools import cache

import pytest
import torch

from cofield.classes import ATTRIBUTES, DETECTION, LIDARSEG, MAP_LAYERS, UNKNOWN
from cofield.data import Source, open_source
from cofield.data.crowd import LIDARSEG_OF
from cofield.data.rig import PRESETS, Mount, Rig, preset
from cofield.data.simulate import FRAMES, TOWNS, World
from cofield.frame import Frame, collate
from cofield.geometry import inverse, project, transform, unproject


@cache
def world(**changes: float) -> World:
    """The tiny world, with other sensors if asked."""
    return World("tiny", town="report", split="val", rig=replace(preset("tiny").rig, **changes))


@cache
def exact(index: int) -> Frame:
    """A frame whose LiDAR neither errs nor loses returns."""
    return world(noise=0.0, dropout=0.0)[index]


def digest(frame: Frame) -> str:
    """Of everything a frame holds."""
    assert frame.boxes is not None
    assert frame.maps is not None
    tensors = [frame.points.xyz_ego, frame.points.intensity, frame.boxes.centre, frame.maps.layers, frame.world_T_ego]
    tensors += [each for camera in frame.cameras for each in (camera.image, camera.depth, camera.instances)]
    return hashlib.sha256(b"".join(each.contiguous().numpy().tobytes() for each in tensors)).hexdigest()


def single_pixels(frame: Frame, points: torch.Tensor) -> tuple[list[Mount], torch.Tensor]:
    """For points before the first camera a one-pixel camera each, whose ray goes exactly there; and their depth."""
    camera = frame.cameras[0]
    uv, depth = project(camera.pix_T_cam, transform(camera.cam_T_ego, points))
    mounts = []
    for u, v in uv.tolist():
        pix_T_cam = camera.pix_T_cam.clone()
        pix_T_cam[0, 2] += 0.5 - u
        pix_T_cam[1, 2] += 0.5 - v
        mounts.append(Mount("pixel", (1, 1), pix_T_cam, camera.cam_T_ego))
    return mounts, depth


@pytest.mark.parametrize("index", [3, 10])
def test_a_return_lies_on_the_surface_that_the_camera_sees_there(index: int):
    frame = exact(index)
    camera = frame.cameras[0]
    uv, depth = project(camera.pix_T_cam, transform(camera.cam_T_ego, frame.points.xyz_ego))
    height, width = camera.image.shape[-2:]
    seen = (depth > 1) & (uv >= 0).all(-1) & (uv[:, 0] < width) & (uv[:, 1] < height)
    points = frame.points.select(seen)
    mounts, depth = single_pixels(frame, points.xyz_ego)
    views = world(noise=0.0, dropout=0.0).view(frame.scene, frame.time, mounts)
    shown = torch.stack([view.depth.flatten()[0] for view in views])
    # What the camera sees first is never behind a return on its ray, and mostly is that return.
    assert (shown <= depth + 0.01).all()
    same = (shown - depth).abs() < 0.01
    assert same.float().mean() > 0.85
    labels = torch.stack([view.semantics.flatten()[0] for view in views])
    assert (labels[same] == points.labels[same]).float().mean() > 0.99


def test_every_point_of_a_thing_lies_in_its_box():
    things = 0
    for index in (0, 12, 24, 36, 48):
        points, boxes = exact(index).points, exact(index).boxes
        owner = {int(track): row for row, track in enumerate(boxes.track)}
        for track in points.instances.unique().tolist():
            which = points.instances == track
            if track == UNKNOWN:
                assert not torch.isin(points.labels[which], torch.from_numpy(LIDARSEG_OF)).any()
                continue
            box = boxes.select(torch.tensor([owner[track]]))
            assert box.contains(points.xyz_ego[which], margin=2e-3).all()
            assert (points.labels[which] == LIDARSEG_OF[int(box.label)]).all()
            things += 1
    assert things > 60


def test_num_points_counts_the_returns_inside():
    frame = exact(12)
    fewer, more = (frame.boxes.contains(frame.points.xyz_ego, margin).sum(-1) for margin in (-1e-4, 1e-4))
    assert ((fewer <= frame.boxes.num_points) & (frame.boxes.num_points <= more)).all()
    assert frame.boxes.num_points.sum() > 300


def test_projected_corners_bound_the_instance_mask():
    masks = 0
    for index in (3, 17, 31):
        frame = exact(index)
        for camera in frame.cameras:
            corners, tracks = frame.boxes.corners(), frame.boxes.track
            for row, track in enumerate(tracks.tolist()):
                mask = camera.instances == track
                uv, depth = project(camera.pix_T_cam, transform(camera.cam_T_ego, corners[row]))
                if not mask.any() or depth.min() <= 0.1:
                    continue
                v, u = mask.nonzero().unbind(-1)
                assert u.min() + 0.5 >= uv[:, 0].min() - 0.05
                assert u.max() + 0.5 <= uv[:, 0].max() + 0.05
                assert v.min() + 0.5 >= uv[:, 1].min() - 0.05
                assert v.max() + 0.5 <= uv[:, 1].max() + 0.05
                masks += 1
    assert masks > 40


def test_map_layers_agree_with_ground_pixels():
    checked = 0
    for index in (3, 17, 31):
        frame = exact(index)
        camera = frame.cameras[0]
        height, width = camera.image.shape[-2:]
        v, u = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
        ground = torch.isin(
            camera.semantics, torch.tensor([LIDARSEG.index("driveable_surface"), LIDARSEG.index("sidewalk")])
        )
        xyz = transform(
            inverse(camera.cam_T_ego),
            unproject(camera.pix_T_cam, torch.stack([u, v], -1)[ground], camera.depth[ground]),
        )
        cell, inside = frame.maps.grid.cell_of(xyz)
        drivable = frame.maps.layers[MAP_LAYERS.index("drivable_area")]
        # Away from every border within a cell: where a cell and its neighbours agree.
        padded = torch.nn.functional.unfold(drivable[None, None].float(), 3, padding=1)[0].mean(0)
        clear = inside & ((padded[cell] == 0) | (padded[cell] == 1))
        expected = camera.semantics[ground] == LIDARSEG.index("driveable_surface")
        torch.testing.assert_close(drivable.flatten()[cell][clear], expected[clear])
        checked += int(clear.sum())
    assert checked > 3000


def test_depth_and_height_agree_on_the_road():
    camera = exact(0).cameras[0]
    height, width = camera.image.shape[-2:]
    v, u = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
    road = camera.semantics == LIDARSEG.index("driveable_surface")
    xyz = transform(
        inverse(camera.cam_T_ego), unproject(camera.pix_T_cam, torch.stack([u, v], -1)[road], camera.depth[road])
    )
    torch.testing.assert_close(xyz[:, 2], torch.zeros_like(xyz[:, 2]), atol=2e-3, rtol=0)


def test_the_sky_is_infinitely_far_and_unknown():
    camera = exact(0).cameras[0]
    sky = torch.isinf(camera.depth)
    assert sky.any()
    assert (camera.semantics[sky] == UNKNOWN).all()
    assert (camera.semantics[~sky] != UNKNOWN).all()


def test_a_frame_is_the_same_in_any_order_and_any_process():
    chosen = [9, 2, 23]
    backwards = [digest(World("tiny", town="sealed", split="val")[i]) for i in reversed(chosen)][::-1]
    code = (
        "import sys; sys.path.insert(0, 'tests/data')\n"
        "from test_simulate import *\n"
        "source = World('tiny', town='sealed', split='val')\n"
        f"print(*[digest(source[i]) for i in {chosen}])"
    )
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert other.stdout.split() == backwards


def test_a_pickled_world_gives_the_same_frames():
    source = world()
    assert digest(pickle.loads(pickle.dumps(source))[4]) == digest(source[4])


def test_velocity_carries_a_box_to_its_next_place():
    source = world()
    now, later = source[14], source[15]
    start, end = now.boxes.moved(now.world_T_ego.float()), later.boxes.moved(later.world_T_ego.float())
    rows = {int(track): row for row, track in enumerate(end.track)}
    errors = []
    for row, track in enumerate(start.track.tolist()):
        if track in rows:
            mean = (start.velocity[row] + end.velocity[rows[track]]) / 2
            errors.append((end.centre[rows[track], :2] - start.centre[row, :2] - 0.5 * mean).norm())
    assert len(errors) > 20
    assert torch.stack(errors).max() < 0.05


def test_a_late_exposure_moves_the_camera_with_the_car():
    rig = preset("tiny").rig
    late = replace(rig, cameras=tuple(replace(mount, delay=0.1) for mount in rig.cameras))
    source = World("tiny", town="report", split="val", rig=late)
    frame = next(
        frame
        for frame in (source[i] for i in range(0, 63, 7))
        if (frame.cameras[0].cam_T_ego - rig.cameras[0].cam_T_ego).norm() > 0.3
    )
    camera = frame.cameras[0]
    assert camera.time == pytest.approx(frame.time + 0.1)
    later = source.view(frame.scene, frame.time + 0.1, [rig.cameras[0]])[0]
    torch.testing.assert_close(camera.depth, later.depth)


def test_a_name_tells_what_is_changed_of_the_sensors():
    source = open_source("world:tiny@report+beams=4+range=12.5+delay=0.1", split="val")
    assert isinstance(source, World)
    assert source.name == "world:tiny@report+beams=4+range=12.5+delay=0.1"
    plain, frame = world(), source[7]
    assert frame.token == plain[7].token
    assert [camera.time for camera in frame.cameras] == pytest.approx([frame.time + 0.1] * 4)
    assert len(frame.points) < len(plain[7].points) / 2
    assert 11 < (frame.points.xyz_ego - frame.origins_ego[0]).norm(dim=-1).max() < 13
    with pytest.raises(ValueError, match=r"'beams=many' is no change of a world's sensors: invalid literal"):
        open_source("world:tiny+beams=many")
    with pytest.raises(ValueError, match=r"'spin=2' is no change of a world's sensors: .* beams=16, range=30"):
        open_source("world:tiny+spin=2")


def test_sweeps_are_older_and_start_elsewhere():
    frame = world(sweeps=3, period=0.1)[9]
    assert sorted(set(frame.points.age.tolist())) == pytest.approx([0.0, 0.1, 0.2])
    assert frame.origins_ego.shape == (3, 3)
    torch.testing.assert_close(frame.points.age, torch.tensor([0.0, 0.1, 0.2])[frame.points.origin])
    # Standing things stay where they are: sweeps of a wall coincide in the ego frame of the keyframe.
    road = frame.points.labels == LIDARSEG.index("driveable_surface")
    assert frame.points.xyz_ego[road, 2].abs().max() < 0.1


def test_a_spin_gives_every_slice_its_own_time_and_origin():
    frame = world(spin=0.1, slices=8, noise=0.0)[9]
    assert frame.origins_ego.shape == (8, 3)
    expected = 0.1 * (7 - torch.arange(8)) / 8
    torch.testing.assert_close(frame.points.age, expected[frame.points.origin])
    beam = frame.points.xyz_ego - frame.origins_ego[frame.points.origin]
    azimuth = torch.atan2(beam[:, 1], beam[:, 0])
    for part in range(8):
        turn = (torch.pi - azimuth[frame.points.origin == part]) / (2 * torch.pi) * 8 - part
        assert turn.min() > -0.2
        assert turn.max() < 1.2


@pytest.mark.parametrize("beams", [16, 64])
def test_more_beams_give_more_returns(beams: int):
    rig = Rig((), beams=beams, azimuths=90, dropout=0.0)
    frame = World("tiny", split="val", rig=rig)[0]
    assert frame.cameras == ()
    assert 0.6 * beams * 90 < len(frame.points) <= beams * 90


def test_range_noise_and_dropout_are_what_the_rig_says():
    clean, lossy = exact(3).points, world(noise=0.0, dropout=0.5)[3].points
    assert len(lossy) == pytest.approx(0.5 * len(clean), rel=0.05)
    noisy = world(noise=0.1, dropout=0.0)[3]
    error = (noisy.points.xyz_ego - clean.xyz_ego).norm(dim=-1)
    assert error.square().mean().sqrt() == pytest.approx(0.1, rel=0.05)
    assert clean.intensity.min() > 0
    assert clean.intensity.max() <= 1


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_is_a_source_of_complete_frames(name: str):
    source = open_source(f"world:{name}@tune", split="val")
    assert isinstance(source, Source)
    assert len(source.scenes()) == len(source)
    frame = source[FRAMES + 1]
    assert frame.scene == source.scenes()[FRAMES + 1]
    assert frame.maps.layers.shape == (len(MAP_LAYERS), *source.map_grid.shape[1:])
    assert frame.world_T_ego.dtype == torch.float64
    sizes = [tuple(camera.image.shape[-2:]) for camera in frame.cameras]
    assert sizes == [mount.size for mount in source.rig.cameras]
    batch = collate([frame, source[FRAMES + 2]])
    assert len(batch) == 2
    assert frame.boxes.attribute.max() < len(ATTRIBUTES)
    inside = source.grid.contains(frame.points.xyz_ego).float().mean()
    assert inside > (0.3 if name == "kitti-like" else 0.8)
    assert 0.1 < torch.stack([camera.image.mean() for camera in frame.cameras]).mean() < 0.9


def test_towns_and_splits_differ():
    seen = {digest(World("tiny", town=town, split=split)[0]) for town in TOWNS for split in ("train", "val")}
    assert len(seen) == 6


def test_a_camera_high_above_sees_the_crossing_as_the_map_has_it():
    source = world()
    frame = source[0]
    down = Mount.looking("above", (60, 60), 100.0, (30.0, 30.0), (0.0, 0.0, 80.0), 0.0, 90.0)
    view = source.view(0, frame.time, [down])[0]
    xyz = transform(
        inverse(view.cam_T_ego), unproject(view.pix_T_cam, torch.tensor([[30.0, 30.0]]), view.depth[30:31, 30])
    )
    assert xyz[0, :2].norm() < 1e-3
    assert view.depth[30, 30] == pytest.approx(80.0, abs=1.0)


@pytest.mark.parametrize("preset_name", PRESETS)
@pytest.mark.parametrize("town", TOWNS)
@pytest.mark.slow
def test_all_ten_classes_occur_in_every_validation_split(preset_name: str, town: str):
    rig = replace(preset(preset_name).rig, cameras=(), sweeps=1)
    source = World(preset_name, town=town, split="val", rig=rig)
    count = torch.zeros(len(DETECTION), dtype=torch.long)
    for index in range(2, len(source), FRAMES):
        boxes = source[index].boxes
        near = (boxes.centre[:, :2].abs() < 25.6).all(-1) & (boxes.num_points > 0)
        count += torch.bincount(boxes.label[near], minlength=len(DETECTION))
    assert (count > 0).all(), dict(zip(DETECTION.names, count.tolist(), strict=True))


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (lambda: World("huge"), "no world is called 'huge'"),
        (lambda: World("tiny", town="paris"), "no town is called 'paris'"),
        (lambda: World("tiny", split="test"), "no split is called 'test'"),
        (lambda: replace(preset("tiny").rig, beams=0), "at least one beam"),
        (lambda: replace(preset("tiny").rig, max_range=0.0), "positive range"),
        (lambda: replace(preset("tiny").rig, sweeps=0), "at least one sweep"),
        (lambda: world().view("nowhere", 0.0, []), "no scene 'nowhere'"),
        (lambda: world().view(99, 0.0, []), "scenes 0 to 9"),
    ],
)
def test_a_wrong_request_gets_one_clear_sentence(wrong, words: str):
    with pytest.raises(ValueError, match=words) as caught:
        wrong()
    assert "\n" not in str(caught.value)


def test_a_frame_out_of_range_is_an_index_error():
    with pytest.raises(IndexError, match="frames 0 to 69, got 70"):
        world()[70]


def test_a_camera_inside_a_building_is_refused():
    source = world()
    frame = source[0]
    street = source._scene(0).stage.street
    ego_T_town = inverse(source._scene(0).town_T_ego(frame.time))
    house = torch.tensor([[*street.buildings[0, :2], 2.0]], dtype=torch.float64)
    x, y, z = transform(ego_T_town, house)[0].tolist()
    with pytest.raises(ValueError, match="inside a building"):
        source.view(0, frame.time, [Mount.looking("lost", (4, 6), 5.0, (3.0, 2.0), (x, y, z), 0.0)])
    with pytest.raises(ValueError, match="above the road"):
        source.view(0, frame.time, [Mount.looking("mole", (4, 6), 5.0, (3.0, 2.0), (0.0, 0.0, -1.0), 0.0)])
