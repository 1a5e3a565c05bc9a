import pytest
import torch
from torch import nn

from cofield.frame import collate
from cofield.train.build import build_pretraining, seeded
from cofield.train.estimate import GIB, Estimate, estimate
from streets import config, frame


def test_what_a_frame_keeps_is_what_the_backward_pass_needs() -> None:
    with seeded("layer"):
        layer = nn.Linear(4, 3, bias=False)
    batch = collate([frame("a", count=20)])

    def loss(batch: object) -> torch.Tensor:
        x = torch.ones(1000, 4)
        return layer(x).sigmoid().sum()  # the product keeps x, the sigmoid its own output

    found = estimate(layer, batch, loss)
    assert found.frame == 1000 * 4 * 4 + 1000 * 3 * 4
    assert found.weights == 4 * 12 * 4
    assert found.seconds > 0
    assert layer.weight.grad is None


def test_a_run_is_described_in_gibibytes_and_minutes() -> None:
    text = Estimate(weights=GIB, frame=GIB // 2, seconds=0.5).describe(frames=8, at_once=4, steps=60)
    assert "about 3.0 GiB" in text
    assert "4 minutes for 60 steps of 8 frames" in text


def test_estimating_changes_nothing() -> None:
    task = build_pretraining(config())
    before = {name: weight.clone() for name, weight in task.state_dict().items()}
    estimate(task, collate([frame("a")]), task.objective)
    for name, weight in task.state_dict().items():
        assert torch.equal(weight, before[name]), name
    assert all(weight.grad is None for weight in task.parameters())
    with pytest.raises(RuntimeError, match="does not require grad"):
        estimate(task, collate([frame("a")]), lambda batch: torch.zeros(()))
