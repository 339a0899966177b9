"""One page of HTML that needs nothing beside itself: no network, light and dark, wide and narrow."""

import base64
import hashlib
from collections.abc import Iterable, Sequence
from html import escape

STYLE = """
:root { color-scheme: light dark; --ground: #fff; --card: #f6f7f9; --line: #d9dce1; --ink: #1b1e23; --soft: #5b626d }
@media (prefers-color-scheme: dark) {
  :root { --ground: #14161a; --card: #1c1f25; --line: #353a43; --ink: #e6e8ec; --soft: #9aa2ae }
}
* { box-sizing: border-box }
body { margin: 0 auto; max-width: 1180px; padding: 24px; background: var(--ground); color: var(--ink);
  font: 15px/1.5 system-ui, sans-serif }
h1 { font-size: 24px; margin: 0 0 4px; overflow-wrap: anywhere } h2 { font-size: 18px; margin: 40px 0 4px }
h3 { font-size: 15px; margin: 0 0 6px }
p { margin: 4px 0; max-width: 86ch; overflow-wrap: anywhere } .soft, small { color: var(--soft) }
small { font-size: 12px }
.wide { overflow-x: auto } table { border-collapse: collapse }
th { text-align: left; font-weight: 600; font-size: 13px }
th, td { padding: 4px 10px 4px 0; vertical-align: top }
figure { margin: 0; display: inline-block; vertical-align: top } figcaption { font-size: 12px; color: var(--soft) }
img { display: block; max-width: 100% }
.row { display: flex; flex-wrap: wrap; gap: 12px; margin: 12px 0 }
.card { background: var(--card); border: 1px solid var(--line); border-radius: 8px; padding: 12px 14px; margin: 12px 0 }
.cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(330px, 100%), 1fr)); gap: 12px;
  margin-top: 12px }
.cards .card { margin: 0 }
"""


def page(title: str, facts: dict[str, str], sections: Iterable[str], style: str = "", script: str = "") -> str:
    """A page whose only script is `script`: what a run's files hold cannot bring another one."""
    rows = " · ".join(f"{escape(name)}: <b>{escape(value)}</b>" for name, value in facts.items())
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    if script:
        policy += f"; script-src 'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"
        script = f"<script>{script}</script>"
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<meta http-equiv="Content-Security-Policy" content="{policy}"><link rel="icon" href="data:,">
<title>{escape(title)}</title><style>{STYLE}{style}</style></head>
<body><h1>{escape(title)}</h1><p class="soft">{rows}</p>
{"".join(sections)}{script}</body></html>
"""


def section(heading: str, words: str, *content: str) -> str:
    return f"<section><h2>{escape(heading)}</h2><p>{words}</p>{''.join(content)}</section>\n"


def row(content: Iterable[str], kind: str = "row") -> str:
    return f'<div class="{kind}">{"".join(content)}</div>'


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Cells are HTML, heads are words."""
    head = "".join(f"<th>{escape(each)}</th>" for each in heads)
    body = "".join(f"<tr>{''.join(cells)}</tr>" for cells in rows)
    return f'<div class="wide"><table><tr>{head}</tr>{body}</table></div>'


def cell(content: str) -> str:
    return f"<td>{content}</td>"


def image_uri(content: bytes, kind: str = "png") -> str:
    return f"data:image/{kind};base64," + base64.b64encode(content).decode()
