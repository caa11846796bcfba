"""One half set's reconstruction, in a process of its own.

The two halves of a gold-standard run share nothing but the settings; as processes they also do not
wait for each other's Python. A worker talks to its parent through one pipe: it sends plain tuples
(see :data:`MESSAGES`), and stops when it is told anything or when the parent is gone.
"""

from __future__ import annotations

import math
import os
import signal
import time
import traceback
import warnings
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from vitreous.core.errors import DivergedError, VitreousError
from vitreous.core.random import stream_seed
from vitreous.data.noise_files import NoiseFiles
from vitreous.data.simulation_inputs import parse_poses, parse_shift
from vitreous.data.working_images import SignedImages
from vitreous.jobs.inputs.particles import ParticleFiles
from vitreous.jobs.run.device import use_device
from vitreous.jobs.run.messages import one_line, plain_warnings, resource_shortage, say
from vitreous.jobs.run.signals import STOP_SIGNALS
from vitreous.methods.cryogan.config import CryoGanConfig
from vitreous.methods.cryogan.solver import STREAMS, CryoGan
from vitreous.optim.loop import Stats

if TYPE_CHECKING:
    from torch import Tensor

    from vitreous.physics.simulator import Simulator

# ("row", history row), ("state", row), ("mark", number, volume), ("done", Outcome), ("stopped",),
# ("error", exit code, text), ("bug", traceback)
MESSAGES = ("row", "state", "mark", "done", "stopped", "error", "bug")
ROWS = 80
STATE_INTERVAL_SECONDS = 0.5
EXAMPLES = 8
SNR_SAMPLE = 32


@dataclass(frozen=True)
class HalfImaging:
    """What is assumed of the microscope: texts as on the command line, Å and Å²."""

    box_size: int
    pixel_size_angstrom: float
    poses: str
    shift: str
    b_factor_angstrom2: float | None
    invert: bool


@dataclass(frozen=True)
class HalfJob:
    """Everything that one half's process needs, in plain values.

    Args:
        half: 1 or 2.
        files, rows: the particles, and which of them are this half's.
        noise, imaging, config, seed: settings.
        device, threads: where to compute.
        checkpoints: folder; checkpoint_seconds: how often to save there.
        marks: iterations after which the volume is sent.
        resume: go on from the last checkpoint.
        parent: process number of the parent.
    """

    half: int
    files: ParticleFiles
    rows: NDArray[np.int64]
    noise: NoiseFiles
    imaging: HalfImaging
    config: CryoGanConfig
    seed: int
    device: str
    threads: int
    checkpoints: Path
    checkpoint_seconds: float
    marks: tuple[int, ...]
    resume: bool
    parent: int


@dataclass(frozen=True)
class Outcome:
    """A finished half: its map, example images by name, and the seconds it took."""

    volume: NDArray[np.float32]
    examples: dict[str, NDArray[np.float32]]
    seconds: float


class _ParentGoneError(Exception):
    """The parent has died; nothing may be written any more."""


def work(job: HalfJob, link: Connection) -> None:
    """Body of the process: run, and tell the parent how it ended."""
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    try:
        link.send(_attempt(job, link))
    except (_ParentGoneError, ConnectionError, EOFError):
        return


def _attempt(job: HalfJob, link: Connection) -> tuple[Any, ...]:
    """The last message: done, stopped, or what went wrong."""
    try:
        with plain_warnings():
            return _Half(job, link).run()
    except VitreousError as error:
        return "error", error.exit_code, f"half {job.half}: {one_line(error)}"
    except (_ParentGoneError, ConnectionError, EOFError):
        raise
    except (Exception, MemoryError) as error:
        shortage = resource_shortage(error)
        if shortage is not None:
            return "error", 4, f"half {job.half}: {shortage}"
        return "bug", f"half {job.half}: {traceback.format_exc()}"


