import math

import pytest
import torch

from cofield.classes import (
    ATTRIBUTES,
    COMMON,
    COUNTERPARTS,
    DETECTION,
    KITTI,
    LIDARSEG,
    MAP_LAYERS,
    SEMANTICKITTI,
    UNKNOWN,
    likely_attributes,
    translate,
    translation,
)


def test_the_label_spaces_have_their_official_sizes() -> None:
    assert [len(each) for each in (DETECTION, LIDARSEG, SEMANTICKITTI, MAP_LAYERS)] == [10, 16, 19, 6]


def test_translating_into_the_common_space_groups_classes() -> None:
    labels = torch.tensor([LIDARSEG.index("bicycle"), LIDARSEG.index("driveable_surface"), UNKNOWN])
    expected = [COMMON.index("two_wheeler"), COMMON.index("road"), UNKNOWN]
    assert translate(labels, LIDARSEG, COMMON).tolist() == expected


def test_a_class_without_counterpart_becomes_unknown() -> None:
    table = translation(LIDARSEG, SEMANTICKITTI)
    assert table[LIDARSEG.index("traffic_cone")] == UNKNOWN
    assert table[LIDARSEG.index("pedestrian")] == SEMANTICKITTI.index("person")
    assert table[LIDARSEG.index("sidewalk")] == SEMANTICKITTI.index("sidewalk")
    # Three classes of SemanticKITTI are two-wheelers with or without a rider: none is *the* counterpart of the group.
    assert translation(COMMON, SEMANTICKITTI)[COMMON.index("two_wheeler")] == UNKNOWN


def test_what_another_data_set_calls_a_class_is_one_table() -> None:
    for (source, target), table in COUNTERPARTS.items():
        spaces = {each.space: each for each in (DETECTION, LIDARSEG, SEMANTICKITTI, KITTI)}
        found = translation(spaces[source], spaces[target]).tolist()
        names = [None if label == UNKNOWN else spaces[target].names[label] for label in found]
        assert names == [table.get(name) for name in spaces[source].names]
    assert translation(DETECTION, KITTI)[DETECTION.index("car")] == KITTI.index("Car")
    assert translation(LIDARSEG, SEMANTICKITTI)[LIDARSEG.index("manmade")] == SEMANTICKITTI.index("building")


def test_a_cyclist_is_a_bicycle_and_comes_back_as_a_cyclist() -> None:
    there, back = translation(KITTI, DETECTION), translation(DETECTION, KITTI)
    assert DETECTION.names[there[KITTI.index("Cyclist")]] == "bicycle"
    known = [KITTI.index(name) for name in ("Car", "Truck", "Pedestrian", "Cyclist")]
    assert back[there[known]].tolist() == known
    assert there[[KITTI.index("Tram"), KITTI.index("Misc")]].tolist() == [UNKNOWN, UNKNOWN]


def test_within_one_space_nothing_changes() -> None:
    assert translation(DETECTION, DETECTION).tolist() == list(range(10))


def test_spaces_and_names_that_do_not_exist_are_named() -> None:
    with pytest.raises(ValueError, match="no class 'tram'; it has car, truck"):
        DETECTION.index("tram")
    with pytest.raises(ValueError, match="no translation for map-layers"):
        translation(MAP_LAYERS, DETECTION)


def test_attributes_follow_from_class_and_speed() -> None:
    names = ["car", "bus", "bicycle", "pedestrian", "traffic_cone"]
    label = torch.tensor([DETECTION.index(name) for name in names for _ in range(3)])
    velocity = torch.tensor([[0.0, 0.1], [3.0, 4.0], [math.nan, math.nan]]).repeat(len(names), 1)
    told = ["none" if each < 0 else ATTRIBUTES.names[each] for each in likely_attributes(label, velocity).tolist()]
    still = ["vehicle.parked", "vehicle.stopped", "cycle.without_rider", "pedestrian.standing", "none"]
    moving = ["vehicle.moving", "vehicle.moving", "cycle.with_rider", "pedestrian.moving", "none"]
    assert told == [each for pair in zip(still, moving, still, strict=True) for each in pair]
