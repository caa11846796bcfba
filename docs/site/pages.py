"""MkDocs hook: make the reference pages of the commands and of the Python modules."""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files

SOURCE = Path(__file__).parents[2] / "src"
ROOMS = (
    "core",
    "linop",
    "physics",
    "io",
    "metrics",
    "maps",
    "nn",
    "optim",
    "data",
    "report",
    "methods",
    "doctor",
    "jobs",
)
LARGE = ("methods", "jobs")
SCRIPT = re.compile(r"^Script: \[(examples/\w+\.py)\]\(.*\)$", re.MULTILINE)
MODULE = re.compile(rf"(?<!\[)`((?:{'|'.join(ROOMS)})(?:\.\w+)+)`")


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def _flags(option: Any) -> str:
    names = [*option.opts, *option.secondary_opts]
    return ", ".join(f"`{name}`" for name in names)


def _default(option: Any) -> str:
    value = option.default
    if value is None or value == () or callable(value) or "UNSET" in repr(value):
        return "required" if option.required else ""
    if isinstance(value, bool):
        return "on" if value and option.secondary_opts else ""
    return f"`{getattr(value, 'value', value)}`"


def _values(option: Any, context: Any) -> str:
    if option.is_flag:
        return ""
    low, high = getattr(option, "min", None), getattr(option, "max", None)
    if low is not None and high is not None:
        return f"{low} to {high}"
    if low is not None or high is not None:
        return f"≥ {low}" if high is None else f"≤ {high}"
    text = option.metavar or option.display_type(context).strip("<>")
    return ", ".join(f"`{choice}`" for choice in text.split("|"))


def _table(options: list[Any], context: Any) -> list[str]:
    lines = ["| option | values | default | |", "|---|---|---|---|"]
    for option in options:
        row = (_flags(option), _values(option, context), _default(option), option.help or "")
        lines.append("| " + " | ".join(map(_cell, row)) + " |")
    return [*lines, ""]


def command_text(name: str, command: Any) -> str:
    """Return the reference page of one command."""
    context = command.context_class(command, info_name=name)
    help_text = re.sub(r"\n\s*\b\s*\n", "\n\n", command.help or "")
    arguments = [p for p in command.params if p.param_type_name == "argument"]
    options = [p for p in command.params if p.param_type_name == "option" and not p.hidden]
    usage = " ".join([name, *(a.metavar or a.name.upper() for a in arguments), "[OPTIONS]"])
    lines = [f"# {name}", "", f"    {usage}", "", help_text, ""]
    if arguments:
        lines += ["| argument | |", "|---|---|"]
        for argument in arguments:
            text = getattr(argument, "help", None) or ""
            lines.append(f"| `{argument.metavar or argument.name.upper()}` | {_cell(text)} |")
        lines.append("")
    panels: dict[str, list[Any]] = {}
    for option in options:
        panels.setdefault(getattr(option, "rich_help_panel", None) or "Options", []).append(option)
    for title, members in panels.items():
        lines += [f"## {title}", "", *_table(members, context)]
    return "\n".join(lines)


def commands() -> dict[str, Any]:
    """Return every command by its full name, in the order of the program's help."""
    from vitreous.cli.main import COMMANDS, load

    pages = {}
    for name in (name for panel in COMMANDS.values() for name in panel):
        command = load(name)
        for sub, inner in getattr(command, "commands", {"": command}).items():
            pages[f"vitreous {name} {sub}".strip()] = inner
    return pages


def modules(room: str) -> list[str]:
    """Return the modules of a room that have a docstring and public names."""
    names = []
    for path in sorted((SOURCE / "vitreous" / room).rglob("*.py")):
        parts = path.relative_to(SOURCE).with_suffix("").parts
        if parts[-1] != "__init__" and not parts[-1].startswith("_"):
            names.append(".".join(parts))
    return names


