"""The parts of ``vitreous abinit`` that need no second process."""

import multiprocessing
import os

import numpy as np
import pytest
import torch

from vitreous.core.errors import DivergedError, InputError, ResourceError, UsageError, VitreousError
from vitreous.core.params import Optics
from vitreous.data.grey_values import GreyValues
from vitreous.data.half_sets import assign_half_sets
from vitreous.data.noise_files import NoiseFiles
from vitreous.data.particles import Particles
from vitreous.data.tables import make_document
from vitreous.data.working_images import SignedImages
from vitreous.io.mrc import write_mrc
from vitreous.io.star import write_star
from vitreous.jobs.cryogan import half_worker
from vitreous.jobs.cryogan.half_processes import WorkerBugError, listen_to
from vitreous.jobs.cryogan.half_worker import HalfJob, Outcome
from vitreous.jobs.cryogan.options import CryoGanOptions
from vitreous.jobs.cryogan.plan import solver_config
from vitreous.jobs.inputs.options import StackOpticsOptions
from vitreous.jobs.inputs.particles import check_images, open_particles
from vitreous.jobs.run.history import HistoryFile, read_rows
from vitreous.methods.cryogan.config import CryoGanConfig, TrainingStage

CTF_TEXT = "a.mrc 1 15000 14000 20 0 0.1 4\nb.mrc 2 22000 21000 70 0.5 0.1 4\n"


def images(n=10, box=16, seed=0):
    return torch.randn(n, box, box, generator=torch.Generator().manual_seed(seed))


def particles(n=10, box=16, **options):
    return Particles.from_arrays(
        images(n, box), Optics.uniform(n), pixel_size_angstrom=4.0, **options
    )


def write_stack(path, data, pixel=4.0):
    write_mrc(path, data.numpy(), pixel, is_stack=True)
    return path


# ---------------------------------------------------------------- half sets and sources


def test_halves_are_kept_where_given_and_drawn_from_the_seed_elsewhere():
    drawn = assign_half_sets(particles().half_set, 1)
    assert sorted(drawn.tolist()) == [1] * 5 + [2] * 5
    assert torch.equal(drawn, assign_half_sets(particles().half_set, 1))
    assert any(not torch.equal(drawn, assign_half_sets(particles().half_set, s)) for s in (2, 3))
    given = torch.tensor([1, 1, 2, 2, 2, 2, 2, 2, 2, 2])
    assert torch.equal(assign_half_sets(particles(half_set=given).half_set, 1), given)
    some = torch.tensor([1, 1, 1, 0, 0, 0, 0, 0, 0, 2])
    filled = assign_half_sets(particles(half_set=some).half_set, 1)
    assert torch.equal(filled[some > 0], some[some > 0])
    assert int((filled == 1).sum()) == 5


def test_a_half_without_particles_is_refused():
    with pytest.raises(InputError, match="half sets of 10 and 0"):
        assign_half_sets(particles(half_set=torch.ones(10, dtype=torch.long)).half_set, 1)


def test_a_stack_with_ctf_table_becomes_particles(tmp_path):
    stack = write_stack(tmp_path / "p.mrcs", images(5))
    (tmp_path / "ctf.txt").write_text(CTF_TEXT)
    (tmp_path / "counts.txt").write_text("2\n7\n")
    files = StackOpticsOptions(
        particles=stack,
        ctf_file=tmp_path / "ctf.txt",
        particles_per_micrograph=tmp_path / "counts.txt",
        voltage_kv=200.0,
    )
    found = open_particles(files)
    assert found.micrograph_id.tolist() == [0, 0, 1, 1, 1]
    assert found.optics.defocus_u_angstrom.tolist() == [15000.0] * 2 + [22000.0] * 3
    assert found.optics.voltage_kv.tolist() == [200.0] * 5
    assert found.pixel_size_angstrom == pytest.approx(4.0)
    assert torch.equal(found.select([3, 1]).read([0, 1]), images(5)[[3, 1]])
    document = found.to_star_document(relative_to=tmp_path / "OUT")
    assert document.blocks["particles"].columns["rlnImageName"][4] == "000005@p.mrcs"
    (tmp_path / "counts.txt").write_text("1\n1\n9\n")
    with pytest.raises(InputError, match="has only 2 micrographs"):
        open_particles(files)
    with pytest.raises(UsageError, match="a stack alone has no CTF"):
        open_particles(StackOpticsOptions(particles=stack))


