"""BLEU, the measure of translations against references."""

import math
import re
from collections import Counter
from collections.abc import Callable, Sequence

_MAX_ORDER = 4
_ENTITIES = (("&quot;", '"'), ("&amp;", "&"), ("&lt;", "<"), ("&gt;", ">"))
_SPLITS = (
    (re.compile(r"([{-~\[-` -&(-+:-@/])"), r" \1 "),  # signs but . , ' -
    (re.compile(r"([^0-9])([.,])"), r"\1 \2 "),  # period and comma, unless inside a number
    (re.compile(r"([.,])([^0-9])"), r" \1 \2"),
    (re.compile(r"([0-9])(-)"), r"\1 \2 "),  # a dash behind a digit
)


def corpus_bleu(
    hypotheses: Sequence[str], references: Sequence[str], tokenize: Callable[[str], list[str]] | None = None
) -> float:
    """BLEU of a corpus with one reference each, 0 to 100 (Papineni et al. 2002): precision of n-grams up to 4, brevity.

    Not smoothed. Case counts. Without `tokenize`, texts are cut by `tokenize_13a`, so that numbers compare with others'
    (Post 2018).

    Raises:
        ValueError: there are not as many hypotheses as references, or none.
    """
    if len(hypotheses) != len(references) or not references:
        raise ValueError(f"{len(hypotheses)} hypotheses for {len(references)} references: give one each, at least one")
    tokenize = tokenize or tokenize_13a
    right, given = [0] * _MAX_ORDER, [0] * _MAX_ORDER
    length = reference_length = 0
    for hypothesis, reference in zip(map(tokenize, hypotheses), map(tokenize, references), strict=True):
        length += len(hypothesis)
        reference_length += len(reference)
        for n in range(1, _MAX_ORDER + 1):
            ours, theirs = _ngrams(hypothesis, n), _ngrams(reference, n)
            right[n - 1] += (ours & theirs).total()  # each counts at most as often as in the reference
            given[n - 1] += ours.total()
    if not all(right):
        return 0.0
    log_precision = sum(math.log(r / g) for r, g in zip(right, given, strict=True)) / _MAX_ORDER
    return 100 * math.exp(log_precision + min(0.0, 1 - reference_length / length))


def tokenize_13a(text: str) -> list[str]:
    """Words and signs as NIST's mteval-v13a cuts them, which most published scores use."""
    text = text.replace("<skipped>", "").replace("-\n", "").replace("\n", " ")
    for entity, sign in _ENTITIES:
        text = text.replace(entity, sign)
    text = f" {text} "
    for pattern, replacement in _SPLITS:
        text = pattern.sub(replacement, text)
    return text.split()


def _ngrams(tokens: list[str], n: int) -> Counter[tuple[str, ...]]:
    return Counter(zip(*(tokens[i:] for i in range(n)), strict=False))