def _rooms() -> list[str]:
    """Return the packages that have a page: each room, and the packages of the two largest."""
    names = []
    for room in ROOMS:
        folder = SOURCE / "vitreous" / room
        parts = sorted(p.name for p in folder.iterdir() if (p / "__init__.py").exists())
        names += [f"{room}/{part}" for part in parts] if room in LARGE else [room]
    return names


def api_text() -> str:
    """Return the reference page of the names that `import vitreous` gives."""
    import vitreous

    lines = ["# Python API", "", "`import vitreous as vt` gives these names.", ""]
    room = ""
    for name in sorted(vitreous.__all__, key=_home):
        home = _home(name)
        if home.split(".")[0] != room:
            room = home.split(".")[0]
            lines += ["", f"## vitreous.{room}", "", "| name | |", "|---|---|"]
        path = f"vitreous.{home}.{name}"
        first = (inspect.getdoc(getattr(vitreous, name)) or "").partition("\n\n")[0]
        summary = re.sub(r":math:`([^`]+)`", _table_formula, first)
        summary = re.sub(r":\w+:`~?([^`]+)`", r"`\1`", summary)
        link = f'<autoref identifier="{path}" optional><code>{name}</code></autoref>'
        lines.append(f"| {link} | {_cell(summary)} |")
    return "\n".join([*lines, "", "::: vitreous.api", ""])


def _table_formula(match: re.Match[str]) -> str:
    return f"${match[1]}$".replace("|", r"\vert ")


def _home(name: str) -> str:
    import vitreous

    return str(vitreous._MODULE_OF[name])


def _pages() -> dict[str, dict[str, tuple[str, str]]]:
    pages: dict[str, dict[str, tuple[str, str]]] = {"Commands": {}, "Modules": {}}
    for name, command in commands().items():
        path = f"reference/commands/{'-'.join(name.split()[1:])}.md"
        pages["Commands"][name] = (path, command_text(name, command))
    for room in _rooms():
        name = f"vitreous.{room.replace('/', '.')}"
        entries = "\n\n".join(f"::: {module}" for module in modules(room))
        path = f"reference/modules/{room.replace('/', '-')}.md"
        pages["Modules"][name] = (path, f"# {name}\n\n{entries}\n")
    return {"Python API": {"vitreous": ("reference/api.md", api_text())}, **pages}


_PAGES: dict[str, dict[str, tuple[str, str]]] = {}


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Add the generated pages to the navigation."""
    _PAGES.update(_pages())
    reference = next(entry["Reference"] for entry in config.nav or [] if "Reference" in entry)
    for title, pages in _PAGES.items():
        entries = [{name: path} for name, (path, _) in pages.items()]
        reference.append({title: entries if len(entries) > 1 else entries[0]["vitreous"]})
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the generated pages to the site."""
    for pages in _PAGES.values():
        for path, text in pages.values():
            files.append(File.generated(config, path, content=text))
    return files


def _script(match: re.Match[str]) -> str:
    text = (SOURCE.parent / match[1]).read_text()
    return f"`{match[1]}`:\n\n```python\n{text}```"


def on_page_markdown(markdown: str, **_: object) -> str:
    """Show each script that a page names; link each module path in backticks to its reference."""
    markdown = SCRIPT.sub(_script, markdown)
    parts = re.split(r"(^```.*?^```)", markdown, flags=re.MULTILINE | re.DOTALL)
    link = r'<autoref identifier="vitreous.\1" optional><code>\1</code></autoref>'
    parts[::2] = [MODULE.sub(link, part) for part in parts[::2]]
    return "".join(parts)


def on_post_page(output: str, page: Any, **_: object) -> str:
    """Fail where a page would load something from elsewhere when it is opened."""
    foreign = re.search(r'<(?:script|img|iframe|link rel="stylesheet")[^>]*="https?:[^>]*>', output)
    if foreign:
        raise PluginError(f"{page.file.src_uri} loads from elsewhere: {foreign[0]}")
    return output
