"""How fast frames are read: ours at full and at half size, and the same frames through the nuScenes devkit.

    python benchmarks/loader.py [--devkit PYTHON] [--out results/bench-cpu/loader.json]

The frames are a nuScenes folder of the synthetic world's `nuscenes-like` preset with full-size images (with the
real keyframe's six images in their place where COFIELD_REALDATA has them: real ones cost more to decode), or the
folder that --root names. Both sides read ten sweeps, six images as floats, boxes and their velocities, in one
process of one thread: seconds of CPU, the best of several turns. The devkit runs in its own environment, whose
Python --devkit or COFIELD_DEVKIT_PYTHON names. Last, what workers make of it, in frames a second of the clock.
"""

import argparse
import itertools
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

TURNS, ROUNDS = 2, 3
SWEEPS = 9
CASES = (("full size", 1.0, 2.0), ("half size", 0.5, 4.0))

# What a loader built on the devkit does for each frame; images are made smaller by Pillow's default filter.
DEVKIT = """
import json, os, sys, time
import numpy as np
from PIL import Image
from nuscenes.nuscenes import NuScenes
from nuscenes.utils.data_classes import LidarPointCloud
from pyquaternion import Quaternion

root, rounds, sweeps, width = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4])
kit = NuScenes("v1.0-mini", root, verbose=False)

def read(sample):
    token = sample["data"]["LIDAR_TOP"]
    cloud, _ = LidarPointCloud.from_file_multisweep(kit, sample, "LIDAR_TOP", "LIDAR_TOP", sweeps + 1, 1.0)
    images = []
    for channel, camera in sample["data"].items():
        if channel.startswith("CAM"):
            image = Image.open(os.path.join(root, kit.get("sample_data", camera)["filename"])).convert("RGB")
            if width != 1.0:
                image = image.resize((round(image.width * width), round(image.height * width)))
            images.append(np.asarray(image, np.float32).transpose(2, 0, 1) / 255)
    key = kit.get("sample_data", token)
    car = kit.get("ego_pose", key["ego_pose_token"])
    boxes = kit.get_boxes(token)
    speeds = [kit.box_velocity(box.token) for box in boxes]
    for box in boxes:
        box.translate(-np.array(car["translation"]))
        box.rotate(Quaternion(car["rotation"]).inverse)
    return cloud, images, boxes, speeds

read(kit.sample[0])
for _ in range(rounds):
    start = time.process_time()
    for sample in kit.sample:
        read(sample)
    print((time.process_time() - start) / len(kit.sample), flush=True)
"""


def main() -> None:
    """Time every case in turn, and print the rows."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--root", type=Path, help="a nuScenes folder with v1.0-mini; made if it is not there")
    options.add_argument("--devkit", default=os.environ.get("COFIELD_DEVKIT_PYTHON"), help="a Python with the devkit")
    options.add_argument("--frames", type=int, default=7)
    options.add_argument("--out", type=Path, help="write the rows to this results file")
    given = options.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        root = given.root or Path(folder) / "nuscenes"
        if not root.is_dir():
            written(root, given.frames)
        rows = [compared(root, given.devkit, *case) for case in CASES]
        rows += workers(root)
        for row in rows:
            print(json.dumps(row))
    if given.out:
        from cofield.train.results import write_results

        write_results(given.out, rows, time.monotonic() - began)


def compared(root: Path, devkit: str | None, case: str, scale: float, goal: float) -> dict:
    """One case's row: ours, and how many times as long the devkit takes, with its own resizing and without any."""
    commands = {"ours": [sys.executable, "-c", OURS, str(root), str(ROUNDS), str(SWEEPS), str(scale)]}
    if devkit:
        for name, width in (("ratio", scale), ("ratio_without_resizing", 1.0)):
            if name == "ratio" or scale != 1.0:
                commands[name] = [devkit, "-c", DEVKIT, str(root), str(ROUNDS), str(SWEEPS), str(width)]
    seconds = {name: [] for name in commands}
    for _ in range(TURNS):
        for name, command in commands.items():
            seconds[name].append(best(command))
    ours = min(seconds.pop("ours"))
    row = {"op": "loader", "case": case, "backend": "cpu", "ms": round(1000 * ours, 1)}
    if seconds:
        row |= {"peer": "nuscenes-devkit", "goal": goal}
        row |= {name: round(min(every) / ours, 2) for name, every in seconds.items()}
    return row | ({"difference_255": difference(root, scale)} if scale != 1.0 else {})


