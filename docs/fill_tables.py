"""Fill the tables of README and docs from the files under results/: `python docs/fill_tables.py [--check]`.

A table stands between `<!-- table: NAME -->` and `<!-- end of table -->`; what is between is replaced.
"""

import argparse
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cofield.train.config import flat
from cofield.train.recipes import recipe
from cofield.train.results import interval, paired_difference, read_cell, read_results
from cofield.train.sweep import FROM_TRUNK, kind_of
from cofield.view.efficiency import ORDER, head, lines, metric_table, most_seeds, ordered, signed
from cofield.view.report import MEANING

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "results"
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
Row = dict[str, Any]
# The methods of segmentation from few labels that stand for themselves, and what the others are variants of.
PLAIN = (
    "supervised",
    "nerf-exact",
    "nerf-felzenszwalb",
    "projection",
    "projection-consistent",
    "nerf-projection",
    "teacher-mixing",
    "nerf-exact-mixing",
    "combined",
)
WHOLE = {
    "nerf-exact-unsifted": "nerf-exact",
    "nerf-exact-cautious": "nerf-exact",
    "nerf-felzenszwalb-fine": "nerf-felzenszwalb",
    "nerf-felzenszwalb-coarse": "nerf-felzenszwalb",
    "nerf-pixels": "nerf-exact",
    "nerf-pixels-unsifted": "nerf-exact",
    "projection-unsifted": "projection",
    "projection-pixels": "projection",
    "projection-pixels-unsifted": "projection",
}


def main() -> int:
    """Fill, or with --check say which page is out of date."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true")
    check = parser.parse_args().check
    stale = [page for page in PAGES if filled(page.read_text()) != page.read_text()]
    for page in stale:
        print(f"{page.relative_to(ROOT)} {'is out of date' if check else 'filled'}")
        if not check:
            page.write_text(filled(page.read_text()))
    return int(check and bool(stale))


def filled(text: str) -> str:
    """The page with its tables made anew."""

    def table(match: re.Match[str]) -> str:
        name = match[1]
        return f"<!-- table: {name} -->\n{TABLES[name]()}\n<!-- end of table -->"

    return re.sub(r"<!-- table: (\S+) -->.*?<!-- end of table -->", table, text, flags=re.S)


def rendering() -> str:
    """What pre-trained fields paint of held-out frames."""
    found = [row for row in read_results(RESULTS / "rendering") if row["task"] == "pretrain"]
    runs = list(dict.fromkeys(row["cell"] for row in found))
    value = {(row["cell"], row["metric"]): row["value"] for row in found}
    names = [name for name in MEANING if any((run, name) in value for run in runs)]
    rows = [[MEANING[name], *(shown(name, value.get((run, name))) for run in runs)] for name in names]
    return markdown(["held-out frames", *(f"`{run}`" for run in runs)], rows)


def one_frame() -> str:
    """What is shown of one frame that was learned by heart."""
    found = [row for row in read_results(RESULTS / "rendering") if row["task"] == "one frame"]
    value = {(row["recipe"], row["metric"]): row["value"] for row in found}
    recipes = list(dict.fromkeys(row["recipe"] for row in found))
    names = [name for name in MEANING if any((each, name) in value for each in recipes)]
    rows = [[MEANING[name], *(shown(name, value.get((each, name))) for each in recipes)] for name in names]
    return markdown(["one frame", *(f"`{each}`" for each in recipes)], rows)


def full_size() -> str:
    """Memory, time and terms of the papers' model on one frame."""
    found = read_cell(RESULTS / "bench-cpu" / "full-size.json")
    (whole,) = (row for row in found if row.get("part") == "all")
    (last,) = (row for row in found if "without_gradient" in row)
    rows = [
        ["peak memory of the process", f"{whole['memory_gib']} GiB"],
        ["a step", f"{1 / whole['frames_per_second']:.0f} s"],
        ["parameters without a gradient", str(len(last["without_gradient"]))],
    ]
    rows += [
        [f"`{row['term']}`, first five steps and last five", f"{row['first_five']:.3g} → {row['last_five']:.3g}"]
        for row in found
        if "term" in row
    ]
    return markdown(["", f"`{whole['case']}`"], rows)


