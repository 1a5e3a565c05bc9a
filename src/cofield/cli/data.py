"""Verbs about machines and data."""

from pathlib import Path

from cofield.cli.asking import Word, parse


def doctor(arguments: list[str]) -> int:
    """Say what this machine offers, what is installed and what is missing."""
    from cofield.view.doctor import examine, explain

    def options(json: bool = False) -> bool:
        """Examine the machine.

        Args:
            json: print it for machines.
        """
        return json

    as_json = parse(options, doctor, arguments)
    report = examine()
    print(explain(report, as_json=as_json))
    return 0 if report["ready"] else 1


def check_data(arguments: list[str]) -> int:
    """Say in seconds whether a folder is the data set it should be, and draw what is in it."""
    import json as machine
    from dataclasses import asdict

    from cofield.data import FOLDERS
    from cofield.view import check

    def options(
        source: Word,
        root: Path,
        version: str | None = None,
        out: Path = Path("check"),
        frames: int = 4,
        skip_broken: bool = False,
        json: bool = False,
    ) -> tuple[str, Path, str | None, Path, int, bool, bool]:
        """Check that every frame's files are there, and a handful of frames: calibration, boxes, time, labels.

        Args:
            source: nuscenes, kitti, semantickitti or scribblekitti.
            root: its folder.
            version: of nuScenes.
            out: the folder for the overlay pictures.
            frames: how many to read, each with its successor.
            skip_broken: list frames that cannot be read without calling that wrong.
            json: print what was found for machines.
        """
        return source, root, version, out, frames, skip_broken, json

    source, root, version, out, frames, skip_broken, as_json = parse(options, check_data, arguments)
    if source not in FOLDERS:
        raise ValueError(f"no data set is called {source!r}; there is {', '.join(FOLDERS)}")
    report = check.check_data(source, root, version, out, frames, skip_broken)
    if as_json:
        print(machine.dumps({"ok": not report.findings, **asdict(report)}))
    else:
        print("\n".join(f"{topic}: {fact}" for topic, fact in report.facts.items()))
        print("".join(f"skipped {finding}\n" for finding in report.skipped), end="")
        print("\n".join(map(str, report.findings)) or f"OK; pictures are in {out}")
    return 1 if report.findings else 0


def export(arguments: list[str]) -> int:
    """Write a source as a nuScenes, KITTI or SemanticKITTI folder."""
    from cofield.data import open_source
    from cofield.data.export import export as write

    def options(
        source: Word,
        format: str,
        root: Path,
        frames: int | None = None,
        split: str = "train",
        source_root: Path | None = None,
        skip_broken: bool = False,
    ) -> tuple[str, str, Path, int | None, str, Path | None, bool]:
        """Export.

        Args:
            source: what to write.
            format: nuscenes, kitti or semantickitti.
            root: the folder to write to.
            frames: how many, from the first; all if not given.
            split: of the source.
            source_root: the source's own folder, if it is a data set.
            skip_broken: step over frames that cannot be read, and say which.
        """
        return source, format, root, frames, split, source_root, skip_broken

    source, form, root, frames, split, source_root, skip_broken = parse(options, export, arguments)
    count = write(open_source(source, source_root, split), form, root, frames, skip_broken)
    print(f"{count} frames of {source} are in {root}, as {form}")
    return 0


def segments(arguments: list[str]) -> int:
    """Propose masks for every camera image of a source and keep them in files."""
    from cofield.view.segments import segments as propose

    def options(
        source: Word,
        out: Path,
        root: Path | None = None,
        segmenter: str = "felzenszwalb",
        weights: str | None = None,
        split: str = "train",
        frames: int | None = None,
        pictures: int = 4,
    ) -> tuple[str, Path, Path | None, str, str | None, str, int | None, int]:
        """Segment. The same command again goes on where it stopped.

        Args:
            source: where the images are from.
            out: the folder for the masks and a picture of a few.
            root: the folder of a data set.
            segmenter: felzenszwalb (also -fine and -coarse), sam, or on synthetic worlds exact (also -split, -merged).
            weights: of sam: a local folder, or a name that its loader knows.
            split: of the source.
            frames: how many, spread over the split; all if not given.
            pictures: how many frames the picture shows.
        """
        return source, out, root, segmenter, weights, split, frames, pictures

    print(propose(*parse(options, segments, arguments)))
    return 0
