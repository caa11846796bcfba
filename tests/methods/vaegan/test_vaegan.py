"""The VAE-GAN: modes run, losses go to their own networks, NaN, exact resumption, a collapse."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from vitreous.core.errors import DivergedError
from vitreous.core.images import ImagesInMemory
from vitreous.core.params import Optics
from vitreous.core.rotation import random_rotations
from vitreous.data.phantoms import protein_phantom
from vitreous.methods.vaegan.solver import STREAMS, SortingStage, VaeGan, VaeGanConfig
from vitreous.physics.poses import TriangularShift
from vitreous.physics.simulator import Simulator, simulate

PIXEL = 16.0
COUNT = 48


def _streams(seed: int = 0) -> dict[str, torch.Generator]:
    return {k: torch.Generator().manual_seed(100 * seed + i) for i, k in enumerate(STREAMS)}


def _simulator(n: int = 16) -> Simulator:
    defocus = torch.linspace(9000.0, 22000.0, COUNT)
    optics = dataclasses.replace(
        Optics.uniform(COUNT), defocus_u_angstrom=defocus, defocus_v_angstrom=defocus - 500.0
    )
    shifts = TriangularShift(20.0)
    return Simulator(n, PIXEL, optics, torch.arange(COUNT) % 4, shifts=shifts)


def _images(n: int = 16, noise: float = 0.5) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    volume = protein_phantom(n, PIXEL, seed=1)
    rotations = random_rotations(COUNT, generator=generator)
    clean = simulate(volume, rotations, torch.zeros(COUNT, 2), _simulator(n).optics, PIXEL)
    clean = clean / clean.std()
    return clean + noise * torch.randn(clean.shape, generator=generator)


def _gan(seed: int = 0, images: Tensor | None = None, **settings: Any) -> VaeGan:
    fixed: dict[str, Any] = {
        "stages": (SortingStage(16, 20),),
        "batch_size": 4,
        "latent": 3,
        "generator_width": 8,
        "generator_layers": 1,
        "coordinate_grid": 3,
        "basis_maps": 2,
        "encoder_width": 4,
        "critic_width": 4,
    }
    images = _images() if images is None else images
    config = VaeGanConfig(**(fixed | settings))
    return VaeGan(ImagesInMemory(images), _simulator(), config, _streams(seed))


def _steps(gan: VaeGan, count: int) -> list[dict[str, float]]:
    return [gan.step() for _ in range(count)]


def _equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def _louder(network: Callable[..., Tensor], factor: float, *given: Any) -> Tensor:
    return factor * network(*given)


def test_louder_noise_is_not_more_diverse(monkeypatch: pytest.MonkeyPatch) -> None:
    gan = _gan(noise="network")
    conditions = gan.imaging.draw(8)
    latent = torch.zeros(8, 3)
    network, told = gan.imaging.noise_network, list[float]()
    quiet = network.forward
    for factor in (1.0, 100.0):
        monkeypatch.setattr(network, "forward", partial(_louder, quiet, factor))
        for name in ("latent", "noise"):
            gan.generators[name].manual_seed(5)
        told.append(float(gan.imaging.simulated(latent, conditions, 0)[1].detach()))
    assert told[0] > 0
    assert told[1] == pytest.approx(told[0], rel=1e-4)


MODES: list[dict[str, Any]] = [
    {},
    {"latent": 0},
    {"latent": 0, "generator": "basis"},
    {"generator": "basis"},
    {"invariant": False},
    {"critic": "dense"},
    {"critic": "dense", "encoder": "dense", "invariant": False, "rotate": True},
    {"generator": "basis", "basis_mixture": True, "perceptual": 0.0},
    {"noise": "scale"},
    {"noise": "none"},
    {"noise_kind": "poisson"},
    {"camera": "learned"},
    {"camera": "learned", "generator": "basis"},
    {"perceptual_on": "map"},
    {"latent_loss": 0.0},
    {"generator": "image", "encoder_view": "polar"},
    {"weighting": "none", "mirror": False, "rotate": True, "n_critic": 2},
]


FAST_MODES = (1, 3, 6, 7, 12, 13, 15, 16)  # each network, view, noise and loss at least once


@pytest.mark.parametrize(
    "mode",
    [
        mode if k in FAST_MODES else pytest.param(mode, marks=pytest.mark.slow)
        for k, mode in enumerate(MODES)
    ],
    ids=str,
)
def test_every_mode_trains_embeds_and_makes_volumes(mode: dict[str, Any]) -> None:
    gan = _gan(**mode)
    before = {k: v.clone() for k, v in gan.tensors().items()}
    told = _steps(gan, 3)
    assert all(math.isfinite(value) for stats in told for value in stats.values())
    moved = {k.split(".")[0] for k, v in gan.tensors().items() if not v.equal(before.get(k, v))}
    expected = {"generator", "average", "critic", "log_signal", "random"}
    expected |= set() if mode.get("latent") == 0 else {"encoder"}
    noise = mode.get("noise", "network")
    expected |= {"network": {"noise_network"}, "scale": {"log_noise"}}.get(noise, set())
    expected |= {"camera", "moment"} if mode.get("camera") == "learned" else set()
    assert moved == expected
    d = max(1, gan.config.latent)
    places = gan.embed(torch.arange(5))
    assert places.shape == (5, d)
    assert places.dtype == torch.float32
    volume = gan.volume(places[0])
    assert volume.shape == ((16, 16) if mode.get("generator") == "image" else (16, 16, 16))
    assert volume.isfinite().all()


def test_counts_of_a_run_with_growing_box_and_band() -> None:
    stages = (SortingStage(8, 2, 0.75), SortingStage(16, 2, 0.5), SortingStage(16, 1))
    gan = _gan(stages=stages, n_critic=2)
    boxes, radii = [], []
    while not gan.done:
        radii.append(gan.imaging.radius)
        boxes.append(gan.step()["box"])
        assert gan.progress == pytest.approx(len(boxes) / 5)
    assert boxes == [8, 8, 16, 16, 16]
    assert radii == [3, 3, 4, 4, 8]
    assert gan.critic_updates == 10
    assert gan.box_size == 16


@pytest.mark.slow
def test_what_was_learned_goes_on_at_the_next_box() -> None:
    for generator in ("siren", "basis"):
        stages = (SortingStage(8, 3), SortingStage(16, 3))
        gan = _gan(stages=stages, generator=generator)
        _steps(gan, 2)
        places = gan.embed(torch.arange(6))
        weights = [p.clone() for p in gan.encoder.parameters()] if gan.encoder else []
        gan._enter(1)
        assert gan.encoder is not None
        assert all(torch.equal(a, b) for a, b in zip(weights, gan.encoder.parameters()))  # noqa: B905
        assert (gan.embed(torch.arange(6)) - places).abs().max() < 0.5
        assert gan.volume(places[0]).shape == (16, 16, 16)


def test_images_are_limited_to_the_band_and_normalised() -> None:
    gan = _gan(stages=(SortingStage(16, 2, 0.5),), mirror=False)
    with torch.no_grad():
        batch = gan._batch()
    for images in (batch.real, batch.simulated):
        spectra = torch.fft.rfft2(images).abs()
        assert spectra[:, 0, 4:].max() < 1e-3
        assert torch.allclose(images.std((-2, -1), correction=0), torch.tensor(1.0), atol=1e-3)
    assert len(batch.simulated) == 2 * len(batch.real)


def test_reconstructions_have_the_ctf_of_their_image(monkeypatch: pytest.MonkeyPatch) -> None:
    gan = _gan()
    seen: list[Tensor] = []
    simulated, real = gan.imaging.simulated, gan.imaging.real

    def spy_made(latent: Tensor, conditions: Any, turn: int) -> Any:
        seen.append(conditions.row.clone())
        return simulated(latent, conditions, turn)

    def spy_real(row: Tensor, turn: int) -> Tensor:
        seen.append(row.clone())
        return real(row, turn)

    monkeypatch.setattr(gan.imaging, "simulated", spy_made)
    monkeypatch.setattr(gan.imaging, "real", spy_real)
    gan._batch()
    row, rows = seen
    assert torch.equal(rows[4:], row)


def test_the_encoder_minimises_its_own_loss_alone() -> None:
    """Eq. (5): its gradient has no part of the generator's adversarial loss."""
    changes = []
    for diversity in (0.1, 5.0):  # a part of the generator's loss alone
        gan = _gan(diversity=diversity, latent_loss=0.0, perceptual=diversity)
        before = [p.detach().clone() for p in gan.encoder.parameters()] if gan.encoder else []
        gan.step()
        assert gan.encoder is not None
        changes.append([p.detach() - b for p, b in zip(gan.encoder.parameters(), before)])  # noqa: B905
    assert any(change.abs().max() > 0 for change in changes[0])
    assert all(torch.equal(a, b) for a, b in zip(*changes, strict=True))