def recipe_fields() -> str:
    """Every field of the recipes at the papers' size, and where its value is from."""
    return fields_table(("nuscenes", "nuscenes-small", "kitti"), set())


def recipe_heads() -> str:
    """What recipes for tuning have beside."""
    known = {*flat(recipe("nuscenes")), "start.trunk", "start.parts", "start.allow_grid_change"}
    return fields_table(("boxes:nuscenes", "map:nuscenes", "boxes:kitti"), known)


def fields_table(names: tuple[str, ...], known: set[str]) -> str:
    """The fields of recipes that are not yet known; each must have a source."""
    source = json.loads((ROOT / "docs" / "recipe_sources.json").read_text())
    first, *others = (flat(recipe(name)) for name in names)
    fields = dict.fromkeys([*first, *(each for other in others for each in other)])
    rows = []
    for field in fields:
        if field == "task" or field in known:
            continue
        cells = [plain(first[field]) if field in first else "–"]
        cells += [("" if other[field] == first.get(field, ...) else plain(other[field])) if field in other else "–"
                  for other in others]  # fmt: skip
        rows.append([f"`{field}`", *cells, source[field]])
    return markdown(["field", *(f"`{name}`" for name in names), "from"], rows)


def plain(value: object) -> str:
    """A value as one would write it."""
    match value:
        case bool() | None:
            return {True: "yes", False: "no", None: "none"}[value]
        case float():
            return f"{value:.4g}"
        case tuple() | list():
            return ", ".join(plain(each) for each in value) or "none"
        case dict():
            return ", ".join(f"{name} {plain(each)}" for name, each in value.items()) or "none"
        case _:
            return str(value)


def label_efficiency() -> str:
    """Mean IoU for every label fraction and start, and the paired difference to scratch, with 95 % intervals."""
    found = lines(read_results(RESULTS / "label-efficiency"), "miou")
    return markdown([*head("scratch")], [[*line.cells()] for line in found])


def label_classes() -> str:
    """The gain of every class at the smallest fraction."""
    found = read_results(RESULTS / "label-efficiency")
    names = dict.fromkeys(row["metric"] for row in found if row["metric"] != "miou")
    rows = []
    for name in names:
        start, *others = [line for line in lines(found, name) if line.fraction == min(row["fraction"] for row in found)]
        gained = next(line for line in others if line.init == "pretrained")
        rows.append([name.replace("_", " "), str(start.value), str(gained.value), gained.cells()[-1]])
    return markdown(["IoU", "scratch", "pre-trained", "paired difference"], rows)


def label_controls() -> str:
    """Every start and class at the smallest fraction, over the seeds that all starts have."""
    found = read_results(RESULTS / "label-efficiency")
    found = [row for row in found if row["fraction"] == min(each["fraction"] for each in found)]
    starts = [init for init in ORDER if any(row["init"] == init for row in found)]
    seeds = set.intersection(*({row["seed"] for row in found if row["init"] == init} for init in starts))
    known = [row for row in found if row["seed"] in seeds]
    rows = []
    for name in dict.fromkeys(row["metric"] for row in known):
        means = {line.init: line.value.mean for line in lines(known, name)}
        rows.append([name.replace("_", " "), *(f"{means[init]:.3f}" for init in starts)])
    return markdown([f"IoU, {len(seeds)} seeds", *(f"`{init}`" for init in starts)], rows)


def detection() -> str:
    """Boxes from all labels, by sensor: the mean of five common classes, all ten, and what errors are left."""
    runs = {"both": "cameras and LiDAR", "lidar": "LiDAR", "camera": "cameras"}
    value = {(row["cell"], row["metric"]): row["value"] for row in read_results(RESULTS / "detection")}
    known = [run for run in runs if (run, "map") in value]
    common = ("car", "truck", "bus", "pedestrian", "bicycle")
    means = [sum(value[run, f"ap.{name}"] for name in common) / len(common) for run in known]
    rows = [[f"**mean AP of {', '.join(common)}**", *(f"**{mean:.3f}**" for mean in means)]]
    titles = {"map": "mAP of all ten classes", "nds": "NDS"}
    titles |= {name: f"AP, {name.removeprefix('ap.').replace('_', ' ')}"
               for run, name in value if name.startswith("ap.") and run == known[0]}  # fmt: skip
    titles |= {"translation": "position, m", "scale": "size, 1 − IoU", "orientation": "heading, rad"}
    rows += [[title, *(f"{value[run, name]:.3f}" for run in known)] for name, title in titles.items()]
    return markdown(["held-out frames", *(runs[run] for run in known)], rows)


