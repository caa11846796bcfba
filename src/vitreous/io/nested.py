"""Nested state of solvers and optimisers as a checkpoint holds it: tensors by name, the rest JSON.

A ``state_dict`` is dictionaries, lists and tuples, some with whole numbers for keys, of tensors,
numbers and texts. Tensors are taken out under the path that leads to them; in their place, and for
what JSON does not know, stands a mark.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

_MARK = "$"  # key of a dictionary that stands for something else


def flatten_state(state: Any) -> tuple[dict[str, Tensor], Any]:
    """Tensors by path, and a tree that JSON can hold.

    Raises:
        TypeError: something that is neither tensor, number, text, None nor made of them.

    >>> import torch
    >>> tensors, tree = flatten_state({"net": {"w": torch.ones(2)}, "lr": (0.1, None), 3: "x"})
    >>> list(tensors), restore_state(tensors, tree)["lr"]
    (['net.w'], (0.1, None))
    """
    tensors: dict[str, Tensor] = {}
    return tensors, _out(state, "", tensors)


def restore_state(tensors: Mapping[str, Tensor], tree: Any) -> Any:
    """What :func:`flatten_state` was given.

    Raises:
        KeyError: a tensor is missing.
    """
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


def _out(value: Any, path: str, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, Tensor):
        name = path
        while name in tensors:  # paths may agree where keys hold dots
            name += "'"
        tensors[name] = value
        return {_MARK: "tensor", "name": name}
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, Mapping):
        items = [(key, _out(item, _join(path, key), tensors)) for key, item in value.items()]
        if all(isinstance(key, str) for key in value) and _MARK not in value:
            return dict(items)
        if not all(isinstance(key, (str, int)) for key in value):
            raise TypeError(f"{path or 'state'}: keys must be texts or whole numbers")
        return {_MARK: "dict", "items": [list(item) for item in items]}
    if isinstance(value, (list, tuple)):
        found = [_out(item, _join(path, i), tensors) for i, item in enumerate(value)]
        return {_MARK: "tuple", "items": found} if isinstance(value, tuple) else found
    raise TypeError(f"{path or 'state'}: cannot be saved: {type(value).__name__}")


def _join(path: str, key: object) -> str:
    return f"{path}.{key}" if path else str(key)


def not_finite(tensors: Mapping[str, Tensor]) -> list[str]:
    """Names of the tensors with NaN or infinite values.

    >>> import torch
    >>> not_finite({"a": torch.ones(2), "b": torch.tensor([1.0, torch.nan])})
    ['b']
    """
    return [name for name, tensor in tensors.items() if not bool(tensor.isfinite().all())]
