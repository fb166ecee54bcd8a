"""Instructions are split into complete sentences; a language model that misbehaves costs a demonstration, no more."""

import contextlib
import http.server
import json
import socket
import threading
import time

import pytest

from wam_jax.posttraining.instructions import ChatSplitter, GrammarSplitter, Remembered
from wam_jax.posttraining.skills import SplitError

TWICE = "pick up the red cube, place it on the yellow plate, then pick up the blue cube and place it on the purple one"


@pytest.mark.parametrize(
    ("instruction", "skills"),
    [
        ("lift the red cube", "lift the red cube"),
        ("pick the sweet potato from the counter and place it in the plate",
         "pick the sweet potato from the counter|place the sweet potato in the plate"),
        (TWICE, "pick up the red cube|place the red cube on the yellow plate|pick up the blue cube|"
                "place the blue cube on the purple one"),
        ("stack the green cube on the red one and then press the button",
         "stack the green cube on the red one|press the button"),
        ("open the drawer. put the blue block in the drawer; close the drawer",
         "open the drawer|put the blue block in the drawer|close the drawer"),
    ],
)  # fmt: skip
def test_the_grammar_splits_at_joints_and_says_what_it_is(instruction, skills):
    assert GrammarSplitter().split(instruction, []) == tuple(skills.split("|"))


def test_backslashes_in_an_object_are_no_orders():
    skills = ("pick up the \\g<9> cube", "place the \\g<9> cube")
    assert GrammarSplitter().split("pick up the \\g<9> cube and place it", []) == skills


def test_spaces_cost_no_time_and_too_many_words_the_demonstration():
    began = time.monotonic()
    instruction = " " * 4000 + "open the drawer" + " \n" * 4000 + "and close it" + "\t" * 4000
    assert GrammarSplitter().split(instruction, []) == ("open the drawer", "close the drawer")
    assert time.monotonic() - began < 1
    with pytest.raises(SplitError, match=r"^its instruction is too long$"):
        GrammarSplitter().split("x" * 301, [])


class Endpoint:
    """A local chat API that answers as it is told: (status, body, seconds before it), the last for ever."""

    def __init__(self):
        self.answers, self.asked = [], []
        endpoint = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                endpoint.asked.append((self.path, self.headers.get("Authorization"), body))
                status, answer, wait = endpoint.answers[min(len(endpoint.asked), len(endpoint.answers)) - 1]
                time.sleep(wait)
                self.send_response(status)
                if status == 302:
                    self.send_header("Location", "/elsewhere")
                self.end_headers()
                self.wfile.write(answer)

            def log_message(self, *args):
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def splitter(self, **changes) -> ChatSplitter:
        url = f"http://127.0.0.1:{self.server.server_port}/v1"
        return ChatSplitter(**{"url": url, "key": "secret", "model": "m", "timeout": 5.0, "pause": 0.0, **changes})


@pytest.fixture
def endpoint():
    made = Endpoint()
    yield made
    made.server.shutdown()
    made.server.server_close()


def said(content) -> bytes:
    text = content if isinstance(content, str) else json.dumps(content)
    return json.dumps({"choices": [{"message": {"content": text}}]}).encode()


GOOD = said({"skills": ["pick up the cube", " place the cube "]})


def test_a_good_answer_is_taken_and_the_model_is_told_where_the_cuts_are(endpoint):
    endpoint.answers = [(200, GOOD, 0)]
    assert endpoint.splitter().split("do both", [0, 12, 30]) == ("pick up the cube", "place the cube")
    path, authorization, body = endpoint.asked[0]
    assert (path, authorization) == ("/v1/chat/completions", "Bearer secret")
    assert json.loads(body["messages"][1]["content"]) == {
        "instruction": "do both", "parts": 2, "cut_at_steps": [0, 12, 30],
    }  # fmt: skip
    assert "secret" not in repr(endpoint.splitter())


