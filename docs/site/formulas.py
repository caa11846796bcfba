"""MkDocs hook: turn LaTeX between dollar signs into MathML, so that pages need no script."""

from __future__ import annotations

import html
import re

from latex2mathml.converter import convert

INLINE = re.compile(r'<span class="arithmatex">\\\((.*?)\\\)</span>', re.DOTALL)
BLOCK = re.compile(r'<div class="arithmatex">\s*\\\[(.*?)\\\]\s*</div>', re.DOTALL)
PLAIN = re.compile(r"\\\\?(bigl|bigr|Bigl|Bigr)\b")


def mathml(latex: str, display: str) -> str:
    """Return the MathML of a formula that is escaped for HTML."""
    source = PLAIN.sub("", html.unescape(latex)).strip()
    return convert(source, display=display)


def on_page_content(content: str, **_: object) -> str:
    """Return the page with each formula that arithmatex marked as MathML."""
    content = BLOCK.sub(
        lambda match: f'<div class="formula">{mathml(match[1], "block")}</div>', content
    )
    return INLINE.sub(lambda match: mathml(match[1], "inline"), content)
