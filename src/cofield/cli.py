"""The command line: one verb, one function. Verbs import what they need, so `--help` is instant."""

import os
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Annotated, TypeVar

import tyro

Word = tyro.conf.Positional[str]
Answer = TypeVar("Answer")


def doctor(arguments: list[str]) -> int:
    """Say what this machine offers, what is installed and what is missing."""
    from cofield.view.doctor import examine, explain

    def options(json: bool = False) -> bool:
        """Examine the machine.

        Args:
            json: print it for machines.
        """
        return json

    as_json = _parse(options, doctor, arguments)
    report = examine()
    print(explain(report, as_json=as_json))
    return 0 if report["ready"] else 1


def recipes(arguments: list[str]) -> int:
    """List the named runs, print one, or say how two differ."""
    from cofield.train.config import as_yaml, differences
    from cofield.train.recipes import RECIPES, recipe

    def options(
        name: tyro.conf.Positional[str | None] = None, diff: str | None = None
    ) -> tuple[str | None, str | None]:
        """Show recipes.

        Args:
            name: the recipe to print.
            diff: another recipe, to compare it with.
        """
        return name, diff

    name, other = _parse(options, recipes, arguments)
    if name is None:
        width = max(len(each) for each in RECIPES)
        print("\n".join(f"{each:<{width}}  {make.__doc__}" for each, make in RECIPES.items()))
    elif other is None:
        print(as_yaml(recipe(name)), end="")
    else:
        print(differences(recipe(name), recipe(other)).replace(", ", "\n") or "they are the same")
    return 0


def pretrain(arguments: list[str]) -> int:
    """Pre-train a recipe: hide, lift, render, compare. The same command again resumes it."""
    from cofield.train.config import Pretraining
    from cofield.train.recipes import fitting, recipe_for
    from cofield.train.run import pretrain as train

    name, rest = _leading_word(arguments, pretrain, fitting(Pretraining))
    start = recipe_for(name, Pretraining)

    def options(
        config: Annotated[Pretraining, tyro.conf.arg(name="")] = start, run: Path | None = None
    ) -> tuple[Pretraining, Path]:
        """Pre-train.

        Args:
            config: every field of the recipe can be changed.
            run: the folder of the run; it is resumed if it exists.
        """
        return config, run or Path("runs") / name.replace(":", "-")

    config, folder = _parse(options, pretrain, rest)
    return 0 if train(config, folder) else 130


def finetune(arguments: list[str]) -> int:
    """Train a head, and the trunk under it, from labels. The same command again resumes it."""
    from cofield.train.config import Finetuning
    from cofield.train.recipes import fitting, recipe_for
    from cofield.train.run import finetune as train

    name, rest = _leading_word(arguments, finetune, fitting(Finetuning))
    start = recipe_for(name, Finetuning)

    def options(
        trunk: str,
        config: Annotated[Finetuning, tyro.conf.arg(name="")] = start,
        run: Path | None = None,
        parts: tuple[str, ...] = (),
        allow_grid_change: bool = False,
    ) -> tuple[Finetuning, Path]:
        """Fine-tune.

        Args:
            trunk: the pre-training run to start from, or none.
            config: every field of the recipe can be changed.
            run: the folder of the run; it is resumed if it exists.
            parts: the parts of the trunk to load, each of which must match: camera, lidar, fuse, camera.encoder ...
            allow_grid_change: load a trunk that was trained on another grid.
        """
        begin = replace(
            config.start,
            trunk=None if trunk == "none" else trunk,
            parts=parts or config.start.parts,
            allow_grid_change=allow_grid_change or config.start.allow_grid_change,
        )
        return replace(config, start=begin), run or Path("runs") / name.replace(":", "-")

    config, folder = _parse(options, finetune, rest)
    scores = train(config, folder)
    if scores is None:
        return 130
    print("\n".join(f"{name:<16} {value:.4f}" for name, value in scores.items()))
    return 0


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

    what, out, frames, split, beams, camera, skip_broken = _parse(options, render, arguments)
    if frames < 1:
        raise ValueError(f"--frames must be at least 1, got {frames}")
    if (Path(what) / "config.yaml").is_file():
        from cofield.train.config import Finetuning
        from cofield.train.run import run_config
        from cofield.view.pictures import render_run
        from cofield.view.predictions import render_predictions

        draw = render_predictions if isinstance(run_config(Path(what)), Finetuning) else render_run
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

    source, root, version, out, frames, skip_broken, as_json = _parse(options, check_data, arguments)
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

    source, form, root, frames, split, source_root, skip_broken = _parse(options, export, arguments)
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

    print(propose(*_parse(options, segments, arguments)))
    return 0


