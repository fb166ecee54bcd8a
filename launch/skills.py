"""`wam skills`: demonstrations cut into skills, and how many of them words and contacts agree on.

    wam skills --config configs/common.py --config.data.datasets='("DIR",)' --config.data.skills.cut=gripper \\
        --config.data.skills.signal='observation.state[29:33]' --config.data.skills.scale=-1.0

`config.data.skills` says how; trainings with the same fields learn from the skills, each with its own instruction,
instead of whole demonstrations. Instructions are split by a grammar of their own words, or (`splitter=chat`) by the
language model WAM_CHAT_MODEL at WAM_CHAT_URL. Its answers are kept beside the dataset; training reads those alone, and
asks nothing.
"""

import argparse
import os
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float
from ml_collections import ConfigDict

from data_pipelines import beside
from data_pipelines.episodes import EpisodeStore
from data_pipelines.segments import SegmentStore
from data_pipelines.subset import open_split
from launch.config import ConfigError, load_config
from launch.demos import demo_datasets
from wam_jax import console
from wam_jax.evaluation import media
from wam_jax.evaluation.report import Report, write_summary
from wam_jax.evaluation.statistics import Rate
from wam_jax.posttraining.instructions import MODEL, ChatSplitter, GrammarSplitter, Remembered
from wam_jax.posttraining.skills import Cut, GripperCut, PauseCut, Skills, Splitter, find_skills

CUTS, SPLITTERS = ("gripper", "pause"), ("grammar", "chat")
_DRAWN = 8
_ANSWERS = ".wam_skills"  # folder of a dataset
_SIGNAL = re.compile(r"^(?P<column>[\w./]+)(\[(?P<first>\d+)(:(?P<last>\d+))?\])?$")
_COLUMNS = ("dataset", "demonstrations", "synchronised", "of several skills", "skills", "steps before", "steps after")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", default="configs/quickstart.py", help="data and how to cut (default: %(default)s)")
    parser.add_argument("--out", type=Path, default="runs/skills", help="of the report (default: %(default)s)")


def run(args: argparse.Namespace, overrides: list[str]) -> None:
    config = load_config(args.config, overrides)
    if not config.data.skills.cut:
        raise ConfigError(f"config.data.skills.cut is empty; set it to one of: {', '.join(CUTS)}")
    datasets = tuple(config.data.datasets) or demo_datasets(config, args.out)
    rows: list[tuple[object, ...]] = []
    report, summary = Report("Skills"), {}
    for path in datasets:
        store = open_split(path, config.data.split)
        found = skills_of(config.data.skills, store, Path(path), ask=True)
        rows.append(_row(store.name, found))
        _add(report, store.name, found)
        _add_cuts(report, config.data.skills, store)
        for reason, count in found.discarded.items():
            console.log(f"{store.name}: {count} discarded: {reason}")
        summary[store.name] = {
            "demonstrations": len(found.lengths),
            "synchronised": found.rate,
            "discarded": found.discarded,
            "segments": [list(segment) for segment in found.segments],
        }
    report.add_table("All", _COLUMNS, rows)
    console.table("Skills", _COLUMNS, rows)
    write_summary(args.out, summary)
    console.log(f"wrote {report.write(args.out)}")


def with_skills(config: ConfigDict, store: EpisodeStore, dataset: str | Path) -> EpisodeStore:
    """The store, or its skills where ``config.data.skills`` asks for them.

    Raises:
      ConfigError: a field is unknown, or no demonstration could be cut.
    """
    if not config.skills.cut:
        return store
    found = skills_of(config.skills, store, Path(dataset), ask=False)
    console.log(
        f"{store.name}: {len(found.segments)} skills of {len(found.lengths)} demonstrations ({found.rate:.0%} cut)"
    )
    if not found.segments:
        reasons = ", ".join(f"{count} x {reason}" for reason, count in found.discarded.items())
        raise ConfigError(
            f"config.data.skills: no demonstration of {store.name} could be cut ({reasons}); wam skills draws where"
        )
    return SegmentStore(store, found.segments)


def skills_of(config: ConfigDict, store: EpisodeStore, dataset: Path, ask: bool) -> Skills:
    """The skills of a store's demonstrations; ``ask``: whether a language model may be asked for what is not kept.

    Raises:
      ConfigError: a field of ``config.data.skills`` is unknown.
    """
    instructions = [store.instruction(episode) for episode in range(store.num_episodes)]
    return find_skills(_signals(config, store), instructions, _cut(config), _splitter(config, dataset, ask))


