"""Cases from the field whose files are foreign in layout or mode, from table to map."""

from __future__ import annotations

import shutil
import warnings
from pathlib import Path

import pytest
import torch

import vitreous as vt
from particle_files import volume

FAST = ("03-crlf/bom", "11-integer-modes/imod_u8")
CASES = {  # what `reconstruct` must reach: correlation with the map of the plain float32 stack
    **dict.fromkeys(("03-crlf/particles", "03-crlf/bom", "03-crlf/oldmac"), 1.0),
    **{f"04-star-layout/{name}": 1.0 for name in ("tight", "leading", "quoted", "upper")},
    **{f"11-integer-modes/{name}": 0.9999 for name in ("u16", "i16", "f16")},
    **{f"11-integer-modes/{name}": 0.9999 for name in ("i8", "imod_u8", "imod_i8")},
    "11-integer-modes/mode101": 0.998,  # 16 grey values
}


def correlation(a: torch.Tensor, b: torch.Tensor) -> float:
    return float(torch.corrcoef(torch.stack([a.flatten(), b.flatten()]).double())[0, 1])


def reconstructed(cases: Path, case: str, folder: Path) -> torch.Tensor:
    """The map of a copy of the case, as nothing may be written beside it."""
    from typer.testing import CliRunner

    from vitreous.cli.main import app

    shutil.copytree(cases / Path(case).parent, folder / "case")
    star, out = folder / "case" / f"{Path(case).name}.star", folder / "OUT"
    call = ["reconstruct", str(star), "--threads", "1", "-q", "-o", str(out)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # grey values are taken off and scaled
        done = CliRunner().invoke(app, call)
    assert done.exit_code == 0, done.output
    return volume(out / "map.mrc")


@pytest.fixture(scope="module")
def cases(shared_data: Path) -> Path:
    """Folder of the cases."""
    if not (folder := shared_data.parent / "cases").is_dir():
        pytest.skip("cases not found beside the data")
    return folder


@pytest.fixture(scope="module")
def plain(cases: Path, tmp_path_factory: pytest.TempPathFactory) -> torch.Tensor:
    """The map of a plain table and float32 images."""
    return reconstructed(cases, "11-integer-modes/ref", tmp_path_factory.mktemp("plain"))


@pytest.mark.parametrize(
    "case", [case if case in FAST else pytest.param(case, marks=pytest.mark.slow) for case in CASES]
)
def test_cases_03_04_11_come_to_the_true_map(
    cases: Path, plain: torch.Tensor, tmp_path: Path, case: str
) -> None:
    """40 images of ``phantom:3`` at 32 px."""
    result = reconstructed(cases, case, tmp_path)
    assert correlation(result, plain) > CASES[case] - 1e-6
    assert correlation(result, vt.phantom(32, 4.0, seed=3)) > 0.86