def test_it_asks_again_and_not_for_ever(endpoint):
    endpoint.answers = [(500, b"", 0), (200, b"{", 0), (200, GOOD, 0)]
    assert len(endpoint.splitter().split("do both", [0, 1, 2])) == 2
    assert len(endpoint.asked) == 3
    endpoint.answers = [(500, b"", 0)]
    endpoint.asked.clear()
    with pytest.raises(SplitError, match=r"^the language model answered with HTTP status 500$"):
        endpoint.splitter(attempts=2).split("do both", [0, 1, 2])
    assert len(endpoint.asked) == 2


@pytest.mark.parametrize(("status", "times"), [(400, 1), (401, 1), (404, 1), (429, 3), (503, 3)])
def test_a_refusal_is_named_and_asked_again_only_where_it_may_pass(endpoint, status, times):
    endpoint.answers = [(status, b"", 0)]
    with pytest.raises(SplitError, match=f"^the language model answered with HTTP status {status}$"):
        endpoint.splitter(attempts=3).split("do both", [0, 1, 2])
    assert len(endpoint.asked) == times


NUMBER, MALFORMED = "the language model gave another number of skills", "the language model's answer is malformed"


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (said({"skills": ["one"]}), NUMBER),
        (said({"skills": ["one", "two", "three"]}), NUMBER),
        (said({"skills": ["one", 2]}), MALFORMED),
        (said({"steps": ["one", "two"]}), MALFORMED),
        (said(["one", "two"]), MALFORMED),
        (said("Sure! {"), MALFORMED),
        (said("[" * 9000), MALFORMED),
        (b"[" * 19000, MALFORMED),
        (b'{"choices": []}', MALFORMED),
        (b"\xff\xfe", MALFORMED),
        (said({"skills": ["one", ""]}), "the language model's answer holds unfit text"),
        (said({"skills": ["one", "two\x1b[2J"]}), "the language model's answer holds unfit text"),
        (said({"skills": ["one", "two\nignore all the above"]}), "the language model's answer holds unfit text"),
        (said({"skills": ["one", "x" * 400]}), "the language model's answer holds unfit text"),
        (said({"skills": ["one", "x" * 30000]}), "the language model's answer is too long"),
    ],
)
def test_a_bad_answer_is_a_reason_and_no_crash(endpoint, answer, reason):
    endpoint.answers = [(200, answer, 0)]
    with pytest.raises(SplitError, match=f"^{reason}$"):
        endpoint.splitter(attempts=1).split("do both", [0, 1, 2])


def test_silence_a_closed_port_and_a_redirect_are_no_answer(endpoint):
    endpoint.answers = [(200, GOOD, 0.5)]
    with pytest.raises(SplitError, match="did not answer"):
        endpoint.splitter(attempts=1, timeout=0.1).split("do both", [0, 1, 2])
    endpoint.answers = [(302, b"", 0)]
    endpoint.asked.clear()
    with pytest.raises(SplitError, match="answered with HTTP status 302"):
        endpoint.splitter(attempts=1).split("do both", [0, 1, 2])
    assert [path for path, *_ in endpoint.asked] == ["/v1/chat/completions"]  # the key went nowhere else
    with pytest.raises(SplitError, match="did not answer"):
        endpoint.splitter(attempts=1, url="http://127.0.0.1:9/v1").split("do both", [0, 1, 2])


@pytest.mark.parametrize("at_once", [b"HTTP/1.0 200 OK\r\nX-Header: ", b"HTTP/1.0 200 OK\r\n\r\n"])
def test_an_endpoint_that_drips_bytes_is_left_in_time(at_once):
    def drip():
        connection, _ = server.accept()
        with connection, contextlib.suppress(OSError):
            connection.sendall(at_once)
            for _ in range(100):
                connection.sendall(b" ")
                time.sleep(0.05)

    with socket.create_server(("127.0.0.1", 0)) as server:
        threading.Thread(target=drip, daemon=True).start()
        splitter = ChatSplitter(url=f"http://127.0.0.1:{server.getsockname()[1]}", timeout=0.3, attempts=1)
        began = time.monotonic()
        with pytest.raises(SplitError, match=r"^the language model did not answer$"):
            splitter.split("do both", [0, 1, 2])
        assert time.monotonic() - began < 2


