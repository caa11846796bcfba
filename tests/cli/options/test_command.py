"""Commands built from options models."""

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest
import typer
from pydantic import Field
from typer.testing import CliRunner

from vitreous.cli.options.command import options_command
from vitreous.cli.options.translation import with_flags
from vitreous.core.errors import UsageError
from vitreous.jobs.inputs.options import ParticleFileOptions
from vitreous.jobs.run.messages import plain_warnings, say
from vitreous.jobs.run.options import Options, RunOptions


class TrialOptions(ParticleFileOptions, RunOptions):
    box_size: int = Field(64, ge=8, le=4096, description="Edge; see `pixel_size_angstrom`.")
    strength: float | Literal["auto"] = Field("auto", ge=0, description="Weight.")
    kind: Literal["soft", "hard"] = Field("soft", description="Kind.")
    align: bool = Field(True, description="Align first.")
    shift_range_angstrom: float | None = Field(None, ge=0, description="Shifts.")
    hidden: int = Field(3, description="Of Python only.")


@dataclass(frozen=True)
class Result:
    verdict: str
    text: str


@pytest.fixture
def call():
    """Run a command of TrialOptions; what its function was called with is in ``call.options``."""

    class Call:
        options: TrialOptions | None = None
        error: Exception | None = None

        def __call__(self, *arguments):
            @options_command(TrialOptions, {"hidden": None}, panels={"Size": ("box_size",)})
            def trial(options: TrialOptions) -> Result:
                """Try.

                Example: `vitreous trial`
                """
                self.options = options
                if self.error is not None:
                    raise self.error
                return Result("it is done", "3 maps")

            app = typer.Typer(rich_markup_mode="markdown")
            app.command()(trial)
            return CliRunner().invoke(app, list(map(str, arguments)))

    return Call()


def test_options_reach_the_model_with_their_types(call):
    done = call(
        *("in.star", "-o", "OUT", "--box", 32, "--strength", "2.5", "--no-align"),
        *("--shift-range", 4, "--passthrough", "a.cs", "--passthrough", "b.cs", "--continue"),
    )
    assert (done.exit_code, done.output) == (0, "It is done.\n3 maps\n")
    assert call.options == TrialOptions(
        particles=Path("in.star"),
        output=Path("OUT"),
        box_size=32,
        strength=2.5,
        align=False,
        shift_range_angstrom=4.0,
        passthrough=(Path("a.cs"), Path("b.cs")),
        resume=True,
    )


def test_only_what_was_given_counts_as_given(call):
    call("in.star", "-o", "OUT", "--box", 64)
    assert call.options.model_fields_set == {"particles", "output", "box_size"}
    assert (call.options.strength, call.options.seed) == ("auto", 0)


def test_help_shows_every_field_once_in_its_panel(call, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    text = call("--help").output
    size = text[text.index("Size ─") :]
    assert text.count("Edge; see --apix.") == 1
    assert size.index("--box") < size.index("Input files ─") < size.index("Run ─")
    assert "--align" in text
    assert "--no-align" in text
    assert "--hidden" not in text
    assert text.index("--output") < text.index("--strength")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--strength", "much"), "--strength 'much': must be a valid number"),
        (("--strength", "nan"), "--strength 'nan': must be a finite number"),
    ],
)
def test_what_the_model_refuses_is_said_with_flags(call, arguments, message):
    error = call("in.star", "-o", "OUT", *arguments).exception
    assert isinstance(error, UsageError)
    assert message in str(error)


def test_bounds_are_those_of_the_model(call):
    done = call("in.star", "-o", "OUT", "--box", 3)
    assert done.exit_code == 2
    assert "--box" in done.output


def test_errors_messages_and_warnings_name_flags(call, capsys):
    call.error = UsageError("`particles`, `box_size` 9: with `align=False`, `kind=hard` or `other`")
    with pytest.raises(UsageError) as refused:
        raise call("in.star", "-o", "OUT").exception
    assert str(refused.value) == "PARTICLES, --box 9: with --no-align, --kind hard or `other`"


def test_messages_and_warnings_name_flags(capsys):
    @options_command(RunOptions)
    def trial(options: RunOptions) -> None:
        say("go on with `resume`")
        warnings.warn("`seed` 0", stacklevel=1)

    app = typer.Typer()
    app.command()(trial)
    with plain_warnings(), pytest.raises(SystemExit):
        app(["-o", "OUT"])
    assert capsys.readouterr().err == "go on with --continue\nwarning: --seed 0\n"


def test_unknown_names_stay():
    assert with_flags("`vitreous align`, `rlnAngleRot`", {"align": "--align"}) == (
        "`vitreous align`, `rlnAngleRot`"
    )


def test_a_model_alone_refuses_and_records():
    class Own(Options):
        table: Path = Field(description="Table.")
        size: int = Field(3, description="Size.")
        INPUTS = frozenset({"table"})

    own = Own(table=Path("a.star"))
    assert (own.recorded(), own.inputs()) == ({"size": 3}, {"table": Path("a.star")})
    assert own.replaced(size=5).recorded() == {"size": 5}
    with pytest.raises(UsageError, match="`table`: is missing"):
        Own()
    with pytest.raises(UsageError, match="colour: no such option; known: table, size"):
        Own(table="a", colour=1)
    with pytest.raises(
        UsageError, match=r"`size`: without `table` it has no meaning; leave it out"
    ):
        Own(table="a", size=3).refuse({"size"}, "without `table` it has no meaning")
    own.refuse({"size"}, "was not given")
