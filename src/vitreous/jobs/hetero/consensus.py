"""Poses to begin with where the table has none: all particles refined to one structure."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vitreous.core.errors import InputError
from vitreous.core.params import Pose
from vitreous.jobs.hetero.request import Request
from vitreous.jobs.inputs.particles import ParticleFiles
from vitreous.jobs.inputs.working_set import WorkingSet
from vitreous.jobs.refine import run as refine_run
from vitreous.jobs.refine.options import AutoOptions
from vitreous.jobs.run.folder import CHECKPOINTS, CONFIG, OutputFolder, read_config
from vitreous.jobs.run.messages import say

CONSENSUS = "consensus"
_ROUNDS = 12


def first_poses(request: Request, folder: OutputFolder, data: WorkingSet) -> tuple[Pose, float]:
    """The table's, or those of one structure that all particles are refined to.

    Args:
        request: of the run.
        folder: entered. The refinement in it is this run's: what an earlier one left was removed.
        data: the particles.

    Returns:
        poses, and the seconds that finding them took, interruptions left out.

    Raises:
        InputError: the particles agree on no structure.
    """
    if data.particles.pose is not None:
        return data.particles.pose, 0.0
    target = folder.path(CONSENSUS, CONFIG).parent
    told = _told(target)
    if not (told.get("status") == "finished" and told.get("solved")):
        say("no poses in the table: all particles are first refined to one structure")
        files, working, search = request.files, request.working, request.search
        found = refine_run.auto(
            AutoOptions(
                particles=files.path,
                pixel_size_angstrom=files.apix,
                passthrough=files.passthrough,
                data_root=files.data_root,
                allow_outside_root=files.allow_outside_root,
                permissive=files.permissive,
                output=target,
                symmetry=working.symmetry,
                box_size=working.box_size,
                mask_diameter_angstrom=working.mask_diameter_angstrom,
                invert=working.invert,
                ignore_ctf=working.ignore_ctf,
                skip_bad=working.skip_bad,
                seed=working.seed,
                device=working.device,
                threads=working.threads,
                images=search.images,
                starts=search.starts,
                tries=search.tries,
                rounds=_ROUNDS,
                keep_all=True,  # every particle is to be sorted
                resume=(target / CONFIG).is_file(),
                quiet=request.quiet,
            )
        )
        if not found.solved:
            raise InputError(
                f"{request.files.path}: no structure that all particles agree on, so there are no "
                f"poses to sort them with: {found.verdict}"
            )
    table = target / "particles.star"
    poses = ParticleFiles(table, allow_outside_root=True).open(need_ctf=False)
    if poses.pose is None or len(poses) != len(data.particles):
        raise InputError(f"{table}: does not have the poses of these particles; --overwrite it")
    return poses.pose, float(_told(target).get("seconds", 0.0))


def consensus_files(output: Path) -> tuple[str, ...]:
    """What an earlier run may have left of its refinement, which ``--overwrite`` removes."""
    folder = output / CONSENSUS
    if not folder.is_dir() or folder.is_symlink():
        return ()
    names = [name for name in (*refine_run.OUTPUTS, CONFIG) if (folder / name).is_file()]
    names += [f"{CHECKPOINTS}/{one.name}" for one in (folder / CHECKPOINTS).glob("step_*")]
    return tuple(f"{CONSENSUS}/{name}" for name in names)


def _told(folder: Path) -> dict[str, Any]:
    """The table ``[run]`` of a folder's ``config.toml``; empty where there is none."""
    path = folder / CONFIG
    if not path.is_file():
        return {}
    run: dict[str, Any] = read_config(path, "--overwrite the run").get("run", {})
    return run
