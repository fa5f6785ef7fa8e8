"""Text as numbers."""

from __future__ import annotations

from typing import Any

import numpy as np

from espalier.ir import elements
from espalier.ir.op import In, Op, TypeContext, op
from espalier.ir.types import TensorType, Type


@op("tf_idf_vectorizer", onnx="TfIdfVectorizer")
class TfIdfVectorizer(Op):
    """How often each n-gram of a pool stands in each row of x ([rows,] tokens), weighted by mode; ONNX TfIdfVectorizer.

    The pool holds the n-grams by length; those of length k begin at `ngram_counts[k − 1]`. The i-th is counted at
    position `ngram_indexes[i]` of the result. Tokens of an n-gram may be up to `max_skip_count` + 1 apart, evenly.
    """

    x: In
    max_gram_length: int
    max_skip_count: int
    min_gram_length: int
    mode: str
    ngram_counts: tuple[int, ...]
    ngram_indexes: tuple[int, ...]
    pool_int64s: tuple[int, ...] = ()
    pool_strings: tuple[str, ...] = ()
    weights: tuple[float, ...] = ()

    def infer(self, ctx: TypeContext) -> list[Type]:
        shape = ctx.shape("x")
        if shape is None:
            return [TensorType(elements.F32, None)]
        if len(shape) not in (1, 2):
            ctx.fail(f"n-grams are counted in one row or in several, not in rank {len(shape)}")
        if self.mode not in ("TF", "IDF", "TFIDF"):
            ctx.fail(f"n-grams are weighted by TF, IDF or TFIDF, not by {self.mode!r}")
        return [TensorType(elements.F32, (*shape[:-1], max(self.ngram_indexes) + 1))]

    def reference(self, xp: Any, x: Any) -> Any:
        tokens = xp.to_numpy(x)
        rows = tokens.reshape(1, -1) if tokens.ndim == 1 else tokens
        pool, width = self._pool(), max(self.ngram_indexes) + 1
        counts = np.zeros((len(rows), width), np.float32)
        for count, row in zip(counts, rows.tolist(), strict=True):
            for length in range(self.min_gram_length, self.max_gram_length + 1):
                for distance in range(1, 2 if length == 1 else self.max_skip_count + 2):
                    for start in range(len(row) - (length - 1) * distance):
                        place = pool.get(tuple(row[start : start + (length - 1) * distance + 1 : distance]))
                        if place is not None:
                            count[self.ngram_indexes[place]] += 1
        if self.mode == "IDF":
            counts = np.minimum(counts, np.float32(1))
        if self.mode != "TF" and self.weights:
            scale = np.ones(width, np.float32)
            scale[list(self.ngram_indexes)] = self.weights
            counts = counts * scale
        return xp.asarray(counts.reshape(*tokens.shape[:-1], width))

    def _pool(self) -> dict[tuple[Any, ...], int]:
        """The number of each n-gram."""
        tokens: tuple[Any, ...] = self.pool_int64s or self.pool_strings
        found: dict[tuple[Any, ...], int] = {}
        number = 0
        ends = (*self.ngram_counts[1:], len(tokens))
        for length, (begin, end) in enumerate(zip(self.ngram_counts, ends, strict=True), 1):
            for start in range(begin, end - length + 1, length):
                found[tokens[start : start + length]] = number
                number += 1
        return found
