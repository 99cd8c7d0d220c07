"""netstack-ingress with the real HAProxy: what a client gets, and that no change cuts or reloads anything."""

from __future__ import annotations

import random
import ssl
import time
from pathlib import Path

import pytest

from instruments.ingress_objects import endpoints, ingress, key_pair, secret, service
from instruments.ingress_web import Web
from lab.shell import run, wait_until

pytestmark = pytest.mark.root

A, B, C = "127.0.1.1", "127.0.1.2", "127.0.1.3"


def app(web: Web, name: str, *addresses: str) -> None:
    """A Service with these endpoints on port 8080."""
    web.apply(name, service(name), endpoints(name, *(f"{address}:8080" for address in addresses)))


def test_hosts_and_paths_reach_their_backends(tmp_path: Path) -> None:
    with Web(tmp_path) as web:
        web.backend(A), web.backend(B)
        app(web, "one", A)
        app(web, "two", B)
        web.apply(
            "ingress",
            ingress(
                "site",
                ("ha.home.lab", "/", "one"),
                ("ha.home.lab", "/api", "two"),
                ("ha.home.lab", "/x", "Exact", "two:80"),
                ("ha.home.lab", "/!$&'()*+,;=:@", "two"),
                ("ha.home.lab", "/%3Fa%25b%C3%A9", "two"),
            ),
            ingress("wild", ("*.apps.lab", "/", "two")),
        )
        web.start()
        one, two = f"{A}:8080", f"{B}:8080"
        answers = {
            ("ha.home.lab", "/"): one,
            ("HA.home.lab:80", "/"): one,
            ("ha.home.lab.", "/"): one,
            ("ha.home.lab", "/api"): two,
            ("ha.home.lab", "/api/v1?q=/"): two,
            ("ha.home.lab", "/apifoo"): one,
            ("ha.home.lab", "/x"): two,
            ("ha.home.lab", "/x/"): one,
            ("grafana.apps.lab", "/"): two,
            ("a.b.apps.lab", "/"): "404",
            ("apps.lab", "/"): "404",
            ("nobody.lab", "/"): "404",
            # the same routes whatever a client does to the path
            ("ha.home.lab", "/y/../api/x"): two,
            ("ha.home.lab", "//api"): two,
            ("ha.home.lab", "/%61pi"): two,
            ("ha.home.lab", "/y/%2e%2E/api"): two,
            ("ha.home.lab", "/api%2Fv1"): two,
            ("ha.home.lab", "/./x"): two,
            ("ha.home.lab", "/!$&'()*+,;=:@"): two,
            ("ha.home.lab", "/%21%24%26%27%28%29%2a%2B%2C%3B%3D%3A%40"): two,
            ("ha.home.lab", "/%3fa%25b%c3%a9"): two,
            ("ha.home.lab", "/x%3F"): one,
            ("ha.home.lab", "/%2540pi"): one,
            ("ha.home.lab", "/..%2fapi"): "400",
            ("ha.home.lab", "/a%zz"): "400",
            ("ha.home.lab/api", "/"): "400",
            ("*.apps.lab", "/"): two,
            ("_", "/"): "404",
        }
        assert {asked: web.get(*asked).backend for asked in answers} == answers
        assert web.get("ha.home.lab", "/y/%2e%2E/api//?a=%20").said["path"] == "/y/%2e%2E/api//?a=%20"
        unknown = web.get("nobody.lab")
        assert unknown.headers["content-type"] == "text/html"
        assert "<center><h1>404 Not Found</h1></center>\r\n" in unknown.text


def test_backends_receive_what_ingress_nginx_sends(tmp_path: Path) -> None:
    with Web(tmp_path) as web:
        web.backend(A)
        app(web, "one", A)
        web.apply("ingress", ingress("site", ("ha.home.lab", "/", "one")))
        web.start()
        forged = {"X-Forwarded-For": "1.2.3.4", "X-Forwarded-Proto": "https", "X-Real-IP": "1.2.3.4", "Proxy": "evil"}
        headers = web.get("ha.home.lab:80", headers=forged).said["headers"]
        expected = {
            "host": "ha.home.lab:80",
            "x-forwarded-for": "127.0.0.1",
            "x-real-ip": "127.0.0.1",
            "x-forwarded-host": "ha.home.lab:80",
            "x-forwarded-port": "80",
            "x-forwarded-proto": "http",
            "x-forwarded-scheme": "http",
            "x-scheme": "http",
            "x-original-forwarded-for": "1.2.3.4",
        }
        assert {name: headers.get(name) for name in expected} == expected
        assert "proxy" not in headers
        # What a WSGI or CGI program cannot tell from the headers above; nginx drops it as well.
        forged = {"X_Forwarded_For": "1.2.3.4", "x.real.ip": "1.2.3.4", "X-Original-Forwarded-For": "1.2.3.4"}
        headers = web.get("ha.home.lab", headers={"X-Fine": "yes", **forged}).said["headers"]
        assert headers["x-fine"] == "yes"
        assert "1.2.3.4" not in headers.values()
        assert len(headers["x-request-id"]) == 36
        assert web.get("ha.home.lab", headers={"X-Request-ID": "mine"}).said["headers"]["x-request-id"] == "mine"


