"""Two writers of a folder take turns."""

import threading

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


def test_a_folder_that_failed_is_free(tmp_path):
    try:
        with alone_in(tmp_path):
            raise RuntimeError
    except RuntimeError:
        with alone_in(tmp_path):
            pass