def lidar_segmentation() -> str:
    """Mean IoU of every method, without ablations, and the paired difference to `supervised`, with 95 % intervals."""
    found = [row for row in segmented() if row["init"] in PLAIN]
    return markdown([*head("supervised")], [[*line.cells()] for line in lines(found, "miou")])


def lidar_segmentation_classes() -> str:
    """Every class at the smallest fraction, of the methods that have as many seeds as any."""
    found = [row for row in segmented() if row["init"] in PLAIN]
    found = [row for row in found if row["fraction"] == min(each["fraction"] for each in found)]
    found = most_seeds(found)
    names = [name for name in dict.fromkeys(row["metric"] for row in found) if not name.startswith("miou.")]
    titles, rows = metric_table(found, names)
    return markdown([*titles], [[*row] for row in rows])


def lidar_segmentation_ablations() -> str:
    """What a method is without one of its parts or with another setting: the difference to the method, paired."""
    found = [row for row in segmented() if row["metric"] == "miou"]
    rows = []
    for fraction in sorted({row["fraction"] for row in found}):
        here = [row for row in found if row["fraction"] == fraction]
        for init in [name for name in ordered(row["init"] for row in here) if name not in PLAIN]:
            whole = kind_of(init) if "+" in init else WHOLE.get(init) or init.removeprefix(FROM_TRUNK)
            mine, other = ([row for row in here if row["init"] == name] for name in (init, whole))
            shared = {row["seed"] for row in mine} & {row["seed"] for row in other}
            gain = signed(paired_difference(mine, other, lambda row: row["seed"])) if shared else "–"
            (line,) = lines(mine, "miou")
            rows.append([f"{fraction:.0%}", init, str(line.seeds), str(line.value), whole, gain])
    return markdown(["labels", "variant", "seeds", "mean", "of the method", "over it, paired"], rows)


def lidar_segmentation_sensors() -> str:
    """Methods in worlds whose LiDAR or cameras are others than the preset's, and the same cells in the preset's own."""
    found = read_results(RESULTS / "lidar-segmentation")

    def cell(row: Row) -> tuple[Any, ...]:
        return row["source"].partition("+")[0], row["init"], row["seed"], row["fraction"]

    varied = {cell(row) for row in found if "+" in row["source"] and row["init"] in PLAIN}
    known = [row for row in found if cell(row) in varied]
    rows = [[line.source.partition("+")[2] or "as it is", *line.cells()] for line in lines(known, "miou")]
    return markdown(["sensors", *head("supervised")], rows)


def lidar_segmentation_across() -> str:
    """Finished runs on frames of other towns and other sensors, and the paired difference to `supervised` there."""
    rows = [[line.source, *line.cells()] for line in lines(across(), "miou")]
    return markdown(["tested on", *head("supervised")], rows)


def lidar_segmentation_cylinder() -> str:
    """A cylinder from scratch and from a trunk that was pre-trained without labels."""
    found = read_results(RESULTS / "lidar-segmentation-cylinder")
    return markdown([*head("supervised")], [[*line.cells()] for line in lines(found, "miou")])


def lidar_segmentation_between() -> str:
    """Methods against each other rather than against `supervised`, where they learned and elsewhere."""
    known = segmented() + [row for row in across() if "+" not in row["init"]]
    found = [row for row in known if row["metric"] == "miou" and row["fraction"] == 0.01]
    pairs = (("nerf-projection", "projection"), ("projection", "nerf-exact"))
    rows = []
    for source in dict.fromkeys(row["source"] for row in found):
        here = {name: [row for row in found if (row["source"], row["init"]) == (source, name)] for name in PLAIN}
        gains = [
            signed(paired_difference(here[one], here[other], lambda row: row["seed"]))
            if here[one] and here[other]
            else "–"
            for one, other in pairs
        ]
        rows.append([source, *gains])
    return markdown(["tested on", *(f"{one} over {other}" for one, other in pairs)], rows)