def test_a_service_without_endpoints_or_none_at_all_is_503_and_said(tmp_path: Path) -> None:
    with Web(tmp_path) as web:
        web.backend(A)
        app(web, "one", A)
        app(web, "empty")
        web.apply(
            "ingress",
            ingress(
                "site",
                ("ha.home.lab", "/", "one"),
                ("ha.home.lab", "/empty", "empty"),
                ("ha.home.lab", "/gone", "gone"),
            ),
        )
        web.start()
        assert [web.get("ha.home.lab", path).backend for path in ("/", "/empty", "/gone")] == [
            f"{A}:8080",
            "503",
            "503",
        ]
        conditions = {item["type"]: item for item in web.ingress_status("site")["conditions"]}
        assert conditions["ResolvedRefs"] == {
            "type": "ResolvedRefs",
            "status": "False",
            "reason": "BackendNotFound",
            "message": "spec.rules[2].http.paths[0].backend.service.name: Service default/gone does not exist",
        }
        assert conditions["Programmed"]["reason"] == "NoReadyEndpoints"
        assert conditions["Accepted"]["status"] == "True"


def test_endpoints_and_routes_change_under_a_living_connection(tmp_path: Path) -> None:
    with Web(tmp_path) as web:
        web.backend(A), web.backend(B)
        app(web, "one", A)
        web.apply("ingress", ingress("site", ("ha.home.lab", "/", "one")))
        web.start()
        workers = web.workers
        connection = web.connection()
        assert web.get_on(connection, "ha.home.lab").backend == f"{A}:8080"
        sock = connection.sock
        app(web, "one", B)
        web.serves("ha.home.lab", "/", f"{B}:8080")
        web.apply("more", ingress("more", ("ha.home.lab", "/more", "none")))
        web.serves("ha.home.lab", "/more", "503")
        web.remove("more")
        web.serves("ha.home.lab", "/more", f"{B}:8080")
        assert web.get_on(connection, "ha.home.lab").backend == f"{B}:8080"
        assert connection.sock is sock
        assert web.workers == workers
        connection.close()


def test_a_websocket_outlives_a_hundred_changes(tmp_path: Path) -> None:
    with Web(tmp_path) as web:
        web.backend(A), web.backend(B)
        app(web, "one", A)
        web.apply("ingress", ingress("site", ("ha.home.lab", "/", "one")))
        web.start()
        workers = web.workers
        client = web.websocket("ha.home.lab", "/api/websocket")
        for number in range(100):
            web.apply("other", ingress("other", (f"h{number}.lab", "/", "one")))
            if number % 10 == 0:
                app(web, "one", *((A, B) if number % 20 else (B,)))  # even its own endpoint comes and goes
            wait_until(lambda host=f"h{number}.lab": web.get(host).status == 200, f"change {number}")
            client.send(f"still here {number}")
            assert client.recv() == f"still here {number}"
        assert web.workers == workers
        client.close()


def test_five_hundred_routes_arrive_whole(tmp_path: Path) -> None:
    with Web(tmp_path) as web:
        web.backend(A)
        app(web, "one", A)
        web.start()
        rules = [(f"host-{number}.some-long-domain.home.lab", "/path", "one") for number in range(500)]
        started = time.monotonic()
        web.apply("many", ingress("many", *rules))
        web.serves(rules[-1][0], "/path", f"{A}:8080")
        print(f"500 routes served after {time.monotonic() - started:.3f} s")
        # 500 prefixes, the 404 of each of the 500 hosts, and the catch-all; over 60 KB, so several payloads
        assert web.status()["routes"] == 1001
        assert all(web.get(host, "/path/x").backend == f"{A}:8080" for host, _, _ in rules[::25])
        web.remove("many")
        web.serves(rules[0][0], "/path", "404")
        assert web.status()["routes"] == 1


