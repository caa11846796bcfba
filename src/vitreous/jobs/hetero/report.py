"""What ``vitreous hetero run`` and ``cluster`` end with: tables, maps, page, and a few lines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from vitreous.core.params import Pose
from vitreous.data.particles import Particles
from vitreous.jobs.hetero.class_maps import cluster_verdict, resolution_text
from vitreous.jobs.hetero.output import (
    cluster_columns,
    latent_columns,
    write_class_maps,
    write_traversals,
)
from vitreous.jobs.run.class_tables import class_name, write_tables
from vitreous.jobs.run.folder import OutputFolder
from vitreous.jobs.run.progress import duration
from vitreous.jobs.run.summary import Done, settings_shown, subtitle
from vitreous.methods.hetero.class_maps import ClassMap, Traversal, class_rows
from vitreous.methods.hetero.clustering import Clusters
from vitreous.report.figures import Array
from vitreous.report.mixed import ClusterShown, MixedReport, write_mixed_report

_LATENTS_SHOWN = 6
_FEW = 0.02  # of the particles: a cluster to be wary of


@dataclass(frozen=True)
class Sorted:
    """Particles that have been sorted.

    Args:
        particles: in the order of the input.
        half_set: long ``(n,)``; None where nothing was reconstructed.
        latent: ``(n, d)``.
        clusters: what was found by density; their labels are those of ``maps``.
        pose: of each, where known.
        maps: of the classes; None for too few particles, and empty where none were made.
        traversals: of the classes, may be empty.
        pixel_size_angstrom: of all maps.
        passes: of sorting and searching; None where there could be only one.
        unsettled: the clusters still changed in the last of them.
    """

    particles: Particles
    half_set: Tensor | None
    latent: Tensor
    clusters: Clusters
    pose: Pose | None
    maps: Sequence[ClassMap | None]
    traversals: Sequence[Traversal]
    pixel_size_angstrom: float
    passes: int | None = None
    unsettled: bool = False


def write_results(
    folder: OutputFolder,
    found: Sorted,
    *,
    command: str,
    title: str,
    history: Sequence[Mapping[str, Any]] = (),
    seconds: float,
) -> Done:
    """Write every output but checkpoints and history.

    Raises:
        ResourceError: the disk is full.
    """
    label = found.clusters.label
    columns = latent_columns(found.latent) | cluster_columns(found.clusters, found.traversals)
    write_tables(
        folder, found.particles, columns, pose=found.pose, half_set=found.half_set, label=label
    )
    write_class_maps(folder, found.maps, found.pixel_size_angstrom)
    write_traversals(folder, found.traversals, found.pixel_size_angstrom)
    verdict = cluster_verdict(found.clusters)
    numbers = _numbers(found)
    folder.config["run"] |= {
        "verdict": verdict,
        "clusters": len(found.clusters),
        "sizes": found.clusters.sizes.tolist(),
        "unsorted": int((label < 0).sum()),
        "space": found.clusters.space,
        "seconds": round(seconds, 1),
    }
    page = MixedReport(
        title=title,
        subtitle=subtitle(command),
        verdict=verdict[0].upper() + verdict[1:] + ".",
        warnings=_warnings(found),
        key_numbers=numbers | {"time": duration(seconds)},
        settings=settings_shown(folder.config["options"]),
        plane=found.clusters.plane.numpy(),
        axes=axes_names(found.clusters.space),
        label=(label + 1).numpy(),
        columns=_columns(found),
        clusters=_shown(found),
        particles=len(found.particles),
        history=history,
    )
    write_mixed_report(folder.path("report.html"), page)
    return Done(verdict, _text(folder, found, numbers, seconds))


def axes_names(space: str) -> tuple[str, str]:
    """Of the embedding that is looked at."""
    if space == "umap":
        return "UMAP 1", "UMAP 2"
    return "principal component 1", "principal component 2"


def _numbers(found: Sorted) -> dict[str, str]:
    """The page's cards, and lines for the terminal."""
    numbers = {
        "particles": f"{len(found.particles):,}",
        "clusters": str(len(found.clusters)),
        "in none": f"{100 * float((found.clusters.label < 0).float().mean()):.1f} %",
        "latents": str(found.latent.shape[1]),
    }
    if found.passes is not None:
        numbers["passes"] = str(found.passes)
    return numbers


def _columns(found: Sorted) -> dict[str, Array]:
    """What the embedding can be coloured by, besides the class."""
    particles, latent = found.particles, found.latent
    columns = {
        f"latent {i + 1}": latent[:, i].numpy() for i in range(min(latent.shape[1], _LATENTS_SHOWN))
    }
    every = cluster_columns(found.clusters, found.traversals)
    if found.traversals:
        columns["along the class"] = every["vitreousComponent1"]
    columns["probability"] = every["vitreousClassProbability"]
    if particles.has_ctf:
        optics = particles.optics
        defocus = 0.5 * (optics.defocus_u_angstrom + optics.defocus_v_angstrom)
        columns["defocus (Å)"] = defocus.cpu().numpy()
    columns["micrograph"] = particles.micrograph_id.numpy()
    return columns


def _shown(found: Sorted) -> list[ClusterShown]:
    shown = []
    for k, rows in enumerate(class_rows(found.clusters.label, len(found.clusters))):
        one = found.maps[k] if found.maps else None
        way = found.traversals[k] if found.traversals else None
        shown.append(
            ClusterShown(
                name=f"class {k + 1}",
                size=len(rows),
                volume=None if one is None else one.volume.numpy(),
                resolution="" if one is None else resolution_text(one),
                path=() if way is None else tuple(v.numpy() for v in way.maps),
                share=None if way is None else way.path.share,
            )
        )
    return shown


def _warnings(found: Sorted) -> tuple[str, ...]:
    warnings = []
    if found.unsettled:
        warnings.append(
            "The clusters still changed in the last pass; give more (--passes), or look at what "
            "the classes have in common."
        )
    noise = float((found.clusters.label < 0).float().mean())
    if noise > 0.2:
        warnings.append(
            f"{100 * noise:.0f} % of the particles are in no cluster; --assign-all gives them to "
            "the nearest one."
        )
    total = len(found.particles)
    few = [k + 1 for k, n in enumerate(found.clusters.sizes.tolist()) if n < _FEW * total]
    if few:
        names = ", ".join(map(str, few))
        warnings.append(f"Of few particles, so look at the maps before believing in them: {names}.")
    if any(one is not None and one.halves is not None for one in found.maps):
        warnings.append(
            "The half maps of a class share the model that chose its particles: their FSC is too "
            "high where the model is wrong. Refine each class by itself before quoting it."
        )
    return tuple(warnings)


def _text(folder: OutputFolder, found: Sorted, numbers: Mapping[str, str], seconds: float) -> str:
    lines = [f"{name:<12} {value}" for name, value in numbers.items()]
    for shown in _shown(found):
        more = f", {shown.resolution}" if shown.resolution else ""
        lines.append(f"{shown.name:<12} {shown.size:,} particles{more}")
    first = folder.root / f"{class_name(1)}.star"
    lines += [
        f"time         {duration(seconds)}",
        f"tables       {folder.root / 'particles.star'}, one for each class from {first} on",
        f"report       {folder.root / 'report.html'}",
    ]
    return "\n".join(lines)
