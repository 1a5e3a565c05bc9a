import json
import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from cofield import cli
from cofield.classes import UNKNOWN
from cofield.data.augment import Augment
from cofield.data.loader import Beside, Order
from cofield.data.partly import Aside, PartlyLabelled, Truth, aside_of
from cofield.data.segment_cache import SegmentCache, precompute
from cofield.data.segments import Exact, Felzenszwalb
from cofield.data.simulate import World
from cofield.data.stored import Stored
from cofield.frame import Batch, Frame, collate
from cofield.models.field import Field
from cofield.models.project import in_front
from cofield.models.semantics import segmentation_loss
from cofield.rays import Rays
from cofield.train import run, semi
from cofield.train.build import build_finetuning
from cofield.train.config import Labels, Model, Optim, Pseudo, SegmentTuning, Semi, as_yaml, load_config
from cofield.train.methods import METHODS, with_method
from cofield.train.recipes import RECIPES, recipe
from cofield.train.roads import cylinder
from cofield.train.run import finetune, open_finetuned
from cofield.train.semi import (
    Reading,
    SemiSegment,
    Supplies,
    commonest,
    inclination,
    interleaved,
    scans_of,
    total,
)
from cofield.train.sweep import Sweep, cells, configured
from cofield.train.watch import read_metrics
from cofield.view import segments as segment_pictures
from cofield.view.efficiency import ordered
from scans import ROUND, TRUSTING, Town, config, few, made
from streets import GRID, frame


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COFIELD_CACHE", str(tmp_path / "cache"))


def test_nobody_can_read_a_label_of_an_unlabelled_frame() -> None:
    town = Town()
    partly = PartlyLabelled(town, [1, 3], 2, Aside(town))
    assert [partly[i].token for i in range(5)] == [f"frame {i}" for i in (1, 3, 0, 2, 4)]
    assert len(partly.scenes()) == len(partly) == 5
    for i in range(5):
        points, whole = partly[i].points, town[(1, 3, 0, 2, 4)[i]].points
        assert points.labels is not None
        assert points.instances is not None
        assert torch.equal(points.xyz_ego, whole.xyz_ego)
        assert partly[i].boxes is None
        if i < 2:
            assert torch.equal(points.labels, whole.labels)
        else:
            assert (points.labels == UNKNOWN).all()
            assert (points.instances == UNKNOWN).all()


def test_every_step_has_its_labelled_frames_first_in_any_number_of_processes_and_pieces() -> None:
    rows = []
    for process in range(2):
        order = Beside(Order(3, 4, 0, 0, process, 2, 1), Order(7, 4, 0, 0, process, 2, 1))
        assert order.share == 4
        rows.append(next(iter(order)))
        assert [index < 3 for _, index in rows[-1]] == [True, True, False, False]
    both = [index for row in rows for _, index in row if index >= 3]
    assert sorted(set(both)) == sorted(both)


def test_some_frames_of_a_batch_are_the_batch_of_those_frames() -> None:
    a, b, c = (frame(name, count=count) for name, count in (("a", 20), ("b", 30), ("c", 40)))
    part, own = collate([a, b, c]).select([0, 2]), collate([a, c])
    assert part.tokens == own.tokens
    for name in ("images", "valid", "pix_T_ego", "sample", "offsets"):
        assert torch.equal(getattr(part, name), getattr(own, name)), name
    assert torch.equal(part.points.xyz_ego, own.points.xyz_ego)
    assert torch.equal(part.origins_ego[part.points.origin], own.origins_ego[own.points.origin])
    assert len(collate([a, b]).select([])) == 0


@pytest.mark.parametrize(
    ("method", "grid"),
    [("nerf", GRID), ("nerf", ROUND), ("projection", ROUND), ("projection-consistent", GRID)],
)
def test_what_unlabelled_scans_teach_reaches_every_weight_of_the_trunk(method: str, grid: Any) -> None:
    task, batch = made(config(few(method), grid=grid))
    terms, scores = task.learn(batch, 1)
    assert terms["pseudo"][0] == 0.5
    assert scores["labelled"] > 0
    terms["pseudo"][1].backward()
    silent = {name for name, w in task.trunk.named_parameters() if w.grad is None or not w.grad.any()}
    assert silent <= {"empty"}