def test_a_broken_ingress_keeps_itself_and_the_rest(tmp_path: Path) -> None:
    with Web(tmp_path) as web:
        web.backend(A), web.backend(B)
        app(web, "one", A)
        app(web, "two", B)
        web.apply("first", ingress("first", ("ha.home.lab", "/", "one")))
        web.apply("second", ingress("second", ("two.lab", "/", "two")))
        web.start()
        broken = ingress("first", ("ha.home.lab", "/", "two"))
        broken["spec"]["rules"][0]["http"]["paths"][0]["pathTyp"] = "Prefix"
        web.apply("first", broken)
        wait_until(lambda: bool(web.status()["broken"]), "the broken object in the status")
        (line,) = web.status()["broken"]
        assert "Ingress default/first: spec.rules[0].http.paths[0].pathTyp: unknown field" in line
        (web.manifests / "second.yaml").write_text("{ this is: no yaml")
        wait_until(lambda: len(web.status()["broken"]) == 2, "the broken file in the status")
        assert web.get("ha.home.lab").backend == f"{A}:8080"
        assert web.get("two.lab").backend == f"{B}:8080"
        web.apply("first", ingress("first", ("ha.home.lab", "/", "two")))
        web.serves("ha.home.lab", "/", f"{B}:8080")


def test_haproxy_killed_comes_back_from_the_files_alone(tmp_path: Path) -> None:
    with Web(tmp_path) as web:
        web.backend(A), web.backend(B)
        chain, key = key_pair("ha.home.lab")
        app(web, "one", A)
        web.start()
        app(web, "one", B)  # in the slots by the socket, so only the files know it after a restart
        web.apply("tls", secret("cert", chain, key))
        web.apply(
            "ingress",
            ingress("site", ("ha.home.lab", "/", "one"), tls=[{"hosts": ["ha.home.lab"], "secretName": "cert"}]),
        )
        wait_until(lambda: web.get("ha.home.lab").status == 308, "the redirect")
        web.stop_daemon(kill=True)
        web.kill_haproxy()
        web.start_haproxy()
        assert web.get("ha.home.lab", tls=True, trust=chain).backend == f"{B}:8080"
        assert web.get("nobody.lab").status == 404
        web.start_daemon()
        wait_until(lambda: bool(web.status()["in_step"]), "the daemon finds nothing to change")
        assert web.status()["changes"] == 0


def test_without_the_daemon_haproxy_goes_on_and_a_new_one_takes_over(tmp_path: Path) -> None:
    with Web(tmp_path) as web:
        web.backend(A), web.backend(B)
        app(web, "one", A)
        web.apply("ingress", ingress("site", ("ha.home.lab", "/", "one")))
        web.start()
        workers = web.workers
        client = web.websocket("ha.home.lab")
        web.stop_daemon(kill=True)
        assert web.get("ha.home.lab").backend == f"{A}:8080"
        app(web, "one", B)
        web.start_daemon()
        web.serves("ha.home.lab", "/", f"{B}:8080")
        client.send("still here")
        assert client.recv() == "still here"
        assert web.workers == workers
        client.close()


def test_killed_at_any_moment_the_daemon_leaves_files_that_start_haproxy(tmp_path: Path) -> None:
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    chance = random.Random(seed)
    with Web(tmp_path) as web:
        web.backend(A)
        app(web, "one", A)
        web.start()
        for turn in range(6):
            hosts = [f"h{number}.lab" for number in range(turn, turn + 30)]
            tls = [{"hosts": [host], "secretName": f"cert{turn}"} for host in hosts[::2]]
            web.apply("tls", secret(f"cert{turn}", *key_pair(*hosts)))
            web.apply("many", ingress("many", *((host, "/", "one") for host in hosts), tls=tls))
            time.sleep(chance.uniform(0, 0.3))  # not waiting for anything: the moment is the test
            web.stop_daemon(kill=True)
            web.kill_haproxy()
            web.start_haproxy()
            web.start_daemon()
            wait_until(lambda host=hosts[-1]: web.get(host).status in (200, 308), "all of it")


def test_the_slice_of_the_service_follows_haproxy(tmp_path: Path) -> None:
    ports = [{"name": "http", "port": 80, "targetPort": "http"}, {"name": "https", "port": 443, "targetPort": "https"}]
    with Web(tmp_path) as web:
        controller = service("ingress-nginx-controller", *ports, namespace="ingress-nginx", type="LoadBalancer")
        controller["status"] = {"loadBalancer": {"ingress": [{"ip": "192.168.86.18"}]}}
        web.apply("controller", controller)
        web.apply("ingress", ingress("site", ("ha.home.lab", "/", "one")))
        web.start()
        path = web.manifests / "endpointslice.ingress-nginx.ingress-nginx-controller-n1.yaml"
        wait_until(lambda: path.exists() and "ready: true" in path.read_text(), "a ready endpoint")
        wait_until(lambda: web.ingress_status("site") is not None, "the status")
        assert web.ingress_status("site")["loadBalancer"] == {"ingress": [{"ip": "192.168.86.18"}]}
        web.kill_haproxy()
        wait_until(lambda: "ready: false" in path.read_text(), "the endpoint not ready")
        web.start_haproxy()
        wait_until(lambda: "ready: true" in path.read_text(), "the endpoint ready again")