class _Half:
    """The solver of one half with its clock, history and checkpoints."""

    def __init__(self, job: HalfJob, link: Connection) -> None:
        import torch

        self._job, self._link = job, link
        place = use_device(job.device, job.threads)
        self._probe = torch.Generator(place)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the parent has shown them
            particles = job.files.open().select(job.rows)
            simulator = build_simulator(job, particles, place)
        generators = {
            name: torch.Generator(place).manual_seed(
                stream_seed(job.seed, f"half{job.half}/{name}")
            )
            for name in STREAMS
        }
        images = SignedImages(particles, invert=job.imaging.invert)
        self.gan = CryoGan(images, simulator, job.config, generators)
        self._rows: list[dict[str, float]] = []
        self._sum, self._count = 0.0, 0
        self._seconds_before = 0.0
        self._started = self._saved = self._told = time.monotonic()
        self._every = max(5, job.config.iterations // ROWS)
        if job.resume:
            self._resume()
        self._pieces = float(self.gan.pieces)

    def run(self) -> tuple[Any, ...]:
        """Steps until done or told to stop; the last message."""
        from vitreous.optim.loop import repeat

        gan = self.gan
        repeat(gan.step, gan.iteration, gan.config.iterations, [self._watch])
        self._save(last=True)
        if not gan.done:
            return ("stopped",)
        volume = gan.result().cpu().numpy()
        return "done", Outcome(volume, self._examples(), self._seconds())

    def _seconds(self) -> float:
        return self._seconds_before + time.monotonic() - self._started

    def _watch(self, step: int, stats: Stats) -> bool:
        """After each step: history, messages, checkpoint; whether to stop."""
        if os.getppid() != self._job.parent:
            raise _ParentGoneError
        if math.isfinite(stats["wasserstein"]):  # a skipped step has none
            self._sum += stats["wasserstein"]
            self._count += 1
        if stats["pieces"] > self._pieces:
            self._pieces = stats["pieces"]
            say(
                f"warning: half {self._job.half}: out of memory at step {step + 1}; batches are "
                f"now taken in {self._pieces:.0f} pieces"
            )
        now = time.monotonic()
        if (step + 1) % self._every == 0 or self.gan.done:
            self._rows.append(self._row(step, stats))
            self._link.send(("row", self._rows[-1]))
        elif now - self._told > STATE_INTERVAL_SECONDS:
            self._told = now
            snr = self._rows[-1]["snr_db"] if self._rows else float("nan")
            state = stats | {"step": step + 1, "half": self._job.half, "snr_db": snr}
            self._link.send(("state", state))
        if step + 1 in self._job.marks:
            volume = self.gan.result().cpu().numpy()
            self._link.send(("mark", self._job.half, step + 1, volume))
        if now - self._saved > self._job.checkpoint_seconds:
            self._save(last=False)
            self._saved = time.monotonic()
        return self._link.poll()

    def _row(self, step: int, stats: Stats) -> dict[str, float]:
        row = {
            "step": step + 1,
            "half": self._job.half,
            "seconds": round(self._seconds(), 2),
            **{k: v for k, v in stats.items() if k != "iteration"},
            "wasserstein": self._sum / max(1, self._count),
            "snr_db": self._snr_db(),
        }
        self._sum, self._count = 0.0, 0
        return row

    # ---------------------------------------------------------------- images

    def _simulate(self, count: int) -> dict[str, Tensor]:
        """Images of the present volume under drawn conditions, without touching the run's streams.

        Always the same conditions: the probe's stream starts anew each time.
        """
        import torch

        from vitreous.physics.projector import oversampled_spectrum, project_spectrum

        gan, probe = self.gan, self._probe.manual_seed(0)
        with torch.no_grad():
            spectrum = oversampled_spectrum(gan.volume())
            conditions = gan.simulator.draw(count, poses=probe, optics=probe)
            transfer = gan.simulator.ctf(conditions.row) * (4.0 / gan.n)
            seen = gan.log_signal.exp() * gan.simulator.clean(spectrum, conditions, transfer)
            noise = gan.log_noise.exp() * gan.simulator.noise_like(conditions.row, generator=probe)
            return {
                "clean": project_spectrum(spectrum, conditions.rotations, gan.n),
                "ctf": seen,
                "noise": noise,
            }

    def _snr_db(self) -> float:
        """Power of simulated signal over that of noise, in dB; -99 for no signal."""
        import math

        images = self._simulate(SNR_SAMPLE)
        power = [float(images[k].var((-2, -1)).mean()) for k in ("ctf", "noise")]
        return 10 * math.log10(power[0] / power[1]) if min(power) > 0 else -99.0

    def _examples(self) -> dict[str, NDArray[np.float32]]:
        """The rows of the papers' figure 3."""
        import torch

        from vitreous.core.fourier import fourier_resize

        images = self._simulate(EXAMPLES)
        count = min(EXAMPLES, len(self.gan.images))
        real = fourier_resize(self.gan.images.read(torch.arange(count)), self.gan.n, 2)
        shown = {
            "clean_projections": images["clean"],
            "ctf_projections": images["ctf"],
            "simulated_images": images["ctf"] + images["noise"],
            "real_images": real,
        }
        return {name: value.cpu().float().numpy() for name, value in shown.items()}

    # ---------------------------------------------------------------- checkpoints

    def _save(self, *, last: bool) -> None:
        """Write a checkpoint, unless a value in it is not finite or the parent is gone.

        Raises:
            DivergedError: not finite, and there will be no later one.
        """
        from vitreous.io.checkpoint import save_checkpoint

        tensors = self.gan.tensors()
        broken = [k for k, v in tensors.items() if not bool(v.isfinite().all())]
        if broken and not last:
            say(f"warning: half {self._job.half}: {broken[0]} is not finite; nothing was saved")
            return
        if broken:
            raise DivergedError(
                f"{broken[0]} is not finite, so it was not saved; continue from the last "
                "checkpoint with lower learning rates"
            )
        if os.getppid() != self._job.parent:
            raise _ParentGoneError
        meta = {
            "counters": self.gan.counters(),
            "rows": self._rows,
            "wasserstein": [self._sum, self._count],
            "seconds": self._seconds(),
        }
        save_checkpoint(self._job.checkpoints, self.gan.iteration, tensors, meta)

    def _resume(self) -> None:
        from vitreous.io.checkpoint import load_checkpoint

        found = load_checkpoint(self._job.checkpoints)
        if found is None:
            say(f"half {self._job.half}: no checkpoint yet, starts from the beginning")
            return
        meta = found.meta
        self.gan.load(found.tensors, meta["counters"])
        self._rows = meta["rows"]
        self._sum, self._count = meta["wasserstein"]
        self._seconds_before = meta["seconds"]
        for row in self._rows:
            self._link.send(("row", row))


def build_simulator(job: HalfJob, particles: Any, place: Any) -> Simulator:
    """Imaging conditions of a half set, on the device.

    Raises:
        InputError: noise or pose files are bad.
    """
    import dataclasses

    import torch

    from vitreous.physics.simulator import Simulator

    imaging, optics = job.imaging, particles.optics
    if imaging.b_factor_angstrom2 is not None:
        b_factor = torch.full_like(optics.b_factor_angstrom2, imaging.b_factor_angstrom2)
        optics = dataclasses.replace(optics, b_factor_angstrom2=b_factor)
    pixel = imaging.pixel_size_angstrom
    return Simulator(
        imaging.box_size,
        pixel,
        optics.to(place),
        particles.micrograph_id.to(place),
        poses=parse_poses(imaging.poses),
        shifts=parse_shift(imaging.shift, pixel),
        noise=job.noise.load(particles.micrograph_names, imaging.box_size, pixel),
    )
