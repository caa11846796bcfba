"""Griffe extension: turn the RST roles of docstrings into Markdown before they are parsed.

``:class:`~a.b.C``` becomes a link where ``a.b.C`` has an entry, ``:math:`x``` becomes ``$x$``, a
``.. math::`` block becomes ``$$ ... $$``, and examples after ``>>>`` become blocks of code. A link
into `vitreous` to something that does not exist is a warning, which `mkdocs build --strict` makes
an error.
"""

from __future__ import annotations

import re
from typing import Any

import griffe

ROLE = re.compile(r":(class|func|meth|attr|data|mod|exc|obj):`(~?)([^`]+)`")
MATH_ROLE = re.compile(r":math:`([^`]+)`", re.DOTALL)
MATH_BLOCK = re.compile(r"^([ ]*)\.\. math::[ ]*(.*(?:\n(?:\1[ ]+.*|[ ]*(?=\n)))*)", re.MULTILINE)
DOCTEST = re.compile(r"^([ ]*)>>> .*(?:\n[ ]*\S.*)*", re.MULTILINE)
LOGGER = griffe.get_logger("vitreous docs")


def _block(match: re.Match[str]) -> str:
    indent, body = match[1], " ".join(match[2].split())
    return f"\n{indent}$$\n{indent}{body}\n{indent}$$\n"


def _doctest(match: re.Match[str]) -> str:
    return f"{match[1]}```pycon\n{match[0]}\n{match[1]}```"


class Roles(griffe.Extension):
    """Rewrite each docstring of a package once all of it is loaded."""

    def on_package(self, *, pkg: griffe.Module, **_: Any) -> None:
        """Rewrite the docstrings of a package."""
        self._walk(pkg, pkg.modules_collection)

    def _walk(self, node: Any, collection: Any) -> None:
        if node.docstring is not None:
            node.docstring.value = self._markdown(node)
        for member in node.members.values():
            if not member.is_alias:
                self._walk(member, collection)

    def _markdown(self, node: Any) -> str:
        text = MATH_BLOCK.sub(_block, node.docstring.value)
        text = MATH_ROLE.sub(lambda match: f"${' '.join(match[1].split())}$", text)
        text = DOCTEST.sub(_doctest, text)
        return ROLE.sub(lambda match: self._link(node, match), text)

    def _link(self, node: Any, match: re.Match[str]) -> str:
        target = "".join(match[3].split())
        path = self._path(node, target)
        label = target.rpartition(".")[2] if match[2] else target
        if path is None:
            if target.startswith("vitreous."):
                LOGGER.warning(f"{node.path}: {match[0]} names nothing")
            return f"`{label}`"
        return f'<autoref identifier="{path}" optional><code>{label}</code></autoref>'

    def _path(self, node: Any, target: str) -> str | None:
        scope: Any = node
        while scope is not None:
            try:
                found = scope[target] if not target.startswith("vitreous.") else None
            except (KeyError, AttributeError, ValueError):
                found = None
            if found is not None:
                return str(found.target_path if found.is_alias else found.path)
            scope = scope.parent
        if not target.startswith("vitreous."):
            return None
        try:
            found = node.modules_collection[target]
        except (KeyError, AttributeError, ValueError):
            return None
        return str(found.target_path if found.is_alias else found.path)
