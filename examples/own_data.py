"""Bring your own logs: one class with a length, an index and scene names, here for a folder of .npz files.

python examples/own_data.py FOLDER     # checks the logs and draws some frames into FOLDER/pictures
"""

import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from cofield.classes import DETECTION
from cofield.frame import Boxes, Camera, Frame, Points
from cofield.geometry import inverse
from cofield.view.check import check_source


@dataclass(frozen=True)
class Logs:
    """One .npz file a frame, named SCENE-NUMBER.npz."""

    root: Path
    name, box_classes, point_classes = "my logs", DETECTION, None

    def files(self) -> list[Path]:
        return sorted(self.root.glob("*.npz"))  # by scene, then by time

    def __len__(self) -> int:
        return len(self.files())

    def scenes(self) -> list[str]:
        return [path.stem.rpartition("-")[0] for path in self.files()]

    def __getitem__(self, index: int) -> Frame:
        path = self.files()[index]
        log = np.load(path)
        time, scene = float(log["time"]), self.scenes()[index]
        world_T_ego, ego_T_lidar, ego_T_cam = (torch.from_numpy(log[key]) for key in ("car", "lidar", "camera"))
        xyz = torch.from_numpy(log["points"][:, :3]) @ ego_T_lidar[:3, :3].float().mT + ego_T_lidar[:3, 3].float()
        zero = torch.zeros(len(xyz))
        points = Points(xyz, torch.from_numpy(log["points"][:, 3]) / 255.0, age=zero, origin=zero.long())
        image = torch.from_numpy(log["image"]).permute(2, 0, 1) / 255.0
        pix_T_cam = torch.block_diag(torch.from_numpy(log["intrinsics"]).float(), torch.ones(1, 1))
        camera = Camera("front", image, pix_T_cam, inverse(ego_T_cam).float(), time)
        boxes = torch.from_numpy(log["boxes"])  # x y z (of the centre, in ego), length, width, height, yaw, class
        velocity = torch.full((len(boxes), 2), torch.nan)  # unknown
        boxes = Boxes(boxes[:, :3], boxes[:, 3:6], boxes[:, 6], velocity, boxes[:, 7].long())
        origins_ego = ego_T_lidar[None, :3, 3].float()
        return Frame(path.stem, scene, time, world_T_ego, (camera,), points, origins_ego, boxes)


if __name__ == "__main__":
    root = Path(sys.argv[1])
    print(*check_source(Logs(root), out=root / "pictures").findings or ["OK"], sep="\n")
