"""MkDocs hook: turn LaTeX between dollar signs into MathML, so that pages need no script."""

from __future__ import annotations

import html
import re

from latex2mathml.converter import convert

INLINE = re.compile(r'<span class="arithmatex">\\\((.*?)\\\)</span>', re.DOTALL)
BLOCK = re.compile(r'<div class="arithmatex">\s*\\\[(.*?)\\\]\s*</div>', re.DOTALL)
TAG = re.compile(r"\\tag\{([^}]*)\}")


def mathml(latex: str, display: str) -> str:
    """Return the MathML of a formula that is escaped for HTML, without its equation number."""
    source = TAG.sub("", html.unescape(latex)).strip()
    result = convert(source.replace("{aligned}", "{align*}"), display=display)
    return re.sub(r'columnalign="(\w+)"', r'style="text-align: \1"', result)


def block(match: re.Match[str]) -> str:
    """Return a displayed formula with its equation number at the right."""
    tag = TAG.search(match[1])
    number = f"<span>({tag[1]})</span>" if tag else ""
    return f'<div class="formula">{mathml(match[1], "block")}{number}</div>'


def on_page_content(content: str, **_: object) -> str:
    """Return the page with each formula that arithmatex marked as MathML."""
    return INLINE.sub(lambda match: mathml(match[1], "inline"), BLOCK.sub(block, content))
