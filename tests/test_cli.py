import json

import pytest

from cofield.cli import VERBS, main


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as stop:
        main(list(arguments))
    return int(stop.value.code or 0)


def test_help_lists_every_verb(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--help") == 0
    text = capsys.readouterr().out
    assert all(verb in text for verb in VERBS)


def test_the_doctor_finds_a_working_installation(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("doctor", "--json") == 0
    report = json.loads(capsys.readouterr().out)
    assert report["ready"]
    assert report["missing"] == []
    assert report["packages"]["torch"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["render", "world:tinny", "--out", "x"], "tinny"),
        (["render", "world:tiny@nowhere", "--out", "x"], "nowhere"),
        (["render", "moon", "--out", "x"], "moon"),
        (["render", "world:tiny", "--out", "x", "--split", "middle"], "middle"),
        (["render", "world:tiny", "--out", "x", "--frames", "0"], "frames"),
        (["render", "world:tiny", "--out", "x", "--framse", "2"], "--framse"),
        (["rendre", "world:tiny"], "rendre"),
    ],
)
def test_a_wrong_request_is_one_clear_sentence(
    arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(*arguments) == 2
    streams = capsys.readouterr()
    assert words in streams.err
    assert "Traceback" not in streams.err + streams.out
