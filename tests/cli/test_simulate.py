import signal
import tomllib

import numpy as np
import pytest
import torch

from vitreous.core.params import Optics
from vitreous.core.rotation import euler_to_matrix
from vitreous.data.particles import Particles
from vitreous.io.mrc import MrcStack, read_mrc, write_mrc
from vitreous.io.star import read_star
from vitreous.jobs.run import progress
from vitreous.jobs.simulate import dataset as simulation
from vitreous.physics.simulator import simulate

CTF_TEXT = """# CTFFIND4 results
1 15000 14000 20 0 0.1 4
2 22000 21000 70 0.5 0.1 4
3 18000 18000 0 0 0.1 4
"""
MICROGRAPH = "rlnMicrographName"
SMALL = ("--box", 24, "--apix", 6, "--n", 120, "--quiet", "--threads", 1)


@pytest.fixture
def ctf_file(tmp_path):
    path = tmp_path / "ctf.txt"
    path.write_text(CTF_TEXT)
    return path


def tables(folder, name="truth.star"):
    document = read_star(folder / name)
    return document.blocks["optics"], document.blocks["particles"]


def noiseless_from_files(folder):
    """The images that truth.star and truth.mrc describe, built from the files alone."""
    optics, rows = tables(folder)

    def column(name):
        return torch.from_numpy(rows.numbers(name)).float()

    def group(name):
        return torch.full((len(rows),), float(optics.columns[name][0]))

    angles = [column(f"rlnAngle{name}") for name in ("Rot", "Tilt", "Psi")]
    shift = -torch.stack([column("rlnOriginXAngst"), column("rlnOriginYAngst")], -1)
    volume, header = read_mrc(folder / "truth.mrc")
    scale = {"scale": column("vitreousContrast")} if "vitreousContrast" in rows else {}
    return simulate(
        torch.from_numpy(volume),
        euler_to_matrix(torch.stack(angles, -1)),
        shift,
        Optics(
            defocus_u_angstrom=column("rlnDefocusU"),
            defocus_v_angstrom=column("rlnDefocusV"),
            defocus_angle_deg=column("rlnDefocusAngle"),
            phase_shift_deg=column("rlnPhaseShift"),
            voltage_kv=group("rlnVoltage"),
            cs_mm=group("rlnSphericalAberration"),
            amplitude_contrast=group("rlnAmplitudeContrast"),
            b_factor_angstrom2=column("rlnCtfBfactor"),
            **scale,
        ),
        header.pixel_size_angstrom,
    ).numpy()


def images_of(folder):
    return MrcStack(folder / "particles.mrcs").read(slice(None))


def test_files_describe_the_images_and_the_noise_has_the_asked_power(vitreous, tmp_path, ctf_file):
    out = tmp_path / "SIM"
    code, _, err = vitreous(
        *("simulate", "phantom:3", *SMALL, "--ctf", ctf_file, "--snr-db", "-7", "-o", out),
        *("--shift", "gaussian:8", "--envelope-nyquist", "0.3", "--kv", 200, "--q0", "0.07"),
    )
    assert (code, err) == (0, "")
    clean, noisy = noiseless_from_files(out), images_of(out)
    noise = noisy - clean
    signal_power = clean.var(axis=(1, 2)).mean()
    assert 10 * np.log10(signal_power / noise.var()) == pytest.approx(-7, abs=0.1)
    # what is left is white: no trace of the signal, neighbours uncorrelated
    assert abs(np.corrcoef(noise.ravel(), clean.ravel())[0, 1]) < 0.015
    assert abs(np.corrcoef(noise[..., 1:].ravel(), noise[..., :-1].ravel())[0, 1]) < 0.015
    optics, rows = tables(out)
    assert optics.columns["rlnVoltage"] == ["200.000000"]
    assert set(rows.columns["rlnPhaseShift"]) == {"0.000000", f"{np.degrees(0.5):.6f}"}
    assert MrcStack(out / "particles.mrcs").pixel_size_angstrom == pytest.approx(6)


