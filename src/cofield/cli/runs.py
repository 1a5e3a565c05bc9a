"""Verbs that look at what a run learned."""

from pathlib import Path

import tyro

from cofield.cli.asking import Word, parse


def render(arguments: list[str]) -> int:
    """Draw what a synthetic world holds, or what a run paints or predicts, as pictures and point clouds."""

    def options(
        what: Word,
        out: Path,
        frames: int = 4,
        split: str = "val",
        beams: int | None = None,
        camera: tuple[float, float, float, float, float] | None = None,
        skip_broken: bool = False,
    ) -> tuple[str, Path, int, str, int | None, tuple[float, ...] | None, bool]:
        """Draw frames, spread over a split.

        Args:
            what: a run's folder, or a source: world:tiny, world:small, world:nuscenes-like or world:kitti-like, with
                @tune, @report or @sealed for its town.
            out: the folder to write to.
            frames: how many.
            split: train or val.
            beams: of the world's LiDAR, in place of the preset's.
            camera: one more camera for the world, where the car has none: x y z in metres from the car, how far it is
                turned left and how far down in degrees.
            skip_broken: step over frames that cannot be read, and say which.
        """
        return what, out, frames, split, beams, camera, skip_broken

    what, out, frames, split, beams, camera, skip_broken = parse(options, render, arguments)
    if frames < 1:
        raise ValueError(f"--frames must be at least 1, got {frames}")
    if (Path(what) / "config.yaml").is_file():
        from cofield.train.config import Finetuning, SegmentTuning
        from cofield.train.run import run_config
        from cofield.view.pictures import render_run
        from cofield.view.predictions import render_predictions
        from cofield.view.pseudo import render_segmentation

        match run_config(Path(what)):
            case SegmentTuning():
                draw = render_segmentation
            case Finetuning():
                draw = render_predictions
            case _:
                draw = render_run
        scores = draw(Path(what), out, frames, split, skip_broken)
        print("\n".join(f"{name:<22} {value:.4g}" for name, value in scores.items()))
    else:
        from cofield.data import open_source
        from cofield.data.simulate import World
        from cofield.view.gallery import render_world, with_sensors

        source = open_source(what, split=split)
        if not isinstance(source, World):
            raise ValueError(f"render draws runs and synthetic worlds; {what} is neither (check-data draws data sets)")
        render_world(with_sensors(source, beams, camera), out, frames)
    print(f"{frames} frames of {what} are in {out}")
    return 0


def evaluate(arguments: list[str]) -> int:
    """Measure a run, or the result files that `predict` writes, on held-out frames."""
    import json as machine

    from cofield.train.config import Finetuning
    from cofield.train.predict import score_run
    from cofield.train.run import run_config
    from cofield.train.score_files import score_file
    from cofield.view.pictures import measure_run

    def options(
        run: tyro.conf.Positional[Path | None] = None,
        predictions: Path | None = None,
        source: str | None = None,
        root: Path | None = None,
        split: str = "val",
        frames: int | None = None,
        json: bool = False,
        results: Path | None = None,
        skip_broken: bool = False,
    ) -> tuple[Path | None, Path | None, str | None, Path | None, str, int | None, bool, Path | None, bool]:
        """Measure: of a fine-tuned run its task's score, of a pre-trained one what its field paints, on every ray.

        Args:
            run: the run's folder.
            predictions: what `predict` wrote, to score in place of a run: a nuScenes detection file, or a folder of
                KITTI texts, of lidarseg or SemanticKITTI labels, or of map rasters.
            source: where the frames are from; of a run, its own if not given. Points of a source with other classes are
                scored in those that both have in common.
            root: the folder of a data set.
            split: of the source.
            frames: how many, spread over the split; all if not given, 32 of a pre-trained run. Predictions are of
                exactly these frames.
            json: print it for machines.
            results: a results file to write of a run, results/rendering/NAME.json for instance.
            skip_broken: step over frames that a run cannot read, and say which.
        """
        return run, predictions, source, root, split, frames, json, results, skip_broken

    run, file, source, root, split, frames, as_json, results, skip = parse(options, evaluate, arguments)
    if (run is None) == (file is None):
        raise ValueError("evaluate takes either a run's folder or --predictions FILE_OR_FOLDER")
    if file is not None:
        if source is None:
            raise ValueError(f"--source says which frames {file} is about: world:PRESET, or a data set with its --root")
        if results is not None or skip:
            raise ValueError("--results and --skip-broken are for runs; the score of predictions is printed, of all")
        scores = score_file(file, source, root, split, frames)
    elif run is not None and isinstance(run_config(run), Finetuning):
        scores = score_run(run, source, root, split, frames, results, skip)
    else:
        assert run is not None
        scores = measure_run(run, frames or 32, results, skip)
    print(machine.dumps(scores) if as_json else "\n".join(f"{name:<22} {value:.4g}" for name, value in scores.items()))
    return 0


