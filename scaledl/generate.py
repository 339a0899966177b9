"""Let a trained model write: a language model goes on with the prompt, sequence to sequence translates it."""

from itertools import takewhile
from pathlib import Path
from typing import Any

import torch

from scaledl.data.tokenizer import Tokenizer, first_ids, load_tokenizer, stream_text
from scaledl.evaluate import load_run
from scaledl.train import quiet


def generate(
    run_dir: Path,
    which: str,
    prompt: str | None,
    max_new_tokens: int,
    temperature: float,
    top_k: int | None,
    top_p: float,
    seed: int,
    stop: list[str],
    allowed: list[str],
    chat: bool = False,
) -> str:
    """The text after the prompt, printed while it is written; ends before the first of `stop`.

    A chat's prompt is a message of the user, and the text after it the answer.
    Sequence to sequence takes each line of the prompt for a source, and of the settings max_new_tokens alone.
    """
    quiet()
    task, data, config, _ = load_run(run_dir, which, allowed, with_data=False)
    if torch.cuda.is_available():
        task = task.to("cuda")
    if hasattr(task, "translate"):
        return _translate(task, data, run_dir, prompt, max_new_tokens)
    if not hasattr(task, "generate"):
        raise ValueError(f"{run_dir} is a {type(task).__name__}; only language models and translators write text")
    tokenizer = load_tokenizer(run_dir)
    if chat:
        if prompt is None or not config.data.get("chat"):
            raise ValueError("--chat takes a --prompt, and a run that was trained on conversations")
        prompt_ids, ends = _asked(data, tokenizer, prompt)
    else:
        prompt_ids, ends = first_ids(tokenizer, prompt), []
    new_ids = task.generate(prompt_ids, max_new_tokens, temperature=temperature, top_k=top_k, top_p=top_p, seed=seed)
    pieces = stream_text(tokenizer, takewhile(lambda token: token not in (tokenizer.eos_id, *ends), new_ids))
    print("" if chat else prompt or "", end="", flush=True)
    written, shown = "", 0
    held_back = max((len(text) - 1 for text in stop), default=0)  # what may turn out to be the begin of a stop
    for piece in pieces:
        written += piece
        stops = [at for at in map(written.find, stop) if at >= 0]
        if stops:
            written = written[: min(stops)]
            break
        settled = len(written) - held_back
        if settled > shown:
            print(written[shown:settled], end="", flush=True)
            shown = settled
    print(written[shown:])
    return written


def _asked(data: Any, tokenizer: Tokenizer, prompt: str) -> tuple[list[int], list[int]]:
    """Ids of a message as the run's template writes it, and what ends an answer, where that is one id."""
    end = data.chat.end_ids(tokenizer)
    return data.chat.prompt(tokenizer, [{"role": "user", "content": prompt}]), end if len(end) == 1 else []


def _translate(task: Any, data: Any, run_dir: Path, prompt: str | None, max_new_tokens: int) -> str:
    sources = [line for line in (prompt or "").splitlines() if line.strip()]
    if not sources:
        raise ValueError(f"{run_dir} translates: give it a text with --prompt, a line for each sentence")
    data.load_from(run_dir)
    found, _ = task.translate(data.as_source(sources).to(task.device), min(max_new_tokens, data.max_len), beam_size=4)
    written = "\n".join(data.vocabularies[1].decode(ids) for ids in found)
    print(written)
    return written