def test_particles_star_holds_what_a_user_would_have(vitreous, tmp_path, ctf_file):
    out = tmp_path / "SIM"
    assert vitreous("simulate", "phantom:3", *SMALL, "--ctf", ctf_file, "-o", out)[0] == 0
    _, known = tables(out, "particles.star")
    _, truth = tables(out)
    assert not [name for name in known.columns if "Angle" in name and name != "rlnDefocusAngle"]
    assert not [name for name in known.columns if "Origin" in name]
    assert {name: truth.columns[name] for name in known.columns} == known.columns
    assert len(set(known.columns["rlnMicrographName"])) == 3
    assert len(set(known.columns["rlnImageName"])) == 120
    config = tomllib.loads((out / "config.toml").read_text())
    assert config["run"]["status"] == "finished"
    assert config["options"]["seed"] == 0
    assert set(config["inputs"]) == {"ctf_file"}
    assert not (out / "noise.star").exists()


def test_the_package_reads_back_what_it_wrote(vitreous, tmp_path, ctf_file):
    out = tmp_path / "SIM"
    noise = patch_stack(tmp_path, 2, 24, 6.0)
    call = ("simulate", "phantom:3", *SMALL, "--ctf", ctf_file, "--shift", "gaussian:8")
    assert vitreous(*call, "--noise", noise, "-o", out)[0] == 0
    known = Particles.open(out / "particles.star")
    assert (len(known), known.box_size, known.pixel_size_angstrom) == (120, 24, 6.0)
    assert known.pose is None
    assert set(known.micrograph_names) == set(tables(out)[1].columns[MICROGRAPH])
    truth = Particles.open(out / "truth.star")
    assert truth.pose.shift_angstrom.std() == pytest.approx(8, rel=0.15)
    assert torch.equal(truth.read(slice(None)), torch.from_numpy(images_of(out)))
    backgrounds = Particles.open(out / "noise.star")
    assert len(backgrounds) == 3
    assert set(backgrounds.micrograph_names) == set(known.micrograph_names)


def test_same_seed_same_bytes_other_seed_other_data(vitreous, tmp_path):
    for name, seed in (("a", 5), ("b", 5), ("c", 6)):
        call = ("simulate", "phantom:1", *SMALL, "--seed", seed, "-o", tmp_path / name)
        assert vitreous(*call)[0] == 0
    for file in ("particles.mrcs", "particles.star", "truth.star", "truth.mrc"):
        contents = [(tmp_path / name / file).read_bytes() for name in "abc"]
        assert contents[0] == contents[1]
        assert (contents[0] != contents[2]) == (file != "truth.mrc")


def test_chunks_do_not_change_the_truth(vitreous, tmp_path, monkeypatch):
    call = ("simulate", "phantom:1", *SMALL, "--snr-db", 40, "-o")
    assert vitreous(*call, tmp_path / "a")[0] == 0
    monkeypatch.setattr(simulation, "chunk_size", lambda box: 7)
    assert vitreous(*call, tmp_path / "b")[0] == 0
    truth = [(tmp_path / name / "truth.star").read_bytes() for name in "ab"]
    assert truth[0] == truth[1]
    a, b = (images_of(tmp_path / name) for name in "ab")
    assert np.corrcoef(a.ravel(), b.ravel())[0, 1] > 0.999


def patch_stack(folder, count, size, pixel):
    rng = np.random.default_rng(0)
    path = folder / "patches.mrcs"
    patches = 5.0 + 3.0 * rng.normal(size=(count, size, size))
    write_mrc(path, patches.astype(np.float32), pixel, is_stack=True)
    return path


