"""Griffe extension: turn the RST roles of docstrings into Markdown before they are parsed.

``:class:`~a.b.C``` becomes a link where ``a.b.C`` has an entry, ``:math:`x``` becomes ``$x$``, a
``.. math::`` block becomes ``$$ ... $$``, and examples after ``>>>`` become blocks of code. A link
into `vitreous` to something that does not exist is a warning, which `mkdocs build --strict` makes
an error.
"""

from __future__ import annotations

import ast
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


def _field(value: Any) -> dict[str, str]:
    """Return the keywords of pydantic's ``Field(...)``; of another value, as the default."""
    if isinstance(value, griffe.ExprCall) and str(value.function) == "Field":
        words = {
            word.name if isinstance(word, griffe.ExprKeyword) else "default": word
            for word in value.arguments
        }
        return {name: str(getattr(word, "value", word)) for name, word in words.items()}
    return {} if value is None else {"default": str(value)}


def _describe_fields(node: Any) -> None:
    """Give a pydantic dataclass its signature, and the fields of a model their descriptions."""
    fields = [
        member
        for member in node.members.values()
        if member.is_attribute and member.annotation is not None and member.value is not None
    ]
    keywords = {field.name: _field(field.value) for field in fields}
    for field in fields:
        text = keywords[field.name].get("description")
        if text and field.docstring is None:
            field.docstring = griffe.Docstring(ast.literal_eval(text), parent=field)
    paths = {getattr(item.value, "canonical_path", "") for item in node.decorators}
    if "pydantic.dataclasses.dataclass" not in paths or "__init__" in node.members:
        return
    kind = griffe.ParameterKind.positional_or_keyword
    annotated = [m for m in node.members.values() if m.is_attribute and m.annotation is not None]
    parameters = [
        griffe.Parameter(
            field.name,
            annotation=field.annotation,
            kind=kind,
            default=keywords.get(field.name, {}).get("default"),
        )
        for field in annotated
    ]
    self_ = griffe.Parameter("self", kind=kind)
    init = griffe.Function("__init__", parameters=griffe.Parameters(self_, *parameters))
    node.set_member("__init__", init)


class Roles(griffe.Extension):
    """Rewrite each docstring of a package once all of it is loaded."""

    def on_package(self, *, pkg: griffe.Module, **_: Any) -> None:
        """Rewrite the docstrings of a package."""
        self._walk(pkg)

    def _walk(self, node: Any) -> None:
        if node.is_class:
            _describe_fields(node)
        if node.docstring is not None:
            node.docstring.value = self._markdown(node)
        for member in node.members.values():
            if not member.is_alias:
                self._walk(member)

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
