"""One page of HTML that needs nothing beside itself: no script, no network, light and dark."""

from collections.abc import Iterable, Sequence
from html import escape

from scaledl.interpret.methods import METHODS
from scaledl.interpret.pictures import AGAINST, FOR

STYLE = """
:root { color-scheme: light dark; --ground: #fff; --card: #f6f7f9; --line: #d9dce1; --ink: #1b1e23; --soft: #5b626d }
@media (prefers-color-scheme: dark) {
  :root { --ground: #14161a; --card: #1c1f25; --line: #353a43; --ink: #e6e8ec; --soft: #9aa2ae }
}
* { box-sizing: border-box }
body { margin: 0 auto; max-width: 1180px; padding: 24px; background: var(--ground); color: var(--ink);
  font: 15px/1.5 system-ui, sans-serif }
h1 { font-size: 24px; margin: 0 0 4px } h2 { font-size: 18px; margin: 40px 0 4px }
h3 { font-size: 15px; margin: 0 0 6px }
p { margin: 4px 0; max-width: 86ch } .soft, small { color: var(--soft) } small { font-size: 12px }
.wide { overflow-x: auto } table { border-collapse: collapse }
th { text-align: left; font-weight: 600; font-size: 13px }
th, td { padding: 4px 10px 4px 0; vertical-align: top } td.number { text-align: right; padding: 2px 8px;
  font-variant-numeric: tabular-nums; border-bottom: 1px solid var(--line) }
.card th + th { text-align: right; padding: 4px 8px }
figure { margin: 0; display: inline-block; vertical-align: top } figcaption { font-size: 12px; color: var(--soft) }
img { display: block; max-width: 100% } img.small { width: 100px; border-radius: 4px; border: 1px solid var(--line) }
img.coarse { image-rendering: pixelated }
.row { display: flex; flex-wrap: wrap; gap: 12px; margin: 12px 0 }
.card { background: var(--card); border: 1px solid var(--line); border-radius: 8px; padding: 12px 14px; margin: 12px 0 }
.cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(330px, 1fr)); gap: 12px; margin-top: 12px }
.cards .card { margin: 0 } .tokens { font: 14px/1.9 ui-monospace, monospace; overflow-wrap: anywhere }
.tokens span { border-radius: 3px; padding: 2px 0; white-space: pre-wrap } .label { display: block; margin-top: 8px }
.red, .blue { display: inline-block; width: .8em; height: .8em; border-radius: 2px }
"""
COLOURS = [", ".join(f"{round(255 * part)}" for part in colour) for colour in (FOR, AGAINST)]
STYLE += f".red {{ background: rgb({COLOURS[0]}) }} .blue {{ background: rgb({COLOURS[1]}) }}\n"
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def page(title: str, facts: dict[str, str], sections: Iterable[str]) -> str:
    rows = " · ".join(f"{escape(name)}: <b>{escape(value)}</b>" for name, value in facts.items())
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<meta http-equiv="Content-Security-Policy" content="{POLICY}"><link rel="icon" href="data:,">
<title>{escape(title)}</title><style>{STYLE}</style></head>
<body><h1>{escape(title)}</h1><p class="soft">{rows}</p>
{"".join(sections)}</body></html>
"""


def section(heading: str, words: str, *content: str) -> str:
    return f"<section><h2>{escape(heading)}</h2><p>{words}</p>{''.join(content)}</section>\n"


def described(name: str) -> str:
    """What a method says and does not say, in a card."""
    method = METHODS[name]
    return (
        f'<div class="card"><h3>{escape(method.title)} <small>{escape(method.source)}</small></h3>'
        f"<p>{escape(method.says)}</p><p>{escape(method.says_not)}</p></div>"
    )


def row(content: Iterable[str], kind: str = "row") -> str:
    return f'<div class="{kind}">{"".join(content)}</div>'


def picture(uri: str, words: str, caption: str = "", coarse: bool = True, small: bool = True) -> str:
    """An image with the words that stand for it where it cannot be seen."""
    kinds = " ".join(["small"] * small + ["coarse"] * coarse)
    below = f"<figcaption>{escape(caption)}</figcaption>" if caption else ""
    return f'<figure><img class="{kinds}" src="{uri}" alt="{escape(words)}">{below}</figure>'


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Cells are HTML, heads are words."""
    head = "".join(f"<th>{escape(each)}</th>" for each in heads)
    body = "".join(f"<tr>{''.join(cells)}</tr>" for cells in rows)
    return f'<div class="wide"><table><tr>{head}</tr>{body}</table></div>'


def cell(content: str) -> str:
    return f"<td>{content}</td>"


def number(value: float, largest: float = 0.0) -> str:
    """A cell with a number on red or blue as strong as its share of the largest."""
    ground = f' style="background: {_colour(value / largest)}"' if largest else ""
    return f'<td class="number"{ground}>{value:{".3f" if abs(value) < 1000 else ".3g"}}</td>'


def tokens(pieces: Sequence[str], amounts: Sequence[float]) -> str:
    """Text whose pieces stand on red or blue, over the largest amount."""
    largest = max(map(abs, amounts), default=0.0) or 1.0
    return row(
        (
            f'<span style="background: {_colour(amount / largest)}" title="{amount:.3g}">{_visible(piece)}</span>'
            for piece, amount in zip(pieces, amounts, strict=True)
        ),
        "tokens",
    )


def _colour(share: float) -> str:
    return f"rgba({COLOURS[share < 0]}, {0.7 * abs(share):.3f})"


def _visible(piece: str) -> str:
    return escape(piece).replace("\n", "⏎<wbr>")