@pytest.mark.parametrize("counts", [None, "2\n0\n3\n"])
def test_real_noise_comes_from_the_particles_own_micrograph(vitreous, tmp_path, ctf_file, counts):
    noise = patch_stack(tmp_path, 5, 24, 6.0)
    call = ["simulate", "phantom:3", *SMALL, "--ctf", ctf_file, "--noise", noise]
    if counts:
        (tmp_path / "counts.txt").write_text(counts)
        call += ["--noise-micrographs", tmp_path / "counts.txt"]
    out = tmp_path / "SIM"
    code, _, err = vitreous(*call, "-o", out)
    assert code == 0
    assert ("1 micrographs have no patch of their own" in err) == (counts is not None)
    _, owned = tables(out, "noise.star")
    owners = {}
    pairs = zip(*(owned.columns[f"rln{c}Name"] for c in ("Image", "Micrograph")), strict=True)
    for image, name in pairs:
        owners.setdefault(name, set()).add(int(image.split("@")[0]) - 1)
    names = list(dict.fromkeys(tables(out)[1].columns["rlnMicrographName"]))
    expected = [{0, 3}, {1, 4}, {2}] if counts is None else [{0, 1}, None, {2, 3, 4}]
    assert [owners.get(name) for name in names] == expected
    patches = MrcStack(out / "noise.mrcs").read(slice(None))
    assert patches.shape == (5, 24, 24)
    residual = images_of(out) - noiseless_from_files(out)
    likeness = np.corrcoef(residual.reshape(120, -1), patches.reshape(5, -1))[:120, 120:]
    assert likeness.max(axis=1).min() > 0.999
    drawn = likeness.argmax(axis=1)
    for image, name in enumerate(tables(out)[1].columns["rlnMicrographName"]):
        assert drawn[image] in owners.get(name, range(5))
    # every patch is used, and --snr-db 0 holds
    assert set(drawn) == set(range(5))


def test_patches_are_resampled_and_particles_get_windows_of_them(vitreous, tmp_path):
    noise = patch_stack(tmp_path, 4, 60, 3.0)  # 180 Å wide; the images are 144 Å
    out = tmp_path / "SIM"
    assert vitreous("simulate", "phantom:3", *SMALL, "--noise", noise, "-o", out)[0] == 0
    patches = MrcStack(out / "noise.mrcs")
    assert patches.shape == (4, 30, 30)
    assert patches.pixel_size_angstrom == pytest.approx(6.0)
    residual = images_of(out) - noiseless_from_files(out)
    power = noiseless_from_files(out).var(axis=(1, 2)).mean()
    assert 10 * np.log10(power / residual.var()) == pytest.approx(0, abs=0.3)


def test_poses_from_a_table_and_whole_pixel_shifts(vitreous, tmp_path):
    table = tmp_path / "poses.star"
    head = "data_particles\nloop_\n_rlnAngleRot\n_rlnAngleTilt\n_rlnAnglePsi\n"
    table.write_text(head + "10 20 30\n40 50 60\n")
    out = tmp_path / "SIM"
    call = ("simulate", "phantom:3", *SMALL, "--poses", f"star:{table}", "--shift", "pixels:36")
    assert vitreous(*call, "-o", out)[0] == 0
    rows = tables(out)[1]
    tilts = set(np.round(rows.numbers("rlnAngleTilt"), 3))
    assert tilts == {20.0, 50.0}
    shifts = rows.numbers("rlnOriginXAngst") / 6
    assert np.allclose(shifts, shifts.round(), atol=1e-4)
    assert 1 <= np.abs(shifts).max() <= 3


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("phantom:x",), 2, "phantom:x"),
        (("phantom:1", "--poses", "flat"), 2, "--poses flat: choose"),
        (("phantom:1", "--poses", "gaussian:-1"), 2, "not negative"),
        (("phantom:1", "--shift", "triangular"), 2, "--shift"),
        (("phantom:1", "--defocus", "2:1"), 2, "LOW <= HIGH"),
        (("phantom:1", "--beam-tilt", "0.3"), 2, "--beam-tilt 0.3: give two numbers, X:Y"),
        (("phantom:1", "--snr", "1", "--snr-db", "0"), 2, "exclude"),
        (("phantom:1", "--b-factor", "1", "--envelope-nyquist", "0.5"), 2, "exclude"),
        (("phantom:1", "--snr-db", "nan"), 2, "--snr-db"),
        (("phantom:1", "--sym", "Q7"), 2, "Q7"),
        (("phantom:1", "--ctf", "no.txt"), 3, "no.txt"),
        (("phantom:1", "--ctf", "{ctf}", "--n-micrographs", "9"), 3, "3 micrographs"),
        (("phantom:1", "--noise", "{small}"), 3, "patches of 60 Å cannot fill"),
        (("phantom:1", "--noise", "{small}", "--noise-micrographs", "{ctf}"), 3, "cannot fill"),
        (("phantom:1", "--poses", "star:{ctf}"), 3, "data_ block"),
        (("no.mrc",), 3, "no.mrc"),
        (("no.cif",), 3, "no.cif"),
    ],
)
def test_faults_are_one_line_and_write_nothing(
    vitreous, tmp_path, ctf_file, arguments, code, message
):
    places = {"ctf": ctf_file, "small": patch_stack(tmp_path, 2, 20, 3.0)}
    given = [argument.format(**places) for argument in arguments]
    out = tmp_path / "OUT"
    got, _, err = vitreous("simulate", *given, "--box", 24, "--apix", 6, "--n", 9, "-q", "-o", out)
    assert got == code
    assert message in " ".join(err.split())
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert not out.exists()


