"""Occlusion: what is lost when a part is covered (Zeiler & Fergus 2014, arXiv:1311.2901, section 4.2)."""

import torch
from torch import Tensor

from scaledl.interpret.subject import ROWS, Subject, scores


def occlusion(subject: Subject) -> Tensor:
    """Of each part (*regions.shape): the mean loss of score over the windows that cover it."""
    windows = subject.windows
    covered = [scores(subject.score, subject.baseline.where(some, subject.x)) for some in windows.split(ROWS)]
    lost = scores(subject.score, subject.x) - torch.cat(covered)  # (M,)
    return (lost.view(-1, *(1 for _ in windows.shape[1:])) * windows).sum(0) / windows.sum(0)
