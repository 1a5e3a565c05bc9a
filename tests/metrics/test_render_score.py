import math

import pytest
import torch

from cofield.metrics.render import RenderScore, psnr


def test_psnr_of_a_known_error() -> None:
    assert psnr(0.01) == pytest.approx(20.0)
    assert psnr(0.0) == math.inf


def test_a_score_pools_everything_that_was_added() -> None:
    score = RenderScore()
    score.add_ranges(torch.tensor([11.0, 20.0]), torch.tensor([10.0, 20.0]))
    score.add_ranges(torch.tensor([15.0]), torch.tensor([10.0]))
    half = torch.full((4, 3), 0.5)
    score.add_colours(half + 0.1, half, half + 0.2)
    score.add_terms({"colour": (2.0, 4.0)})
    score.add_terms({"colour": (1.0, 2.0), "free": (0.0, 0.0)})
    values = score.compute()
    assert values["range_error"] == pytest.approx(0.1)
    assert values["psnr"] == pytest.approx(20.0, abs=1e-3)
    assert values["psnr_mean_image"] == pytest.approx(psnr(0.04), abs=1e-3)
    assert values["colour"] == 0.5
    assert "free" not in values
    score.reset()
    assert score.compute() == {}
