"""The whole command: outputs; and, in processes as a user starts it, kill and go on."""

import json
import os
import signal
import subprocess
import sys
import tomllib

import numpy as np
import pytest

from vitreous.io.mrc import read_mrc, write_mrc
from vitreous.io.star import StarBlock, StarDocument, read_star, write_star

ITERATIONS, FEW = 160, 24
CONFIG = """
batch_size = 8
width = 4
stages = [{ box_size = 12, iterations = 60 }, { box_size = 16, iterations = 100 }]
"""
SHORT = CONFIG.replace("60", "12").replace("100", "12")
MAPS = ("half1.mrc", "half2.mrc", "map.mrc")
PROGRAM = "import sys; from vitreous.cli.main import run; sys.argv[0] = 'vitreous'; run()"
LIMIT = 120


def arguments(data, out, *more, config="config.toml"):
    call = ("abinit", data / "particles.star", "--config", data / config, "-o", out)
    return [*map(str, call), "--sym", "D2", "--seed", "3", "--threads", "2", *more]


def start(*call):
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, *call],
        env=environment,
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def steps(out, half):
    """Steps of the checkpoints that are there now, newest last."""
    found = (out / "checkpoints" / f"half{half}").glob("step_*.json")
    return sorted(int(path.stem.split("_")[1]) for path in found)


def wait_until(process, condition):
    """Until the condition holds; the process must not end before."""
    for _ in range(LIMIT * 50):
        if condition():
            return
        try:
            process.wait(0.02)
        except subprocess.TimeoutExpired:
            continue
        break
    process.kill()
    pytest.fail(f"ended or waited in vain: {process.communicate()[1]}")


def children(pid):
    with open(f"/proc/{pid}/task/{pid}/children") as stream:
        pids = [int(word) for word in stream.read().split()]
    return [p for p in pids if "spawn_main" in command_line(p)]


def command_line(pid):
    try:
        with open(f"/proc/{pid}/cmdline") as stream:
            return stream.read()
    except OSError:
        return ""


def maps_of(out):
    return {name: read_mrc(out / name)[0] for name in MAPS}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """300 particles of 16 px with a random split written down."""
    from vitreous.cli.main import app

    folder = tmp_path_factory.mktemp("abinit") / "SIM"
    call = ["simulate", "phantom:1", "--sym", "D2", "--box", "16", "--apix", "12", "--n", "300"]
    app([*call, "--snr-db", "3", "-q", "--threads", "1", "-o", str(folder)], standalone_mode=False)
    (folder / "config.toml").write_text(CONFIG)
    (folder / "short.toml").write_text(SHORT)
    return folder


@pytest.fixture(scope="module")
def short(data, quick_processes):
    """A run of few steps, started in this process: its folder, and what it printed."""
    from typer.testing import CliRunner

    from vitreous.cli.main import app

    out = data.parent / "SHORT"
    done = CliRunner().invoke(app, [*arguments(data, out, config="short.toml"), "-q"])
    assert done.exit_code == 0, done.output
    return out, done.stdout


@pytest.fixture(scope="module")
def unbroken(data):
    """A run left alone."""
    out = data.parent / "OUT"
    process = start(*arguments(data, out))
    stdout, stderr = process.communicate(timeout=LIMIT)
    assert process.returncode == 0, stderr
    return out, stdout


def test_writes_what_the_architecture_promises(data, short):
    check_outputs(data, short[0], 12)


@pytest.mark.slow
def test_a_process_writes_the_same(data, unbroken):
    check_outputs(data, unbroken[0], 100)
    check_verdict(*unbroken)
    check_history(unbroken[0], ITERATIONS)


def check_outputs(data, out, last_iterations):
    names = {path.name for path in out.iterdir()}
    assert names == {
        *MAPS,
        *("config.toml", "particles.star", "fsc.csv", "history.jsonl", "report.html"),
        "checkpoints",
    }
    maps = maps_of(out)
    assert {m.shape for m in maps.values()} == {(16, 16, 16)}
    assert all(np.isfinite(m).all() and m.std() > 0 for m in maps.values())
    assert read_mrc(out / "map.mrc")[1].pixel_size_angstrom == pytest.approx(12)
    given = read_star(data / "particles.star").blocks["particles"].columns
    rows = read_star(out / "particles.star").blocks["particles"].columns
    assert {n: rows[n] for n in given if n != "rlnImageName"} == {
        n: given[n] for n in given if n != "rlnImageName"
    }
    assert rows["rlnImageName"][0] == "000001@SIM/particles.mrcs"
    assert sorted(rows["rlnRandomSubset"]) == ["1"] * 150 + ["2"] * 150
    config = tomllib.loads((out / "config.toml").read_text())
    assert config["run"]["status"] == "finished"
    assert config["options"]["stages"][1] == {"box_size": 16, "iterations": last_iterations}
    assert config["options"]["symmetry"] == "D2"
    assert (config["machine"]["threads_per_half"], config["options"]["seed"]) == (1, 3)


def test_too_few_particles_are_not_called_solved(short):
    check_verdict(*short)


