"""Inputs of a simulation: maps, micrographs, backgrounds and samplers from files and text."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from vitreous.core.errors import InputError, UsageError
from vitreous.core.params import Optics
from vitreous.core.random import generator
from vitreous.core.rotation import euler_to_matrix
from vitreous.core.symmetry import point_group, symmetrise
from vitreous.data.maps import low_pass, read_map, resample_map
from vitreous.data.phantoms import protein_phantom
from vitreous.data.tables import ANGLES
from vitreous.io.atoms import atoms_to_density
from vitreous.io.ctffind import read_ctffind
from vitreous.io.mrc import read_mrc
from vitreous.io.star import read_star
from vitreous.physics import poses
from vitreous.physics.noise import BackgroundPatches, prepare_patches

MODEL_SUFFIXES = (".cif", ".mmcif", ".pdb", ".ent")
SYNTHETIC_MICROGRAPHS = 100
LOST_POWER = 0.01
SYMMETRIC_ENOUGH = 0.9


def load_volume(
    text: str,
    *,
    box_size: int,
    pixel_size_angstrom: float,
    input_apix: float | None = None,
    resolution_angstrom: float | None = None,
    sym: str = "C1",
) -> Tensor:
    """Load the map of a molecule, float32, from an atomic model, a map, or ``phantom:SEED``.

    ``input_apix`` overrides the pixel size of a map file, Å. The resolution is Nyquist if None. The
    molecule must nearly have the point group ``sym`` about RELION's axes, which is imposed.

    Raises:
        UsageError: unknown kind of input.
        InputError: the file is bad, the box too small, or the molecule does not have the symmetry.
    """
    group = point_group(sym)
    kind, _, number_text = text.partition(":")
    if kind == "phantom":
        return protein_phantom(
            box_size,
            pixel_size_angstrom,
            seed=whole_number(number_text, text),
            point_group=sym,
            resolution_angstrom=resolution_angstrom,
        )
    path = Path(text)
    if path.name.lower().removesuffix(".gz").endswith(MODEL_SUFFIXES):
        density = atoms_to_density(
            path,
            box_size=box_size,
            pixel_size_angstrom=pixel_size_angstrom,
            resolution_angstrom=resolution_angstrom,
        )
        volume = torch.from_numpy(density)
    else:
        volume = _from_map(path, box_size, pixel_size_angstrom, input_apix)
        if resolution_angstrom is not None:
            volume = low_pass(volume, pixel_size_angstrom, resolution_angstrom)
    if group.order == 1:
        return volume
    symmetric = symmetrise(volume, group)
    correlation = float(torch.corrcoef(torch.stack([volume.flatten(), symmetric.flatten()]))[0, 1])
    if correlation < SYMMETRIC_ENOUGH:
        raise InputError(
            f"{path}: not {sym} about RELION's axes (correlation {correlation:.2f} with its "
            "average); leave `symmetry` out or orient it first"
        )
    return symmetric


def _from_map(path: Path, box_size: int, pixel_size: float, override: float | None) -> Tensor:
    volume, pixel = read_map(path, override)
    resampled = resample_map(volume, pixel, box_size, pixel_size)
    if box_size * pixel_size / (len(volume) * pixel) < 1.0:
        edge = math.ceil(len(volume) * pixel / pixel_size) + 2
        whole = resample_map(volume, pixel, edge, pixel_size)
        lost = 1.0 - float(resampled.double().square().sum() / whole.double().square().sum())
        if lost > LOST_POWER:
            warnings.warn(
                f"{path}: {100 * lost:.0f} % of its power lies outside the box", stacklevel=2
            )
    return resampled


def load_micrographs(
    path: Path | None,
    *,
    seed: int,
    count: int | None = None,
    defocus_range_angstrom: tuple[float, float] = (10000.0, 25000.0),
    voltage_kv: float | None = None,
    cs_mm: float | None = None,
    amplitude_contrast: float | None = None,
    b_factor_angstrom2: float = 0.0,
) -> MicrographSet:
    """Load micrographs with their optics from CTFFIND4, or draw random ones.
    Args:
        path: CTFFIND4 results; if None, defocus is drawn uniformly from the range, with up to 2 %
            of astigmatism.
        seed: seed of the random defocus.
        count: number of micrographs, from the first on; all by default.
        voltage_kv, cs_mm, amplitude_contrast: if None, the file's comments, else 300, 2.7, 0.1.

    Raises:
        InputError: the file is bad or has fewer micrographs than ``count``.
    """
    table = None if path is None else read_ctffind(path)

    def first_known(override: float | None, name: str, default: float) -> float:
        return next(v for v in (override, getattr(table, name, None), default) if v is not None)

    common = {
        "voltage_kv": first_known(voltage_kv, "voltage_kv", 300.0),
        "cs_mm": first_known(cs_mm, "cs_mm", 2.7),
        "amplitude_contrast": first_known(amplitude_contrast, "amplitude_contrast", 0.1),
        "b_factor_angstrom2": b_factor_angstrom2,
    }
    if table is None:
        return _synthetic_micrographs(
            count or SYNTHETIC_MICROGRAPHS, defocus_range_angstrom, seed, common
        )
    if count is not None and count > len(table):
        raise InputError(
            f"{path}: rows: {len(table)} micrographs, fewer than `n_micrographs` {count}"
        )
    first = slice(0, count)
    return MicrographSet(table.micrograph_names[first], table.optics(**common)[first])


def _synthetic_micrographs(
    count: int, defocus_range: tuple[float, float], seed: int, common: dict[str, float]
) -> MicrographSet:
    low, high = defocus_range
    draw = torch.rand(3, count, generator=generator(seed, "simulate optics"))
    mean = low + (high - low) * draw[0]
    half_split = 0.01 * mean * draw[1]
    full = {name: torch.full((count,), value) for name, value in common.items()}
    defocus = mean + half_split, mean - half_split, 180.0 * draw[2]
    optics = Optics(*defocus, phase_shift_deg=torch.zeros(count), **full)
    return MicrographSet(tuple(f"micrograph_{i + 1:04d}.mrc" for i in range(count)), optics)


def load_background(
    path: Path,
    *,
    box_size: int,
    pixel_size_angstrom: float,
    n_micrographs: int,
    noise_apix: float | None = None,
    counts: Path | None = None,
) -> Background:
    """Load background patches at the images' pixel size and pair them with micrographs.

    ``path`` is an MRC stack of square patches, whose pixel size ``noise_apix`` overrides, Å.
    ``counts`` is a file of the number of patches of each micrograph, one per line, in the order of
    the CTF table. Without it patches are assigned to the micrographs in turn.

    Raises:
        InputError: bad file, no pixel size, a constant patch, too small a field, or wrong counts.
    """
    data, header = read_mrc(path)
    if data.shape[1] != data.shape[2]:
        raise InputError(
            f"{path}: data: patches of {data.shape[2]} x {data.shape[1]} are not square"
        )
    pixel = header.pixel_size_or(noise_apix)
    size = round(data.shape[-1] * pixel / pixel_size_angstrom)
    if size < box_size:
        raise InputError(
            f"{path}: size: patches of {data.shape[-1] * pixel:.0f} Å cannot fill images of "
            f"{box_size * pixel_size_angstrom:.0f} Å; give larger patches or a smaller box"
        )
    try:
        patches = prepare_patches(torch.from_numpy(data), size)
    except ValueError as error:
        raise InputError(f"{path}: data: {error}") from error
    if counts is None:
        pairs = torch.arange(max(len(patches), n_micrographs))
        return Background(patches, pairs % len(patches), pairs % n_micrographs)
    owner = owners(counts, len(patches))
    kept = owner < n_micrographs
    if not kept.any():
        raise InputError(f"{counts}: no patch belongs to the first {n_micrographs} micrographs")
    bare = n_micrographs - len(set(owner[kept].tolist()))
    if bare:
        warnings.warn(f"{bare} micrographs have no patch of their own and get any", stacklevel=2)
    return Background(patches, kept.nonzero().flatten(), owner[kept])


def owners(path: Path, n_patches: int) -> Tensor:
    """Read the micrograph ``(n_patches,)`` of each patch or particle from a file of counts.

    Raises:
        InputError: the file is no list of numbers, or they sum to less than ``n_patches``.
    """
    try:
        words = path.read_text("utf-8-sig").split()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read; give a text file of numbers") from error
    for line, word in enumerate(words, 1):
        if not word.isdecimal():
            raise InputError(f"{path}: line {line}: {word[:40]!r} is no count; give whole numbers")
    owner = torch.arange(len(words)).repeat_interleave(torch.tensor([int(w) for w in words]))
    if len(owner) < n_patches:
        raise InputError(f"{path}: counts sum to {len(owner)}, but there are {n_patches} images")
    return owner[:n_patches]


def parse_poses(text: str) -> poses.PoseSampler:
    """Parse ``uniform``, ``gaussian:SIGMA`` or ``star:FILE``.

    Raises:
        UsageError: any other text.
        InputError: the STAR file is bad or has no angles.

    >>> parse_poses("gaussian:3")
    GaussianEulerPoses(sigma=3.0)
    """
    kind, _, value = text.partition(":")
    if text == "uniform":
        return poses.UniformPoses()
    if kind == "gaussian":
        return poses.GaussianEulerPoses(number(value, f"`poses` {text}"))
    if kind == "star" and value:
        return poses.TablePoses(_table_rotations(Path(value)))
    raise UsageError(f"`poses` {text}: choose uniform, gaussian:SIGMA or star:FILE")


def _table_rotations(path: Path) -> Tensor:
    for block in read_star(path).blocks.values():
        if any(name in block for name in ANGLES) and len(block):
            columns = [torch.from_numpy(block.numbers(name, path)) for name in ANGLES]
            return euler_to_matrix(torch.stack(columns, dim=-1)).float()
    raise InputError(f"{path}: column _rlnAngleRot: missing; give a table with orientations")


def parse_shift(text: str, pixel_size_angstrom: float) -> poses.ShiftSampler:
    """Parse ``none``, ``triangular:WIDTH``, ``pixels:WIDTH`` (whole ones) or ``gaussian:SIGMA``; Å.

    Raises:
        UsageError: any other text.

    >>> parse_shift("gaussian:2.5", 1.0)
    GaussianShift(sigma_angstrom=2.5)
    """
    kind, _, value = text.partition(":")
    if text == "none":
        return poses.NoShift()
    if kind in ("triangular", "pixels", "gaussian"):
        width = number(value, f"`shift` {text}")
        if kind == "gaussian":
            return poses.GaussianShift(width)
        return poses.TriangularShift(width, pixel_size_angstrom if kind == "pixels" else None)
    raise UsageError(
        f"`shift` {text}: choose none, triangular:WIDTH, pixels:WIDTH or gaussian:SIGMA (Å)"
    )


def parse_range(text: str, option: str) -> tuple[float, float]:
    """Parse ``LOW:HIGH`` with 0 < LOW <= HIGH; UsageError for any other text.

    >>> parse_range("10000:20000", "`defocus`")
    (10000.0, 20000.0)
    """
    low, _, high = text.partition(":")
    values = number(low, f"{option} {text}"), number(high, f"{option} {text}")
    if not 0 < values[0] <= values[1]:
        raise UsageError(f"{option} {text}: give LOW:HIGH with 0 < LOW <= HIGH")
    return values


def parse_pair(text: str, option: str) -> tuple[float, float]:
    """Parse ``X:Y`` of two finite numbers; UsageError for any other text.

    >>> parse_pair("0.3:-0.1", "`beam_tilt_mrad`")
    (0.3, -0.1)
    """
    try:
        x, y = (float(part) for part in text.split(":"))
    except ValueError:
        x = y = math.nan
    if not math.isfinite(x + y):
        raise UsageError(f"{option} {text}: give two numbers, X:Y")
    return x, y


def number(text: str, where: str) -> float:
    """Parse a finite number that is not negative; UsageError for any other text."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and value >= 0):
        raise UsageError(f"{where}: {text!r} is no number; give one that is not negative")
    return value


def whole_number(text: str, where: str) -> int:
    """Parse a whole number that is not negative; UsageError for any other text."""
    if not text.isdecimal():
        raise UsageError(f"{where}: {text!r} is no whole number; give one, such as phantom:1")
    return int(text)


@dataclass(frozen=True)
class MicrographSet:
    """Names and optics of micrographs."""

    names: tuple[str, ...]
    optics: Optics


@dataclass(frozen=True)
class Background:
    """Background patches and the micrographs that they may be drawn for.

    Args:
        patches: ``(m, s, s)`` of zero mean and unit deviation, ``s`` at least the box.
        patch_index, micrograph_id: long ``(k,)``, the pairs; a patch or micrograph may recur.
    """

    patches: Tensor
    patch_index: Tensor
    micrograph_id: Tensor

    def sampler(self, names: tuple[str, ...]) -> BackgroundPatches:
        """Return a sampler of patches of an image's own micrograph, or any where it has none."""
        patches = self.patches[self.patch_index]
        return BackgroundPatches(patches, self.micrograph_id, "any", micrograph_names=names)
