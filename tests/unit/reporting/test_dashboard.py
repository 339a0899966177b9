import re
from pathlib import Path

import pytest

from scaledl.config.folders import CONF
from scaledl.reporting.dashboard import Panel, Section, dashboard, families, together
from scaledl.reporting.workspace import DRAWN, spec, workspace

ROOT = Path(__file__).parents[3]
SOURCES = "\n".join(path.read_text() for path in (ROOT / "scaledl").rglob("*.py"))
FAMILIES = families([CONF])


@pytest.mark.parametrize("family", FAMILIES)
def test_every_metric_is_one_that_is_logged(family: str) -> None:
    for section in dashboard(family, [CONF]):
        for panel in section.panels:
            assert panel.metrics
            for metric in panel.metrics:
                name = metric.rpartition("/")[2]
                assert re.search(rf'["/_]{name}["{{]', SOURCES), f"{family}: nothing logs {metric}"


def test_every_file_belongs_to_a_family() -> None:
    files = {path.stem for path in (CONF / "dashboard").glob("*.yaml")}
    assert files - {"default", "every"} <= set(FAMILIES)
    assert len(files) > 10


def test_pictures_of_a_workspace_are_drawn_by_some_callback() -> None:
    for name in DRAWN.split():
        assert f'"{name}.png"' in SOURCES, name


@pytest.mark.parametrize("family", FAMILIES)
def test_its_workspace_is_built_offline(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb_workspaces")
    monkeypatch.setenv("WANDB_MODE", "offline")
    sections = dashboard(family, [CONF])
    made = spec(workspace(family, sections, "project"))
    banks = made["spec"]["section"]["panelBankConfig"]["sections"]
    found = {each["name"]: each["panels"] for each in banks}
    for section in sections:
        plots = [(p["config"]["chartTitle"], tuple(p["config"]["metrics"]), p["config"]["xAxis"],
                  p["config"].get("yLogScale", False)) for p in found[section.title]]  # fmt: skip
        assert plots == [(panel.title, panel.metrics, "step", panel.log) for panel in section.panels]
    assert {"Samples", "Pictures", "System"} <= set(found)
    assert family in str(made["spec"]["section"]["runSets"][0]["filters"])


def test_a_dashboard_of_ones_own_wins_and_a_wrong_one_is_told(tmp_path: Path) -> None:
    (tmp_path / "dashboard").mkdir()
    own = tmp_path / "dashboard" / "llm.yaml"
    own.write_text("Mine: {Loss: {metrics: [val/loss], log: true}}")
    assert dashboard("llm", [tmp_path, CONF])[0] == Section("Mine", (Panel("Loss", ("val/loss",), True),))
    own.write_text("Mine: {Loss: val/loss}")
    with pytest.raises(ValueError, match=r"llm.yaml is no dashboard.*Quality"):
        dashboard("llm", [tmp_path, CONF])


def test_sections_of_several_families_come_once_and_what_all_have_comes_last() -> None:
    both = together([dashboard("llm", [CONF]), dashboard("vae", [CONF])])
    titles = [section.title for section in both]
    assert len(titles) == len(set(titles))
    assert titles[0] == "Language"
    assert titles[-2:] == ["Gradients", "Throughput"]
