"""Conversations and pairs of answers about numbers, small enough to be learnt in seconds."""

import json
from pathlib import Path

TINY = [
    "model.dim=32",
    "model.depth=2",
    "model.num_heads=2",
    "model.hidden_dim=64",
    "data.seq_len=64",
    "data.global_batch_size=12",
    "trainer.log_every_n_steps=1",
]


def conversations(folder: Path) -> Path:
    rows = [
        [{"role": "user", "content": f"What follows {n}?"}, {"role": "assistant", "content": str(n + 1)}]
        for n in range(60)
    ]
    return _written(folder / "conversations.jsonl", [{"messages": messages} for messages in rows])


def preferences(folder: Path) -> Path:
    rows = [{"prompt": f"What follows {n}?", "chosen": str(n + 1), "rejected": f"not {n}"} for n in range(60)]
    return _written(folder / "preferences.jsonl", rows)


def multiple_choice(folder: Path) -> Path:
    rows = [{"question": f"What follows {n}?", "choices": ["xyz", str(n + 1)], "answer": 1} for n in range(10)]
    return _written(folder / "choices.jsonl", rows)


def _written(path: Path, rows: list) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path