def check_verdict(out, stdout):
    assert stdout.startswith("NOT SOLVED: 300 particles are too few")
    assert "none, as the map is not solved" in stdout
    assert "Å at 0.143" not in stdout
    assert "NOT SOLVED" in (out / "report.html").read_text()
    run = tomllib.loads((out / "config.toml").read_text())["run"]
    assert run["solved"] is False


def test_history_holds_both_halves_to_the_end_and_comparisons(short):
    check_history(short[0], FEW)


def check_history(out, iterations):
    rows = [json.loads(line) for line in (out / "history.jsonl").read_text().splitlines()]
    for half in (1, 2):
        own = [row for row in rows if row.get("half") == half]
        assert own[-1]["step"] == iterations
        assert [row["step"] for row in own] == sorted({row["step"] for row in own})
        assert {"wasserstein", "signal", "noise", "snr_db", "epoch", "box"} <= set(own[0])
        assert {row["box"] for row in own} == {12.0, 16.0}
    assert any("resolution_angstrom" in row for row in rows)


@pytest.mark.slow
def test_killed_twice_and_continued_is_bitwise_the_run_left_alone(data, unbroken, tmp_path):
    out = tmp_path / "OUT"
    often = ("--checkpoint-every", "0")

    process = start(*arguments(data, out, *often))
    wait_until(process, lambda: min((steps(out, h) or [0])[-1] for h in (1, 2)) > 20)
    os.killpg(process.pid, signal.SIGKILL)  # parent and children at once
    process.communicate(timeout=LIMIT)
    killed = [steps(out, h)[-1] for h in (1, 2)]
    assert min(killed) < ITERATIONS
    assert not (out / "map.mrc").exists()

    process = start(*arguments(data, out, *often, "--continue"))
    wait_until(process, lambda: min(steps(out, h)[-1] for h in (1, 2)) > max(killed) + 10)
    process.send_signal(signal.SIGTERM)  # the parent alone, as a queueing system does
    _, stderr = process.communicate(timeout=LIMIT)
    assert process.returncode == 128 + signal.SIGTERM, stderr
    assert "--continue" in stderr
    assert min(steps(out, h)[-1] for h in (1, 2)) < ITERATIONS

    process = start(*arguments(data, out, "--continue"))
    _, stderr = process.communicate(timeout=LIMIT)
    assert process.returncode == 0, stderr
    expected, got = maps_of(unbroken[0]), maps_of(out)
    for name in MAPS:
        assert np.array_equal(expected[name], got[name]), name
    lengths = [len((o / "history.jsonl").read_text().splitlines()) for o in (out, unbroken[0])]
    assert abs(lengths[0] - lengths[1]) <= 6  # comparisons may be lost, the halves' rows not


@pytest.mark.slow
def test_half_1_knows_nothing_of_half_2(data, unbroken, tmp_path):
    known = read_star(unbroken[0] / "particles.star").blocks
    subset = known["particles"].columns["rlnRandomSubset"]
    images, header = read_mrc(data / "particles.mrcs")
    second = np.array(subset) == "2"
    images = images.copy()
    images[second] = images[second, ::-1] * 1.5 + 1
    write_mrc(tmp_path / "particles.mrcs", images, header.pixel_size_angstrom, is_stack=True)
    blocks = dict(read_star(data / "particles.star").blocks)
    rows = {**blocks["particles"].columns, "rlnRandomSubset": subset}
    write_star(tmp_path / "particles.star", StarDocument(blocks | {"particles": StarBlock(rows)}))
    (tmp_path / "config.toml").write_text(CONFIG)
    process = start(*arguments(tmp_path, tmp_path / "OUT"))
    _, stderr = process.communicate(timeout=LIMIT)
    assert process.returncode == 0, stderr
    expected, got = maps_of(unbroken[0]), maps_of(tmp_path / "OUT")
    assert np.array_equal(expected["half1.mrc"], got["half1.mrc"])
    assert not np.array_equal(expected["half2.mrc"], got["half2.mrc"])
    kept = read_star(tmp_path / "OUT" / "particles.star").blocks["particles"].columns
    assert kept["rlnRandomSubset"] == subset


@pytest.mark.slow
def test_a_dead_half_ends_the_run_and_orphans_end_themselves(data, tmp_path):
    out = tmp_path / "OUT"
    process = start(*arguments(data, out, "--checkpoint-every", "0"))
    wait_until(process, lambda: min((steps(out, h) or [0])[-1] for h in (1, 2)) > 5)
    first, second = children(process.pid)
    os.kill(second, signal.SIGKILL)
    _, stderr = process.communicate(timeout=LIMIT)
    assert process.returncode == 4  # a process killed is memory, as a rule
    assert "half 2: its process died (signal 9" in stderr
    assert "Traceback" not in stderr
    assert command_line(first) == ""

    process = start(*arguments(data, out, "--checkpoint-every", "0", "--continue"))
    before = [steps(out, h)[-1] for h in (1, 2)]
    wait_until(
        process, lambda: all(steps(out, h)[-1] > b for h, b in zip((1, 2), before, strict=True))
    )
    orphans = children(process.pid)
    process.kill()
    process.wait()
    process.stderr.read()  # ends when the last orphan has closed it
    assert [command_line(pid) for pid in orphans] == ["", ""]
    assert min(steps(out, h)[-1] for h in (1, 2)) < ITERATIONS