def across() -> list[Row]:
    """Finished runs on frames of other towns and other sensors, by method."""
    found = read_results(RESULTS / "lidar-segmentation-across")
    return [row | {"init": row["run"].rpartition(f"-{row['fraction']:g}-")[0]} for row in found]


def pseudo_labels() -> str:
    """How right the pseudo-labels of finished runs are, by rendering and by projecting, the mean over runs."""
    found = read_results(RESULTS / "pseudo-labels")
    rows = []
    for source in dict.fromkeys(row["source"] for row in found):
        for metric in dict.fromkeys(row["metric"].rsplit(", ", 1)[0] for row in found):
            shares = []
            for route in ("rendered", "projected"):
                for kind in ("precision", "recall"):
                    mine = (source, route, f"{metric}, {kind}")
                    known = [row["value"] for row in found if (row["source"], row["route"], row["metric"]) == mine]
                    shares.append(f"{interval(known).mean:.3f}" if known else "–")
            what, part = metric.rsplit(", ", 1)
            rows.append([source.partition("+")[2] or "as it is", what, part, *shares])
    head = ["cameras", "scored at", "of", "rendered: precision", "recall", "projected: precision", "recall"]
    return markdown(head, rows)


def segmentation_tuning() -> str:
    """The runs on town `tune` that settings were chosen by, one seed each."""
    folders = sorted(RESULTS.glob("segmentation-tuning*"), key=lambda path: len(path.name))
    known = [line for folder in folders for line in lines(read_results(folder), "miou")]
    rows = [[str(line.steps), line.init.replace("+", ", "), str(line.value)] for line in known]
    return markdown(["steps", "method, and what was changed of the recipe of its time", "mean IoU"], rows)


def segmented() -> list[Row]:
    """The cells of segmentation from few labels in worlds as they are."""
    return [row for row in read_results(RESULTS / "lidar-segmentation") if "+" not in row["source"]]


def shown(name: str, value: float | None) -> str:
    """Errors as percentages, decibels with one decimal."""
    if value is None:
        return "–"
    return f"{100 * value:.1f} %" if name.endswith("error") else f"{value:.1f}"


def world() -> str:
    """Milliseconds per frame of every preset."""
    rows = [
        [f"`{row['case']}`", f"{row['ms']:.0f} ms", f"{row['goal']:.0f} ms", f"{row['ratio']:.2f}"]
        for row in read_results(RESULTS / "bench-cpu")
        if row["op"] == "world"
    ]
    return markdown(["preset", "a frame, one core, scene building included", "goal", "of the goal"], rows)


def step() -> str:
    """Where a pre-training step's time goes."""
    found = read_cell(RESULTS / "bench-cpu" / "step.json")
    rows = [[row["part"], f"{100 * row['share']:.0f} %"] for row in found if "share" in row]
    (whole,) = [row for row in found if row["part"] == "all"]
    rows.append([f"**{whole['threads']} threads**", f"**{whole['frames_per_second']:.1f} frames/s**"])
    return markdown([f"part of a step of `{whole['case']}`", "share"], rows)


def loader() -> str:
    """How many times as long as we the devkit takes for the same frames."""
    found = [row for row in read_results(RESULTS / "bench-cpu") if row["op"] == "loader" and "ratio" in row]
    rows = []
    for row in found:
        plain = row.get("ratio_without_resizing")
        beside = "–" if plain is None else f"{plain:.1f} ×"
        rows.append([row["case"], f"{row['ms']:.0f} ms", f"{row['ratio']:.1f} ×", beside, f"{row['goal']:.0f} ×"])
    head = ["six images of 900×1600, ten sweeps, boxes", "a frame", "the devkit", "without resizing", "goal"]
    return markdown(head, rows)


