"""What every benchmark states of its circumstances."""

from __future__ import annotations

import platform
import subprocess
from pathlib import Path
from typing import Any

import torch


def commit() -> str:
    """Of this checkout."""
    folder = Path(__file__).resolve().parent
    command = ["git", "describe", "--always", "--dirty"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    return done.stdout.strip() or "unknown"


def where_and_when() -> dict[str, Any]:
    """Commit, machine, threads and version of torch."""
    return {
        "commit": commit(),
        "machine": f"{platform.machine()}, {platform.processor() or platform.system()}",
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }
