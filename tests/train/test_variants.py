"""Every option of the method trains: a step whose gradient reaches each part that is built."""

from dataclasses import replace

import pytest
import torch

from cofield.frame import collate
from cofield.models.lidar import Pillars
from cofield.train.build import build_pretraining
from cofield.train.config import Model
from cofield.train.measure import paint_frame
from cofield.train.tasks import one_cycle_adamw
from streets import GRID, config, frame

MODEL = config().model
MODELS = {
    "released lift": replace(MODEL, lift="depth", lift_width=8),
    "plain lift": replace(MODEL, lift="plain", lift_width=8),
    "conv": replace(MODEL, lift="depth", lift_width=8, fuse="conv"),
    "add": replace(MODEL, fuse="add"),
    "attention": replace(MODEL, fuse="attention"),
    "voxelnet": replace(MODEL, lidar="voxelnet", lidar_width=8, voxel=(0.25, 0.25, 0.25), fuse="add"),
    "distance": replace(MODEL, field="distance"),
    "frustum": replace(MODEL, field="frustum"),
    "frustum of the released lift": replace(MODEL, field="frustum", lift="depth", lift_width=8, sampler="twice"),
    "no directions": replace(MODEL, directions=False),
    "guided": replace(MODEL, sampler="guided"),
    "twice": replace(MODEL, sampler="twice"),
    "skipping": replace(MODEL, sampler="skipping"),
}


def learned(model: Model, flat: bool = False, **loss: object) -> tuple[float, list[str]]:
    """The objective of one step, and the parameters that it does not reach."""
    base = config()
    grid = GRID.flat() if flat else GRID
    task = build_pretraining(replace(base, grid=grid, model=model, loss=replace(base.loss, **loss)))
    objective = task.objective(collate([frame("a", count=400), frame("b", count=300)]))
    objective.backward()
    untouched = [n for n, weight in task.named_parameters() if weight.grad is None or not weight.grad.any()]
    return float(objective.detach()), untouched


@pytest.mark.parametrize("name", MODELS)
def test_every_variant_learns_in_every_part(name: str) -> None:
    objective, untouched = learned(MODELS[name])
    assert objective > 0
    assert not untouched


def test_a_flat_volume_learns_too() -> None:
    objective, untouched = learned(replace(MODEL, lift="depth", lift_width=8, fuse="conv"), flat=True)
    assert objective > 0
    assert not untouched


def test_uncertainties_and_the_slope_of_distances_are_learned_without_decay() -> None:
    loss = {"balance": "learned", "eikonal": 0.1, "outliers": {"range": 0.5}}
    objective, untouched = learned(replace(MODEL, field="distance"), **loss)
    assert objective > 0
    assert not untouched
    base = config()
    task = build_pretraining(replace(base, loss=replace(base.loss, balance="learned")))
    groups = one_cycle_adamw(task, base.optim)["optimizer"].param_groups
    assert [group["weight_decay"] for group in groups] == [base.optim.weight_decay, 0.0]
    assert sum(len(group["params"]) for group in groups) == len(list(task.parameters()))


def test_cameras_that_see_frusta_learn_a_frame_and_the_volume_is_learned_from_the_other_views() -> None:
    task = build_pretraining(replace(config(), model=replace(MODEL, field="frustum")))
    batch = collate([frame("a", count=400)])
    optimizer = torch.optim.AdamW(task.parameters(), lr=3e-3)
    (camera, _), *_ = task(batch, 0)[1]
    rays, depth = camera.rays, camera.targets["depth"]
    torch.testing.assert_close(rays.far * rays.cosine, torch.full_like(rays.far, 13.0))
    assert depth.valid.any()
    assert (depth.value[depth.valid] < 13).all()
    terms = []
    for _ in range(10):
        found, _ = task(batch, 0)
        optimizer.zero_grad()
        task.weighed(found).backward()
        optimizer.step()
        terms.append({name: float(term.mean.detach()) for name, term in found.items()})
    assert set(terms[0]) == {"colour", "depth", "range", "free", "height", "above_colour"}
    for name in ("colour", "depth", "height", "above_colour"):
        assert terms[-1][name] < 0.95 * terms[0][name], name


def test_what_cameras_see_of_frusta_does_not_depend_on_the_fused_volume() -> None:
    """The released code's order; in every other field the LiDAR's features are seen by cameras too."""
    batch = collate([frame("a", count=400)])
    for field in ("density", "frustum"):
        task = build_pretraining(replace(config(), model=replace(MODEL, field=field))).eval()
        (_, before), (_, beams), *_ = task(batch, 0)[1]
        assert isinstance(task.trunk.lidar, Pillars)
        with torch.no_grad():
            list(task.trunk.lidar.plane.parameters())[-1].add_(1.0)
        (_, after), (_, moved), *_ = task(batch, 0)[1]
        assert torch.equal(before.range, after.range) == (field == "frustum")
        assert not torch.equal(beams.range, moved.range)


@pytest.mark.parametrize(
    ("model", "loss", "message"),
    [
        ({"camera": "none"}, {}, "model.camera is none"),
        ({}, {"colour": 0.0, "depth": 0.0}, r"give loss\.colour or loss\.depth a weight"),
        ({}, {"range": 0.0, "free": 0.0, "height": 0.0, "above_colour": 0.0}, "nothing would train it"),
    ],
)
def test_frusta_that_no_view_or_a_volume_that_no_view_would_train_are_refused(
    model: dict[str, str], loss: dict[str, float], message: str
) -> None:
    base = config()
    with pytest.raises(ValueError, match=message):
        build_pretraining(
            replace(base, model=replace(MODEL, field="frustum", **model), loss=replace(base.loss, **loss))
        )


def test_a_frustum_is_not_asked_what_other_cameras_see() -> None:
    task = build_pretraining(replace(config(), model=replace(MODEL, field="frustum"))).eval()
    some = frame("a")
    assert len(paint_frame(task, some).views) == 3
    with pytest.raises(ValueError, match="a frustum shows its own pixels only"):
        paint_frame(task, some, some.cameras)


def test_without_directions_colours_are_the_same_from_everywhere() -> None:
    task = build_pretraining(replace(config(), model=replace(MODEL, directions=False))).eval()
    batch = collate([frame("a")])
    volume = task.trunk(batch)
    xyz = torch.zeros(2, 3, 3)
    looked = torch.tensor([[1.0, 0.0, 0.0], [0.0, -1.0, 0.0]])
    _, values = task.field(volume, xyz, looked, torch.zeros(2, dtype=torch.long))
    assert torch.equal(values["colour"][0], values["colour"][1])


def test_a_residual_fusion_of_unequal_volumes_is_refused() -> None:
    with pytest.raises(ValueError, match=r"use model\.fuse conv"):
        build_pretraining(replace(config(), model=replace(MODEL, lift="depth", lift_width=16)))


def test_measuring_draws_nothing_and_knows_nothing() -> None:
    base = config()
    batch = collate([frame("a")])
    even = build_pretraining(base).eval()
    guided = build_pretraining(replace(base, model=replace(MODEL, sampler="guided"))).eval()
    for name, term in even(batch, "measure")[0].items():
        assert torch.equal(term.total, guided(batch, "measure")[0][name].total), name
