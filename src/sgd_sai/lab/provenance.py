"""Where, when and with what a record was made."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shlex
import sys
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

from sgd_sai.cli.secrets import without_secrets


def record() -> dict[str, Any]:
    """Return command, date, machine and versions: what a record says about itself."""
    return {"command": command(), "date": now(), "machine": machine(), "versions": versions()}


def machine() -> dict[str, Any]:
    """Processor, cores that this process may use, memory in GiB, system."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else 0
    return {
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_gib": round(memory / 2**30),
        "system": f"{platform.system()} {platform.machine()}",
        **({"gpu": torch.cuda.get_device_name()} if torch.cuda.is_available() else {}),
    }


def versions() -> dict[str, str]:
    """Versions of what the arithmetic depends on."""
    packages = ("sgd-sai", "torch", "transformers", "numpy", "scikit-learn")
    return {
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in packages},
    }


def command() -> str:
    """The command line as it can be typed again, but for users, passwords and options of addresses in it."""
    each = [Path(sys.argv[0]).name, *map(without_secrets, sys.argv[1:])]
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        here = os.environ["LOCAL_WORLD_SIZE"]
        nodes = int(os.environ["WORLD_SIZE"]) // int(here)
        of_nodes = ["--nnodes", str(nodes)] if nodes > 1 else []
        each = ["torchrun", *of_nodes, "--nproc-per-node", here, "--no-python", *each]
    return shlex.join(each)


def now() -> str:
    """The time in UTC, ISO 8601."""
    return datetime.now(timezone.utc).isoformat(timespec="milliseconds")


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8", "replace").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or torch.backends.cpu.get_cpu_capability()
