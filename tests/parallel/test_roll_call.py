"""Admission to a run: strangers at the port of process 0, tokens, and processes that differ."""

import concurrent.futures
import contextlib
import json
import pathlib
import socket
import threading
import time
from collections.abc import Iterator

import pytest
from test_rendezvous import free_port, place

from jworld.parallel import agreement, channels, rendezvous, roll_call
from jworld.utils import errors


@pytest.fixture(autouse=True)
def token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(roll_call.TOKEN, "secret")


@contextlib.contextmanager
def first_process(port: int, *, timeout: float = 20) -> Iterator["concurrent.futures.Future[rendezvous.Peers]"]:
    """Let process 0 of 2 wait for process 1, which connects at the end."""
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        first = pool.submit(rendezvous.Peers.connect, place(port, 0, 2), timeout)
        yield first
        assert isinstance(rendezvous.Peers.connect(place(port, 1, 2), timeout), rendezvous.Peers)
        assert isinstance(first.result(), rendezvous.Peers)


def call(port: int) -> socket.socket:
    """Connect to process 0 once it listens."""
    deadline = time.monotonic() + 10
    while True:
        try:
            return socket.create_connection(("localhost", port))
        except OSError:
            assert time.monotonic() < deadline
            time.sleep(0.05)


def read_all(client: socket.socket) -> bytes:
    """Return what a client receives until it is disconnected."""
    received = b""
    client.settimeout(10)
    with contextlib.suppress(ConnectionResetError):
        while part := client.recv(4096):
            received += part
    return received


@pytest.mark.parametrize(
    "request_",
    [
        b"GET / HTTP/1.1\n",
        json.dumps([1, 2]).encode() + b"\n",
        b'{"index": "1"}\n',
        b'{"index": 1, "count": 2, "host": "a", "nonce": [], "proof": "x"}\n',
        b"[" * 4000 + b"\n",
        b"x" * 100_000,
    ],
)
def test_strangers_are_dropped_and_logged(request_: bytes, capfd: pytest.CaptureFixture) -> None:
    port = free_port()
    with first_process(port), call(port) as client, contextlib.suppress(OSError):
        client.sendall(request_)
        assert b"proof" not in read_all(client)
    assert capfd.readouterr().err.startswith("dropped a connection from 127.0.0.1: it ")


def test_a_trickle_of_bytes_delays_nobody(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture) -> None:
    monkeypatch.setattr(roll_call, "REPLY_SECONDS", 1.0)
    port = free_port()
    with first_process(port):
        client = call(port)
        began, sent = time.monotonic(), 0

        def trickle() -> None:
            nonlocal sent
            with contextlib.suppress(OSError):
                while time.monotonic() < began + 8:
                    client.sendall(b"x")
                    sent += 1
                    time.sleep(0.1)

        thread = threading.Thread(target=trickle)
        thread.start()
        read_all(client)
        assert time.monotonic() < began + 5
        client.close()
        thread.join()
    assert sent > 5
    assert "it did not prove within 1 s that it belongs to this run" in capfd.readouterr().err


def test_a_flood_delays_nobody(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture) -> None:
    monkeypatch.setattr(roll_call, "_UNPROVEN", 20)
    monkeypatch.setattr(roll_call, "REPLY_SECONDS", 2.0)
    port = free_port()
    with first_process(port), contextlib.ExitStack() as stack:
        for _ in range(60):
            stack.enter_context(call(port))
    lines = capfd.readouterr().err.splitlines()
    assert len(lines) <= 20
    assert all(line.startswith("dropped a connection from 127.0.0.1: ") for line in lines)


def test_a_process_without_the_token_gets_no_seat(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture
) -> None:
    port = free_port()
    with first_process(port):
        call(port).close()
        monkeypatch.setenv(roll_call.TOKEN, "guess")
        process = place(port, 1, 2)
        with pytest.raises(errors.UserError, match=r"process 0 at localhost:\d+ has another JWORLD_TOKEN"):
            rendezvous.Peers.connect(process, 10)
        # A wrong count, or a wrong index, from a stranger ends nothing either.
        with pytest.raises(errors.UserError, match="JWORLD_TOKEN"):
            rendezvous.Peers.connect(place(port, 7, 9), 10)
        monkeypatch.setenv(roll_call.TOKEN, "secret")
    assert "it came as process 1 without the JWORLD_TOKEN of this run" in capfd.readouterr().err


def test_a_false_process_0_is_not_believed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Something else listens on the port: it has no token, so its messages end nobody with its own words."""
    monkeypatch.setattr(roll_call, "REPLY_SECONDS", 0.3)
    with socket.create_server(("localhost", 0)) as server:
        port = server.getsockname()[1]

        def answer() -> None:
            with contextlib.suppress(OSError):
                while True:
                    channel = channels.Channel(server.accept()[0])
                    channel.send(nonce="a")
                    channel.send(proof="0" * 64)
                    channel.send(end="run this command", code=0)

        threading.Thread(target=answer, daemon=True).start()
        with pytest.raises(errors.RestartError, match=r"did not answer at localhost:\d+ within 1 s \(it closed"):
            rendezvous.Peers.connect(place(port, 1, 2), 1)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("optimizer", {"learning_rate": 0.1}, r"config\.optimizer\.learning_rate 0\.1 \(process 0: 0\.01\)"),
        ("seed", 1, r"config\.seed 1 \(process 0: 0\)"),
        ("extra", "x" * 200, r"config\.extra \"x{56}\.\.\. \(process 0: none\)"),
    ],
)
def test_processes_with_another_config_are_named(key: str, value: object, message: str) -> None:
    port, config = free_port(), {"seed": 0, "optimizer": {"learning_rate": 0.01}, "data": {"threads": 1}}
    facts = [agreement.of_config(config)] * 2 + [agreement.of_config(config | {key: value, "data": {"threads": 9}})]
    with concurrent.futures.ThreadPoolExecutor(3) as pool:
        found = [
            pool.submit(rendezvous.Peers.connect, place(port, index), 20, facts=facts[index]) for index in range(3)
        ]
    host = socket.gethostname()
    for future in found:
        with pytest.raises(errors.UserError, match=rf"this run differ: process 2 \({host}\) has {message}: start all"):
            future.result()


def test_facts_of_the_program(monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path) -> None:
    facts = agreement.of_program()
    assert len(facts["the code of jworld (hash)"]) == 16
    assert facts["the version of jax"].startswith("0.")
    package = tmp_path / "jworld" / "parallel"
    package.mkdir(parents=True)
    (tmp_path / "jworld" / "a.py").write_text("one")
    monkeypatch.setattr(agreement, "__file__", str(package / "agreement.py"))
    hashes = []
    for text in ("one", "two"):
        (tmp_path / "jworld" / "a.py").write_text(text)
        agreement.code_hash.cache_clear()
        hashes.append(agreement.code_hash())
    agreement.code_hash.cache_clear()
    assert hashes[0] != hashes[1]


def test_many_differences_are_counted() -> None:
    facts = [{}] + [{f"config.{letter}": "1" for letter in "abcdef"}] * 6
    sentence = agreement.differences(facts, lambda index: f"process {index}")
    assert sentence.count("process 0: none") == 16
    assert "config.d 1 (process 0: none) and 2 more; process 2" in sentence
    assert "and 2 more and 2 more: start all" in sentence
    assert agreement.differences([{"a": "1"}] * 3, str) == ""
