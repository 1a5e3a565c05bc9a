"""The whole story in minutes, on the synthetic town: learn without labels, then need fewer of them."""

import time
from dataclasses import replace
from pathlib import Path

from cofield.train.config import Finetuning, Labels, Pretraining, Start
from cofield.train.recipes import recipe_for
from cofield.train.run import finetune, pretrain
from cofield.train.watch import say
from cofield.view.report import report_run, write_page

LABELS = Labels(fraction=0.01)


def run_demo(out: Path, steps: int, tuning_steps: int) -> bool:
    """Pre-train, fine-tune from scratch and from the trunk, compare, report; whether it ran to its end."""
    began = time.monotonic()
    base = recipe_for("world:tiny", Pretraining)
    learning = replace(base, optim=replace(base.optim, steps=steps, validate_every=max(1, steps // 2)))
    say("1 of 4: learn from the town's cameras and LiDAR. No label is read.")
    if not pretrain(learning, out / "pretrained"):
        return False
    base = recipe_for("map:world:tiny", Finetuning)
    optim = replace(base.optim, steps=tuning_steps, validate_every=tuning_steps)
    tuning = replace(base, optim=optim, labels=LABELS)
    say("2 of 4: learn the map from 1 % of the labels, starting from scratch.")
    scratch = finetune(tuning, out / "map-from-scratch")
    if scratch is None:
        return False
    say("3 of 4: the same labels and steps, starting from the trunk.")
    transferred = finetune(replace(tuning, start=Start(str(out / "pretrained"))), out / "map-from-trunk")
    if transferred is None:
        return False
    say("4 of 4: pictures and curves.")
    comparison = compare(scratch, transferred)
    page = report_run(out / "pretrained", frames=2, comparison=comparison)
    write_page(out / "report.html", "Cofield: the demonstration", page)
    say(verdict(comparison, out, time.monotonic() - began))
    return True


def compare(scratch: dict[str, float], transferred: dict[str, float]) -> list[tuple[str, float, float]]:
    """For every layer that both measured, its IoU from scratch and from the trunk; the mean last."""
    names = [name for name in scratch if name in transferred and name != "miou"]
    return [(name, scratch[name], transferred[name]) for name in [*names, "miou"]]


def verdict(comparison: list[tuple[str, float, float]], out: Path, seconds: float) -> str:
    """What came out, whichever way it went, and what to do next."""
    lines = [f"{'IoU with 1 % of the labels':<28}{'scratch':>9}{'pre-trained':>13}{'difference':>12}"]
    lines += [
        f"{name.replace('_', ' '):<28}{here:>9.3f}{there:>13.3f}{there - here:>+12.3f}"
        for name, here, there in comparison
    ]
    return "\n".join(
        [
            "",
            *lines,
            "",
            "One seed and one choice of labels: a demonstration, not a result. With several seeds:",
            f"cofield sweep NAME --inits scratch pretrained --trunks {out / 'pretrained'} --recipe map:world:tiny",
            "",
            f"Pictures and curves: {out / 'report.html'}   ({seconds / 60:.1f} minutes)",
            "Next, on your own data: cofield check-data nuscenes --root DIR; docs/own-data.md for any other log.",
        ]
    )