def predict(arguments: list[str]) -> int:
    """Write what a fine-tuned run says of frames as the official result files."""
    from cofield.train.predict import predict_run

    def options(
        run: Word,
        out: Path,
        source: str | None = None,
        root: Path | None = None,
        split: str = "val",
        frames: int | None = None,
        skip_broken: bool = False,
    ) -> tuple[Path, Path, str | None, Path | None, str, int | None, bool]:
        """Predict: nuScenes JSON or KITTI texts of boxes, map rasters, or lidarseg and SemanticKITTI label files.

        Args:
            run: the run's folder.
            out: the folder to write to.
            source: where the frames are from; the run's own if not given.
            root: the folder of a data set.
            split: of the source.
            frames: how many, spread over the split; all if not given, as the evaluations want them.
            skip_broken: step over frames that cannot be read, and say which.
        """
        return Path(run), out, source, root, split, frames, skip_broken

    print(f"the predictions are {predict_run(*parse(options, predict, arguments))}")
    return 0


def export_model(arguments: list[str]) -> int:
    """Write a fine-tuned run as one file that torch runs, with or without Cofield."""

    def options(
        run: Word, out: Word, source: str | None = None, root: Path | None = None, split: str = "val"
    ) -> tuple[str, Path, str | None, Path | None, str]:
        """Export a model.

        Args:
            run: the run's folder.
            out: the file to write, MODEL.pt2 for instance.
            source: where a frame is from that has as many images as all, and of their size; the run's own if not given.
            root: the folder of a data set.
            split: of the source.
        """
        return run, Path(out), source, root, split

    from cofield.data import open_source
    from cofield.train.program import export_model as write
    from cofield.train.run import run_config

    run, out, source, root, split = parse(options, export_model, arguments)
    data = run_config(Path(run)).data
    card = write(run, out, open_source(source or data.source, root or data.root, split, data.sweeps)[0])
    images = "no images" if card.images is None else "{} images of {}×{}".format(*card.images)
    print(f"{out}: {card.task} from points and {images}, {out.stat().st_size / 2**20:.1f} MiB")
    return 0


def report(arguments: list[str]) -> int:
    """Put runs' pictures and numbers, and sweeps' results, into one HTML file."""
    from cofield.train.config import SegmentTuning
    from cofield.train.run import run_config
    from cofield.view.efficiency import report_results
    from cofield.view.pseudo import report_segmentation
    from cofield.view.report import report_run, write_page

    def options(
        what: tyro.conf.Positional[tuple[Path, ...]], out: Path, frames: int = 2, skip_broken: bool = False
    ) -> tuple[tuple[Path, ...], Path, int, bool]:
        """Report.

        Args:
            what: folders of pre-training and lidarseg runs, and of sweeps' results (results/NAME), in the order of the
                page.
            out: the HTML file to write.
            frames: held-out frames to show of a run.
            skip_broken: step over frames that cannot be read, and say which.
        """
        return what, out, frames, skip_broken

    folders, out, frames, skip_broken = parse(options, report, arguments)
    if not folders:
        raise ValueError("report takes at least one folder: a pre-training run, or a sweep's results/NAME")
    parts: list[str] = []
    for folder in folders:
        if any(folder.glob("*.json")) and not (folder / "config.yaml").is_file():
            parts += report_results(folder)
        elif isinstance(run_config(folder), SegmentTuning):
            parts += report_segmentation(folder, frames, skip_broken)
        else:
            parts += report_run(folder, frames, skip_broken=skip_broken)
    write_page(out, f"Cofield: {', '.join(folder.name for folder in folders)}", parts)
    print(f"the report is {out}")
    return 0
