from dataclasses import dataclass, field

import pytest
from pydantic.dataclasses import dataclass as validated

from vitreous.core.errors import InputError, UsageError
from vitreous.jobs.run.config import load_config


@dataclass(frozen=True)
class Critic:
    channels: int = 8
    widths: tuple[int, ...] = (1, 2)


@dataclass(frozen=True)
class Config:
    steps: int = 10
    rate: float = 1.0
    name: str | None = None
    critic: Critic = field(default_factory=Critic)

    def __post_init__(self):
        if self.steps < 0:
            raise ValueError(f"steps must be >= 0, got {self.steps}")


def write(folder, text):
    path = folder / "run.toml"
    path.write_text(text)
    return path


def test_file_over_defaults_and_options_over_file(tmp_path):
    path = write(tmp_path, "steps = 5\nrate = 2\n[critic]\nwidths = [3, 4]\nchannels = 1\n")
    config = load_config(Config, path, {"steps": 7, "rate": None, "critic": {"channels": 2}})
    assert config == Config(7, 2.0, None, Critic(2, (3, 4)))
    assert isinstance(config.rate, float)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("step = 5\n", "unknown key step"),
        ("[critic]\nchanels = 5\n", r"unknown key critic\.chanels"),
        ('steps = "5"\n', "steps: .*integer.*'5'"),
        ("steps = 5.5\n", "steps: .*integer"),
        ("steps = true\n", "steps: .*integer"),
        ("steps = -1\n", "must be >= 0"),
        ("critic = 3\n", "critic: "),
        ("steps = \n", "not valid TOML"),
    ],
)
def test_bad_files_are_refused_by_name(tmp_path, text, message):
    path = write(tmp_path, text)
    with pytest.raises(UsageError, match=message) as caught:
        load_config(Config, path, {})
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_unknown_override_is_refused():
    with pytest.raises(UsageError, match="command line: unknown key stepz"):
        load_config(Config, None, {"stepz": 1})


def test_missing_file(tmp_path):
    with pytest.raises(InputError, match=r"none\.toml"):
        load_config(Config, tmp_path / "none.toml", {})


def test_pydantic_dataclasses_work_too():
    @validated(frozen=True)
    class Strict:
        steps: int = 1

    assert load_config(Strict, None, {"steps": 3}).steps == 3
    with pytest.raises(UsageError, match="steps"):
        load_config(Strict, None, {"steps": "many"})