def test_the_average_follows_the_generator() -> None:
    gan = _gan(averaging=0.75)
    name = "generator.hidden.0.weight"
    start = gan.tensors()[name].clone()
    gan.step()
    moved = gan.tensors()[name]
    expected = 0.75 * start + 0.25 * moved
    assert torch.allclose(gan.tensors()["average.hidden.0.weight"], expected, atol=1e-7)
    assert (moved - start).abs().max() > 0


def test_embedding_draws_no_numbers_and_leaves_training_as_it_is() -> None:
    gan = _gan(rotate=True)
    gan.step()
    before = gan.state_dict()["tensors"]
    once, again = gan.embed(torch.arange(7)), gan.embed(torch.arange(7))
    assert torch.equal(once, again)
    assert torch.allclose(gan.embed(torch.tensor([5]))[0], once[5], atol=1e-5)
    assert _equal(before, gan.state_dict()["tensors"])
    assert gan.encoder is not None
    assert gan.encoder.training
    assert gan.embed(torch.arange(0)).shape == (0, 3)


# -------------------------------------------------------------------- shifts


@pytest.mark.parametrize("network", ["critic", pytest.param("encoder", marks=pytest.mark.slow)])
def test_dense_networks_see_centred_images_unless_told_not_to(network: str) -> None:
    settings: dict[str, Any] = {network: "dense", "weighting": "none"}
    gan = _gan(**settings)
    assert gan.imaging.template is not None
    moved = _gan(images=_images().roll((3, -2), (-2, -1)), **settings)
    assert moved.imaging.template is not None
    moved.imaging.template = gan.imaging.template
    rows = torch.arange(9)
    assert torch.allclose(gan.embed(rows), moved.embed(rows), atol=1e-4)
    plain = _gan(critic="dense", encoder="dense", invariant=False)
    assert plain.imaging.template is None
    assert "template" not in plain.tensors()


