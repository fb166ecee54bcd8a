"""`wam` tells its verbs, and a mistake of the user's is one line and exit code 2."""

import subprocess
import sys
from pathlib import Path

import jax
import pytest

from launch import devices
from launch.cli import VERBS, main
from launch.config import ConfigError, load_config

ROOT = Path(__file__).parents[2]
QUICKSTART = str(ROOT / "configs" / "quickstart.py")
CACHE_OPTIONS = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")


@pytest.fixture
def jax_options(monkeypatch, tmp_path):
    """What ``devices.start`` sets is set back."""
    before = {name: getattr(jax.config, name) for name in CACHE_OPTIONS}
    monkeypatch.setenv("WAM_CACHE", str(tmp_path))
    yield
    for name, value in before.items():
        jax.config.update(name, value)


def test_help_names_every_verb_and_loads_neither_simulator_nor_jax():
    program = "import sys; from launch.cli import main\ntry: main(['--help'])\nfinally: print(*sys.modules)"
    result = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    for verb in VERBS:
        assert f"\n  {verb}" in f"\n{result.stdout}".replace("    ", "  ")
    assert not {"jax", "mujoco"} & set(result.stdout.splitlines()[-1].split())


def test_unknown_verb_is_refused(capsys):
    with pytest.raises(SystemExit) as exit_code:
        main(["trian"])
    assert exit_code.value.code == 2
    assert "invalid choice: 'trian'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["train", "--config", QUICKSTART, "--config.train.bach_size=4"],
            "wam train: config has no field 'train.bach_size'; did you mean train.batch_size?",
        ),
        (
            ["train", "--config", QUICKSTART, "--batch_size=4"],
            "wam train: argument '--batch_size=4' is unknown; config fields are set with --config.FIELD=VALUE",
        ),
        (
            ["train", "--config", QUICKSTART, "--config.platform=gpu"],
            "wam train: config.platform=gpu but JAX finds only: cpu; install it with: pip install -e '.[cuda]', "
            "or set --config.platform=auto",
        ),
    ],
    ids=["field", "argument", "accelerator"],
)
def test_mistake_is_one_line_and_exit_code_2(capsys, jax_options, arguments, message):
    assert main(arguments) == 2
    assert capsys.readouterr().err == f"{message}\n"


def test_debug_shows_where_the_mistake_came_from():
    with pytest.raises(ConfigError, match="no field 'sed'; did you mean seed"):
        main(["--debug", "train", "--config", QUICKSTART, "--config.sed=1"])


def test_absent_accelerator_is_an_error_and_never_the_cpu(jax_options):
    with pytest.raises(devices.DeviceError, match=r"config.platform=tpu but JAX finds only: cpu"):
        devices.start(load_config(QUICKSTART, ["--config.platform=tpu"]))


def test_unknown_platform_names_the_ones_there_are(jax_options):
    with pytest.raises(devices.DeviceError) as error:
        devices.start(load_config(QUICKSTART, ["--config.platform=cuda"]))
    assert str(error.value) == "platform 'cuda' is unknown (has: auto, cpu, gpu, tpu); set config.platform"


def test_mesh_of_the_config_is_the_mesh_one_gets(jax_options):
    mesh = devices.start(load_config(QUICKSTART, ["--config.platform=cpu", "--config.mesh.tensor=2"]))
    assert mesh.shape == {"data": 4, "fsdp": 1, "context": 1, "tensor": 2}