def evaluate(arguments: list[str]) -> int:
    """Measure a run, or official result files of boxes, on held-out frames."""
    import json as machine

    from cofield.train.config import Finetuning
    from cofield.train.predict import score_file, score_run
    from cofield.train.run import run_config
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
            predictions: a nuScenes detection file, or a folder of KITTI texts, to score in place of a run.
            source: where the frames are from; of a run, its own if not given.
            root: the folder of a data set.
            split: of the source.
            frames: how many, spread over the split; all if not given, 32 of a pre-trained run.
            json: print it for machines.
            results: a results file to write, results/rendering/NAME.json for instance.
            skip_broken: step over frames that cannot be read, and say which.
        """
        return run, predictions, source, root, split, frames, json, results, skip_broken

    run, file, source, root, split, frames, as_json, results, skip = _parse(options, evaluate, arguments)
    if (run is None) == (file is None):
        raise ValueError("evaluate takes either a run's folder or --predictions FILE_OR_FOLDER")
    if file is not None:
        if source is None:
            raise ValueError(f"--source says which frames {file} is about: nuscenes or kitti, with its --root")
        scores = score_file(file, source, root, split)
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

    print(f"the predictions are {predict_run(*_parse(options, predict, arguments))}")
    return 0


def report(arguments: list[str]) -> int:
    """Put runs' pictures and numbers, and sweeps' results, into one HTML file."""
    from cofield.view.efficiency import report_results
    from cofield.view.report import report_run, write_page

    def options(
        what: tyro.conf.Positional[tuple[Path, ...]], out: Path, frames: int = 2, skip_broken: bool = False
    ) -> tuple[tuple[Path, ...], Path, int, bool]:
        """Report.

        Args:
            what: folders of pre-training runs, and of sweeps' results (results/NAME), in the order of the page.
            out: the HTML file to write.
            frames: held-out frames to show of a run.
            skip_broken: step over frames that cannot be read, and say which.
        """
        return what, out, frames, skip_broken

    folders, out, frames, skip_broken = _parse(options, report, arguments)
    if not folders:
        raise ValueError("report takes at least one folder: a pre-training run, or a sweep's results/NAME")
    parts: list[str] = []
    for folder in folders:
        if any(folder.glob("*.json")) and not (folder / "config.yaml").is_file():
            parts += report_results(folder)
        else:
            parts += report_run(folder, frames, skip_broken=skip_broken)
    write_page(out, f"Cofield: {', '.join(folder.name for folder in folders)}", parts)
    print(f"the report is {out}")
    return 0


def demo(arguments: list[str]) -> int:
    """Show the whole story in minutes: learn from a synthetic town without labels, then need fewer of them."""
    from cofield.view.demo import run_demo

    def options(out: Path = Path("out/demo"), steps: int = 400, tuning_steps: int = 150) -> tuple[Path, int, int]:
        """Run the demonstration. The same command again resumes it.

        Args:
            out: the folder for the runs and the report.
            steps: of pre-training.
            tuning_steps: of each fine-tuning.
        """
        return out, steps, tuning_steps

    return 0 if run_demo(*_parse(options, demo, arguments)) else 130


def sweep(arguments: list[str]) -> int:
    """Run label fraction × seed × initialisation, a file per cell; several at once share the work."""
    from cofield.train.config import Finetuning
    from cofield.train.recipes import recipe_for
    from cofield.train.sweep import Sweep, run_sweep

    scratch = Sweep(inits=("scratch",))

    def options(
        name: Word,
        recipe: str = "map:world:small",
        source: str | None = None,
        plan: Annotated[Sweep, tyro.conf.arg(name="")] = scratch,
        results: Path = Path("results"),
        runs: Path = Path("runs"),
    ) -> tuple[Finetuning, Sweep, Path, Path]:
        """Sweep.

        Args:
            name: of the experiment: its cells are results/NAME/CELL.json.
            recipe: what is fine-tuned.
            source: frames, in place of the recipe's.
            plan: what is varied.
            results: the folder of all results.
            runs: the folder of the runs behind them.
        """
        base = recipe_for(recipe, Finetuning)
        base = replace(base, data=replace(base.data, source=source or base.data.source))
        return base, plan, results / name, runs / name

    left = run_sweep(*_parse(options, sweep, arguments))
    print("all cells are done" if not left else f"{len(left)} cells are left, or with another process")
    return 0


VERBS: dict[str, Callable[[list[str]], int]] = {
    "doctor": doctor,
    "recipes": recipes,
    "pretrain": pretrain,
    "finetune": finetune,
    "check-data": check_data,
    "export": export,
    "render": render,
    "segments": segments,
    "evaluate": evaluate,
    "predict": predict,
    "report": report,
    "sweep": sweep,
    "demo": demo,
}


def main(arguments: list[str] | None = None) -> None:
    """Run one verb; exit 0 when done, 1 when a check failed, 2 when the request was wrong, 130 when interrupted."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_overview())
        sys.exit(0)
    try:
        verb, *rest = arguments
        if verb not in VERBS:
            raise ValueError(f"no verb is called {verb!r}; there is {', '.join(VERBS)}")
        status = VERBS[verb](rest)
    except BrokenPipeError:
        status = 141  # whoever read our output has closed it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (ValueError, LookupError, OSError) as problem:
        if os.environ.get("COFIELD_TRACEBACK"):
            raise
        print(f"cofield: {_sentence(problem)}", file=sys.stderr)
        print("(COFIELD_TRACEBACK=1 shows where)", file=sys.stderr)
        status = 2
    sys.exit(status)