def test_tls_by_name_renewed_without_a_reload(tmp_path: Path) -> None:
    with Web(tmp_path) as web:
        web.backend(A)
        app(web, "one", A)
        chain, key = key_pair("ha.home.lab", "*.apps.lab")
        web.apply("tls", secret("cert", chain, key))
        tls = [{"hosts": ["ha.home.lab", "*.apps.lab"], "secretName": "cert"}]
        web.apply("ingress", ingress("site", ("ha.home.lab", "/", "one"), ("*.apps.lab", "/", "one"), tls=tls))
        web.apply("plain", ingress("plain", ("plain.lab", "/", "one")))
        web.start()
        workers = web.workers
        answer = web.get("ha.home.lab", tls=True, trust=chain)
        assert answer.said["headers"]["x-forwarded-proto"] == "https"
        assert answer.said["headers"]["x-forwarded-port"] == "443"
        assert answer.headers["strict-transport-security"] == "max-age=31536000; includeSubDomains"
        assert web.get("x.apps.lab", tls=True, trust=chain).status == 200
        redirect = web.get("ha.home.lab:80", "/a?b=c")
        assert (redirect.status, redirect.headers["location"]) == (308, "https://ha.home.lab/a?b=c")
        assert web.get("ha.home.lab", "/.well-known/acme-challenge/x").status == 200
        plain = web.get("plain.lab", tls=True)
        assert plain.status == 200 and "strict-transport-security" not in plain.headers
        new_chain, new_key = key_pair("ha.home.lab", "*.apps.lab")
        web.apply("tls", secret("cert", new_chain, new_key))
        wait_until(lambda: new_chain == _served(web, "ha.home.lab"), "the renewed certificate")
        broken = secret("cert", new_chain, key)
        web.apply("tls", broken)
        wait_until(
            lambda: web.ingress_status("site")["conditions"][1]["reason"] == "InvalidCertificateRef", "the bad key said"
        )
        assert "tls.key: does not belong to tls.crt" in web.ingress_status("site")["conditions"][1]["message"]
        assert web.get("ha.home.lab", tls=True).status == 200
        web.apply("tls", secret("cert", *key_pair("ha.home.lab", rsa_bits=1024)))
        wait_until(lambda: "too small" in web.ingress_status("site")["conditions"][1]["message"], "the weak key said")
        assert web.workers == workers
        web.kill_haproxy()
        web.start_haproxy()
        assert web.get("ha.home.lab", tls=True).status == 200


def test_a_hosts_own_certificate_goes_before_a_default_one_with_the_same_names(tmp_path: Path) -> None:
    with Web(tmp_path, default_certificate="default/main") as web:
        web.backend(A)
        app(web, "one", A)
        own, wild, main, other = (
            key_pair(*names) for names in (("ha.lab",), ("*.lab",), ("ha.lab", "*.lab"), ("ha.lab", "*.lab"))
        )
        web.apply("main", secret("main", *main))
        web.apply("tls", secret("own", *own), secret("wild", *wild))
        web.apply(
            "ingress",
            ingress("site", ("ha.lab", "/", "one"), tls=[{"hosts": ["ha.lab"], "secretName": "own"}]),
            ingress("wild", ("*.lab", "/", "one"), tls=[{"hosts": ["*.lab"], "secretName": "wild"}]),
        )
        web.start()
        names = ("ha.lab", "tv.lab", "x.y.lab")
        assert [_served(web, name) for name in names] == [own[0], wild[0], main[0]]
        web.apply("main", secret("main", *other))
        wait_until(lambda: _served(web, "x.y.lab") == other[0], "the renewed default certificate")
        assert [_served(web, name) for name in names] == [own[0], wild[0], other[0]]


def _served(web: Web, name: str) -> str:
    connection = web.connection(tls=name)
    try:
        assert isinstance(connection.sock, ssl.SSLSocket)
        der = connection.sock.getpeercert(binary_form=True)
        assert der is not None
        return ssl.DER_cert_to_PEM_cert(der)
    finally:
        connection.close()


