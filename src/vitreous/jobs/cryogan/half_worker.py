"""Reconstruction of one half set, in a process of its own.

The two halves of a gold-standard run share nothing but the settings; as processes they also do not
wait for each other's Python. A worker talks to its parent through one pipe: it sends plain tuples,
and stops when the parent sends anything or is gone.
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
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vitreous.core.errors import VitreousError
from vitreous.core.fourier import fourier_resize
from vitreous.core.random import stream_seed
from vitreous.data.grey_values import GreyValues
from vitreous.data.simulation_inputs import parse_poses, parse_shift
from vitreous.data.working_images import SignedImages
from vitreous.jobs.cryogan.options import CryoGanOptions
from vitreous.jobs.inputs.particles import open_particles
from vitreous.jobs.run.checkpoints import RunCheckpoints
from vitreous.jobs.run.device import use_device
from vitreous.jobs.run.messages import one_line, plain_warnings, resource_shortage, say
from vitreous.jobs.run.signals import STOP_SIGNALS
from vitreous.methods.cryogan.config import CryoGanConfig
from vitreous.methods.cryogan.solver import STREAMS, CryoGan
from vitreous.optim.loop import Stats, run
from vitreous.physics.projector import oversampled_spectrum, project_spectrum
from vitreous.physics.simulator import Simulator

# messages: ("row", history row), ("state", row), ("mark", half, step, volume), ("done", Outcome),
# ("stopped",), ("error", exit code, text), ("bug", traceback)
ROWS = 80
STATE_INTERVAL_SECONDS = 0.5
EXAMPLES = 8
SNR_SAMPLE = 32


@dataclass(frozen=True)
class HalfJob:
    """Everything that the process of one half set needs, in plain values."""

    half: int  # 1 or 2
    options: CryoGanOptions
    rows: NDArray[np.int64]  # of the particles that are in this half set
    grey: GreyValues  # rule of the images' grey values
    config: CryoGanConfig
    box_size: int  # of the images, cropped
    pixel_size_angstrom: float  # at that box
    b_factor_angstrom2: float | None  # replaces that of the table; None keeps it
    device: str
    threads: int
    checkpoints: Path  # their folder
    marks: tuple[int, ...]  # steps after which the volume is sent
    resume: bool  # continue from the last checkpoint
    parent: int  # process number


@dataclass(frozen=True)
class Outcome:
    """Result of a half set."""

    volume: NDArray[np.float32]  # map ``(n, n, n)``
    examples: dict[str, NDArray[np.float32]]  # images by name, for the report
    seconds: float  # wall time, interruptions left out


class ParentGoneError(Exception):
    """The parent has died; nothing may be written any more."""


def work(job: HalfJob, link: Connection) -> None:
    """Run a half set, and tell the parent how it ended; the body of the process."""
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    try:
        link.send(attempt(job, link))
    except (ParentGoneError, ConnectionError, EOFError):
        return


def attempt(job: HalfJob, link: Connection) -> tuple[Any, ...]:
    """Run a half set and return its last message: done, stopped, or what went wrong."""
    run: HalfRun | None = None
    try:
        with plain_warnings():
            run = HalfRun(job, link)
            return run.run()
    except VitreousError as error:
        return "error", error.exit_code, f"half {job.half}: {one_line(error)}"
    except (ParentGoneError, ConnectionError, EOFError):
        raise
    except (Exception, MemoryError) as error:
        shortage = resource_shortage(error)
        if shortage is not None:
            return "error", 4, f"half {job.half}: {shortage}"
        refusal = None if run is None else run.checkpoints.refusal(error)
        if refusal is not None:
            return "error", refusal.exit_code, f"half {job.half}: {refusal}"
        return "bug", f"half {job.half}: {traceback.format_exc()}"


class HalfRun:
    """Solver of one half set, with its history and checkpoints."""

    def __init__(self, job: HalfJob, link: Connection) -> None:
        self._job, self._link = job, link
        device = use_device(job.device, job.threads)
        self._probe = torch.Generator(device)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the parent has shown them
            particles = open_particles(job.options).select(job.rows)
            simulator = build_simulator(job, particles, device)
        seed, half = job.options.seed, job.half
        generators = {
            name: torch.Generator(device).manual_seed(stream_seed(seed, f"half{half}/{name}"))
            for name in STREAMS
        }
        images = SignedImages(particles, job.grey)
        self.gan = CryoGan(images, simulator, job.config, generators)
        self.checkpoints = RunCheckpoints(
            job.checkpoints,
            resume=job.resume,
            save_seconds=60 * job.options.save_minutes,
            name=f"half {half}",
        )
        self._rows: list[dict[str, float]] = []
        self._sum, self._count = 0.0, 0
        self._last_state = time.monotonic()
        self._row_interval = max(5, job.config.iterations // ROWS)
        self._pieces = 1.0

    def _restore(self) -> None:
        if self.checkpoints.state:
            state = self.checkpoints.state
            self.gan.load_state_dict(state["solver"])
            self._rows, (self._sum, self._count) = state["rows"], state["wasserstein"]
            for row in self._rows:
                self._link.send(("row", row))
        self._pieces = float(self.gan.pieces)

    def run(self) -> tuple[Any, ...]:
        """Step until done or told to stop; return the last message."""
        self._restore()
        run(self.gan, [self._watch])
        self.save(last=True)
        if not self.gan.done:
            return ("stopped",)
        volume = self.gan.result().cpu().numpy()
        return "done", Outcome(volume, self._examples(), self.checkpoints.seconds())

    def _watch(self, step: int, stats: Stats) -> bool:
        """Send messages and save after a step; return whether to stop."""
        if os.getppid() != self._job.parent:
            raise ParentGoneError
        step = self.gan.iteration  # those of earlier runs included
        self.checkpoints.went_on = True
        if math.isfinite(stats["wasserstein"]):  # a skipped step has none
            self._sum += stats["wasserstein"]
            self._count += 1
        if stats["pieces"] > self._pieces:
            self._pieces = stats["pieces"]
            say(
                f"warning: half {self._job.half}: out of memory at step {step}; batches are now "
                f"taken in {self._pieces:.0f} pieces"
            )
        now = time.monotonic()
        if step % self._row_interval == 0 or self.gan.done:
            self._rows.append(self._row(step, stats))
            self._link.send(("row", self._rows[-1]))
        elif now - self._last_state > STATE_INTERVAL_SECONDS:
            self._last_state = now
            snr = self._rows[-1]["snr_db"] if self._rows else float("nan")
            numbers = {"step": step, "half": self._job.half, "snr_db": snr}
            self._link.send(("state", stats | numbers))
        if step in self._job.marks:
            volume = self.gan.result().cpu().numpy()
            self._link.send(("mark", self._job.half, step, volume))
        if self.checkpoints.due():
            self.save(last=False)
        return self._link.poll()

    def _row(self, step: int, stats: Stats) -> dict[str, float]:
        row = {
            "step": step,
            "half": self._job.half,
            "seconds": round(self.checkpoints.seconds(), 2),
            **{k: v for k, v in stats.items() if k != "iteration"},
            "wasserstein": self._sum / max(1, self._count),
            "snr_db": self._snr_db(),
        }
        self._sum, self._count = 0.0, 0
        return row

    def save(self, *, last: bool) -> None:
        """Write a checkpoint, unless a value in it is not finite or the parent is gone.

        Raises:
            DivergedError: not finite, and there will be no later one.
        """
        if os.getppid() != self._job.parent:
            raise ParentGoneError
        self.checkpoints.step = self.gan.iteration
        mean = [self._sum, self._count]
        state = {"solver": self.gan.state_dict(), "rows": self._rows, "wasserstein": mean}
        self.checkpoints.save(state, last=last, checked="solver")

    # ---------------------------------------------------------------- images

    def _simulate(self, count: int) -> dict[str, Tensor]:
        """Simulate images of the present volume without touching the run's random streams.

        The conditions are always the same: the probe's stream starts anew each time.
        """
        gan, probe = self.gan, self._probe.manual_seed(0)
        with torch.no_grad():
            spectrum = oversampled_spectrum(gan.volume())
            conditions = gan.simulator.draw(count, poses=probe, optics=probe)
            transfer = gan.simulator.ctf(conditions.row) * (4.0 / gan.n)
            seen = gan.log_signal.exp() * gan.simulator.clean(spectrum, conditions, transfer)
            noise = gan.log_noise.exp() * gan.simulator.noise_like(conditions.row, generator=probe)
            clean = project_spectrum(spectrum, conditions.rotations, gan.n)
            return {"clean": clean, "ctf": seen, "noise": noise}

    def _snr_db(self) -> float:
        """Return the power of simulated signal over that of noise, in dB; -99 for no signal."""
        images = self._simulate(SNR_SAMPLE)
        power = [float(images[k].var((-2, -1)).mean()) for k in ("ctf", "noise")]
        return 10 * math.log10(power[0] / power[1]) if min(power) > 0 else -99.0

    def _examples(self) -> dict[str, NDArray[np.float32]]:
        """Return the rows of the papers' figure 3."""
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


def build_simulator(job: HalfJob, particles: Any, device: Any) -> Simulator:
    """Return the imaging conditions of a half set, on the device.

    Raises:
        InputError: noise or pose files are bad.
    """
    optics = particles.optics.with_b_factor(job.b_factor_angstrom2)
    box, pixel = job.box_size, job.pixel_size_angstrom
    files = job.options.noise_files(invert=job.grey.dark)
    return Simulator(
        box,
        pixel,
        optics.to(device),
        particles.micrograph_id.to(device),
        poses=parse_poses(job.options.poses),
        shifts=parse_shift(job.options.shift, pixel),
        noise=files.load(particles.micrograph_names, box, pixel),
    )
