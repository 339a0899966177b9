"""What a mistake gets: one clear message, no traceback, a non-zero exit code, and nothing lost of what was there."""

import resource
from pathlib import Path

import pytest

from tests.conftest import TINY_GPT, metrics_of, summary_of

pytestmark = pytest.mark.e2e
SHORT = [*TINY_GPT, "trainer.max_steps=6", "trainer.val_check_interval=3", "trainer.limit_val_batches=1"]
FOLDER = Path("runs/llm/gpt_shakespeare")


def test_config_mistakes_make_no_directory(scaledl, tmp_path: Path) -> None:
    done = scaledl("train", "model.depht=3", "optimizer.lr=fast", "experiment=llm/gpt_shakespeare", code=2)
    assert "did you mean 'depth'?" in done.stderr
    assert "'fast' is not a number" in done.stderr
    assert not (tmp_path / "runs").exists()


def test_debug_shows_the_traceback(environment, tmp_path: Path) -> None:
    import subprocess

    from tests.conftest import COMMAND

    words = [*COMMAND, "train", "--debug", "experiment=nothing"]
    done = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "Traceback" in done.stderr


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (None, "matches no file"),
        (b"", "empty"),
        ("Grüße ".encode("latin-1") * 50, "encoding"),
        (b"\x00\x01\x02\x00" * 50, "binary"),
        (b"too short", "window"),
    ],
    ids=["missing", "empty", "wrong encoding", "binary", "too short"],
)
def test_a_bad_text_file_is_named_before_a_run_directory_exists(scaledl, tmp_path, content, expected) -> None:
    path = tmp_path / "input.txt"
    if content is not None:
        path.write_bytes(content)
    done = scaledl("train", *SHORT, f"data.path={path}", code=1)
    assert expected in done.stderr
    assert str(path) in done.stderr or path.name in done.stderr
    assert not (tmp_path / "runs").exists()


def test_sizes_that_do_not_fit_are_named_before_a_run_directory_exists(scaledl, tmp_path: Path) -> None:
    done = scaledl("train", *SHORT, "model.num_heads=5", code=1)
    assert "num_heads=5" in done.stderr
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    "words",
    [["generate", "nowhere"], ["evaluate", "nowhere"], ["resume", "nowhere"]],
    ids=["generate", "evaluate", "resume"],
)
def test_a_run_directory_that_is_none(scaledl, words: list[str]) -> None:
    assert "nowhere is no run directory" in scaledl(*words, code=1).stderr


def test_damaged_checkpoints_fall_back_and_say_so(scaledl, tmp_path: Path) -> None:
    scaledl("train", *SHORT, "checkpoint.every_n_steps=2", "run_id=a")
    run_dir = tmp_path / FOLDER / "a"
    before = metrics_of(run_dir)
    checkpoints = sorted((run_dir / "checkpoints").glob("step_*"))
    assert len(checkpoints) >= 2
    weights = checkpoints[-1] / "rank_00000.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])  # truncated

    done = scaledl("train", *SHORT, "checkpoint.every_n_steps=2", "run_id=a")
    assert "is damaged" in done.stderr
    assert f"step {int(checkpoints[-2].name[5:])}" in done.stdout
    assert metrics_of(run_dir) == before

    for number, checkpoint in enumerate((run_dir / "checkpoints").glob("step_*")):
        file = checkpoint / ("state.pt", "rank_00000.safetensors")[number % 2]
        damaged = bytearray(file.read_bytes())
        damaged[len(damaged) // 2] ^= 1  # one bit
        file.write_bytes(damaged)
    done = scaledl("train", *SHORT, "run_id=a", code=1)
    assert "no whole checkpoint is left" in done.stderr
    assert metrics_of(run_dir) == before


def test_a_run_without_a_checkpoint_yet(scaledl, tmp_path: Path) -> None:
    scaledl("train", *SHORT, "run_id=a")
    for checkpoint in (tmp_path / FOLDER / "a" / "checkpoints").iterdir():
        checkpoint.rename(tmp_path / checkpoint.name)
    assert "holds no checkpoint yet" in scaledl("generate", str(FOLDER / "a"), code=1).stderr


def test_a_full_disk_ends_the_run_and_keeps_the_checkpoint_before(scaledl, tmp_path: Path) -> None:
    scaledl("train", *SHORT, "run_id=a", "trainer.max_steps=3")
    run_dir = tmp_path / FOLDER / "a"
    weights = run_dir / "checkpoints" / "step_00000003" / "rank_00000.safetensors"
    content, limit = weights.read_bytes(), weights.stat().st_size // 2

    def full_disk() -> None:  # a file-size limit fails a write in the middle, as a full disk does
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    done = scaledl("train", *SHORT, "run_id=a", code=1, preexec_fn=full_disk)
    assert "could not be written" in done.stderr
    assert "MiB free" in done.stderr
    assert weights.read_bytes() == content
    assert [path.name for path in (run_dir / "checkpoints").iterdir() if path.name.startswith((".", "step"))] == [
        "step_00000003"
    ]
    assert summary_of(run_dir)["status"] == "failed"
    scaledl("train", *SHORT, "run_id=a")
    assert summary_of(run_dir)["status"] == "completed"


def test_another_model_does_not_go_on_in_a_runs_directory(scaledl, tmp_path: Path) -> None:
    scaledl("train", *SHORT, "run_id=a")
    done = scaledl("train", *SHORT, "run_id=a", "model.depth=3", code=1)
    assert "model.depth was 2, now 3" in done.stderr


def test_a_strangers_run_directory_cannot_run_code(scaledl, tmp_path: Path) -> None:
    scaledl("train", *SHORT, "run_id=a")
    config = tmp_path / FOLDER / "a" / "config.yaml"
    config.write_text(config.read_text().replace("scaledl.models.gpt.GPT", "os.system"))
    done = scaledl("evaluate", str(FOLDER / "a"), code=2)
    assert "'os.system' may not be named" in done.stderr


def test_a_prompt_that_the_tokenizer_does_not_know(scaledl) -> None:
    scaledl("train", *SHORT, "run_id=a")
    assert "☃" in scaledl("generate", str(FOLDER / "a"), "--prompt", "☃", code=1).stderr
