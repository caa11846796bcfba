"""Choice of the compute device."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vitreous.core.errors import UsageError

if TYPE_CHECKING:
    import torch


def use_device(name: str, threads: int = 0) -> torch.device:
    """Return the device of a name, and set the number of threads.

    Args:
        name: ``auto``, ``cpu``, ``cuda`` or ``cuda:i``.
        threads: CPU threads for torch; 0 leaves torch's choice.

    Raises:
        UsageError: unknown name, or no such device on this machine.

    >>> use_device("cpu").type
    'cpu'
    """
    kind, _, index = name.partition(":")
    if kind not in ("auto", "cpu", "cuda") or (":" in name and not index.isdecimal()):
        raise UsageError(f"`device` {name}: unknown device; choose auto, cpu, cuda or cuda:i")
    if index and kind != "cuda":
        raise UsageError(
            f"`device` {name}: only cuda takes a number; choose {kind} or cuda:{index}"
        )
    import torch

    if threads:
        torch.set_num_threads(threads)
    present = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if kind == "cpu" or (kind == "auto" and not present):
        return torch.device("cpu")
    if not present:
        raise UsageError(f"`device` {name}: no CUDA device is visible; use cpu")
    number = int(index or 0)
    if number >= present:
        raise UsageError(f"`device` {name}: only cuda:0 to cuda:{present - 1} are visible")
    return torch.device("cuda", number)
