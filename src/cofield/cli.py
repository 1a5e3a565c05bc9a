"""The command line: one verb, one function. Verbs import what they need, so `--help` is instant."""

import os
import sys
from collections.abc import Callable
from pathlib import Path

import tyro

Word = tyro.conf.Positional[str]


def doctor(json: bool = False) -> int:
    """Say what this machine offers, what is installed and what is missing.

    Args:
        json: print it for machines.
    """
    from cofield.view.doctor import examine, explain

    report = examine()
    print(explain(report, as_json=json))
    return 0 if report["ready"] else 1


def render(source: Word, out: Path, frames: int = 4, split: str = "val") -> int:
    """Draw frames of a source: images, depth, semantics, instances, bird's eye and points.

    Args:
        source: what to draw: world:tiny, world:small, world:nuscenes-like or world:kitti-like, with @tune, @report
            or @sealed for its town.
        out: the folder to write to.
        frames: how many, spread over the split.
        split: train or val.
    """
    from cofield.data import open_source
    from cofield.view.gallery import render_world

    render_world(open_source(source, split=split), out, frames)
    print(f"{frames} frames of {source} are in {out}")
    return 0


VERBS: dict[str, Callable[..., int]] = {"doctor": doctor, "render": render}


def main(arguments: list[str] | None = None) -> None:
    """Run one verb; exit 0 when done, 1 when a check failed, 2 when the request was wrong."""
    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        status = tyro.extras.subcommand_cli_from_dict(
            VERBS,
            prog="cofield",
            description="Teach 3-D perception from raw driving logs.",
            args=arguments or ["--help"],
        )
    except (ValueError, LookupError, OSError) as problem:
        if os.environ.get("COFIELD_TRACEBACK"):
            raise
        print(f"cofield: {problem}", file=sys.stderr)
        print("(COFIELD_TRACEBACK=1 shows where)", file=sys.stderr)
        status = 2
    sys.exit(status)