def tables() -> str:
    """Indexing and opening tables of the full data set's size."""
    rows = [
        [row["case"], f"{row['seconds']:.2f} s ({row['cpu_seconds']:.2f} s of CPU)", f"{row['gib']:.2f} GiB",
         f"{row['goal']:.0f} s, {row['goal_gib']:.0f} GiB"]
        for row in read_results(RESULTS / "bench-cpu")
        if row["op"] == "tables"
    ]  # fmt: skip
    return markdown(["opening", "time", "memory", "goal"], rows)


def metrics() -> str:
    """The official score, ours against the devkit's."""
    rows = [
        [f"{row['ms'] / 1000:.1f} s", f"{row['ms_peer'] / 1000:.1f} s", f"{row['ratio']:.0f} ×", f"{row['goal']:.0f} ×"]
        for row in read_results(RESULTS / "bench-cpu")
        if row["op"] == "nuscenes detection score"
    ]
    return markdown(["Cofield", "the devkit", "ratio", "goal"], rows)


def sparse() -> str:
    """Sparse convolution against spconv."""
    rows = [
        [row["case"], row["backend"], f"{row['ms']:.0f} ms", f"{row['peer_ms']:.0f} ms", f"{row['ratio']:.2f}"]
        for row in read_results(RESULTS / "bench-cpu")
        if row["op"] == "sparse"
    ]
    return markdown(["case", "ours", "time", "spconv fp32", "of spconv's time"], rows)


def layout() -> str:
    """A volume in the layout it is looked up in."""
    rows = [
        [row["case"], f"{row['ms']:.0f} ms", f"{row['peer_ms']:.0f} ms", f"{row['ratio']:.2f}"]
        for row in read_results(RESULTS / "bench-cpu")
        if row["op"] == "layout"
    ]
    return markdown(["volume", "ours", "torch's convolutions", "of their time"], rows)


def predict() -> str:
    """What a frame costs a fine-tuned model, as a run and as a program."""
    found = read_cell(RESULTS / "bench-cpu" / "predict.json")
    backends = list(dict.fromkeys((row["backend"], row["precision"]) for row in found))
    rows = []
    for case in dict.fromkeys((row["case"], row["sensors"]) for row in found):
        mine = {(row["backend"], row["precision"]): row for row in found if (row["case"], row["sensors"]) == case}
        cells = [f"{mine[each]['ms']:.0f} ms, {mine[each]['gib']:.2f} GiB" for each in backends]
        rows.append([f"`{case[0]}`", case[1], *cells])
    threads = ", ".join(str(each) for each in dict.fromkeys(row["threads"] for row in found))
    titles = [f"{backend}, {'fp32' if precision == '32' else precision}" for backend, precision in backends]
    return markdown([f"a frame, threads: {threads}", "sensors", *titles], rows)


TABLES: dict[str, Callable[[], str]] = {
    "rendering": rendering,
    "one-frame": one_frame,
    "full-size": full_size,
    "recipe-fields": recipe_fields,
    "recipe-heads": recipe_heads,
    "label-efficiency": label_efficiency,
    "label-classes": label_classes,
    "label-controls": label_controls,
    "detection": detection,
    "lidar-segmentation": lidar_segmentation,
    "lidar-segmentation-classes": lidar_segmentation_classes,
    "lidar-segmentation-ablations": lidar_segmentation_ablations,
    "lidar-segmentation-sensors": lidar_segmentation_sensors,
    "lidar-segmentation-across": lidar_segmentation_across,
    "lidar-segmentation-between": lidar_segmentation_between,
    "lidar-segmentation-cylinder": lidar_segmentation_cylinder,
    "pseudo-labels": pseudo_labels,
    "segmentation-tuning": segmentation_tuning,
    "world": world,
    "step": step,
    "loader": loader,
    "tables": tables,
    "metrics": metrics,
    "sparse": sparse,
    "layout": layout,
    "predict": predict,
}


def markdown(head: list[str], rows: list[list[str]]) -> str:
    """A table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


if __name__ == "__main__":
    sys.exit(main())
