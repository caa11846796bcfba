"""Flags in the place of parameter names, in messages of the floors below the command line."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from vitreous.core.errors import VitreousError
from vitreous.jobs.run.messages import rewording

_NAME = re.compile(r"`([a-z][a-z0-9_]*)(?:=([^`\s]*))?`")


def with_flags(text: str, names: Mapping[str, str]) -> str:
    """Replace parameter names in backticks by what the user types.

    Args:
        text: a message or help text.
        names: parameter to flag or metavar.

    >>> with_flags("`box_size` 9: or `align=False`; see `docs`",
    ...            {"box_size": "--box", "align": "--align"})
    '--box 9: or --no-align; see `docs`'
    """

    def replace(match: re.Match[str]) -> str:
        name, value = match[1], match[2]
        if name not in names:
            return match[0]
        if value == "False":
            return names[name].replace("--", "--no-", 1)
        return names[name] if value in (None, "True") else f"{names[name]} {value}"

    return _NAME.sub(replace, text)


@contextmanager
def translated(names: Mapping[str, str], words: Sequence[str] = ()) -> Iterator[None]:
    """Show flags instead of parameter names in errors, warnings and messages.

    Args:
        names: parameter to flag or metavar.
        words: the command as it was typed.
    """
    again = ""
    if words and "resume" in names:
        kept = [word for word in words if word not in (names["overwrite"], names["resume"])]
        again = shlex.join(["vitreous", *kept, names["resume"]])
    with rewording(lambda text: with_flags(text, names), again):
        try:
            yield
        except VitreousError as error:
            error.args = (with_flags(str(error), names),)
            raise
