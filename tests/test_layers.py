import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def test_importing_cofield_and_asking_for_help_load_no_torch() -> None:
    code = "import sys, cofield, cofield.cli; sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_every_public_name_can_be_imported() -> None:
    import cofield

    for name in cofield.__all__:
        assert getattr(cofield, name) is not None
    assert set(cofield.__all__) <= set(dir(cofield))
    with pytest.raises(AttributeError, match="cofield has no 'Frames'; it has"):
        _ = cofield.Frames


@pytest.mark.parametrize("path", sorted((ROOT / "src").rglob("*.py")), ids=lambda path: str(path.relative_to(ROOT)))
def test_a_file_fits_in_the_head(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= 450