@pytest.mark.parametrize("method", ["nerf", "projection"])
def test_labels_of_unlabelled_scans_do_not_matter_and_those_of_labelled_ones_do(method: str) -> None:
    losses = []
    for town in (Town(), Town(shift=5)):
        task, batch = made(config(few(method, ranges=0.5 * (method == "nerf"), mixing=1.0, sure=0.01)), town)
        assert batch.tokens == ("frame 0", "frame 2")
        losses.append({name: float(value.detach()) for name, (_, value) in task.learn(batch, 1)[0].items()})
    assert losses[0] == losses[1]
    assert {"points", "pseudo", "mixed"} <= set(losses[0])
    task, batch = made(config(few(method)), Town())
    labels = torch.where(batch.points.labels == UNKNOWN, UNKNOWN, (batch.points.labels + 5) % 16)
    other = replace(batch, points=replace(batch.points, labels=labels))
    assert task.learn(other, 1)[0]["points"][1] != losses[0]["points"]


@pytest.mark.parametrize("grid", [GRID, ROUND], ids=["box", "cylinder"])
def test_inference_needs_neither_cameras_nor_labels(grid: Any) -> None:
    task, _ = made(config(grid=grid))
    task.eval()
    seen = frame("a")
    blind = replace(seen, cameras=(), boxes=None, points=replace(seen.points, labels=None))
    assert torch.equal(task(collate([seen])), task(collate([blind])))


def test_what_unlabelled_scans_teach_begins_at_nothing() -> None:
    task, batch = made(config(few(ramp=(0.0, 0.5)), optim=Optim(steps=8)))
    assert set(task.learn(batch, 0)[0]) == {"points", "beams", "range", "placed"}
    assert [task.learn(batch, step)[0]["pseudo"][0] for step in (1, 2, 4, 7)] == [0.125, 0.25, 0.5, 0.5]


def test_together_points_vote_beside_rays_and_are_taught_beside_pixels() -> None:
    apart, batch = made(config(few("nerf")))
    both, _ = made(config(few("nerf", together=True)))
    others = batch.select([1])
    reading = both.read(others)
    _, alone, _ = apart.rendered(others, apart.read(others))
    value, votes, _ = both.rendered(others, reading)
    points = len(in_front(others).point)
    assert points > 0
    assert len(votes.label) == len(alone.label) + points
    assert set(votes.segment.tolist()) >= set(alone.segment.tolist())
    value.backward()
    assert all(w.grad is not None and w.grad.any() for w in both.head.layers[-1].parameters()), "points are taught"
    loss = apart.rendered(others, apart.read(others))[0]
    loss.backward()
    assert all(w.grad is None for w in apart.head.parameters()), "pixels alone are"


def test_if_all_segments_are_rejected_the_loss_is_zero_and_the_run_goes_on() -> None:
    task, batch = made(config(pseudo=replace(TRUSTING, threshold=1e-6)))
    terms, scores = task.learn(batch, 1)
    assert terms["pseudo"][1] == 0
    assert scores["kept"] == scores["labelled"] == 0
    total(terms).backward()
    assert all(w.grad is None or w.grad.isfinite().all() for w in task.parameters())


def test_pseudo_labels_say_what_is_there_and_only_carving_ones_also_where() -> None:
    for carves in (False, True):
        task, batch = made(config(few("nerf", carves=carves)))
        assert task.field is not None
        weight, value = task.learn(batch, 1)[0]["pseudo"]
        (weight * value).backward()
        said, where = (part.weight.grad for part in (task.field.kind[-1], task.field.density[-1]))
        assert said is not None
        assert said.any()
        assert (where is not None and bool(where.any())) == carves


