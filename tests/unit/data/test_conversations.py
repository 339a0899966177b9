"""Rows become masked sequences; what cannot be one is said."""

import json
import weakref
from pathlib import Path

import numpy as np
import pytest

from scaledl.data import conversations, documentation
from scaledl.data.chat import ChatTemplate
from scaledl.data.conversations import ConversationData
from scaledl.data.documentation import questions, wrong_answers
from scaledl.data.preferences import PreferenceData
from scaledl.data.tokenizer import ByteTokenizer, SavedTokenizer

EOS = ByteTokenizer.eos_id


def talk(question: str, answer: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def written(path: Path, rows: list) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def prepared(kind: type, path: str, **settings):
    chat = ChatTemplate(before="{role[0]}:", after="")
    data = kind(ByteTokenizer(), chat, 2, 2, path=path, **{"val_fraction": 0.0, **settings})
    data.prepare()
    return data


def test_labels_are_the_next_tokens_of_the_answer_alone(tmp_path: Path) -> None:
    data = prepared(ConversationData, written(tmp_path / "a.jsonl", [{"messages": talk("b", "cd")}]))
    batch = data.split("train").__getitems__(np.array([0]))
    assert batch["input_ids"].tolist() == [[*b"u:b", EOS, *b"a:cd"]]
    assert batch["labels"].tolist() == [[*[-100] * 5, *b"cd", EOS]]
    assert data.facts()["vocab_size"] == 257


def test_a_batch_is_padded_to_its_longest_and_weighs_its_answers(tmp_path: Path) -> None:
    rows = [{"messages": talk("b", "c" * n)} for n in (1, 4, 2)]
    train = prepared(ConversationData, written(tmp_path / "a.jsonl", rows)).split("train")
    batch = train.__getitems__(np.array([0, 1]))
    assert batch["labels"].shape == (2, 10)
    assert batch["labels"][0].tolist() == [*[-100] * 5, ord("c"), EOS, *[-100] * 3]
    assert train.weights(np.arange(3)).tolist() == [2, 5, 3]
    assert train.lengths(np.arange(3)).tolist() == [7, 10, 8]


def test_a_long_conversation_is_cut_and_one_without_an_answer_left_out(tmp_path: Path) -> None:
    rows = [{"messages": talk("b", "c" * 50)}, {"messages": talk("b" * 50, "c")}]
    data = prepared(ConversationData, written(tmp_path / "a.jsonl", rows), seq_len=9)
    train = data.split("train")
    assert len(train) == 1
    assert train.__getitems__(np.array([0]))["labels"].tolist() == [[*[-100] * 5, *b"cccc"]]
    assert "1 left out" in data.describe()


def test_a_part_of_the_rows_validates_whatever_the_seed(tmp_path: Path) -> None:
    path = written(tmp_path / "a.jsonl", [{"messages": talk("b", str(n))} for n in range(20)])
    one, other = (prepared(ConversationData, path, val_fraction=0.2, seed=seed) for seed in (0, 1))
    assert (len(one.split("train")), len(one.split("val"))) == (16, 4)
    told = [
        {split: [ids.tolist() for ids in data.split(split).ids] for split in ("train", "val")} for data in (one, other)
    ]
    assert told[0] == told[1]
    assert len({tuple(ids) for ids in told[0]["train"] + told[0]["val"]}) == 20


@pytest.mark.parametrize("kind", [ConversationData, PreferenceData])
def test_only_ids_stay_in_memory(kind: type, monkeypatch) -> None:
    class Weak(dict):
        """Of which one can be told whether it is still there."""

    row = Weak(messages=[Weak(message) for message in talk("b", "c")], prompt="b", chosen="c", rejected="d")
    held = [weakref.ref(part) for part in (row, *row["messages"])]
    rows = [row]
    del row
    monkeypatch.setattr(conversations, "read_jsonl", lambda path: [rows.pop()])
    data = prepared(kind, "a.jsonl")
    monkeypatch.undo()
    assert len(data.split("train")) == 1
    assert [part() for part in held] == [None] * 3
    data.prepare()  # again, which reads no file


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"text": "a"}, r"row 1: no column 'messages'; set data.messages_column to one of text"),
        ({"messages": []}, r"row 1: 'messages' is no list of messages"),
        ({"messages": [{"role": "user"}]}, r"row 1: 'messages' is no list of messages"),
        ({"messages": [{"role": "gpt", "content": ""}]}, r"row 1: 'messages' has the role 'gpt'; rename it to one"),
        ({"messages": [{"role": "endoftext", "content": ""}]}, r"row 1: 'messages' has the role 'endoftext'"),
        ([1], r"a.jsonl:1: a list; each line must be an object"),
    ],
)
def test_a_row_that_is_no_conversation_is_named(tmp_path: Path, row, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        prepared(ConversationData, written(tmp_path / "a.jsonl", [row]))


def test_no_tokenizer_no_file_no_answer(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"give the run whose tokenizer this is, or init_from=RUN"):
        SavedTokenizer(None).fit([])
    with pytest.raises(FileNotFoundError, match=r"nowhere.jsonl' is no file"):
        prepared(ConversationData, str(tmp_path / "nowhere.jsonl"))
    path = written(tmp_path / "a.jsonl", [{"messages": talk("b" * 50, "c")}])
    with pytest.raises(ValueError, match=r"no answer of the train split begins within data.seq_len=9"):
        prepared(ConversationData, path, seq_len=9).split("train")


def test_pairs_stand_side_by_side_and_only_the_last_answer_counts(tmp_path: Path) -> None:
    whole = [*talk("b", "x"), {"role": "user", "content": "d"}]
    rows = [
        {"prompt": "b", "chosen": "cd", "rejected": "e"},
        {"prompt": whole, "chosen": [{"role": "assistant", "content": "f"}], "rejected": [*whole, *talk("", "gg")[1:]]},
    ]
    train = prepared(PreferenceData, written(tmp_path / "a.jsonl", rows)).split("train")
    batch = train.__getitems__(np.array([0]))
    assert batch["input_ids"].tolist() == [[[*b"u:b", EOS, *b"a:cd"], [*b"u:b", EOS, *b"a:e", 0]]]
    assert batch["labels"].tolist() == [[[*[-100] * 5, *b"cd", EOS], [*[-100] * 5, *b"e", EOS, -100]]]
    labels = train.__getitems__(np.array([1]))["labels"][0]
    assert [row[row >= 0].tolist() for row in labels] == [[*b"f", EOS], [*b"gg", EOS]]
    assert train.lengths(np.arange(2)).tolist() == [8, labels.shape[1]]


def test_a_pair_without_an_answer_is_refused(tmp_path: Path) -> None:
    row = {"prompt": "b", "chosen": "c", "rejected": [{"role": "user", "content": "d"}]}
    with pytest.raises(ValueError, match=r"row 1: 'rejected' must end with the assistant's answer"):
        prepared(PreferenceData, written(tmp_path / "a.jsonl", [row]))


def test_no_answer_of_the_documentation_is_in_both_splits_and_wrong_ones_are_wrong() -> None:
    answers = {split: {q.answer for q in questions() if q.split == split} for split in ("train", "val")}
    assert len(answers["train"]) > 1000
    assert len(answers["val"]) > 100
    assert not answers["train"] & answers["val"]
    modules = {split: {q.subject.partition(".")[0] for q in questions() if q.split == split} for split in answers}
    assert not modules["train"] & modules["val"]
    for q in questions()[::100]:
        wrong = wrong_answers(q, 3)
        assert len({*wrong, q.answer}) == 4
        assert set(wrong) <= answers[q.split]


@pytest.mark.parametrize("number", [4, 97, 194])
def test_wrong_answers_differ_however_many_there_are(number: int, monkeypatch) -> None:
    monkeypatch.setattr(documentation, "_answers", lambda kind, split: tuple(map(str, range(number))))
    asked = documentation.Question("call", "a.b", "How is a.b called?", "b()", "val")
    assert len(set(wrong_answers(asked, 4))) == 4
