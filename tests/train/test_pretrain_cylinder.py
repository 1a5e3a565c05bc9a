"""Pre-training of Cylinder3D, and segmentation that starts from it."""

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from cofield.cli import main
from cofield.draw import generator
from cofield.frame import Batch, Frame, collate
from cofield.geometry import yaw_rotation
from cofield.grid import CylinderGrid
from cofield.models.blocks import Norm
from cofield.models.cylinder import Cylinder3D
from cofield.models.mask import hide
from cofield.train.build import build_finetuning, build_pretraining
from cofield.train.checkpoint import read_trunk
from cofield.train.config import (
    PointTuning,
    Pretraining,
    SegmentTuning,
    Semi,
    Start,
    as_yaml,
    load_config,
)
from cofield.train.losses import total
from cofield.train.measure import measure, paint_frame
from cofield.train.recipes import RECIPES, recipe, recipe_for, repeat
from cofield.train.run import finetune, pretrain, start_trunk
from cofield.train.tasks import Pretrain
from cofield.train.views import above_view, beam_view
from cofield.train.watch import read_metrics
from cofield.view.pictures import above_pictures, around, on_the_ground, write_pictures
from streets import GRID, Hand, config, frame

ROUND = CylinderGrid((0.0, -math.pi, -3.0), (1.0, math.pi / 16, 1.0), (12, 32, 6), (0.9, 0.0, 1.8))


def on_cylinder(norm: Norm = "group", **groups: Any) -> Pretraining:
    base = config(**groups)
    return replace(base, grid=ROUND, model=replace(base.model, width=4, camera="none", norm=norm))


def tuned(norm: Norm = "group", grid: CylinderGrid = ROUND, **changes: Any) -> SegmentTuning:
    """A segmentation that a trunk of `on_cylinder` fits."""
    before = on_cylinder(norm)
    parts = {"data": before.data, "model": before.model, "optim": before.optim, "semi": Semi(beams=8)}
    return SegmentTuning(grid, **parts | changes)


