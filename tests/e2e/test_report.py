"""`scaledl report`: from runs to a page that a browser shows, without network and without complaints."""

import json
import random
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution, distribution_to_json

from scaledl.reporting.charts import MOST_POINTS
from scaledl.reporting.dashboard import Panel, Section
from scaledl.reporting.page import build
from scaledl.reporting.runs import Run, open_runs
from scaledl.sweep import results
from scaledl.sweep.report import write_report
from scaledl.sweep.results import Result, Results
from tests.browser import PROGRAM, Browser

pytestmark = pytest.mark.e2e
RUNS = Path("runs/mlp/circles")


def test_three_runs_on_one_page(scaledl, tmp_path: Path) -> None:
    short = ["experiment=mlp/circles", "trainer.max_steps=40", "trainer.val_check_interval=10"]
    for name, lr in (("a", 1e-3), ("b", 1e-2), ("c", 1e-1)):
        scaledl("train", *short, f"optimizer.lr={lr}", f"run_id={name}", "trainer.log_every_n_steps=5")
    done = scaledl("report", str(RUNS))
    page = tmp_path / RUNS / "report.html"
    assert done.stdout.splitlines() == [str(RUNS / "report.html")]
    text = page.read_text()
    assert "1 setting differs" in text
    assert "torch" in text.partition("<h2>Environment")[2]
    assert text.count("plots/decision_boundary") >= 3
    assert not re.search(r"(src|href)=.(?!data:)", text)
    if PROGRAM is None:
        pytest.skip("the page is written, but there is no chromium on this machine to open it")
    with Browser(tmp_path / "profile") as browser:
        for scheme, width in (("light", 1250), ("dark", 1250), ("light", 390)):
            browser.open(page, scheme, width)
            assert browser.value("document.documentElement.scrollWidth <= innerWidth")
            charts = "[...document.querySelectorAll('.chart')].filter(card => card.offsetParent)"
            assert browser.value(f"{charts}.length") >= 5
            assert browser.value(f"{charts}.every(card => card.querySelectorAll('path.curve').length >= 3)")
            browser.picture(tmp_path / f"{scheme}_{width}.png")
            assert (tmp_path / f"{scheme}_{width}.png").stat().st_size > 20_000
        count = "document.querySelectorAll('.chart')[0].querySelectorAll('path.curve').length"
        before = browser.value(count)
        move = "const s = document.getElementById('smoothing'); s.value = 0.9; s.dispatchEvent(new Event('input'))"
        browser.value(move)
        assert browser.value(count) == 2 * before  # what is smoothed, and what was logged behind it
        browser.value("document.querySelector('.chip').dispatchEvent(new Event('click'))")
        assert browser.value(count) == 2 * before * 2 // 3
        browser.value("document.getElementById('axis').value = 'samples'")
        browser.value("document.getElementById('axis').dispatchEvent(new Event('change'))")
        assert "samples seen" in browser.value("document.querySelector('.chart').textContent")
        where = "const r = document.querySelector('.chart svg').getBoundingClientRect()"
        at = "{clientX: r.left + 100, clientY: r.top + 40}"
        browser.value(
            f"{where}; document.querySelector('.chart svg').dispatchEvent(new PointerEvent('pointermove', {at}))"
        )
        assert browser.value("document.querySelector('.tip:not([hidden])').textContent").count("train/loss") == 2
        assert (browser.requests, browser.complaints) == ([], [])


def run_of(folder: Path, values: Iterable[float | None], **summary: Any) -> Run:
    """A run directory as training leaves it, with a curve of these values."""
    folder.mkdir()
    (folder / "config.yaml").write_text(f"experiment: mlp/x\nrun_id: {folder.name}\n")
    lines = ({"step": step, "train/loss": value, "val/loss": value} for step, value in enumerate(values))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    if summary:
        (folder / "summary.json").write_text(json.dumps(summary))
    return open_runs([folder])[0]


@pytest.mark.skipif(PROGRAM is None, reason="there is no chromium on this machine")
def test_runs_with_odd_or_very_many_values_are_drawn(tmp_path: Path) -> None:
    odd = {
        "never_finite": [None, None],
        "empty": [],
        "one_point": [0.5],
        "nearly_constant": [0.3, 0.30000000000000004, 0.3],
        "zero": [0.0, 0.0],
        "from_tiny_to_huge": [1e-300, 1.0, 1e300],
    }
    pages = {name: [run_of(tmp_path / name, values)] for name, values in odd.items()}
    told = {
        "status": "failed",
        "metrics": {},
        "best": None,
        "strategy": "auto",
        "world_size": 1,
        "precision": "32-true",
    }
    pages["failed"] = [run_of(tmp_path / "failed", [3.0, 2.0, None], **told)]
    loss = Section("Quality", (Panel("Loss", ("train/loss", "val/loss")),))
    drawn = dict.fromkeys(pages, 2) | {"never_finite": 0, "empty": 0}
    drawn |= {"together": sum(drawn.values()), "long": 134}
    draw = random.Random(0)
    long = [run_of(tmp_path / f"long_{n}", (draw.random() for _ in range(MOST_POINTS))) for n in range(67)]
    pages |= {"together": [runs[0] for runs in pages.values()], "long": long}
    with Browser(tmp_path / "profile") as browser:
        for name, runs in pages.items():
            page = tmp_path / f"{name}.html"
            page.write_text(build(runs, [loss]))
            browser.open(page)
            curves = browser.value("document.querySelectorAll('.chart path.curve').length")
            assert curves == drawn[name], name
            labels = browser.value("document.querySelectorAll('.chart svg text').length")
            assert 2 < labels < 40 if curves else labels == 0, name
            assert (browser.requests, browser.complaints) == ([], []), name
    assert sum(len(run.series(metric)) for run in long for metric in run.metrics()) > 200_000


@pytest.mark.skipif(PROGRAM is None, reason="there is no chromium on this machine")
def test_the_page_of_a_sweep_fits_a_narrow_screen_and_its_charts_stay_legible(tmp_path: Path) -> None:
    kinds = {"optimizer.lr": FloatDistribution(1e-4, 1e-1, log=True), "model.act": CategoricalDistribution(["a", "b"])}
    kinds |= {f"model.x{number}": IntDistribution(1, 9) for number in range(5)}
    space = {name: distribution_to_json(kind) for name, kind in kinds.items()}
    params = {"optimizer.lr": 0.01, "model.act": "b"} | {f"model.x{number}": 3 for number in range(5)}
    trials = [Result(number, "completed", params, [0.5 / (1 + number)], {"1": 1.0}) for number in range(5)]
    trials += [
        Result(5, "pruned", params, [0.9], {"1": 0.9}),
        Result(6, "failed", params, None, error="scaledl: no room"),
    ]
    results.write(Results("tpe", "mlp/x", {"val/loss": "min"}, [], space, trials), tmp_path)
    page = write_report(tmp_path)
    with Browser(tmp_path / "profile") as browser:
        for scheme, width in (("light", 1250), ("dark", 390)):
            browser.open(page, scheme, width)
            assert browser.value("document.documentElement.scrollWidth <= innerWidth")
            assert browser.value("[...document.images].every(image => image.width >= 500)")
            assert browser.value("document.images.length") == 5
        assert (browser.requests, browser.complaints) == ([], [])


def test_what_is_no_run_is_told(scaledl, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert "empty is no run directory" in scaledl("report", "empty", code=1).stderr
    assert "scaledl: " in scaledl("report", "nothing", "--output", "no/x.html", code=1).stderr
