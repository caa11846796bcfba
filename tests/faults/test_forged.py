"""Faults 20, 21, 28: checkpoints that are malicious, damaged, forged or not finite."""

import hashlib
import json
import pickle
import re
from pathlib import Path

import pytest
import safetensors.torch
import torch

import vitreous
from vitreous.core.errors import InputError
from vitreous.io.checkpoint import _own_hash
from vitreous.jobs.run.job import Job
from vitreous.jobs.run.options import RunOptions


class Walk:
    """A solver of four steps."""

    done = property(lambda self: self.count >= 4)
    progress = property(lambda self: self.count / 4)

    def __init__(self):
        self.x, self.count = torch.zeros(3), 0

    def step(self):
        self.x = self.x + torch.ones(3)
        self.count += 1
        return {"sum": float(self.x.sum())}

    def state_dict(self):
        return {"x": self.x, "count": self.count}

    def load_state_dict(self, state):
        self.x, self.count = state["x"], state["count"]

    def result(self):
        return self.x


class Stopped(BaseException):
    """The run ends here."""


def run(folder, *, steps=9, resume=False):
    with Job("toy", RunOptions(output=folder, quiet=True, resume=resume), outputs=()) as job:
        job.checkpoints._save_seconds = -1.0
        solver = Walk()
        step = solver.step

        def stepped():
            if solver.count == steps:
                raise Stopped
            return step()

        solver.step = stepped
        return job.run(solver, "walk", rows=None).tolist()


@pytest.fixture
def stopped(tmp_path):
    """A run with checkpoints of its steps 2 and 3."""
    with pytest.raises(Stopped):
        run(tmp_path / "OUT", steps=3)
    return tmp_path / "OUT"


def forge(path, change, tensors=None):
    """Change a checkpoint's record, and its tensors, with hashes that hold."""
    record = json.loads(path.read_text())
    change(record)
    if tensors is not None:
        content = tensors if isinstance(tensors, bytes) else safetensors.torch.save(tensors)
        (path.parent / record["tensors"]).write_bytes(content)
        record["tensors_sha256"] = hashlib.sha256(content).hexdigest()
    record["sha256"] = _own_hash(record)
    path.write_text(json.dumps(record))


def deep(record):
    tree = []
    for _ in range(900):
        tree = [tree]
    record["meta"]["tree"] = tree


BAD = {
    "tensor missing": lambda p: forge(p, lambda r: None, {"other": torch.ones(3)}),
    "NaN": lambda p: forge(p, lambda r: None, {"stage.solver.x": torch.full((3,), torch.nan)}),
    "header of 2^62 bytes": lambda p: forge(p, lambda r: None, (2**62).to_bytes(8, "little")),
    "no meta": lambda p: forge(p, lambda r: r.pop("meta")),
    "meta a list": lambda p: forge(p, lambda r: r.update(meta=[1])),
    "tree a list": lambda p: forge(p, lambda r: r["meta"].update(tree=[1])),
    "deep tree": lambda p: forge(p, deep),
    "seconds a text": lambda p: forge(p, lambda r: r["meta"].update(seconds="long")),
    "step a list": lambda p: forge(p, lambda r: r.update(step=[1])),
    "kept a number": lambda p: forge(p, lambda r: r["meta"]["tree"].update(kept=5)),
    "stage a list": lambda p: forge(p, lambda r: r["meta"]["tree"].update(stage=[1])),
    "rows a text": lambda p: forge(p, lambda r: r["meta"]["tree"].update(rows="x")),
    "brackets": lambda p: p.write_text("[" * 100_000),
    "tensors a list": lambda p: forge(p, lambda r: r.update(tensors=[1])),
    "bit flipped": lambda p: p.write_bytes(p.read_bytes().replace(b"walk", b"wolk")),
}


@pytest.mark.parametrize("fault", BAD)
def test_fault_21_the_checkpoint_before_a_bad_one_is_taken(stopped, fault):
    newest = max(stopped.glob("checkpoints/*.json"))
    BAD[fault](newest)
    with pytest.warns(UserWarning, match="checkpoint skipped"):
        assert run(stopped, resume=True) == [4.0] * 3


def test_fault_21_without_another_checkpoint_it_is_refused(stopped):
    for path in stopped.glob("checkpoints/*.json"):
        BAD["NaN"](path)
    with (
        pytest.warns(UserWarning, match="is not a number"),
        pytest.raises(InputError, match="none of 2 checkpoints is sound"),
    ):
        run(stopped, resume=True)


@pytest.mark.parametrize("shape", [(4,), (2, 2)])
def test_fault_21_a_state_that_does_not_fit_is_refused_by_name(stopped, shape):
    path = max(stopped.glob("checkpoints/*.json"))
    forge(path, lambda r: None, {"stage.solver.x": torch.ones(shape)})
    with pytest.raises(InputError, match=rf"{path.name}: the checkpoint does not fit") as caught:
        run(stopped, resume=True)
    assert "remove it to go on from the one before" in str(caught.value)
    path.unlink()
    assert run(stopped, resume=True) == [4.0] * 3


def test_an_error_after_the_first_step_is_not_blamed_on_the_checkpoint(stopped, monkeypatch):
    monkeypatch.setattr(Walk, "result", lambda self: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run(stopped, resume=True)


class Payload:
    def __reduce__(self):
        return (Path.write_text, (Path("executed"), "x"))


def test_fault_20_a_pickle_is_never_loaded(tmp_path, monkeypatch, stopped, vitreous):
    monkeypatch.chdir(tmp_path)
    torch.save({"x": torch.ones(2), "y": Payload()}, tmp_path / "a.pt")
    (tmp_path / "b.cs").write_bytes(pickle.dumps(Payload()))
    path = max(stopped.glob("checkpoints/*.json"))
    forge(path, lambda r: None, (tmp_path / "a.pt").read_bytes())
    with pytest.warns(UserWarning, match="checkpoint skipped"):
        run(stopped, resume=True)
    for name in ("a.pt", "b.cs"):
        code, _, err = vitreous("info", tmp_path / name)
        assert (code, "Traceback" in err) == (3, False), err
        code, _, err = vitreous("check", tmp_path / name)
        assert (code, "Traceback" in err) == (3, False), err
    assert not (tmp_path / "executed").exists()


def test_fault_20_the_program_has_no_call_that_unpickles():
    root = Path(vitreous.__file__).parent
    calls = re.compile(r"(?<!safetensors\.)\btorch\.load\(|\bpickle\.loads?\(|allow_pickle=True")
    assert [p for p in root.rglob("*.py") if calls.search(p.read_text())] == []
