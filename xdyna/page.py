"""One-file web pages that open from disk and ask no other place for anything: frame, style, sections, tables."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Sequence
from html import escape


def html_page(title: str, body: str, style: str = "", script: str = "") -> str:
    """A whole page.

    Args:
        title: plain text.
        body: HTML.
        style: CSS after the common one, whose colours are the variables ``--page --text --soft --rule --card --c1``
            to ``--c6``, light or dark as the reader's system is.
        script: JavaScript that runs once the body is there.
    """
    words = {"@TITLE@": escape(title), "@STYLE@": style, "@SCRIPT@": f"<script>{script}</script>" if script else ""}
    before, after = _FRAME.split("@BODY@")
    for mark, text in words.items():
        before, after = before.replace(mark, text), after.replace(mark, text)
    return before + body + after


def section(title: str, content: str, kind: str = "") -> str:
    """HTML under a heading, in a `<div class=kind>` if that is given; nothing where there is no content."""
    wrapped = f'<div class="{kind}">{content}</div>' if kind else content
    return f"<section><h2>{escape(title)}</h2>{wrapped}</section>" if content else ""


def table(heads: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Rows of plain text; the first cell of each names it."""
    lines = []
    for first, *others in rows:
        cells = "".join(f"<td>{escape(str(cell))}</td>" for cell in others)
        lines.append(f'<tr><th scope="row">{escape(str(first))}</th>{cells}</tr>')
    if not lines:
        return ""
    head = "".join(f'<th scope="col">{escape(text)}</th>' for text in heads)
    top = f"<thead><tr>{head}</tr></thead>" if head else ""
    return f'<div class="wide"><table>{top}<tbody>{"".join(lines)}</tbody></table></div>'


def data_uri(data: bytes, kind: str) -> str:
    """Bytes of a media type as an address that holds them."""
    return f"data:{kind};base64,{base64.b64encode(data).decode('ascii')}"


_FRAME = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>@TITLE@</title>
<style>
:root { color-scheme: light dark; --page: #fff; --text: #1c2024; --soft: #616a73; --rule: #e1e5e9; --card: #f6f8fa;
  --c1: #1f66c1; --c2: #c2540a; --c3: #0f7d72; --c4: #8a45c9; --c5: #a8215b; --c6: #6b6f00 }
@media (prefers-color-scheme: dark) {
  :root { --page: #14171a; --text: #e6e9ec; --soft: #9aa4ad; --rule: #2d3339; --card: #1c2125;
    --c1: #6cabff; --c2: #ff9a57; --c3: #45cdbb; --c4: #c59bff; --c5: #ff87b1; --c6: #cdd13f } }
body { margin: 0 auto; padding: 1.5rem; max-width: 72rem; background: var(--page); color: var(--text);
  font: 15px/1.45 system-ui, sans-serif }
h1 { font-size: 1.5rem; margin: 0; overflow-wrap: anywhere } h2 { font-size: 1.1rem; margin: 2rem 0 .6rem }
h3 { font-size: .95rem; margin: 1rem 0 .4rem } header p { margin: .2rem 0 1rem; color: var(--soft) }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(11rem, 1fr)); gap: .6rem }
.tiles div { background: var(--card); border-radius: .5rem; padding: .6rem .8rem }
.tiles b { display: block; font-size: 1.2rem; font-variant-numeric: tabular-nums }
.tiles span { color: var(--soft); font-size: .85em }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 27rem), 1fr)); gap: 1.2rem 2rem }
img, video { max-width: 100%; height: auto; display: block; margin: .5rem 0; border-radius: .3rem }
.wide { overflow-x: auto } table { border-collapse: collapse; font-size: .9em }
th, td { text-align: left; padding: .25rem 1.5rem .25rem 0; border-bottom: 1px solid var(--rule); vertical-align: top }
td { font-variant-numeric: tabular-nums; overflow-wrap: anywhere }
th { font-weight: 500 } thead th { color: var(--soft) }
a { color: var(--c1) } summary { cursor: pointer } ul { padding-left: 1.2rem }
.c1 { color: var(--c1) } .c2 { color: var(--c2) } .c3 { color: var(--c3) } .c4 { color: var(--c4) }
.c5 { color: var(--c5) } .c6 { color: var(--c6) }
@STYLE@
</style></head>
<body>
@BODY@
@SCRIPT@
</body></html>
"""
