"""Every strategy trains what one process trains; scripts/parity.py shows it for the experiments in full."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from scripts.parity import LAYOUTS, SINGLE, Layout, RefusedError, gap, log_of
from tests.conftest import TINY_GPT

pytestmark = [pytest.mark.distributed, pytest.mark.slow]

Log = list[dict[str, Any]]
STEPS = ["trainer.max_steps=6", "trainer.val_check_interval=3", "trainer.log_every_n_steps=1"]
# Ranks accumulate two micro-batches, and the gradient is always clipped.
GPT = [*TINY_GPT, *STEPS, "data.micro_batch_size=3", "trainer.gradient_clip_val=0.5", "scheduler.warmup_steps=2"]
CNN = ["experiment=cnn/digits", *STEPS, "model.dropout=0.0", "~callbacks.predictions", "~callbacks.feature_maps"]
CNN += ["model.stages=[[4,3,1,2],[8,3,1,2]]", "model.hidden_dims=[16]", "optimizer=sgd", "scheduler.warmup_steps=2"]


@pytest.fixture
def train(environment: dict[str, str], tmp_path: Path) -> Callable[[list[str], Layout], Log]:
    def run(words: list[str], layout: Layout) -> Log:
        return log_of(words, layout, tmp_path / "run", environment | {"OMP_NUM_THREADS": "1"})

    return run


@pytest.fixture(scope="module")
def by_one() -> dict[str, Log]:
    """What one process logged, by its words."""
    return {}


@pytest.fixture
def reference(environment: dict[str, str], tmp_path: Path, by_one: dict[str, Log]) -> Callable[[list[str]], Log]:
    def run(words: list[str]) -> Log:
        key = " ".join(words)
        if key not in by_one:
            by_one[key] = log_of(words, SINGLE, tmp_path / "one", environment | {"OMP_NUM_THREADS": "1"})
        return by_one[key]

    return run


def assert_same(reference: Log, log: Log, tolerance: float) -> None:
    gaps = {name: gap(reference, log, name) for name in ("train/loss", "train/grad_norm", "val/loss", "lr")}
    assert all(found.value <= tolerance for found in gaps.values()), gaps


@pytest.mark.parametrize("name", ["ddp", "fsdp", "deepspeed_2", "deepspeed_3", "tp"])
def test_a_transformer_that_accumulates_and_clips(train, reference, name: str) -> None:
    one = reference(GPT)
    assert min(line["train/grad_norm"] for line in one if "train/grad_norm" in line) > 0.5
    assert_same(one, train(GPT, LAYOUTS[name]), 1e-5)


@pytest.mark.parametrize(
    ("name", "tied"),
    [("ddp", "true"), ("fsdp", "true"), ("fsdp", "false"), ("deepspeed_3", "true"), ("deepspeed_3", "false")],
)
def test_a_loss_in_chunks(train, reference, name: str, tied: str) -> None:
    """Against whole logits; the weight is gathered for the forward pass, inside a module or as an embedding's."""
    words = [*GPT, f"model.tie_embeddings={tied}"]
    assert_same(reference(words), train([*words, "task.chunk_tokens=20"], LAYOUTS[name]), 1e-5)


def test_a_text_written_at_the_end_gathers_what_it_reads(environment: dict[str, str], tmp_path: Path) -> None:
    """Tied embeddings are read by another module than their own, in a call that does not come through an engine."""
    words = [*(word for word in GPT if word != "~callbacks.samples"), "callbacks.samples.max_new_tokens=8"]
    texts = []
    for name, layout in {"one": SINGLE, "zero": LAYOUTS["deepspeed_3"], "fsdp": LAYOUTS["fsdp"]}.items():
        log_of(words, layout, tmp_path / name, environment | {"OMP_NUM_THREADS": "1"})
        texts.append((tmp_path / name / "samples" / "step_00000006.txt").read_text())
    assert texts[0] == texts[1] == texts[2]


@pytest.mark.parametrize("name", ["fsdp", "deepspeed_3"])
def test_what_is_computed_again_is_gathered_again(train, reference, name: str) -> None:
    assert_same(reference(GPT), train([*GPT, "activation_checkpointing=selective"], LAYOUTS[name]), 1e-5)


@pytest.mark.parametrize("name", ["fsdp", "deepspeed_3"])
def test_a_convolutional_network_with_momentum(train, reference, name: str) -> None:
    assert_same(reference(CNN), train(CNN, LAYOUTS[name]), 1e-5)


def test_what_has_no_tensor_parallel_plan_is_refused_before_it_starts(train) -> None:
    with pytest.raises(RefusedError, match="ConvStage has no tensor-parallel plan"):
        train(CNN, LAYOUTS["tp"])


@pytest.mark.parametrize("name", ["ddp", "fsdp", "deepspeed_2", "deepspeed_3"])
def test_the_two_precisions(train, reference, name: str) -> None:
    mixed = train([*GPT, "precision=bf16-mixed"], LAYOUTS[name])
    found = gap(reference(GPT), mixed, "train/loss")
    assert 0 < found.value < 5e-3
