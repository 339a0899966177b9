"""Language models under EleutherAI's lm-eval (github.com/EleutherAI/lm-evaluation-harness), whose tasks are the field's
measure. It is optional; this file is imported only to use it."""

import logging
from itertools import takewhile
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from scaledl.data.tokenizer import Tokenizer, first_ids, load_tokenizer, stream_text
from scaledl.evaluate import load_run
from scaledl.multiple_choice import log_likelihoods
from scaledl.tables import metrics_table
from scaledl.train import quiet

try:
    from lm_eval import simple_evaluate
    from lm_eval.api.model import LM
    from lm_eval.tasks import TaskManager
except ImportError as error:
    raise ImportError(f"--harness needs lm-eval ({error}): pip install 'scaledl[harness]'") from error

Requests = list[Any]  # lm-eval's, whose `args` hold what is asked


class HarnessModel(LM):
    """A task's model as lm-eval asks it. Texts without a context follow the end of a document."""

    def __init__(self, task: Any, tokenizer: Tokenizer, batch_size: int):
        super().__init__()
        self.task, self.tokenizer, self.batch_size = task, tokenizer, batch_size

    def loglikelihood(self, requests: Requests) -> list[tuple[float, bool]]:
        pairs = [(self._ids(context) or [self.tokenizer.eos_id], self._ids(text)) for context, text in _args(requests)]
        return log_likelihoods(self.task, pairs, self.batch_size)

    def loglikelihood_rolling(self, requests: Requests) -> list[float]:
        """Each token once, in windows of the model's length; the last window begins in the one before it."""
        window, found = int(self.task.model.max_seq_len), []
        for (text,) in _args(requests):
            ids = [self.tokenizer.eos_id, *self._ids(text)]
            pairs = [(ids[max(0, at - window) : at], ids[at : at + window]) for at in range(1, len(ids), window)]
            found.append(sum(score for score, _ in log_likelihoods(self.task, pairs, self.batch_size)))
        return found

    def generate_until(self, requests: Requests) -> list[str]:
        return [self._written(context, settings) for context, settings in _args(requests)]

    def _written(self, context: str, settings: dict[str, Any]) -> str:
        until = settings.get("until") or []
        stops = [until] if isinstance(until, str) else until
        temperature = settings.get("temperature", 0.0) if settings.get("do_sample") else 0.0
        new_ids = self.task.generate(
            first_ids(self.tokenizer, context or None), settings.get("max_gen_toks", 256), temperature=temperature
        )
        text = ""
        for piece in stream_text(self.tokenizer, takewhile(lambda token: token != self.tokenizer.eos_id, new_ids)):
            text += piece
            if ends := [at for at in map(text.find, stops) if at >= 0]:
                return text[: min(ends)]
        return text

    def _ids(self, text: str) -> list[int]:
        return self.tokenizer.encode(text).tolist()


def harness(
    run_dir: Path,
    which: str,
    tasks: list[str],
    include_path: Path | None,
    limit: int | None,
    batch_size: int,
    allowed: list[str],
) -> dict[str, float]:
    """Metrics of lm-eval's tasks as `<task>/<metric>`; prints them as a table.

    Args:
        which: `best`, `last` or a step.
        include_path: a folder of task files, in place of those that lm-eval brings, most of which need a network.
        limit: questions of a task, at most.

    Raises:
        ValueError: the run is no language model, or there is no such task.
    """
    quiet()
    logging.getLogger("lm_eval").setLevel(logging.WARNING)
    manager = TaskManager(include_path=str(include_path) if include_path else None, include_defaults=not include_path)
    if unknown := [name for name in tasks if not manager.match_tasks([name])]:
        raise ValueError(f"--harness {','.join(unknown)}: lm-eval knows no such task; see its `lm-eval ls tasks`")
    task, _, _, chosen = load_run(run_dir, which, allowed, with_data=False)
    if not hasattr(task, "generate"):
        raise ValueError(f"{run_dir} is a {type(task).__name__}; only language models take part in --harness")
    if torch.cuda.is_available():
        task = task.to("cuda")
    model = HarnessModel(task, load_tokenizer(run_dir), batch_size)
    found = simple_evaluate(model, tasks=tasks, task_manager=manager, limit=limit, bootstrap_iters=1000)
    assert found is not None
    metrics = {
        f"{name}/{metric.removesuffix(',none')}": value
        for name, of_task in found["results"].items()
        for metric, value in of_task.items()
        if isinstance(value, int | float)
    }
    Console().print(metrics_table({"checkpoint": str(chosen)}, metrics))
    return metrics


def _args(requests: Requests) -> list[Any]:
    return [request.args for request in requests]
