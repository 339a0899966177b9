"""Make a run directory of a Hugging Face checkpoint, from which generate, evaluate, export and training go on."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from torch import Tensor

from scaledl import atomic, build, checkpoint, run_directory
from scaledl.config.compose import compose
from scaledl.config.rules import broken_rules
from scaledl.config.schema import Root
from scaledl.config.validate import ALLOWED, ConfigError, validate
from scaledl.data.tokenizer import Tokenizer
from scaledl.distributed.pieces import Pieces
from scaledl.hf import read
from scaledl.hf.config import arguments_of
from scaledl.hf.names import Match, is_left_out, matches
from scaledl.hf.tokenizer import from_folder
from scaledl.model_text import describe

EXPERIMENT = "llm/finetune"


class _Later(Pieces):
    """A whole tensor, whose values are read when they are written."""

    def __init__(self, like: Tensor, values: Callable[[], Tensor]):
        super().__init__(like.size(), like.dtype, [((0,) * like.dim(), like)])
        self._values = values

    def __get_tensor_shard__(self, index: object) -> Tensor:
        return self._values()


def import_(source: str, to: Path | None, words: list[str], folders: list[Path], allowed: list[str]) -> Path:
    """The run directory, whose one checkpoint, of step 0, holds the weights as they are, and nothing else.

    Args:
        source: a folder with config.json and safetensors, or a name on the Hugging Face Hub.
        to: the new run directory; default: runs/imported/<the last part of the name>.
        words: settings of the run, for `scaledl resume`.

    Raises:
        ValueError: what the folder holds is no GPT of ours; nothing was written.
    """
    folder = read.local_folder(source)
    theirs = read.config_of(folder)
    arguments = arguments_of(theirs)
    name = Path(source).expanduser().resolve().name if Path(source).expanduser().is_dir() else source
    run_dir = to or Path("runs/imported") / name.rpartition("/")[2]
    if run_dir.exists() and (not run_dir.is_dir() or any(run_dir.iterdir())):
        raise ValueError(f"{run_dir} is there already; give another folder with --to")
    tokenizer = from_folder(folder, theirs, name)
    config, linked = _config(arguments, tokenizer, run_dir, words, folders, allowed)
    weights = _weights(theirs["model_type"], read.Tensors(folder), config)

    with atomic.new_folder(run_dir) as beside:
        run_directory.write_config(beside, linked, config)
        atomic.write_text(beside / run_directory.MODEL, describe(build.model(config).on_meta()))
        if tokenizer is not None:
            tokenizer.save(beside)
        checkpoint.begin_with(beside, weights)
    _tell(run_dir, theirs["model_type"], weights, tokenizer)
    return run_dir


def _config(
    arguments: dict[str, Any],
    tokenizer: Tokenizer | None,
    run_dir: Path,
    words: list[str],
    folders: list[Path],
    allowed: list[str],
) -> tuple[DictConfig, str]:
    """The config of a run of this model, and its text with links."""
    config, problems = compose([f"experiment={EXPERIMENT}", *words], folders)
    config.model = {"_target_": "scaledl.models.gpt.GPT", **arguments}
    config.data.tokenizer.path = str(run_dir.absolute())
    config.data.vocab_size = arguments["vocab_size"]
    config.data.mask_id = tokenizer and tokenizer.mask_id
    if config.data.path:
        config.data.path = str(Path(config.data.path).expanduser().absolute())
    config.run_dir = str(run_dir)
    problems += [] if problems else broken_rules(config)
    problems += validate(config, Root, build.PROVIDED, (*ALLOWED, *allowed))
    if problems:
        raise ConfigError(problems)
    return config, OmegaConf.to_yaml(config)


def _weights(model_type: str, tensors: read.Tensors, config: DictConfig) -> dict[str, Pieces]:
    """Every tensor of the model, to be read from theirs.

    Raises:
        ValueError: tensors are missing, too many or of another shape.
    """
    ours = build.model(config).on_meta().state_dict()
    there = set(tensors.names())
    found: dict[str, Pieces] = {}
    used = set()
    for match in matches(model_type, ours, there):
        names = match.theirs
        missing = [name for name in names if name not in there]
        if missing:
            raise ValueError(f"the checkpoint has no tensor {missing[0]}, which config.json asks for")
        used |= set(names)
        for i, like in enumerate(match.to_ours([tensors.like(name) for name in names])):
            if like.shape != ours[match.ours[i]].shape:
                raise ValueError(
                    f"{', '.join(names)}: {tuple(like.shape)} in the checkpoint, but config.json asks for "
                    f"{tuple(ours[match.ours[i]].shape)}"
                )
            found[f"weights/model.{match.ours[i]}"] = _Later(like, _reader(match, i, tensors))
    tied = config.model.tie_embeddings
    strange = sorted(name for name in there - used if not is_left_out(model_type, name, tied))
    if strange:
        raise ValueError(
            f"the checkpoint has {len(strange)} tensor(s) that our GPT has no place for: {', '.join(strange[:5])}"
        )
    return found


def _reader(match: Match, i: int, tensors: read.Tensors) -> Callable[[], Tensor]:
    return lambda: match.to_ours([tensors[name] for name in match.theirs])[i]


def _tell(run_dir: Path, model_type: str, weights: dict[str, Pieces], tokenizer: Tokenizer | None) -> None:
    count = sum(pieces.size.numel() for pieces in weights.values())
    dtypes = {str(pieces.dtype).removeprefix("torch.") for pieces in weights.values()}
    console = Console()
    console.print(f"{run_dir}: {model_type}, {count:,} parameters in {', '.join(sorted(dtypes))}")
    if tokenizer is None:
        console.print("the folder holds no tokenizer, without which the model reads and writes no text")