# -------------------------------------------------------------------- schedule


def test_latents_begin_late_and_the_encoder_ends_alone() -> None:
    gan = _gan(stages=(SortingStage(16, 10),), generator="basis", latent_from=0.4, encoder_only=0.2)
    places = torch.randn(2, 3, generator=torch.Generator().manual_seed(1))
    for step in range(10):
        before = {k: v.clone() for k, v in gan.tensors().items()}
        stats = gan.step()
        after = gan.tensors()
        moved = {k.split(".")[0] for k, v in before.items() if not after[k].equal(v)}
        assert ("encoder" in moved) == (step >= 4)
        assert ("critic" in moved) == ("generator" in moved) == (step < 8)
        assert ("wasserstein" in stats) == (step < 8)
        assert torch.equal(gan.volume(places[0]), gan.volume(places[1])) == (step < 4)


def test_without_a_perceptual_loss_nothing_is_reconstructed() -> None:
    gan = _gan(perceptual=0.0)
    with torch.no_grad():
        assert len(gan._batch().simulated) == 4
    assert "perceptual" not in gan.step()


# -------------------------------------------------------------------- resuming


SCHEDULED = {
    "generator": "basis",
    "basis_mixture": True,
    "critic": "dense",
    "encoder": "dense",
    "latent_from": 0.4,
    "encoder_only": 0.2,
    "rotate": True,
}


