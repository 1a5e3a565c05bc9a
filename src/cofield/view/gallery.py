"""Frames of a world as files: pictures of every camera with its truth, the view from above, the point cloud."""

from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from cofield.data.rig import Mount
from cofield.data.simulate import World
from cofield.frame import Frame
from cofield.view import paint

EXTRA = (360, 640)  # the size of a camera that the car does not carry


def with_sensors(world: World, beams: int | None, camera: tuple[float, ...] | None) -> World:
    """The world with another number of beams, or with one more camera at x, y, z, turned left and down in degrees."""
    rig = world.rig
    if beams is not None:
        rig = replace(rig, beams=beams)
    if camera is not None:
        x, y, z, left, down = camera
        extra = Mount.looking("extra", EXTRA, EXTRA[1] * 0.6, (EXTRA[1] / 2, EXTRA[0] / 2), (x, y, z), left, down)
        rig = replace(rig, cameras=(*rig.cameras, extra))
    return World(world.preset, world.town, world.split, rig)


def render_world(world: World, out: Path, frames: int = 4) -> None:
    """Write `frames` frames, spread over the world, into the folder `out`, and one contact sheet of them all.

    Per frame and camera: colours, depth, semantics and instances; per frame: the view from above with boxes
    and map, and the points coloured by class.
    """
    if not 1 <= frames <= len(world):
        raise ValueError(f"{world.name} {world.split} has 1 to {len(world)} frames to render, got {frames}")
    out.mkdir(parents=True, exist_ok=True)
    chosen = [k * len(world) // frames for k in range(frames)]
    rows = []
    for index in chosen:
        frame = world[index]
        shown = _frame_pictures(frame, world)
        for name, image in shown:
            Image.fromarray(image).save(out / f"{frame.token}_{name}.png")
        labels = frame.points.labels
        colour = (
            np.full((len(frame.points), 3), 200, np.uint8) if labels is None else paint.SEMANTIC_PALETTE[labels.numpy()]
        )
        paint.write_ply(out / f"{frame.token}_points.ply", frame.points.xyz_ego, colour)
        rows += [(f"{frame.token} {name}", image) for name, image in shown]
    columns = len(rows) // frames
    Image.fromarray(paint.tiles(rows, columns, width=320)).save(out / "contact_sheet.png")


def _frame_pictures(frame: Frame, world: World) -> list[tuple[str, paint.Picture]]:
    """All pictures of a frame by name."""
    shown = []
    for camera in frame.cameras:
        shown.append((camera.name, paint.picture(camera.image)))
        if camera.depth is not None:
            shown.append((f"{camera.name}_depth", paint.depth_picture(camera.depth)))
        if camera.semantics is not None:
            shown.append((f"{camera.name}_semantics", paint.semantic_picture(camera.semantics)))
        if camera.instances is not None:
            shown.append((f"{camera.name}_instances", paint.instance_picture(camera.instances)))
    return [*shown, ("above", paint.bird_picture(frame, world.grid))]
