import shutil
from dataclasses import replace
from functools import cached_property
from pathlib import Path

import pytest
import torch

from cofield.classes import DETECTION, LIDARSEG
from cofield.data.export import export
from cofield.data.folders import SkipBroken, open_folder, readable
from cofield.data.simulate import World
from cofield.frame import Boxes, Camera, Frame
from cofield.geometry import inverse
from cofield.view.check import check_data, check_frame, check_source, check_step, overlay


@pytest.fixture(scope="module")
def world() -> World:
    world = World("tiny")
    return World("tiny", rig=replace(world.rig, lidar=(0.0, 0.0, 1.73), azimuths=180))


@pytest.fixture(scope="module")
def frame(world) -> Frame:
    return world[2]


@pytest.fixture(scope="module")
def folders(world, tmp_path_factory) -> dict[str, Path]:
    """The same frames as three data sets."""
    made = {}
    for name in ("nuscenes", "kitti", "semantickitti"):
        made[name] = tmp_path_factory.mktemp(name)
        export(world, name, made[name], 9)
    return made


@pytest.mark.parametrize("name", ["nuscenes", "kitti", "semantickitti"])
def test_a_sound_folder_has_no_findings_and_pictures(folders, name, tmp_path):
    report = check_data(name, folders[name], out=tmp_path / "out")
    assert (report.findings, report.skipped) == ([], [])
    assert len(list((tmp_path / "out").glob("*.png"))) == 4
    # What is said of the data says on which frames: 0, 2, 4 and 6 of the nine, and their successors.
    where = "(frames 0, 2, 4, 6 of 0 to 8)"
    assert {topic for topic, fact in report.facts.items() if fact.endswith(where)} >= {"points", "images"}
    assert report.facts["files"] == "every file of every frame is there (all 9 frames)"
    kind = "point labels" if name == "semantickitti" else "boxes"
    assert "% have a label, most " in report.facts[kind]
    assert len(report.frames) >= 4


@pytest.mark.parametrize("name", ["nuscenes", "kitti", "semantickitti"])
def test_the_real_samples_have_no_findings(realdata, name, tmp_path):
    root = shutil.copytree(realdata / name, tmp_path / name, ignore=shutil.ignore_patterns(".cofield-*"))
    assert check_data(name, root, out=tmp_path / "out").findings == []
    assert list((tmp_path / "out").glob("*.png"))


@pytest.mark.parametrize(
    ("name", "broken", "words"),
    [
        ("nuscenes", "v1.0-mini/scene.json", "has no scene.json; fetch the metadata"),
        ("nuscenes", "samples/CAM_LEFT", "more files of CAM_LEFT (9 frames need them); fetch that part"),
        ("kitti", "training/calib/000005.txt", "000005.txt: is missing or empty (frame 5 needs it); fetch"),
        ("kitti", "training/velodyne", "velodyne is missing; the root of KITTI holds training/velodyne"),
        ("semantickitti", "sequences/00/labels/000005.label", "000005.label: is missing or empty (frame 5 needs it)"),
        ("semantickitti", "sequences/00/calib.txt", "calib.txt: is missing or empty (7 frames need them); fetch"),
    ],
)
def test_what_is_missing_is_named_with_a_remedy(folders, tmp_path, name, broken, words):
    root = shutil.copytree(folders[name], tmp_path / name)
    path = root / broken
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    findings = [str(finding) for finding in check_data(name, root).findings]
    assert any(words in finding for finding in findings), findings


def test_broken_frames_can_be_skipped_and_are_listed(folders, tmp_path):
    root = shutil.copytree(folders["kitti"], tmp_path / "kitti")
    (root / "training/velodyne/000005.bin").write_bytes(b"")
    scan = root / "training/velodyne/000004.bin"
    scan.write_bytes(scan.read_bytes()[:-7])
    report = check_data("kitti", root, frames=9)
    assert len(report.findings) == 2
    assert report.skipped == []
    again = check_data("kitti", root, frames=9, skip_broken=True)
    assert again.findings == []
    assert again.skipped == report.findings
    assert [finding.where for finding in again.skipped] == [str(root / "training/velodyne/000005.bin"), "frame 4"]
    assert again.frames == ["000000", "000001", "000002", "000003", "000006", "000007", "000008"]
    assert again.facts["files"] == "1 are missing or empty (all 9 frames)"


