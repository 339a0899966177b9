"""What stands on a page that explains a model, and on no other: methods, numbers and texts on red and blue."""

from collections.abc import Iterable, Sequence
from html import escape

from scaledl import html_page
from scaledl.html_page import cell as cell
from scaledl.html_page import row as row
from scaledl.html_page import section as section
from scaledl.html_page import table as table
from scaledl.interpret.methods import METHODS
from scaledl.interpret.pictures import AGAINST, FOR

STYLE = """
td.number { text-align: right; padding: 2px 8px; font-variant-numeric: tabular-nums;
  border-bottom: 1px solid var(--line) }
.card th + th { text-align: right; padding: 4px 8px }
img.small { width: 100px; border-radius: 4px; border: 1px solid var(--line) } img.coarse { image-rendering: pixelated }
.tokens { font: 14px/1.9 ui-monospace, monospace; overflow-wrap: anywhere }
.tokens span { border-radius: 3px; padding: 2px 0; white-space: pre-wrap } .label { display: block; margin-top: 8px }
.red, .blue { display: inline-block; width: .8em; height: .8em; border-radius: 2px }
"""
COLOURS = [", ".join(f"{round(255 * part)}" for part in colour) for colour in (FOR, AGAINST)]
STYLE += f".red {{ background: rgb({COLOURS[0]}) }} .blue {{ background: rgb({COLOURS[1]}) }}\n"


def page(title: str, facts: dict[str, str], sections: Iterable[str]) -> str:
    return html_page.page(title, facts, sections, STYLE)


def described(name: str) -> str:
    """What a method says and does not say, in a card."""
    method = METHODS[name]
    return (
        f'<div class="card"><h3>{escape(method.title)} <small>{escape(method.source)}</small></h3>'
        f"<p>{escape(method.says)}</p><p>{escape(method.says_not)}</p></div>"
    )


def picture(uri: str, words: str, caption: str = "", coarse: bool = True, small: bool = True) -> str:
    """An image with the words that stand for it where it cannot be seen."""
    kinds = " ".join(["small"] * small + ["coarse"] * coarse)
    below = f"<figcaption>{escape(caption)}</figcaption>" if caption else ""
    return f'<figure><img class="{kinds}" src="{uri}" alt="{escape(words)}">{below}</figure>'


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
