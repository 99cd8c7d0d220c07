import errno
import http.client
from collections.abc import Iterator
from pathlib import Path

import pytest

from instruments.api_objects import service
from instruments.apiserver import ApiServer
from netstack.source.client import Client, Garbage, Refused, Unreachable
from netstack.source.credentials import Credentials

SERVICES = "/api/v1/services"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ApiServer]:
    with ApiServer(tmp_path) as running:
        running.put(service("a"))
        yield running


@pytest.fixture
def client(server: ApiServer) -> Iterator[Client]:
    client = Client(Credentials(str(server.kubeconfig)))
    yield client
    client.close()


def test_a_list_and_an_error_in_the_servers_words(server: ApiServer, client: Client) -> None:
    assert [item["metadata"]["name"] for item in client.get(SERVICES)["items"]] == ["a"]
    server.forbidden.add("Service")
    with pytest.raises(Refused, match=r"^403 Forbidden: Service is forbidden$") as caught:
        client.get(SERVICES)
    assert caught.value.code == 403


def test_retry_after_is_handed_on(server: ApiServer, client: Client) -> None:
    server.fault, server.retry_after = lambda request: 429, 17
    with pytest.raises(Refused, match="429 Too Many Requests") as caught:
        client.get(SERVICES)
    assert caught.value.retry_after_s == 17
    server.retry_after = 86_400
    with pytest.raises(Refused) as caught:
        client.get(SERVICES)
    assert caught.value.retry_after_s == 60, "who is stale looks again within a minute"


@pytest.mark.parametrize(
    ("fault", "kind", "words"),
    [
        ("garbage", Garbage, "the answer is not JSON"),
        ("cut", Unreachable, "the connection was cut within an answer"),
        ("drop", Unreachable, "closed|reset|EOF"),
    ],
)
def test_half_and_wrong_answers(server: ApiServer, client: Client, fault: str, kind: type, words: str) -> None:
    server.fault = lambda request: fault
    with pytest.raises(kind, match=words):
        client.get(SERVICES)
    server.fault = lambda request: None
    assert client.get(SERVICES)["items"]


def test_an_idle_connection_that_the_server_closed_is_made_anew(server: ApiServer, client: Client) -> None:
    client.get(SERVICES)
    server.stop()
    server.start()
    assert client.get(SERVICES)["items"]
    server.stop()
    with pytest.raises(Unreachable, match=r"refused|reset"):
        client.get(SERVICES)


def test_a_watch_gives_lines_as_they_come_and_half_a_line_is_none(server: ApiServer, client: Client) -> None:
    query = {"watch": "1", "resourceVersion": "0", "timeoutSeconds": "60"}
    lines = client.lines(SERVICES, query, 10.0)
    assert next(lines) == b""
    assert b'"ADDED"' in next(lines)
    lines.close()
    server.fault = lambda request: "cut"
    lines = client.lines(SERVICES, query, 10.0)
    assert next(lines) == b""
    with pytest.raises(Unreachable, match="cut"):
        next(lines)


def test_a_silent_watch_ends_without_a_failure_and_abort_ends_a_waiting_one(server: ApiServer, client: Client) -> None:
    server.bookmark_s = 60.0
    query = {"watch": "1", "resourceVersion": str(server.version), "timeoutSeconds": "60"}
    assert list(client.lines(SERVICES, query, 0.1)) == [b""]
    lines = client.lines(SERVICES, query, 60.0)
    next(lines)
    client.abort()
    with pytest.raises((Unreachable, Garbage, StopIteration)):
        next(lines)


def test_a_peer_that_the_kernel_has_given_up_is_away_and_not_silent(
    server: ApiServer, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    def give_up(*_unused: object) -> bytes:
        raise OSError(errno.ETIMEDOUT, "Connection timed out")  # after 35 s without a word from its host

    lines = client.lines(SERVICES, {"watch": "1", "resourceVersion": "1", "timeoutSeconds": "30"}, 60.0)
    assert next(lines) == b""
    monkeypatch.setattr(http.client.HTTPResponse, "readline", give_up)
    with pytest.raises(Unreachable, match="no answer in time"):
        next(lines)


def test_an_unknown_certificate_is_said_so_and_a_rotated_one_is_used(server: ApiServer, client: Client) -> None:
    server.accepted = {"renewed"}
    with pytest.raises(
        Refused, match=r"401 Unauthorized: the credentials in .*kubeconfig are expired, revoked or unknow"
    ):
        client.get(SERVICES)
    good = server.write_kubeconfig("renewed").read_text()
    server.kubeconfig.write_text(good.replace("current-context: x", "current-context: y"))
    with pytest.raises(Refused, match="and those that are there now are not usable: contexts: there is no context 'y'"):
        client.get(SERVICES)
    server.write_kubeconfig("renewed")
    assert client.get(SERVICES)["items"]


def test_another_authority_is_not_talked_to(server: ApiServer, tmp_path: Path) -> None:
    stranger = ApiServer(tmp_path / "other")
    stranger.port = server.port
    with pytest.raises(Unreachable, match="certificate verify failed"):
        Client(Credentials(str(stranger.kubeconfig))).get(SERVICES)


def test_without_credentials_the_reason_is_theirs(tmp_path: Path) -> None:
    with pytest.raises(Unreachable, match=r"no usable credentials: kubeconfig: .*No such file"):
        Client(Credentials(str(tmp_path / "none"))).get(SERVICES)
