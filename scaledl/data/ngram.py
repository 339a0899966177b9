"""What counting alone achieves: the cross-entropy of an n-gram model, which a trained model must beat."""

import math

import numpy as np


def ngram_floor(train_ids: np.ndarray, val_ids: np.ndarray, order: int = 3) -> float:
    """Nats per token of `val_ids` under n-grams of `order` tokens (order - 1 of context) counted on `train_ids`.

    Witten-Bell interpolation (Bell, Cleary & Witten 1990; Chen & Goodman 1999, section 2.6) down to a uniform model:
    p_k(w | h) = (c(h w) + T(h) p_{k-1}(w | h')) / (c(h) + T(h)), T(h) the number of different tokens seen after h.
    """
    ids = np.concatenate([train_ids, val_ids]).astype(np.int64)
    split, vocab_size = len(train_ids), int(ids.max()) + 1
    probability = np.full(len(val_ids), 1 / vocab_size)
    gram = np.zeros(len(ids), dtype=np.int64)  # the number of the (k-1)-gram that ends at each position
    for k in range(order):
        # A k-gram is the (k-1)-gram that ends just before, and the token; renumbered, so that it never overflows.
        begin = gram.max() + 1 if k else 0  # what precedes the first token is no token
        context = np.concatenate([[begin], gram[:-1]])
        gram = np.unique(context * vocab_size + ids, return_inverse=True)[1]
        counts = np.bincount(gram[:split], minlength=gram.max() + 1)
        context_counts = np.bincount(context[:split], minlength=context.max() + 1)
        first_seen = np.unique(gram[:split], return_index=True)[1]
        followers = np.bincount(context[first_seen], minlength=context.max() + 1)
        c_hw, c_h, t_h = counts[gram[split:]], context_counts[context[split:]], followers[context[split:]]
        known = c_h > 0
        probability[known] = (c_hw + t_h * probability)[known] / (c_h + t_h)[known]
    return -math.fsum(np.log(probability)) / len(val_ids)
