"""What is too long, too much or too late is refused with words, and harms no other request."""

import signal
import socket
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest


@pytest.fixture(scope="module")
def strict(serving):
    with serving("text@champion", "--max-mib", 0.01, "--max-rows", 3, "--timeout", 4, "--batch-wait", 10000, "--batch-rows", 3) as found:
        yield found


def test_too_many_bytes(strict):
    answer = strict.ask("/invocations", {"dataframe_records": [{"text": "x" * 11000}]})
    assert answer.status == 413 and "10,485 bytes" in answer.json["message"]


def test_too_many_bytes_in_chunks_without_a_length(strict):
    with socket.create_connection((strict.host, strict.port), timeout=60) as one:
        one.sendall(b"POST /invocations HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n")
        for _ in range(11):
            one.sendall(b"400\r\n" + b"x" * 0x400 + b"\r\n")
        one.sendall(b"0\r\n\r\n")
        assert b" 413 " in one.recv(65536).splitlines()[0]


def test_an_endless_body_is_not_read_to_its_end(strict):
    with socket.create_connection((strict.host, strict.port), timeout=60) as one:
        one.sendall(b"POST /invocations HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n")
        for _ in range(25):
            one.sendall(b"400\r\n" + b"x" * 0x400 + b"\r\n")
        assert b" 413 " in one.recv(65536).splitlines()[0]


def test_a_body_that_does_not_come(strict):
    with socket.create_connection((strict.host, strict.port), timeout=60) as one:
        one.sendall(b"POST /invocations HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n{")
        assert b" 504 " in one.recv(65536).splitlines()[0]
    assert strict.ask("/ping").status == 200


def test_a_body_that_breaks_off(strict):
    with socket.create_connection((strict.host, strict.port), timeout=60) as one:
        one.sendall(b"POST /invocations HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n{")
    strict.until(lambda: strict.metric("warmstart_requests_under_way") == 0)
    assert "Traceback" not in strict.running.err


def test_too_many_rows(strict):
    answer = strict.ask("/invocations", {"dataframe_records": [{"text": "x"}] * 4})
    assert answer.status == 413 and "4 rows" in answer.json["message"] and "at most 3" in answer.json["message"]


def test_a_request_whose_time_is_up_shifts_no_other(strict, registered):
    model = registered.models["text"]
    answer = strict.ask("/invocations", {"dataframe_records": model.rows(model.values[0])})  # it waits for others, which do not come
    assert answer.status == 504 and "4 seconds" in answer.json["message"]
    assert strict.metric("warmstart_requests_waiting") == 0
    rows = strict.predictions(model.rows(*model.values[1:4]))  # a full batch
    expected = model.expected().predict(model.values[1:4])
    np.testing.assert_allclose([row["p_<i>dog"] for row in rows], expected["p_<i>dog"], atol=1e-5)


def test_a_full_server_says_so_and_on_sigterm_answers_what_it_took(serving, registered):
    model = registered.models["text"]
    with serving("text@champion", "--max-requests", 8, "--batch-wait", 10000) as server, ThreadPoolExecutor(8) as clients:
        rows = [model.rows(model.values[number % 4]) for number in range(8)]
        answers = [clients.submit(server.ask, "/invocations", {"dataframe_records": one}) for one in rows]
        server.until(lambda: server.metric("warmstart_requests_waiting") == 8)
        refused = server.ask("/invocations", {"dataframe_records": rows[0]})
        assert refused.status == 503 and refused.headers["Retry-After"] == "1"
        server.running.signal(signal.SIGTERM)
        expected = model.expected().predict(model.values)["p_<i>dog"].tolist()
        for number, one in enumerate(answers):
            assert one.result().status == 200
            assert one.result().json["predictions"][0]["p_<i>dog"] == pytest.approx(expected[number % 4], abs=1e-5)
        done = server.running.wait()
    assert done.code == 0 and "Traceback" not in done.err
    assert done.out.count("\n") == 1 and done.out.startswith("serving models:/text/1 (text@champion) at http://127.0.0.1:")


def test_what_ends_it_before_it_serves(warmstart, registered, tmp_path):
    def refused(*words, arguments, **more):
        warmstart(registered.folder, "serve", "--port", 0, *arguments, **more).refused(list(words))

    refused("models:/none@champion", "is not in the registry", arguments=["none@champion"])
    refused("models:/text@none", "is not in the registry", arguments=["models:/text@none"])
    refused("expected models:/NAME@ALIAS", arguments=["text"])
    refused("WARMSTART_SERVE_TOKEN", "--host 0.0.0.0", arguments=["text@champion", "--host", "0.0.0.0"])
    refused("belong together", arguments=["text@champion", "--sample", "0.5"])
    (tmp_path / "file").touch()
    refused("cannot keep samples", arguments=["text@champion", "--sample", "0.5", "--samples", tmp_path / "file"])
    with socket.create_server(("127.0.0.1", 0)) as other:
        refused("cannot listen on 127.0.0.1", "--port", arguments=["none@champion", "--port", other.getsockname()[1]])
