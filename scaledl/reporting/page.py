"""The report as one page of HTML: what came out, curves, what differs, pictures, environment."""

import time
from collections.abc import Callable, Iterable
from html import escape
from pathlib import Path
from typing import Any

from scaledl.html_page import cell, image_uri, page, row, section, table
from scaledl.loggers.drawn import TEXTS, Drawn
from scaledl.reporting import charts
from scaledl.reporting.dashboard import Section
from scaledl.reporting.runs import Run, differences

_HERE = Path(__file__).parent
NUM_COLOURS = 8
DRAWN_HERE = {"plots/curves"}  # the page's own charts show more
MOST_STEPS = 8  # of pictures drawn again and again: the first, the last and some between


def build(runs: list[Run], sections: list[Section]) -> str:
    shown, more = charts.sections_with_data(sections, runs)
    experiments = dict.fromkeys(str(run.config.get("experiment")) for run in runs)
    title = f"{next(iter(experiments))}/{runs[0].name}" if len(runs) == 1 else f"{len(runs)} runs"
    facts = {
        "experiment" if len(experiments) == 1 else "experiments": ", ".join(experiments),
        "written": time.strftime("%Y-%m-%d %H:%M"),
    }
    content = [
        _results(runs),
        _controls(runs),
        *(_charts(each) for each in shown),
        _folded("More curves", _charts(more)) if more.panels else "",
        _settings(runs),
        *_drawn(runs),
        _environment(runs),
        f'<script type="application/json" id="data">{charts.data([*shown, more], runs)}</script>',
    ]
    style, script = ((_HERE / name).read_text(encoding="utf-8") for name in ("report.css", "report.js"))
    return page(f"ScaleDL: {title}", facts, content, style, script)


def _results(runs: list[Run]) -> str:
    """A row for each fact and each final result, a column for each run."""
    facts: dict[str, Callable[[dict[str, Any], Run], Any]] = {
        "status": lambda s, run: run.status,
        "model": lambda s, run: str(run.config.get("model", {}).get("_target_", "")).rpartition(".")[2],
        "parameters": lambda s, run: _number(s.get("num_parameters")),
        "steps": lambda s, run: _number(s.get("steps", run.lines[-1]["step"] if run.lines else None)),
        "best": lambda s, run: "{metric} {value:.4g} at step {step:,}".format(**s["best"]) if s.get("best") else "",
        "training time": lambda s, run: _duration(s.get("train_seconds")),
        "speed": lambda s, run: _speed(s.get("throughput") or {}),
        "strategy": lambda s, run: f"{s['strategy']}, {s['world_size']} x {s['precision']}" if s else "",
    }
    rows = {name: [escape(str(tell(run.summary, run))) for run in runs] for name, tell in facts.items()}
    last = [run.summary.get("metrics") or {name: run.series(name)[-1][1] for name in run.metrics()} for run in runs]
    for kind in ("test/", "val/", "baseline/"):
        names = dict.fromkeys(name for each in last for name in each if name.startswith(kind))
        rows |= {name: [_number(each[name]) or "not finite" if name in each else "" for each in last] for name in names}
    words = "What each run came to. Values of <b>val/</b> are those of the last validation."
    return section("Results", words, _table_of_runs(runs, {k: v for k, v in rows.items() if any(v)}))


def _controls(runs: list[Run]) -> str:
    chips = "".join(
        f'<button class="chip" data-run="{number}" aria-pressed="true" title="show or hide">'
        f'<i class="c{number % NUM_COLOURS}"></i>{escape(run.name)}</button>'
        for number, run in enumerate(runs)
    )
    return (
        '<h2 id="curves">Curves</h2><noscript><p>Curves are drawn by a script of this page.</p></noscript>'
        f'<div class="controls"><span class="chips">{chips if len(runs) > 1 else ""}</span>'
        '<label>smoothing <input id="smoothing" type="range" min="0" max="0.99" step="0.01" value="0">'
        '<output id="amount">0</output></label>'
        '<label>over <select id="axis"><option value="step">steps</option></select></label></div>\n'
    )


def _charts(each: Section) -> str:
    cards = "".join(
        f'<div class="card chart" data-chart="{escape(charts.place(each, panel))}"><h3>{escape(panel.title)}'
        '<button class="log" aria-pressed="false" title="logarithmic axis">log</button></h3></div>'
        for panel in each.panels
    )
    return f'<section><h3 class="part">{escape(each.title)}</h3><div class="cards">{cards}</div></section>\n'


def _settings(runs: list[Run]) -> str:
    if len(runs) == 1:
        rows, words = {}, ""
    else:
        rows, equal = differences(runs)
        words = f"{len(rows)} {'setting differs' if len(rows) == 1 else 'settings differ'}, {equal} are equal."
    differing = _table_of_runs(runs, {k: [f"<code>{escape(v)}</code>" for v in values] for k, values in rows.items()})
    whole = "".join(_folded(f"config.yaml of {run.name}", _text(run.path / "config.yaml")) for run in runs)
    models = "".join(_folded(f"Modules of {run.name}", f"<pre>{escape(run.model)}</pre>") for run in runs if run.model)
    return section("Settings", words, differing if rows else "", whole, models)