def workers(root: Path) -> list[dict]:
    """Frames a second of batches of two, half size, from this process and from as many workers as there are cores."""
    from cofield.data.loader import Order, training_batches
    from cofield.data.nuscenes import NuScenes

    source = NuScenes(root, "all", "v1.0-mini", sweeps=SWEEPS, scale=0.5, labels="none")
    rows = []
    for count in (0, os.cpu_count() or 1):
        batches = iter(training_batches(source, Order(len(source), 2, seed=0), count))
        for _ in itertools.islice(batches, 8):
            pass
        start, steps = time.perf_counter(), 24
        for _ in itertools.islice(batches, steps):
            pass
        speed = 2 * steps / (time.perf_counter() - start)
        rows.append({"op": "loader", "case": f"half size, {count} workers", "frames_per_second": round(speed, 1)})
    return rows


OURS = """
import sys, time
import torch
from cofield.data.loader import keep_memory
from cofield.data.nuscenes import NuScenes

torch.set_num_threads(1)
root, rounds, sweeps, scale = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4])
source = NuScenes(root, "all", "v1.0-mini", sweeps=sweeps, scale=scale, labels="none")
keep_memory()  # as every loading process does
source[0]
for _ in range(rounds):
    start = time.process_time()
    for index in range(len(source)):
        source[index]
    print((time.process_time() - start) / len(source), flush=True)
"""


def written(root: Path, frames: int) -> Path:
    """A nuScenes folder with images of 900×1600 and ten sweeps of 34,880 points a frame."""
    from cofield.data.export import export
    from cofield.data.simulate import World

    world = World("nuscenes-like")
    stretch = world.rig.cameras[0].pix_T_cam.new_tensor([900 / 256, 900 / 256, 1, 1])
    cameras = tuple(
        replace(mount, size=(900, 1600), pix_T_cam=stretch[:, None] * mount.pix_T_cam) for mount in world.rig.cameras
    )
    export(World("nuscenes-like", rig=replace(world.rig, cameras=cameras)), "nuscenes", root, frames)
    for path in root.glob("samples/CAM_*/*.jpg"):
        for real in Path(os.environ.get("COFIELD_REALDATA", "")).glob(f"nuscenes/samples/{path.parent.name}/*.jpg"):
            shutil.copy(real, path)
    return root


def best(command: list[str]) -> float:
    """CPU seconds a frame: the best of the rounds, which others on the machine disturb least."""
    out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return min(map(float, out.split()))


def difference(root: Path, scale: float) -> dict[str, float]:
    """Of our smaller images to those decoded in full and resized, in 255ths."""
    import numpy as np
    from PIL import Image

    from cofield.data.files import read_image

    errors = []
    for folder in sorted(root.glob("samples/CAM_*")):
        path = min(folder.glob("*.jpg"))
        ours = read_image(path, scale)[0].permute(1, 2, 0).numpy() * 255
        with Image.open(path) as image:
            full = image.convert("RGB").resize((ours.shape[1], ours.shape[0]))
        errors.append(np.abs(ours - np.asarray(full, np.float32)).ravel())
    every = np.concatenate(errors)
    shares = {"mean": every.mean(), "p99": np.quantile(every, 0.99), "share_within_2": (every < 2.01).mean()}
    return {name: round(float(value), 3) for name, value in shares.items()}


if __name__ == "__main__":
    main()