def test_the_field_knows_the_classes_of_labelled_points_where_they_are() -> None:
    """Of a field whose classes are the same everywhere the loss is known; points beyond the grid do not count."""
    task, batch = made(config(few("nerf")))
    assert isinstance(task.field, Field)
    assert task.field.kind is not None
    last = task.field.kind[-1]
    torch.nn.init.zeros_(last.weight)
    torch.nn.init.constant_(last.bias, 0.0)
    last.bias.data[3] = 2.0
    taught = batch.select([0])
    labels = taught.points.labels
    assert labels is not None
    reading = task.read(taught)
    assert reading.volume is not None
    known = labels[(labels != UNKNOWN) & reading.volume.grid.contains(taught.points.xyz_ego)]
    wanted = segmentation_loss(last.bias.detach().expand(len(known), -1), known)
    torch.testing.assert_close(task.at_points(taught, reading).detach(), wanted)
    away = replace(taught, points=replace(taught.points, xyz_ego=taught.points.xyz_ego + 1e4))
    assert task.at_points(away, reading) == 0
    task, batch = made(config(few("nerf", placed=0.0)))
    assert "placed" not in task.learn(batch, 1)[0]


def test_ranges_of_unlabelled_scans_teach_before_their_pseudo_labels_do() -> None:
    task, batch = made(config(few("nerf", ranges=0.5, ramp=(0.5, 1.0))))
    assert set(task.learn(batch, 0)[0]) == {"points", "beams", "range", "placed", "free_range"}
    assert set(task.learn(batch, task.optim.steps)[0]) >= {"free_range", "pseudo"}
    task, batch = made(config(few("projection", ranges=0.5, ramp=(0.5, 1.0))))
    assert set(task.learn(batch, 0)[0]) == {"points"}, "ranges are rendered by nerf alone"
    assert not few("supervised", ranges=0.5).looks


@pytest.mark.parametrize(
    ("semi", "pseudo"),
    [
        (few("supervised", mixing=0.5, sure=0.05), TRUSTING),
        (few("nerf", mixing=0.5, sure=0.05, ranges=0.5), replace(TRUSTING, caution=0.5)),
        (few("projection-consistent"), replace(TRUSTING, segmenter="pixels")),
        (few("nerf"), replace(TRUSTING, segmenter="pixels", cameras=1)),
    ],
    ids=["teacher-mixing", "everything", "projected pixels", "rendered pixels"],
)
def test_every_method_trains_from_a_recipe_to_a_score(semi: Semi, pseudo: Pseudo, tmp_path: Path) -> None:
    wish = config(semi, pseudo)
    scores = finetune(wish, tmp_path / "run", Town(), Town(2))
    assert scores is not None
    assert 0 <= scores["miou"] <= 1
    curves = read_metrics(tmp_path / "run" / "metrics.csv")
    assert {name for split, name in curves if split == "train"} >= {"loss", "points"}
    assert (("train", "kept") in curves) == (semi.method != "supervised")
    assert load_config(tmp_path / "run" / "config.yaml") == wish


def test_a_run_on_a_cylinder_is_read_back_with_its_grid(tmp_path: Path) -> None:
    wish = config(grid=ROUND)
    (tmp_path / "config.yaml").write_text(as_yaml(wish))
    assert load_config(tmp_path / "config.yaml") == wish
    (tmp_path / "config.yaml").write_text(as_yaml(wish).replace("lower:", "lowest:"))
    with pytest.raises(ValueError, match="is no grid"):
        load_config(tmp_path / "config.yaml")
    assert cylinder((240, 180, 20), (-5.0, 3.0), (0.9, 0.0, 1.8)).upper == pytest.approx((50.0, torch.pi, 3.0))
    few_labels = recipe("lidarseg:scribblekitti")
    assert isinstance(few_labels, SegmentTuning)
    assert few_labels.grid.count == (240, 180, 20)
    assert few_labels.head.classes == "semantickitti"


def test_segments_that_are_missing_stale_or_of_other_images_are_refused(tmp_path: Path) -> None:
    town, folder = Town(), tmp_path / "segments"
    kept = config(pseudo=replace(TRUSTING, segments=str(folder)))
    with pytest.raises(ValueError, match=r"no folder .*segments.*cofield segments town .*--out"):
        made(kept)
    precompute(town, Felzenszwalb(), folder, [0])
    task, batch = made(kept)
    with pytest.raises(FileNotFoundError, match=r"frame 2.* is missing"):
        task.learn(batch, 1)
    precompute(town, Felzenszwalb(scale=20.0), folder, [2])
    with pytest.raises(ValueError, match="wanted is"):
        task.learn(batch, 1)
    (folder / "frame 2.npz").unlink()
    precompute(town, Felzenszwalb(), folder, [2])
    assert task.learn(batch, 1)[0]["pseudo"][1] > 0
    wide = collate([frame("frame 0", width=48), frame("frame 2", width=48)])
    wide = replace(wide, points=batch.points, sample=batch.sample, offsets=batch.offsets)
    with pytest.raises(ValueError, match="of an image of 16×40"):
        task.learn(wide, 1)


