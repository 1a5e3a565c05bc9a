"""What the official devkit's detection evaluation says; runs in the devkit's own environment.

Usage: python detection.py tables IN.npz OUT.json      boxes as tables, of any number of cases
       python detection.py files ROOT RESULTS SPLIT OUT.json      a result file against a folder

Tables: <case>.predicted and <case>.truth have rows of frame, label, attribute, x y z, l w h, yaw, vx vy, score, points;
<case>.racks has rows of frame, x y z, l w h, yaw; <case>.ego is the car's x y z in each frame; `names` and `attributes`
are what labels count.
"""

import json
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from nuscenes.eval.common.config import config_factory
from nuscenes.eval.common.data_classes import EvalBoxes
from nuscenes.eval.common.loaders import filter_eval_boxes
from nuscenes.eval.detection.data_classes import DetectionBox
from nuscenes.eval.detection.evaluate import DetectionEval
from nuscenes.nuscenes import NuScenes
from pyquaternion import Quaternion

CONFIG = config_factory("detection_cvpr_2019")


def quaternion(yaw):
    return tuple(Quaternion(axis=[0, 0, 1], radians=yaw).elements.tolist())


def eval_boxes(rows, ego, names, attributes, scored):
    """A table as the devkit's boxes, every frame present."""
    boxes = EvalBoxes()
    for frame in range(len(ego)):
        boxes.add_boxes(str(frame), [])
    for row in rows.tolist():
        frame, label, attribute = map(int, row[:3])
        box = DetectionBox(
            sample_token=str(frame),
            translation=tuple(row[3:6]),
            size=(row[7], row[6], row[8]),
            rotation=quaternion(row[9]),
            velocity=tuple(row[10:12]),
            ego_translation=tuple((np.array(row[3:6]) - ego[frame]).tolist()),
            num_pts=-1 if scored else int(row[13]),
            detection_name=names[label],
            detection_score=row[12] if scored else -1.0,
            attribute_name="" if attribute < 0 else attributes[attribute],
        )
        boxes.add_boxes(str(frame), [box])
    return boxes


class Racks:
    """As much of the database as the filter asks for."""

    def __init__(self, rows):
        self.records = [
            {
                "category_name": "static_object.bicycle_rack",
                "frame": str(int(row[0])),
                "translation": row[1:4],
                "size": [row[5], row[4], row[6]],
                "rotation": quaternion(row[7]),
            }
            for row in rows.tolist()
        ]

    def get(self, table, token):
        if table == "sample":
            return {"anns": [i for i, record in enumerate(self.records) if record["frame"] == token]}
        return self.records[token]


def summary(metrics, seconds):
    return {
        "ap": {name: list(by_threshold.values()) for name, by_threshold in metrics._label_aps.items()},
        "errors": {name: list(errors.values()) for name, errors in metrics._label_tp_errors.items()},
        "mean_errors": list(metrics.tp_errors.values()),
        "map": metrics.mean_ap,
        "nds": metrics.nd_score,
        "seconds": seconds,
    }


def evaluated(judge):
    """Only the evaluation is timed: parsing and filtering came before."""
    start = time.process_time()
    metrics, _ = judge.evaluate()
    return summary(metrics, time.process_time() - start)


def judge_tables(tables, case, names, attributes):
    ego = tables[f"{case}.ego"]
    racks = Racks(tables[f"{case}.racks"])
    judge = DetectionEval.__new__(DetectionEval)
    judge.cfg, judge.verbose = CONFIG, False
    for kind in ("predicted", "truth"):
        boxes = eval_boxes(tables[f"{case}.{kind}"], ego, names, attributes, kind == "predicted")
        if boxes.all:
            boxes = filter_eval_boxes(racks, boxes, CONFIG.class_range)
        setattr(judge, {"predicted": "pred_boxes", "truth": "gt_boxes"}[kind], boxes)
    return evaluated(judge)


def judge_files(root, results, split):
    devkit = NuScenes("v1.0-mini", root, verbose=False)
    with tempfile.TemporaryDirectory() as folder:
        return evaluated(DetectionEval(devkit, CONFIG, results, split, folder, verbose=False))


def main(what, *paths):
    if what == "tables":
        with np.load(paths[0]) as archive:
            tables = dict(archive)
        names, attributes = tables.pop("names").tolist(), tables.pop("attributes").tolist()
        cases = dict.fromkeys(name.partition(".")[0] for name in tables)
        found = {case: judge_tables(tables, case, names, attributes) for case in cases}
    else:
        found = judge_files(*paths[:3])
    Path(paths[-1]).write_text(json.dumps(found))


main(*sys.argv[1:])
