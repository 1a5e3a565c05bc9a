import contextlib
import json
import pickle
import shutil
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cofield.classes import ATTRIBUTES, DETECTION, LIDARSEG, MAP_LAYERS, UNKNOWN
from cofield.data.export import export
from cofield.data.files import read_points
from cofield.data.nuscenes import CAMERAS, VAL_RUNS, NuScenes, scenes_of_split
from cofield.data.nuscenes_index import DETECTION_NAMES, LIDARSEG_NAMES, open_tables
from cofield.data.simulate import World
from cofield.data.tables import Table, token_pairs
from cofield.frame import Boxes
from cofield.geometry import project, rotation_from_quaternion, transform

MINI = "v1.0-mini"


def copied(source: Path, target: Path) -> Path:
    """A copy without the index of the original."""
    return Path(shutil.copytree(source, target, ignore=shutil.ignore_patterns(".cofield-*")))


@pytest.fixture(scope="module")
def real(realdata, tmp_path_factory) -> Path:
    return copied(realdata / "nuscenes", tmp_path_factory.mktemp("real") / "nuscenes")


@pytest.fixture(scope="module")
def town(tmp_path_factory) -> Path:
    """Two scenes of the synthetic world as a nuScenes folder, with two sweeps a frame."""
    world = World("tiny")
    world = World("tiny", rig=replace(world.rig, beams=8, azimuths=90, sweeps=3))
    root = tmp_path_factory.mktemp("town") / "nuscenes"
    export(world, "nuscenes", root, 9)
    return root


@pytest.fixture
def broken(town, tmp_path) -> Path:
    """A copy to break."""
    return copied(town, tmp_path / "nuscenes")


def edit(root: Path, table: str, change) -> None:
    path = root / MINI / f"{table}.json"
    rows = json.loads(path.read_text())
    change(rows)
    path.write_text(json.dumps(rows))


def test_the_real_keyframe_is_what_is_known_of_it(real):
    source = NuScenes(real, "train", MINI)
    assert (len(source), source.scenes(), source.point_classes) == (1, ["scene-0061"], None)
    frame = source[0]
    assert frame.token == "ca9a282c9e77460f8360f564131a8af5"
    assert len(frame.points) == 34688
    assert frame.points.intensity.max() == 1.0
    assert tuple(camera.name for camera in frame.cameras) == CAMERAS
    assert all(camera.image.shape == (3, 900, 1600) for camera in frame.cameras)
    # Cameras are exposed one after the other, before the LiDAR's sweep ends.
    assert [round(camera.time * 1e6) for camera in frame.cameras] == [-35491, -27612, -20058, -10426, -528, -43107]
    assert frame.boxes is not None
    assert len(frame.boxes) == 68
    assert frame.boxes.velocity.isnan().all()


def test_real_points_are_seen_where_the_devkit_sees_them(real):
    frame = NuScenes(real, "train", MINI)[0]
    counts = []
    for camera in frame.cameras:
        uv, depth = project(camera.pix_T_ego, frame.points.xyz_ego)
        # The devkit leaves out the outermost pixel.
        counts.append(int(((depth > 1) & (uv > 1).all(-1) & (uv < torch.tensor([1599, 899])).all(-1)).sum()))
    assert counts == [3053, 3076, 3369, 4820, 4089, 3696]


def test_real_boxes_hold_the_points_that_were_counted(real):
    frame = NuScenes(real, "train", MINI)[0]
    table = open_tables(real / MINI)
    rotation = rotation_from_quaternion(torch.from_numpy(np.array(table["box.rotation"])))
    boxes = Boxes(
        torch.from_numpy(np.array(table["box.centre"])),
        torch.from_numpy(np.array(table["box.size"])),
        torch.atan2(rotation[:, 1, 0], rotation[:, 0, 0]),
        torch.zeros(69, 2).double(),
        torch.zeros(69).long(),
    )
    # Boxes stand upright in the world.
    held = boxes.contains(transform(frame.world_T_ego, frame.points.xyz_ego.double())).sum(1)
    assert held.tolist() == table["box.points"].tolist()
    assert int(held.sum()) == 1009
    # In the ego frame they are upright too, though the car is not: nearly the same points.
    near = frame.boxes.contains(frame.points.xyz_ego).sum(1)
    assert int((near - frame.boxes.num_points).abs().sum()) <= 30


