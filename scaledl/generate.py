"""Let a trained language model write, to the terminal as it goes."""

import sys
from pathlib import Path

import torch

from scaledl.data.tokenizer import load_tokenizer
from scaledl.evaluate import load_run
from scaledl.train import quiet


def generate(
    run_dir: Path,
    which: str,
    prompt: str,
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
    task, _, _ = load_run(run_dir, which, allowed, with_data=False)
    if not hasattr(task, "generate"):
        raise ValueError(f"{run_dir} is a {type(task).__name__}; only language models write text")
    if torch.cuda.is_available():
        task = task.to("cuda")
    tokenizer = load_tokenizer(run_dir)
    ids = [int(i) for i in tokenizer.encode(prompt)]
    if not ids:
        raise ValueError("--prompt is empty; give at least one character to begin with")
    print(prompt, end="", flush=True)
    written, shown, new_ids = "", 0, []
    for token in task.generate(ids, max_new_tokens, temperature=temperature, top_k=top_k, top_p=top_p, seed=seed):
        if token == tokenizer.eos_id:
            break
        new_ids.append(token)
        written = tokenizer.decode(new_ids)
        ends = [at for at in map(written.find, stop) if at >= 0]
        if ends:
            written = written[: min(ends)]
            break
        settled = max(0, len(written) - max(map(len, [*stop, ""])) - written.endswith("\ufffd"))
        sys.stdout.write(written[shown:settled])
        sys.stdout.flush()
        shown = max(shown, settled)
    print(written[shown:])
    return written
