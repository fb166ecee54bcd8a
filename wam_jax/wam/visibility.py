"""Who may attend to whom, and what follows from it.

Tokens come in groups; a rule says whether a query group sees a key group. From the resulting boolean matrix come the
attention plan (unmasked attention calls on exactly the visible keys), what can be cached, and which streams can be
dropped without changing another.
"""

import dataclasses
from collections.abc import Callable, Iterable, Sequence

import numpy as np
from jaxtyping import Bool


@dataclasses.dataclass(frozen=True, kw_only=True)
class Group:
    """Tokens that see, and are seen, alike.

    Attributes:
      stream: whose tokens these are.
      block: where in time: 0 is now, larger is later.
      clean: given (context, or a clean copy of what another group predicts), or being predicted.
      size: number of tokens.
      draw: which of several independent noise draws over the same context this is.
    """

    stream: str
    block: int
    clean: bool
    size: int
    draw: int = 0

    def __str__(self) -> str:
        return f"{self.stream} {self.block}{'' if self.clean else ' noisy'}{f' #{self.draw}' if self.draw else ''}"


@dataclasses.dataclass(frozen=True)
class Rule:
    """A predicate over (query group, key group). Rules combine with ``&``, ``|`` and ``~``; equal names, equal rules.

    A new one is ``Rule("name", lambda query, key: ...)``.
    """

    name: str
    predicate: Callable[[Group, Group], bool] = dataclasses.field(compare=False, repr=False)
    alternative: bool = dataclasses.field(default=False, compare=False, repr=False)  # made by |, so bracketed in &

    def __call__(self, query: Group, key: Group) -> bool:
        return self.predicate(query, key)

    def __and__(self, other: "Rule") -> "Rule":
        return Rule(f"{_bracket(self)} & {_bracket(other)}", lambda q, k: self(q, k) and other(q, k))

    def __or__(self, other: "Rule") -> "Rule":
        return Rule(f"{self.name} | {other.name}", lambda q, k: self(q, k) or other(q, k), True)

    def __invert__(self) -> "Rule":
        return Rule(f"~{_bracket(self)}", lambda q, k: not self(q, k))

    def __str__(self) -> str:
        return self.name


def _bracket(rule: Rule) -> str:
    return f"({rule.name})" if rule.alternative else rule.name


# -- in time ----------------------------------------------------------------------------------------------------------


def _of_its_past(query: Group, key: Group) -> bool:
    return key.clean and key.block <= query.block


# Everything sees the present and all that is predicted, the present too.
BIDIRECTIONAL = Rule("bidirectional", lambda q, k: not k.clean or k.block == 0)

# The present sees only itself, so it can be cached. A finished future sees that and its own stream.
FIRST_FRAME_CAUSAL = Rule(
    "first-frame-causal",
    lambda q, k: (
        _of_its_past(q, k) and (k.block == 0 or k.stream == q.stream) if q.clean else not k.clean or k.block == 0
    ),
)

FRAME_CAUSAL = Rule(
    "frame-causal",
    lambda q, k: _of_its_past(q, k) if q.clean else (k.block == 0 if k.clean else k.block <= q.block),
)

# Teacher forcing: a block is denoised given the true blocks before it.
CHUNK_CAUSAL = Rule(
    "chunk-causal",
    lambda q, k: _of_its_past(q, k) if q.clean else (k.block < q.block if k.clean else k.block == q.block),
)


def window(blocks: int) -> Rule:
    """The ``blocks`` newest blocks, a token's own counted among them; combine with ``&``."""
    return Rule(f"window {blocks}", lambda q, k: k.block > q.block - blocks)


def first_frame_only(stream: str) -> Rule:
    """Of what is given, ``stream`` sees only the present (and itself); combine with ``&``."""
    return Rule(
        f"{stream} sees first frame only",
        lambda q, k: q.stream != stream or k.stream == stream or not k.clean or k.block == 0,
    )


# -- across streams ---------------------------------------------------------------------------------------------------

ISOLATED = Rule("isolated", lambda q, k: k.clean or q.stream == k.stream)


