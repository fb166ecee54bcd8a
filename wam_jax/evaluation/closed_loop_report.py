"""Report sections about closed-loop evaluation: the table, the bars, the films."""

from collections.abc import Sequence

import numpy as np

from wam_jax.evaluation import media
from wam_jax.evaluation.report import Report
from wam_jax.evaluation.statistics import Rate
from wam_jax.evaluation.success import TaskResult
from wam_jax.sim.rollout import Recording
from wam_jax.sim.tasks import get_task

_FPS = 8
COLUMNS = ("task", "controller", "success", "95% interval", "wrong object", "n")
SKILL_COLUMNS = ("task", "skill", "controller", "done")
_WORDS = {"object": "first", "other": "second", "goal": "first", "other_goal": "second"}
_LABELS = {
    "trained": "trained",
    "wrong_instruction": "told the wrong object",
    "untrained": "untrained model",
    "random": "random actions",
    "expert": "scripted expert",
}


def result_rows(results: Sequence[TaskResult]) -> list[tuple[str, ...]]:
    """One row a task and controller."""
    rows: list[tuple[str, ...]] = []
    for result in results:
        for name, outcome in result.controllers.items():
            figures = outcome.summary()
            low, high = figures["ci95"]
            rows.append(
                (
                    result.task,
                    _LABELS[name],
                    f"{figures['success']:.3f}",
                    f"{low:.3f} to {high:.3f}",
                    f"{figures['wrong_object']:.3f}",
                    str(figures["n"]),
                )
            )
    return rows


def skill_rows(results: Sequence[TaskResult]) -> list[tuple[str, ...]]:
    """One row a skill of a task and controller: how often it was done, after all those before it."""
    return [
        (result.task, skill.phrase.format(**_WORDS), _LABELS[name], str(outcome.at_least(number)))
        for result in results
        for number, skill in enumerate(get_task(result.task).skills, start=1)
        for name, outcome in result.controllers.items()
    ]


def add_closed_loop(report: Report, results: Sequence[TaskResult], cameras: Sequence[str], execute: int, lead: int):
    """Success and controls, where the time goes, and films.

    Args:
      execute: actions executed of each chunk.
      lead: control steps between the present and the imagined frame.
    """
    rates = {
        result.task: Rate(int(result.controllers["trained"].success.sum()), len(result.controllers["trained"].success))
        for result in results
    }
    report.add_image("Closed-loop success", media.bars(rates, "Success at the end of the episode"))
    report.add_table("Success and controls", COLUMNS, result_rows(results))
    report.add_text(
        "",
        "All controllers meet the same episodes. Success is judged at the last step, by the true instruction. Told the "
        "wrong object, a policy that listens fails, and its wrong-object rate is how often it did what it was told.",
    )
    if skills := skill_rows(results):
        report.add_table("Skills done, in their order", SKILL_COLUMNS, skills)
    report.add_table(
        "Speed of evaluation",
        ("task", "control steps a second", "physics", "pixels", "policy"),
        [(result.task, *result.speed.values()) for result in results],
    )
    for result in results:
        if result.recording is not None:
            films = [
                _film(result, result.recording, episode, cameras, execute, lead)
                for episode in range(len(result.recording.success))
            ]
            report.add_films(f"Rollouts: {result.task}", films)


def _film(
    result: TaskResult, recording: Recording, episode: int, cameras: Sequence[str], execute: int, lead: int
) -> tuple[bytes, str]:
    """Each camera beside the frame that was imagined at the last replanning and the real frame of that instant."""
    frames, imagined = np.asarray(recording.frames[:, episode]), np.asarray(recording.imagined[:, episode, -1])
    steps = np.arange(len(frames))
    plan = steps // execute
    target = np.minimum(plan * execute + lead, len(frames) - 1)
    rows = []
    for view, camera in enumerate(cameras):
        panels = {
            camera: frames[:, view],
            f"imagined +{lead}": imagined[plan, view],
            f"real +{lead}": frames[target, view],
        }
        rows.append(media.side_by_side(panels, 128))
    film = np.concatenate(rows, axis=1)
    success = bool(recording.success[episode])
    instruction = result.instructions[int(recording.instruction[episode])]
    film = media.border(media.caption(film, instruction), media.SUCCESS if success else media.FAILURE)
    return media.film(film, _FPS), f"{instruction}: {'success' if success else 'failure'}"
