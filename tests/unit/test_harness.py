"""lm-eval asks a model, and gets what the model itself says."""

import json
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("lm_eval")

from scaledl import harness as tested
from scaledl.data.tokenizer import ByteTokenizer
from scaledl.distributed.parallelize import ModelBuilder
from scaledl.models.gpt import GPT
from scaledl.tasks.language_modeling import LanguageModeling

TASK = """\
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {file}}}}}
test_split: test
output_type: {output_type}
doc_to_text: "{{{{question}}}}"
"""


@pytest.fixture
def model() -> tested.HarnessModel:
    make = partial(GPT, 257, 24, dim=16, depth=1, num_heads=2, init_std=0.4)
    task = LanguageModeling(ModelBuilder(make, seed=1), partial(torch.optim.AdamW, lr=0.01))
    task.configure_model()
    return tested.HarnessModel(task.eval(), ByteTokenizer(), 4)


def requests(*args: tuple) -> list:
    return [SimpleNamespace(args=each) for each in args]


def by_hand(model: tested.HarnessModel, ids: list[int], begin: int) -> float:
    logits = model.task.model(torch.tensor([ids[:-1]]))[0].log_softmax(-1)
    return sum(logits[i - 1, ids[i]].item() for i in range(begin, len(ids)))


def test_a_continuation_follows_its_context_or_the_end_of_a_document(model) -> None:
    found = model.loglikelihood(requests(("ab", " c"), ("", "xyz")))
    assert found[0][0] == pytest.approx(by_hand(model, [*b"ab c"], 2), abs=1e-4)
    assert found[1][0] == pytest.approx(by_hand(model, [256, *b"xyz"], 1), abs=1e-4)


def test_a_long_text_is_read_in_windows_each_token_once(model) -> None:
    text = "The quick brown fox jumps over the lazy dog."  # 44 bytes, in windows of 24
    ids = [256, *text.encode()]
    first, rest = ids[:25], ids[-25:]
    expected = by_hand(model, first, 1) + by_hand(model, rest, len(rest) - (len(ids) - 25))
    (found,) = model.loglikelihood_rolling(requests((text,)))
    assert found == pytest.approx(expected, abs=1e-3)


def test_writing_ends_before_a_stop(model, monkeypatch) -> None:
    monkeypatch.setattr(model.task, "generate", lambda ids, count, temperature: iter(b"one\ntwo"[:count]))
    settings = {"until": ["\n"], "max_gen_toks": 7}
    assert model.generate_until(requests(("a", settings), ("a", {"until": "w", "max_gen_toks": 6}))) == [
        "one",
        "one\nt",
    ]
    assert model.generate_until(requests(("a", {"max_gen_toks": 2}))) == ["on"]


def test_a_task_of_ones_own_is_run_offline(model, tmp_path: Path, monkeypatch) -> None:
    rows = [{"question": f"{n} is", "choices": ["odd", "even"], "label": n % 2 == 0} for n in range(6)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    text = TASK.format(name="parity_of_numbers", file=tmp_path / "rows.jsonl", output_type="multiple_choice")
    text += 'doc_to_choice: "{{choices}}"\ndoc_to_target: "{{label|int}}"\nmetric_list: [{metric: acc}]\n'
    (tmp_path / "parity.yaml").write_text(text)
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(tested, "load_run", lambda *_, **__: (model.task, None, None, Path("step_1")))
    monkeypatch.setattr(tested, "load_tokenizer", lambda folder: ByteTokenizer())
    found = tested.harness(tmp_path, "best", ["parity_of_numbers"], tmp_path, None, 4, [])
    pairs = [(f"{n} is", f" {choice}") for n in range(6) for choice in ("odd", "even")]
    scores = torch.tensor([score for score, _ in model.loglikelihood(requests(*pairs))]).view(6, 2)
    right = (scores.argmax(1) == torch.tensor([n % 2 == 0 for n in range(6)]).long()).float().mean().item()
    assert found["parity_of_numbers/acc"] == pytest.approx(right)
    with pytest.raises(ValueError, match="knows no such task"):
        tested.harness(tmp_path, "best", ["nonesuch"], tmp_path, None, 4, [])
