"""Flags and panels of options that several commands have."""

from __future__ import annotations

from typing import Any

import typer

FLAGS: dict[str, Any] = {  # of fields whose flag is not their name without unit
    "particles": typer.Argument(metavar="PARTICLES"),
    "output": typer.Option("--output", "-o", metavar="FOLDER"),
    "symmetry": "--sym",
    "box_size": "--box",
    "pixel_size_angstrom": "--apix",
    "passthrough": typer.Option("--passthrough", metavar="FILE.cs"),
    "ctf_file": typer.Option("--ctf", metavar="FILE.txt"),
    "particles_per_micrograph": typer.Option("--particles-per-micrograph", metavar="FILE.txt"),
    "voltage_kv": "--kv",
    "cs_mm": "--cs",
    "amplitude_contrast": "--q0",
    "resume": "--continue",
    "quiet": typer.Option("--quiet", "-q"),
}
PANELS = {
    "Input files": (
        "pixel_size_angstrom",
        "passthrough",
        "data_root",
    ),
    "Optics of a stack without table": (
        "ctf_file",
        "particles_per_micrograph",
        "voltage_kv",
        "cs_mm",
        "amplitude_contrast",
    ),
    "Run": ("seed", "overwrite", "resume", "watch", "device", "threads", "quiet"),
}
IMAGE_FLAGS: dict[str, Any] = {  # of `prepare` and `backgrounds`
    "particles": typer.Argument(metavar="PARTICLES.star"),
    "target_pixel_size_angstrom": "--apix",
    "pixel_size_angstrom": "--input-apix",
}
IMAGE_PANELS = {
    "Size": ("box_size", "target_pixel_size_angstrom", "window"),
    "Grey values": ("normalise", "mask_diameter_angstrom", "ramp", "invert", "float16"),
}
HALF_MAPS: dict[str, Any] = {
    "half1": typer.Argument(metavar="HALF1.mrc"),
    "half2": typer.Argument(metavar="HALF2.mrc"),
}
TABLES: dict[str, Any] = {
    "source": typer.Argument(metavar="IN"),
    "output": typer.Argument(metavar="OUT"),
}
