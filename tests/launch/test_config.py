"""Overrides keep a field's type, and a wrong one is refused with what to write instead."""

from pathlib import Path

import pytest

from launch.config import ConfigError, default_workdir, load_config, to_plain
from launch.study import arm_config, before_config

ROOT = Path(__file__).parents[2]

FILE = """
from ml_collections import ConfigDict

def get_config():
    return ConfigDict({
        "seed": 0, "rate": 0.5, "platform": "auto", "fast": False,
        "data": {"cameras": ("front", "wrist"), "frame_steps": (0, 8)},
        "model": {"name": "fast_wam", "options": {"unroll": 3}},
    })
"""


@pytest.fixture
def path(tmp_path) -> str:
    file = tmp_path / "experiment.py"
    file.write_text(FILE)
    return str(file)


@pytest.mark.parametrize(
    ("override", "field", "expected"),
    [
        ("seed=7", "seed", 7),
        ("rate=1", "rate", 1.0),
        ("rate=3e-4", "rate", 3e-4),
        ("platform=cpu", "platform", "cpu"),
        ("platform=8", "platform", "8"),
        ("fast=true", "fast", True),
        ("data.frame_steps=(0,4,8)", "data.frame_steps", (0, 4, 8)),
        ("data.frame_steps=[0,4]", "data.frame_steps", (0, 4)),
        ("data.cameras=('front',)", "data.cameras", ("front",)),
        ("model.options.unroll=1", "model.options.unroll", 1),
        ("model.options.coupling=mutual", "model.options.coupling", "mutual"),
        ("model.options.layers=12", "model.options.layers", 12),
    ],
)
@pytest.mark.parametrize("form", ["equals", "space"])
def test_override_sets_a_field_in_its_own_type(path, override, field, expected, form):
    arguments = [f"--config.{override}"] if form == "equals" else f"--config.{override}".split("=", 1)
    value = load_config(path, arguments)
    for part in field.split("."):
        value = value[part]
    assert value == expected
    assert type(value) is type(expected)


def test_later_overrides_win_and_other_fields_stay(path):
    before, after = load_config(path), load_config(path, ["--config.seed=1", "--config.seed", "2"])
    assert to_plain(after) == {**to_plain(before), "seed": 2}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config.data.camera=1"], "config has no field 'data.camera'; did you mean data.cameras?"),
        (["--config.dat.cameras=1"], "config has no field 'dat.cameras'; did you mean data.cameras?"),
        (["--config.seed.x=1"], "config has no field 'seed.x'; did you mean seed?"),
        (["--config.seed=fast"], "config field seed is int (0), 'fast' is str"),
        (["--config.seed=1.5"], "config field seed is int (0), 1.5 is float"),
        (["--config.fast=1"], "config field fast is bool (False), 1 is int"),
        (["--config.rate=True"], "config field rate is float (0.5), True is bool"),
        (["--config.data.frame_steps=8"], "config field data.frame_steps is tuple ((0, 8)), 8 is int"),
        (["--config.seed"], "--config.seed has no value; write --config.seed=VALUE"),
        (["--seed=1"], "argument '--seed=1' is unknown; config fields are set with --config.FIELD=VALUE"),
    ],
)
def test_wrong_override_is_refused_with_what_to_write(path, arguments, message):
    with pytest.raises(ConfigError) as error:
        load_config(path, arguments)
    assert str(error.value) == message


def test_missing_file_lists_the_configs_there_are():
    with pytest.raises(ConfigError) as error:
        load_config("configs/quikstart.py")
    assert str(error.value).startswith("config 'configs/quikstart.py' does not exist (has: configs/")
    assert "configs/quickstart.py" in str(error.value)
    assert "common" not in str(error.value)
    with pytest.raises(ConfigError) as error:
        load_config("configs/world2act.py")
    files = [f"configs/world2act/{name}.py" for name in ("base", "posttrain", "skills_world", "world")]
    assert str(error.value) == f"config 'configs/world2act.py' does not exist (has: {', '.join(files)})"


def test_to_plain_is_json(path):
    assert to_plain(load_config(path))["data"] == {"cameras": ["front", "wrist"], "frame_steps": [0, 8]}


@pytest.mark.parametrize("file", sorted((ROOT / "configs").rglob("*.py")), ids=lambda file: file.stem)
def test_every_config_loads_and_every_arm_of_a_study_fits_its_base(file):
    if file.stem == "__init__":
        pytest.skip("a package")
    config = load_config(str(file))
    for name in config.get("arms", {}):
        trainings = [found for found in (before_config(config, name), arm_config(config, name)) if found is not None]
        differs = any(to_plain(found) != to_plain(config.base) for found in trainings)
        assert differs or not config.arms[name]


def test_what_a_demonstration_waits_at_its_end_is_cut_off_as_no_skill():
    config = load_config(str(ROOT / "configs/world2act/skills_world.py"))
    assert config.demos.hold_steps < config.data.skills.tail


@pytest.mark.parametrize(
    ("config", "workdir"),
    [
        ("configs/repwam/adapt.py", "runs/repwam/adapt"),
        ("/elsewhere/configs/configs/mine.py", "runs/mine"),
        ("mine.py", "runs/mine"),
        ("../experiments/mine.py", "runs/mine"),
    ],
)
def test_results_go_where_the_config_is_named(config, workdir):
    assert default_workdir(config) == Path(workdir)
