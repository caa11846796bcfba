"""CryoGAN: images as the critic sees them, constraints, stages, NaN, exact resumption."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from vitreous.core.errors import DivergedError
from vitreous.core.fourier import fourier_resize
from vitreous.core.grid import frequency_grid, radius_grid, shell_index
from vitreous.core.images import ImageCache, normalise_images
from vitreous.core.params import Optics
from vitreous.core.resample import dihedral_images
from vitreous.core.rotation import random_rotations
from vitreous.data.phantoms import protein_phantom
from vitreous.methods.adversarial.matched_filter import at_box, matched_weight
from vitreous.methods.cryogan import solver as cryogan
from vitreous.methods.cryogan.config import TrainingStage
from vitreous.methods.cryogan.presets import default_config, default_stages, paper_config
from vitreous.methods.cryogan.solver import STREAMS, CryoGan, CryoGanConfig
from vitreous.physics.ctf import ctf_half
from vitreous.physics.noise import BackgroundPatches, prepare_patches
from vitreous.physics.poses import TriangularShift
from vitreous.physics.projector import oversampled_spectrum
from vitreous.physics.simulator import Simulator, simulate

PIXEL = 8.0
ALIKE = torch.ones(1)  # a CTF, where it does not matter
Stats = dict[str, float]


@dataclass
class Images:
    """Particles in memory."""

    stack: Tensor

    @property
    def box_size(self) -> int:
        return int(self.stack.shape[-1])

    def __len__(self) -> int:
        return len(self.stack)

    def read(self, indices: Tensor) -> Tensor:
        return self.stack[indices]


def _streams(seed: int = 0) -> dict[str, torch.Generator]:
    return {k: torch.Generator().manual_seed(100 * seed + i) for i, k in enumerate(STREAMS)}


def _optics(count: int) -> Optics:
    """Astigmatic, a different defocus for each row."""
    defocus = torch.linspace(6000.0, 22000.0, count)
    return dataclasses.replace(
        Optics.uniform(count),
        defocus_u_angstrom=defocus,
        defocus_v_angstrom=defocus - 1500.0,
        defocus_angle_deg=torch.linspace(0.0, 180.0, count),
    )


def _simulator(n: int = 16, count: int = 64, **changes: Any) -> Simulator:
    whole = Simulator(n, PIXEL, _optics(count), torch.arange(count) % 4)
    return dataclasses.replace(whole, **changes)


def _white(n: int = 16, count: int = 64, seed: int = 3) -> Images:
    return Images(torch.randn(count, n, n, generator=torch.Generator().manual_seed(seed)))


def _gan(
    images: Images | None = None, simulator: Simulator | None = None, seed: int = 0, **settings: Any
) -> CryoGan:
    images = images or _white()
    n, count = images.box_size, len(images)
    fixed: dict[str, Any] = {
        "stages": (TrainingStage(n, 20),),
        "batch_size": 4,
        "width": 8,
        "n_critic": 2,
        "rotate": False,
        "weighting": "none",
    }
    config = CryoGanConfig(**(fixed | settings))
    return CryoGan(images, simulator or _simulator(n, count), config, _streams(seed))


def _copy(gan: CryoGan) -> dict[str, Tensor]:
    return {k: v.clone() for k, v in gan.tensors().items()}


def _equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def _steps(gan: CryoGan, count: int) -> list[Stats]:
    return [gan.step() for _ in range(count)]


def _band(n: int) -> Tensor:
    """The Nyquist circle's inside, all that the critic is shown of an image."""
    kx, ky = frequency_grid(n)
    return ((kx**2 + ky**2) < 0.25).float()


def _limited(images: Tensor) -> Tensor:
    """Images without what lies outside the Nyquist circle."""
    n = images.shape[-1]
    return torch.fft.irfft2(torch.fft.rfft2(images) * _band(n), s=(n, n))


# -------------------------------------------------------------------- course of a run


def test_counts_of_a_run() -> None:
    gan = _gan(stages=(TrainingStage(8, 2), TrainingStage(16, 3)), n_critic=3)
    boxes = []
    while not gan.done:
        stats = gan.step()
        boxes.append(stats["box"])
        assert stats["iteration"] == len(boxes) - 1
        assert gan.progress == pytest.approx(len(boxes) / 5)
        assert gan.critic_updates == 3 * len(boxes)
        assert gan.epoch == pytest.approx(3 * len(boxes) * 4 / 64)
        assert all(math.isfinite(value) for value in stats.values())
    assert boxes == [8, 8, 16, 16, 16]
    assert gan.result().shape == (16, 16, 16)


def test_learning_rates_warm_up_in_every_stage_and_decay_over_the_run() -> None:
    gan = _gan(
        stages=(TrainingStage(8, 4), TrainingStage(16, 4)),
        warm_up=2,
        learning_rate_end=0.01,
        learning_rate_volume=0.5,
        learning_rate_critic=0.25,
        learning_rate_scale=0.125,
    )
    for i in range(8):
        optimisers = gan.optimisers
        gan.step()
        decay = 0.01 ** (i / 8)
        warm = 0.5 if i % 4 == 0 else 1.0
        rates = {k: v.param_groups[0]["lr"] for k, v in optimisers.items()}
        wanted = {"volume": 0.5 * warm * decay, "critic": 0.25 * decay, "scale": 0.125 * decay}
        assert rates == pytest.approx(wanted), i
    assert gan.optimisers["critic"].param_groups[0]["betas"] == (0.5, 0.9)


