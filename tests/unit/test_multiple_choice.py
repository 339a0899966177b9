"""The likelihood of choices, against sums by hand and a model that is asked for one at a time."""

import json
from functools import partial
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

from scaledl.cli import run
from scaledl.data.tokenizer import ByteTokenizer
from scaledl.distributed.parallelize import ModelBuilder
from scaledl.models.gpt import GPT
from scaledl.multiple_choice import accuracies, documentation_questions, encoder, log_likelihoods, read_questions
from scaledl.tasks.language_modeling import LanguageModeling

PAIRS = [([1, 2], [3]), ([4], [5, 6, 7]), ([1, 2, 3, 4, 5, 6], [7, 8])]


def task_of(vocab_size: int = 11, max_seq_len: int = 8) -> LanguageModeling:
    make = partial(GPT, vocab_size, max_seq_len, dim=16, depth=2, num_heads=2, init_std=0.4)
    task = LanguageModeling(ModelBuilder(make, seed=1), partial(torch.optim.AdamW, lr=0.01))
    task.configure_model()
    return task.eval()


def one_by_one(task: LanguageModeling, before: list[int], after: list[int]) -> tuple[float, bool]:
    total, greedy = 0.0, True
    for i, token in enumerate(after):
        logits = task.model(torch.tensor([before + after[:i]]))[0, -1]
        total += logits.log_softmax(0)[token].item()
        greedy &= int(logits.argmax()) == token
    return total, greedy


@pytest.mark.parametrize("batch_size", [1, 2, 8])
def test_a_batch_gives_each_pair_what_it_gets_alone(batch_size: int) -> None:
    task = task_of()
    likeliest = int(task.model(torch.tensor([[9]]))[0, -1].argmax())
    pairs = [*PAIRS, ([9], [likeliest])]
    found = log_likelihoods(task, pairs, batch_size)
    for (score, greedy), (before, after) in zip(found, pairs, strict=True):
        expected = one_by_one(task, before, after)
        assert score == pytest.approx(expected[0], abs=1e-5)
        assert greedy == expected[1]
    assert found[-1][1]


def test_a_context_that_does_not_fit_loses_its_begin() -> None:
    task = task_of(max_seq_len=4)
    ((score, _),) = log_likelihoods(task, [([9, 9, 9, 1, 2, 3], [4, 5])], 1)
    assert score == pytest.approx(log_likelihoods(task, [([1, 2, 3], [4, 5])], 1)[0][0], abs=1e-5)
    with pytest.raises(ValueError, match="an answer of 5 tokens is longer than the model's max_seq_len=4"):
        log_likelihoods(task, [([1], [2, 3, 4, 5, 6])], 1)


def test_the_share_of_right_answers_by_likelihood_and_by_likelihood_of_a_byte(monkeypatch) -> None:
    scores = {"a": -2.0, "bbbb": -4.0, "cc": -3.0}
    monkeypatch.setattr(
        "scaledl.multiple_choice.log_likelihoods", lambda task, pairs, batch: [(scores[a], False) for _, a in pairs]
    )
    asked = [("?", ["a", "bbbb"], 0), ("?", ["cc", "bbbb"], 0), ("?", ["bbbb", "cc"], 0), ("?", ["a", "cc"], 1)]
    assert accuracies(task_of(), lambda question, answer: (question, answer), asked, 4) == {
        "acc": 2 / 4,  # a, cc, cc, a are the likeliest; bbbb, bbbb, bbbb and cc by byte
        "acc_norm": 2 / 4,
        "count": 4.0,
    }


def test_a_chat_is_asked_as_it_was_taught_and_text_as_text() -> None:
    chat = {"_target_": "scaledl.data.chat.ChatTemplate", "before": "{role[0]}:", "after": ""}
    taught, plain = (OmegaConf.create({"data": data}) for data in ({"chat": chat}, {}))
    tokenizer = ByteTokenizer()
    assert encoder(taught, tokenizer)("b", "cd") == ([*b"u:b", tokenizer.eos_id, *b"a:"], [*b"cd"])
    assert encoder(plain, tokenizer)("b", "cd") == ([*b"b"], [*b" cd"])


def test_questions_of_a_file(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    rows = [
        {"question": "b", "choices": ["c", "d"], "answer": 1},
        {"prompt": "b", "choices": ["c", "d"], "answer": "d"},
    ]
    path.write_text("\n".join(map(json.dumps, rows)))
    assert read_questions(path) == [("b", ["c", "d"], 1)] * 2
    for wrong in ({"answer": 2}, {"answer": "e"}, {"choices": "cd"}, {"choices": ["c", ""]}, {"question": None}):
        path.write_text(json.dumps(rows[0] | wrong))
        with pytest.raises(ValueError, match=r"row 1: .* is no question"):
            read_questions(path)


def test_the_documentation_asks_with_the_right_answer_at_each_place() -> None:
    asked = documentation_questions()
    assert len(asked) > 50
    assert all(len(set(choices)) == 4 for _, choices, _ in asked)
    places = [answer for _, _, answer in asked]
    assert max(places.count(i) for i in range(4)) - min(places.count(i) for i in range(4)) <= 1


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["a.txt", "--multiple-choice", "documentation"], "one of TEXT and --multiple-choice at a time"),
        (["a.txt", "--harness", "arc_easy"], "one of TEXT and --harness at a time"),
        (["--multiple-choice", "documentation", "--limit", "3"], "--limit is for --harness TASKS alone"),
        (["--include-path", "tasks"], "--include-path is for --harness TASKS alone"),
        (["a.txt", "--batch-size", "4"], "--batch-size is for --multiple-choice and --harness"),
    ],
)
def test_words_that_an_evaluation_would_not_heed_are_refused(words: list[str], said: str, capsys) -> None:
    assert run(["evaluate", "nowhere", *words], debug=False) == 1
    assert said in capsys.readouterr().err
