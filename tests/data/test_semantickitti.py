import numpy as np
import pytest
import torch

from cofield.classes import SEMANTICKITTI, UNKNOWN
from cofield.data.kitti import LIDAR_HEIGHT
from cofield.data.semantickitti import MOVING, SemanticKitti, label_table
from cofield.geometry import inverse


def test_real_scans_have_the_known_points_and_labels(realdata):
    source = SemanticKitti(realdata / "semantickitti")
    frames = list(source)
    assert [frame.token for frame in frames] == ["00/000000", "00/000001"]
    assert [len(frame.points) for frame in frames] == [124668, 124605]
    assert source.point_classes == SEMANTICKITTI
    present = {SEMANTICKITTI.names[label] for label in frames[0].points.labels.unique().tolist() if label >= 0}
    assert {"car", "road", "sidewalk", "building", "vegetation"} <= present
    # Road points lie at height zero, where the LiDAR is 1.73 m up.
    road = frames[0].points.labels == SEMANTICKITTI.index("road")
    assert frames[0].points.xyz_ego[road, 2].median().abs() < 0.15


def test_the_real_second_scan_is_where_the_poses_say(realdata):
    frames = list(SemanticKitti(realdata / "semantickitti"))
    ego_T_lidar = torch.eye(4, dtype=torch.float64)
    ego_T_lidar[2, 3] = LIDAR_HEIGHT
    first, second = (frame.world_T_ego @ ego_T_lidar for frame in frames)
    assert (inverse(first) @ second)[:3, 3].tolist() == pytest.approx([0.859, 0.047, 0.022], abs=6e-4)
    assert frames[1].time == pytest.approx(0.1037359)


def sequence(root, number="00", stems=("000002", "000005"), label=0, labels="labels"):
    folder = root / "sequences" / number
    (folder / "velodyne").mkdir(parents=True, exist_ok=True)
    (folder / labels).mkdir(exist_ok=True)
    # A camera that looks along the LiDAR's x axis, with no offset.
    (folder / "calib.txt").write_text("P2: 700 0 600 0 0 710 170 0 0 0 1 0\nTr: 0 -1 0 0 0 0 -1 0 1 0 0 0\n")
    poses = [[1, 0, 0, 0.5 * n, 0, 1, 0, 0, 0, 0, 1, 2.0 * n] for n in range(6)]
    np.savetxt(folder / "poses.txt", poses)
    np.savetxt(folder / "times.txt", [0.11 * n for n in range(6)])
    for stem in stems:
        np.array([[1, 2, 3, 0.5], [4, 5, 6, 0.75]], np.float32).tofile(folder / "velodyne" / f"{stem}.bin")
        np.array([label, label], np.uint32).tofile(folder / labels / f"{stem}.label")
    return folder


def test_frames_are_found_by_name_and_posed_by_number(tmp_path):
    sequence(tmp_path)
    frames = list(SemanticKitti(tmp_path))
    assert [frame.token for frame in frames] == ["00/000002", "00/000005"]
    # Camera z is ego x, camera x is ego -y.
    assert [frame.world_T_ego[:3, 3].tolist() for frame in frames] == [
        pytest.approx([4.0, -1.0, 0.0]),
        pytest.approx([10.0, -2.5, 0.0]),
    ]
    assert [frame.time for frame in frames] == pytest.approx([0.22, 0.55])


def test_earlier_scans_are_moved_by_the_poses_with_their_age_and_origin(tmp_path):
    folder = sequence(tmp_path, stems=("000002", "000003", "000005"), label=40)
    np.array([10, 252 | 7 << 16], np.uint32).tofile(folder / "labels/000003.label")
    sequence(tmp_path, "01", stems=("000000",))
    source = SemanticKitti(tmp_path, sweeps=2)
    assert [len(source[i].origins_ego) for i in range(4)] == [1, 2, 3, 1]
    frame, alone = source[2], SemanticKitti(tmp_path)[2]
    # From scan 5 to 3 and 2: 2 m ahead and half a metre to the right a scan.
    back = torch.tensor([[0.0, 0, 0], [-4, 1, 0], [-6, 1.5, 0]])
    assert torch.allclose(frame.origins_ego, torch.tensor([0, 0, LIDAR_HEIGHT]) + back, atol=1e-6)
    expected = alone.points.xyz_ego + back[:, None]
    assert torch.allclose(frame.points.xyz_ego, expected.flatten(0, 1), atol=1e-5)
    assert torch.equal(frame.points.xyz_ego[:2], alone.points.xyz_ego)
    assert frame.points.age.tolist() == pytest.approx([0, 0, 0.22, 0.22, 0.33, 0.33], abs=1e-6)
    assert frame.points.origin.tolist() == [0, 0, 1, 1, 2, 2]
    road, car = SEMANTICKITTI.index("road"), SEMANTICKITTI.index("car")
    assert frame.points.labels.tolist() == [road, road, car, car, road, road]
    assert (frame.points.instances != UNKNOWN).tolist() == [False, False, False, True, False, False]
    assert [path.name for path in source.files(2)].count("000003.label") == 1


def test_two_real_scans_lie_on_each_other(realdata):
    frame = SemanticKitti(realdata / "semantickitti", sweeps=1)[1]
    points, earlier = frame.points, frame.points.age > 0
    assert frame.points.age.unique().tolist() == pytest.approx([0, 0.1037359], abs=1e-6)
    # A wall seen from both: of the points labelled building near the car, most have one of the other scan beside them.
    wall = (points.labels == SEMANTICKITTI.index("building")) & (points.xyz_ego.norm(dim=-1) < 15)
    now, then = points.xyz_ego[wall & ~earlier][::20], points.xyz_ego[wall & earlier]
    moved_back = then - frame.origins_ego[1] + frame.origins_ego[0]
    near, off = (torch.cdist(now, other).amin(1).median() for other in (then, moved_back))
    assert near < 0.05 < 0.1
    assert near < 0.8 * off


