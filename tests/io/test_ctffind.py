"""CTFFIND4 text: the program's own layout, the named table of EMPIAR-10061, damaged files."""

from __future__ import annotations

import gzip
import math
from pathlib import Path

import numpy as np
import pytest

from vitreous.core.errors import InputError
from vitreous.io.ctffind import read_ctffind

OWN = """# Output from CTFFind version 4.1.14, run on 2020-05-01 10:00:00
# Input file: Micrographs/mic_007.mrc ; Number of micrographs: 1
# Pixel size: 0.885 Angstroms ; acceleration voltage: 200.0 keV ; spherical aberration: 1.40 mm \
; amplitude contrast: 0.07
# Box size: 512 pixels ; min. res.: 30.0 Angstroms ; max. res.: 5.0 Angstroms
# Columns: #1 - micrograph number; #2 - defocus 1 [Angstroms]; #3 - defocus 2
1.000000 10792.5 10645.25 -37.5 1.570796 0.182 inf
"""


def test_the_program_s_own_layout(tmp_path: Path) -> None:
    path = tmp_path / "mic_007_ctf.txt"
    path.write_text(OWN)
    table = read_ctffind(path)
    assert table.micrograph_names == ("mic_007.mrc",)
    assert table.defocus_u_angstrom.tolist() == [10792.5]
    assert table.defocus_v_angstrom.tolist() == [10645.25]
    assert table.defocus_angle_deg.tolist() == [-37.5]
    assert table.phase_shift_deg[0] == pytest.approx(90.0, abs=1e-4)
    assert math.isinf(table.fit_resolution_angstrom[0])
    assert (table.pixel_size_angstrom, table.voltage_kv) == (0.885, 200.0)
    assert (table.cs_mm, table.amplitude_contrast) == (1.4, 0.07)


def test_several_micrographs_of_one_input_file_get_distinct_names(tmp_path: Path) -> None:
    path = tmp_path / "stack.txt"
    path.write_text(OWN + "2.0 11000 10900 12 0 0.1 4.0 99 98\n")
    assert read_ctffind(path).micrograph_names == ("000001@mic_007.mrc", "000002@mic_007.mrc")
    path.write_text("1 11000 10900 12 0 0.1 4.0\n")
    assert read_ctffind(path).micrograph_names == ("stack",)
    assert read_ctffind(path).voltage_kv is None


def test_real_table_with_names(shared_data: Path) -> None:
    table = read_ctffind(shared_data / "empiar10061" / "ctffind_1539.txt")
    assert len(table) == 1539
    assert table.micrograph_names[:2] == ("EMD-2984_0000.mrc", "EMD-2984_0001.mrc")
    assert len(set(table.micrograph_names)) == 1539
    assert table.defocus_u_angstrom[0] == 7923.343262
    assert table.defocus_angle_deg[3] == -88.166520
    assert np.all(table.defocus_u_angstrom >= table.defocus_v_angstrom)
    optics = table.optics(voltage_kv=300.0, cs_mm=2.7, amplitude_contrast=0.1)
    assert len(optics) == 1539
    assert optics.defocus_v_angstrom[1].item() == pytest.approx(8020.485)
    assert optics.voltage_kv.unique().tolist() == [300.0]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no rows"),
        ("# only\n", "no rows"),
        ("a.mrc 1 2 3\n", "line 1: 3 values, CTFFIND4 writes 7"),
        (OWN.replace("10645.25", "nan"), r"line 6: defocus 2: 'nan'"),
        (OWN.replace("10792.5", "inf"), r"line 6: defocus 1: 'inf'"),
        (OWN.replace("200.0 keV", "200.-1 keV"), r"comment: voltage: '200\.-1' is no number"),
        (OWN.replace("-37.5", "west"), r"line 6: azimuth of astigmatism: 'west'"),
    ],
)
def test_damaged_text_names_the_line(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "c.txt"
    path.write_text(text)
    with pytest.raises(InputError, match=message):
        read_ctffind(path)


def test_unreadable_files(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        read_ctffind(tmp_path / "absent.txt")
    (tmp_path / "b.txt").write_bytes(b"\xff\xfe\x80")
    with pytest.raises(InputError, match="not a text file"):
        read_ctffind(tmp_path / "b.txt")
    (tmp_path / "z.txt").write_bytes(gzip.compress(OWN.encode())[:-30])
    with pytest.raises(InputError, match="truncated"):
        read_ctffind(tmp_path / "z.txt")
