"""One frame learned by heart: what a recipe's model can show of it, in numbers and pictures.

    python benchmarks/overfit.py nuscenes-laptop --root data/nuscenes --out results/rendering/nuscenes-keyframe.json
    python benchmarks/overfit.py kitti-laptop --root data/kitti --out results/rendering/kitti-frame.json

Other parts of the frame are hidden in every step, and what is scored was hidden from the encoders when it was scored:
the weights know the frame, the encoders are shown half of it. The same script runs on CUDA when there is a GPU.
"""

import argparse
import time
from dataclasses import replace
from pathlib import Path

from cofield.data import Source
from cofield.data.augment import Augment, prepared
from cofield.data.fractions import Subset
from cofield.frame import Frame
from cofield.train.config import Pretraining
from cofield.train.measure import measure, paint_frame
from cofield.train.recipes import recipe_for
from cofield.train.results import write_results
from cofield.train.run import open_run, open_split, pretrain
from cofield.view.pictures import write_pictures


def main() -> None:
    """Train on one frame, paint it, measure it."""
    arguments = parse()
    began = time.monotonic()
    base = recipe_for(arguments.recipe, Pretraining)
    base = replace(base, data=replace(base.data, root=arguments.root, sweeps=None, store=False))
    one = Kept(prepared(open_split(base.data, arguments.split), base.augment), arguments.frame)
    config = alone(base, arguments.steps)
    if not pretrain(config, arguments.run, one, one):
        return
    config, task = open_run(arguments.run)
    scores = measure(task, one, [0])
    common = {"task": "one frame", "source": one.name, "recipe": arguments.recipe, "steps": config.optim.steps}
    common |= {"seed": config.optim.seed, "frame": one[0].token}
    rows = [common | {"metric": name, "value": value} for name, value in scores.items()]
    for row in rows:
        print(f"{row['metric']:<20} {row['value']:.4f}")
    write_pictures(paint_frame(task, one[0]), config.grid, arguments.pictures, arguments.recipe.replace(":", "-"))
    if arguments.out:
        write_results(arguments.out, rows, time.monotonic() - began)


def alone(config: Pretraining, steps: int) -> Pretraining:
    """The recipe for a single frame, one a step, that is not changed by chance."""
    return replace(
        config,
        data=replace(config.data, batch=1, workers=0, validation=1),
        augment=Augment(),
        optim=replace(config.optim, steps=steps, accumulate=1, rate_batch=0, save_every=100, validate_every=steps),
    )


class Kept(Subset):
    """One frame of a source, read once."""

    def __init__(self, source: Source, index: int) -> None:
        super().__init__(source, [index])
        self.frame = source[index]

    def __getitem__(self, index: int) -> Frame:
        return self.frame


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe")
    parser.add_argument("--root", help="the folder of the data set")
    parser.add_argument("--split", default="train")
    parser.add_argument("--frame", type=int, default=0)
    parser.add_argument("--steps", type=int, default=800)
    parser.add_argument("--run", type=Path, default=Path("runs/one-frame"))
    parser.add_argument("--pictures", type=Path, default=Path("out/one-frame"))
    parser.add_argument("--out", type=Path)
    return parser.parse_args()


if __name__ == "__main__":
    main()
