"""The protocol that every solver follows, and the loop that runs one."""

from collections.abc import Iterable, Mapping
from dataclasses import is_dataclass
from typing import Any, ClassVar, Protocol, TypeVar

from torch import Generator, Tensor

Stats = dict[str, float]
Result_co = TypeVar("Result_co", covariant=True)


class Callback(Protocol):
    """Function called after every step; a true answer stops the loop."""

    def __call__(self, step: int, stats: Stats) -> bool | None:
        """Receive the number of the step, from 0 on, and its statistics."""


class Solver(Protocol[Result_co]):
    """Iterative method that can be stopped after any step and continued bit for bit.

    A class with these six members is a solver, whatever it inherits from:

    >>> class Countdown:
    ...     count = 3
    ...     done = property(lambda self: self.count == 0)
    ...     progress = property(lambda self: 1 - self.count / 3)
    ...     def step(self):
    ...         self.count -= 1
    ...         return {"count": self.count}
    ...     def state_dict(self): return {"count": self.count}
    ...     def load_state_dict(self, state): self.count = state["count"]
    ...     def result(self): return "lift-off"
    >>> solver: Solver[str] = Countdown()
    >>> solver.load_state_dict({"count": 1})
    >>> solver.step(), solver.done, solver.result()
    ({'count': 0}, True, 'lift-off')
    """

    @property
    def done(self) -> bool:
        """Whether no step is left."""

    @property
    def progress(self) -> float:
        """Share of the work that is done, 0 to 1; an estimate where the end is not known."""

    def step(self) -> Stats:
        """Do one step and return its statistics."""

    def state_dict(self) -> dict[str, Any]:
        """Return all that changes: nested dictionaries of tensors, numbers and texts.

        Tensors may be the live ones; the caller saves or copies them before the next step.
        """

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from the state of a solver that was made with the same arguments."""

    def result(self) -> Result_co:
        """Return the result of the steps done so far."""


class Stateful:
    """Base class of objects whose state is the value of the attributes that ``STATE`` names.

    A value is a tensor, number, text, random stream or object with a state of its own, or a tuple,
    list, dictionary or dataclass of these. Keys are the names without leading underscores.
    """

    STATE: ClassVar[tuple[str, ...]] = ()

    def state_dict(self) -> dict[str, Any]:
        """Return all that :meth:`load_state_dict` needs to go on bit for bit; tensors are live."""
        return {name.lstrip("_"): _saved(getattr(self, name)) for name in self.STATE}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from the state of an object that was made with the same arguments."""
        for name in self.STATE:
            setattr(self, name, _restored(getattr(self, name), state[name.lstrip("_")]))


def _saved(value: Any) -> Any:
    if isinstance(value, Generator):
        return value.get_state()
    if hasattr(value, "state_dict"):
        return value.state_dict()
    if is_dataclass(value):
        return {name: _saved(one) for name, one in vars(value).items()}
    if isinstance(value, (list, tuple)):
        return type(value)(map(_saved, value))
    return dict(value) if isinstance(value, dict) else value


def _restored(own: Any, saved: Any) -> Any:
    """Return a saved value with the type and device of ``own``; objects with a state are kept."""
    if isinstance(own, Tensor):
        return saved.to(own)
    if isinstance(own, Generator):
        return own.set_state(saved.cpu())
    if hasattr(own, "load_state_dict"):
        own.load_state_dict(saved)
        return own
    kind: Any = type(own)
    if is_dataclass(own):
        return kind(**{name: _restored(one, saved[name]) for name, one in vars(own).items()})
    if isinstance(own, (list, tuple)) and len(own) == len(saved):
        return kind(map(_restored, own, saved))
    return kind(saved)


def notify(callbacks: Iterable[Callback], step: int, stats: Stats) -> bool:
    """Call every callback; return whether one of them asked to stop."""
    return any([bool(callback(step, stats)) for callback in callbacks])


def run(solver: Solver[Result_co], callbacks: Iterable[Callback] = ()) -> Result_co:
    """Step a solver until it is done or a callback asks to stop; return its result.

    Every callback is called as ``callback(step, stats)`` after each step, counted from 0 here.

    >>> class Halving:
    ...     x = 8.0
    ...     done = property(lambda self: self.x <= 1)
    ...     progress = property(lambda self: 1 / self.x)
    ...     def step(self):
    ...         self.x /= 2
    ...         return {"x": self.x}
    ...     def state_dict(self): return {"x": self.x}
    ...     def load_state_dict(self, state): self.x = state["x"]
    ...     def result(self): return self.x
    >>> run(Halving(), callbacks=[print])
    0 {'x': 4.0}
    1 {'x': 2.0}
    2 {'x': 1.0}
    1.0
    """
    callbacks = list(callbacks)
    step = 0
    while not solver.done and not notify(callbacks, step, solver.step()):
        step += 1
    return solver.result()