def _signals(config: ConfigDict, store: EpisodeStore) -> list[Float[np.ndarray, "T ..."]]:
    """What each demonstration is cut by: a gripper's width (the mean of its columns), or the hand's position."""
    match = _SIGNAL.match(config.signal)
    if match is None or match["column"] not in store.columns:
        raise ConfigError(
            f"config.data.skills.signal={config.signal!r} is not a column of {store.name}, such as "
            f"{store.columns[0]}[6] or {store.columns[0]}[0:3] (has: {', '.join(store.columns)})"
        )
    values = np.asarray(store.lowdim(match["column"]), np.float32)
    values = values.reshape(len(values), -1)
    first = int(match["first"] or 0)
    last = int(match["last"] or first + 1) if match["first"] else values.shape[1]
    if not first < last <= values.shape[1]:
        has = f"{match['column']} of {store.name} has {values.shape[1]} numbers"
        raise ConfigError(f"config.data.skills.signal={config.signal!r}: {has}")
    if config.cut == "pause" and last - first != 3:
        raise ConfigError(
            f"config.data.skills.signal={config.signal!r} is {last - first} numbers; pauses are those of the hand's "
            "position, three numbers such as proprio[0:3]"
        )
    values = values[:, first:last]
    values = values if config.cut == "pause" else values.mean(1) * config.scale
    return np.split(values, store.episode_starts[1:-1])


def _cut(config: ConfigDict) -> Cut:
    if config.cut == "gripper":
        return GripperCut(
            closed_by=config.closed_by, open_again=config.open_again, lasting=config.lasting, tail=config.tail
        )
    if config.cut == "pause":
        return PauseCut(speed=config.speed, lasting=config.lasting, tail=config.tail)
    raise ConfigError(f"config.data.skills.cut={config.cut!r} is unknown (has: {', '.join(CUTS)})")


def _splitter(config: ConfigDict, dataset: Path, ask: bool) -> Splitter:
    if config.splitter == "grammar":
        return GrammarSplitter()
    if config.splitter == "chat":
        path = beside.writable(dataset, _ANSWERS) / "answers.jsonl"
        return Remembered(path, ChatSplitter.from_environment() if ask else None, os.environ.get(MODEL, ""))
    raise ConfigError(f"config.data.skills.splitter={config.splitter!r} is unknown (has: {', '.join(SPLITTERS)})")


def _row(name: str, found: Skills) -> tuple[object, ...]:
    after = [segment.stop - segment.start for segment in found.segments]
    kept = len(found.lengths) - sum(found.discarded.values())
    several = sum(count > 1 for count in Counter(segment.episode for segment in found.segments).values())
    count = len(found.lengths)
    return (name, count, Rate(kept, count), several, len(after), _range(found.lengths), _range(after))


def _range(lengths: Sequence[int]) -> str:
    if not len(lengths):
        return "–"
    return f"{np.median(lengths):.0f} ({min(lengths)} to {max(lengths)})"


def _add(report: Report, name: str, found: Skills) -> None:
    """One dataset's part of the report."""
    after = [segment.stop - segment.start for segment in found.segments]
    lengths = {"demonstrations": list(found.lengths), "skills": after}
    report.add_image(name, media.histogram(lengths, "Lengths before and after", "steps"))
    said = Counter(segment.instruction for segment in found.segments)
    report.add_table("", ("skill", "times"), said.most_common(40))
    if found.discarded:
        report.add_table("", ("discarded because", "demonstrations"), found.discarded.items())


def _add_cuts(report: Report, config: ConfigDict, store: EpisodeStore) -> None:
    """The first demonstrations' signals, with the cuts."""
    signals, cut = _signals(config, store)[:_DRAWN], _cut(config)
    finite = [signal for signal in signals if np.isfinite(signal).all()]
    cuts = [cut(signal)[1:-1].tolist() for signal in finite]
    drawn = [signal.reshape(len(signal), -1) for signal in finite]
    report.add_image("", media.cut_signals(drawn, cuts, f"The first {len(drawn)} signals, and where they are cut"))
