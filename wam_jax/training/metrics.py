"""Training curves as JSON lines: one object a logged step."""

import json
from pathlib import Path
from typing import Any

import jax


class MetricsLog:
    """Appends to a ``metrics.jsonl``, from the first process alone. Reopened after a crash, it forgets what came after
    the restored step."""

    def __init__(self, path: Path, resume_step: int = 0):
        self.path, self._writes = path, jax.process_index() == 0
        if not self._writes:
            return
        kept = [row for row in read_metrics(path) if row["step"] <= resume_step] if path.exists() else []
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(json.dumps(row) + "\n" for row in kept))

    def append(self, step: int, values: dict[str, Any]) -> None:
        if not self._writes:
            return
        with self.path.open("a") as file:
            file.write(json.dumps({"step": step, **values}) + "\n")


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """All complete rows; a line cut short by a kill is left out."""
    rows = []
    for line in path.read_text().splitlines():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return rows