def test_dark_protein_is_inverted():
    some = particles()
    index = torch.tensor([2])
    assert torch.equal(
        SignedImages(some, GreyValues(dark=True, normalise=False)).read(index), -some.read(index)
    )
    assert torch.equal(
        SignedImages(some, GreyValues(normalise=False)).read(index), some.read(index)
    )


def checked(data, *, skip_bad=False):
    given = Particles.from_arrays(data, Optics.uniform(len(data)), pixel_size_angstrom=4.0)
    return check_images(given, skip_bad=skip_bad, quiet=True)


def test_one_look_at_all_images_tells_changed_pixels():
    changed = images()
    changed[7, 3, 3] += 1e-3
    found = checked(images())
    assert found.rows.tolist() == list(range(10))
    assert checked(images()).digest == found.digest
    assert checked(changed).digest != found.digest
    assert checked(images().flip(0)).digest != found.digest


def test_bad_images_are_left_out_of_rows_and_digest():
    spoiled = torch.cat([images(), torch.ones(1, 16, 16)])
    with pytest.warns(UserWarning, match="1 constant"):
        found = checked(spoiled)
    assert found.digest == checked(images()).digest
    spoiled[4, 2, 2] = torch.nan
    with pytest.raises(InputError, match="`skip_bad`"):
        checked(spoiled)
    with pytest.warns(UserWarning, match="1 with NaN"):
        assert checked(spoiled, skip_bad=True).rows.tolist() == [0, 1, 2, 3, 5, 6, 7, 8, 9]


# ---------------------------------------------------------------- noise


def noise_folder(tmp_path, names=("b.mrc", "a.mrc", "b.mrc")):
    patches = torch.stack([images(1, 16, s)[0] for s in range(3)])
    write_stack(tmp_path / "noise.mrcs", patches)
    table = make_document(
        [f"{i + 1}@noise.mrcs" for i in range(3)],
        Optics.uniform(3),
        pixel_size_angstrom=4.0,
        box_size=16,
        micrograph_names=list(names),
    )
    write_star(tmp_path / "noise.star", table)
    return patches


@pytest.mark.parametrize("name", ["noise.mrcs", "noise.star"])
def test_patches_are_paired_by_micrograph_name(tmp_path, name):
    patches = noise_folder(tmp_path)
    noise = NoiseFiles(tmp_path / name, invert=True).load(("a.mrc", "b.mrc"), 16, 4.0)
    assert noise.micrograph_id.tolist() == [1, 0, 1]
    drawn = noise.sample(
        50, 16, micrograph_id=torch.zeros(50, dtype=torch.long), generator=torch.Generator()
    )
    expected = -(patches[1] - patches[1].mean()) / patches[1].std(correction=0)
    assert torch.allclose(drawn, expected.expand(50, -1, -1), atol=1e-5)


def test_patches_without_table_serve_every_micrograph(tmp_path):
    noise_folder(tmp_path)
    (tmp_path / "noise.star").unlink()
    noise = NoiseFiles(tmp_path / "noise.mrcs").load(("a.mrc", "b.mrc"), 16, 4.0)
    for micrograph in (0, 1):
        ids = torch.full((60,), micrograph)
        drawn = noise.sample(60, 16, micrograph_id=ids, generator=torch.Generator())
        assert len(drawn.unique(dim=0)) == 3


def test_patches_follow_the_working_pixel_and_must_cover_the_box(tmp_path):
    noise_folder(tmp_path)
    noise = NoiseFiles(tmp_path / "noise.star").load(("a.mrc",), 8, 8.0)
    assert noise.patches.shape == (3, 8, 8)
    with pytest.raises(InputError, match="cannot fill images of 128 Å"):
        NoiseFiles(tmp_path / "noise.star").load(("a.mrc",), 16, 8.0)
    with pytest.raises(InputError, match="no patch is from a micrograph of the particles"):
        NoiseFiles(tmp_path / "noise.star").load(("c.mrc",), 16, 4.0)


# ---------------------------------------------------------------- settings


def settled(tmp_path, text="", **options):
    path = tmp_path / "c.toml"
    path.write_text(text)
    settings = path if text else None
    request = CryoGanOptions(
        particles=path, output=tmp_path / "OUT", settings_file=settings, **options
    )
    return solver_config(request, particles(box=48))


