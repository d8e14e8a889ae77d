"""The explanation of a rule, as HTML. Rules are written in a few forms of Markdown: headings, paragraphs, lists,
indented code, code in backticks, links."""

from __future__ import annotations

import re
import textwrap

from markupsafe import Markup, escape

from auditor.report.html.code import Code


def prose(text: str, level: int = 4) -> Markup:
    """The text as HTML, `##` becoming headings of this `level`."""
    parts = []
    for block in re.split(r"\n\s*\n|\n(?=## )|(?<=\S)\n(?=    \S)", text.strip("\n")):
        heading, _, rest = block.partition("\n") if block.startswith("## ") else ("", "", block)
        if heading:
            parts.append(Markup("<h{0}>{1}</h{0}>").format(level, heading.removeprefix("## ")))
        if rest.strip():
            parts.append(_block(rest))
    return Markup("\n").join(parts).replace(Markup("</pre>\n<pre>"), Markup("\n\n"))


def _block(text: str) -> Markup:
    if all(line.startswith("    ") for line in text.split("\n") if line):
        code = Code(textwrap.dedent(text).strip("\n").split("\n"))
        return Markup("<pre>{}</pre>").format(Markup("\n").join(code.line(n + 1) for n in range(len(code.lines))))
    if text.lstrip().startswith("- "):
        items = re.split(r"(?m)^\s*- ", text)[1:]
        return Markup("<ul>{}</ul>").format(Markup("").join(Markup("<li>{}</li>").format(inline(i)) for i in items))
    return Markup("<p>{}</p>").format(inline(text))


def inline(text: str) -> Markup:
    """One paragraph: `code` and links marked up, everything else escaped."""
    parts = re.split(r"(`[^`]+`|https?://[^\s)>,]+[^\s)>,.])", " ".join(text.split()))
    return Markup("").join(_part(part) for part in parts)


def _part(part: str) -> Markup:
    if part.startswith("`") and part.endswith("`") and len(part) > 2:
        return Markup("<code>{}</code>").format(part[1:-1])
    if part.startswith(("http://", "https://")):
        return Markup('<a href="{0}" rel="noreferrer">{0}</a>').format(part)
    return escape(part)
