"""Who holds what."""

import numpy as np
from matplotlib.figure import Figure


def clients_figure(labels: np.ndarray, clients: list[np.ndarray]) -> Figure:
    """How many samples of each class each client holds."""
    classes = np.unique(labels)
    counts = np.stack([[(labels[indices] == label).sum() for label in classes] for indices in clients])  # (K, classes)
    figure = Figure(figsize=(6, 0.8 + 0.25 * min(len(clients), 40)), layout="constrained")
    axes, left = figure.add_subplot(), np.zeros(len(clients))
    for column, label in enumerate(classes):
        axes.barh(np.arange(len(clients)), counts[:, column], left=left, label=str(label), color=f"C{column % 10}")
        left += counts[:, column]
    axes.set(xlabel="training samples", ylabel="client", title="what each client holds, by class")
    axes.invert_yaxis()
    if len(classes) <= 10:
        axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), fontsize=8)
    return figure