def test_http2_and_http11_on_one_port(tmp_path: Path) -> None:
    with Web(tmp_path) as web:
        web.backend(A)
        app(web, "one", A)
        web.apply("ingress", ingress("site", ("ha.home.lab", "/", "one")))
        web.start()
        for flag, version in (("--http2", "2"), ("--http1.1", "1.1")):
            asked = ["curl", "-sk", flag, "--resolve", "ha.home.lab:443:127.0.0.1", "-o", "/dev/null", "-w"]
            done = run(
                [
                    "nsenter",
                    f"--net=/run/netns/{web.netns}",
                    *asked,
                    "%{http_version} %{http_code}",
                    "https://ha.home.lab/",
                ]
            )
            assert done.stdout == f"{version} 200"


def test_limits_of_an_ingress(tmp_path: Path) -> None:
    with Web(tmp_path) as web:
        web.backend(A)
        app(web, "one", A)
        web.apply(
            "ingress",
            ingress("small", ("small.lab", "/", "one"), annotations={"proxy-body-size": "1k"}),
            ingress("any", ("any.lab", "/", "one"), annotations={"proxy-body-size": "0"}),
            ingress("plain", ("plain.lab", "/", "one")),
        )
        web.start()
        fits = {"small.lab": 1 << 10, "plain.lab": 1 << 20, "any.lab": 3 << 20}
        for host, size in fits.items():
            assert web.get(host, method="POST", body=b"x" * size).said["body"] == size
        for host in ("small.lab", "plain.lab"):  # refused by what is announced
            assert web.get(host, method="POST", headers={"Content-Length": str(fits[host] + 1)}).status == 413


def test_a_dead_endpoint_costs_time_at_most_but_no_error(tmp_path: Path) -> None:
    gone = "10.244.3.9"
    with Web(tmp_path, connect_timeout_s=0.3) as web:
        web.backend(A)
        web.ip("link add v0 type veth peer name v1", "link set v0 up", "link set v1 up")
        web.ip(f"route add {gone}/32 dev v0", f"neigh add {gone} lladdr 02:00:00:00:00:09 dev v0 nud permanent")
        app(web, "one", A, B)  # B's node lives, but nobody listens there
        app(web, "two", A, gone)  # packets to this one vanish
        web.apply("ingress", ingress("site", ("ha.home.lab", "/", "one"), ("two.lab", "/", "two")))
        web.start()
        refused = _durations(web, "ha.home.lab", 20, f"{A}:8080")
        assert sum(duration > 0.25 for duration in refused) <= 1  # the one that found it dead for good
        durations = _durations(web, "two.lab", 20, f"{A}:8080")
        assert sum(duration > 0.25 for duration in durations) == 4  # then it is known to be dead
        assert durations[-1] < 1.0  # one time-out, not one after the other
        web.backend(B)
        web.serves("ha.home.lab", "/", f"{B}:8080")  # found alive by a check


def _durations(web: Web, host: str, count: int, backend: str) -> list[float]:
    """Seconds of requests that this backend answered, sorted."""
    durations = []
    for _ in range(count):
        started = time.monotonic()
        assert web.get(host).backend == backend
        durations.append(time.monotonic() - started)
    return sorted(durations)


def test_what_another_hand_changed_is_found_by_reading_back_and_mended(tmp_path: Path) -> None:
    with Web(tmp_path, reloads=1) as web:
        web.backend(A)
        app(web, "one", A)
        web.apply("ingress", ingress("site", ("ha.home.lab", "/", "one")))
        web.start()
        client = web.websocket("ha.home.lab")
        web.order("set server p0/s0 state maint")
        assert web.get("ha.home.lab").status == 503
        web.apply("more", ingress("more", ("more.lab", "/", "one")))
        web.serves("more.lab", "/", f"{A}:8080")
        assert web.status()["reloads"] == ["the state read back is not the wanted one"]
        client.send("still here")
        assert client.recv() == "still here"
        client.close()


def test_growing_beyond_the_pools_reloads_once_and_cuts_nothing(tmp_path: Path) -> None:
    with Web(tmp_path, reloads=1, pools=2, slots=2) as web:
        web.backend(A)
        app(web, "one", A)
        web.apply("ingress", ingress("site", ("ha.home.lab", "/", "one")))
        web.start()
        client = web.websocket("ha.home.lab")
        for name in ("two", "three"):
            app(web, name, A)
        web.apply("more", ingress("more", ("two.lab", "/", "two"), ("three.lab", "/", "three")))
        web.serves("three.lab", "/", f"{A}:8080")
        client.send("still here")
        assert client.recv() == "still here"
        assert web.status()["pools"] == {"used": 3, "size": 4}
        client.close()
