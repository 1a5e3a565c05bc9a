"""How long the nuScenes tables of the full data set take to index and to open, and how much memory that needs.

    python benchmarks/tables.py [--share 1.0] [--out results/bench-cpu/tables.json]

The tables are generated at the size of v1.0-trainval: 2,631,083 files, as many poses, 1,166,187 labels.
Rows: seconds and peak memory of the first and of a later opening, each in a process of its own.
"""

import argparse
import json
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

FILES, LABELS, SAMPLES, SCENES, INSTANCES = 2_631_083, 1_166_187, 34_149, 850, 64_386
GOALS = {"first": (45.0, 2.0), "later": (2.0, 2.0)}  # seconds, GiB
CHANNELS = ("LIDAR_TOP", "CAM_FRONT", "CAM_FRONT_RIGHT", "CAM_BACK_RIGHT", "CAM_BACK", "CAM_BACK_LEFT",
            "CAM_FRONT_LEFT", "RADAR_FRONT", "RADAR_FRONT_LEFT", "RADAR_FRONT_RIGHT", "RADAR_BACK_LEFT",
            "RADAR_BACK_RIGHT")  # fmt: skip


def main() -> None:
    """Generate, index, open, and print the rows."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--share", type=float, default=1.0, help="of the full size")
    options.add_argument("--folder", type=Path, help="keep the generated tables here, and use them if they are there")
    options.add_argument("--out", type=Path, help="write the rows to this results file")
    options.add_argument("--open", type=Path, help=argparse.SUPPRESS)
    given = options.parse_args()
    if given.open:
        print(json.dumps(opened(given.open)))
        return
    began = time.monotonic()
    folder = given.folder or Path(tempfile.mkdtemp(prefix="tables-"))
    if not (folder / "v1.0-trainval" / "sample_data.json").is_file():
        generate(folder / "v1.0-trainval", given.share)
    for index in (folder / "v1.0-trainval").glob(".cofield-*"):
        shutil.rmtree(index)
    rows = []
    for case, (seconds, gib) in GOALS.items():
        command = [sys.executable, __file__, "--open", str(folder)]
        found = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
        goals = {"goal": seconds, "ratio": round(found["seconds"] / seconds, 3), "goal_gib": gib}
        rows.append({"op": "tables", "case": case, "share": given.share, "backend": "cpu", **found, **goals})
        took = f"{found['seconds']:6.2f} s ({found['cpu_seconds']:.2f} of CPU)"
        print(f"{case:6}  {took}  {found['gib']:5.2f} GiB   goal {seconds} s, {gib} GiB")
    if given.out:
        from cofield.train.results import write_results

        write_results(given.out, rows, time.monotonic() - began)
    if not given.folder:
        shutil.rmtree(folder)


def opened(root: Path) -> dict[str, float]:
    """What opening the index and looking up the last frame's rows costs; the interpreter's imports are not counted."""
    from cofield.data.nuscenes import NuScenes

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start, used = time.perf_counter(), time.process_time()
    source = NuScenes(root, "val")
    tables = source.tables
    assert tables["box.centre"][int(tables["box.offset"][-2]) :].shape[1] == 3
    assert source.scenes()[-1]
    assert tables.text("file.name", len(tables["file.timestamp"]) - 1)
    seconds, used = time.perf_counter() - start, time.process_time() - used
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {
        "seconds": round(seconds, 3),
        "cpu_seconds": round(used, 3),
        "gib": round(peak / 2**20, 3),
        "gib_of_imports": round(before / 2**20, 3),
    }


def generate(folder: Path, share: float) -> None:
    """Tables with the official fields, order and indentation."""
    folder.mkdir(parents=True)
    scenes, samples = max(2, int(SCENES * share)), max(4, int(SAMPLES * share))
    files, labels, instances = (max(40, int(count * share)) for count in (FILES, LABELS, INSTANCES))
    token = "{:016x}{:016x}".format  # unlike real ones these differ little, which makes no lookup easier

    def name(kind: int, row: int) -> str:
        return token(kind * 0x9E3779B97F4A7C15 % 2**64, row * 0xBF58476D1CE4E5B9 % 2**64) if row >= 0 else ""

    def write(table: str, rows) -> None:
        with (folder / f"{table}.json").open("w") as file:
            file.write("[\n")
            for i, row in enumerate(rows):
                file.write((",\n" if i else "") + json.dumps(row, indent=0))
            file.write("\n]")

    numbers = range(3, 3 + scenes)
    write("log", [{"token": name(1, 0), "logfile": "n", "vehicle": "n", "date_captured": "d", "location": "boston"}])
    write("scene", ({"token": name(2, i), "log_token": name(1, 0), "nbr_samples": 40, "first_sample_token": "",
                     "last_sample_token": "", "name": f"scene-{n:04d}", "description": ""}
                    for i, n in enumerate(numbers)))  # fmt: skip
    write("sample", ({"token": name(3, i), "timestamp": 1531883530449377 + 500000 * i, "prev": name(3, i - 1),
                      "next": "", "scene_token": name(2, i * scenes // samples)} for i in range(samples)))  # fmt: skip
    write("sensor", ({"token": name(4, i), "channel": channel, "modality": "lidar" if i == 0 else "camera"}
                     for i, channel in enumerate(CHANNELS)))  # fmt: skip
    write("calibrated_sensor", ({"token": name(5, i), "sensor_token": name(4, i % 12), "translation": [0.9, 0.1, 1.8],
                                 "rotation": [0.70779, -0.0064, 0.0106, -0.7063], "camera_intrinsic": []}
                                for i in range(12)))  # fmt: skip
    write("sample_data", (_file(i, name, files, samples) for i in range(files)))
    write("ego_pose", ({"token": name(7, i), "timestamp": 1531883530449377 + i,
                        "rotation": [0.5720320396729045, -0.0016977771610471074, 0.011798001930183783, -0.82014466 + i],
                        "translation": [411.3039349319818 + i * 1e-3, 1180.8903791765097, 0.0]}
                       for i in range(files)))  # fmt: skip
    write("category", [{"token": name(8, 0), "name": "vehicle.car", "description": ""}])
    write("attribute", [{"token": name(9, 0), "name": "vehicle.moving", "description": ""}])
    write("visibility", [{"token": str(i + 1), "level": level} for i, level in enumerate(("v0-40", "v40-60"))])
    write("instance", ({"token": name(10, i), "category_token": name(8, 0), "nbr_annotations": 18,
                        "first_annotation_token": "", "last_annotation_token": ""}
                       for i in range(instances)))  # fmt: skip
    write("sample_annotation", (_label(i, name, labels, samples, instances) for i in range(labels)))


def _file(i: int, name, files: int, samples: int) -> dict:
    channel, stamp = CHANNELS[i % 12], 1531883530449377 + 4000 * i
    return {
        "token": name(6, i),
        "sample_token": name(3, i * samples // files),
        "ego_pose_token": name(7, i),
        "calibrated_sensor_token": name(5, i % 12),
        "timestamp": stamp,
        "fileformat": "jpg",
        "is_key_frame": i // 12 % 6 == 0,
        "height": 900,
        "width": 1600,
        "filename": f"samples/{channel}/n015-2018-07-18-11-07-57+0800__{channel}__{stamp}.jpg",
        "prev": name(6, i - 12) if i >= 12 else "",
        "next": name(6, i + 12) if i + 12 < files else "",
    }


def _label(i: int, name, labels: int, samples: int, instances: int) -> dict:
    return {
        "token": name(11, i),
        "sample_token": name(3, i * samples // labels),
        "instance_token": name(10, i % instances),
        "visibility_token": str(1 + i % 2),
        "attribute_tokens": [name(9, 0)] if i % 3 else [],
        "translation": [373.256 + i * 1e-3, 1130.419, 0.8],
        "size": [0.621, 0.669, 1.642],
        "rotation": [0.9831098797903927, 0.0, 0.0, -0.18301629506281616],
        "prev": name(11, i - 1),
        "next": name(11, i + 1) if i + 1 < labels else "",
        "num_lidar_pts": i % 40,
        "num_radar_pts": 0,
    }


if __name__ == "__main__":
    main()
