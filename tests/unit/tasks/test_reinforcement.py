"""Policies that make their own samples: the formulas by hand, the order of things, and that they learn."""

from functools import partial
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from torch import Tensor

gymnasium = pytest.importorskip("gymnasium", reason="gymnasium, the extra rl, is not installed")

from scaledl.data.environment import Environment  # noqa: E402
from scaledl.distributed.parallelize import ModelBuilder  # noqa: E402
from scaledl.distributed.strategy import Single  # noqa: E402
from scaledl.models.actor_critic import ActorCritic  # noqa: E402
from scaledl.models.q_network import QNetwork  # noqa: E402
from scaledl.tasks.dqn import DQN  # noqa: E402
from scaledl.tasks.policy_gradient import PolicyGradient, generalized_advantages  # noqa: E402


class Echo(gymnasium.Env):
    """One of three signals is seen; naming it is worth 1. Eight of them are an episode."""

    observation_space = gymnasium.spaces.Discrete(3)
    action_space = gymnasium.spaces.Discrete(3)

    def reset(self, seed: int | None = None, options: dict | None = None) -> tuple[int, dict]:
        super().reset(seed=seed)
        self.signal, self.left = int(self.np_random.integers(3)), 8
        return self.signal, {}

    def step(self, action: int) -> tuple[int, float, bool, bool, dict]:
        reward, self.left = float(action == self.signal), self.left - 1
        self.signal = int(self.np_random.integers(3))
        return self.signal, reward, self.left == 0, False, {}


gymnasium.register("Echo-v0", Echo, max_episode_steps=8)
PPO: dict[str, Any] = {"n_steps": 8, "epochs": 2, "num_minibatches": 2, "clip_range": 0.2, "normalize_advantages": True}


def policy_gradient(critic: bool = True, lr: float = 3e-2, env: str = "Echo-v0", **settings: Any) -> PolicyGradient:
    in_dim, num_actions = (3, 3) if env == "Echo-v0" else (4, 2)
    model = ModelBuilder(partial(ActorCritic, in_dim, num_actions, [16], critic=critic))
    return PolicyGradient(model, partial(torch.optim.Adam, lr=lr), env, **settings)


def dqn(**settings: Any) -> DQN:
    small = {"learning_starts": 32, "collect_steps": 16, "gradient_steps": 8, "buffer_size": 96, "epsilon_steps": 200}
    model = ModelBuilder(partial(QNetwork, 3, 3, [32]))
    return DQN(model, partial(torch.optim.Adam, lr=3e-3), "Echo-v0", **{**small, **settings})


def trainer(max_steps: int, accumulation: int = 1) -> pl.Trainer:
    return pl.Trainer(
        max_steps=max_steps,
        max_epochs=-1,
        limit_val_batches=0,
        accumulate_grad_batches=accumulation,
        accelerator="cpu",
        devices=1,
        strategy=Single(),
        logger=False,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )


def fit(task: Any, max_steps: int, slots: int = 8, micro: int | None = None, env: str = "Echo-v0") -> pl.Trainer:
    data = Environment(env, slots, micro or slots, num_test=0)
    runner = trainer(max_steps, data.accumulation)
    runner.fit(task, datamodule=data)
    return runner


# -- the formulas --------------------------------------------------------------------------------------------------


