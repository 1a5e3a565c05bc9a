import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _the_global_generator_is_never_used() -> Iterator[None]:
    """Draws are counted: a test that moves torch's global generator found one that is not."""
    before = torch.get_rng_state()
    yield
    assert torch.equal(before, torch.get_rng_state()), "something drew from torch's global generator"


@pytest.fixture(scope="session")
def realdata() -> Path:
    """The folder of real KITTI, nuScenes and SemanticKITTI samples."""
    root = os.environ.get("COFIELD_REALDATA")
    if not root:
        pytest.skip("COFIELD_REALDATA names no folder with real samples")
    return Path(root)
