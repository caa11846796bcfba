"""Compilation by numba with a cache on disk that is never needed.

A cache that is damaged, cannot be written or has no place (a read-only package and home) is rebuilt
or done without, with one warning.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numba
from numba.core.caching import FunctionCache

_warned: set[str] = set()


class _GuardedCache(FunctionCache):
    """Cache of compiled code whose failures are warnings."""

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        """Return the compiled code of a signature; None where the cache has none that is sound."""
        try:
            return super().load_overload(sig, target_context)  # type: ignore[no-untyped-call]
        except Exception as error:  # pickle raises errors of any kind
            _warn("damaged, compiled anew", error)
            self._attempt(self.flush)
            return None

    def save_overload(self, sig: Any, data: Any) -> None:
        """Store compiled code, if that is possible."""
        save = super().save_overload
        self._attempt(lambda: save(sig, data))  # type: ignore[no-untyped-call]

    def _attempt(self, write: Callable[[], object]) -> None:
        try:
            write()
        except Exception as error:
            _warn("not written, every run compiles anew", error)


def _warn(what: str, error: Exception) -> None:
    if what not in _warned:
        _warned.add(what)
        warnings.warn(
            f"cache of compiled code: {what} ({type(error).__name__}: {error}); "
            "NUMBA_CACHE_DIR can name another folder for it",
            stacklevel=2,
        )


def njit(**options: Any) -> Callable[[Callable[..., Any]], Any]:
    """Compile a function on first use, as ``numba.njit``, with compiled code kept on disk."""

    def decorate(function: Callable[..., Any]) -> Any:
        dispatcher = numba.njit(**options)(function)
        try:
            dispatcher._cache = _GuardedCache(function)  # type: ignore[no-untyped-call]
        except RuntimeError as error:  # no place for it
            _warn("not written, every run compiles anew", error)
        return dispatcher

    return decorate
