"""What a text encoder is to the rest of the project: sentences in, token features and a mask out."""

import functools
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple, Protocol

import numpy as np
import tokenizers
from jaxtyping import Array, Bool, Float, Float32

from wam_jax import console


class EncodedText(NamedTuple):
    """Token features of several instructions, padded to one length; padding is zero and masked out."""

    features: Float32[np.ndarray, "I L D"]
    mask: Bool[np.ndarray, "I L"]


class Tokenize(Protocol):
    """Token ids of each sentence, special tokens included; neither padded nor cut."""

    def __call__(self, sentences: Sequence[str]) -> list[list[int]]: ...


def open_tokenizer(path: str) -> Tokenize:
    """The tokenizer of a ``tokenizer.json``, without the padding and the cut that such a file may ask for."""
    tokenizer = tokenizers.Tokenizer.from_file(path)
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return lambda sentences: [encoding.ids for encoding in tokenizer.encode_batch(list(sentences))]


class TextEncoder:
    """A frozen model and its tokenizer. An instruction's features do not depend on the others or on the padding.

    It runs at the first of a few lengths that holds the instruction and in batches of one size, whatever stands beside
    it: few compiled programs, and the same features each time. What was encoded is remembered.
    """

    def __init__(
        self,
        tokenize: Tokenize,
        compute: Callable[[np.ndarray, np.ndarray], Float[Array, "B L D"]],
        width: int,
        lengths: Sequence[int] = (16, 32, 64, 128, 512),
        batch_size: int = 8,
        remembered: int = 4096,
    ):
        """
        Args:
          tokenize: sentences -> ids.
          compute: ids int32[B, L] and their mask bool[B, L] -> features, zero outside the mask.
          width: D.
          lengths: that it may run at, ascending; the last is the longest instruction that is accepted.
          batch_size: rows of every batch.
          remembered: distinct instructions that are kept in memory, the latest.
        """
        self.tokenize, self.width = tokenize, width
        self._compute, self._lengths, self._batch_size = compute, tuple(lengths), batch_size
        self._remembered = remembered
        self._memory: OrderedDict[str, Float32[np.ndarray, "l D"]] = OrderedDict()
        self._lock = threading.Lock()  # a loader's threads share the memory

    def encode(self, instructions: Sequence[str], max_tokens: int = 16) -> EncodedText:
        """Token features of instructions, for conditioning a model. Deterministic.

        Args:
          instructions: I sentences.
          max_tokens: the length L to pad to. A longer instruction is not cut: L grows to the next length that the
            encoder runs at, and a line says so.

        Raises:
          ValueError: an instruction is longer than the encoder takes.
        """
        with self._lock:
            found = self._remember(instructions)
        longest = max((len(tokens) for tokens in found.values()), default=0)
        length = max_tokens if longest <= max_tokens else self._fitting_length(longest)
        if length > max_tokens:
            _log_growth(max_tokens, length)
        features = np.zeros((len(instructions), length, self.width), np.float32)
        mask = np.zeros((len(instructions), length), bool)
        for row, instruction in enumerate(instructions):
            tokens = len(found[instruction])
            features[row, :tokens], mask[row, :tokens] = found[instruction], True
        return EncodedText(features, mask)

    def _remember(self, instructions: Sequence[str]) -> dict[str, Float32[np.ndarray, "l D"]]:
        """Unpadded features of each distinct instruction, from memory where they are there."""
        distinct = list(dict.fromkeys(instructions))
        found = {instruction: self._memory[instruction] for instruction in distinct if instruction in self._memory}
        found |= self._encode_anew([instruction for instruction in distinct if instruction not in found])
        for instruction, features in found.items():
            self._memory[instruction] = features
            self._memory.move_to_end(instruction)
        while len(self._memory) > self._remembered:
            self._memory.popitem(last=False)
        return found

    def _encode_anew(self, instructions: Sequence[str]) -> dict[str, Float32[np.ndarray, "l D"]]:
        if not instructions:
            return {}
        ids = dict(zip(instructions, self.tokenize(instructions), strict=True))
        for instruction, tokens in ids.items():
            if len(tokens) > self._lengths[-1]:
                raise ValueError(
                    f"instruction {instruction[:60]!r}… has {len(tokens)} tokens, at most {self._lengths[-1]} fit; "
                    "shorten it"
                )
        features: dict[str, np.ndarray] = {}
        for length, batch in self._batches(ids):
            padded = np.zeros((self._batch_size, length), np.int32)
            mask = np.zeros((self._batch_size, length), bool)
            mask[:, 0] = True  # rows that stay empty attend to themselves, not to nothing
            for row, instruction in enumerate(batch):
                padded[row, : len(ids[instruction])], mask[row, : len(ids[instruction])] = ids[instruction], True
            hidden = np.asarray(self._compute(padded, mask))
            features |= {name: hidden[row, : len(ids[name])].copy() for row, name in enumerate(batch)}
        return features

    def _batches(self, ids: Mapping[str, Sequence[int]]) -> Iterator[tuple[int, list[str]]]:
        """Instructions in batches of one padded length."""
        for length in self._lengths:
            members = [name for name, tokens in ids.items() if self._fitting_length(len(tokens)) == length]
            for start in range(0, len(members), self._batch_size):
                yield length, members[start : start + self._batch_size]

    def _fitting_length(self, tokens: int) -> int:
        return next(length for length in self._lengths if length >= tokens)


@functools.cache
def _log_growth(max_tokens: int, length: int) -> None:
    """Said once a process: a new length means that whatever consumes the features compiles again."""
    console.log(
        f"text: an instruction exceeds {max_tokens} tokens; padding to {length} (max_tokens={length} keeps one length)"
    )
