"""The page of a sweep: its best configs, what mattered, how it went, what failed."""

import warnings
from collections import Counter
from html import escape
from pathlib import Path

import optuna
from matplotlib.figure import Figure

from scaledl import atomic
from scaledl.html_page import cell, page, section, table
from scaledl.interpret.page import picture
from scaledl.sweep import best, charts, confirm, grid_results
from scaledl.sweep.folder import RESULTS
from scaledl.sweep.results import Result, Results, read
from scaledl.sweep.tables import shown

ROWS = 20
ENOUGH = 10  # completed trials
STYLE = "figure img { max-width: none; background: #fff; border-radius: 4px }"  # a narrow page scrolls


def write_report(sweep_dir: Path, output: Path | None = None) -> Path:
    """Write the page, by default `report.html` in the sweep's directory; says which it was.

    Raises:
        FileNotFoundError: this is no sweep's directory, or none of its trials has ended.
    """
    results = read(sweep_dir) if (sweep_dir / RESULTS).is_file() else grid_results.read(sweep_dir)
    output = output or sweep_dir / "report.html"
    atomic.write_text(output, _page(results, sweep_dir))
    return output


def importance(results: Results) -> dict[str, float]:
    """Of each parameter for the first objective, largest first; empty where too few trials have a value."""
    study = results.study(_comparable(results))
    if len(study.trials) < 4 or len(results.space) < 2:
        return {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
        target = None if len(results.objectives) == 1 else (lambda trial: trial.values[0])
        try:
            return optuna.importance.get_param_importances(study, evaluator=evaluator, target=target)
        except (RuntimeError, ValueError):  # all values are the same
            return {}


def _comparable(results: Results) -> list[Result]:
    """Trials that ran to their end, where they are enough; else those that were ended early, too."""
    completed = results.completed() if len(results.objectives) == 1 else results.trials
    return completed if len(completed) >= ENOUGH else results.trials


def _page(results: Results, folder: Path) -> str:
    counts = Counter(each.status for each in results.trials)
    facts = {
        "sweep": results.sweep,
        "experiment": results.experiment,
        "objective": ", ".join(f"{metric} ({mode})" for metric, mode in results.objectives.items()),
        "trials": ", ".join(f"{count} {status}" for status, count in counts.items()),
    }
    return page(f"Sweep {folder.absolute().name}", facts, _sections(results, folder), STYLE)


def _sections(results: Results, folder: Path) -> list[str]:
    several = len(results.objectives) > 1
    sections = []
    if results.completed():
        sections.append(_best(results, folder))
    if several and results.front():
        words = "Trials that no other is at least as good as in all objectives, in blue, by their number."
        sections.append(section("Pareto front", words, _chart(charts.pareto(results), "a scatter of two objectives")))
    if compared := confirm.read(folder):
        sections.append(
            section("Winner against default", escape(compared.words().capitalize() + "."), _seeds(compared))
        )
    if amounts := importance(results):
        words = (
            "How much of the differences between trials a parameter explains (functional ANOVA, Hutter et al. 2014). "
            f"Of trials that ran to their end; where fewer than {ENOUGH} did, the others count with their last value."
        )
        sections.append(section("Importance of the parameters", words, _chart(charts.bars(amounts), "bars")))
    if any(each.values for each in results.trials) and not several:
        words = "Each trial's value; red lines are trials that failed. Blue ran to their end, grey were ended early."
        sections.append(section("How it went", words, _chart(charts.history(results), "values over trials")))
    if results.space and sum(bool(each.values) for each in results.trials) > 1:
        words = "One line for each trial, dark the best."
        sections.append(
            section("Parallel coordinates", words, _chart(charts.parallel(results), "parallel coordinates"))
        )
        words = "The objective over each parameter, whatever the others were."
        sections.append(section("Each parameter", words, _chart(charts.slices(results), "scatter plots")))
    if any(each.validations for each in results.trials):
        words = "A cross is where a trial was ended, for it fell behind."
        sections.append(section("Validations", words, _chart(charts.learning(results), "curves of the trials")))
    if failed := [each for each in results.trials if each.status == "failed"]:
        sections.append(_failures(failed))
    return sections


def _best(results: Results, folder: Path) -> str:
    heads = ["trial", *results.objectives, *results.space]
    rows = [
        [cell(f"{each.trial:04d}")]
        + [cell(f"{value:.4g}") for value in each.values or []]
        + [cell(escape(shown(each.params.get(name)))) for name in results.space]
        for each in results.completed()[:ROWS]
    ]
    words = "".join(f"<p>Train one: <code>{escape(command)}</code></p>" for command in best.commands(folder)[:1])
    return section("Best configs", "Trials that ran to their end.", words, table(heads, rows))


def _seeds(compared: confirm.Comparison) -> str:
    rows = [
        [cell(str(seed)), cell(f"{winner:.4g}"), cell(f"{default:.4g}")]
        for seed, winner, default in zip(compared.seeds, compared.winner, compared.default, strict=True)
    ]
    return table(["seed", "winner", "default"], rows)


def _failures(failed: list[Result]) -> str:
    rows = [
        [
            cell(f"{each.trial:04d}"),
            cell(escape(", ".join(f"{name}={shown(value)}" for name, value in each.params.items()))),
            cell(f'<span style="white-space: pre-wrap">{escape(each.error or "")}</span>'),
        ]
        for each in failed
    ]
    return section("Failed", "What each trial said last.", table(["trial", "parameters", "message"], rows))


def _chart(figure: Figure, words: str) -> str:
    return f'<div class="wide">{picture(charts.uri(figure), words, coarse=False, small=False)}</div>'