def test_only_readable_frames_are_evaluated_and_the_others_are_named(folders, tmp_path, caplog):
    root = shutil.copytree(folders["kitti"], tmp_path / "kitti")
    for stem in ("000002", "000006"):
        (root / f"training/image_2/{stem}.png").write_bytes(b"no image")
    source = open_folder("kitti", root, "all")
    assert readable(source, [0, 2, 4, 6]) == [0, 4]
    assert [record.message.split(":")[0] for record in caplog.records] == [
        "skipped frame 2 of kitti",
        "skipped frame 6 of kitti",
    ]
    with pytest.raises(ValueError, match=r"none of the 1 frames of kitti can be read; check-data says why"):
        readable(source, [2])


def test_a_wrong_name_root_or_version_is_one_finding(folders, tmp_path):
    for arguments, words in (
        (("waymo", tmp_path), "no data set is called 'waymo'; there is nuscenes, kitti"),
        (("kitti", tmp_path / "no"), "is no folder; say where the data set is"),
        (("nuscenes", folders["nuscenes"], "v1.0-test"), "has the versions v1.0-mini; name one of them"),
        (("semantickitti", tmp_path), "has no scans"),
    ):
        (finding,) = check_data(*arguments).findings
        assert words in str(finding)


def problems(frame: Frame) -> str:
    return "; ".join(map(str, check_frame(frame, DETECTION, LIDARSEG)))


def with_camera(frame: Frame, **changes) -> Frame:
    return replace(frame, cameras=(replace(frame.cameras[0], **changes), *frame.cameras[1:]))


def with_points(frame: Frame, **changes) -> Frame:
    return replace(frame, points=replace(frame.points, **changes))


def with_boxes(frame: Frame, **changes) -> Frame:
    assert isinstance(frame.boxes, Boxes)
    return replace(frame, boxes=replace(frame.boxes, **changes))


def broken_frames(frame: Frame) -> dict[str, tuple[Frame, str]]:
    """What people get wrong, and what they are told."""
    camera, points, boxes = frame.cameras[0], frame.points, frame.boxes
    assert isinstance(camera, Camera)
    assert isinstance(boxes, Boxes)
    mirrored = camera.cam_T_ego * torch.tensor([-1.0, 1, 1, 1])[:, None]
    sunk = camera.cam_T_ego + 1e4 * torch.tensor([0.0, 1, 0, 0])[:, None] * torch.tensor([0.0, 0, 0, 1])
    other_size = camera.pix_T_cam * torch.tensor([4.0, 4, 1, 1])[:, None]
    return {
        "inverted extrinsics": (with_camera(frame, cam_T_ego=inverse(camera.cam_T_ego)), "y axis does not point down"),
        "a camera underground": (with_camera(frame, cam_T_ego=sunk), "no point falls into the image"),
        "a mirrored camera": (with_camera(frame, cam_T_ego=mirrored), "cam_T_ego is no rotation and translation"),
        "a scaled rotation": (with_camera(frame, cam_T_ego=camera.cam_T_ego * 1.1), "cam_T_ego is no rotation"),
        "intrinsics of another size": (with_camera(frame, pix_T_cam=other_size), "belong to another image size"),
        "a negative focal length": (with_camera(frame, pix_T_cam=-camera.pix_T_cam), "a focal length is not positive"),
        "milliseconds": (with_camera(frame, time=camera.time * 1000), "its times have the same zero and unit"),
        "points of the LiDAR frame": (
            with_points(frame, xyz_ego=points.xyz_ego - torch.tensor([0, 0, 1.73])), "the ground around the car is at"),
        "z forward": (with_points(frame, xyz_ego=points.xyz_ego[:, [1, 2, 0]]), "the ground around the car is at"),
        "intensity in bytes": (with_points(frame, intensity=points.intensity * 255), "scale it to 0..1"),
        "no points": (replace(frame, points=points.select(torch.zeros(len(points)).bool())), "there are no points"),
        "NaN points": (with_points(frame, xyz_ego=points.xyz_ego * torch.nan), "some points are not finite"),
        "raw label numbers": (with_points(frame, labels=points.labels + 20), "nuscenes-lidarseg has 16 classes"),
        "no label": (with_points(frame, labels=points.labels * 0 - 1), "no point has a label"),
        "an origin too far": (with_points(frame, origin=points.origin + 1), "no row of origins_ego"),
        "width before length": (with_boxes(frame, size=boxes.size[:, [1, 0, 2]]), "wider than they are long"),
        "boxes of another frame": (
            with_boxes(frame, centre=boxes.centre + torch.tensor([3.0, 2, 0])), "of the points that are stated"),
        "boxes elsewhere, uncounted": (
            with_boxes(frame, centre=boxes.centre + torch.tensor([0, 0, 30.0]), num_points=None), "hold no point"),
        "raw categories": (with_boxes(frame, label=boxes.label + 10), "nuscenes-detection has 10"),
        "a box without size": (with_boxes(frame, size=boxes.size * 0), "a box has no place or no size"),
        "a pose that is none": (replace(frame, world_T_ego=frame.world_T_ego * 2), "world_T_ego is no rotation"),
    }  # fmt: skip