def test_settings_come_from_preset_then_file_then_command_line(tmp_path):
    assert settled(tmp_path).stages[-1].box_size == 48
    assert settled(tmp_path, preset="paper").width == 96
    from_file = settled(tmp_path, "width = 5\nlearning_rate_volume = 0.5", preset="paper")
    assert (from_file.width, from_file.learning_rate_volume) == (5, 0.5)
    assert from_file.critic == "paper"
    both = settled(tmp_path, "learning_rate_volume = 0.5", learning_rate_volume=0.25)
    assert both.learning_rate_volume == 0.25
    assert settled(tmp_path, symmetry="D2").symmetry == "D2"
    # the sphere is 96 of 192 Å wide
    assert settled(tmp_path, mask_diameter_angstrom=96.0).mask_fraction == pytest.approx(0.25)


def test_effort_multiplies_every_stage(tmp_path):
    once, twice = settled(tmp_path), settled(tmp_path, effort=2.0)
    assert [s.iterations * 2 for s in once.stages] == [s.iterations for s in twice.stages]
    short = settled(tmp_path, "stages = [{box_size = 48, iterations = 100}]", effort=1e-3)
    assert [s.iterations for s in short.stages] == [1]


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        ("", {"box_size": 64}, "larger than the images"),
        ("", {"mask_diameter_angstrom": 200.0}, "wider than the images"),
        ("widht = 5", {}, "unknown key widht"),
        ("width = 'many'", {}, "width"),
        ("stages = [{box_size = 32, iterations = 2}, {box_size = 16, iterations = 2}]", {}, "grow"),
        ("stages = [{box_size = 16, iterations = 2}]", {"box_size": 32}, "last stage's box is 16"),
    ],
)
def test_impossible_settings_are_named(tmp_path, text, options, message):
    with pytest.raises(UsageError, match=message):
        settled(tmp_path, text, **options)


def test_options_that_exclude_each_other(vitreous, tmp_path):
    call = ("abinit", "p.star", "-o", tmp_path / "o")
    code, _, err = vitreous(*call, "--envelope-nyquist", "0.4", "--b-factor", "100")
    assert (code, "exclude each other" in err) == (2, True)
    assert vitreous(*call, "--effort", "nan")[0] == 2
    assert vitreous(*call)[0] == 3
    assert not (tmp_path / "o").exists()


# ---------------------------------------------------------------- listening to the halves


class Process:
    exitcode = -9

    def join(self, timeout=None):
        """Gone already."""


def listened(messages, closed=()):
    """What the parent makes of these last words, and what it told each half."""
    pipes = {half: multiprocessing.Pipe() for half in (1, 2)}
    for half, message in messages.items():
        pipes[half][1].send(message)
    for half in closed:
        pipes[half][1].close()
    heard = []
    links = {half: pair[0] for half, pair in pipes.items()}
    try:
        return listen_to(links, {1: Process(), 2: Process()}, lambda: False, heard.append)
    finally:
        for half, (_, theirs) in pipes.items():
            told = not theirs.closed and theirs.poll() and theirs.recv()
            assert (half in messages) or half in closed or told == "stop"


OUTCOME = Outcome(np.zeros((2, 2, 2), np.float32), {}, 1.0)


@pytest.mark.parametrize("kind", [UsageError, InputError, ResourceError, DivergedError])
def test_an_error_of_a_half_is_the_runs_error(kind):
    with pytest.raises(kind, match="half 2: no"):
        listened({1: ("stopped",), 2: ("error", kind.exit_code, "half 2: no")})


def test_a_bug_of_a_half_is_a_bug_of_the_run():
    with pytest.raises(WorkerBugError, match="ZeroDivisionError"):
        listened({1: ("done", OUTCOME), 2: ("bug", "ZeroDivisionError")})


def test_fault_29_and_36_a_half_that_dies_is_named():
    with pytest.raises(VitreousError, match=r"half 1: its process died \(signal 9") as caught:
        listened({2: ("stopped",)}, closed=(1,))
    assert caught.value.exit_code == 4


def test_both_done_is_done_and_one_stopped_is_not():
    assert set(listened({1: ("done", OUTCOME), 2: ("done", OUTCOME)})) == {1, 2}
    assert listened({1: ("done", OUTCOME), 2: ("stopped",)}) is None


# ---------------------------------------------------------------- one half