def _overview() -> str:
    width = max(len(verb) for verb in VERBS)
    lines = [f"  {verb:<{width}}  {(run.__doc__ or '').splitlines()[0]}" for verb, run in VERBS.items()]
    return "\n".join(
        ["usage: cofield VERB ...", "", "Teach 3-D perception from raw driving logs.", "", *lines, "",
         "cofield VERB --help says more."]
    )  # fmt: skip


def _parse(options: Callable[..., Answer], verb: Callable[..., int], arguments: list[str]) -> Answer:
    return tyro.cli(
        options, prog=f"cofield {verb.__name__.replace('_', '-')}", description=verb.__doc__, args=arguments
    )


def _leading_word(arguments: list[str], verb: Callable[..., int], recipes: list[str]) -> tuple[str, list[str]]:
    """The first argument, a recipe, which decides what the others may be."""
    usage = f"cofield {verb.__name__} RECIPE ..., where RECIPE is one of {', '.join(recipes)}"
    if arguments and arguments[0] in ("-h", "--help"):
        print(f"usage: {usage}\n\n{verb.__doc__}\n\ncofield {verb.__name__} RECIPE --help lists every flag.")
        sys.exit(0)
    if not arguments or arguments[0].startswith("-"):
        raise ValueError(f"the recipe comes first: {usage}")
    return arguments[0], arguments[1:]


def _sentence(problem: Exception) -> str:
    """What an error says; a KeyError would otherwise show only its quoted key."""
    return str(problem.args[0]) if isinstance(problem, KeyError) and problem.args else str(problem)