def test_advantages_by_hand() -> None:
    """Three steps that go on, then two that the time limit cuts off, and one that ends by itself."""
    reward = torch.tensor([[1.0, 2.0, 3.0], [1.0, 1.0, 5.0]])
    value = torch.tensor([[0.5, 1.0, 1.5], [2.0, 0.0, 1.0]])
    next_value = torch.tensor([[1.0, 1.5, 4.0], [6.0, 1.0, 100.0]])
    terminated = torch.tensor([[False, False, False], [False, False, True]])
    over = torch.tensor([[False, False, False], [True, False, True]])
    gamma, gae_lambda = 0.5, 0.5
    found = generalized_advantages(reward, value, next_value, terminated, over, gamma, gae_lambda)
    # First row: d = 1 + 0.5 - 0.5, 2 + 0.75 - 1, 3 + 2 - 1.5 = 1, 1.75, 3.5; A = d + A' / 4 from the right.
    # Second: d = 1 + 3 - 2 = 2, alone; then 1 + 0.5 - 0 = 1.5 and 5 - 1 = 4, whose end has no value.
    expected = torch.tensor([[1 + (1.75 + 3.5 / 4) / 4, 1.75 + 3.5 / 4, 3.5], [2.0, 1.5 + 4 / 4, 4.0]])
    torch.testing.assert_close(found, expected)


def test_with_lambda_one_advantages_are_discounted_returns_less_values() -> None:
    draw = torch.Generator().manual_seed(0)
    reward, value = torch.randn(2, 1, 6, generator=draw)
    next_value = torch.cat((value[:, 1:], torch.full((1, 1), 7.0)), 1)
    none = torch.zeros(1, 6, dtype=torch.bool)
    found = generalized_advantages(reward, value, next_value, none, none, 0.9, 1.0)
    returns = sum(0.9**t * reward[0, t] for t in range(6)) + 0.9**6 * 7.0
    assert found[0, 0].item() == pytest.approx((returns - value[0, 0]).item(), rel=1e-5)


def test_advantages_are_torchrl_s() -> None:
    functional = pytest.importorskip("torchrl.objectives.value.functional", reason="torchrl is not installed")
    draw = torch.Generator().manual_seed(1)
    reward, value, next_value = torch.randn(3, 4, 20, generator=draw)
    over = torch.rand(4, 20, generator=draw) < 0.2
    terminated = over & (torch.rand(4, 20, generator=draw) < 0.5)
    theirs, _ = functional.generalized_advantage_estimate(
        0.97, 0.9, *(t[..., None] for t in (value, next_value, reward, over, terminated))
    )
    ours = generalized_advantages(reward, value, next_value, terminated, over, 0.97, 0.9)
    torch.testing.assert_close(ours, theirs.squeeze(-1))


def steps(seed: int = 0) -> tuple[Tensor, ...]:
    """obs, action, log_prob, advantage, returns, weight of 32 steps."""
    draw = torch.Generator().manual_seed(seed)
    obs, action = torch.randn(32, 3, generator=draw), torch.randint(3, (32,), generator=draw)
    advantage, returns = torch.randn(2, 32, generator=draw)
    return obs, action, torch.zeros(32), advantage, returns, torch.full((32,), 1 / 32)


def test_the_clipped_ratio_begins_with_the_plain_gradient_and_ends_where_it_went_far_enough() -> None:
    plain, clipped = policy_gradient(), policy_gradient(clip_range=0.2)
    gradients = []
    obs, action, _, advantage, returns, weight = steps()
    for task in (plain, clipped):
        task.configure_model()
        with torch.no_grad():
            now = task.model(obs)[0].log_softmax(1).gather(1, action[:, None]).squeeze(1)
        task.losses(obs, action, now, advantage, returns, weight)["loss"].backward()
        gradients.append(torch.cat([p.grad.flatten() for p in task.model.parameters()]))
        task.model.zero_grad()
    torch.testing.assert_close(gradients[1], gradients[0])
    # The policy that acted thought each of these actions half as likely, so those that did well have gone far enough.
    clipped.value_coef = 0.0
    for sign, moves in ((1.0, False), (-1.0, True)):
        found = clipped.losses(obs, action, now - np.log(2), sign * advantage.abs(), returns, weight)
        clipped.model.zero_grad()
        found["loss"].backward()
        assert bool(clipped.model.actor.out.weight.grad.abs().sum() > 0) is moves
        assert found["clipped"] == 1
        assert found["kl"].item() == pytest.approx(1 - np.log(2), rel=1e-5)


