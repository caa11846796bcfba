import gzip

import numpy as np
import pytest

from vitreous.io.mrc import write_mrc


def facts(out):
    return {line[:14].strip(): line[14:] for line in out.splitlines()}


def test_map_and_stack(vitreous, tmp_path):
    data = np.arange(4 * 6 * 6, dtype=np.float32).reshape(4, 6, 6)
    write_mrc(tmp_path / "a.mrcs", data, 1.5, is_stack=True)
    code, out, _ = vitreous("info", tmp_path / "a.mrcs")
    assert code == 0
    found = facts(out)
    assert found["kind"] == "stack of images"
    assert found["size"] == "4 images of 6 x 6"
    assert found["pixel size"] == "1.5 Å"
    assert found["values"] == f"0 to 143, mean 71.5, deviation {data.std():.5g}"
    data[0, 0, 0] = np.nan
    write_mrc(tmp_path / "b.mrc", data, 2.0)
    (tmp_path / "b.mrc.gz").write_bytes(gzip.compress((tmp_path / "b.mrc").read_bytes()))
    for name in ("b.mrc", "b.mrc.gz"):
        found = facts(vitreous("info", tmp_path / name)[1])
        assert (found["kind"], found["size"]) == ("map", "6 x 6 x 4")
        assert found["bad values"] == "1 are NaN or infinite"


def test_statistics_do_not_depend_on_chunks(vitreous, tmp_path, monkeypatch):
    from vitreous.data import describe

    data = np.random.default_rng(0).normal(5, 2, (7, 5, 5)).astype(np.float32)
    write_mrc(tmp_path / "a.mrcs", data, 1.0, is_stack=True)
    whole = vitreous("info", tmp_path / "a.mrcs")[1]
    monkeypatch.setattr(describe, "_CHUNK_VALUES", 50)
    assert vitreous("info", tmp_path / "a.mrcs")[1] == whole


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("empiar10061/ctffind_1539.txt", {"micrographs": "1539"}),
        ("models/5a1a.cif.gz", {"kind": "atomic model", "extent": "181 x 136 x 92 Å"}),
        ("relion/relion31.star", {"particles": "5", "orientations": "given"}),
        ("relion/empiar_10076_7.star", {"box": "320 px", "stacks": "1, all found"}),
        ("empiar10061/particles_192.mrcs", {"mode": "12 (float16)", "pixel size": "1.274 Å"}),
    ],
)
def test_real_files(vitreous, shared_data, path, expected):
    code, out, _ = vitreous("info", shared_data / path)
    assert code == 0
    assert facts(out).items() >= expected.items()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("none.mrc", None),
        ("short.mrc", b"12"),
        ("cut.star", b"data_\nloop_\n_a\n_b\n1\n"),
        ("odd.xyz", b"1"),
        ("bad.txt", b"words words\n"),
        ("bad.cif", b"no model"),
    ],
)
def test_bad_files_are_one_line_and_code_3(vitreous, tmp_path, name, content):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    code, out, err = vitreous("info", tmp_path / name)
    assert (code, out) == (3, "")
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert name in err
