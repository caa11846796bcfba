"""Fault 37: a cache of compiled code that is damaged or cannot be written is never needed."""

import importlib.util
import itertools
import warnings

import numba
import pytest

from vitreous.core import jit

TEXT = (
    "from vitreous.core.jit import njit\n@njit(nogil=True)\ndef add(a, b):\n    return a + b + 7\n"
)
NUMBERS = itertools.count()


@pytest.fixture
def compiled_sum(tmp_path, monkeypatch):
    """Import a module with a compiled function; its cache is in ``tmp_path / "cache"``."""
    monkeypatch.setattr(numba.config, "CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(jit, "_warned", set())
    path = tmp_path / "sums.py"
    path.write_text(TEXT)

    def load():
        jit._warned.clear()
        spec = importlib.util.spec_from_file_location(f"sums{next(NUMBERS)}", path)
        module = importlib.util.module_from_spec(spec)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            spec.loader.exec_module(module)
            assert module.add(1, 2) == 10
        told = [str(w.message) for w in caught if "cache of compiled" in str(w.message)]
        return len(told), sum(module.add.stats.cache_hits.values())

    return load


def cache_files(folder, suffix):
    return [path for path in (folder / "cache").rglob("*") if path.suffix == suffix]


def test_fault_37_a_sound_cache_is_used(compiled_sum):
    assert compiled_sum() == (0, 0)
    assert compiled_sum() == (0, 1)


@pytest.mark.parametrize("suffix", [".nbi", ".nbc"])
@pytest.mark.parametrize("share", [0, 0.9])
def test_fault_37_a_cache_cut_short_is_rebuilt(compiled_sum, tmp_path, suffix, share):
    compiled_sum()
    for path in cache_files(tmp_path, suffix):
        content = path.read_bytes()
        path.write_bytes(content[: int(share * len(content))])
    assert compiled_sum() == (1, 0)
    assert compiled_sum() == (0, 1)


def test_fault_37_a_cache_that_cannot_be_written_is_done_without(compiled_sum, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("numba.core.caching.IndexDataCacheFile._open_for_write", full)
        assert compiled_sum() == (1, 0)
    assert compiled_sum() == (0, 0)


def test_fault_37_a_cache_without_a_place_is_done_without(compiled_sum, monkeypatch):
    monkeypatch.setattr("numba.core.caching.CacheImpl._locator_classes", [])
    assert compiled_sum() == (1, 0)