def test_what_cannot_be_is_refused_before_anything_is_learned() -> None:
    task, batch = made(config(), Town(cameras=0))
    with pytest.raises(ValueError, match=r"frame 2 has no cameras.*--semi.method supervised"):
        task.learn(batch, 1)
    with pytest.raises(ValueError, match="this augmentation changes images"):
        made(config(augment=Augment(image_flip=0.5)))
    with pytest.raises(ValueError, match="inferred from LiDAR alone"):
        build_finetuning(config(model=Model()))
    with pytest.raises(ValueError, match="no segmenter is called 'guess'"):
        made(config(pseudo=replace(TRUSTING, segmenter="guess")))


def test_the_commonest_label_of_a_cell_is_its_own() -> None:
    slot = torch.tensor([0, 0, 0, 1, 1, 2])
    labels = torch.tensor([3, 3, 1, UNKNOWN, 2, UNKNOWN])
    assert commonest(labels, slot, 3, 4).tolist() == [3, 2, UNKNOWN]


def test_mixed_scans_take_each_inclination_from_one_of_two_scans() -> None:
    one, other = collate([frame("a", count=400)]), collate([frame("b", count=300)])
    both = interleaved(one, other, 0)
    assert len(both) == 2
    assert len(both.points) == 700
    assert both.images.shape[1] == 0
    scans = scans_of(both)
    xyz = [scan.points.xyz_ego for scan in scans]
    assert not (xyz[0][:, None] == xyz[1][None]).all(-1).any(), "a point is in one of the two"
    # Sorted by inclination, the scan that points come from changes at most as often as there are borders.
    origin = torch.isin(scans[0].points.xyz_ego[:, 0], one.points.xyz_ego[:, 0])
    changes = origin[inclination(scans[0]).argsort()].int().diff().abs().sum()
    assert 2 <= changes <= 5


def test_the_teacher_follows_the_network_by_its_momentum() -> None:
    task, _ = made(config(few("supervised", mixing=1.0, momentum=0.75)))
    assert task.teacher is not None
    own, taught = task.head.layers[0].weight, task.teacher["head"].layers[0].weight
    before = taught.clone()
    with torch.no_grad():
        own.add_(1.0)
    task.follow(1000)
    torch.testing.assert_close(taught, before + 0.25)
    task.follow(1)
    torch.testing.assert_close(taught, before + 0.625)
    assert not taught.requires_grad


def test_in_a_run_the_teacher_learns_from_the_network_and_is_not_it(tmp_path: Path) -> None:
    wish = config(few("supervised", mixing=1.0))
    fresh = build_finetuning(wish)
    finetune(wish, tmp_path / "run", Town(), Town(2))
    _, task = open_finetuned(tmp_path / "run")
    assert isinstance(task, SemiSegment)
    assert isinstance(fresh, SemiSegment)
    assert task.teacher is not None
    taught, own, first = (
        part["head"].state_dict() for part in (task.teacher, {"head": task.head}, {"head": fresh.head})
    )
    for name in taught:
        assert not torch.equal(taught[name], first[name])
        assert not torch.equal(taught[name], own[name])


def test_the_teacher_names_what_it_is_sure_of_and_the_network_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    task, batch = made(config(few("supervised", mixing=1.0, sure=0.9)))
    probability = torch.full((4, 16), 1e-9)
    for row, (label, p) in enumerate([(3, 0.95), (5, 0.899), (0, 0.901), (7, 0.5)]):
        probability[row, label], probability[row, 15] = p, 1 - p
    asked = []

    def spoken(trunk: torch.nn.Module, head: torch.nn.Module, _: Batch) -> Reading:
        asked.append((trunk, head))
        return Reading(probability.log())

    monkeypatch.setattr(semi, "read", spoken)
    assert task.surely(batch).tolist() == [3, UNKNOWN, 0, UNKNOWN]
    assert task.teacher is not None
    assert asked == [(task.teacher["trunk"], task.teacher["head"])]


