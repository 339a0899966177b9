import base64
import hashlib
import json
import re
from pathlib import Path

from scaledl.loggers.drawn import drawn
from scaledl.reporting.page import MOST_STEPS, build
from scaledl.reporting.runs import Run, open_runs


def make(folder: Path, name: str = "a") -> Run:
    folder.mkdir(parents=True)
    config = {"experiment": "mlp/<x>", "run_id": name, "optimizer": {"lr": name}}
    (folder / "config.yaml").write_text(json.dumps(config))
    (folder / "metrics.jsonl").write_text('{"step": 1, "train/loss": 1.0, "</script><script>alert(1)//": 2}\n')
    return open_runs([folder])[0]


def test_nothing_that_a_run_holds_becomes_part_of_the_page(tmp_path: Path) -> None:
    run = make(tmp_path / "<img src=x onerror=alert(1)>")
    (run.path / "samples").mkdir()
    (run.path / "samples" / "step_00000001.txt").write_text("<script>alert(2)</script>")
    run.drawn = drawn(run.path)
    text = build([run], [])
    assert text.count("<script") == 2  # the data and the page's own
    assert "<img src=x" not in text
    (script,) = re.findall(r"<script>(.*?)</script>", text, re.DOTALL)
    allowed = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{allowed}'" in text
    assert "default-src 'none'" in text


def test_a_run_that_has_only_begun_has_a_page(tmp_path: Path) -> None:
    run = make(tmp_path / "a")
    (run.path / "metrics.jsonl").unlink()
    assert "running or killed" in build(open_runs([run.path]), [])


def test_a_run_whose_metrics_were_never_finite_has_a_page_beside_others(tmp_path: Path) -> None:
    never = make(tmp_path / "never", "never")
    (never.path / "metrics.jsonl").write_text('{"step": 1, "val/loss": null, "train/loss": null}\n')
    ended = make(tmp_path / "ended", "ended")
    summary = {"status": "failed", "strategy": "auto", "world_size": 1, "precision": "32-true"}
    (ended.path / "summary.json").write_text(json.dumps(summary | {"metrics": {"val/loss": None}, "best": None}))
    assert "running or killed" in build(open_runs([never.path]), [])
    text = build(open_runs([never.path, ended.path, make(tmp_path / "good", "good").path]), [])
    assert "<th>val/loss</th><td></td><td>not finite</td><td></td>" in text
    assert "<td>failed</td>" in text


def test_of_many_steps_the_first_and_the_last_are_among_those_shown(tmp_path: Path) -> None:
    run = make(tmp_path / "a")
    (run.path / "samples").mkdir()
    for step in range(0, 3000, 100):
        (run.path / "samples" / f"step_{step:08d}.txt").write_text("x")
    text = build(open_runs([run.path]), [])
    steps = re.findall(r"<figcaption>step ([\d,]+)<", text)
    assert len(steps) == MOST_STEPS
    assert (steps[0], steps[-1]) == ("0", "2,900")
    assert text.count('class="frame" hidden') == MOST_STEPS - 1


def test_settings_that_differ_are_told(tmp_path: Path) -> None:
    text = build([make(tmp_path / "a", "a"), make(tmp_path / "b", "b")], [])
    assert "1 setting differs, 1 are equal" in text
    assert "<th>optimizer.lr</th>" in text
