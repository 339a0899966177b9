"""Federated averaging: clients train on their own data, the server averages what comes back (McMahan et al. 2017)."""

import numpy as np

from scaledl.federated.aggregate import Plain
from scaledl.federated.partition import Partition
from scaledl.federated.privacy import ClientPrivacy

_CHOICE, _DROP = 2, 3  # keep the draws of a round apart


class FedAvg:
    """Who takes part in a round, for how long it trains, and how much its update weighs.

    A client takes `local_epochs` passes over its samples in batches of data.global_batch_size, with an optimiser built
    anew, whose lr the scheduler sets by rounds. trainer.max_steps, trainer.val_check_interval and
    checkpoint.every_n_steps count rounds.

    Args:
        partition: deals the training samples out to clients (partition.py).
        aggregation: adds the updates (aggregate.py, secure.py, encrypt.py).
        num_clients: K.
        fraction: the share C of clients that take part in a round; with `privacy`, the probability of each.
        local_epochs: E.
        proximal: mu of FedProx, whose clients minimise loss + mu / 2 |w - w_server|² (Li et al. 2020, equation 2).
        dropout: the probability that a chosen client is lost before its update arrives.
        privacy: clips and adds noise (privacy.py).
        attack: first show what the server reads from one message of one client (attack.py).

    Raises:
        ValueError: if settings are out of range, or contradict each other.
    """

    def __init__(
        self,
        partition: Partition,
        aggregation: Plain,
        num_clients: int,
        fraction: float = 1.0,
        local_epochs: int = 1,
        proximal: float = 0.0,
        dropout: float = 0.0,
        privacy: ClientPrivacy | None = None,
        attack: bool = False,
    ):
        if num_clients < 1 or local_epochs < 1:
            raise ValueError(f"num_clients={num_clients} and local_epochs={local_epochs} must be at least 1")
        if not 0 < fraction <= 1 or not 0 <= dropout < 1 or proximal < 0:
            raise ValueError(
                f"fraction={fraction} must lie in (0, 1], dropout={dropout} in [0, 1), proximal={proximal} from 0 up"
            )
        if privacy is not None and privacy.delta * num_clients >= 1:
            raise ValueError(
                f"privacy.delta={privacy.delta} is not below 1 / num_clients, which would allow the data of a client "
                f"to be published now and then; take {0.1 / num_clients:g}, say"
            )
        self.partition, self.aggregation, self.num_clients, self.fraction = (
            partition,
            aggregation,
            num_clients,
            fraction,
        )
        self.local_epochs, self.proximal, self.dropout = local_epochs, proximal, dropout
        self.privacy, self.attack = privacy, attack

    def chosen(self, seed: int, round: int) -> list[int]:
        """The clients of a round, in order."""
        rng = np.random.default_rng([seed, _CHOICE, round])
        if self.privacy is not None:
            return np.flatnonzero(rng.random(self.num_clients) < self.fraction).tolist()
        count = max(1, int(self.fraction * self.num_clients + 0.5))
        return sorted(rng.permutation(self.num_clients)[:count].tolist())

    def lost(self, seed: int, round: int, chosen: list[int]) -> list[int]:
        """Those of the chosen whose updates do not arrive."""
        draws = np.random.default_rng([seed, _DROP, round]).random(self.num_clients)
        return [client for client in chosen if draws[client] < self.dropout]

    def weights(self, sizes: list[int], chosen: list[int]) -> dict[int, float]:
        """By how much each chosen client's update counts in the sum: its share of their samples.

        With privacy each counts as much, and by a number that does not depend on who was chosen.
        """
        if self.privacy is not None:
            return dict.fromkeys(chosen, 1 / (self.fraction * self.num_clients))
        total = sum(sizes[client] for client in chosen)
        return {client: sizes[client] / total for client in chosen}
