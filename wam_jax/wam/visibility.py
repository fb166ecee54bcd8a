"""Who may attend to whom, and what follows from it.

Tokens come in groups; a rule says whether a query group sees a key group. From the resulting boolean matrix come the
attention plan (unmasked attention calls on exactly the visible keys) and the split of the noisy groups into components
that can be denoised on their own. Groups that only ever see clean groups are the cacheable prefix.
"""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Bool


@dataclasses.dataclass(frozen=True, kw_only=True)
class Group:
    """Tokens that see, and are seen, alike.

    Attributes:
      stream: whose tokens these are: "video", "state", "action".
      block: where in time: 0 is now, larger is later.
      clean: clean context, or being denoised.
      size: number of tokens.
      draw: which of several independent noise draws over the same context this is.
    """

    stream: str
    block: int
    clean: bool
    size: int
    draw: int = 0

    @property
    def level(self) -> str:
        """The name of the noise level its tokens share: all clean groups one, noisy groups one a stream and draw."""
        return "clean" if self.clean else f"{self.stream}/{self.draw}"


Rule = Callable[[Group, Group], bool]


def sees_clean_past(query: Group, key: Group) -> bool:
    """Everything sees the clean groups of its own time and before."""
    return key.clean and key.block <= query.block


def sees_own_stream(query: Group, key: Group) -> bool:
    """What is denoised sees the whole of its own stream in the same draw (bidirectional)."""
    return _same_draw(query, key) and query.stream == key.stream


def action_sees_video(query: Group, key: Group) -> bool:
    """Actions attend to the future being imagined."""
    return _same_draw(query, key) and (query.stream, key.stream) == ("action", "video")


def video_sees_action(query: Group, key: Group) -> bool:
    """The imagined future attends to the actions being denoised."""
    return _same_draw(query, key) and (query.stream, key.stream) == ("video", "action")


def _same_draw(query: Group, key: Group) -> bool:
    return not query.clean and not key.clean and query.draw == key.draw


ISOLATED: tuple[Rule, ...] = (sees_clean_past, sees_own_stream)

# How actions and the imagined future see each other; every entry adds to ISOLATED.
COUPLINGS: dict[str, tuple[Rule, ...]] = {
    "isolated": ISOLATED,
    "action_sees_video": (*ISOLATED, action_sees_video),
    "video_sees_action": (*ISOLATED, video_sees_action),
    "mutual": (*ISOLATED, action_sees_video, video_sees_action),
}


@dataclasses.dataclass(frozen=True)
class Segment:
    """One unmasked attention call: these query groups on these key groups, by position in their sequences."""

    queries: tuple[int, ...]
    keys: tuple[int, ...]


def visibility_matrix(
    queries: Sequence[Group], keys: Sequence[Group], rules: Sequence[Rule]
) -> Bool[np.ndarray, "Gq Gk"]:
    """Entry [i, j]: query group i sees key group j, by at least one rule."""
    return np.array([[any(rule(q, k) for rule in rules) for k in keys] for q in queries], bool).reshape(
        len(queries), len(keys)
    )


def attention_plan(visible: Bool[np.ndarray, "Gq Gk"]) -> tuple[Segment, ...]:
    """Merges neighbouring query groups with equal visible sets into segments.

    Raises:
      ValueError: if a query group sees nothing.
    """
    segments: list[Segment] = []
    for query, row in enumerate(visible):
        keys = tuple(int(k) for k in np.flatnonzero(row))
        if not keys:
            raise ValueError(f"token group {query} sees no group, not even itself; check the visibility rules")
        if segments and segments[-1].keys == keys:
            segments[-1] = Segment((*segments[-1].queries, query), keys)
        else:
            segments.append(Segment((query,), keys))
    return tuple(segments)


def components(streams: Sequence[str], rules: Sequence[Rule]) -> tuple[tuple[str, ...], ...]:
    """The denoised streams, split into sets that do not see each other and so can be denoised apart."""
    groups = [Group(stream=stream, block=1, clean=False, size=1) for stream in streams]
    sees = visibility_matrix(groups, groups, rules)
    joined = sees | sees.T
    remaining, parts = list(range(len(streams))), []
    while remaining:
        part = {remaining[0]}
        while grown := {j for i in part for j in remaining if joined[i, j]} - part:
            part |= grown
        remaining = [i for i in remaining if i not in part]
        parts.append(tuple(streams[i] for i in sorted(part)))
    return tuple(parts)
