"""A family's dashboard as a Weights & Biases workspace, by the client's own classes."""

import json
import warnings
from typing import Any

from scaledl.reporting.dashboard import Section

DRAWN = """alignment attack attention clients confusion curves decision_boundary embeddings energies expert_load
feature_maps features forecast gradients hardest latent masked_images reconstructions splines"""
MEDIA = {
    "Samples": ["samples/pictures", "samples/texts", "samples/episode"],
    "Pictures": [f"plots/{name}" for name in DRAWN.split()],
}
SYSTEM = {"GPU in use, %": "system/gpu.0.gpu", "GPU memory, %": "system/gpu.0.memoryAllocated", "CPU, %": "system/cpu"}


def workspace(family: str, sections: list[Section], project: str, entity: str | None = None) -> Any:
    """The workspace `ScaleDL: <family>` of a project, of the runs tagged with the family; nothing is sent.

    Raises:
        ImportError: wandb-workspaces is not installed.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import wandb_workspaces.reports.v2 as panels
            import wandb_workspaces.workspaces as ws
    except ImportError as error:
        raise ImportError('dashboards are built by wandb-workspaces: pip install "scaledl[dashboard]"') from error
    made = [
        ws.Section(name=section.title, is_open=True, panels=[_plot(panels, panel) for panel in section.panels])
        for section in sections
    ]
    made += [
        ws.Section(name=title, is_open=True, panels=[panels.MediaBrowser(title=title, media_keys=keys)])
        for title, keys in MEDIA.items()
    ]
    system = [panels.LinePlot(title=title, y=[metric]) for title, metric in SYSTEM.items()]
    made.append(ws.Section(name="System", panels=system))
    return ws.Workspace(
        entity=entity or "",
        project=project,
        name=f"ScaleDL: {family}",
        sections=made,
        settings=ws.WorkspaceSettings(x_axis="step", smoothing_type="exponential", smoothing_weight=0),
        runset_settings=ws.RunsetSettings(filters=f"Tags in ['{family}']"),
    )


def spec(made: Any) -> dict[str, Any]:
    """What would be sent to the server."""
    return json.loads(made._to_model().model_dump_json(by_alias=True, exclude_none=True))


def _plot(panels: Any, panel: Any) -> Any:
    return panels.LinePlot(title=panel.title, x="step", y=list(panel.metrics), log_y=panel.log or None)