def test_real_road_points_lie_at_height_zero(real):
    xyz = NuScenes(real, "train", MINI)[0].points.xyz_ego
    ahead = (xyz[:, 0].abs() < 12) & (xyz[:, 1].abs() < 2) & (xyz[:, :2].norm(dim=-1) > 4) & (xyz[:, 2] < 0.5)
    assert xyz[ahead, 2].median().abs() < 0.1


def test_the_world_comes_back_from_its_folder(town):
    world = World("tiny")
    world = World("tiny", rig=replace(world.rig, beams=8, azimuths=90, sweeps=3))
    source = NuScenes(town, "all", MINI, sweeps=2, close=0.0, map_grid=world.map_grid)
    assert source.scenes() == world.scenes()[:9]
    assert (source.box_classes, source.point_classes) == (DETECTION, LIDARSEG)
    for index in (0, 4, 8):
        before, after = world[index], source[index]
        assert after.time == pytest.approx(before.time)
        assert len(after.points) == len(before.points)
        for name in ("xyz_ego", "intensity", "age", "origin", "labels"):
            column, other = (getattr(frame.points, name) for frame in (before, after))
            key = slice(None) if name != "labels" else before.points.age == 0
            assert (column[key] - other[key]).abs().max() < 1e-4, name
        assert torch.allclose(after.origins_ego, before.origins_ego, atol=1e-4)
        for camera, other in zip(before.cameras, after.cameras, strict=True):
            assert torch.allclose(camera.cam_T_ego, other.cam_T_ego, atol=1e-4)
            assert torch.allclose(camera.pix_T_cam, other.pix_T_cam, atol=1e-4)
            assert (camera.image - other.image).abs().mean() < 0.02
        order = before.boxes.centre[:, 0].argsort(), after.boxes.centre[:, 0].argsort()
        for name in ("centre", "size", "yaw", "label", "attribute", "num_points"):
            column, other = (getattr(f.boxes, name)[o] for f, o in zip((before, after), order, strict=True))
            assert torch.allclose(column.float(), other.float(), atol=1e-4), name
        assert_same_instances(before, after)
        shared = (before.maps.layers & after.maps.layers).sum((1, 2)) / (before.maps.layers | after.maps.layers).sum(
            (1, 2)
        )
        areas = torch.tensor([MAP_LAYERS.index(name) for name in ("drivable_area", "ped_crossing", "walkway")])
        assert (shared[areas].nan_to_num(1.0) > 0.93).all()
        assert shared[MAP_LAYERS.index("divider")] > 0.6
    pair = world[1].world_T_ego, world[5].world_T_ego, source[1].world_T_ego, source[5].world_T_ego
    steps = [torch.linalg.inv(a) @ b for a, b in (pair[:2], pair[2:])]
    assert torch.allclose(steps[0], steps[1], atol=1e-6)


def assert_same_instances(before, after):
    """Points share an instance in one frame exactly if they do in the other."""
    key = before.points.age == 0
    pairs = torch.stack([before.points.instances[key], after.points.instances[key]], -1)
    assert torch.equal(pairs[:, 0] == UNKNOWN, pairs[:, 1] == UNKNOWN)
    kinds = pairs.unique(dim=0)
    assert len(kinds) == len(kinds[:, 0].unique()) == len(kinds[:, 1].unique())


def test_velocities_come_from_the_labels_before_and_after(town):
    world, source = World("tiny"), NuScenes(town, "all", MINI)
    here, there = world[3], source[3]
    order = here.boxes.centre[:, 0].argsort(), there.boxes.centre[:, 0].argsort()
    fast = here.boxes.velocity[order[0]].norm(dim=-1) > 1
    assert fast.any()
    error = (here.boxes.velocity[order[0]] - there.boxes.velocity[order[1]]).norm(dim=-1)
    assert error[fast].median() < 0.3