@pytest.mark.parametrize(
    "mode",
    [
        SCHEDULED,
        *(pytest.param({"generator": g}, marks=pytest.mark.slow) for g in ("siren", "basis")),
    ],
)
@pytest.mark.slow
@pytest.mark.parametrize("at", [1, 3, 5])
def test_a_resumed_run_is_bitwise_the_same(mode: dict[str, Any], at: int) -> None:
    stages = (SortingStage(8, 3), SortingStage(16, 4))
    settings: dict[str, Any] = {"stages": stages, "camera": "learned"} | mode
    whole = _gan(**settings)
    told = _steps(whole, 7)
    begun = _gan(**settings)
    _steps(begun, at)
    resumed = _gan(seed=9, **settings)
    resumed.load_state_dict(begun.state_dict())
    assert _steps(resumed, 7 - at) == told[at:]
    assert _equal(whole.state_dict()["tensors"], resumed.state_dict()["tensors"])
    assert whole.counters() == resumed.counters()
    assert resumed.done


def test_a_state_is_a_copy() -> None:
    gan = _gan()
    gan.step()
    state = gan.state_dict()["tensors"]
    kept = {k: v.clone() for k, v in state.items()}
    gan.step()
    assert _equal(state, kept)


# -------------------------------------------------------------------- safety


def test_nan_is_skipped_rolled_back_and_at_last_an_error() -> None:
    gan = _gan(images=torch.full((COUNT, 16, 16), math.nan), weighting="none")
    weights = {k: v.clone() for k, v in gan.tensors().items() if k.startswith("critic.")}
    for i in range(9):
        gan.step()
        assert (gan.skipped, gan.rollbacks) == (i + 1, 0)
    gan.step()
    assert (gan.skipped, gan.rollbacks) == (0, 1)
    now = gan.tensors()
    assert all(torch.equal(v, now[k]) for k, v in weights.items())
    with pytest.raises(DivergedError, match="NaN again and again"):
        _steps(gan, 40)


def test_one_bad_gradient_skips_one_update() -> None:
    gan = _gan()
    gan.step()
    calls = []

    def spoil(gradient: Tensor) -> Tensor:
        calls.append(1)
        return gradient * math.nan

    hook = gan.imaging.log_signal.register_hook(spoil)
    before = gan.tensors()["generator.hidden.0.weight"].clone()
    stats = gan.step()
    hook.remove()
    assert calls
    assert math.isnan(stats["generator_gradient"])
    assert torch.equal(before, gan.tensors()["generator.hidden.0.weight"])
    assert gan.skipped == 1
    assert math.isfinite(gan.step()["generator_gradient"])
    assert gan.skipped == 0


@pytest.mark.slow
def test_the_guard_tells_of_a_collapsed_camera() -> None:
    stages = (SortingStage(8, 100),)
    gan = _gan(camera="learned", learning_rate_generator=0.0, stages=stages, batch_size=2)
    told = _steps(gan, 5)
    assert {stats["camera_collapsed"] for stats in told} == {0.0}
    with torch.no_grad():
        last = gan.imaging.camera.blocks[1][2]
        last.bias.copy_(torch.tensor([100.0, 0.0, 0.0, 0.0, 100.0, 0.0]))
    told = _steps(gan, 90)
    assert told[-1]["camera_collapsed"] == 1.0
    assert told[-1]["camera_coverage"] < 0.05
    assert "camera_collapsed" not in _gan().step()


@pytest.mark.parametrize(
    "wrong",
    [{"stages": ()}, {"noise": "loud"}, {"batch_size": 1}, {"unknown": 1}, {"averaging": 1.0}],
    ids=str,
)
def test_impossible_settings_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        VaeGanConfig(**({"stages": (SortingStage(16, 1),)} | wrong))
