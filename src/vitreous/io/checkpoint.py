"""Checkpoints that stay sound through a kill, a full disk or a flipped bit.

A checkpoint is a pair: ``step_00000012.<hash>.safetensors`` and ``step_00000012.json``, which holds
the name and SHA-256 of the tensor file and a hash of itself. The JSON file is written last, so it
always points to a complete tensor file.
"""

from __future__ import annotations

import hashlib
import json
import re
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from vitreous.core.errors import InputError
from vitreous.io.atomic import TEMPORARY_SUFFIX, atomic_file, atomic_write_text

_KEEP = 2
# Errors of restoring what is no state of the program, though its hash holds.
FORGED = (KeyError, TypeError, ValueError, IndexError, AttributeError, RuntimeError, OverflowError)
_NAME = re.compile(r"step_(\d{8,})\.json")


@dataclass(frozen=True)
class Checkpoint:
    """Saved state after ``step`` finished steps: CPU tensors by name, and JSON values."""

    step: int
    tensors: dict[str, Tensor] = field(repr=False)
    meta: dict[str, Any]


def _pack(tensors: Mapping[str, Tensor]) -> tuple[bytes, list[str]]:
    """Return safetensors bytes, and the names of complex tensors, which are stored as reals."""
    plain: dict[str, Tensor] = {}
    complex_names = [name for name, tensor in tensors.items() if tensor.is_complex()]
    seen: set[int] = set()
    for name, tensor in tensors.items():
        flat = tensor.detach().cpu()
        flat = torch.view_as_real(flat.resolve_conj()) if name in complex_names else flat
        flat = flat.contiguous()
        memory = flat.untyped_storage().data_ptr()
        if memory in seen:
            flat = flat.clone()  # the format refuses tensors that share memory
        seen.add(memory)
        plain[name] = flat
    return safetensors.torch.save(plain), complex_names


def _own_hash(record: Mapping[str, Any]) -> str:
    body = {key: value for key, value in record.items() if key != "sha256"}
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


def save_checkpoint(
    folder: Path | str, step: int, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]
) -> Path:
    """Save a checkpoint atomically, then remove all but the last two; return its JSON file.

    The folder holds checkpoints only and is created where missing (its parent must exist). Saving a
    step again replaces it. Tensors have any dtype and device, ``torch.Generator`` states (uint8)
    included; ``meta`` is anything that JSON can hold.

    Raises:
        ResourceError: disk full; earlier checkpoints stay.
        InputError: the folder cannot be written.
        TypeError: ``meta`` holds something that JSON cannot.
        ValueError: negative step.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = save_checkpoint(folder, 3, {"x": torch.ones(2)}, {"loss": 0.5})
    ...     load_checkpoint(folder)
    Checkpoint(step=3, meta={'loss': 0.5})
    """
    if step < 0:
        raise ValueError(f"step must not be negative, got {step}")
    folder = Path(folder)
    try:
        folder.mkdir(exist_ok=True)
    except OSError as error:
        raise InputError(f"{folder}: cannot be created ({error.strerror})") from error
    payload, complex_names = _pack(tensors)
    digest = hashlib.sha256(payload).hexdigest()
    record = {
        "step": step,
        "tensors": f"step_{step:08d}.{digest[:12]}.safetensors",
        "tensors_sha256": digest,
        "complex": complex_names,
        "meta": dict(meta),
    }
    record = json.loads(json.dumps(record))
    record["sha256"] = _own_hash(record)
    with atomic_file(folder / record["tensors"]) as stream:
        stream.write(payload)
    target = folder / f"step_{step:08d}.json"
    atomic_write_text(target, json.dumps(record, indent=1))
    _prune(folder, target)
    return target


def _step(path: Path) -> int:
    return int(path.stem.split("_")[1])


def _listed(folder: Path) -> list[Path]:
    """JSON files of a folder, newest step first."""
    records = [path for path in folder.glob("step_*.json") if _NAME.fullmatch(path.name)]
    return sorted(records, key=_step, reverse=True)


def _prune(folder: Path, newest: Path) -> None:
    """Remove all checkpoints but the newest and the last sound one before it, later steps too."""
    kept = {newest}
    used = {_tensor_name(newest)}
    for path in _listed(folder):
        if _step(path) < _step(newest) and len(kept) < _KEEP and _tensor_name(path) is not None:
            kept.add(path)
            used.add(_tensor_name(path))
        elif path != newest:
            path.unlink(missing_ok=True)
    stale = [path for path in folder.glob("step_*.safetensors") if path.name not in used]
    for path in [*stale, *folder.glob(f".step_*{TEMPORARY_SUFFIX}")]:
        path.unlink(missing_ok=True)


def _tensor_name(path: Path) -> str | None:
    """Name of a checkpoint's tensor file; None when its record is damaged."""
    record = _read_record(path)
    return None if isinstance(record, str) else str(record["tensors"])


def _read_record(path: Path) -> dict[str, Any] | str:
    """Return the checked JSON record, or the reason why it is unusable."""
    try:
        record = json.loads(path.read_bytes())
        sound = isinstance(record, dict) and record.get("sha256") == _own_hash(record)
    except (OSError, ValueError, RecursionError) as error:
        return f"unreadable ({error})"
    if not sound:
        return "its hash does not hold"
    name = str(record.get("tensors"))
    if Path(name).name != name or not (path.parent / name).is_file():
        return f"tensor file {name!r} is missing"
    return record


def _read(path: Path) -> Checkpoint | str:
    record = _read_record(path)
    if isinstance(record, str):
        return record
    try:
        payload = (path.parent / record["tensors"]).read_bytes()
    except OSError as error:
        return f"tensor file unreadable ({error.strerror})"
    if hashlib.sha256(payload).hexdigest() != record.get("tensors_sha256"):
        return "the hash of its tensors does not hold"
    try:
        tensors = safetensors.torch.load(payload)
        for name in record["complex"]:
            tensors[name] = torch.view_as_complex(tensors[name])
        return Checkpoint(int(record["step"]), tensors, dict(record["meta"]))
    except (safetensors.SafetensorError, *FORGED) as error:
        return f"cannot be restored ({type(error).__name__}: {error})"


def load_checkpoint(
    folder: Path | str, fault: Callable[[Checkpoint], str | None] = lambda _: None
) -> Checkpoint | None:
    """Load the newest sound checkpoint, with a warning of damaged ones; None where none was saved.

    Args:
        folder: of the checkpoints.
        fault: called with a checkpoint whose hashes hold; why it cannot be used, or None.

    Raises:
        InputError: all checkpoints of the folder are damaged.
    """
    folder = Path(folder)
    listed = _listed(folder)
    for path in listed:
        checkpoint = _read(path)
        reason = fault(checkpoint) if isinstance(checkpoint, Checkpoint) else checkpoint
        if isinstance(checkpoint, Checkpoint) and reason is None:
            return checkpoint
        warnings.warn(f"{path}: checkpoint skipped: {reason}", stacklevel=2)
    if listed:
        raise InputError(
            f"{folder}: none of {len(listed)} checkpoints is sound; start afresh in another folder"
        )
    return None