def test_without_poses_and_times_frames_stand_still_at_ten_a_second(tmp_path):
    folder = sequence(tmp_path)
    (folder / "poses.txt").unlink()
    (folder / "times.txt").unlink()
    frame = SemanticKitti(tmp_path)[1]
    assert torch.equal(frame.world_T_ego, torch.eye(4, dtype=torch.float64))
    assert frame.time == pytest.approx(0.5)


def test_a_scan_beyond_the_poses_is_refused(tmp_path):
    sequence(tmp_path, stems=("000006",))
    with pytest.raises(ValueError, match=r"times\.txt has 6 lines but there is a scan 000006"):
        SemanticKitti(tmp_path)[0]


@pytest.mark.parametrize(
    ("number", "name", "moving"),
    [
        (0, None, None),
        (1, None, None),
        (10, "car", "car"),
        (13, "other-vehicle", "other-vehicle"),
        (16, "other-vehicle", "other-vehicle"),
        (18, "truck", "truck"),
        (31, "bicyclist", "bicyclist"),
        (44, "parking", "parking"),
        (52, None, None),
        (60, "road", "road"),
        (81, "traffic-sign", "traffic-sign"),
        (99, None, None),
        (252, "car", "moving-car"),
        (253, "bicyclist", "moving-bicyclist"),
        (254, "person", "moving-person"),
        (255, "motorcyclist", "moving-motorcyclist"),
        (256, "other-vehicle", "moving-other-vehicle"),
        (257, "other-vehicle", "moving-other-vehicle"),
        (258, "truck", "moving-truck"),
        (259, "other-vehicle", "moving-other-vehicle"),
    ],
)
def test_numbers_mean_what_the_definition_says(number, name, moving):
    assert int(label_table(False)[number]) == (UNKNOWN if name is None else SEMANTICKITTI.index(name))
    assert int(label_table(True)[number]) == (UNKNOWN if moving is None else MOVING.index(moving))


def test_every_class_has_a_number():
    assert set(label_table(False).tolist()) == {UNKNOWN, *range(19)}
    assert set(label_table(True).tolist()) == {UNKNOWN, *range(25)}


def test_instances_are_tracks_of_their_class_whether_moving_or_not(tmp_path):
    folder = sequence(tmp_path, stems=("000000",))
    np.array([10 | 3 << 16, 252 | 3 << 16], np.uint32).tofile(folder / "labels/000000.label")
    points = SemanticKitti(tmp_path)[0].points
    assert points.instances[0] == points.instances[1] != UNKNOWN
    np.array([10 | 3 << 16, 30 | 3 << 16], np.uint32).tofile(folder / "labels/000000.label")
    points = SemanticKitti(tmp_path)[0].points
    assert points.instances[0] != points.instances[1]
    np.array([10, 40], np.uint32).tofile(folder / "labels/000000.label")
    assert SemanticKitti(tmp_path)[0].points.instances.tolist() == [UNKNOWN, UNKNOWN]


def test_scribbles_teach_and_full_labels_judge(tmp_path):
    sequence(tmp_path, "00", label=10, labels="scribbles")
    sequence(tmp_path, "08", label=30)
    train, val = (SemanticKitti(tmp_path, split, scribbles=True) for split in ("train", "val"))
    assert train.name == "scribblekitti"
    assert train[0].points.labels.tolist() == [SEMANTICKITTI.index("car")] * 2
    assert val[0].points.labels.tolist() == [SEMANTICKITTI.index("person")] * 2


def test_a_test_split_has_points_without_labels(tmp_path):
    folder = sequence(tmp_path, "11")
    for path in (folder / "labels").iterdir():
        path.unlink()
    (folder / "labels").rmdir()
    source = SemanticKitti(tmp_path, "test")
    assert source.point_classes is None
    assert source[0].points.labels is None


def test_images_come_from_the_odometry_data_set(tmp_path):
    from PIL import Image

    folder = sequence(tmp_path)
    (folder / "image_2").mkdir()
    Image.new("RGB", (60, 20)).save(folder / "image_2/000002.png")
    (camera,) = SemanticKitti(tmp_path, cameras=("image_2",))[0].cameras
    assert camera.image.shape == (3, 20, 60)
    point = torch.tensor([[8.0, -2.0, LIDAR_HEIGHT - 1.0]])
    pix = (camera.pix_T_ego[:3, :3] @ point.T)[:, 0] + camera.pix_T_ego[:3, 3]
    assert (pix[:2] / pix[2]).tolist() == pytest.approx([700 * 2 / 8 + 600, 710 * 1 / 8 + 170], abs=1e-3)


def test_a_label_file_of_another_length_is_refused(tmp_path):
    folder = sequence(tmp_path)
    np.zeros(3, np.uint32).tofile(folder / "labels/000005.label")
    with pytest.raises(ValueError, match=r"000005\.label holds 3 labels for a scan of 2 points"):
        SemanticKitti(tmp_path)[1]


def test_poses_that_are_none_are_refused(tmp_path):
    (sequence(tmp_path) / "poses.txt").write_text("1 0 0 zero\n")
    with pytest.raises(ValueError, match=r"poses\.txt is no table of 12 numbers a line"):
        SemanticKitti(tmp_path)[0]


def test_a_wrong_root_or_split_says_what_is_expected(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no scans of split 'val' \(sequences 08"):
        SemanticKitti(tmp_path, "val")
    with pytest.raises(ValueError, match="split is one of train, val, trainval, test or a sequence's number"):
        SemanticKitti(tmp_path, "validation")