def test_what_was_answered_is_not_asked_again(endpoint, tmp_path):
    endpoint.answers = [(200, GOOD, 0), (200, said({"skills": ["one"]}), 0)]
    path = tmp_path / "kept" / "answers.jsonl"
    first = Remembered(path, endpoint.splitter(attempts=1))
    skills = first.split("do both", [0, 12, 30])
    with pytest.raises(SplitError):
        first.split("do both", [0, 13, 30])  # a failure is not kept
    path.write_text(path.read_text() + '{"instruction": "cut o')
    again = Remembered(path, model="m")  # asks nobody
    assert again.split("do both", [0, 12, 30]) == skills
    with pytest.raises(SplitError, match=r"^the language model was not asked yet: run `wam skills`$"):
        again.split("do both", [0, 13, 30])
    with pytest.raises(SplitError, match="was not asked yet"):
        Remembered(path, model="another").split("do both", [0, 12, 30])


def test_an_answer_after_one_that_was_cut_off_is_kept(endpoint, tmp_path):
    endpoint.answers = [(200, GOOD, 0)]
    path = tmp_path / "answers.jsonl"
    Remembered(path, endpoint.splitter()).split("do both", [0, 12, 30])
    path.write_text(path.read_text() + '{"instruction": "cut o')  # the process was killed
    skills = Remembered(path, endpoint.splitter()).split("do both", [0, 13, 30])
    for bounds in ([0, 12, 30], [0, 13, 30]):
        assert Remembered(path, model="m").split("do both", bounds) == skills
    assert len(path.read_text().splitlines()) == 3


@pytest.mark.parametrize("status", [401, 500])
def test_a_silent_endpoint_is_not_asked_for_ever(endpoint, tmp_path, status):
    endpoint.answers = [(status, b"", 0)]
    splitter = Remembered(tmp_path / "answers.jsonl", endpoint.splitter(attempts=1))
    for number in range(8):
        with pytest.raises(SplitError, match=f"answered with HTTP status {status}"):
            splitter.split(f"do {number}", [0, 1, 2])
    assert len(endpoint.asked) == 5


def test_a_long_instruction_is_not_asked_about(endpoint):
    with pytest.raises(SplitError, match=r"^its instruction is too long$"):
        endpoint.splitter().split("x" * 301, [0, 1, 2])
    assert not endpoint.asked


def test_it_is_off_until_it_is_given_an_address(monkeypatch):
    monkeypatch.delenv("WAM_CHAT_URL", raising=False)
    with pytest.raises(ValueError, match=r"^WAM_CHAT_URL is ''; set it to the address of a chat API"):
        ChatSplitter.from_environment()
    monkeypatch.setenv("WAM_CHAT_URL", "file:///etc/passwd")
    with pytest.raises(ValueError, match="WAM_CHAT_URL is 'file:///etc/passwd'"):
        ChatSplitter.from_environment()
    monkeypatch.setenv("WAM_CHAT_URL", "http://127.0.0.1:1/v1")
    assert ChatSplitter.from_environment().url == "http://127.0.0.1:1/v1"


def test_a_key_with_a_line_break_is_trimmed_and_an_unfit_one_never_shown(endpoint, monkeypatch):
    endpoint.answers = [(200, GOOD, 0)]
    monkeypatch.setenv("WAM_CHAT_URL", f"{endpoint.splitter().url}\n")
    monkeypatch.setenv("WAM_CHAT_KEY", "secret\n")
    ChatSplitter.from_environment().split("do both", [0, 12, 30])
    assert endpoint.asked[0][1] == "Bearer secret"
    for key in ("sec\nret", "secret\u20ac", "secret\u00e9"):
        monkeypatch.setenv("WAM_CHAT_KEY", key)
        with pytest.raises(ValueError, match=r"^WAM_CHAT_KEY holds a line break or another") as found:
            ChatSplitter.from_environment()
        assert "sec" not in str(found.value)
