"""The parts of the page: what each method found, as pictures, numbers and coloured text."""

from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path

from matplotlib.figure import Figure
from torch import Tensor

from scaledl import html_page
from scaledl.interpret import page
from scaledl.interpret.attention import on_places
from scaledl.interpret.methods import METHODS
from scaledl.interpret.pictures import INK, coloured, data_uri, figure_uri, plain, shown_on
from scaledl.interpret.samples import Sample

ROWS = 16  # columns of a table that are shown, and heads of an attention layer
COARSE = 64  # images with a shorter side are drawn pixel by pixel
Found = dict[str, tuple[Tensor, str]]  # what a method gave for a sample, and a remark


def attributions(samples: Sequence[Sample], found: Sequence[Found], remark: str) -> str:
    kind, methods = samples[0].kind, list(found[0])
    drawn = {"image": _images, "table": _columns, "tokens": _texts}[kind](samples, found)
    zero = {
        "image": "an image of zeros (the mean colour, where the data is standardised)",
        "table": "zeros (the mean of each column, where the data is standardised)",
        "tokens": "the mean embedding of all tokens",
    }[kind]
    score = "token" if samples[0].next_token else "class"
    words = (
        f"What speaks <span class='red'></span> for and <span class='blue'></span> against the score: the logit of "
        f"the {score} that the model takes for the likeliest. In the place of what is taken away: {zero}. Colours are "
        f"over each picture's own largest value. {escape(remark)}"
    )
    cards = page.row(map(page.described, methods), "cards")
    return page.section("What the score rests on", words, drawn, cards)


def _images(samples: Sequence[Sample], found: Sequence[Found]) -> str:
    heads = ["predicted", "image", *(METHODS[name].title for name in found[0])]
    rows = []
    for sample, of_sample in zip(samples, found, strict=True):
        image = sample.inputs[0]
        coarse = min(image.shape[1:]) < COARSE
        cells = [
            page.cell(escape(sample.words)),
            page.cell(page.picture(data_uri(plain(image)), "the image", coarse=coarse)),
        ]
        for name, (amount, note) in of_sample.items():
            uri = data_uri(shown_on(image, amount))
            cells.append(page.cell(page.picture(uri, METHODS[name].title, note, coarse)))
        rows.append(cells)
    return page.table(heads, rows)


def _columns(samples: Sequence[Sample], found: Sequence[Found]) -> str:
    cards = []
    for sample, of_sample in zip(samples, found, strict=True):
        largest = {name: float(amount.abs().max()) for name, (amount, _) in of_sample.items()}
        shares = sum(amount.abs() / max(largest[name], 1e-12) for name, (amount, _) in of_sample.items())
        order = shares.argsort(descending=True)[:ROWS].tolist()
        rows = [
            [
                page.cell(escape(sample.names[place])),
                page.number(float(sample.inputs[0, place])),
                *(page.number(float(amount[place]), largest[name]) for name, (amount, _) in of_sample.items()),
            ]
            for place in order
        ]
        notes = " ".join(f"{METHODS[name].title}: {note}." for name, (_, note) in of_sample.items() if note)
        rest = len(sample.names) - len(order)
        notes += f" {rest} columns with smaller values are not shown." if rest else ""
        heads = ["column", "value", *(METHODS[name].title for name in of_sample)]
        table = page.table(heads, rows)
        cards.append(f'<div class="card"><h3>{escape(sample.words)}</h3>{table}<small>{escape(notes)}</small></div>')
    return "".join(cards)


def _texts(samples: Sequence[Sample], found: Sequence[Found]) -> str:
    cards = []
    for sample, of_sample in zip(samples, found, strict=True):
        lines = [
            f'<small class="label">{escape(METHODS[name].title)}{": " * bool(note)}{escape(note)}</small>'
            + page.tokens(sample.names, amount.tolist())
            for name, (amount, note) in of_sample.items()
        ]
        cards.append(f'<div class="card"><h3>{escape(sample.words)}</h3>{"".join(lines)}</div>')
    return "".join(cards)


