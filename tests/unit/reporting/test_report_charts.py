import json
import math
import random
from pathlib import Path

from scaledl.reporting.charts import MOST_POINTS, data, sections_with_data, thinned
from scaledl.reporting.dashboard import Panel, Section
from scaledl.reporting.runs import Run

LOG = [
    {"step": 1, "train/loss": 8.0, "samples_seen": 32, "attack/rate": 0.5, "baseline/mean": 1.0},
    {"step": 1, "val/loss": 4.0, "val/odd": 1.0, "train/odd": 2.0},
    {"step": 2, "train/loss": 0.04, "samples_seen": 64, "test/loss": 0.1},
]
QUALITY = Section("Quality", (Panel("Loss", ("train/loss", "val/loss")), Panel("Accuracy", ("val/acc",))))


def run(lines: list[dict], name: str = "a") -> Run:
    return Run(Path(name), name, {}, {}, lines)


def test_charts_without_values_go_and_metrics_without_a_chart_get_one() -> None:
    shown, more = sections_with_data([QUALITY, Section("Empty", (Panel("No", ("no",)),))], [run(LOG)])
    assert shown == [Section("Quality", QUALITY.panels[:1])]
    assert [(panel.title, panel.metrics) for panel in more.panels] == [
        ("attack/rate", ("attack/rate",)),
        ("odd", ("train/odd", "val/odd")),
    ]


def test_the_data_holds_every_point_of_every_run_and_can_stand_in_a_script_element() -> None:
    runs = [run(LOG, "</script><b>"), run(LOG[:1], "b")]
    text = data([QUALITY], runs)
    assert "<" not in text
    found = json.loads(text)
    assert found["runs"] == ["</script><b>", "b"]
    assert found["axes"] == {"samples": [[[1, 2], [32, 64]], [[1], [32]]]}  # no tokens, no seconds
    chart = found["charts"]["Quality: Loss"]
    assert chart["log"]  # 8 is 200 times 0.04
    assert chart["series"] == [
        {"run": 0, "metric": "train/loss", "steps": [1, 2], "values": [8.0, 0.04]},
        {"run": 0, "metric": "val/loss", "steps": [1], "values": [4.0]},
        {"run": 1, "metric": "train/loss", "steps": [1], "values": [8.0]},
    ]
    assert "Quality: Accuracy" not in found["charts"]


def test_json_is_strict_and_a_run_without_curves_takes_no_axis_from_the_others() -> None:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    odd = [{"step": 1, "train/loss": math.nan, "val/loss": math.inf}, {"step": 2, "train/loss": 3.0, "val/loss": None}]
    runs = [run(LOG), run([], "b"), run([odd[0]], "c")]
    shown, more = sections_with_data([QUALITY], runs)
    found = json.loads(data([*shown, more], runs), parse_constant=refuse)
    assert {each["run"] for each in found["charts"]["Quality: Loss"]["series"]} == {0}
    assert list(found["axes"]) == ["samples"]
    found = json.loads(data(shown, [run(odd)]), parse_constant=refuse)
    (series,) = found["charts"]["Quality: Loss"]["series"]
    assert (series["steps"], series["values"]) == ([2], [3.0])


def test_thinning_keeps_order_ends_of_the_range_and_peaks() -> None:
    draw = random.Random(0)
    points = [(step, draw.random()) for step in range(20_000)]
    points[777] = (777, 99.0)
    kept = thinned(points)
    assert len(kept) <= MOST_POINTS
    assert kept == sorted(kept)
    assert (777, 99.0) in kept
    assert min(kept, key=lambda point: point[1]) == min(points, key=lambda point: point[1])
    assert thinned(points[:MOST_POINTS]) == points[:MOST_POINTS]