@pytest.fixture
def job(tmp_path):
    stack = write_stack(tmp_path / "p.mrcs", images(12))
    (tmp_path / "ctf.txt").write_text(CTF_TEXT)
    (tmp_path / "counts.txt").write_text("6\n6\n")
    options = CryoGanOptions(
        particles=stack,
        ctf_file=tmp_path / "ctf.txt",
        particles_per_micrograph=tmp_path / "counts.txt",
        output=tmp_path,
        seed=1,
        save_minutes=1e6,
    )
    return HalfJob(
        half=1,
        options=options,
        rows=np.arange(0, 12, 2),
        grey=GreyValues(),
        config=CryoGanConfig(stages=(TrainingStage(16, 6),), width=2, batch_size=4),
        box_size=16,
        pixel_size_angstrom=4.0,
        b_factor_angstrom2=None,
        device="cpu",
        threads=1,
        checkpoints=tmp_path / "half1",
        marks=(3,),
        resume=False,
        parent=os.getppid(),
    )


def conversation(job):
    """Everything that a half says, run in this process."""
    ours, theirs = multiprocessing.Pipe()
    last = half_worker.attempt(job, theirs)
    theirs.close()
    said = []
    while ours.poll():
        try:
            said.append(ours.recv())
        except EOFError:
            break
    return [*said, last]


def test_a_half_sends_rows_its_volume_at_marks_and_its_outcome(job):
    said = conversation(job)
    kinds = [message[0] for message in said]
    assert kinds.count("mark") == 1
    assert next(m for m in said if m[0] == "mark")[1:3] == (1, 3)
    assert kinds[-1] == "done"
    outcome = said[-1][1]
    assert outcome.volume.shape == (16, 16, 16)
    assert set(outcome.examples) == {
        "clean_projections",
        "ctf_projections",
        "simulated_images",
        "real_images",
    }
    rows = [m[1] for m in said if m[0] == "row"]
    assert rows[-1]["step"] == 6
    assert len(list(job.checkpoints.glob("step_00000006.json"))) == 1


def test_watching_draws_nothing_from_the_runs_own_streams(job, monkeypatch):
    import dataclasses

    often = conversation(job)[-1][1].volume
    monkeypatch.setattr(half_worker.HalfRun, "_snr_db", lambda self: 0.0)
    seldom = conversation(dataclasses.replace(job, marks=()))[-1][1].volume
    assert np.array_equal(often, seldom)
    other = conversation(dataclasses.replace(job, half=2))[-1][1].volume  # its own streams
    assert not np.array_equal(often, other)


def test_a_value_that_is_not_finite_is_never_saved(job):
    half = half_worker.HalfRun(job, multiprocessing.Pipe()[1])
    with torch.no_grad():
        half.gan.average[0] = float("nan")
    half.save(last=False)
    with pytest.raises(DivergedError, match="average is not finite"):
        half.save(last=True)
    assert not list(job.checkpoints.parent.glob("half1/*"))


def test_an_orphan_writes_nothing(job):
    import dataclasses

    orphan = dataclasses.replace(job, parent=1 if os.getppid() != 1 else 2)
    with pytest.raises(half_worker.ParentGoneError):
        conversation(orphan)
    assert not job.checkpoints.exists()


def test_out_of_memory_and_bugs_are_told_apart(job, monkeypatch):
    def fail(error):
        def step(self):
            raise error

        monkeypatch.setattr(half_worker.CryoGan, "step", step)
        return conversation(job)[-1]

    assert fail(torch.OutOfMemoryError("CUDA out of memory"))[:2] == ("error", 4)
    assert fail(DivergedError("x")) == ("error", 5, "half 1: x")
    kind, text = fail(ZeroDivisionError("by zero"))
    assert kind == "bug"
    assert "ZeroDivisionError" in text


def test_history_survives_lines_that_are_cut_or_no_rows(tmp_path):
    path = tmp_path / "history.jsonl"
    lines = ['{"step": 1, "half": 1}', "[" * 100_000, '{"seconds": "x"}']
    path.write_text("\n".join([*lines, '{"step": 2, "resolution_angstrom": 9.0}', '{"st']))
    with HistoryFile(path, read_rows(path)[1:]) as history:
        history.add({"step": 3, "half": 1, "wasserstein": float("nan")})
    assert path.read_text().splitlines() == [
        '{"step": 2, "resolution_angstrom": 9.0}',
        '{"step": 3, "half": 1, "wasserstein": null}',
    ]
