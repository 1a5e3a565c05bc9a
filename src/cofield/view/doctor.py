"""What this machine offers Cofield, what is installed, and what is missing."""

import importlib.metadata
import importlib.util
import json
import os
import platform
import shutil
import time
from typing import Any

REQUIRED = (
    "torch",
    "lightning",
    "numpy",
    "numba",
    "embreex",
    "trimesh",
    "jaxtyping",
    "scipy",
    "scikit-image",
    "simplejpeg",
    "tyro",
    "pydantic",
    "pyyaml",
    "pillow",
    "matplotlib",
    "safetensors",
    "tensorboard",
)


def examine() -> dict[str, Any]:
    """The machine and the installation as plain values; `ready` is whether everything required works."""
    import torch

    packages = {name: _version(name) for name in REQUIRED}
    missing = [name for name, version in packages.items() if version is None]
    disk = shutil.disk_usage(".")
    report: dict[str, Any] = {
        "cofield": _version("cofield"),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "memory_gib": _memory_gib(),
        "disk_free_gib": round(disk.free / 2**30, 1),
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        "packages": packages,
        "missing": missing,
        "broken": [] if missing else _broken(),
    }
    report["ready"] = not missing and not report["broken"]
    return report


def explain(report: dict[str, Any], as_json: bool = False) -> str:
    """The report for a person, or for a machine."""
    if as_json:
        return json.dumps(report, indent=2)
    width = max(len(name) for name in report["packages"])
    lines = [
        f"cofield {report['cofield']}, Python {report['python']}, {report['system']}",
        f"{report['cores']} cores, {report['memory_gib']} GiB memory, {report['disk_free_gib']} GiB disk free",
        f"GPUs: {', '.join(report['gpus']) or 'none; everything runs on the CPU'}",
        "",
        *(f"  {name:<{width}}  {version or 'MISSING'}" for name, version in report["packages"].items()),
        "",
    ]
    if report["missing"]:
        lines.append(f"Missing: {', '.join(report['missing'])}. Run: pip install cofield -c constraints.txt")
    lines += [f"Broken: {problem}" for problem in report["broken"]]
    if report["ready"]:
        lines.append("Ready.")
    return "\n".join(lines)


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _memory_gib() -> float | None:
    if not hasattr(os, "sysconf") or "SC_PHYS_PAGES" not in os.sysconf_names:
        return None
    return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)


def _broken() -> list[str]:
    """What does not work although it is installed: one frame of the world is cast, which also warms the kernels."""
    from cofield.data import open_source

    start = time.perf_counter()
    frame = open_source("world:tiny", split="val")[0]
    problems = [] if len(frame.points) else ["the synthetic world returned no LiDAR points"]
    if time.perf_counter() - start > 120:
        problems.append("the first synthetic frame took over two minutes; is the kernel cache writable?")
    return problems
