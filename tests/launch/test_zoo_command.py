"""`wam zoo` names every system; `wam zoo show` draws one, and says what there is if it is not there."""

import pytest

from launch.cli import main
from wam_jax.zoo import SYSTEMS


def test_the_table_names_every_system(capsys):
    assert main(["zoo"]) == 0
    printed = capsys.readouterr().out
    assert all(name in printed for name in SYSTEMS)


def test_one_system_is_shown_and_drawn(tmp_path, capsys):
    assert main(["zoo", "show", "repwam", "--size", "1.3b", "--picture", str(tmp_path / "repwam.png")]) == 0
    printed = capsys.readouterr().out
    assert "chunk-causal & window 4" in printed
    assert "action shares attention of video" in printed
    assert (tmp_path / "repwam.png").stat().st_size > 10_000


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["show", "repvam"], "wam zoo: model 'repvam' is not in the zoo; did you mean 'repwam'?"),
        (["show", "repwam", "--size", "9b"], "wam zoo: size '9b' is not in the sizes of repwam"),
    ],
)
def test_what_is_not_there_is_named(arguments, message, capsys):
    assert main(["zoo", *arguments]) == 2
    assert capsys.readouterr().err.startswith(message)