def test_each_usual_mistake_is_told(frame):
    assert problems(frame) == ""
    for name, (broken, words) in broken_frames(frame).items():
        assert words in problems(broken), name


def test_frames_in_the_wrong_order_or_far_apart_are_told(frame, world):
    assert check_step(frame, world[3]) == []
    assert "s before its predecessor" in str(check_step(world[3], frame)[0])
    away = world[3].world_T_ego.clone()
    away[:2, 3] += 1000
    far = replace(world[3], world_T_ego=away)
    assert "the car moved at" in str(check_step(frame, far)[0])


def test_a_place_where_no_picture_can_be_written_is_refused(world, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match=r"file/out cannot be written \(Not a directory\); name another folder"):
        check_source(world, tmp_path / "file" / "out", 1)


def test_the_same_problem_of_many_frames_is_told_per_frame_once(world):
    class Mute:
        """The world with one scene name too few."""

        name, box_classes, point_classes = "mute", DETECTION, LIDARSEG

        def __len__(self) -> int:
            return 3

        def scenes(self) -> list[str]:
            return ["a", "a"]

        def __getitem__(self, index: int) -> Frame:
            return with_points(world[0], intensity=world[0].points.intensity * 9)

    findings = list(map(str, check_source(Mute()).findings))
    assert len(findings) == 2
    assert "3 frames but 2 scene names" in findings[0]


def test_an_overlay_shows_points_and_boxes(frame):
    sheet = overlay(frame, DETECTION, LIDARSEG)
    plain = overlay(replace(frame, boxes=None), DETECTION, LIDARSEG)
    assert sheet.shape[1] == 3 * 800
    assert sheet.shape[0] > plain.shape[0]
    assert sheet.std() > 20


class Torn:
    """Five frames, two of which cannot be read."""

    name, box_classes, point_classes = "torn", None, None

    @cached_property
    def frame(self) -> Frame:
        return World("tiny")[0]

    def __len__(self) -> int:
        return 5

    def scenes(self) -> list[str]:
        return ["a"] * 5

    def __getitem__(self, index: int) -> Frame:
        if index in (1, 2):
            raise OSError(f"{index}.bin is cut off")
        return replace(self.frame, token=str(index))


def test_broken_frames_are_stepped_over_and_listed():
    source = SkipBroken(Torn())
    assert [source[i].token for i in range(5)] == ["0", "3", "3", "3", "4"]
    assert source.skipped == {1: "1.bin is cut off", 2: "2.bin is cut off"}
    assert source.scenes() == ["a"] * 5
    assert source.name == "torn"
    with pytest.raises(IndexError, match="torn has frames 0 to 4, got 5"):
        source[5]


def test_a_source_that_is_broken_throughout_says_so():
    class Lost(Torn):
        def __getitem__(self, index: int) -> Frame:
            raise ValueError("gone")

    with pytest.raises(ValueError, match="none of the 5 frames of torn can be read; frame 3: gone"):
        SkipBroken(Lost())[3]


def test_a_folder_is_opened_by_name(folders):
    assert open_folder("nuscenes", folders["nuscenes"]).scenes()[0].startswith("tiny")
    assert len(open_folder("kitti", folders["kitti"], "val")) == 2
    assert open_folder("semantickitti", folders["semantickitti"])[0].cameras[0].name == "image_2"
    assert open_folder("kitti", folders["kitti"], scale=0.5)[0].cameras[0].image.shape == (3, 32, 80)
