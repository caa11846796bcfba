"""Conversion of nested states to tensors by name and a JSON tree, as a checkpoint stores them.

A state consists of dictionaries (keys: text or whole numbers), lists, tuples, tensors, numbers and
text. Each tensor is named by its path in the state; a marked dictionary takes its place, and that
of anything JSON does not have.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

_MARK = "$"  # key of a dictionary that replaces a tensor, a tuple or a dictionary


def flatten_state(state: Any) -> tuple[dict[str, Tensor], Any]:
    """Split a state into tensors by path and a tree that JSON can hold.

    Raises:
        TypeError: a value that is neither tensor, number, text, None nor a container of these.

    >>> import torch
    >>> tensors, tree = flatten_state({"net": {"w": torch.ones(2)}, "lr": (0.1, None), 3: "x"})
    >>> list(tensors), restore_state(tensors, tree)["lr"]
    (['net.w'], (0.1, None))
    """
    tensors: dict[str, Tensor] = {}
    return tensors, _flatten(state, "", tensors)


def restore_state(tensors: Mapping[str, Tensor], tree: Any) -> Any:
    """Return the state that :func:`flatten_state` split; KeyError if a tensor is missing."""
    if isinstance(tree, list):
        return [restore_state(tensors, item) for item in tree]
    if not isinstance(tree, dict):
        return tree
    kind = tree.get(_MARK)
    if kind == "tensor":
        return tensors[tree["name"]]
    if kind == "tuple":
        return tuple(restore_state(tensors, item) for item in tree["items"])
    if kind == "dict":
        return {key: restore_state(tensors, value) for key, value in tree["items"]}
    return {key: restore_state(tensors, value) for key, value in tree.items()}


def _flatten(value: Any, path: str, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, Tensor):
        name = path
        while name in tensors:  # paths may agree where keys hold dots
            name += "'"
        tensors[name] = value
        return {_MARK: "tensor", "name": name}
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, Mapping):
        items = [(key, _flatten(item, _join(path, key), tensors)) for key, item in value.items()]
        if all(isinstance(key, str) for key in value) and _MARK not in value:
            return dict(items)
        if not all(isinstance(key, (str, int)) for key in value):
            raise TypeError(f"{path or 'state'}: keys must be text or whole numbers")
        return {_MARK: "dict", "items": [list(item) for item in items]}
    if isinstance(value, (list, tuple)):
        flat = [_flatten(item, _join(path, i), tensors) for i, item in enumerate(value)]
        return {_MARK: "tuple", "items": flat} if isinstance(value, tuple) else flat
    raise TypeError(f"{path or 'state'}: cannot be saved: {type(value).__name__}")


def _join(path: str, key: object) -> str:
    return f"{path}.{key}" if path else str(key)


def not_finite(tensors: Mapping[str, Tensor]) -> list[str]:
    """Return the names of the tensors with NaN or infinite values.

    >>> import torch
    >>> not_finite({"a": torch.ones(2), "b": torch.tensor([1.0, torch.nan])})
    ['b']
    """
    return [name for name, tensor in tensors.items() if not bool(tensor.isfinite().all())]
