from dataclasses import dataclass

import pytest
from pydantic.dataclasses import dataclass as validated

from vitreous.core.errors import InputError, UsageError
from vitreous.jobs.run.config import load_config


@dataclass(frozen=True)
class Config:
    steps: int = 10
    rate: float = 1.0
    name: str | None = None
    widths: tuple[int, ...] = (1, 2)

    def __post_init__(self):
        if self.steps < 0:
            raise ValueError(f"steps must be >= 0, got {self.steps}")


def write(folder, text):
    path = folder / "run.toml"
    path.write_text(text)
    return path


def test_file_over_defaults_and_options_over_file(tmp_path):
    path = write(tmp_path, "steps = 5\nrate = 2\nwidths = [3, 4]\n")
    config = load_config(Config, path, {"steps": 7, "rate": None}, defaults={"name": "preset"})
    assert config == Config(7, 2.0, "preset", (3, 4))
    assert isinstance(config.rate, float)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("step = 5\n", "unknown key step"),
        ("[widts]\nfirst = 5\n", "unknown key widts"),
        ('steps = "5"\n', "steps: .*integer.*'5'"),
        ("steps = 5.5\n", "steps: .*integer"),
        ("steps = true\n", "steps: .*integer"),
        ("steps = -1\n", "must be >= 0"),
        ("widths = 3\n", "widths: "),
        ("steps = \n", "not valid TOML"),
        ("steps = " + "[" * 100_000, "not valid TOML"),
    ],
)
def test_bad_files_are_refused_by_name(tmp_path, text, message):
    path = write(tmp_path, text)
    with pytest.raises(UsageError, match=message) as caught:
        load_config(Config, path, {})
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


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