def sees(query_stream: str, key_stream: str) -> Rule:
    """One stream sees another being predicted; combine as ``time & (ISOLATED | sees("action", "video"))``."""
    return Rule(f"{query_stream} sees {key_stream}", lambda q, k: (q.stream, k.stream) == (query_stream, key_stream))


def sees_imagined(query_stream: str, key_stream: str) -> Rule:
    """One stream is predicted given the *finished* other of its own block, as inverse dynamics is; combine with ``|``.

    In training it sees the true one (teacher forcing), in sampling the one that was denoised before.
    """
    return Rule(
        f"{query_stream} sees imagined {key_stream}",
        lambda q, k: (
            (q.stream, k.stream) == (query_stream, key_stream) and not q.clean and k.clean and k.block <= q.block
        ),
    )


def leads(leader: str, follower: str) -> Rule:
    """Within a block the leader comes first: it never sees the follower of its own block; combine with ``&``."""
    return Rule(
        f"{leader} before {follower}",
        lambda q, k: (q.stream, k.stream) != (leader, follower) or k.block < q.block,
    )


# How actions and the imagined future see each other.
CROSS: dict[str, Rule] = {
    "isolated": ISOLATED,
    "action_sees_video": ISOLATED | sees("action", "video"),
    "video_sees_action": ISOLATED | sees("video", "action"),
    "mutual": Rule("mutual", lambda q, k: True),
}


# -- what follows -----------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Segment:
    """One unmasked attention call: these query groups on these key groups, by position in their sequences."""

    queries: tuple[int, ...]
    keys: tuple[int, ...]


def visibility_matrix(queries: Sequence[Group], keys: Sequence[Group], rule: Rule) -> Bool[np.ndarray, "Gq Gk"]:
    """Entry [i, j]: query group i sees key group j.

    Of a stream with several noise draws, a group sees those of its own draw; one with a single draw is for all.
    """
    several = {key.stream for key in keys if key.draw}

    def visible(query: Group, key: Group) -> bool:
        own = key.clean or key.stream not in several or query.draw == key.draw
        return own and rule(query, key)

    return np.array([[visible(q, k) for k in keys] for q in queries], bool).reshape(len(queries), len(keys))


def attention_plan(visible: Bool[np.ndarray, "Gq Gk"], may_be_blind: bool = False) -> tuple[Segment, ...]:
    """Merges neighbouring query groups with equal visible sets into segments.

    Raises:
      ValueError: if a query group sees nothing, unless it ``may_be_blind``.
    """
    segments: list[Segment] = []
    for query, row in enumerate(visible):
        keys = tuple(int(k) for k in np.flatnonzero(row))
        if not keys and not may_be_blind:
            raise ValueError(f"token group {query} sees no group, not even itself; check the visibility rules")
        if segments and segments[-1].keys == keys:
            segments[-1] = Segment((*segments[-1].queries, query), keys)
        else:
            segments.append(Segment((query,), keys))
    return tuple(segments)


def reachable(visible: Bool[np.ndarray, "G G"]) -> Bool[np.ndarray, "G G"]:
    """Entry [i, j]: group i depends on group j, directly or through others, or is it."""
    reach = visible | np.eye(len(visible), dtype=bool)
    while True:
        further = (reach.astype(np.int32) @ reach.astype(np.int32)) > 0
        if (further == reach).all():
            return reach
        reach = further


def components(sees: Bool[np.ndarray, "S S"], names: Sequence[str]) -> tuple[tuple[str, ...], ...]:
    """``names`` in sets that do not see each other in either direction."""
    joined = reachable(sees | sees.T)
    parts: list[tuple[str, ...]] = []
    for row in joined:
        part = tuple(name for name, belongs in zip(names, row, strict=True) if belongs)
        if part not in parts:
            parts.append(part)
    return tuple(parts)


def visible_pairs(groups: Iterable[Group], visible: Bool[np.ndarray, "G G"]) -> int:
    """The number of (query token, key token) pairs that see each other."""
    sizes = np.array([group.size for group in groups], np.int64)
    return int(sizes @ visible.astype(np.int64) @ sizes)