def batch(count: int = 300, cameras: int = 2) -> Batch:
    return collate([frame("a", cameras, count), frame("b", cameras, count // 2)])


def loss_of(task: Pretrain, some: Batch) -> torch.Tensor:
    return total(task(some, 0)[0], task.weights)


@dataclass(frozen=True)
class Blind(Hand):
    """Frames of a car without cameras."""

    def __getitem__(self, index: int) -> Frame:
        return frame(f"frame {index}", cameras=0)


@pytest.mark.parametrize("norm", ["group", "batch"])
def test_gradient_reaches_every_weight_also_that_of_cells_without_points(norm: Norm) -> None:
    task = build_pretraining(on_cylinder(norm))
    loss_of(task, batch()).backward()
    blank = [name for name, weight in task.named_parameters() if weight.grad is None or not weight.grad.any()]
    assert not blank
    assert isinstance(task.trunk, Cylinder3D)
    assert "trunk.empty" in dict(task.named_parameters())


def test_nothing_hidden_reaches_the_encoder() -> None:
    task, some = build_pretraining(on_cylinder()), batch()
    hidden = hide(some, task.masking, 0, ROUND)
    wild = 9 * torch.randn(len(some.points), 3, generator=generator("wild"))
    other = replace(some, points=replace(some.points, xyz_ego=wild.where(hidden.points[:, None], some.points.xyz_ego)))
    assert torch.equal(task.encode(some, hidden).volume.features, task.encode(other, hidden).volume.features)
    assert not torch.equal(task.encode(some, None).volume.features, task.encode(other, None).volume.features)


@pytest.mark.parametrize("norm", ["group", "batch"])
def test_a_frame_is_learned(norm: Norm) -> None:
    task, one = build_pretraining(on_cylinder(norm)), batch()
    optimizer, history = torch.optim.AdamW(task.parameters(), lr=5e-3), []
    for _ in range(20):
        optimizer.zero_grad()
        loss = loss_of(task, one)
        loss.backward()
        optimizer.step()
        history.append(float(loss.detach()))
    assert sum(history[-3:]) < 0.9 * sum(history[:3])  # the colours are noise


def test_turning_the_world_by_whole_cells_turns_what_is_rendered() -> None:
    """Of parts that are told no azimuth; half a turn, so that the seam comes to lie elsewhere."""
    task = build_pretraining(on_cylinder(mask=replace(config().mask, lidar_ratio=0.0))).eval()
    assert isinstance(task.trunk, Cylinder3D)
    # Of points φ, x and y; of the field, behind its four features, φ of the waves of ρ, φ and z.
    for layer, columns in ((task.trunk.point[0], [4, 6, 7]), (task.field.body[0], [*range(12, 20)])):
        assert isinstance(layer, nn.Linear)
        with torch.no_grad():
            layer.weight[:, columns] = 0
    zero = torch.tensor(ROUND.origin_ego)
    unit = torch.rand(300, 3, generator=generator("scan"))
    count = torch.tensor(ROUND.count)
    xyz = ROUND.from_unit(((unit * count).floor() + 0.3 + 0.4 * unit) / count)
    seen = []
    for points in (xyz, (xyz - zero) @ yaw_rotation(torch.tensor(math.pi)).mT + zero):
        base = frame("a", cameras=0, count=300)
        table = replace(base.points, xyz_ego=points, origin=torch.zeros(300, dtype=torch.long))
        some = collate([replace(base, points=table, origins_ego=zero[None])])
        hidden = hide(some, task.masking, 0, ROUND)
        scene = task.encode(some, hidden)
        views = [make(some, hidden, task.sampling, ROUND, None) for make in (beam_view, above_view)]
        seen.append([task.see(scene, view).range for view in views])
    (beams, above), (turned_beams, turned_above) = seen
    torch.testing.assert_close(beams, turned_beams, atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(above.view(32, 12).roll(16, 0), turned_above.view(32, 12), atol=1e-3, rtol=1e-3)
    assert not torch.allclose(above, turned_above, atol=1e-2)


@pytest.mark.parametrize(("norm", "accumulate"), [("group", 1), ("batch", 2)])
def test_a_run_hands_its_whole_trunk_to_a_segmentation(norm: Norm, accumulate: int, tmp_path: Path) -> None:
    base = on_cylinder(norm)
    wish = replace(base, optim=replace(base.optim, steps=2, validate_every=2, accumulate=accumulate))
    assert pretrain(wish, tmp_path / "before", Hand(), Hand(2))
    assert load_config(tmp_path / "before" / "config.yaml") == wish
    handed, grid = read_trunk(tmp_path / "before" / "trunk.safetensors")
    assert grid == ROUND
    assert handed["empty"].any()
    start = Start(trunk=str(tmp_path / "before"))
    task = build_finetuning(tuned(norm, start=start))
    assert not torch.equal(task.trunk.state_dict()["empty"], handed["empty"])
    start_trunk(task.trunk, tuned(norm, start=start))
    own = task.trunk.state_dict()
    assert own.keys() == handed.keys()
    assert all(torch.equal(own[name], tensor) for name, tensor in handed.items())
    scores = finetune(tuned(norm, start=start, optim=wish.optim), tmp_path / "after", Hand(), Hand(2))
    assert scores is not None
    report = (tmp_path / "after" / "loading.txt").read_text()
    assert report.startswith(f"{len(handed)} tensors loaded, 0 missing, 0 unexpected, 0 mismatched, 0 not asked for")


def test_a_car_without_cameras_pretrains_by_its_beams(tmp_path: Path) -> None:
    base = on_cylinder("batch")
    assert pretrain(replace(base, optim=replace(base.optim, steps=2)), tmp_path / "run", Blind(), Blind(2))
    curves = read_metrics(tmp_path / "run" / "metrics.csv")
    assert all(value == 0 for _, value in curves["train", "colour"])
    assert all(value > 0 for name in ("range", "height") for _, value in curves["train", name])
    task = build_pretraining(base).eval()
    assert {"range_error"} == {name for name in measure(task, Blind(2), [0]) if "error" in name or "psnr" in name}
    written = write_pictures(paint_frame(task, Blind()[0]), ROUND, tmp_path, "blind")
    assert [path.name for path in written] == ["blind-beams.png", "blind-above.png", "blind.ply"]


def test_a_trunk_of_boxes_and_a_cylinder_do_not_start_each_other(tmp_path: Path) -> None:
    short = replace(config().optim, steps=1, save_every=1)
    for name, made in (("boxes", config(optim=short)), ("round", on_cylinder(optim=short))):
        pretrain(made, tmp_path / name, Hand(), Hand(2))
    both = r"(?s)another grid:\n  there: {}.*\n  here:  {}.*encoders that share no weights"
    for allow in (False, True):
        wish = tuned(start=Start(str(tmp_path / "boxes"), allow_grid_change=allow))
        with pytest.raises(ValueError, match=both.format("x -12", "ρ 0")):
            start_trunk(build_finetuning(wish).trunk, wish)
    wish = PointTuning(GRID, model=config().model, start=Start(str(tmp_path / "round")))
    with pytest.raises(ValueError, match=both.format("ρ 0", "x -12")):
        start_trunk(build_finetuning(wish).trunk, wish)
    other = replace(ROUND, origin_ego=(0.0, 0.0, 1.8))
    wish = tuned(grid=other, start=Start(str(tmp_path / "round")))
    with pytest.raises(ValueError, match="--allow-grid-change loads it all the same"):
        start_trunk(build_finetuning(wish).trunk, wish)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ({"camera": "conv"}, r"LiDAR alone, but model\.camera is conv; with none, cameras still supervise"),
        ({"lidar": "voxelnet"}, r"an encoder of its own; model\.lidar voxelnet"),
        ({"lidar": "none"}, r"an encoder of its own; model\.lidar none"),
        ({"field": "frustum"}, r"looks into cameras' frusta, but model\.camera is none"),
    ],
)
def test_what_a_cylinder_cannot_encode_is_refused(model: dict[str, str], message: str) -> None:
    base = on_cylinder()
    with pytest.raises(ValueError, match=message):
        build_pretraining(replace(base, model=replace(base.model, **model)))


@pytest.mark.parametrize("model", [{"field": "distance"}, {"sampler": "skipping"}, {"sampler": "twice"}])
def test_fields_and_samplers_work_around_the_seam(model: dict[str, str]) -> None:
    base = on_cylinder()
    task = build_pretraining(replace(base, model=replace(base.model, **model)))
    loss = loss_of(task, batch())
    loss.backward()
    assert loss.isfinite()
    assert all(weight.grad is not None and weight.grad.isfinite().all() for weight in task.parameters())


@pytest.mark.parametrize("wish", [on_cylinder(), config()])
def test_a_grid_of_either_kind_is_read_back(wish: Pretraining, tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(as_yaml(wish))
    assert load_config(path) == wish
    path.write_text(as_yaml(wish).replace("lower:\n  - ", "lower:\n  - near "))
    with pytest.raises(ValueError, match="is no grid"):
        load_config(path)


def test_a_run_from_before_there_was_a_choice_is_on_boxes(tmp_path: Path) -> None:
    text = as_yaml(config())
    assert "kind: BoxGrid\n" in text
    (tmp_path / "config.yaml").write_text(text.replace("  kind: BoxGrid\n", ""))
    assert load_config(tmp_path / "config.yaml") == config()


def test_every_cylinder_of_a_recipe_fits_the_segmentation_it_is_made_for() -> None:
    names = [name for name in RECIPES if name.startswith("cylinder:")]
    assert len(names) == 3
    for name in names:
        before = recipe_for(name, Pretraining)
        target = name.replace("cylinder:", "lidarseg:") + ("-cylinder" if "world" in name else "")
        after = recipe(target)
        assert (before.grid, before.model) == (after.grid, after.model)
        assert f"{name}-lidar" not in RECIPES
        assert f"{name}-camera" not in RECIPES
    assert recipe("lidarseg:scribblekitti").grid == recipe("cylinder:semantickitti").grid


def test_flags_change_a_cylinder_and_the_command_that_repeats_a_run_knows_its_kind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = recipe_for("cylinder:world:small", Pretraining)
    finer = replace(base.grid, count=(192, 128, 16), cell=(40 / 192, *base.grid.cell[1:]))
    wanted = replace(base, grid=finer, optim=replace(base.optim, steps=3))
    taken = []
    monkeypatch.setattr("cofield.train.run.pretrain", lambda config, folder: taken.append(config) or True)
    words = repeat(wanted).split()
    assert words[:3] == ["cofield", "pretrain", "cylinder:world:small"]
    with pytest.raises(SystemExit) as stop:
        main([*words[1:], "--run", str(tmp_path)])
    assert not stop.value.code
    assert taken == [wanted]


def test_a_cylinder_is_drawn_on_the_ground_that_it_covers() -> None:
    columns = torch.arange(12 * 32)
    out = (columns % 12 + 0.5).float()
    raster = on_the_ground(columns, out, ROUND)
    x, y = around(ROUND.flat(), 0.25).centres()[0, ..., :2].sub(torch.tensor(ROUND.origin_ego[:2])).unbind(-1)
    away = torch.hypot(x, y)
    assert torch.equal(raster.isnan(), away >= 12)
    assert ((raster - away)[away < 12].abs() <= 0.5 + 1e-4).all()
    around_it = on_the_ground(columns, (columns // 12).float(), ROUND)
    # φ begins at -π, behind the car, and turns to the left: forward is cell 16, left is cell 24.
    assert around_it[48, 90] in (15, 16)
    assert around_it[90, 48] in (23, 24)
    boxes = torch.arange(24.0 * 16)
    assert torch.equal(on_the_ground(boxes.long(), boxes, GRID), boxes.view(16, 24))


def test_what_is_painted_from_above_is_the_same_size_for_every_layer() -> None:
    painting = paint_frame(build_pretraining(on_cylinder()).eval(), frame("a", count=300))
    assert {image.shape for _, image in above_pictures(painting, ROUND)} == {(96 * 4, 96 * 4, 3)}
