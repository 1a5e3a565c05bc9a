"""Verbs that train."""

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import tyro

from cofield.cli.asking import Word, leading_word, parse


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

    name, other = parse(options, recipes, arguments)
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

    name, rest = leading_word(arguments, pretrain, fitting(Pretraining))
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

    config, folder = parse(options, pretrain, rest)
    return 0 if train(config, folder) else 130


def finetune(arguments: list[str]) -> int:
    """Train a head, and the trunk under it, from labels. The same command again resumes it."""
    from cofield.train.config import Finetuning
    from cofield.train.recipes import fitting, recipe_for
    from cofield.train.run import finetune as train

    name, rest = leading_word(arguments, finetune, fitting(Finetuning))
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

    config, folder = parse(options, finetune, rest)
    scores = train(config, folder)
    if scores is None:
        return 130
    print("\n".join(f"{name:<16} {value:.4f}" for name, value in scores.items()))
    return 0


def sweep(arguments: list[str]) -> int:
    """Run label fraction × seed × initialisation, a file per cell; several at once share the work."""
    from cofield.train.config import Finetuning
    from cofield.train.recipes import recipe_for
    from cofield.train.sweep import RECIPE, Sweep, run_sweep

    scratch = Sweep(inits=("scratch",))

    def options(
        name: Word,
        recipe: str = RECIPE,
        source: str | None = None,
        root: Path | None = None,
        steps: int | None = None,
        plan: Annotated[Sweep, tyro.conf.arg(name="")] = scratch,
        results: Path = Path("results"),
        runs: Path = Path("runs"),
    ) -> tuple[Finetuning, Sweep, Path, Path]:
        """Sweep.

        Args:
            name: of the experiment: its cells are results/NAME/CELL.json.
            recipe: what is fine-tuned.
            source: frames, in place of the recipe's; world:small@report+delay=0.1 has late cameras, and so on.
            root: the folder of a data set.
            steps: of every cell, in place of the recipe's.
            plan: what is varied.
            results: the folder of all results.
            runs: the folder of the runs behind them.
        """
        base = recipe_for(recipe, Finetuning)
        place = base.data.root if root is None else str(root)
        base = replace(base, data=replace(base.data, source=source or base.data.source, root=place))
        base = replace(base, optim=replace(base.optim, steps=base.optim.steps if steps is None else steps))
        return base, plan, results / name, runs / name

    left = run_sweep(*parse(options, sweep, arguments))
    print("all cells are done" if not left else f"{len(left)} cells are left, or with another process")
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

    return 0 if run_demo(*parse(options, demo, arguments)) else 130