def test_counts_must_cover_the_patches(vitreous, tmp_path, ctf_file):
    noise = patch_stack(tmp_path, 5, 24, 6.0)
    for text, message in (("1\n1\n", "counts sum to 2"), ("1\nmany\n", "line 2: 'many'")):
        (tmp_path / "counts.txt").write_text(text)
        code, _, err = vitreous(
            *("simulate", "phantom:3", *SMALL, "--ctf", ctf_file, "--noise", noise),
            *("--noise-micrographs", tmp_path / "counts.txt", "-o", tmp_path / "OUT"),
        )
        assert code == 3
        assert message in err


def test_map_input_is_resampled_and_symmetry_checked(vitreous, tmp_path):
    source = tmp_path / "SRC"
    assert vitreous("simulate", "phantom:3", *SMALL, "--sym", "C2", "-o", source)[0] == 0
    call = ("simulate", source / "truth.mrc", "--box", 20, "--apix", 8, "--n", 9, "-q")
    assert vitreous(*call, "-o", tmp_path / "A")[0] == 0
    volume, header = read_mrc(tmp_path / "A" / "truth.mrc")
    assert volume.shape == (20, 20, 20)
    assert header.pixel_size_angstrom == pytest.approx(8)
    assert vitreous(*call, "--sym", "C2", "-o", tmp_path / "B")[0] == 0
    code, _, err = vitreous(*call, "--sym", "C4", "-o", tmp_path / "C")
    assert code == 3
    assert "not C4 about RELION's axes" in err


def test_a_map_cut_by_the_box_is_warned_about(vitreous, tmp_path):
    source = tmp_path / "map.mrc"
    density = np.zeros((40, 40, 40), np.float32)
    density[8:33, 15:25, 15:25] = 1.0  # 150 Å long
    write_mrc(source, density, 6.0)
    for box, warned in ((32, False), (16, True)):
        call = ("simulate", source, "--box", box, "--apix", 6, "--n", 9, "-q")
        code, _, err = vitreous(*call, "-o", tmp_path / str(box))
        assert code == 0
        assert ("of its power lies outside the box" in err) == warned


def test_signal_ends_with_its_code_and_no_partial_stack(vitreous, tmp_path, monkeypatch):
    monkeypatch.setattr(simulation, "chunk_size", lambda box: 10)
    update = progress.RunProgress.update

    def interrupted(self, fraction, stats=None):
        if fraction > 0.5:
            signal.raise_signal(signal.SIGTERM)
        update(self, fraction, stats)

    monkeypatch.setattr(progress.RunProgress, "update", interrupted)
    out = tmp_path / "SIM"
    assert vitreous("simulate", "phantom:3", *SMALL, "-o", out)[0] == 128 + signal.SIGTERM
    assert [path.name for path in out.iterdir()] == ["config.toml"]
    monkeypatch.setattr(progress.RunProgress, "update", update)
    assert vitreous("simulate", "phantom:3", *SMALL, "-o", out)[0] == 2
    assert vitreous("simulate", "phantom:3", *SMALL, "-o", out, "--overwrite")[0] == 0


