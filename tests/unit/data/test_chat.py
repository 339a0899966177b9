"""What a chat is written as, and which of it the assistant learns to write."""

import pytest

from scaledl.data import chat
from scaledl.data.chat import ChatTemplate
from scaledl.data.tokenizer import BpeTokenizer, ByteTokenizer, CharTokenizer

TALK = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Who? <|im_end|>"},
    {"role": "assistant", "content": "I."},
    {"role": "user", "content": "Why?"},
    {"role": "assistant", "content": "So."},
]
CHATML = ChatTemplate(before="<|im_start|>{role}\n", end="<|im_end|>")
MARKERS = ["<|im_start|>", "<|im_end|>"]


def bpe(special: list[str]) -> BpeTokenizer:
    import tokenizers

    tokenizer = BpeTokenizer(300)
    tokenizer.fit(["Be brief. Who? Why? I. So. system user assistant\n"] * 3)
    tokenizer.backend.add_special_tokens([tokenizers.AddedToken(name, special=True) for name in special])
    return tokenizer


def test_the_assistant_learns_its_words_and_their_end() -> None:
    tokenizer = ByteTokenizer()
    ids, answers = ChatTemplate().encode(tokenizer, TALK[1:4])
    written = b"<|user|>\nWho? <|im_end|>", b"\n<|assistant|>\nI.", b"\n<|user|>\nWhy?", b"\n"
    assert ids.tolist() == [i for part in written[:-1] for i in [*part, tokenizer.eos_id]] + [*written[-1]]
    assert ids[answers].tolist() == [*b"I.", tokenizer.eos_id]


def test_many_are_encoded_together_to_the_same(monkeypatch) -> None:
    calls = []

    class Counting(ByteTokenizer):
        def encode_all(self, texts):
            calls.append(len(texts))
            return super().encode_all(texts)

    monkeypatch.setattr(chat, "_AT_ONCE", 2)
    talks = [TALK[1:3], TALK, TALK[3:]]
    found = list(ChatTemplate().encode_all(Counting(), talks))
    assert calls == [7, 2]
    for (ids, answers), messages in zip(found, talks, strict=True):
        alone = ChatTemplate().encode(ByteTokenizer(), messages)
        assert (ids.tolist(), answers.tolist()) == (alone[0].tolist(), alone[1].tolist())
    ((ids, answers),) = ChatTemplate().encode_all(ByteTokenizer(), [TALK], last_only=True)
    assert ids[answers].tolist() == [*b"So.", ByteTokenizer.eos_id]


def test_a_prompt_is_what_stands_before_an_answer() -> None:
    tokenizer = ByteTokenizer()
    whole, _ = ChatTemplate().encode(tokenizer, TALK)
    prompt = ChatTemplate().prompt(tokenizer, TALK[:-1])
    assert whole[: len(prompt)].tolist() == prompt
    assert whole[len(prompt) :].tolist() == [*b"So.", tokenizer.eos_id, *b"\n"]


def test_markers_are_special_tokens_where_there_are_some_and_nobody_else_can_write_them() -> None:
    tokenizer = bpe(MARKERS)
    start, end = (tokenizer.special_id(name) for name in MARKERS)
    ids, answers = CHATML.encode(tokenizer, TALK)
    assert ids.tolist().count(start) == ids.tolist().count(end) == len(TALK)
    assert ids[answers].tolist().count(end) == 2
    assert start not in CHATML.encode(bpe([]), TALK)[0]
    assert tokenizer.special_id("user") is None


@pytest.mark.parametrize("markers", [("<s>", "</s>"), ("<start_of_turn>", "<end_of_turn>"), ("[INST]", "[/INST]")])
def test_markers_of_other_families_are_special_tokens_too(markers: tuple[str, str]) -> None:
    tokenizer = bpe(list(markers))
    start, end = (tokenizer.special_id(name) for name in markers)
    template = ChatTemplate(begin=f"{markers[0]}system\n", before="{role} ", end=markers[1])
    ids, _ = template.encode(tokenizer, TALK)
    assert ids[0] == start
    assert ids.tolist().count(end) == len(TALK)


def test_a_tokenizer_learns_all_that_is_written() -> None:
    tokenizer = CharTokenizer()
    tokenizer.fit([CHATML.texts([{"role": "user", "content": "o"}])])
    ids, _ = CHATML.encode(tokenizer, [{"role": "user", "content": "o"}])  # "d" and "n" are in its end alone
    assert tokenizer.decode(ids.tolist()) == "<|im_start|>user\no<|im_end|>\n"


@pytest.mark.parametrize("generation", [False, True])
def test_chatml_is_what_transformers_makes_of_its_template(generation: bool) -> None:
    transformers = pytest.importorskip("transformers")
    tokenizer = bpe(MARKERS)
    theirs = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend)
    theirs.chat_template = (
        "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>' + '\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    )
    talk = [{**m, "content": m["content"].replace("<|im_end|>", "")} for m in TALK]  # which theirs would obey
    text = theirs.apply_chat_template(talk, add_generation_prompt=generation, tokenize=False)
    expected = theirs.backend_tokenizer
    expected.encode_special_tokens = False
    ours = CHATML.prompt(tokenizer, talk) if generation else CHATML.encode(tokenizer, talk)[0].tolist()
    assert tokenizer.backend.decode(ours, skip_special_tokens=False) == text
    assert [i for i in ours if i >= 299] == [i for i in expected.encode(text).ids if i >= 299]
