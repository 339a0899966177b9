"""A trained model for other programs: a folder that `transformers` loads, or a program of torch.export."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from torch import Tensor, nn

from scaledl import atomic, build, checkpoint
from scaledl.data.tokenizer import load_tokenizer
from scaledl.distributed import storage
from scaledl.distributed.pieces import Pieces
from scaledl.evaluate import load_run, valid_config
from scaledl.hf import config as hf_config
from scaledl.hf.names import matches
from scaledl.hf.tokenizer import files_of
from scaledl.hf.write import size_of, write_json, write_weights
from scaledl.train import quiet

FORMATS, DTYPES = ("hf", "torch_export"), ("float32", "bfloat16", "float16")
PROGRAM = "model.pt2"
_TOLERANCE = 1e-4


def export(
    run_dir: Path, to: Path, which: str, form: str, max_shard_size: str, dtype: str | None, allowed: list[str]
) -> None:
    """Write the chosen checkpoint of a run into the new folder `to`.

    Args:
        which: `best`, `last` or a step.
        form: one of FORMATS.
        max_shard_size: of a file of weights, such as 5GB.
        dtype: one of DTYPES; default: the checkpoint's own.

    Raises:
        ValueError: the model cannot be expressed there, or the folder holds something; nothing was written.
    """
    if to.exists() and (not to.is_dir() or any(to.iterdir())):
        raise ValueError(f"{to} is there already and not empty; give a new folder with --to")
    quiet()
    with atomic.new_folder(to) as beside:
        if form == "hf":
            said = _write_hf(beside, run_dir, which, size_of(max_shard_size), dtype, allowed)
        else:
            said = _write_program(beside, run_dir, which, dtype, allowed)
    console = Console()
    for line in (f"{to}: {said[0]}", *said[1:]):
        console.print(line)


# -- a folder that transformers loads ------------------------------------------------------------------------------


def _write_hf(
    folder: Path, run_dir: Path, which: str, max_shard_size: int, dtype: str | None, allowed: list[str]
) -> list[str]:
    chosen = checkpoint.choose(run_dir, which)
    config = valid_config(run_dir, allowed)
    theirs = hf_config.config_of(_arguments(config))
    said = [f"{theirs['architectures'][0]} of {chosen}"]
    prefix = checkpoint.weights_of(chosen) + "model."
    ours = build.model(config).on_meta().state_dict()
    stored = storage.dtypes(chosen)
    to_dtype = getattr(torch, dtype) if dtype else stored[prefix + next(iter(ours))]

    def read(name: str) -> Tensor:
        values = torch.empty(ours[name].shape, dtype=stored[prefix + name])
        storage.load(chosen, {prefix + name: Pieces.of(values)})
        return values

    theirs["dtype"] = str(to_dtype).removeprefix("torch.")
    eos_id = pad_id = None
    try:
        tokenizer = load_tokenizer(run_dir)
        eos_id, pad_id = tokenizer.eos_id, tokenizer.pad_id
        for file, text in files_of(tokenizer, config.model.max_seq_len).items():
            (folder / file).write_text(text, encoding="utf-8")
    except (FileNotFoundError, ValueError) as error:
        said.append(f"without a tokenizer: {error}")
    special = {"bos_token_id": None, "eos_token_id": eos_id, "pad_token_id": pad_id}
    write_json(folder / "config.json", theirs | special)
    write_json(folder / "generation_config.json", special)
    write_weights(folder, matches(theirs["model_type"], ours), ours, read, to_dtype, max_shard_size)
    return said


def _arguments(config: DictConfig) -> dict[str, Any]:
    arguments: Any = OmegaConf.to_container(config.model, resolve=True)
    target = arguments.pop("_target_")
    if target != "scaledl.models.gpt.GPT":
        raise ValueError(
            f"a {target.rpartition('.')[2]} has no class in transformers that we write; only scaledl.models.gpt.GPT "
            "does (--format torch_export writes any model)"
        )
    if config.get("lora"):
        raise ValueError(
            "the run's adapters (lora) stand beside its weights; `scaledl merge` it first, then export that"
        )
    return arguments


# -- a program of torch.export -------------------------------------------------------------------------------------


def _write_program(folder: Path, run_dir: Path, which: str, dtype: str | None, allowed: list[str]) -> list[str]:
    """One file, which `torch.export.load` turns into a function without our code. It was run once, on other sizes."""
    task, data, _, chosen = load_run(run_dir, which, allowed, with_data=True)
    if dtype:
        task = task.to(getattr(torch, dtype))
    dataset = data.split("val") or data.split("train")
    assert dataset is not None
    inputs, others = (_inputs_of(task, dataset.__getitems__(np.arange(n))) for n in (2, 3))
    shapes = tuple(_dynamic(tensor, task.model) for tensor in inputs)
    with torch.no_grad():
        try:
            program = torch.export.export(task.model, inputs, dynamic_shapes=shapes)
        except (RuntimeError, torch._dynamo.exc.TorchDynamoException) as error:
            raise ValueError(
                f"torch.export cannot write {type(task.model).__name__} for batches of any size: "
                f"{next(iter(str(error).splitlines()), type(error).__name__)}"
            ) from error
        own = sorted({str(node.target) for node in program.graph.nodes if str(node.target).startswith("scaledl.")})
        if own:
            raise ValueError(
                f"{type(task.model).__name__} computes by {', '.join(own)}, which no program elsewhere has"
            )
        torch.export.save(program, folder / PROGRAM)
        again = torch.export.load(folder / PROGRAM).module()
        others = tuple(
            other[:, : other.shape[1] // 2] if len(axes) == 2 else other
            for other, axes in zip(others, shapes, strict=True)
        )
        wrong = max(
            (ours - theirs).abs().max().item()
            for ours, theirs in zip(_flat(task.model(*others)), _flat(again(*others)), strict=True)
        )
    if not wrong < _TOLERANCE:
        raise ValueError(f"the exported program differs from the model by {wrong:.2g}; it was not kept")
    free = [f"{tuple(tensor.shape)} with axes {sorted(axes)} free" for tensor, axes in zip(inputs, shapes, strict=True)]
    return [f"{PROGRAM} of {chosen}: {'; '.join(free)}", f"its outputs differ from the model's by at most {wrong:.1g}"]


def _inputs_of(task: Any, batch: dict[str, Tensor]) -> tuple[Tensor, ...]:
    """What the task gives to its model for this batch."""
    if "input_ids" in batch:  # a language model also takes documents and caches, of which a user elsewhere has none
        return (batch["input_ids"],)
    seen: list[tuple[Any, ...]] = []
    hook = task.model.register_forward_pre_hook(lambda module, given: seen.append(given))
    with torch.no_grad():
        task.objective({name: _as_model(tensor, task.model) for name, tensor in batch.items()})
    hook.remove()
    if not seen or not all(isinstance(value, Tensor) for value in seen[0]):
        raise ValueError(
            f"{type(task).__name__} does not call its {type(task.model).__name__} on tensors of a batch alone, so that "
            "there is no one function to export"
        )
    return seen[0]


def _as_model(tensor: Tensor, model: nn.Module) -> Tensor:
    return tensor.to(next(model.parameters()).dtype) if tensor.is_floating_point() else tensor


def _dynamic(tensor: Tensor, model: Any) -> dict[int, Any]:
    """The axes whose size may change: samples, and the tokens of a sample."""
    axes: dict[int, Any] = {0: torch.export.Dim("batch")}
    if tensor.ndim == 2 and not tensor.is_floating_point():
        axes[1] = torch.export.Dim("tokens", max=getattr(model, "max_seq_len", None))
    return axes


def _flat(outputs: Any) -> list[Tensor]:
    return [leaf for leaf in torch.utils._pytree.tree_leaves(outputs) if isinstance(leaf, Tensor)]