def test_real_model_and_ctf(vitreous, tmp_path, shared_data):
    out = tmp_path / "SIM"
    code, _, err = vitreous(
        *("simulate", shared_data / "models" / "5a1a.cif.gz", "--box", 32, "--apix", 7.2),
        *("--ctf", shared_data / "empiar10061" / "ctffind_1539.txt", "--n", 200, "-o", out),
        *("--noise", shared_data / "empiar10061" / "background_192.mrcs", "--seed", 1, "-q"),
        *("--noise-micrographs", shared_data / "empiar10061" / "particles_per_micrograph.txt"),
        *("--n-micrographs", 6),
    )
    assert (code, err) == (0, "")
    assert len(set(tables(out)[1].columns["rlnMicrographName"])) == 6
    assert len(tables(out, "noise.star")[1]) == 101


def test_states_of_a_bending_phantom_are_mixed_and_told(vitreous, tmp_path):
    out = tmp_path / "SIM"
    code, _, err = vitreous(
        *("simulate", "phantom:2", "--hinge", 40, "--states", 3, *SMALL, "-o", out),
        *("--snr-db", 40),
    )
    assert (code, err) == (0, "")
    states = tables(out)[1].numbers("rlnClassNumber").astype(int)
    assert np.bincount(states).tolist() == [0, 40, 40, 40]
    assert "rlnClassNumber" not in tables(out, "particles.star")[1].columns
    assert not (out / "truth.mrc").exists()
    images = torch.from_numpy(images_of(out).astype(np.float32))
    likeness = []
    for k in (1, 2, 3):
        (out / "truth.mrc").write_bytes((out / f"truth{k:02d}.mrc").read_bytes())
        clean = torch.from_numpy(noiseless_from_files(out))
        likeness.append(-(images - clean).square().sum((1, 2)))
    assert (torch.stack(likeness).argmax(0) + 1).tolist() == states.tolist()


def test_molecules_are_mixed_by_also(vitreous, tmp_path):
    out = tmp_path / "SIM"
    code, _, err = vitreous("simulate", "phantom:2", "--also", "phantom:3", *SMALL, "-o", out)
    assert (code, err) == (0, "")
    first, second = (read_mrc(out / f"truth0{k}.mrc")[0] for k in (1, 2))
    assert np.corrcoef(first.ravel(), second.ravel())[0, 1] < 0.9
    assert tomllib.loads((out / "config.toml").read_text())["options"]["also"] == ["phantom:3"]


def test_only_a_phantom_bends(vitreous, tmp_path):
    code, _, err = vitreous("simulate", "a.mrc", "--hinge", 40, *SMALL, "-o", tmp_path / "SIM")
    assert code == 2
    assert "--hinge bends a phantom" in err


# ----------------------------------------------------------------------------- imperfections


def simulated(vitreous, folder, *options):
    call = ("simulate", "phantom:3", *SMALL, "--snr-db", 60, "--n-micrographs", 6, *options)
    code, _, err = vitreous(*call, "-o", folder)
    assert (code, err) == (0, "")
    return folder


def test_ice_scales_the_contrast_of_micrographs_and_particles(vitreous, tmp_path):
    out = simulated(vitreous, tmp_path / "SIM", "--ice-micrographs", 0.4, "--ice-particles", 0.1)
    contrast, names = (tables(out)[1].columns[n] for n in ("vitreousContrast", MICROGRAPH))
    of_micrographs = {}
    for name, value in zip(names, np.log(np.array(contrast, float)), strict=True):
        of_micrographs.setdefault(name, []).append(value)
    within = np.concatenate([np.array(one) - np.mean(one) for one in of_micrographs.values()])
    assert within.std() == pytest.approx(0.1, rel=0.25)
    assert np.std([np.mean(one) for one in of_micrographs.values()]) > 0.2
    clean = noiseless_from_files(out)
    assert np.allclose(images_of(out), clean, atol=0.03 * clean.std())
    assert "vitreousContrast" not in tables(out, "particles.star")[1]