def test_mixed_scans_begin_to_count_as_other_scans_do() -> None:
    task, batch = made(config(few("supervised", mixing=0.6, sure=0.01, ramp=(0.0, 0.5)), optim=Optim(steps=8)))
    assert "mixed" not in task.learn(batch, 0)[0]
    assert [task.learn(batch, step)[0]["mixed"][0] for step in (1, 2, 4, 7)] == pytest.approx([0.15, 0.3, 0.6, 0.6])


@dataclass(frozen=True)
class Bare(Town):
    """Scans that were chosen to be labelled, and nobody labelled anything in some."""

    bare: tuple[int, ...] = (1,)

    def __getitem__(self, index: int) -> Frame:
        made = super().__getitem__(index)
        assert made.points.labels is not None
        none = torch.full_like(made.points.labels, UNKNOWN)
        return replace(made, points=replace(made.points, labels=none if index in self.bare else made.points.labels))


@pytest.mark.parametrize(
    ("wanted", "fraction"),
    [(few("supervised"), 0.4), (few("supervised", mixing=1.0), 0.4), (few("nerf"), 0.4), (few("nerf"), 1.0)],
)
def test_a_chosen_scan_without_a_label_stops_no_run(wanted: Semi, fraction: float, tmp_path: Path) -> None:
    wish = config(wanted, labels=Labels(fraction=fraction), optim=Optim(steps=5, save_every=5, validate_every=5))
    assert finetune(wish, tmp_path / "run", Bare(), Town(2)) is not None
    assert 1 in json.loads((tmp_path / "run" / "labels.json").read_text())["frames"]
    losses = read_metrics(tmp_path / "run" / "metrics.csv")[("train", "loss")]
    assert all(math.isfinite(value) for _, value in losses)


@pytest.mark.parametrize("wanted", [few("supervised"), few("nerf")])
def test_a_run_of_which_no_chosen_scan_has_a_label_is_refused(wanted: Semi, tmp_path: Path) -> None:
    wish = config(wanted, labels=Labels(fraction=0.4))
    with pytest.raises(ValueError, match=r"no point of the 2 chosen frames of town has a label; .*--labels\.seed"):
        finetune(wish, tmp_path / "run", Bare(bare=(1, 3)), Town(2))