def test_the_target_is_the_reward_alone_at_an_end_and_else_says_the_value_of_the_network_s_choice() -> None:
    task = dqn(double=True, gamma=0.5)
    task.configure_model()
    obs, action, *_ = steps()
    next_obs, reward, target = steps(1)[0], torch.arange(32.0), 10 * steps(2)[0]
    terminated = (torch.arange(32) % 2).float()
    with torch.no_grad():
        q = task.model(obs).gather(1, action[:, None]).squeeze(1)
        chosen = {True: task.model(next_obs).argmax(1), False: target.argmax(1)}
    assert not torch.equal(chosen[True], chosen[False])
    for double, best in chosen.items():
        task.double = double
        goal = reward + torch.where(terminated.bool(), 0.0, 0.5 * target[torch.arange(32), best])
        error = (q - goal).abs()
        expected = torch.where(error < 1, 0.5 * error.square(), error - 0.5).mean()
        found = task.losses(obs, action, reward, next_obs, terminated, target)
        torch.testing.assert_close(found["loss"], expected)


# -- the order of things -------------------------------------------------------------------------------------------


def test_a_rank_s_rollout_is_its_share_of_the_rollout_of_one_process() -> None:
    whole = policy_gradient(env="CartPole-v1", n_steps=40)
    fit(whole, 1, env="CartPole-v1")
    for rank in (0, 1):
        part, data = policy_gradient(env="CartPole-v1", n_steps=40), Environment("CartPole-v1", 8, 4, num_test=0)
        data.rank, data.world_size = rank, 2
        trainer(1).fit(part, datamodule=data)
        share = slice(4 * rank, 4 * rank + 4)
        torch.testing.assert_close(part._obs, whole._obs[share], rtol=0, atol=0)
        torch.testing.assert_close(part._action, whole._action[share], rtol=0, atol=0)
        torch.testing.assert_close(part._advantage, whole._advantage[share])
    assert whole._action.float().mean() not in (0, 1)