def test_defocus_of_particles_lies_around_their_micrograph_s(vitreous, tmp_path):
    out = simulated(vitreous, tmp_path / "SIM", "--defocus-spread", 300)
    true, known = (tables(out, name)[1] for name in ("truth.star", "particles.star"))
    for name in ("rlnDefocusU", "rlnDefocusV"):
        change = true.numbers(name) - known.numbers(name)
        assert np.abs(change).max() < 300
        assert change.std() == pytest.approx(300 / 3**0.5, rel=0.15)
    assert len(set(known.columns["rlnDefocusU"])) == 6
    clean = noiseless_from_files(out)
    assert np.allclose(images_of(out), clean, atol=0.03 * clean.std())


def test_beam_tilt_is_in_the_images_and_in_truth_alone(vitreous, tmp_path):
    out = simulated(vitreous, tmp_path / "SIM", "--apix", 2, "--beam-tilt", "3:-2")
    optics, _ = tables(out)
    assert [float(optics.columns[f"rlnBeamTilt{axis}"][0]) for axis in "XY"] == [3, -2]
    assert "rlnBeamTiltX" not in tables(out, "particles.star")[0]
    clean = noiseless_from_files(out)
    told, untold = (
        Particles.open(out / name).read(slice(None)).numpy()
        for name in ("truth.star", "particles.star")
    )
    assert np.corrcoef(told.ravel(), clean.ravel())[0, 1] > 0.999
    assert np.corrcoef(untold.ravel(), clean.ravel())[0, 1] < 0.95


def test_junk_is_marked_and_shows_no_single_particle(vitreous, tmp_path):
    out = simulated(vitreous, tmp_path / "SIM", "--junk", 0.3)
    kind = tables(out)[1].numbers("vitreousJunk").astype(int)
    assert np.bincount(kind).tolist() == [84, 12, 12, 12]
    assert "vitreousJunk" not in tables(out, "particles.star")[1]
    images, clean = images_of(out), noiseless_from_files(out)
    likeness = [np.corrcoef(a.ravel(), b.ravel())[0, 1] for a, b in zip(images, clean, strict=True)]
    likeness = np.array(likeness)
    assert likeness[kind == 0].min() > 0.999
    assert np.abs(likeness[kind == 1]).max() < 0.3
    assert likeness[kind == 2].max() < 0.9
    assert 0.4 < likeness[kind == 3].mean() < 0.95
    assert images[kind == 1].std() < 0.01 * clean.std()


def test_a_micelle_is_a_weak_belt_around_the_middle(vitreous, tmp_path):
    size = ("--box", 32, "--apix", 7, "--n", 4)
    plain, belted = (
        read_mrc(simulated(vitreous, tmp_path / f"S{len(more)}", *size, *more) / "truth.mrc")[0]
        for more in ((), ("--micelle", 0.3))
    )
    belt = belted - plain
    protein = plain[plain > 0.3 * plain.max()].mean()
    assert 0.15 < belt.max() / protein < 0.4
    by_height = belt.sum((1, 2))
    axis = (np.arange(32) - 16) * 7
    assert by_height[np.abs(axis) > 50].sum() < 0.05 * by_height.sum()
    assert np.corrcoef(belt.ravel(), plain.ravel())[0, 1] < 0.2
    for more, message in (
        (("--sym", "O"), "--micelle 0.3: a belt has the symmetry of C or D groups, not O"),
        (("--box", 16), "give a larger --box"),
    ):
        call = ("simulate", "phantom:3", "--micelle", 0.3, *SMALL, *more, "-o", tmp_path / "O")
        code, _, err = vitreous(*call)
        assert code == 2
        assert message in err
