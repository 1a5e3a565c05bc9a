import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from cofield.cli import VERBS

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


def test_every_table_is_what_the_results_say() -> None:
    script = [sys.executable, str(ROOT / "docs" / "fill_tables.py"), "--check"]
    done = subprocess.run(script, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_and_picture_of_a_page_exists(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)", page.read_text()):
        if not target.startswith("http"):
            assert (page.parent / target).exists(), target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_of_a_page_is_a_verb_and_every_target_a_target(page: Path) -> None:
    text = page.read_text()
    makefile = (ROOT / "Makefile").read_text()
    for verb in re.findall(r"^(?:\.venv/bin/)?cofield ([a-z-]+)", text, flags=re.M):
        assert verb in VERBS
    for target in re.findall(r"^make ([a-z]+)", text, flags=re.M):
        assert re.search(rf"^{target}:", makefile, flags=re.M), target


def test_a_page_that_names_a_test_names_one_that_exists() -> None:
    tests = "\n".join(path.read_text() for path in (ROOT / "tests").rglob("*.py"))
    for name in re.findall(r"`(test_\w+)`", (ROOT / "docs" / "method.md").read_text()):
        assert f"def {name}(" in tests, name


def test_the_python_of_the_readme_is_python_and_its_names_exist() -> None:
    import cofield

    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.S)
    compile(code, "README.md", "exec")
    for name in re.findall(r"cofield\.(\w+)", code):
        assert hasattr(cofield, name), name


def test_the_tables_are_made_of_rows() -> None:
    made = runpy.run_path(str(ROOT / "docs" / "fill_tables.py"))
    assert made["markdown"](["a", "b"], [["1", "2"]]) == "| a | b |\n| --- | --- |\n| 1 | 2 |"
    text = "x <!-- table: world -->\nold\n<!-- end of table --> y"
    assert "old" not in made["filled"](text)
