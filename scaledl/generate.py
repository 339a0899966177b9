"""Let a trained language model write, to the terminal as it goes."""

from itertools import takewhile
from pathlib import Path

import torch

from scaledl.data.tokenizer import first_ids, load_tokenizer, stream_text
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
) -> str:
    """The text after the prompt, printed while it is written; ends before the first of `stop`."""
    quiet()
    task, _, _, _ = load_run(run_dir, which, allowed, with_data=False)
    if not hasattr(task, "generate"):
        raise ValueError(f"{run_dir} is a {type(task).__name__}; only language models write text")
    if torch.cuda.is_available():
        task = task.to("cuda")
    tokenizer = load_tokenizer(run_dir)
    prompt_ids = first_ids(tokenizer, prompt)
    new_ids = task.generate(prompt_ids, max_new_tokens, temperature=temperature, top_k=top_k, top_p=top_p, seed=seed)
    pieces = stream_text(tokenizer, takewhile(lambda token: token != tokenizer.eos_id, new_ids))
    print(prompt or "", end="", flush=True)
    written, shown = "", 0
    held_back = max((len(text) - 1 for text in stop), default=0)  # what may turn out to be the begin of a stop
    for piece in pieces:
        written += piece
        ends = [at for at in map(written.find, stop) if at >= 0]
        if ends:
            written = written[: min(ends)]
            break
        settled = len(written) - held_back
        if settled > shown:
            print(written[shown:settled], end="", flush=True)
            shown = settled
    print(written[shown:])
    return written
