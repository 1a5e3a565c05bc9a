"""How well a pre-trained field paints held-out frames: every ray of them, hidden or not, and cameras it never had."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch

from cofield.data import Source
from cofield.data.simulate import World
from cofield.draw import Key
from cofield.frame import Batch, Camera, Frame, Hidden, collate
from cofield.geometry import pose
from cofield.metrics.render import RenderScore
from cofield.models.mask import hide
from cofield.models.render import Seen, joined
from cofield.train.tasks import MEASURE, Pretrain, score_view
from cofield.train.views import View, above_view, beam_view, camera_view

RAYS = 4096  # rendered at a time, so that a laptop's memory is enough
ASIDE = 0.5  # metres by which a novel camera stands to the left of the one it is compared with


@dataclass(frozen=True)
class Painting:
    """A frame, what of it was hidden, and what every ray of each kind should see and does."""

    frame: Frame
    batch: Batch
    hidden: Hidden
    views: dict[str, tuple[View, Seen]]


@torch.no_grad()
def paint_frame(task: Pretrain, frame: Frame, novel: tuple[Camera, ...] = (), seed: Key = MEASURE) -> Painting:
    """All cameras, beams and columns of a frame as the field shows them, without any noise.

    Args:
        novel: other cameras to paint, of a task whose field can be seen from everywhere.
    """
    if novel and task.frustum is not None:
        raise ValueError("a frustum shows its own pixels only; give no novel cameras, or train another model.field")
    batch = collate([frame])
    grid, sampling = task.trunk.grid, task.sampling
    hidden = hide(batch, task.masking, seed, grid)
    views = {
        "camera": camera_view(batch, hidden, sampling, grid, None, task.bins),
        "beam": beam_view(batch, hidden, sampling, grid, None),
        "above": above_view(batch, hidden, sampling, grid, None),
    }
    if novel:
        elsewhere = collate([replace(frame, cameras=novel)])
        views["novel"] = camera_view(elsewhere, hidden, sampling, grid, None)
    scene = task.encode(batch, hidden)
    seen = {
        name: (view, joined([task.see(scene, piece) for piece in view.pieces(RAYS)])) for name, view in views.items()
    }
    return Painting(frame, batch, hidden, seen)


def measure(task: Pretrain, source: Source, indices: list[int]) -> dict[str, float]:
    """The pooled score of frames, and of novel cameras where the source can show what they see."""
    score, aside = RenderScore(), RenderScore()
    depth_errors = []
    for frame, novel in with_novel(task, source, indices):
        painting = paint_frame(task, frame, novel)
        for name in ("camera", "beam", "above"):
            score_view(score, painting.batch, *painting.views[name])
        if novel:
            view, seen = painting.views["novel"]
            target = view.targets["colour"]
            mean = painting.batch.images.flatten(0, 1).mean((-2, -1))[view.camera]
            aside.add_colours(seen.channels["colour"], target.value, mean)
            depth = torch.cat([camera.depth.flatten() for camera in novel if camera.depth is not None])
            inside = depth < view.rays.far * view.rays.cosine
            depth_errors.append(((seen.range * view.rays.cosine - depth).abs() / depth)[inside])
    values = score.compute()
    if depth_errors:
        novel_values = aside.compute()
        values["novel_psnr"] = novel_values["psnr"]
        values["novel_psnr_mean_image"] = novel_values["psnr_mean_image"]
        values["novel_depth_error"] = float(torch.cat(depth_errors).median())
    return values


def with_novel(task: Pretrain, source: Source, indices: list[int]) -> Iterator[tuple[Frame, tuple[Camera, ...]]]:
    """Frames, each with cameras half a metre to the left of its own, where source and task can show what they see."""
    for index in indices:
        frame = source[index]
        if not isinstance(source, World) or task.frustum is not None:
            yield frame, ()
            continue
        shift = pose(torch.eye(3), torch.tensor([ASIDE, 0.0, 0.0]))
        moved = [replace(camera, cam_T_ego=shift @ camera.cam_T_ego) for camera in frame.cameras]
        yield frame, source.view(frame.scene, frame.time, moved)
