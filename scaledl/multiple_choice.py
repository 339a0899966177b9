"""Score a language model by the likelihood that it gives to each of several answers to a question."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from omegaconf import DictConfig
from rich.console import Console
from torch.nn.utils.rnn import pad_sequence

from scaledl import build
from scaledl.data.chat import ChatTemplate
from scaledl.data.conversations import read_jsonl
from scaledl.data.documentation import questions, wrong_answers
from scaledl.data.tokenizer import Tokenizer, load_tokenizer
from scaledl.evaluate import load_run
from scaledl.tables import metrics_table
from scaledl.tasks.base import Task
from scaledl.train import quiet

EMBEDDED = "documentation"  # in place of a file: questions about the library, of the modules that no run learns from
CHOICES = 4

Question = tuple[str, list[str], int]  # and the number of the right choice
Encode = Callable[[str, str], tuple[list[int], list[int]]]  # a question and an answer, as ids


def multiple_choice(run_dir: Path, which: str, source: str, batch_size: int, allowed: list[str]) -> dict[str, float]:
    """Shares of questions whose right choice is likeliest; prints them as a table.

    Args:
        which: `best`, `last` or a step.
        source: a .jsonl file of rows with `question`, `choices` and `answer`, its number from 0 or its text; or
            `documentation`.
    """
    quiet()
    asked = documentation_questions() if source == EMBEDDED else read_questions(Path(source))
    task, _, config, chosen = load_run(run_dir, which, allowed, with_data=False)
    if torch.cuda.is_available():
        task = task.to("cuda")
    metrics = accuracies(task, encoder(config, load_tokenizer(run_dir)), asked, batch_size)
    about = {"checkpoint": str(chosen), "questions": f"{len(asked):,} of {source}"}
    Console().print(metrics_table(about, metrics))
    return metrics


def read_questions(path: Path) -> list[Question]:
    """Raises ValueError: a row is no question with choices."""
    found = []
    for number, row in enumerate(read_jsonl(path), start=1):
        text, choices, answer = row.get("question", row.get("prompt")), row.get("choices"), row.get("answer")
        if isinstance(choices, list) and answer in choices:
            answer = choices.index(answer)
        if (
            not isinstance(text, str)
            or not isinstance(choices, list)
            or not all(isinstance(choice, str) and choice for choice in choices)
            or not isinstance(answer, int)
            or not 0 <= answer < len(choices)
        ):
            raise ValueError(
                f"{path}, row {number}: {json.dumps(row)[:100]} is no question; it needs a text `question`, a list of "
                "texts `choices`, and `answer`, one of them or its number from 0"
            )
        found.append((text, choices, answer))
    return found


def documentation_questions() -> list[Question]:
    """Which description belongs to a function or class? The right one stands at each place equally often."""
    found: list[Question] = []
    for q in questions():
        if q.split == "val" and q.kind != "call":
            choices = wrong_answers(q, CHOICES - 1)
            choices.insert(len(found) % CHOICES, q.answer)
            found.append((q.text, choices, len(found) % CHOICES))
    return found


def encoder(config: DictConfig, tokenizer: Tokenizer) -> Encode:
    """How a run was taught to read questions: as a chat, or else as plain text, with a space before the answer."""
    if config.data.get("chat"):
        chat: ChatTemplate = build.instantiate(config.data.chat)

        def as_chat(question: str, answer: str) -> tuple[list[int], list[int]]:
            return chat.prompt(tokenizer, [{"role": "user", "content": question}]), tokenizer.encode(answer).tolist()

        return as_chat

    def as_text(question: str, answer: str) -> tuple[list[int], list[int]]:
        return tokenizer.encode(question).tolist() or [tokenizer.eos_id], tokenizer.encode(f" {answer}").tolist()

    return as_text


def accuracies(task: Task, encode: Encode, asked: list[Question], batch_size: int) -> dict[str, float]:
    """`acc`: the likeliest choice is right; `acc_norm`: the one that is likeliest by byte is; of `count` questions."""
    pairs = [encode(text, choice) for text, choices, _ in asked for choice in choices]
    scores = iter(log_likelihoods(task, pairs, batch_size))
    right = [0, 0]
    for _, choices, answer in asked:
        of_choices = torch.tensor([next(scores)[0] for _ in choices])
        lengths = torch.tensor([len(choice.encode()) for choice in choices])
        right[0] += int(of_choices.argmax()) == answer
        right[1] += int((of_choices / lengths).argmax()) == answer
    return {"acc": right[0] / len(asked), "acc_norm": right[1] / len(asked), "count": float(len(asked))}


@torch.inference_mode()
def log_likelihoods(
    task: Task, pairs: Sequence[tuple[list[int], list[int]]], batch_size: int
) -> list[tuple[float, bool]]:
    """Of each (context, continuation) in ids: log p(continuation | context), and whether it is the greedy one.

    A context that does not fit before its continuation loses its begin.

    Raises:
        ValueError: a continuation is longer than the model's window.
    """
    most = int(task.model.max_seq_len)  # type: ignore[arg-type]
    if (longest := max((len(after) for _, after in pairs), default=0)) > most:
        raise ValueError(f"an answer of {longest} tokens is longer than the model's max_seq_len={most}")
    ids = [torch.tensor((before + after)[-most - 1 :]) for before, after in pairs]
    order = sorted(range(len(pairs)), key=lambda i: -len(ids[i]))  # little padding, and memory runs out first if at all
    found = [(0.0, True)] * len(pairs)
    for begin in range(0, len(pairs), batch_size):
        batch = order[begin : begin + batch_size]
        inputs = pad_sequence([ids[i][:-1] for i in batch], batch_first=True).to(task.device)
        for i, logits in zip(batch, task.model(inputs), strict=True):
            count = len(pairs[i][1])
            targets = ids[i][len(ids[i]) - count :].to(task.device)
            of_targets = logits[len(ids[i]) - 1 - count : len(ids[i]) - 1].float()  # (count, V)
            greedy = bool((of_targets.argmax(1) == targets).all())
            found[i] = -float(F.cross_entropy(of_targets, targets, reduction="sum")), greedy
    return found