def attention(samples: Sequence[Sample], maps: dict[str, list[Tensor]]) -> str:
    """Args: maps: of each layer, by name, for each of the samples."""
    if samples[0].kind == "image":
        rows = []
        for number, sample in enumerate(samples):
            image = sample.inputs[0]
            drawn = [
                data_uri(plain(image)),
                *(data_uri(shown_on(image, on_places(of[number])[0])) for of in maps.values()),
            ]
            coarse = min(image.shape[1:]) < COARSE
            rows.append([page.cell(page.picture(uri, "attention", coarse=coarse)) for uri in drawn])
        content = page.table(["image", *map(_layer, maps)], rows)
        words = "For each layer, the mean over its heads: what the class token looks at, or all patches without one."
    else:
        content = "".join(
            f"<h3>{escape(_layer(name))}</h3>"
            + _last_row(samples[0], of_samples[0][0])
            + page.row(
                page.picture(data_uri(coloured(head)), f"head {number}", f"head {number}")
                for number, head in enumerate(of_samples[0][0][:ROWS])
            )
            for name, of_samples in maps.items()
        )
        words = "The first text above. A square for each head: rows are tokens that look, columns those they look at."
    return page.section(METHODS["attention"].title, words, content, page.described("attention"))


def _last_row(sample: Sample, weights: Tensor) -> str:
    who = "the last token" if sample.next_token else "all tokens"
    looked_at = weights.mean(0)[-1] if sample.next_token else weights.mean((0, 1))  # (S,)
    return f"<small>what {who} look{'s' * sample.next_token} at, mean over the heads</small>" + page.tokens(
        sample.names, looked_at.tolist()
    )


def features(classes: Tensor, maps: dict[int, Tensor], layer: str, class_names: list[str]) -> str:
    """Images (C, H, W) that make classes large, and maps of a layer by their number."""
    words = "Inside the range of values that the samples have."
    content = page.row(_named(classes, class_names[: len(classes)]))
    if maps:
        content += f"<h3>Maps of {escape(layer)} that answer most to the samples</h3>"
        content += page.row(_named(maps.values(), [f"map {number}" for number in maps]))
    return page.section(METHODS["features"].title, words, content, page.described("features"))


def _named(images: Iterable[Tensor], names: Sequence[str]) -> list[str]:
    return [
        page.picture(data_uri(plain(image)), name, name, coarse=min(image.shape[1:]) < COARSE)
        for image, name in zip(images, names, strict=True)
    ]


def gradients(names: list[str], sizes: Tensor, over_steps: Path) -> str:
    """sizes (matrices, samples); `over_steps` is the picture that a training may have drawn."""
    figure = Figure(figsize=(2.5 + 0.4 * sizes.shape[1], 1.2 + 0.22 * len(names)), layout="constrained")
    axes = figure.add_subplot()
    image = axes.imshow(sizes.clamp(min=1e-12).log10(), aspect="auto", cmap="magma", interpolation="nearest")
    axes.set_yticks(range(len(names)), names, fontsize=7)
    axes.set_xticks(range(sizes.shape[1]), range(1, sizes.shape[1] + 1), fontsize=7)
    axes.set(xlabel="sample")
    figure.colorbar(image, label="log₁₀")
    content = [page.picture(figure_uri(figure), "gradients of samples", coarse=False, small=False)]
    words = "For each sample, in the order above."
    if over_steps.is_file():
        words += " Below it, the gradients of the training's own steps."
        content.append(
            page.picture(html_page.image_uri(over_steps.read_bytes()), "gradients of steps", coarse=False, small=False)
        )
    return page.section(METHODS["gradients"].title, words, *content, page.described("gradients"))


def landscape(places: Tensor, slices: Tensor, grid: Tensor, surface: Tensor, batch: str) -> str:
    """Losses slices (2, N) at distances places (N,) in two directions, and surface (M, M) over both at grid (M,)."""
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    for number, losses in enumerate(slices, start=1):
        left.plot(places, losses, label=f"direction {number}")
    left.set(xlabel="distance, in filter norms", ylabel="loss")
    left.legend(frameon=False, labelcolor=str(INK))
    drawn = right.contourf(grid, grid, surface.clamp(min=1e-12).log10(), levels=14, cmap="viridis")
    right.plot(0, 0, "w+")
    right.set(xlabel="direction 1", ylabel="direction 2", aspect="equal")
    figure.colorbar(drawn, label="log₁₀ loss")
    picture = page.picture(figure_uri(figure), "loss around the weights", coarse=False, small=False)
    words = f"Of {escape(batch)}, without dropout and augmentation, with the norm layers' statistics as trained."
    return page.section(METHODS["landscape"].title, words, picture, page.described("landscape"))


def _layer(name: str) -> str:
    """`blocks.0.attention` -> `layer blocks.0`."""
    return "layer " + name.removeprefix("_orig_mod.").removesuffix(".attention")
