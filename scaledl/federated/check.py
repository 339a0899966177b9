"""What clients cannot train, said before anything is written."""

from scaledl.data.base import BatchDataset
from scaledl.federated.attack import first_linear
from scaledl.federated.fedavg import FedAvg
from scaledl.layers.moe import Router
from scaledl.layers.sync_batch_norm import BatchNorm, SyncBatchNorm
from scaledl.tasks.base import Task

REFUSED = {
    "several_optimizers": "a client has one optimizer",
    "whole_batch": "it compares all samples of a global batch, and clients must not see each other's",
    "average": "its target is an average over steps, and clients begin anew in each round",
}


def check_task(task: Task, train_set: BatchDataset, federation: FedAvg) -> None:
    """Whether clients can train this.

    Raises:
        ValueError: they cannot; the reason is in the message.
    """
    name = type(task).__name__
    for need, why in REFUSED.items():
        if need in task.needs:
            raise ValueError(f"federation cannot serve {name}: {why}")
    if type(task).carried is not Task.carried:
        raise ValueError(f"federation cannot serve {name}, which carries a state from step to step: clients forget all")
    kinds = {type(module) for module in task.model_builder.on_meta().modules()}
    if SyncBatchNorm in kinds:
        raise ValueError("federation cannot serve norm=sync_batch, which lets clients see each other: take norm=group")
    if Router in kinds:
        raise ValueError(
            "federation cannot serve experts, which are balanced by what all clients' tokens choose: take "
            "model.num_experts=null"
        )
    if BatchNorm in kinds and federation.privacy is not None:
        raise ValueError(
            "federation.privacy covers what is trained, and not norm=batch's running statistics: take norm=group"
        )
    if not getattr(train_set, "shuffled", True):
        raise ValueError(
            "federation deals single samples out to clients, but the order of this data means something; take data "
            "whose samples stand alone (data.order=shuffled)"
        )
    if federation.attack:
        first_linear(task.model_builder.on_meta())