def test_the_first_frame_has_fewer_sweeps_and_none_from_another_scene(town):
    source = NuScenes(town, "all", MINI, sweeps=10)
    sweeps = [len(source[i].origins_ego) for i in (0, 1, 6, 7)]
    # Each keyframe comes with two sweeps of its own.
    assert sweeps == [3, 6, 11, 3]
    assert (source[6].points.age.unique().diff() > 0.04).all()


def test_close_points_of_earlier_sweeps_are_the_car_itself(town):
    near, far = (NuScenes(town, "all", MINI, sweeps=2, close=close)[2].points for close in (0.0, 4.0))
    assert (far.age == 0).sum() == (near.age == 0).sum()
    assert len(far) < len(near)


def test_lidarseg_alone_has_no_instances_and_labels_can_be_left_out(town):
    source = NuScenes(town, "all", MINI, labels="lidarseg")
    both = NuScenes(town, "all", MINI)[1].points
    assert torch.equal(source[1].points.labels, both.labels)
    assert source[1].points.instances is None
    bare = NuScenes(town, "all", MINI, labels="none")
    assert (bare.point_classes, bare[1].points.labels) == (None, None)


def test_cameras_can_be_chosen_and_are_missed_by_name(town):
    source = NuScenes(town, "all", MINI, cameras=("CAM_RIGHT", "CAM_FRONT"), scale=0.5)
    assert [camera.name for camera in source[0].cameras] == ["CAM_RIGHT", "CAM_FRONT"]
    assert source[0].cameras[0].image.shape == (3, 32, 80)
    with pytest.raises(ValueError, match="no channel CAM_TOP; there are"):
        NuScenes(town, "all", MINI, cameras=("CAM_TOP",))


def test_splits_follow_the_listing_or_the_official_numbers(town, tmp_path):
    assert len(NuScenes(town, "train", MINI)) == 7
    assert len(NuScenes(town, "val", MINI)) == 2
    with pytest.raises(ValueError, match=r"splits\.json has no split 'test'; it has train, val"):
        NuScenes(town, "test", MINI)
    names = [f"scene-{number:04d}" for number in (1, 3, 61, 103, 916, 1110)]
    split = {key: scenes_of_split(tmp_path / version, which, names) for key, version, which in (
        ("mini", MINI, "val"), ("train", "v1.0-trainval", "train"), ("val", "v1.0-trainval", "val"),
        ("test", "v1.0-test", "test"))}  # fmt: skip
    assert split == {"mini": names[3:5], "train": [names[0], names[2], names[5]], "val": [*names[1:2], *names[3:5]],
                     "test": names}  # fmt: skip
    assert sum(last - first + 1 for first, last in VAL_RUNS) == 150
    with pytest.raises(ValueError, match=r"v1\.0-test has no official split 'val'; write"):
        scenes_of_split(tmp_path / "v1.0-test", "val", names)


def test_every_class_has_a_category():
    assert set(DETECTION_NAMES.values()) == set(DETECTION.names)
    assert set(LIDARSEG_NAMES.values()) == set(LIDARSEG.names)
    assert len(LIDARSEG_NAMES) == 14 + 6


def test_attributes_are_the_official_ones(real):
    boxes = NuScenes(real, "train", MINI)[0].boxes
    names = {ATTRIBUTES.names[a] for a in boxes.attribute.unique().tolist() if a != UNKNOWN}
    assert {"pedestrian.moving", "vehicle.parked"} <= names
    walking = boxes.label == DETECTION.index("pedestrian")
    assert all(ATTRIBUTES.names[a].startswith("pedestrian") for a in boxes.attribute[walking].tolist())


# The index


