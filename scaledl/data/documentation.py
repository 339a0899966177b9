"""Questions with answers about the running Python's library, made from its sources: what a function does, how it is
called."""

import ast
import sysconfig
import zlib
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from scaledl.data.corpus import PythonTexts

_LEFT_OUT = {"idlelib", "lib2to3", "distutils", "tkinter", "turtledemo", "turtle", "ensurepip", "encodings"}
_SHORTEST, _LONGEST = 12, 160  # characters of an answer


@dataclass(frozen=True)
class Question:
    """A question about `subject`, its answer, and the part of the data that its module belongs to."""

    kind: str
    subject: str
    text: str
    answer: str
    split: str


@cache
def questions() -> tuple[Question, ...]:
    """In the order of the sources. A tenth of the modules is `val`, by their names; no answer there is one of `train`.

    Differs between Python versions.
    """
    found = [q for path, module in _modules() for q in _of_module(path, module)]
    known = {q.answer for q in found if q.split == "train"}
    once: dict[str, Question] = {}
    for q in found:
        if q.split == "train" or q.answer not in known:
            once.setdefault(q.text, q)
    if len(once) < 100:
        raise ValueError("this Python came without the sources of its library; give data.path or data.dataset")
    return tuple(once.values())


def wrong_answers(asked: Question, count: int) -> list[str]:
    """What other questions of its kind and split have for an answer, always the same ones."""
    answers = [answer for answer in _answers(asked.kind, asked.split) if answer != asked.answer]
    begin = zlib.crc32(asked.text.encode())
    step = 97 if len(answers) % 97 else 1  # which does not come back before all were taken
    return [answers[(begin + step * i) % len(answers)] for i in range(count)]


@cache
def _answers(kind: str, split: str) -> tuple[str, ...]:
    return tuple({q.answer: None for q in questions() if (q.kind, q.split) == (kind, split)})


def _modules() -> list[tuple[Path, str]]:
    library = Path(sysconfig.get_path("stdlib"))
    found = []
    for path in PythonTexts("sources").files.paths:
        parts = path.relative_to(library).with_suffix("").parts
        module = ".".join(parts).removesuffix(".__init__")
        if parts[0] not in _LEFT_OUT and not any(part[0] == "_" for part in module.split(".")):
            found.append((path, module))
    return found


def _of_module(path: Path, module: str) -> list[Question]:
    try:
        tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError):  # examples of errors, for tools to find
        return []
    split = "val" if zlib.crc32(module.partition(".")[0].encode()) % 10 == 0 else "train"
    found = []

    def walk(parent: ast.Module | ast.ClassDef, prefix: str) -> None:
        for node in parent.body:
            if not isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) or node.name[0] == "_":
                continue
            name = f"{prefix}.{node.name}"
            sentence = _first_sentence(ast.get_docstring(node) or "")
            if _SHORTEST <= len(sentence) <= _LONGEST:
                kind = "class" if isinstance(node, ast.ClassDef) else "function"
                ask = f"What is {name}?" if kind == "class" else f"What does {name} do?"
                found.append(Question(kind, name, ask, sentence, split))
            if isinstance(node, ast.ClassDef):
                walk(node, name)
            else:
                call = f"{node.name}({ast.unparse(node.args)})"
                if sentence and _SHORTEST <= len(call) <= _LONGEST:
                    found.append(Question("call", name, f"How is {name} called?", call, split))

    walk(tree, module)
    return found


def _first_sentence(text: str) -> str:
    paragraph = " ".join(text.strip().split("\n\n")[0].split())
    end = paragraph.find(". ")
    return paragraph if end < 0 else paragraph[: end + 1]
