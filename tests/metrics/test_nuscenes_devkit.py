"""The nuScenes detection score and result files against the official devkit, which runs in an environment of its own.

$COFIELD_DEVKIT_PYTHON names that environment's interpreter; docs/datasets.md says how to make it.
"""

import json
import math
import os
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from cofield.classes import ATTRIBUTES, DETECTION, UNKNOWN
from cofield.data.export import export
from cofield.data.nuscenes import NuScenes
from cofield.data.nuscenes_truth import official_truth
from cofield.data.simulate import World
from cofield.data.submission import in_world, read_detections, write_detections
from cofield.draw import generator
from cofield.frame import Boxes
from cofield.metrics.nuscenes import THRESHOLDS, DetectionScore, NuScenesScore

Judge = Callable[..., dict]
ORACLE = Path(__file__).parents[1] / "data" / "oracles" / "detection.py"


@pytest.fixture(scope="session")
def judge(tmp_path_factory) -> Judge:
    """Runs the devkit's evaluation."""
    python = os.environ.get("COFIELD_DEVKIT_PYTHON")
    if not python:
        pytest.skip("COFIELD_DEVKIT_PYTHON names no Python with nuscenes-devkit")

    def run(*arguments: object) -> dict:
        out = tmp_path_factory.mktemp("judge") / "found.json"
        done = subprocess.run([python, ORACLE, *map(str, arguments), out], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return json.loads(out.read_text())

    return run


@dataclass(frozen=True)
class Case:
    """Predictions and truth of some frames, in the world, with the car's position and bicycle racks."""

    predicted: list[Boxes]
    truth: list[Boxes]
    racks: list[Boxes]
    ego: torch.Tensor

    def score(self) -> DetectionScore:
        metric = NuScenesScore()
        for i, (predicted, truth, racks) in enumerate(zip(self.predicted, self.truth, self.racks, strict=True)):
            metric.add(str(i), predicted, truth, self.ego[i, :2], racks)
        return metric.compute()

    def tables(self, name: str) -> dict[str, np.ndarray]:
        return {
            f"{name}.predicted": rows(self.predicted),
            f"{name}.truth": rows(self.truth),
            f"{name}.racks": rows(self.racks)[:, [0, 3, 4, 5, 6, 7, 8, 9]],
            f"{name}.ego": self.ego.numpy(),
        }


def rows(frames: list[Boxes]) -> np.ndarray:
    """As the oracle reads them."""
    parts = [torch.zeros(0, 14).double()]
    for i, boxes in enumerate(frames):
        count = len(boxes)
        points = torch.full((count,), 1) if boxes.num_points is None else boxes.num_points
        score = torch.zeros(count).double() if boxes.score is None else boxes.score
        attribute = torch.full((count,), UNKNOWN) if boxes.attribute is None else boxes.attribute
        ids = torch.stack([torch.full((count,), i), boxes.label, attribute], -1)
        end = torch.stack([score, points.double()], -1)
        parts.append(torch.cat([ids, boxes.centre, boxes.size, boxes.yaw[:, None], boxes.velocity, end], -1))
    return torch.cat(parts).numpy()


def drawn(count: int, draw: torch.Generator, position: torch.Tensor) -> Boxes:
    """Boxes around a car, in double precision."""

    def uniform(low: float, high: float, *shape: int) -> torch.Tensor:
        return low + (high - low) * torch.rand(count, *shape, generator=draw, dtype=torch.float64)

    return Boxes(
        centre=uniform(-45, 45, 3) * torch.tensor([1, 1, 0.03]) + position,
        size=uniform(0.3, 6, 3),
        yaw=uniform(-4, 4),
        velocity=uniform(-5, 5, 2),
        label=torch.randint(len(DETECTION), (count,), generator=draw),
        attribute=torch.randint(-1, len(ATTRIBUTES), (count,), generator=draw),
        num_points=torch.randint(4, (count,), generator=draw),
    )


def chance(count: int, share: float, draw: torch.Generator) -> torch.Tensor:
    return torch.rand(count, generator=draw) < share


def random_case(seed: int, frames: int = 20, levels: int | None = None) -> Case:
    """Predictions near the truth and elsewhere, some twice; with few score levels nearly all are ties."""
    draw = generator("devkit", seed)
    ego = torch.rand(frames, 3, generator=draw, dtype=torch.float64) * torch.tensor([2000, 2000, 1])
    predicted, truth, racks = [], [], []
    for position in ego:
        boxes = drawn(int(torch.randint(1, 30, (1,), generator=draw)), draw, position)
        lost = chance(len(boxes), 0.2, draw)
        boxes = replace(boxes, velocity=torch.where(lost[:, None], torch.nan, boxes.velocity))
        near = boxes.select(chance(len(boxes), 0.8, draw).nonzero()[:, 0].repeat(2))
        count = len(near)
        guess = drawn(count, draw, position)
        noise = torch.randn(count, 3, generator=draw, dtype=torch.float64)
        near = replace(
            guess,
            centre=near.centre + noise,
            label=torch.where(chance(count, 0.9, draw), near.label, guess.label),
            size=near.size * (1 + 0.1 * noise.abs()),
            attribute=torch.where(chance(count, 0.7, draw), near.attribute, guess.attribute),
            velocity=torch.where(chance(count, 0.1, draw)[:, None], torch.nan, guess.velocity),
        )
        parts = [near, drawn(12, draw, position)]
        joined = {name: torch.cat([getattr(part, name) for part in parts]) for name in COLUMNS}
        score = torch.rand(count + 12, generator=draw, dtype=torch.float64)
        score = score if levels is None else (score * levels).round() / levels
        predicted.append(Boxes(**joined, score=score))
        truth.append(boxes)
        rack = boxes.select(boxes.label == DETECTION.index("bicycle"))
        racks.append(replace(rack, size=rack.size * 2, num_points=None).select(chance(len(rack), 0.5, draw)))
    return Case(predicted, truth, racks, ego)


COLUMNS = ("centre", "size", "yaw", "velocity", "label", "attribute")


def lattice_case() -> Case:
    """Boxes on a grid of half metres: distances that are equal, and equal to thresholds; all scores alike."""
    draw, frames = generator("lattice"), 12
    predicted, truth = [], []
    for _ in range(frames):
        boxes = drawn(60, draw, torch.zeros(3).double())
        place = torch.randint(-8, 8, (120, 3), generator=draw) * 0.5
        labels = torch.randint(3, (120,), generator=draw)
        truth.append(replace(boxes, centre=place[:60].double(), label=labels[:60], num_points=None))
        guess = replace(boxes, centre=place[60:].double(), label=labels[60:], num_points=None)
        predicted.append(replace(guess, score=torch.full((60,), 0.5).double()))
    return Case(predicted, truth, [Boxes.empty()] * frames, torch.zeros(frames, 3).double())


def emptied(case: Case, *, predicted: bool = False, truth: bool = False) -> Case:
    """The case without predictions or without truth."""
    none = replace(drawn(0, generator("none"), torch.zeros(3).double()), num_points=None)
    count = len(case.truth)
    return replace(
        case,
        predicted=[replace(none, score=torch.zeros(0).double())] * count if predicted else case.predicted,
        truth=[none] * count if truth else case.truth,
    )


def cases() -> dict[str, Case]:
    plain = random_case(0)
    seen = [boxes.select(boxes.num_points > 0) for boxes in plain.truth]
    perfect = [replace(boxes, score=torch.ones(len(boxes)).double(), num_points=None) for boxes in seen]
    shift = torch.tensor([0.6 * math.cos(1), 0.6 * math.sin(1), 0.0], dtype=torch.float64)
    shifted = [replace(boxes, centre=boxes.centre + shift) for boxes in perfect]
    speechless = [replace(boxes, velocity=boxes.velocity * torch.nan, attribute=None) for boxes in plain.truth]
    worthless = [replace(boxes, score=boxes.score * 0) for boxes in plain.predicted if boxes.score is not None]
    one = plain.predicted[0].select(torch.arange(1))
    again = [replace(one, **{name: getattr(one, name).expand(500, *[-1] * (getattr(one, name).ndim - 1)) for name in
             (*COLUMNS, "score")})]  # fmt: skip
    return {
        "random": plain,
        "another": random_case(1),
        "ties": random_case(2, levels=3),
        "one score": random_case(3, levels=1),
        "lattice": lattice_case(),
        "perfect": replace(plain, predicted=perfect),
        "shifted": replace(plain, predicted=shifted),
        "speechless": replace(plain, truth=speechless),
        "worthless": replace(plain, predicted=worthless),
        "duplicates": Case(again, plain.truth[:1], plain.racks[:1], plain.ego[:1]),
        "few classes": replace(plain, truth=[boxes.select(boxes.label < 4) for boxes in plain.truth]),
        "nothing found": emptied(plain, predicted=True),
        "nothing there": emptied(plain, truth=True),
        "nothing": emptied(plain, predicted=True, truth=True),
    }


def differences(ours: DetectionScore, theirs: dict) -> dict[str, float]:
    """The largest difference of each kind of number."""
    ap = torch.tensor([theirs["ap"][name] for name in ours.names], dtype=torch.float64)
    assert ap.shape == (len(DETECTION), len(THRESHOLDS))
    errors = torch.tensor([theirs["errors"][name] for name in ours.names], dtype=torch.float64)
    assert torch.equal(errors.isnan(), ours.errors.isnan())
    means = torch.tensor(theirs["mean_errors"], dtype=torch.float64)
    return {
        "ap": float((ours.ap - ap).abs().max()),
        "errors": float((ours.errors - errors).nan_to_num().abs().max()),
        "mean errors": float((torch.tensor(list(ours.mean_errors.values()), dtype=torch.float64) - means).abs().max()),
        "map": abs(ours.mean_ap - theirs["map"]),
        "nds": abs(ours.nds - theirs["nds"]),
    }


def test_every_number_equals_the_devkits_on_random_and_on_awkward_boxes(judge, tmp_path) -> None:
    made = cases()
    tables = {"names": np.array(DETECTION.names), "attributes": np.array(ATTRIBUTES.names)}
    for name, case in made.items():
        tables |= case.tables(name)
    np.savez(tmp_path / "cases.npz", **tables)
    theirs = judge("tables", tmp_path / "cases.npz")
    assert set(theirs) == set(made)
    for name, case in made.items():
        found = differences(case.score(), theirs[name])
        assert max(found.values()) < 1e-9, (name, found)
    assert 0.1 < theirs["random"]["map"] < 0.9
    assert theirs["perfect"]["map"] == pytest.approx(1)
    # Some boxes at the edge of the range went out of it.
    assert theirs["shifted"]["map"] == pytest.approx(0.75, abs=0.03)


@pytest.fixture(scope="module")
def town(judge, tmp_path_factory) -> NuScenes:
    """A world as an official folder, with a split that the devkit does not take for its own."""
    world = World("tiny")
    mounts = tuple(replace(mount, size=(32, 64)) for mount in world.rig.cameras[:1])
    world = World("tiny", rig=replace(world.rig, cameras=mounts, beams=16, azimuths=180, sweeps=1))
    root = tmp_path_factory.mktemp("town") / "nuscenes"
    export(world, "nuscenes", root, 21)
    listing = root / "v1.0-mini" / "splits.json"
    lists = json.loads(listing.read_text())
    listing.write_text(json.dumps({"everything": [name for names in lists.values() for name in names]}))
    return NuScenes(root, "everything", "v1.0-mini", cameras=())


def guesses(boxes: Boxes, seed: int) -> Boxes:
    """What a model may make of the truth: each box twice or not at all, moved, and of another class at times."""
    draw = generator("guesses", seed)
    near = boxes.select(chance(len(boxes), 0.8, draw).nonzero()[:, 0].repeat(2))
    noise = torch.randn(len(near), 6, generator=draw)
    label = torch.where(chance(len(near), 0.1, draw), torch.randint(10, (len(near),), generator=draw), near.label)
    return replace(
        near,
        centre=near.centre + noise[:, :3] * 0.5,
        yaw=near.yaw + noise[:, 3] * 0.3,
        velocity=near.velocity + noise[:, 4:],
        label=label,
        score=torch.rand(len(near), generator=draw),
    )


@pytest.mark.parametrize("kind", ["guessed", "true", "shifted"])
def test_an_official_file_evaluates_in_the_devkit_to_our_numbers(kind, judge, town, tmp_path) -> None:
    truth = {each.token: each for each in official_truth(town)}
    shift = torch.tensor([0.6 * kind.startswith("shift"), 0, 0], dtype=torch.float64)
    found = {}
    for i, (token, known) in enumerate(truth.items()):
        if kind == "guessed":
            frame = town[i]
            found[token] = in_world(guesses(frame.boxes, i), frame.world_T_ego)
        else:
            seen = known.boxes.select(known.boxes.num_points > 0)
            found[token] = replace(seen, centre=seen.centre + shift, score=torch.ones(len(seen)).double())
    write_detections(tmp_path / "found.json", found.items())
    metric = NuScenesScore()
    for token, boxes in read_detections(tmp_path / "found.json", truth).items():
        known = truth[token]
        metric.add(token, boxes, known.boxes, known.position, known.racks)
    ours, theirs = metric.compute(), judge("files", town.root, tmp_path / "found.json", "everything")
    assert max(differences(ours, theirs).values()) < 1e-9
    there = ours.ap[:, 3] > 0
    assert there.sum() >= 4
    if kind == "true":
        torch.testing.assert_close(ours.ap[there], torch.ones(int(there.sum()), 4).double())
        assert ours.errors[there].nan_to_num().max() < 1e-9
    if kind == "shifted":
        assert (ours.ap[there, 0] == 0).all()