def test_penalty_is_lazy_and_makes_up_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every third critic update, three times as strong: the pull on average is the same."""
    taken: list[Tensor] = []

    def penalty(critic: Any, real: Tensor, simulated: Tensor, alpha: Tensor) -> Tensor:
        taken.append(alpha)
        return next(iter(critic.parameters())).sum() * 2.0

    monkeypatch.setattr(cryogan, "gradient_penalty", penalty)
    gan = _gan(penalty=5.0, penalty_every=3, n_critic=2)
    weight = next(iter(gan.critic.parameters()))
    monkeypatch.setattr(gan.critic, "forward", lambda images: images.new_zeros(len(images)))
    monkeypatch.setattr(gan, "_update_volume", lambda *rest: {})
    seen: list[float] = []
    weight.register_hook(lambda gradient: seen.append(gradient.flatten()[0].item()))
    monkeypatch.setattr(
        gan.critic, "forward", lambda images: images.sum((-2, -1)) * 0 + weight.sum() * 0
    )
    _steps(gan, 3)
    assert len(taken) == 2
    assert seen == [30.0, 0.0, 0.0, 30.0, 0.0, 0.0]
    assert all(bool(((a >= 0) & (a < 1)).all()) and a.shape == (4,) for a in taken)


def test_critic_rises_on_real_and_volume_follows_it() -> None:
    """Signs of (14): a constant pattern in real images is found, then drawn by the volume."""
    n = 16
    blob = torch.exp(-(radius_grid(n, 2) ** 2) / 8).expand(64, n, n)
    flat = _simulator(n, 64, optics=Optics.uniform(64, phase_shift_deg=90.0, defocus_angstrom=0.0))
    images = Images(2.0 * blob + 0.3 * _white().stack)
    gan = _gan(
        images,
        flat,
        stages=(TrainingStage(n, 200),),
        n_critic=2,
        learning_rate_volume=0.02,
        width=32,
    )
    stats = _steps(gan, 60)
    assert max(s["wasserstein"] for s in stats[:30]) > 1.0
    volume = gan.result()
    inside = radius_grid(n, 3) < 3
    assert (
        volume[inside].mean() > 3 * volume[(radius_grid(n, 3) > 5) & (gan.volume.mask > 0)].mean()
    )
    assert volume[inside].mean() > 0


# -------------------------------------------------------------------- what the critic sees


@pytest.mark.parametrize("n", [6, 7])
def test_eight_exact_mirrors_about_the_centre(n: int) -> None:
    """Each maps every pixel to another by a signed permutation of (y, x) about ``n // 2``."""
    image = torch.arange(float(n * n)).reshape(1, n, n)
    offset = torch.arange(n) - n // 2
    seen = set()
    for turn in range(8):
        turned = dihedral_images(image, turn)
        assert turned.shape == image.shape
        assert torch.equal(turned.flatten().sort().values, image.flatten())
        maps = []
        for a, b, c, d in [(s, 0, 0, t) for s in (1, -1) for t in (1, -1)] + [
            (0, s, t, 0) for s in (1, -1) for t in (1, -1)
        ]:
            y = (a * offset[:, None] + b * offset[None, :] + n // 2) % n
            x = (c * offset[:, None] + d * offset[None, :] + n // 2) % n
            if torch.equal(turned[0], image[0, y, x]):
                maps.append((a, b, c, d))
        assert len(maps) == 1, turn
        seen.add(maps[0])
    assert len(seen) == 8


def test_real_and_simulated_batches_are_mirrored_alike() -> None:
    image = torch.rand(16, 16, generator=torch.Generator().manual_seed(1))
    gan = _gan(Images(image.expand(64, 16, 16).clone()), batch_size=2)
    variants = normalise_images(
        torch.stack([dihedral_images(_limited(image), t) for t in range(8)])
    )

    def distance(batch: Tensor) -> Tensor:
        return (batch[:1] - variants).abs().amax((-2, -1))

    real = torch.stack([distance(gan._real(2)) for _ in range(60)])
    assert bool((real.min(dim=1).values < 1e-5).all())
    assert len(set(real.argmin(dim=1).tolist())) == 8
    seen = torch.stack([distance(gan._seen(image.expand(2, 16, 16), ALIKE)) for _ in range(60)])
    assert len(set(seen.argmin(dim=1).tolist())) == 8
    plain = _gan(Images(image.expand(64, 16, 16).clone()), mirror=False)
    assert torch.allclose(plain._real(3), variants[:1].expand(3, 16, 16), atol=1e-5)


def test_images_are_turned_in_stages_of_much_noise(generator: torch.Generator) -> None:
    """The same images: noise is 70 % of their variance at 32 px, 40 % once cropped to 16."""
    blob = torch.exp(-(radius_grid(32, 2) ** 2) / (2 * 3.0**2))
    noise = torch.randn(64, 32, 32, generator=generator)
    images = Images(blob / blob.std() + 3**0.5 * noise)
    two = (TrainingStage(16, 1), TrainingStage(32, 1))
    gan = _gan(images, stages=two, rotate=None)
    turned = [gan.rotates]
    gan.step()
    assert [*turned, gan.rotates] == [False, True]
    assert _gan(images, stages=two, rotate=True).rotates


def _blur_of(batch: Tensor) -> Tensor:
    """Power of a batch over that at the lowest frequency, along one axis."""
    power = torch.fft.rfft2(batch.double()).abs().square().mean(0)
    return power[0, 1:] / power[0, 1]


def test_real_and_simulated_images_are_blurred_alike() -> None:
    sigma, count = 1.0, 4000
    gan = _gan(_white(count=256), smoothing_px=sigma, mirror=False)
    spectrum = oversampled_spectrum(gan.volume())
    k = torch.arange(1, 9) / 16
    wanted = torch.exp(-((2 * math.pi * sigma) ** 2) * (k**2 - k[0] ** 2)).double()
    with torch.no_grad():
        for batch in (gan._real(count), gan._simulated(spectrum, count)):
            assert torch.allclose(_blur_of(batch)[:5], wanted[:5], rtol=0.25)
    sharp = _gan(_white(count=256), mirror=False)._real(count)
    assert _blur_of(sharp)[4] > 0.8


def test_nothing_beyond_the_nyquist_circle_is_seen() -> None:
    """Where real images have what central slices and cropped ones lack."""
    gan = _gan()
    with torch.no_grad():
        batches = gan._real(8), gan._simulated(oversampled_spectrum(gan.volume()), 8)
    for batch in batches:
        power = torch.fft.rfft2(batch).abs().square().mean(0)
        assert power[_band(16) == 0].max() < 1e-6 * power.max()
        assert power[_band(16) > 0][1:].min() > 1e-3 * power.max()


def test_blur_narrows_with_the_epochs() -> None:
    gan = _gan(smoothing_px=1.5, smoothing_decay=0.5, mirror=False)
    point = torch.zeros(1, 16, 16)
    point[0, 8, 8] = 1.0
    for epochs in (0, 1, 2):
        gan.critic_updates = epochs * 16  # of 4 images, among 64
        sigma = 1.5 * 0.5**epochs
        kx, ky = frequency_grid(16)
        factor = torch.exp(-2 * (math.pi * sigma) ** 2 * (kx**2 + ky**2))
        wanted = normalise_images(torch.fft.irfft2(torch.fft.rfft2(_limited(point)) * factor))
        assert torch.allclose(gan._seen(point, ALIKE), wanted, atol=1e-5), epochs


def test_images_are_filtered_by_their_own_ctf() -> None:
    """A point imaged under 64 different CTFs: what the critic sees of each is the square's."""
    n, count = 16, 64
    simulator = _simulator(n, count)
    transfer = ctf_half(n, PIXEL, simulator.optics)
    centred = torch.zeros(n, n)
    centred[n // 2, n // 2] = 1.0
    stack = torch.fft.irfft2(torch.fft.rfft2(centred) * transfer, s=(n, n))
    gan = _gan(Images(stack), simulator, weighting="matched", mirror=False)
    squares = torch.fft.rfft2(centred) * transfer.square() * gan.tensors()["weight"]
    wanted = normalise_images(torch.fft.irfft2(squares, s=(n, n)))
    assert torch.allclose(gan._seen(stack, transfer), wanted, atol=1e-4)
    assert (gan._seen(stack, transfer.flip(0)) - wanted).abs().max() > 0.5
    real = gan._real(40)
    assert all((wanted - image).abs().amax((-2, -1)).min() < 1e-4 for image in real)

    with torch.no_grad():
        gan.log_noise.fill_(-30.0)
        volume = torch.zeros(n, n, n)
        volume[n // 2, n // 2, n // 2] = 1.0
        simulated = gan._simulated(oversampled_spectrum(volume), 40)
    spectrum = torch.fft.rfft2(torch.fft.ifftshift(simulated, dim=(-2, -1))).real
    assert spectrum.min() > -0.02 * spectrum.max()


def _radial(n: int, power: Tensor) -> Tensor:
    """Half spectrum whose shells have these values, from shell 1 on."""
    return power[(shell_index(n, 2) - 1).clamp(0, len(power) - 1)]


def test_filter_is_the_square_root_of_the_signals_share(generator: torch.Generator) -> None:
    """Signal of a known spectrum behind CTFs, in white noise."""
    n, count = 16, 3000
    simulator = _simulator(n, count)
    power = torch.tensor([30.0, 10.0, 4.0, 2.0, 1.0, 0.5, 0.3, 0.2])
    transfer = simulator.ctf(torch.arange(count))
    largest = _shell_means(n, transfer.square().mean(0)).max()
    white = torch.randn(2, count, n, n, generator=generator)
    factor = _radial(n, power).sqrt() * transfer / largest.sqrt()
    signal = torch.fft.irfft2(torch.fft.rfft2(white[0]) * factor, s=(n, n))
    images = signal + white[1]
    share = float(_limited(white[1]).var() / _limited(images).var())
    weight = matched_weight(Images(images), simulator, share, generator)
    wanted = (power / (1 + power)).sqrt()
    got = _shell_means(n, weight)[1:8] / _shell_means(n, _band(n))[1:8]
    assert torch.allclose(got / got[0], wanted[:7] / wanted[0], rtol=0.1)
    assert weight[_band(n) == 0].abs().max() == 0
    assert weight.max() == 1


def test_filter_makes_coloured_noise_white(generator: torch.Generator) -> None:
    """Images that are all noise, half of it taken for signal: one of 1 in every shell."""
    n, count = 16, 2000
    colour = _radial(n, torch.tensor([9.0, 6.0, 4.0, 2.0, 1.0, 1.0, 1.0, 1.0])).sqrt()
    white = torch.randn(2, count, n, n, generator=generator)
    patches, images = torch.fft.irfft2(torch.fft.rfft2(white) * colour, s=(n, n))
    simulator = _simulator(n, count, noise=BackgroundPatches(patches, torch.arange(count) % 4))
    weight = matched_weight(Images(images), simulator, 0.5, generator)
    transfer = _shell_means(n, simulator.ctf(torch.arange(count)).square().mean(0))
    signal = transfer.max() / transfer
    wanted = (signal / (1 + signal)).sqrt()
    got = _shell_means(n, weight * colour)
    got = got / _shell_means(n, _band(n)).clamp_min(0.1)
    assert torch.allclose((got / wanted)[1:8] / (got / wanted)[4], torch.ones(7), atol=0.1)


def _shell_means(n: int, values: Tensor) -> Tensor:
    """Mean of a half spectrum over each shell up to Nyquist."""
    shell = shell_index(n, 2).clamp(max=n // 2).flatten()
    total, number = torch.zeros(2, n // 2 + 1).index_add_(
        1, shell, torch.stack([values, torch.ones_like(values)]).flatten(1)
    )
    return total / number


def _scarce(gan: CryoGan, monkeypatch: pytest.MonkeyPatch, most: int) -> None:
    """Memory for so many images in the critic."""
    score = gan.critic.forward

    def forward(images: Tensor) -> Tensor:
        if len(images) > most:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return score(images)

    monkeypatch.setattr(gan.critic, "forward", forward)


def test_fault_27_batches_are_split_where_memory_runs_out(monkeypatch: pytest.MonkeyPatch) -> None:
    gan = _gan(batch_size=12)
    _scarce(gan, monkeypatch, most=6)
    stats = _steps(gan, 3)
    assert [one["pieces"] for one in stats] == [4.0, 4.0, 4.0]
    assert gan.iteration == 3
    assert all(math.isfinite(one["wasserstein"]) for one in stats)
    other = _gan(batch_size=12)
    other.load_state_dict({"tensors": _copy(gan), "counters": gan.counters()})
    assert other.pieces == 4


def test_memory_that_stays_too_small_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    gan = _gan(batch_size=4)
    _scarce(gan, monkeypatch, most=1)
    with pytest.raises(torch.OutOfMemoryError):
        gan.step()
    broken = _gan()
    monkeypatch.setattr(broken, "_update_critic", _raise)
    with pytest.raises(RuntimeError, match="a bug"):
        broken.step()
    assert broken.pieces == 1


def _raise(_spectrum: Tensor) -> dict[str, float]:
    raise RuntimeError("a bug")


@pytest.mark.parametrize("pieces", [2, 3])
def test_pieces_do_what_the_batch_does(pieces: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where all images of a kind are the same, so that the draws do not matter."""
    results = []
    for count in (1, pieces):
        gan = _gan(Images(_white(count=1).stack.expand(8, 16, 16)), batch_size=8, mirror=False)
        gan.pieces = count
        with torch.no_grad():
            gan.volume.free.copy_(torch.linspace(0.0, 1.0, len(gan.volume.free)))
        image = _white(count=1, seed=8).stack

        def simulated(
            spectrum: Tensor, m: int, gan: CryoGan = gan, image: Tensor = image
        ) -> Tensor:
            scale = gan.log_signal.exp() + gan.log_noise.exp()
            return scale * image.expand(m, 16, 16) * spectrum.abs().square().mean()

        monkeypatch.setattr(gan, "_simulated", simulated)
        stats = gan.step()
        told = [stats[k] for k in ("wasserstein", "critic_gradient", "volume_gradient")]
        results.append([*gan.critic.parameters(), gan.volume.free, torch.tensor(told)])
    for one, other in zip(*results, strict=True):
        assert torch.allclose(one, other, rtol=1e-4, atol=1e-5)


def test_critic_sees_zero_mean_and_unit_deviation() -> None:
    gan = _gan(Images(50 + 7 * _white().stack))
    with torch.no_grad():
        batches = gan._real(8), gan._simulated(oversampled_spectrum(gan.volume()), 8)
    for batch in batches:
        assert batch.mean((-2, -1)).abs().max() < 1e-4
        assert torch.allclose(batch.std((-2, -1), correction=0), torch.ones(8), atol=1e-4)


# -------------------------------------------------------------------- boxes


def test_smaller_box_keeps_the_field_of_view() -> None:
    count = 12
    patches = prepare_patches(torch.randn(8, 40, 40), 40)
    noise = BackgroundPatches(patches, torch.arange(8) % 4, random_dihedral=True)
    shifts = TriangularShift(30.0)
    whole = _simulator(32, count, noise=noise, shifts=shifts)
    half = at_box(whole, 16)
    assert half.box_size * half.pixel_size_angstrom == 32 * PIXEL
    assert half.optics is whole.optics
    assert half.shifts is shifts
    assert isinstance(half.noise, BackgroundPatches)
    assert half.noise.patches.shape == (8 * 81, 16, 16)
    assert torch.equal(half.noise.micrograph_id, noise.micrograph_id.repeat_interleave(81))
    assert half.noise.random_dihedral
    assert half.noise.patches.std(correction=0).item() == pytest.approx(1.0, abs=1e-5)
    assert at_box(whole, 32).noise is noise
    assert whole.box_size == 32


def _cropped_noise(noise: BackgroundPatches) -> BackgroundPatches:
    small = at_box(_simulator(32, 4, noise=noise), 16).noise
    assert isinstance(small, BackgroundPatches)
    return small


def test_background_is_cut_before_it_is_cropped(monkeypatch: pytest.MonkeyPatch) -> None:
    """As particles are: each small patch is the Fourier crop of a window of its own patch."""
    patches = prepare_patches(torch.randn(3, 33, 33), 33)
    noise = BackgroundPatches(patches, torch.tensor([5, 6, 7]))
    small = _cropped_noise(noise)
    corners = [(y, x) for y in (0, 1) for x in (0, 1)]
    for row, owner in enumerate(small.micrograph_id.tolist()):
        cuts = torch.stack([patches[owner - 5, y : y + 32, x : x + 32] for y, x in corners])
        windows = fourier_resize(cuts, 16, 2)
        scale = small.patches[row].norm() / windows.flatten(1).norm(dim=1)
        distance = (windows * scale[:, None, None] - small.patches[row]).abs().amax((-2, -1))
        assert (distance < 1e-3).sum() == 1
    monkeypatch.setattr(
        "vitreous.methods.adversarial.matched_filter.WINDOW_BYTES", 3 * 16 * 16 * 4 * 2
    )
    assert len(_cropped_noise(noise).patches) == 6
    monkeypatch.setattr("vitreous.methods.adversarial.matched_filter.WINDOW_BYTES", 1)
    assert len(_cropped_noise(noise).patches) == 3


def test_images_of_the_small_volume_are_the_small_images(generator: torch.Generator) -> None:
    """Cropping the data and cropping the volume agree, shift and CTF included, scale too."""
    whole = _simulator(32, 10)
    small = at_box(whole, 16)
    volume = protein_phantom(32, PIXEL, seed=2, resolution_angstrom=45.0)
    rotations = random_rotations(10, generator=generator)
    shift = torch.randn(10, 2, generator=generator) * 15
    large = simulate(volume, rotations, shift, whole.optics, PIXEL) * (4 / 32)
    wanted = fourier_resize(large, 16, 2)
    got = simulate(
        fourier_resize(volume, 16, 3), rotations, shift, small.optics, small.pixel_size_angstrom
    ) * (4 / 16)
    assert (got - wanted).square().sum() < 0.01 * wanted.square().sum()


def test_particles_are_cropped_and_read_alike_from_memory_and_source() -> None:
    images = _white(32, 40)
    cache = ImageCache(images, 16, torch.device("cpu"))
    rows = torch.tensor([3, 3, 39, 0])
    assert torch.allclose(cache.read(rows), fourier_resize(images.stack[rows], 16, 2), atol=1e-6)
    held = cache.read(rows)
    cache._all = None
    assert torch.allclose(cache.read(rows), held, atol=1e-6)


def test_next_stage_starts_from_the_averaged_volume(monkeypatch: pytest.MonkeyPatch) -> None:
    gan = _gan(
        _white(32),
        stages=(TrainingStage(8, 6), TrainingStage(16, 4)),
        warm_up=1,
        learning_rate_volume=0.1,
    )
    enter, given = gan._enter, []

    def spy(stage: int, start: Tensor | None) -> None:
        assert start is not None
        given.append((start, gan.volume(gan.average).detach(), gan.volume().detach()))
        enter(stage, start)

    monkeypatch.setattr(gan, "_enter", spy)
    _steps(gan, 6)
    start, averaged, latest = given[0]
    assert torch.equal(start, averaged)
    assert not torch.allclose(start, latest)
    inside = gan.volume.mask > 0
    assert torch.allclose(gan.volume()[inside], fourier_resize(start, 16, 3)[inside], atol=1e-6)
    assert torch.equal(gan.average, gan.volume.free)
    assert (gan.n, gan.stage, gan.iteration) == (16, 1, 6)
    assert not gan.optimisers["volume"].state
    with torch.no_grad():
        conditions = gan._draw(400)
        transfer = gan.simulator.ctf(conditions.row)
        clean = gan._clean(oversampled_spectrum(gan.volume()), conditions, transfer)
        noise = gan.simulator.noise_like(conditions.row, generator=gan.generators["noise"])
        power = _limited(gan.log_signal.exp() * clean + gan.log_noise.exp() * noise).var()
    assert power.item() == pytest.approx(1.0, abs=0.05)


@pytest.mark.parametrize("averaging", [0.0, 0.8])
def test_running_average(averaging: float) -> None:
    gan = _gan(averaging=averaging)
    mean = gan.average.clone()
    for _ in range(4):
        gan.step()
        mean = averaging * mean + (1 - averaging) * gan.volume.free.detach()
    assert torch.allclose(gan.average, mean, atol=1e-6)
    assert torch.allclose(gan.result(), gan.volume(mean), atol=1e-6)


def test_final_result_is_in_units_of_the_noise() -> None:
    gan = _gan(stages=(TrainingStage(16, 3),))
    _steps(gan, 3)
    with torch.no_grad():
        gan.log_signal.fill_(math.log(6.0))
        gan.log_noise.fill_(math.log(2.0))
    assert torch.allclose(gan.result(), 3.0 * gan.volume(gan.average))


# -------------------------------------------------------------------- constraints


@pytest.mark.parametrize("progress", [0.0, 0.5, 1.0])
def test_floor_rises_from_the_centre_and_widens_with_time(
    progress: float, generator: torch.Generator
) -> None:
    gan = _gan(floor_centre=0.2, floor_edge=0.1, mask_fraction=0.4)
    gan.iteration = round(20 * progress)
    free = torch.randn(gan.volume.free.shape, generator=generator)
    with torch.no_grad():
        gan.volume.free.copy_(free)
    gan._constrain()
    radius = radius_grid(16, 3).flatten() / (0.4 * 16)
    floor = -(0.2 * progress + 0.1 * radius) * free.max()
    assert torch.allclose(gan.volume.free, torch.maximum(free, floor), atol=1e-6)
    assert (gan.volume.free == free).float().mean() > 0.4
    assert (gan.volume.free - floor).min() > -1e-6


def test_floor_holds_during_a_run_and_can_be_left_out() -> None:
    gan = _gan(warm_up=1, learning_rate_volume=0.3)
    for _ in range(8):
        done = gan.progress
        gan.step()
        share = 0.1 * done + 0.1 * gan.volume.radius_px / (0.45 * 16)
        free = gan.volume.free.detach()
        assert (free + share * free.max()).min() >= -1e-6
    centre = radius_grid(16, 3) < 3
    bound = 0.2 * gan.volume().max()
    assert gan.volume()[centre].min() > -bound
    unbounded = _gan(warm_up=1, learning_rate_volume=0.3, floor_centre=None)
    _steps(unbounded, 8)
    assert unbounded.volume()[centre].min() < -bound


def test_a_volume_below_zero_everywhere_is_cleared_not_turned_over() -> None:
    gan = _gan()
    with torch.no_grad():
        gan.volume.free.fill_(-1.0)
    gan._constrain()
    assert gan.volume.free.abs().max() == 0


def test_volume_keeps_symmetry_and_mask() -> None:
    gan = _gan(symmetry="D2", mask_fraction=0.3)
    _steps(gan, 4)
    volume = gan.result()
    turned = volume.flip(0, 1).roll((1, 1), (0, 1))  # half a turn about x
    inner = (slice(1, None),) * 3
    assert volume.abs().max() > 0
    assert torch.equal(volume[inner], turned[inner])
    assert volume[radius_grid(16, 3) > 0.3 * 16].abs().max() == 0


@pytest.mark.parametrize(("clip_epochs", "ramp"), [(0.0, [1.0] * 4), (1.0, [1 / 16, 2 / 16])])
def test_gradients_are_clipped_under_a_growing_limit(clip_epochs: float, ramp: list[float]) -> None:
    """One epoch is 16 critic updates of 4 of the 64 images."""
    gan = _gan(
        clip_epochs=clip_epochs, clip_volume=1e-6, clip_critic=1e-2, clip_scale=1e-5, n_critic=1
    )
    gan.critic_updates = 1
    for share in ramp:
        before = gan._clip_ramp()
        gan.step()
        assert before == pytest.approx(share)
        gradient = torch.cat([p.grad.flatten() for p in gan.critic.parameters()])  # type: ignore[union-attr] # set by step
        assert gradient.norm().item() == pytest.approx(1e-2 * share, rel=1e-3)
        limit = 1e-6 * gan._clip_ramp()  # the volume comes after one more critic update
        assert gan.volume.free.grad is not None
        assert gan.volume.free.grad.abs().max().item() == pytest.approx(limit)
        for scale in (gan.log_signal, gan.log_noise):
            assert scale.grad is not None
            assert scale.grad.abs().item() <= 1e-5 * (1 + 1e-6)
    gan.critic_updates = 10**6
    assert gan._clip_ramp() == 1.0


# -------------------------------------------------------------------- scales


def _phantom_images(n: int, count: int, snr: float, seed: int) -> tuple[Images, Tensor, Simulator]:
    """Noisy images of a compact phantom, its volume, and their simulator; noise deviation 1."""
    generator = torch.Generator().manual_seed(seed)
    simulator = _simulator(n, count)
    volume = protein_phantom(n, PIXEL, seed=1, diameter_angstrom=0.5 * n * PIXEL)
    rotations = random_rotations(count, generator=generator)
    clean = simulate(volume, rotations, torch.zeros(count, 2), simulator.optics, PIXEL)
    scale = (snr / clean.var((-2, -1)).mean()).sqrt()
    noise = torch.randn(clean.shape, generator=generator)
    return Images(scale * clean + noise), scale * volume, simulator


@pytest.mark.parametrize("snr", [1.0, 0.1])
def test_noise_share_from_the_corners(snr: float) -> None:
    """White noise, compact phantom: within 5 % of noise over all variance, in the band."""
    images, _, simulator = _phantom_images(32, 300, snr, seed=5)
    gan = _gan(images, simulator)
    generator = torch.Generator().manual_seed(8)
    white = _limited(torch.randn(300, 32, 32, generator=generator)).var().item()
    truth = white / _limited(images.stack).var().item()  # noise of unit deviation in the images
    estimate = math.exp(2 * gan.log_noise.item()) * white
    assert estimate == pytest.approx(min(0.98, truth), rel=0.05)
    assert truth == pytest.approx(1 / (1 + snr), rel=0.15)


def test_noise_share_stays_inside_what_logarithms_bear() -> None:
    n = 16
    ball = (radius_grid(n, 2) < 4).float().expand(64, n, n)
    silent, noisy = _gan(Images(ball.clone())), _gan(_white())
    empty = _gan(Images(torch.ones(64, n, n)))  # nothing in the corners, to the last bit
    assert empty.log_noise.item() == pytest.approx(0.5 * math.log(1e-4), abs=0.2)
    assert math.isfinite(silent.log_noise.item())
    assert silent.log_noise.item() < -2
    passed = math.pi / 4  # share of white noise inside the circle, about
    assert noisy.log_noise.item() == pytest.approx(0.5 * math.log(0.98 / passed), abs=0.03)
    assert _gan(_white(), noise_start="one").log_noise.item() == 0


@pytest.mark.parametrize("start", [-1.0, pytest.param(1.0, marks=pytest.mark.slow)])
def test_learned_scales_move_to_the_truth(start: float) -> None:
    """With the true volume held still, log (signal / noise) goes from e^-1 or e^1 of it to it."""
    images, volume, simulator = _phantom_images(16, 512, 1.0, seed=6)
    gan = _gan(
        images,
        simulator,
        stages=(TrainingStage(16, 1000),),
        batch_size=64,
        width=64,
        n_critic=2,
        noise_start="one",
        learning_rate_volume=0.0,
        learning_rate_critic=2e-3,
        learning_rate_scale=2e-2,
        floor_centre=None,
        mask_fraction=0.5,
    )
    with torch.no_grad():
        gan.volume.free.copy_(volume.flatten() * (16 / 4))  # undoes the solver's 4 / n
        gan.log_signal.fill_(start)
    ratios = []
    for _ in range(160):
        gan.step()
        ratios.append((gan.log_signal - gan.log_noise).item())
    assert abs(sum(ratios[-40:]) / 40) < 0.25


# -------------------------------------------------------------------- NaN


def _poison(gan: CryoGan) -> None:
    assert gan._cache._all is not None
    gan._cache._all.fill_(math.nan)


def _finite(gan: CryoGan) -> bool:
    return all(bool(v.isfinite().all()) for v in gan.tensors().values())


def test_fault_28_broken_images_never_reach_the_weights() -> None:
    gan = _gan(stages=(TrainingStage(16, 100),))
    _steps(gan, 3)
    critic = {k: v.clone() for k, v in gan.critic.state_dict().items()}
    _poison(gan)
    for i in range(9):
        stats = gan.step()
        assert math.isnan(stats["wasserstein"])
        assert (gan.skipped, gan.rollbacks) == (i + 1, 0)
        assert _equal(critic, gan.critic.state_dict())
    with pytest.raises(DivergedError, match="lower the learning rates"):
        _steps(gan, 60)
    assert gan.rollbacks == 3
    assert gan.iteration == 3 + 39
    assert _finite(gan)


def test_rolls_back_to_the_last_sound_state() -> None:
    gan = _gan(stages=(TrainingStage(16, 300),))
    _steps(gan, 1)
    kept = _copy(gan)
    _steps(gan, 2)
    _poison(gan)
    _steps(gan, 9)
    assert not torch.equal(gan.volume.free, kept["volume"])
    gan.step()
    now = gan.tensors()
    assert (gan.skipped, gan.rollbacks) == (0, 1)
    for name, tensor in kept.items():
        if name == "random.init":
            continue  # drawn from when a stage begins
        if name.startswith("random."):
            assert not torch.equal(now[name], tensor), "the same bad draws would come again"
        else:
            assert torch.equal(now[name], tensor), name


def test_rolls_back_within_a_stage_just_begun() -> None:
    """The snapshot of another box would not fit."""
    gan = _gan(stages=(TrainingStage(8, 3), TrainingStage(16, 40)))
    _steps(gan, 3)
    begun = gan.volume.free.detach().clone()
    _poison(gan)
    _steps(gan, 10)
    assert gan.rollbacks == 1
    assert torch.equal(gan.volume.free, begun)


def test_a_sound_step_ends_the_count() -> None:
    gan = _gan(stages=(TrainingStage(16, 100),))
    assert gan._cache._all is not None
    sound = gan._cache._all.clone()
    _poison(gan)
    _steps(gan, 9)
    gan._cache._all.copy_(sound)
    gan.step()
    assert (gan.skipped, gan.rollbacks) == (0, 0)
    _poison(gan)
    _steps(gan, 9)
    assert gan.rollbacks == 0


@pytest.mark.parametrize("name", ["volume", "signal", "noise"])
def test_a_gradient_of_nan_skips_the_volume_update(name: str) -> None:
    """One broken gradient is enough, the others are not used either."""
    gan = _gan()
    _steps(gan, 2)
    leaf = {"volume": gan.volume.free, "signal": gan.log_signal, "noise": gan.log_noise}[name]
    before = _copy(gan)
    hook = leaf.register_hook(lambda gradient: gradient * math.nan)
    stats = gan.step()
    hook.remove()
    assert math.isnan(stats["volume_gradient"])
    assert gan.skipped == 1
    for key in ("volume", "average", "log_signal", "log_noise", "adam.volume.0.exp_avg"):
        assert torch.equal(gan.tensors()[key], before[key]), key
    gan.step()
    assert gan.skipped == 0
    assert not torch.equal(gan.volume.free, before["volume"])


def test_one_bad_critic_update_among_several_is_counted() -> None:
    gan = _gan(n_critic=3)
    weight = next(iter(gan.critic.parameters()))
    calls: list[int] = []

    def hook(gradient: Tensor) -> Tensor:
        calls.append(1)
        return gradient * math.nan if len(calls) == 1 else gradient

    weight.register_hook(hook)
    gan.step()
    assert len(calls) >= 3
    assert gan.skipped == 1
    assert _finite(gan)


# -------------------------------------------------------------------- exactness


_TWO_STAGES = {
    "stages": (TrainingStage(8, 4), TrainingStage(16, 4)),
    "smoothing_px": 0.5,
    "clip_epochs": 1.0,
    "rotate": True,
    "weighting": "matched",
}


@pytest.mark.parametrize("stop", [0, 1, 3, 4, 6])
def test_stopped_and_continued_is_bitwise_the_run_left_alone(stop: int) -> None:
    """Before, at (4) and after the change of box; streams of the new process are overwritten."""
    whole = _gan(**_TWO_STAGES)
    told = _steps(whole, 8)
    first = _gan(**_TWO_STAGES)
    _steps(first, stop)
    tensors, counters = _copy(first), first.counters()
    second = _gan(seed=9, **_TWO_STAGES)
    second.load_state_dict({"tensors": tensors, "counters": counters})
    assert _equal(second.tensors(), tensors)
    assert _steps(second, 8 - stop) == told[stop:]
    assert _equal(second.tensors(), whole.tensors())
    assert torch.equal(second.result(), whole.result())
    assert second.counters() == whole.counters()


def test_continuing_keeps_the_count_of_failures() -> None:
    gan = _gan(stages=(TrainingStage(16, 200),))
    _poison(gan)
    _steps(gan, 24)
    assert gan.counters() | {"skipped": 4, "rollbacks": 2} == gan.counters()
    other = _gan(stages=(TrainingStage(16, 200),))
    other.load_state_dict({"tensors": _copy(gan), "counters": gan.counters()})
    _poison(other)
    _steps(other, 6)
    assert other.rollbacks == 3
    with pytest.raises(DivergedError):
        _steps(other, 10)


def test_no_global_random_numbers() -> None:
    torch.manual_seed(1)
    first = _gan(**_TWO_STAGES)
    _steps(first, 6)
    torch.manual_seed(2)
    second = _gan(**_TWO_STAGES)
    for _ in range(6):
        torch.rand(3)
        second.step()
    assert _equal(first.tensors(), second.tensors())


def test_halves_do_not_see_each_other() -> None:
    """Half 1 beside another half, with one data set or another, is half 1 alone."""
    alone = _gan()
    _steps(alone, 4)
    for seed in (11, 12):
        half1, half2 = _gan(), _gan(_white(seed=seed), seed=1)
        for _ in range(4):
            half2.step()
            half1.step()
        assert _equal(half1.tensors(), alone.tensors())
        assert not torch.equal(half1.volume.free, half2.volume.free)


@pytest.mark.parametrize("stream", STREAMS)
def test_every_stream_matters(stream: str) -> None:
    images, simulator = _white(), _simulator()
    config = CryoGanConfig(stages=(TrainingStage(16, 9),), batch_size=4, width=8)
    streams = _streams()
    streams[stream] = torch.Generator().manual_seed(4242)
    runs = [CryoGan(images, simulator, config, g) for g in (_streams(), streams)]
    for gan in runs:
        _steps(gan, 2)
    assert not torch.equal(runs[0].volume.free, runs[1].volume.free)


def test_images_and_conditions_are_left_as_they_were() -> None:
    images, simulator = _white(), _simulator()
    stack, defocus = images.stack.clone(), simulator.optics.defocus_u_angstrom.clone()
    _steps(_gan(images, simulator, stages=(TrainingStage(8, 1), TrainingStage(16, 2))), 3)
    assert torch.equal(images.stack, stack)
    assert torch.equal(simulator.optics.defocus_u_angstrom, defocus)


# -------------------------------------------------------------------- settings


@pytest.mark.parametrize(
    "settings",
    [
        {"lerning_rate": 1e-3},
        {"critic": "wide"},
        {"batch_size": 0},
        {"n_critic": 0},
        {"penalty_every": 0},
        {"width": "broad"},
        {"stages": ()},
        {"stages": ({"box_size": 16, "iterations": 0},)},
    ],
)
def test_impossible_settings_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match=next(iter(settings))):
        CryoGanConfig(**({"stages": (TrainingStage(16, 1),)} | settings))


@pytest.mark.parametrize(
    ("box_size", "boxes"),
    [(16, [16]), (32, [16, 32]), (64, [16, 32, 64]), (180, [16, 32, 64, 128, 180])],
)
def test_default_stages_end_at_the_box(box_size: int, boxes: list[int]) -> None:
    assert [stage.box_size for stage in default_stages(box_size)] == boxes
    config = default_config(box_size, "D2")
    assert (config.symmetry, config.iterations) == ("D2", sum(s.iterations for s in config.stages))


def test_paper_preset_is_the_papers_setting() -> None:
    """Section VI.D of the paper: 41,123 particles in halves, boxes of 180."""
    config = paper_config(180, 20561, "D2")
    assert [stage.box_size for stage in config.stages] == [180]
    shown = config.iterations * config.n_critic * config.batch_size
    assert shown / 20561 == pytest.approx(15, rel=0.01)
    assert (config.batch_size, config.n_critic, config.betas) == (8, 4, (0.5, 0.9))
    assert (config.critic, config.width) == ("paper", 96)
    assert config.learning_rate_end == pytest.approx(0.92**15)
    assert (config.clip_volume, config.clip_critic, config.clip_scale) == (1e3, 1e6, 10.0)
    assert (config.smoothing_px, config.smoothing_decay, config.penalty) == (2.0, 0.98, 1.0)
    assert 2 * config.mask_fraction * 180 == pytest.approx(171)
    assert (config.noise_start, config.mirror, config.averaging) == ("one", False, 0.0)
    assert (config.weighting, config.rotate) == ("none", False)
