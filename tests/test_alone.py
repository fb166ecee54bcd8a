"""Two writers of a folder take turns."""

import fcntl
import threading

import pytest

from wam_jax.alone import alone_in


def test_the_second_waits_for_the_first_and_says_so(tmp_path, capfd):
    folder, order = tmp_path / "made" / "here", []

    def second():
        with alone_in(folder):
            order.append("second")

    thread = threading.Thread(target=second)
    with alone_in(folder):
        thread.start()
        thread.join(0.2)
        order.append("first")
    thread.join(10)
    assert order == ["first", "second"]
    said = "".join("".join(capfd.readouterr()).split())  # however the lines are cut
    assert "".join(f"waiting for another process that writes {folder}".split()) in said


def is_free(folder) -> bool:
    """Whether nobody is in it."""
    with (folder / "lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
    return True


def test_a_folder_that_failed_is_free(tmp_path):
    with alone_in(tmp_path):
        assert not is_free(tmp_path)
    with pytest.raises(RuntimeError), alone_in(tmp_path):
        raise RuntimeError
    assert is_free(tmp_path)