def _drawn(runs: list[Run]) -> Iterable[str]:
    """A section of what was drawn at steps, and one of what was drawn once; the same picture of all runs together."""
    words = {
        "samples": "What the model made as it learned; the slider goes through the steps.",
        "plots": "What was drawn of the run, as <code>plots/</code> holds it.",
    }
    for folder, heading in (("samples", "Samples"), ("plots", "Pictures")):
        names = sorted({each.name for run in runs for each in run.drawn if each.name.startswith(folder)} - DRAWN_HERE)
        grids = []
        for name in names:
            of_runs = [(run, [each for each in run.drawn if each.name == name]) for run in runs]
            grids.append([_card(run, name, found, runs) for run, found in of_runs if found])
        if len(runs) == 1:
            grids = [[card for grid in grids for card in grid]]
        if names:
            kind = "pictures" if len(runs) > 1 else "pictures large"
            yield section(heading, words[folder], *(row(grid, kind) for grid in grids))


def _card(run: Run, name: str, found: list[Drawn], runs: list[Run]) -> str:
    chosen = [found[round(n * (len(found) - 1) / max(1, MOST_STEPS - 1))] for n in range(MOST_STEPS)]
    chosen = list(dict.fromkeys(chosen)) if len(found) > MOST_STEPS else found
    frames = [_frame(each, last=each is chosen[-1]) for each in chosen]
    slider = ""
    if len(chosen) > 1:
        last = len(chosen) - 1
        slider = f'<input class="steps" type="range" min="0" max="{last}" value="{last}" aria-label="step">'
    where = f"{_dot(run, runs)}{escape(run.name)} · " if len(runs) > 1 else ""
    return f'<figure class="card"><figcaption>{where}{escape(name)}</figcaption>{"".join(frames)}{slider}</figure>'


def _frame(each: Drawn, last: bool) -> str:
    hidden = "" if last else " hidden"
    step = f"<figcaption>step {each.step:,}</figcaption>" if each.step is not None else ""
    if each.path.suffix in TEXTS:
        return f'<div class="frame"{hidden}>{_text(each.path)}{step}</div>'
    uri = image_uri(each.path.read_bytes(), each.path.suffix[1:])
    return f'<div class="frame"{hidden}><img src="{uri}" alt="{escape(each.name)}">{step}</div>'


def _environment(runs: list[Run]) -> str:
    rows: dict[str, list[str]] = {}
    for number, run in enumerate(runs):
        summary, memory = run.summary, run.summary.get("peak_memory_bytes") or {}
        facts = {
            "git commit": (summary.get("git_commit") or "")[:12],
            "config hash": summary.get("config_hash"),
            **(summary.get("environment") or {}),
            **(summary.get("versions") or {}),
            "nodes": summary.get("num_nodes"),
            "ranks": summary.get("world_size"),
            **{f"peak memory, {name}": f"{value / 2**20:,.0f} MiB" for name, value in memory.items() if value},
            "run directory": str(run.path),
        }
        for name, value in facts.items():
            rows.setdefault(name, [""] * len(runs))[number] = escape(str(value)) if value is not None else ""
    words = "Where and with what each run was made."
    return section("Environment", words, _table_of_runs(runs, {k: v for k, v in rows.items() if any(v)}))


def _table_of_runs(runs: list[Run], rows: dict[str, list[str]]) -> str:
    heads = ["", *(run.name for run in runs)]
    made = table(heads, ([f"<th>{escape(name)}</th>", *map(cell, cells)] for name, cells in rows.items()))
    for run in runs:  # a head has the run's colour before its name
        made = made.replace(f"<th>{escape(run.name)}</th>", f"<th>{_dot(run, runs)}{escape(run.name)}</th>", 1)
    return made.replace("<table>", '<table class="runs">')


def _dot(run: Run, runs: list[Run]) -> str:
    return f'<i class="c{runs.index(run) % NUM_COLOURS}"></i>' if len(runs) > 1 else ""


def _folded(heading: str, content: str) -> str:
    return f"<details><summary>{escape(heading)}</summary>{content}</details>\n"


def _text(path: Path) -> str:
    return f"<pre>{escape(path.read_text(encoding='utf-8', errors='replace'))}</pre>"


def _number(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:,}" if isinstance(value, int) else f"{value:,.4g}" if abs(value) < 1e6 else f"{value:.4g}"


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return ""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{seconds:.1f} s"


def _speed(throughput: dict[str, float | None]) -> str:
    return ", ".join(f"{v:,.0f} {name.replace('_per_second', '/s')}" for name, v in throughput.items() if v)
