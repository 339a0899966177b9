"""The root of every run's config. The groups below it are checked against the signatures of their targets."""

from dataclasses import dataclass
from typing import Any, Literal

Node = dict[str, Any] | None


@dataclass
class Root:
    """Every key that a config may have at its top; conf/train.yaml holds the defaults and says what each does."""

    experiment: str
    data: Node
    model: Node
    task: Node
    optimizer: Node
    scheduler: Node
    strategy: Node
    trainer: Node
    checkpoint: Node
    callbacks: Node
    logger: Node
    init_from: str | None
    seed: int
    precision: Literal["32-true", "bf16-mixed", "bf16-true"]
    compile: bool
    activation_checkpointing: Literal["none", "selective", "full"]
    monitor: str
    mode: Literal["min", "max"]
    runs_dir: str
    run_id: str
    run_dir: str
    federation: Node = None  # absent from configs of a central run
    lora: Node = None
