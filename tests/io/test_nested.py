import json
from pathlib import Path

import pytest
import torch

from vitreous.io.checkpoint import load_checkpoint, save_checkpoint
from vitreous.io.nested import flatten_state, not_finite, restore_state


def test_state_of_a_training_comes_back_bit_by_bit(tmp_path: Path) -> None:
    net = torch.nn.Linear(3, 2)
    optimiser = torch.optim.Adam(net.parameters(), lr=0.1 + 0.2)
    net(torch.ones(3)).sum().backward()
    optimiser.step()
    generator = torch.Generator().manual_seed(3)
    state = {
        "net": net.state_dict(),
        "optimiser": optimiser.state_dict(),
        "generator": generator.get_state(),
        "counts": (1, [2.5, None], True, "text"),
        "$": "a mark as key",
        "empty": {},
    }
    tensors, tree = flatten_state(state)
    save_checkpoint(tmp_path, 1, tensors, {"tree": tree})
    found = load_checkpoint(tmp_path)
    assert found is not None
    back = restore_state(found.tensors, found.meta["tree"])
    assert back["counts"] == state["counts"]
    assert back["$"] == "a mark as key"
    assert back["empty"] == {}
    assert torch.equal(back["net"]["weight"], net.weight)
    assert set(back["optimiser"]["state"]) == {0, 1}
    assert back["optimiser"]["param_groups"][0]["lr"] == 0.1 + 0.2
    other = torch.optim.Adam(torch.nn.Linear(3, 2).parameters())
    other.load_state_dict(back["optimiser"])
    generator.set_state(back["generator"])


def test_names_that_agree_stay_apart() -> None:
    state = {"a.b": torch.zeros(1), "a": {"b": torch.ones(1)}}
    tensors, tree = flatten_state(state)
    back = restore_state(tensors, json.loads(json.dumps(tree)))
    assert (back["a.b"].item(), back["a"]["b"].item()) == (0, 1)


def test_what_cannot_be_saved_is_named() -> None:
    with pytest.raises(TypeError, match=r"a\.0: cannot be saved: set"):
        flatten_state({"a": [{1}]})
    with pytest.raises(TypeError, match="keys must be"):
        flatten_state({"a": {1.5: 2}})
    assert not_finite({"x": torch.tensor([torch.inf]), "y": torch.zeros(0)}) == ["x"]