def test_the_index_is_built_once_and_shared_by_processes(broken):
    folder = broken / MINI
    context = get_context("forkserver")
    with ProcessPoolExecutor(2, mp_context=context) as pool:
        folders = set(pool.map(_index_folder, [folder] * 4))
    assert len(folders) == 1
    (index,) = folder.glob(".cofield-*")
    assert folders == {index}
    built = index.stat().st_mtime_ns
    source = NuScenes(broken, "all", MINI)
    assert index.stat().st_mtime_ns == built
    again = pickle.loads(pickle.dumps(source))
    assert torch.equal(again[2].points.xyz_ego, source[2].points.xyz_ego)
    assert len(pickle.dumps(source)) < 5000


def _index_folder(folder: Path) -> Path:
    return open_tables(folder).folder


def test_changed_tables_are_indexed_anew(broken):
    before = NuScenes(broken, "all", MINI)[0].boxes
    time.sleep(0.01)
    edit(broken, "sample_annotation", lambda rows: rows.__delitem__(slice(1, None)) or rows[0].update(next=""))
    edit(broken, "instance", lambda rows: None)
    after = NuScenes(broken, "all", MINI)[0].boxes
    assert len(after) == 1 < len(before)


def test_a_read_only_folder_is_indexed_in_the_cache(broken, tmp_path, monkeypatch):
    def refuse(*arguments, dir, **options):
        if Path(dir) == broken / MINI:
            raise PermissionError(13, "Permission denied", str(dir))
        return original(*arguments, dir=dir, **options)

    original = tempfile.mkdtemp
    monkeypatch.setattr(tempfile, "mkdtemp", refuse)
    monkeypatch.setenv("COFIELD_CACHE", str(tmp_path / "cache"))
    assert len(NuScenes(broken, "all", MINI)[0].points)
    assert len(list((tmp_path / "cache").glob("tables-*"))) == 1
    assert not list((broken / MINI).glob(".cofield-*"))
    (tmp_path / "file").touch()
    shutil.rmtree(tmp_path / "cache")
    monkeypatch.setenv("COFIELD_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(OSError, match=r"no place for an index .*Permission denied.*set COFIELD_CACHE"):
        NuScenes(broken, "all", MINI)


@pytest.mark.parametrize("size", [7, 100, 1 << 23])
def test_tables_are_read_in_slices_of_any_size(tmp_path, monkeypatch, size):
    monkeypatch.setattr("cofield.data.tables._SLICE", size)
    rows = [
        {"token": f"{i:032x}", "other": {"token": 3}, "text": "a } b, {é", "list": [[1, 2.5], [3, 4]], "none": None,
         "three": [i, -0.25 * i, 1.5e-3], "many": [f"{i:032X}"] if i % 2 else [], "time": 1532402927647951 + i,
         "key": i % 3 == 0, "quote": 'a "b" \\ c'}
        for i in range(20)
    ]  # fmt: skip
    kinds = {"time": "int", "token": "token", "text": "text", "list": "list", "three": "3", "many": "token"}
    kinds |= {"key": "bool", "quote": "text"}
    for indent in (None, 0, 2):
        (tmp_path / "a.json").write_text(json.dumps(rows, indent=indent, ensure_ascii=False))
        table = Table(tmp_path, "a", kinds)
        assert table["time"].tolist() == [row["time"] for row in rows]
        assert table["list"] == [row["list"] for row in rows]
        assert table["three"].tolist() == [row["three"] for row in rows]
        assert table["key"].tolist() == [row["key"] for row in rows]
        assert (table["token"] == token_pairs([row["token"] for row in rows])).all()
        assert (table["many"] == token_pairs([(row["many"] or [""])[0] for row in rows])).all()
        for name in ("text", "quote"):
            assert table[name].bytes.tobytes().decode() == "".join(row[name] for row in rows)
            assert table[name].lengths.tolist() == [len(row[name].encode()) for row in rows]
    (tmp_path / "a.json").write_text("[]\n")
    assert len(Table(tmp_path, "a", kinds)["token"]) == 0


@given(st.lists(st.floats(allow_nan=False, allow_infinity=False) | st.integers(-(2**60), 2**60), min_size=1))
@settings(max_examples=200, deadline=None)
def test_numbers_are_read_to_the_last_place(tmp_path_factory, values):
    folder = tmp_path_factory.mktemp("numbers")
    (folder / "a.json").write_text(json.dumps([{"x": [value]} for value in values]))
    read = Table(folder, "a", {"x": "1"})["x"][:, 0]
    assert read.tolist() == pytest.approx(values, rel=5e-15, abs=0)


@given(st.floats(-1e5, 1e5).map(lambda value: round(value, 9)))
@settings(max_examples=200, deadline=None)
def test_numbers_with_up_to_fifteen_digits_are_read_exactly(tmp_path_factory, value):
    folder = tmp_path_factory.mktemp("numbers")
    (folder / "a.json").write_text(json.dumps([{"x": value}]))
    assert Table(folder, "a", {"x": "1"})["x"][0, 0] == value


@given(st.binary(max_size=60))
@settings(max_examples=200, deadline=None)
def test_what_is_no_table_is_refused_and_never_crashes(tmp_path_factory, junk):
    folder = tmp_path_factory.mktemp("junk")
    (folder / "a.json").write_bytes(b'[{"token": "' + b"0" * 32 + b'"}, ' + junk)
    with contextlib.suppress(ValueError):
        assert len(Table(folder, "a", {"token": "token"})["token"]) >= 1


def test_tokens_of_any_form_are_told_apart():
    texts = ["", "0f" * 16, "0F" * 16, "short", "a" * 64, "scene/1"]
    pairs = token_pairs(texts)
    assert pairs.shape == (6, 2)
    assert not pairs[0].any()
    assert (pairs[1] == pairs[2]).all()
    assert len({tuple(pair) for pair in pairs.tolist()}) == 5


# What may be broken


def test_a_wrong_version_lists_those_there_are(broken):
    with pytest.raises(ValueError, match=r"v1\.0-trainval is missing: .* has the versions v1.0-mini; name one of them"):
        NuScenes(broken)
    with pytest.raises(ValueError, match="has the versions none"):
        NuScenes(broken / "samples")


def test_a_missing_or_cut_off_table_is_named(broken):
    path = broken / MINI / "ego_pose.json"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(
        ValueError, match=r"ego_pose\.json is no complete JSON list of records; fetch the metadata again"
    ):
        NuScenes(broken, "all", MINI)
    path.unlink()
    with pytest.raises(FileNotFoundError, match=r"has no ego_pose\.json; fetch the metadata"):
        NuScenes(broken, "all", MINI)


@pytest.mark.parametrize(
    ("table", "column", "target"),
    [
        ("sample_data", "ego_pose_token", "ego_pose"),
        ("sample_data", "prev", "sample_data"),
        ("sample_annotation", "instance_token", "instance"),
        ("sample_annotation", "next", "sample_annotation"),
        ("sample", "scene_token", "scene"),
        ("calibrated_sensor", "sensor_token", "sensor"),
        ("lidarseg", "sample_data_token", "sample_data"),
    ],
)
def test_a_dangling_token_names_the_table_the_column_and_the_token(broken, table, column, target):
    edit(broken, table, lambda rows: rows[2].update({column: "ab" * 16}))
    message = rf"{table}\.json: {column} of 1 records is nowhere in {target}\.json, first of record 2: {'ab' * 16}"
    with pytest.raises(ValueError, match=message):
        NuScenes(broken, "all", MINI)


def test_a_table_of_something_else_is_refused(broken):
    edit(broken, "sample", lambda rows: rows[0].pop("timestamp"))
    with pytest.raises(ValueError, match=r"sample\.json: a record has no 'timestamp'"):
        NuScenes(broken, "all", MINI)
    edit(broken, "sample", lambda rows: rows[0].update(timestamp="now"))
    with pytest.raises(ValueError, match=r"sample\.json: 'timestamp' is not what it should be"):
        NuScenes(broken, "all", MINI)


def test_empty_neighbours_mean_no_sweeps_and_no_velocity(broken):
    for table in ("sample_data", "sample_annotation", "sample"):
        edit(broken, table, lambda rows: [row.update(prev="", next="") for row in rows])
    frame = NuScenes(broken, "all", MINI, sweeps=5)[3]
    assert len(frame.origins_ego) == 1
    assert frame.boxes.velocity.isnan().all()


def test_absent_radar_is_no_matter(broken):
    edit(
        broken, "sensor", lambda rows: rows.append({"token": "ef" * 16, "channel": "RADAR_FRONT", "modality": "radar"})
    )
    assert len(NuScenes(broken, "all", MINI)[0].cameras) == 4


def test_a_missing_keyframe_names_the_sample_and_the_channel(broken):
    edit(
        broken,
        "sample_data",
        lambda rows: [row.update(is_key_frame=False) for row in rows if "LIDAR" in row["filename"]],
    )
    with pytest.raises(ValueError, match=r"sample_data\.json has no keyframe of LIDAR_TOP for sample"):
        NuScenes(broken, "all", MINI)[0]


def test_broken_files_are_named(broken):
    source = NuScenes(broken, "all", MINI, sweeps=1)
    image = next((broken / "samples" / "CAM_FRONT").iterdir())
    image.write_bytes(image.read_bytes()[:300])
    with pytest.raises(OSError, match=rf"{image.name} cannot be decoded"):
        _ = [source[i] for i in range(9)]
    shutil.rmtree(broken / "samples" / "CAM_FRONT")
    with pytest.raises(FileNotFoundError, match=r"CAM_FRONT.*\.jpg is missing"):
        source[0]
    shutil.rmtree(broken / "sweeps")
    with pytest.raises(FileNotFoundError, match=r"sweeps/LIDAR_TOP.*\.pcd\.bin is missing"):
        replace(source, cameras=())[0]


def test_labels_of_another_length_are_named(broken):
    path = next((broken / "lidarseg" / MINI).iterdir())
    path.write_bytes(path.read_bytes() + b"\0")
    source = NuScenes(broken, "all", MINI, labels="lidarseg", cameras=())
    with pytest.raises(ValueError, match=rf"{path.name} holds \d+ labels for a scan of"):
        _ = [source[i] for i in range(9)]


def test_a_missing_map_or_label_table_says_what_to_do(broken):
    grid = World("tiny").map_grid
    shutil.rmtree(broken / "maps" / "expansion")
    with pytest.raises(FileNotFoundError, match=r"boston-seaport\.json is missing; fetch the map expansion"):
        NuScenes(broken, "all", MINI, map_grid=grid)[0]
    (broken / MINI / "panoptic.json").unlink()
    with pytest.raises(ValueError, match=r"has no panoptic\.json; fetch it, or ask for no labels"):
        NuScenes(broken, "all", MINI, labels="panoptic")


def test_a_split_without_labels_has_frames_without_boxes(broken):
    for table in ("sample_annotation", "instance"):
        (broken / MINI / f"{table}.json").write_text("[]")
    for table in ("lidarseg", "panoptic"):
        (broken / MINI / f"{table}.json").unlink()
    frame = NuScenes(broken, "all", MINI)[0]
    assert frame.boxes is None
    assert frame.points.labels is None


def test_the_lidar_file_has_the_official_axes(town):
    path = next((town / "samples" / "LIDAR_TOP").iterdir())
    frame = NuScenes(town, "all", MINI)[0]
    rows = torch.from_numpy(np.concatenate([read_points(p, 5) for p in [path]]))
    # LiDAR x is to the right of ego x, y ahead.
    mount = frame.origins_ego[0]
    turned = torch.stack([rows[:, 1], -rows[:, 0], rows[:, 2]], -1) + mount
    first = min((abs(len(NuScenes(town, "all", MINI)[i].points) - len(rows)), i) for i in range(9))[1]
    expected = NuScenes(town, "all", MINI)[first].points.xyz_ego
    assert torch.allclose(turned, expected, atol=1e-4)