@pytest.mark.parametrize("settings", [PPO, {"n_steps": None, "normalize_advantages": True}], ids=["ppo", "reinforce"])
def test_micro_batches_make_the_steps_of_the_whole_batch(settings: dict[str, Any]) -> None:
    whole, split = policy_gradient(**settings), policy_gradient(**settings)
    fit(whole, 6)
    fit(split, 6, micro=2)
    torch.testing.assert_close(split.step_metrics, whole.step_metrics, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(split.model.state_dict(), whole.model.state_dict(), rtol=1e-4, atol=1e-6)


def test_a_pass_over_a_rollout_takes_every_step_once() -> None:
    task = policy_gradient(**PPO | {"num_minibatches": 4})
    seen: list[Tensor] = []
    own = task.losses

    def losses(obs: Tensor, action: Tensor, *others: Tensor) -> dict[str, Tensor]:
        seen.append(others[1].clone())  # advantages, no two of which are equal
        return own(obs, action, *others)

    task.losses = losses  # type: ignore[method-assign]
    fit(task, 8)
    rollout = task._advantage.flatten().sort().values
    first, second = (torch.cat(seen[at : at + 4]) for at in (0, 4))
    torch.testing.assert_close(first.sort().values, rollout, rtol=0, atol=0)
    torch.testing.assert_close(second.sort().values, rollout, rtol=0, atol=0)
    assert not torch.equal(first, second)


def test_advantages_are_normalised_over_what_was_played() -> None:
    task = policy_gradient(critic=False, env="CartPole-v1", n_steps=None, normalize_advantages=True)
    fit(task, 1, slots=4, env="CartPole-v1")
    played = task._weight > 0
    lengths = played.sum(1)
    assert lengths.min() < lengths.max() < 500
    torch.testing.assert_close(task._weight.sum(), torch.tensor(1.0))
    assert task._advantage[played].mean().item() == pytest.approx(0, abs=1e-5)
    assert task._advantage[played].std(correction=0).item() == pytest.approx(1, abs=1e-4)
    assert task.step_metrics["env_steps"] == lengths.sum()
    assert task.step_metrics["return"].item() == pytest.approx(lengths.float().mean().item())


def test_a_cycle_s_target_is_the_network_at_its_beginning_and_the_replay_is_a_ring() -> None:
    task = dqn()
    fit(task, 8)  # the first cycle
    begin = ModelBuilder(partial(QNetwork, 3, 3, [32]))()
    with torch.no_grad():
        expected = begin(task._next_obs[task._drawn.flatten()]).view_as(task._target)
    torch.testing.assert_close(task._target, expected)
    assert task._drawn.max() < 32
    assert task._terminated.sum() == 4  # of 32 steps, each eighth is the last
    task = dqn()
    fit(task, 8 * 6)  # 32 + 5 * 16 = 112 steps, of which the replay holds 96
    assert task.step_metrics["env_steps"] == 112
    assert task._drawn.max() >= 80
    assert (task._obs.sum(1) == 1).all()
    following = torch.arange(16, 95)  # the oldest that is left is at 16; what follows a step is what the next one sees
    goes_on = following[task._terminated[following] == 0]
    torch.testing.assert_close(task._next_obs[goes_on], task._obs[goes_on + 1])


@pytest.mark.parametrize("make", [partial(policy_gradient, **PPO), dqn], ids=["ppo", "dqn"])
def test_a_resumed_run_repeats_every_number(make: Any, tmp_path: Path) -> None:
    straight, first, resumed = make(), make(), make()
    fit(straight, 21)
    runner = fit(first, 11)  # within a cycle
    runner.save_checkpoint(tmp_path / "here")
    runner.strategy.saver.wait()
    again = trainer(21)
    again.fit(
        resumed,
        datamodule=Environment("Echo-v0", 8, 8, num_test=0),
        ckpt_path=str(tmp_path / "here"),
        weights_only=True,
    )
    assert again.global_step == 21
    torch.testing.assert_close(resumed.step_metrics, straight.step_metrics, rtol=0, atol=0)
    torch.testing.assert_close(resumed.model.state_dict(), straight.model.state_dict(), rtol=0, atol=0)


# -- that they learn -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "max_steps"),
    [
        (partial(policy_gradient, **PPO), 80),
        (partial(policy_gradient, n_steps=8), 80),
        (partial(policy_gradient, critic=False, n_steps=None, gae_lambda=1.0, normalize_advantages=True), 80),
        (dqn, 300),
    ],
    ids=["ppo", "a2c", "reinforce", "dqn"],
)
def test_it_learns_to_echo(make: Any, max_steps: int) -> None:
    task = make(gamma=0.0)
    task.configure_model()
    before = task.play(list(range(10)))[0].mean()
    fit(task, max_steps, slots=16)
    returns, lengths = task.play(list(range(10)))
    assert before < 6
    assert returns.tolist() == [8.0] * 10
    assert lengths.tolist() == [8.0] * 10


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (partial(policy_gradient, gamma=1.5), "task.gamma=1.5"),
        (partial(policy_gradient, gae_lambda=-1.0), "task.gae_lambda=-1.0"),
        (partial(policy_gradient, n_steps=10, num_minibatches=4, clip_range=0.2), "does not divide task.n_steps=10"),
        (partial(policy_gradient, epochs=3), "set task.clip_range"),
        (partial(dqn, collect_steps=10, num_envs=3), "must be a multiple of task.num_envs=3"),
        (partial(dqn, buffer_size=8), "at most task.buffer_size=8"),
        (partial(dqn, epsilon_end=2.0), "task.epsilon_end=2.0"),
    ],
)
def test_settings_that_cannot_be_are_refused(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
