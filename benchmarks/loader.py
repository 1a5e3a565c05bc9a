"""How fast frames are read: ours at full and at reduced decode, and the same frames through the nuScenes devkit.

The frames are a nuScenes folder of the synthetic world's `nuscenes-like` preset with full-size images (with the
real keyframe's six images in their place where COFIELD_REALDATA has them: real ones cost more to decode), or the
folder that --root names. One process and one thread each, seconds of CPU: workers multiply all cases alike.
The devkit runs in its own environment: --devkit names its Python. Goals: 2× at full decode, 4× at half.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

ROUNDS = 10
SWEEPS = 9

# What a loader built on the devkit does for each frame: ten sweeps, six images as floats, boxes in ego.
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
                image = image.resize((round(image.width * width), round(image.height * width)), Image.BILINEAR)
            images.append(np.asarray(image, np.float32).transpose(2, 0, 1) / 255)
    key = kit.get("sample_data", token)
    car = kit.get("ego_pose", key["ego_pose_token"])
    boxes = kit.get_boxes(token)
    speeds = [kit.box_velocity(box.token) for box in boxes]
    for box in boxes:
        box.translate(-np.array(car["translation"]))
        box.rotate(Quaternion(car["rotation"]).inverse)
    return cloud, np.stack(images), boxes, speeds

read(kit.sample[0])
for _ in range(rounds):
    start = time.process_time()
    for sample in kit.sample:
        read(sample)
    print((time.process_time() - start) / len(kit.sample), flush=True)
"""


def main() -> None:
    """Time every case in turn, and print the rows."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--root", type=Path, help="a nuScenes folder with v1.0-mini")
    options.add_argument("--devkit", default=os.environ.get("COFIELD_DEVKIT_PYTHON"), help="a Python with the devkit")
    options.add_argument("--frames", type=int, default=7)
    options.add_argument("--out", type=Path, help="write the rows to this JSON file")
    given = options.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    with tempfile.TemporaryDirectory() as folder:
        root = given.root or written(Path(folder) / "nuscenes", given.frames)
        rows = []
        for case, scale, goal in (("full decode", 1.0, 2.0), ("half decode", 0.5, 4.0)):
            ours = timed([sys.executable, "-c", OURS, str(root), str(ROUNDS), str(SWEEPS), str(scale)])
            row = {"op": "loader", "case": case, "seconds": round(ours, 4), "peer": "nuscenes-devkit", "goal": goal}
            row["cores"] = os.cpu_count()
            if given.devkit:
                # At reduced size the devkit's loader still decodes everything, then resizes.
                theirs = timed([given.devkit, "-c", DEVKIT, str(root), str(ROUNDS), str(SWEEPS), str(scale)])
                row |= {"peer_seconds": round(theirs, 4), "ratio": round(theirs / ours, 2)}
            rows.append(row)
        full = next((row["peer_seconds"] for row in rows if "peer_seconds" in row), None)
        if full:
            rows[1]["ratio_to_full"] = round(full / rows[1]["seconds"], 2)
        rows[1]["difference_255"] = difference(root)
        for row in rows:
            print(json.dumps(row))
    if given.out:
        given.out.write_text(json.dumps(rows, indent=1))


OURS = """
import sys, time
import torch
from cofield.data.nuscenes import NuScenes

torch.set_num_threads(1)
root, rounds, sweeps, scale = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4])
source = NuScenes(root, "all", "v1.0-mini", sweeps=sweeps, scale=scale, labels="none")
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


def timed(command: list[str]) -> float:
    """CPU seconds a frame: the best of the rounds, which others on the machine disturb least."""
    start = time.perf_counter()
    out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    print(f"# {time.perf_counter() - start:.0f} s", file=sys.stderr)
    return min(map(float, out.split()))


def difference(root: Path) -> dict[str, float]:
    """Of images decoded at half size to those decoded in full and resized, in 255ths."""
    import numpy as np
    from PIL import Image

    from cofield.data.files import read_image

    errors = []
    for path in sorted(root.glob("samples/CAM_*/*.jpg"))[:12]:
        ours = read_image(path, 0.5).permute(1, 2, 0).numpy() * 255
        with Image.open(path) as image:
            full = image.convert("RGB").resize((ours.shape[1], ours.shape[0]), Image.Resampling.BILINEAR)
        errors.append(np.abs(ours - np.asarray(full, np.float32)))
    every = np.concatenate([error.ravel() for error in errors])
    return {"mean": round(float(every.mean()), 3), "p99": round(float(np.quantile(every, 0.99)), 2)}


if __name__ == "__main__":
    main()
