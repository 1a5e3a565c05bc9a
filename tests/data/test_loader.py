import itertools
import math
import platform
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from cofield.data import Source
from cofield.data.fractions import Subset, labelled
from cofield.data.kitti import Kitti
from cofield.data.loader import Order, evaluation_batches, spread, training_batches
from cofield.data.simulate import World
from cofield.data.stored import Stored, bare, pack, unpack
from cofield.frame import Maps
from cofield.grid import BoxGrid
from streets import Hand, frame


def test_every_epoch_shows_every_frame_once_in_another_order() -> None:
    rows = list(itertools.islice(Order(length=10, batch=4, seed=0), 5))
    places = [place for row in rows for place in row]
    epochs = [[index for epoch, index in places if epoch == e] for e in (0, 1)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert epochs[0] != epochs[1]
    assert all(len(row) == 4 for row in rows)


def test_the_order_goes_on_where_it_was_stopped() -> None:
    whole = list(itertools.islice(Order(7, 3, seed=1), 12))
    rest = list(itertools.islice(Order(7, 3, seed=1, start=5), 7))
    assert whole[5:] == rest
    assert whole != list(itertools.islice(Order(7, 3, seed=2), 12))


@pytest.mark.parametrize("workers", [0, 1])
def test_batches_know_the_epoch_of_each_frame_and_workers_change_nothing(workers: int) -> None:
    batches = list(itertools.islice(training_batches(Hand(3), Order(3, 2, seed=0), workers), 3))
    order = list(itertools.islice(Order(3, 2, seed=0), 3))
    for batch, row in zip(batches, order, strict=True):
        assert batch.epochs == tuple(epoch for epoch, _ in row)
        assert batch.tokens == tuple(f"frame {index}" for _, index in row)


def test_evaluation_shows_the_frames_asked_for_once() -> None:
    assert spread(10, 4) == [0, 2, 5, 7]
    assert spread(3, 10) == [0, 1, 2]
    tokens = [token for batch in evaluation_batches(Hand(5), 2, [4, 0, 2]) for token in batch.tokens]
    assert tokens == ["frame 4", "frame 0", "frame 2"]


def test_a_source_without_frames_cannot_train() -> None:
    with pytest.raises(ValueError, match="no frames to train on"):
        Order(0, 2, seed=0)


class Town(Hand):
    def scenes(self) -> list[str]:
        return [f"scene {i // 5}" for i in range(self.frames)]


def test_labelled_frames_are_spread_and_follow_from_the_seed() -> None:
    for seed in range(5):
        chosen = labelled(Town(200), 0.05, "frames", seed)
        assert len(chosen) == 10
        assert {b - a for a, b in itertools.pairwise(chosen)} == {20}
        assert chosen == labelled(Town(200), 0.05, "frames", seed)
    assert len({tuple(labelled(Town(200), 0.05, "frames", seed)) for seed in range(5)}) > 1
    assert labelled(Town(200), 1.0, "frames", 0) == list(range(200))


@pytest.mark.parametrize("fraction", [0.003, 0.07, 0.15, 0.4, 2 / 3, 0.7, 0.99])
def test_any_share_of_the_frames_can_be_labelled_and_is_spread(fraction: float) -> None:
    for seed in range(3):
        chosen = labelled(Town(1000), fraction, "frames", seed)
        assert len(chosen) == len(set(chosen)) == pytest.approx(1000 * fraction, abs=1)
        gaps = {b - a for a, b in itertools.pairwise(chosen)}
        assert gaps <= {math.floor(1 / fraction + 1e-9), math.ceil(1 / fraction - 1e-9)}


def test_labelled_scenes_come_whole() -> None:
    chosen = labelled(Town(200), 0.1, "scenes", 3)
    assert len(chosen) == 20
    assert {sum(i // 5 == scene for i in chosen) for scene in {i // 5 for i in chosen}} == {5}


def test_a_fraction_that_leaves_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match=r"0\.001 of 2 scenes leaves none; the smallest useful share is 0\.5"):
        labelled(Town(10), 0.001, "scenes", 0)
    for fraction in (0.0, -0.5, 1.5):
        with pytest.raises(ValueError, match="above 0 and at most 1"):
            labelled(Town(10), fraction, "frames", 0)


def test_a_subset_is_a_source_of_its_frames() -> None:
    some = Subset(Town(20), [3, 11])
    assert (len(some), some.name) == (2, "hand")
    assert some[1].token == "frame 11"
    assert some.scenes() == ["scene 0", "scene 2"]


def test_a_stored_frame_is_the_frame(tmp_path: Path) -> None:
    grid = BoxGrid((0.0, 0.0, 0.0), (1.0, 1.0, 1.0), (3, 2, 1))
    some = frame("a")
    sharp = tuple(
        replace(c, image=(c.image * 255).round() / 255, depth=torch.ones(16, 40), valid=torch.ones(16, 40) > 0)
        for c in some.cameras[:1]
    )
    some = replace(
        some, cameras=sharp + some.cameras[1:], maps=Maps(torch.rand(6, 2, 3, generator=torch.Generator()) < 0.5, grid)
    )
    path = tmp_path / "frame.safetensors"
    path.write_bytes(pack(some))
    assert_same(unpack(path), bare(some))
    assert len(path.read_bytes()) < 40_000


def assert_same(one: object, two: object) -> None:
    if isinstance(one, torch.Tensor):
        assert isinstance(two, torch.Tensor)
        assert torch.equal(one, two)
        assert one.dtype == two.dtype
    elif isinstance(one, tuple):
        assert isinstance(two, tuple)
        for a, b in zip(one, two, strict=True):
            assert_same(a, b)
    elif hasattr(one, "__dataclass_fields__"):
        for name in one.__dataclass_fields__:
            assert_same(getattr(one, name), getattr(two, name))
    else:
        assert one == two


def test_stored_frames_are_computed_once(tmp_path: Path) -> None:
    asked = []

    class Counting(Hand):
        def __getitem__(self, index: int):
            asked.append(index)
            return super().__getitem__(index)

    stored = Stored(Counting(4), "train", tmp_path)
    first, again = stored[2], stored[2]
    assert asked == [2]
    assert_same(first, again)
    assert len(stored) == 4
    assert Stored(Counting(4), "val", tmp_path).folder != stored.folder


def test_frames_of_other_settings_are_other_files(tmp_path: Path) -> None:
    world = World("tiny")
    sources: list[Source] = [world, World("tiny", rig=replace(world.rig, beams=7)), World("tiny", "report")]
    for root in ("here", "there"):
        (tmp_path / root / "training" / "velodyne").mkdir(parents=True)
        sources.append(Kitti(tmp_path / root))
    folders = [Stored(source, "train", tmp_path).folder for source in sources]
    assert len(set(folders)) == 5
    assert Stored(World("tiny"), "train", tmp_path).folder == folders[0]


def test_memory_is_kept_where_the_allocator_is_glibcs() -> None:
    command = "from cofield.data.loader import keep_memory; print(keep_memory())"
    said = subprocess.run([sys.executable, "-c", command], capture_output=True, text=True, check=True).stdout.strip()
    assert said == str(platform.libc_ver()[0] == "glibc")
