"""`scaledl generate` on a run that translates; tests/e2e/test_llm.py has the language models."""

from functools import partial
from pathlib import Path

import pytest
import torch

from scaledl import generate as module
from scaledl.data.pairs import Pairs
from scaledl.data.tokenizer import CharTokenizer
from scaledl.distributed.parallelize import ModelBuilder
from scaledl.models.encoder_decoder import EncoderDecoder
from scaledl.tasks.seq2seq import Seq2Seq

SETTINGS = ("best", None, 500, 0.8, None, 1.0, 0, [], [])  # of the command line, the prompt second


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Seq2Seq:
    """A run directory of dates in small letters; data that has not been prepared, as `load_run` gives it."""
    data = Pairs(CharTokenizer(), 4, 4, num_samples=300, max_len=12, lowercase=True)
    data.prepare()
    data.save_to(tmp_path)
    size = data.vocabularies[0].size
    model = partial(EncoderDecoder, size, size, dim=16, encoder_depth=1, decoder_depth=1, num_heads=2)
    task = Seq2Seq(ModelBuilder(model), partial(torch.optim.AdamW, lr=0.01))
    task.configure_model()
    unprepared = Pairs(CharTokenizer(), 4, 4, max_len=12, lowercase=True)
    monkeypatch.setattr(module, "load_run", lambda *_, **__: (task.eval(), unprepared, None, tmp_path))
    task.prepared = data
    return task


def test_each_line_of_the_prompt_is_translated(
    run: Seq2Seq, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    which, _, *rest = SETTINGS
    written = module.generate(tmp_path, which, "May 3, 1998\n\n  4 JUNE 2001 ", *rest)
    source = run.prepared.as_source(["may 3, 1998", "4 june 2001"])
    expected, _ = run.translate(source, 12, beam_size=4)
    assert written == "\n".join(map(run.prepared.vocabularies[1].decode, expected))
    assert len(written) > 5
    assert capsys.readouterr().out == written + "\n"


def test_without_a_text_there_is_nothing_to_translate(run: Seq2Seq, tmp_path: Path) -> None:
    for prompt in (None, " \n"):
        with pytest.raises(ValueError, match="translates: give it a text with --prompt"):
            module.generate(tmp_path, SETTINGS[0], prompt, *SETTINGS[2:])
