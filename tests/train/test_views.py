from dataclasses import replace

import torch

from cofield.frame import Batch, Hidden, collate
from cofield.models.mask import hide
from cofield.train.views import Sampling, above_view, beam_view, camera_view
from streets import GRID, config, frame

SAMPLING = Sampling(pixels=40, guided=0.5, beams=30, above=20, samples=8)


def batch(count: int = 400) -> Batch:
    return collate([frame("a", count=count), frame("b", count=count // 2)])


def nothing_hidden(of: Batch) -> Hidden:
    patches = torch.zeros(len(of), of.images.shape[1], 2, 5, dtype=torch.bool)
    return Hidden(patches, torch.zeros(len(of.points), dtype=torch.bool))


def one_point(xyz: list[list[float]], age: float = 0.0) -> Batch:
    base = frame("a", count=len(xyz))
    points = replace(base.points, xyz_ego=torch.tensor(xyz), age=torch.full((len(xyz),), age))
    return collate([replace(base, points=replace(points, origin=torch.zeros(len(xyz), dtype=torch.long)))])


def test_pixels_are_targets_of_their_own_colour() -> None:
    some = batch()
    view = camera_view(some, nothing_hidden(some), SAMPLING, GRID, 0)
    assert len(view.rays) == 2 * 40
    for place, colour in zip(view.rays.source.tolist(), view.targets["colour"].value, strict=True):
        pixel, row = place % 40, place // 40
        b, n, v = row // 32, row // 16 % 2, row % 16
        torch.testing.assert_close(colour, some.images[b, n, :, v, pixel])
    assert view.camera is not None
    assert torch.equal(view.camera, view.rays.source // 640)


def test_the_depth_target_is_the_nearest_keyframe_return_along_the_cameras_axis() -> None:
    # The forward camera stands at (0.5, 0, 1.5): these lie 4 m, 7 m and 3 m ahead of it, the last one in a sweep.
    some = one_point([[4.5, 0.0, 1.5], [7.5, 0.0, 1.5], [-5.0, 0.0, 1.0]])
    view = camera_view(some, nothing_hidden(some), SAMPLING, GRID, None)
    target = view.targets["depth"]
    assert target.valid.sum() == 1
    torch.testing.assert_close(target.value[target.valid], torch.tensor([4.0]))
    older = replace(some, points=replace(some.points, age=torch.full((3,), 0.1)))
    assert not camera_view(older, nothing_hidden(some), SAMPLING, GRID, None).targets["depth"].valid.any()


def test_guided_pixels_have_a_depth() -> None:
    some = batch()
    view = camera_view(some, nothing_hidden(some), replace(SAMPLING, guided=1.0), GRID, 0)
    assert (view.targets["depth"].value > 0).all()


def test_hiding_points_does_not_erase_what_rays_should_see() -> None:
    some = batch()
    hidden = hide(some, config().mask, 0)
    shown, masked = (
        [make(some, each, SAMPLING, GRID, 0) for make in (camera_view, beam_view, above_view)]
        for each in (nothing_hidden(some), hidden)
    )
    for one, two in zip(shown, masked, strict=True):
        for name, target in one.targets.items():
            assert torch.equal(target.value, two.targets[name].value)
            assert torch.equal(target.valid, two.targets[name].valid)
    assert not shown[1].targets["range"].hidden.any()
    assert masked[1].targets["range"].hidden.any()


def test_beams_inside_the_grid_have_a_range_and_those_beyond_must_stay_free() -> None:
    some = one_point([[5.0, 0.0, 1.8], [50.0, 0.0, 1.8], [0.9, 0.0, 300.0]])
    view = beam_view(some, nothing_hidden(some), SAMPLING, GRID, None)
    assert view.targets["range"].valid.tolist() == [True, False, False]
    assert view.targets["free"].valid.tolist() == [False, True, True]
    torch.testing.assert_close(view.targets["range"].value[0], torch.tensor(5.0 - 0.9))


def test_from_above_the_highest_return_of_a_column_counts() -> None:
    some = one_point([[4.5, 0.5, 0.2], [4.4, 0.4, 2.1], [-3.0, -3.0, 0.0], [100.0, 0.0, 0.0]])
    view = above_view(some, nothing_hidden(some), SAMPLING, GRID, None)
    target = view.targets["height"]
    assert target.valid.sum() == 2
    assert sorted(target.value[target.valid].tolist()) == [0.0, torch.tensor(2.1).item()]


def test_a_columns_colour_is_that_of_its_highest_point_that_a_camera_sees() -> None:
    some = one_point([[6.5, 0.5, 1.0], [6.4, 0.4, 1.4], [-3.0, -3.0, 0.0]])
    view = above_view(some, nothing_hidden(some), SAMPLING, GRID, None)
    target = view.targets["above_colour"]
    assert target.valid.sum() == 1
    seen = some.seen_points()
    pixel = seen.pixel[seen.point == 1]
    colour = some.images.permute(0, 1, 3, 4, 2).reshape(-1, 3)[pixel[0]]
    torch.testing.assert_close(target.value[target.valid][0], colour)


def test_a_column_is_hidden_only_if_all_its_points_are() -> None:
    some = one_point([[4.5, 0.5, 0.2], [4.4, 0.4, 2.1], [-3.0, -3.0, 0.0]])
    hidden = replace(nothing_hidden(some), points=torch.tensor([True, False, True]))
    target = above_view(some, hidden, SAMPLING, GRID, None).targets["height"]
    assert target.hidden[target.valid].sum() == 1
    assert target.value[target.valid & target.hidden] == 0.0


def test_what_is_drawn_for_a_frame_depends_on_nothing_but_the_frame() -> None:
    alone, among = collate([frame("b", count=100)]), collate([frame("a", count=60), frame("b", count=100)])
    for make in (camera_view, beam_view, above_view):
        one = make(alone, nothing_hidden(alone), SAMPLING, GRID, 0)
        two = make(among, nothing_hidden(among), SAMPLING, GRID, 0)
        mine = two.rays.sample == 1
        torch.testing.assert_close(one.rays.direction, two.rays.direction[mine])
        assert torch.equal(one.jitter, two.jitter[mine])
        other = make(alone, nothing_hidden(alone), SAMPLING, GRID, 1)
        assert not torch.equal(one.jitter, other.jitter)


def test_frames_without_points_have_views_without_depth() -> None:
    empty = collate([frame("a", count=0)])
    for seed in (0, None):
        assert not camera_view(empty, nothing_hidden(empty), SAMPLING, GRID, seed).targets["depth"].valid.any()
        assert len(beam_view(empty, nothing_hidden(empty), SAMPLING, GRID, seed).rays) == 0
        assert not above_view(empty, nothing_hidden(empty), SAMPLING, GRID, seed).targets["height"].valid.any()


def test_the_pieces_of_a_view_are_the_view() -> None:
    some = batch()
    view = camera_view(some, nothing_hidden(some), SAMPLING, GRID, 0)
    pieces = list(view.pieces(33))
    assert [len(piece.rays) for piece in pieces] == [33, 33, 14]
    torch.testing.assert_close(torch.cat([piece.rays.direction for piece in pieces]), view.rays.direction)
    joined = torch.cat([piece.targets["colour"].value for piece in pieces])
    torch.testing.assert_close(joined, view.targets["colour"].value)


def test_counted_per_camera_every_camera_has_as_many_rays_of_its_own() -> None:
    some, each = batch(), replace(SAMPLING, pixels=10, guided=0.0, each=True)
    view = camera_view(some, nothing_hidden(some), each, GRID, 0)
    assert view.camera is not None
    assert torch.bincount(view.camera).tolist() == [10, 10, 10, 10]
    first, second = view.rays.source[:10], view.rays.source[10:20] - 640
    assert not torch.equal(first, second)
    alone = collate([frame("b", count=200)])
    again = camera_view(alone, nothing_hidden(alone), each, GRID, 0)
    assert torch.equal(again.rays.source, view.rays.source[20:] - 2 * 640)


def test_what_is_known_of_a_ray_is_its_distance_along_it() -> None:
    some = batch()
    pixels, beams, above = (
        make(some, nothing_hidden(some), SAMPLING, GRID, 0) for make in (camera_view, beam_view, above_view)
    )
    for view, name in ((pixels, "depth"), (beams, "range"), (above, "height")):
        known, valid = view.known(), view.targets[name].valid
        assert torch.equal(known.isfinite(), valid)
        xyz = view.rays.origin[valid] + view.rays.direction[valid] * known[valid, None]
        assert valid.any()
        assert GRID.contains(xyz + 1e-4 * (xyz < 0)).float().mean() > 0.9
    point = some.points.xyz_ego[beams.rays.source[beams.targets["range"].valid]]
    valid = beams.targets["range"].valid
    reached = beams.rays.origin[valid] + beams.rays.direction[valid] * beams.known()[valid, None]
    torch.testing.assert_close(reached, point, atol=1e-4, rtol=0)
