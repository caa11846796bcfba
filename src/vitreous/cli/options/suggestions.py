"""What an option is called here that other programs call otherwise."""

from __future__ import annotations

from typing import Any

import typer.core

WORDS = "vitreous.words"  # key of a context's ``meta``: the command as it was typed
_OTHER_NAMES = {
    **dict.fromkeys(("--gpu", "--gpus", "--cuda", "--cpu"), "--device"),
    **dict.fromkeys(("--angpix", "--pixel-size", "--pixel_size", "--psize"), "--apix"),
    **dict.fromkeys(("--symmetry", "--point-group"), "--sym"),
    **dict.fromkeys(("--box-size", "--box_size", "--boxsize"), "--box"),
    **dict.fromkeys(
        ("--particle-diameter", "--particle_diameter", "--diameter"), "--mask-diameter"
    ),
    **dict.fromkeys(("--j", "--cores", "--cpus"), "--threads"),
    **dict.fromkeys(("--o", "--out", "--outdir"), "--output"),
    **dict.fromkeys(("--ref", "--reference", "--initial-model"), "--map"),
    **dict.fromkeys(("--resume", "--restart"), "--continue"),
    **dict.fromkeys(("--force", "--clobber"), "--overwrite"),
}
_RETIRED = {
    "--permissive": "files of unusual MAP id or machine stamp are read, with a warning",
    "--allow-outside-root": "absolute names, .. and links are followed",
}


class SuggestingCommand(typer.core.TyperCommand):
    """A command that names its own option for that of another program."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse arguments as usual; an unknown option's error names the one that is meant."""
        try:
            return super().parse_args(ctx, args)
        except Exception as error:
            option = getattr(error, "option_name", None)
            own = {name for parameter in self.params for name in parameter.opts}
            meant = _OTHER_NAMES.get(str(option))
            if meant in own:
                error.possibilities = [meant]  # type: ignore[attr-defined]
            elif option in _RETIRED:
                error.message = f"{option} is no longer needed: {_RETIRED[option]}"  # type: ignore[attr-defined]
            raise
