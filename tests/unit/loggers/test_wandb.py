from pathlib import Path
from typing import Any

import pytest
import wandb

from scaledl.loggers.wandb import Wandb


class Client:
    """Remembers what the client's run was asked."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []
        self.axes: dict[str, dict[str, Any]] = {}
        self.calls: list[Any] = []
        self.summary: dict[str, Any] = {}

    def define_metric(self, name: str, **how: Any) -> None:
        self.axes[name] = how

    def log(self, row: dict[str, Any]) -> None:
        self.rows.append(row)

    def finish(self, exit_code: int) -> None:
        self.calls.append(("finish", exit_code))

    def mark_preempting(self) -> None:
        self.calls.append("preempting")


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> tuple[Client, dict[str, Any]]:
    client, asked = Client(), {}

    def init(**arguments: Any) -> Client:
        asked.update(arguments)
        return client

    monkeypatch.setattr(wandb, "init", init)
    monkeypatch.setenv("WANDB_DATA_DIR", "somewhere")
    return client, asked


def test_offline_attempts_are_numbered_in_a_group(started, tmp_path: Path) -> None:
    for earlier in ("offline-run-20260101_000000-abc", "offline-run-20260102_000000-def", "latest-run"):
        (tmp_path / "wandb" / earlier / "files").mkdir(parents=True)
    (tmp_path / "wandb" / "run-20260103_000000-ghi").mkdir()  # could not begin
    Wandb("p", str(tmp_path), "mlp/digits/a", tags=["mlp/digits"]).begin(70, {"world_size": 1})
    _, asked = started
    assert (asked["group"], asked["mode"], asked["resume"]) == ("mlp/digits/a", "offline", None)
    assert asked["tags"] == ["mlp", "mlp/digits"]
    assert asked["config"] == {"facts": {"world_size": 1}, "attempt": 3, "begins_at_step": 70}
    assert asked["settings"].x_transaction_log_flush_interval <= 1


def test_online_it_is_the_same_run(started, tmp_path: Path) -> None:
    Wandb("p", str(tmp_path), "mlp/digits/a", id="0123", offline=False).begin(0, {})
    _, asked = started
    assert (asked["id"], asked["mode"], asked["resume"]) == ("0123", "online", "allow")


def test_a_trial_belongs_to_its_sweep(started, tmp_path: Path) -> None:
    Wandb("p", str(tmp_path / "my_sweep" / "trial_0003"), "mlp/digits/x").begin(0, {})
    assert started[1]["group"] == "my_sweep"


def test_every_row_has_the_axes_and_pictures_have_the_step_of_their_name(started, tmp_path: Path) -> None:
    client, _ = started
    logger = Wandb("p", str(tmp_path), "mlp/digits/a", monitor="val/acc", mode="max")
    logger.log_metrics({"a": 1.0}, step=1)  # before the run has begun: another rank's, or nobody's
    logger.begin(0, {})
    logger.log_metrics({"train/loss": 1.0, "samples_seen": 64, "tokens_seen": 640}, step=2)
    (tmp_path / "samples").mkdir()
    (tmp_path / "samples" / "step_00000002.txt").write_text("<b>")
    logger.log_metrics({"val/acc": 0.5}, step=3)
    first, second, sample = client.rows
    assert first == {"step": 2, "samples_seen": 64, "tokens_seen": 640, "train/loss": 1.0}
    assert second == {"step": 3, "samples_seen": 64, "tokens_seen": 640, "val/acc": 0.5}
    assert list(sample) == ["step", "samples/texts"]  # the third row's samples_seen are not this picture's
    assert sample["step"] == 2
    assert client.axes == {"*": {"step_metric": "step"}, "val/acc": {"step_metric": "step", "summary": "max,last"}}


@pytest.mark.parametrize(
    ("status", "calls"),
    [
        ("completed", [("finish", 0)]),
        ("pruned", [("finish", 0)]),
        ("failed", [("finish", 1)]),
        ("preempted", ["preempting", ("finish", 1)]),
    ],
)
def test_the_end_says_how_it_went(started, tmp_path: Path, status: str, calls: list[Any]) -> None:
    logger = Wandb("p", str(tmp_path), "mlp/digits/a")
    logger.begin(0, {})
    logger.end({"status": status, "steps": 5, "metrics": {"a": 1}, "best": None})
    client, _ = started
    assert client.calls == calls
    assert client.summary == {"run/status": status, "run/steps": 5, "run/best": None}


def test_what_cannot_begin_online_is_logged_offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked: list[dict[str, Any]] = []

    def init(**arguments: Any) -> Client:
        asked.append(arguments)
        if arguments["mode"] == "online":
            raise wandb.errors.CommError("no network\nConsider increasing the init_timeout setting")
        return Client()

    monkeypatch.setattr(wandb, "init", init)
    monkeypatch.setenv("WANDB_DATA_DIR", "somewhere")
    logger = Wandb("p", str(tmp_path), "mlp/digits/a", id="0123", offline=False)
    with pytest.warns(UserWarning, match="Weights") as said:
        logger.begin(0, {})
    (line,) = [str(each.message) for each in said]
    assert "cannot log online, so this attempt is logged offline" in line
    assert line.endswith("CommError no network")
    assert [(each["mode"], each["id"], each["resume"]) for each in asked] == [
        ("online", "0123", "allow"),
        ("offline", None, None),
    ]
    logger.log_metrics({"a": 1.0}, step=1)
    assert logger.experiment.rows == [{"step": 1, "a": 1.0}]


def test_a_client_that_only_fails_ends_no_training(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def init(**arguments: Any) -> Client:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(wandb, "init", init)
    monkeypatch.setenv("WANDB_DATA_DIR", "somewhere")
    logger = Wandb("p", str(tmp_path), "mlp/digits/a")
    with pytest.warns(UserWarning, match="nothing is logged to it: OSError .*No space left"):
        logger.begin(0, {})
    logger.log_hyperparams({})
    logger.log_metrics({"a": 1.0}, step=1)
    logger.end({"status": "completed", "steps": 1})
    assert logger.experiment is None


def test_errors_of_the_client_are_told_and_the_rest_is_done(started, monkeypatch, tmp_path: Path) -> None:
    client, _ = started
    logger = Wandb("p", str(tmp_path), "mlp/digits/a", checkpoints=True)
    logger.begin(0, {})

    def gone(*_: Any, **__: Any) -> None:
        raise BrokenPipeError("the service is gone")

    client.log = gone  # type: ignore[method-assign]
    monkeypatch.setattr(logger, "_keep_checkpoints", gone)
    with pytest.warns(UserWarning, match="metrics were not logged to Weights & Biases: BrokenPipeError the service"):
        logger.log_metrics({"a": 1.0}, step=1)
    (tmp_path / "plots").mkdir()
    (tmp_path / "plots" / "curves.txt").touch()
    with pytest.warns(UserWarning, match="checkpoints were not kept by Weights & Biases"):
        logger.end({"status": "completed", "steps": 1, "metrics": {}})
    assert client.summary == {"run/status": "completed", "run/steps": 1}
    assert client.calls == [("finish", 0)]
    logger.begin(0, {})
    client.finish = gone  # type: ignore[method-assign]
    with pytest.warns(UserWarning, match="not told that the run has ended"):
        logger.end({"status": "failed", "steps": 1, "metrics": {}})
    assert logger.experiment is None


@pytest.mark.parametrize("status", ["completed", "pruned", "failed", "preempted"])
def test_checkpoints_are_kept_of_a_completed_run_only(started, monkeypatch, tmp_path: Path, status: str) -> None:
    kept: list[str] = []
    logger = Wandb("p", str(tmp_path), "mlp/digits/a", checkpoints=True)
    monkeypatch.setattr(logger, "_keep_checkpoints", lambda: kept.append(status))
    logger.begin(0, {})
    logger.end({"status": status, "steps": 5, "metrics": {}})
    assert kept == ["completed"] * (status == "completed")