def test_a_frame_without_any_labels_is_not_taken_for_an_unlabelled_one() -> None:
    class Mute(Town):
        def __getitem__(self, index: int) -> Frame:
            made = super().__getitem__(index)
            return replace(made, points=replace(made.points, labels=None))

    assert PartlyLabelled(Mute(), [0], 1, Aside(Mute()))[0].points.labels is None


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"count": 0}, "pseudo.count is at least 1"),
        ({"cameras": 0}, "pseudo.cameras is at least 1"),
        ({"samples": 0}, "pseudo.samples is at least 2"),
        ({"rays": 4, "voters": 5}, "no segment would ever be kept"),
    ],
)
def test_settings_by_which_nothing_would_be_learned_are_refused(change: dict[str, int], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        config(pseudo=replace(TRUSTING, **change))


def test_settings_that_mean_nothing_are_refused() -> None:
    for change, words in (({"mixing": -1.0}, "semi.mixing is a weight"), ({"sure": 2.0}, "semi.sure is 0 to 1")):
        with pytest.raises(ValueError, match=words):
            few(**change)
    # Where points vote, too, or each pixel by itself, few rays are enough.
    for wanted, named in ((few("nerf", together=True), "exact"), (few("projection"), "exact"), (few("nerf"), "pixels")):
        config(wanted, replace(TRUSTING, segmenter=named, rays=4, voters=5))


@pytest.mark.slow
def test_pseudo_labels_of_the_world_are_scored_against_its_truth(tmp_path: Path) -> None:
    world = World("tiny", split="val")
    stored = Stored(world, "val", tmp_path / "frames")
    aside = aside_of(stored, Exact(), None)
    assert isinstance(aside.truth, Truth)
    assert isinstance(aside.segments, SegmentCache)
    shown = PartlyLabelled(stored, [0], 1, aside)[1]
    assert all(c.semantics is None and c.instances is None and c.depth is None for c in shown.cameras)
    batch, whole = collate([shown]), world[1]
    truth = aside.truth
    assert torch.equal(truth.points(batch), whole.points.labels)
    assert torch.equal(truth.pixels(batch)[0, 1], whole.cameras[1].semantics.long())
    fewer = batch.select_points(torch.arange(len(batch.points)) > 0)
    assert (truth.points(fewer) == UNKNOWN).all()
    wish = replace(config(pseudo=replace(TRUSTING, segmenter="pixels")), grid=recipe("world:tiny").grid)
    task = build_finetuning(wish)
    assert isinstance(task, SemiSegment)
    assert torch.equal(aside.segments.of_batch(batch)[0, 0], Exact()(whole.cameras[0], whole.token))
    task.supplies = Supplies(truth=truth)
    _, scores = task.learn(batch, 1)
    assert scores["labelled"] == 1
    assert 0 <= scores["precision"] < 0.5
    assert 0 < scores["unfounded"] < 1


def test_methods_are_the_cells_of_a_sweep_and_differ_in_nothing_but_themselves() -> None:
    base = config(pseudo=Pseudo())
    plan = cells(Sweep(fractions=(0.2,), seeds=(0,), inits=tuple(METHODS)), 7)
    runs = {cell.init: configured(base, cell) for cell in plan}
    assert set(runs) == set(METHODS)
    same = {replace(run, semi=base.semi, pseudo=base.pseudo) for run in runs.values() if isinstance(run, SegmentTuning)}
    assert len(same) == 1
    assert len({as_yaml(run) for run in runs.values()}) == len(METHODS)
    with pytest.raises(ValueError, match="not the task map; take a lidarseg recipe"):
        with_method(recipe("map:world:small"), "nerf-exact")
    with pytest.raises(ValueError, match="no method is called 'magic'"):
        with_method(base, "magic")
    with pytest.raises(ValueError, match="no cell is called magic; there is scratch, pretrained"):
        Sweep(inits=("magic",))
    with pytest.raises(ValueError, match="--trunks names the pre-training runs"):
        Sweep(inits=("pretrained-nerf-exact",))


def test_a_method_from_a_trunk_is_the_method_with_another_start() -> None:
    base, change = config(), "pseudo.samples=16"
    plan = Sweep((0.2,), (0,), inits=(f"nerf-exact+{change}", f"pretrained-nerf-exact+{change}"), trunks=("a", "b/c"))
    fresh, *warm = cells(plan, 7)
    assert [(cell.trunk, cell.name.partition("+")[0]) for cell in (fresh, *warm)] == [
        (None, "nerf-exact"), ("a", "pretrained-nerf-exact"), ("b/c", "pretrained-nerf-exact"),
    ]  # fmt: skip
    plain, learned = configured(base, fresh), configured(base, warm[1])
    assert learned == replace(plain, start=replace(plain.start, trunk="b/c"))
    assert ordered(["supervised", "projection", "pretrained-nerf-exact", "nerf-exact"]) == [
        "supervised", "nerf-exact", "pretrained-nerf-exact", "projection",
    ]  # fmt: skip


def test_an_ablation_is_a_cell_of_the_same_sweep() -> None:
    base = config()
    names = ("nerf-exact", "nerf-exact+pseudo.threshold=none", "nerf-exact+pseudo.samples=16+semi.ramp=[0.1,0.5]")
    cell, off, other = cells(Sweep(fractions=(0.2,), seeds=(3,), inits=names), 7)
    assert off.name == "nerf-exact+pseudo.threshold=none-0.2-frames-seed3"
    plain, runs = configured(base, cell), [configured(base, each) for each in (off, other)]
    assert isinstance(plain, SegmentTuning)
    assert runs[0] == replace(plain, pseudo=replace(plain.pseudo, threshold=None))
    assert runs[1] == replace(
        plain, pseudo=replace(plain.pseudo, samples=16), semi=replace(plain.semi, ramp=(0.1, 0.5))
    )
    for change, words in {
        "pseudo.treshold=1": r"has no field pseudo.treshold; cofield recipes NAME prints them",
        "pseudo.samples=many": "'pseudo.samples=many': Input should be a valid integer",
        "pseudo.samples": "write FIELD=VALUE",
        "semi.ramp=[0.1": r"\[0.1 is no value; lists are written \[0.1, 0.5\]",
        "data.validation=0": "a sweep compares scores",
        "optim.steps=9": "changes what the sweep itself sets by --seeds, --fractions, --steps",
    }.items():
        with pytest.raises(ValueError, match=words):
            configured(base, replace(cell, init=f"nerf-exact+{change}"))


@pytest.mark.slow
def test_a_few_scans_are_learned_by_heart() -> None:
    wish = config(few(), model=Model(camera="none", width=16, lidar_width=32, field_width=32), optim=Optim(steps=200))
    task, batch = made(wish)
    optimizer = torch.optim.AdamW(task.parameters(), lr=5e-3)
    for step in range(200):
        optimizer.zero_grad()
        total(task.learn(batch, step)[0]).backward()
        optimizer.step()
    known = batch.points.labels != UNKNOWN
    assert (task(batch) == batch.points.labels)[known].float().mean() > 0.99


def test_a_folder_of_segments_is_made_and_learned_from_by_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for place in (run, segment_pictures):
        monkeypatch.setattr(place, "open_source", lambda *_, **__: Town())
    wish, folder = config(pseudo=replace(TRUSTING, count=2)), tmp_path / "segments"
    monkeypatch.setitem(RECIPES, "lidarseg:world:small", lambda: wish)

    def cofield(*words: str) -> int:
        with pytest.raises(SystemExit) as ended:
            cli.main([*words])
        assert isinstance(ended.value.code, int)
        return ended.value.code

    learn = ("finetune", "lidarseg:world:small", "--trunk", "none", "--pseudo.segments", str(folder))
    assert cofield(*learn, "--run", str(tmp_path / "early")) == 2
    makes = f"cofield segments town --root ROOT --segmenter felzenszwalb --out {folder}"
    assert f"{makes} makes it" in capsys.readouterr().err
    assert cofield(*makes.replace("ROOT", str(tmp_path)).split()[1:], "--pictures", "0") == 0
    assert len(list(folder.glob("*.npz"))) == 5
    assert cofield(*learn, "--run", str(tmp_path / "run")) == 0
    assert "miou" in capsys.readouterr().out
    learned = read_metrics(tmp_path / "run" / "metrics.csv")[("train", "labelled")]
    assert all(value > 0 for _, value in learned)
    assert not (tmp_path / "cache" / "segments").exists(), "nothing is computed beside the folder"
    finer = (*learn, "--pseudo.segmenter", "felzenszwalb-fine", "--run", str(tmp_path / "finer"))
    assert cofield(*finer) == 2
    remedy = "make it anew, or in another folder: cofield segments town --root ROOT --segmenter felzenszwalb-fine --out"
    assert remedy in capsys.readouterr().err


def test_cameras_are_shown_what_is_near_points_and_nothing_else() -> None:
    """A field that is opaque everywhere stops no ray where the scan has no points, unless it is asked to look there."""
    task, batch = made(config(few("nerf")))
    assert isinstance(task.field, Field)
    torch.nn.init.constant_(task.field.density[-1].bias, 50.0)
    others = batch.select([1])
    volume = task.read(others).volume
    assert volume is not None
    rays = Rays.from_cameras(others, torch.arange(others.valid.numel()), volume.grid)
    jitter = torch.full((len(rays), 16), 0.5)
    far = replace(others, points=replace(others.points, xyz_ego=others.points.xyz_ego + 1e4))
    assert task.see(others, volume, rays, jitter).opacity.max() > 0.99
    assert task.see(far, volume, rays, jitter).opacity.max() == 0
    task.pseudo = replace(task.pseudo, everywhere=True)
    inside = rays.far > rays.near
    assert task.see(far, volume, rays, jitter).opacity[inside].min() > 0.99
