from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from instruments.ingress_objects import (
    Cluster,
    Raw,
    endpoints,
    ingress,
    ingress_class,
    key_pair,
    secret,
    service,
)
from netstack.core.address import pack
from netstack.ingress.routes import Problem, Target

ONE, TWO = "default/one:80", "default/two:80"


def app(name: str, namespace: str = "default", address: str = "10.244.1.5") -> list[Raw]:
    return [service(name, namespace=namespace), *endpoints(name, f"{address}:8080", namespace=namespace)]


APPS = [*app("one"), *app("two", address="10.244.1.6")]


# Hosts and paths


def test_without_objects_everything_is_404() -> None:
    assert Cluster().answer("ha.home.lab", "/") == 404


@pytest.mark.parametrize(
    ("kind", "path", "matches", "others"),
    [
        ("Exact", "/foo", ["/foo"], ["/foo/", "/FOO", "/foobar", "/"]),
        ("Exact", "/foo/", ["/foo/"], ["/foo", "/foo/x"]),
        ("Exact", "/", ["/"], ["/x"]),
        ("Prefix", "/foo", ["/foo", "/foo/", "/foo/x"], ["/foobar", "/FOO", "/"]),
        ("Prefix", "/foo/", ["/foo", "/foo/", "/foo/x"], ["/foobar"]),
        ("Prefix", "/", ["/", "/x", "/x/y"], []),
        ("ImplementationSpecific", "/foo", ["/foo", "/foo/x"], ["/foobar"]),
        ("Prefix", "/%7Euser/caf%c3%a9", ["/~user/caf%C3%A9"], ["/~user"]),
        ("Prefix", "/%40home/%3a%2B%3F", ["/@home/:+%3F"], ["/@home", "/@home/:"]),
    ],
)
def test_path_types(kind: str, path: str, matches: list[str], others: list[str]) -> None:
    cluster = Cluster(APPS, ingress("site", ("ha.lab", path, kind, "one")))
    assert [cluster.answer("ha.lab", item) for item in matches] == [ONE] * len(matches)
    assert [cluster.answer("ha.lab", item) for item in others] == [404] * len(others)


def test_exact_before_prefix_and_the_longer_prefix_first() -> None:
    rules = ("ha.lab", "/a", "Exact", "two"), ("ha.lab", "/a", "one"), ("ha.lab", "/a/b", "two"), ("ha.lab", "/", "one")
    cluster = Cluster(APPS, ingress("site", *rules))
    answers = [cluster.answer("ha.lab", path) for path in ("/a", "/a/", "/a/c", "/a/b", "/a/b/c", "/x")]
    assert answers == [TWO, ONE, ONE, TWO, TWO, ONE]


def test_hosts_exact_then_wildcard_then_all() -> None:
    rules = ("*.lab", "/", "one"), ("ha.lab", "/ha", "two"), ("", "/all", "two")
    cluster = Cluster(APPS, ingress("site", *rules))
    answers = {
        ("x.lab", "/"): ONE,
        ("a.b.lab", "/"): 404,  # one label only
        ("lab", "/"): 404,
        ("ha.lab", "/ha"): TWO,
        ("ha.lab", "/"): 404,  # a known host keeps its paths: not the wildcard's
        ("ha.lab", "/all"): 404,
        ("other.net", "/all"): TWO,
    }
    assert {asked: cluster.answer(*asked) for asked in answers} == answers


def test_default_backends_of_an_ingress_fill_what_is_free() -> None:
    cluster = Cluster(
        APPS,
        ingress("all", default="one"),
        ingress("hosts", ("ha.lab", "/a", "one"), ("full.lab", "/", "one"), default="two"),
        ingress("later", ("full.lab", "/b", "one"), default="two"),
    )
    assert cluster.answer("nobody.net", "/x") == ONE
    assert [cluster.answer("ha.lab", path) for path in ("/a", "/b")] == [ONE, TWO]
    assert cluster.answer("full.lab", "/") == ONE  # a written / goes before a default
    assert cluster.route("ha.lab", "/b").id == "default/hosts/default/-"


def test_the_default_backend_of_the_daemon_answers_the_rest() -> None:
    cluster = Cluster(APPS, ingress("site", ("ha.lab", "/a", "one")), default_backend="default/two:80")
    assert [cluster.answer("nobody.net", "/"), cluster.answer("ha.lab", "/")] == [TWO, TWO]
    gone = Cluster(default_backend="default/gone:80")
    assert gone.answer("nobody.net", "/") == 503


HOSTS = st.sampled_from(["", "a.lab", "*.lab", "b.a.lab"])
SEGMENTS = st.lists(st.sampled_from(["x", "y", "xy", "%C3%A9"]), max_size=3)
PATHS = st.tuples(SEGMENTS, st.booleans()).map(
    lambda made: "/" + "/".join(made[0]) + ("/" if made[0] and made[1] else "")
)
RULES = st.lists(
    st.tuples(
        HOSTS, PATHS, st.sampled_from(["Exact", "Prefix", "ImplementationSpecific"]), st.sampled_from(["one", "two"])
    ),
    max_size=8,
)


@given(rules=RULES, host=st.sampled_from(["a.lab", "c.lab", "b.a.lab", "lab", "x.net"]), path=PATHS)
def test_the_longest_entry_is_what_the_rules_say(rules: list[tuple[str, ...]], host: str, path: str) -> None:
    """The map's one look-up against the words of the Ingress API: hosts first, then Exact, then the longest Prefix."""
    known = {rule[0] for rule in rules}
    wildcard = "*." + host.partition(".")[2]
    server = host if host in known else wildcard if wildcard in known else ""
    mine = [rule for rule in rules if rule[0] == server]
    exact = [rule for rule in mine if rule[2] == "Exact" and rule[1] == path]
    elements = [part for part in path.split("/") if part]

    def length(rule: tuple[str, ...]) -> int:
        """Path elements of a Prefix rule that covers the path, -1 if it does not."""
        wanted = [part for part in rule[1].split("/") if part]
        return len(wanted) if elements[: len(wanted)] == wanted else -1

    prefixes = [rule for rule in mine if rule[2] != "Exact" and length(rule) >= 0]
    best = exact or sorted(prefixes, key=length, reverse=True)[:1]
    if not exact and best:  # equal ones: the first in the list wins
        best = [rule for rule in prefixes if length(rule) == length(best[0])]
    expected = f"default/{best[0][3]}:80" if best else 404
    assert Cluster(APPS, ingress("site", *rules)).answer(host, path) == expected


# Which Ingresses, and who wins


def test_classes() -> None:
    other = ingress_class("traefik", "traefik.io/ingress-controller")
    mine = ingress_class("web")

    def served(*more: Raw, **fields: object) -> bool:
        site = ingress("site", ("ha.lab", "/", "one"), **fields)  # type: ignore[arg-type]
        return Cluster(APPS, other, mine, site, *more).answer("ha.lab", "/") == ONE

    assert served(class_name="web")
    assert served(class_name="nginx")  # by name: no IngressClass object says anything else
    assert not served(class_name="traefik")
    assert not served(class_name="unknown")
    assert not served(class_name=None)
    assert served(ingress_class("default", default=True), class_name=None)
    assert served(class_name=None, annotations={"kubernetes.io/ingress.class": "nginx"})
    assert not served(class_name="web", annotations={"kubernetes.io/ingress.class": "traefik"})
    assert (
        Cluster(APPS, ingress("site", ("ha.lab", "/", "one"), class_name=None), without_class=True).answer(
            "ha.lab", "/"
        )
        == ONE
    )


def test_a_foreign_class_takes_the_name_nginx_away() -> None:
    foreign = ingress_class("nginx", "nginx.org/ingress-controller")
    cluster = Cluster(APPS, foreign, ingress("site", ("ha.lab", "/", "one")))
    assert cluster.answer("ha.lab", "/") == 404
    assert cluster.routing.problems == {}


def test_the_oldest_wins_and_the_loser_is_told() -> None:
    cluster = Cluster(
        APPS,
        ingress("a-new", ("ha.lab", "/", "one"), ("ha.lab", "/x", "one"), created="2026-02-01T00:00:00Z"),
        ingress("b-old", ("ha.lab", "/", "two"), created="2026-01-01T00:00:00Z"),
        ingress("a-ageless", ("ha.lab", "/", "one")),
    )
    assert [cluster.answer("ha.lab", path) for path in ("/", "/x")] == [TWO, ONE]
    assert cluster.problems("b-old") == []
    message = "ha.lab/ is served by default/b-old already"
    expected = Problem("Accepted", "Conflicted", "spec.rules[0].http.paths[0].backend", message)
    assert cluster.problems("a-new") == [expected]
    assert cluster.problems("a-ageless") == [expected]


def test_who_wants_the_same_backend_otherwise_is_told_that_it_stays_as_the_oldest_wants_it() -> None:
    cluster = Cluster(
        APPS,
        ingress("old", ("ha.lab", "/", "one"), created="2026-01-01T00:00:00Z"),
        ingress("guarded", ("ha.lab", "/", "one"), annotations={"auth-url": "http://auth.lab"}),
        ingress("large", ("ha.lab", "/", "one"), annotations={"proxy-body-size": "8m"}),
        ingress("alike", ("ha.lab", "/", "one")),
    )
    assert cluster.answer("ha.lab", "/") == ONE
    for name in ("guarded", "large"):
        assert "ha.lab/ is served by default/old already" in [item.message for item in cluster.problems(name)]
    assert cluster.problems("alike") == []


@pytest.mark.parametrize(
    ("path", "closed", "open_"),
    [
        ("/admin(/|$)(.*)", ("/admin", "/admin/x"), ("/", "/adminfoo")),
        ("/admin(/.*)?", ("/admin", "/admin/x"), ("/adminfoo",)),
        ("/admin/(.*)", ("/admin/", "/admin/x"), ("/", "/adminfoo")),
        ("/admin$", ("/admin",), ("/adminfoo",)),
        ("/a/adm[a-z]+", ("/a/admin", "/a/x"), ("/", "/b")),
        ("/a/admin.*", ("/a/admin", "/a/adminfoo"), ("/",)),
    ],
)
def test_a_guarded_regular_expression_is_closed_from_where_it_begins(
    path: str, closed: tuple[str, ...], open_: tuple[str, ...]
) -> None:
    cluster = Cluster(
        APPS,
        ingress("open", ("ha.lab", "/", "one"), created="2026-01-01T00:00:00Z"),
        ingress(
            "guarded",
            ("ha.lab", path, "ImplementationSpecific", "one:80"),
            annotations={"auth-url": "http://auth.lab", "use-regex": "true"},
        ),
    )
    assert {asked: cluster.answer("ha.lab", asked) for asked in (*closed, *open_)} == {
        **dict.fromkeys(closed, 503),
        **dict.fromkeys(open_, ONE),
    }


GUARD = {"auth-url": "http://auth.lab", "use-regex": "true"}


@pytest.mark.parametrize("created", ["2026-01-01T00:00:00Z", "2026-03-01T00:00:00Z"])
def test_a_guarded_regular_expression_goes_before_shorter_paths_that_it_may_match(created: str) -> None:
    """As in ingress-nginx, whichever is older; what is longer is asked first there, and stays open."""
    longer = "/app/admin/of-the-whole-site"
    places = [("ha.lab", path, "one") for path in ("/", "/app", "/app/admin", "/apple", longer)]
    cluster = Cluster(
        APPS,
        ingress("open", *places, ("ha.lab", "/app/x", "Exact", "one"), created=created),
        ingress(
            "guarded",
            ("ha.lab", "/app/(admin|x)(.*)", "ImplementationSpecific", "one"),
            annotations=GUARD,
            created="2026-02-01T00:00:00Z",
        ),
    )
    closed, open_ = ("/app", "/app/y", "/app/admin", "/app/admin/x", "/app/x"), ("/", "/y", "/apple", longer)
    assert {asked: cluster.answer("ha.lab", asked) for asked in (*closed, *open_)} == {
        **dict.fromkeys(closed, 503),
        **dict.fromkeys(open_, ONE),
    }
    message = "ha.lab/app is closed: default/guarded guards '/app/(admin|x)(.*)'"
    assert Problem("Accepted", "Conflicted", "spec.rules[1].http.paths[0].backend", message) in cluster.problems("open")


def test_a_guarded_regular_expression_closes_nothing_of_others_hosts_or_namespaces() -> None:
    cluster = Cluster(
        APPS,
        *app("two", "other", "10.244.1.9"),
        ingress("open", ("ha.lab", "/app", "two"), ("tv.lab", "/app", "two"), namespace="other", created="2026"),
        ingress("open", ("tv.lab", "/app/x", "one"), created="2026-01-01T00:00:00Z"),
        ingress("guarded", ("ha.lab", "/app/(.*)", "ImplementationSpecific", "one"), annotations=GUARD),
    )
    assert cluster.answer("ha.lab", "/app/x") == "other/two:80"
    assert cluster.answer("tv.lab", "/app/x") == ONE


def test_a_regular_expression_that_is_closed_for_another_reason_closes_no_path_of_others() -> None:
    cluster = Cluster(
        APPS,
        ingress("open", ("ha.lab", "/app", "one"), created="2026-01-01T00:00:00Z"),
        ingress(
            "secure",
            ("ha.lab", "/app/(.*)", "ImplementationSpecific", "two"),
            annotations={"backend-protocol": "HTTPS", "use-regex": "true"},
        ),
    )
    assert cluster.answer("ha.lab", "/app/x") == ONE


def test_a_guarded_path_of_odd_characters_is_none_where_nobody_reads_expressions() -> None:
    cluster = Cluster(
        APPS,
        ingress("open", ("ha.lab", "/", "one"), created="2026-01-01T00:00:00Z"),
        ingress("guarded", ("ha.lab", "/c++", "one"), annotations={"auth-url": "http://auth.lab"}),
    )
    assert cluster.answer("ha.lab", "/") == ONE


@pytest.mark.parametrize(
    ("path", "closed", "open_"),
    [
        ("/c++", "/c++/x", "/c"),
        ("/caf\u00e9", "/caf%C3%A9", "/caf"),
        ("/a b", "/a%20b", "/a"),
        ("/a?b", "/a%3Fb", "/a"),
        ("/a%zz", "/a%25zz", "/a"),
        ("/a\n/b p1", "/a%0A/b%20p1", "/b"),
        ("/a//b", "/a/b", "/b"),
        ("/a/../b", "/a/b", "/b"),
        ("/a/" + "x" * 1024, "/a/" + "x" * 1024, "/b"),
    ],
)
def test_a_guarded_path_that_is_not_served_as_written_is_closed_all_the_same(
    path: str, closed: str, open_: str
) -> None:
    cluster = Cluster(
        APPS,
        ingress("open", ("ha.lab", "/", "one"), created="2026-01-01T00:00:00Z"),
        ingress("guarded", ("ha.lab", path, "one"), annotations={"auth-url": "http://auth.lab"}),
    )
    assert (cluster.answer("ha.lab", closed), cluster.answer("ha.lab", open_)) == (503, ONE)


def test_client_certificates_guard_the_whole_host_in_their_namespace() -> None:
    """As in ingress-nginx, where a server asks for them, not a path."""
    cluster = Cluster(
        APPS,
        *app("two", "other", "10.244.1.9"),
        ingress("open", ("ha.lab", "/", "one"), ("tv.lab", "/", "one"), created="2026-01-01T00:00:00Z"),
        ingress("open", ("ha.lab", "/two", "two"), namespace="other", created="2026-01-01T00:00:00Z"),
        ingress("guarded", ("ha.lab", "/admin", "one"), annotations={"auth-tls-secret": "default/ca"}),
    )
    asked = (("ha.lab", "/"), ("ha.lab", "/admin"), ("ha.lab", "/two"), ("tv.lab", "/"))
    assert [cluster.answer(*place) for place in asked] == [503, 503, "other/two:80", ONE]
    message = "ha.lab/ is closed: default/guarded guards the whole host"
    assert cluster.problems("open") == [
        Problem("Accepted", "Conflicted", "spec.rules[0].http.paths[0].backend", message)
    ]


def test_the_same_rule_twice_is_no_conflict() -> None:
    cluster = Cluster(APPS, ingress("site", ("ha.lab", "/a", "one"), ("ha.lab", "/a/", "one")))
    assert cluster.problems("site") == []


@pytest.mark.parametrize(
    ("host", "path", "field", "reason"),
    [
        ("ha_lab", "/", "host", "InvalidHost"),
        ("ha.lab;x", "/", "host", "InvalidHost"),
        ("*", "/", "host", "InvalidHost"),
        ("a.*.lab", "/", "host", "InvalidHost"),
        ("x" * 64 + ".lab", "/", "host", "InvalidHost"),
        ("ha.lab", "/a b", "http.paths[0].path", "InvalidPath"),
        ("ha.lab", "/a\n/b p1", "http.paths[0].path", "InvalidPath"),
        ("ha.lab", "/a?b", "http.paths[0].path", "InvalidPath"),
        ("ha.lab", "/a#b", "http.paths[0].path", "InvalidPath"),
        ("ha.lab", "/a\\", "http.paths[0].path", "InvalidPath"),
        ("ha.lab", "/a//b", "http.paths[0].path", "InvalidPath"),
        ("ha.lab", "/a/../b", "http.paths[0].path", "InvalidPath"),
        ("ha.lab", "/a/.", "http.paths[0].path", "InvalidPath"),
        ("ha.lab", "/a%2fb", "http.paths[0].path", "InvalidPath"),
        ("ha.lab", "/caf\u00e9", "http.paths[0].path", "InvalidPath"),
        ("ha.lab", "/a%zz", "http.paths[0].path", "InvalidPath"),
        ("ha.lab", "/" + "x" * 1024, "http.paths[0].path", "InvalidPath"),
    ],
)
def test_a_bad_host_or_path_is_left_out_alone(host: str, path: str, field: str, reason: str) -> None:
    cluster = Cluster(APPS, ingress("site", (host, path, "one"), ("good.lab", "/", "two")))
    (problem,) = cluster.problems("site")
    assert (problem.condition, problem.reason, problem.field) == ("Accepted", reason, f"spec.rules[0].{field}")
    assert cluster.answer("good.lab", "/") == TWO
    assert len([route for route in cluster.routing.routes if route.backend]) == 1


def test_capitals_in_a_host_are_no_matter() -> None:
    assert Cluster(APPS, ingress("site", ("HA.Lab", "/", "one"))).answer("ha.lab", "/") == ONE


# Backends


def test_a_port_that_only_the_pods_have_is_found_as_in_ingress_nginx() -> None:
    web = service("web", {"name": "b", "port": 80, "targetPort": 8123}, {"name": "a", "port": 8080, "targetPort": "ui"})
    pods = (
        endpoints("web", "192.168.86.21:8123", port_name="b"),
        endpoints("web", "192.168.86.21:8080", port_name="a"),
    )
    cluster = Cluster(web, *pods, ingress("site", ("ha.lab", "/", "web:8123"), ("ha.lab", "/ui", "web:ui")))
    ports = {key: targets[0].port for key, targets in cluster.routing.backends.items()}
    assert ports == {"default/web:8123": 8123, "default/web:ui": 8080}
    swapped = service("web", {"name": "b", "port": 80, "targetPort": 8080}, {"name": "a", "port": 8080})
    cluster = Cluster(swapped, *pods, ingress("site", ("ha.lab", "/", "web:8080")))
    assert cluster.routing.backends == {"default/web:8080": (Target(pack("192.168.86.21"), 8080),)}


def test_ports_by_number_and_name_and_host_network_endpoints() -> None:
    web = service("web", {"name": "http", "port": 80, "targetPort": "ui"}, {"name": "admin", "port": 8443})
    cluster = Cluster(
        web,
        endpoints("web", "192.168.86.21:8123", "192.168.86.22:8123", port_name="http"),
        endpoints("web", "192.168.86.21:9000", port_name="admin"),
        ingress("site", ("ha.lab", "/", "web:80"), ("ha.lab", "/n", "web:http"), ("ha.lab", "/a", "web:admin")),
    )
    both = (Target(pack("192.168.86.21"), 8123), Target(pack("192.168.86.22"), 8123))
    assert cluster.routing.backends == {
        "default/web:80": both,
        "default/web:http": both,
        "default/web:admin": (Target(pack("192.168.86.21"), 9000),),
    }


def test_namespaces_do_not_mix() -> None:
    cluster = Cluster(app("one", namespace="other"), ingress("site", ("ha.lab", "/", "one")))
    assert cluster.answer("ha.lab", "/") == 503


@pytest.mark.parametrize(
    ("objects", "backend", "expected"),
    [
        ([], "gone", ("ResolvedRefs", "BackendNotFound", "name", "Service default/gone does not exist")),
        (app("one"), "one:81", ("ResolvedRefs", "BackendNotFound", "port", "Service default/one has no TCP port 81")),
        (
            [service("one")],
            "one",
            ("Programmed", "NoReadyEndpoints", "name", "Service default/one has no ready endpoint for port 80"),
        ),
        (
            [service("one"), *endpoints("one", "10.0.0.1:80", ready=False)],
            "one",
            ("Programmed", "NoReadyEndpoints", "name", "Service default/one has no ready endpoint for port 80"),
        ),
        (
            [service("one", {"port": 80, "protocol": "UDP"})],
            "one",
            ("ResolvedRefs", "BackendNotFound", "port", "Service default/one has no TCP port 80"),
        ),
        (
            [service("one", type="ExternalName", externalName="x.lab")],
            "one",
            ("ResolvedRefs", "UnsupportedValue", "name", "Service default/one is an ExternalName"),
        ),
    ],
)
def test_no_endpoint_is_503_and_says_why(objects: list[Raw], backend: str, expected: tuple[str, ...]) -> None:
    cluster = Cluster(objects, ingress("site", ("ha.lab", "/x", backend)))
    assert cluster.answer("ha.lab", "/x") == 503
    condition, reason, field, message = expected
    field = f"spec.rules[0].http.paths[0].backend.service.{field}"
    assert cluster.problems("site") == [Problem(condition, reason, field, message)]


def test_not_ready_endpoints_of_a_service_that_publishes_them() -> None:
    objects = service("one", publishNotReadyAddresses=True), endpoints("one", "10.0.0.1:80", ready=False)
    assert Cluster(*objects, ingress("site", ("ha.lab", "/", "one"))).answer("ha.lab", "/") == ONE


# Annotations


def test_options_reach_the_routes() -> None:
    annotations = {"proxy-body-size": "0", "proxy-read-timeout": "3600", "force-ssl-redirect": "true"}
    route = Cluster(APPS, ingress("site", ("ha.lab", "/", "one"), annotations=annotations)).route("ha.lab", "/")
    assert (route.body_size, route.read_timeout_ms, route.redirect) == (0, 3_600_000, True)
    plain = Cluster(APPS, ingress("site", ("ha.lab", "/", "one"))).route("ha.lab", "/")
    assert (plain.body_size, plain.read_timeout_ms, plain.redirect) == (1 << 20, 0, False)


def test_an_unserved_guard_closes_its_own_paths_only() -> None:
    cluster = Cluster(
        APPS,
        ingress("guarded", ("ha.lab", "/admin", "one"), annotations={"auth-url": "http://auth.lab"}),
        ingress("open", ("ha.lab", "/", "two")),
    )
    assert [cluster.answer("ha.lab", path) for path in ("/admin", "/admin/x", "/")] == [503, 503, TWO]
    (problem,) = cluster.problems("guarded")
    assert problem.reason == "UnsupportedAnnotation"
    assert problem.field == "metadata.annotations[nginx.ingress.kubernetes.io/auth-url]"


# TLS

PAIR, WILD = key_pair("ha.lab", "www.ha.lab"), key_pair("*.lab")


def site(*hosts: str, secret_name: str = "cert", **fields: object) -> Raw:
    tls = [{"hosts": list(hosts), "secretName": secret_name}]
    return ingress("site", ("ha.lab", "/", "one"), ("x.lab", "/", "one"), tls=tls, **fields)  # type: ignore[arg-type]


def test_a_certificate_for_the_hosts_that_ask_for_it() -> None:
    cluster = Cluster(APPS, secret("cert", *PAIR), site("ha.lab"))
    (certificate,) = cluster.routing.certificates
    assert (certificate.owner, certificate.hosts) == ("default/cert", ("ha.lab",))
    assert [cluster.route(host, "/").tls for host in ("ha.lab", "x.lab")] == [True, False]
    assert [cluster.route(host, "/").redirect for host in ("ha.lab", "x.lab")] == [True, False]
    assert cluster.problems("site") == []


def test_a_section_without_hosts_serves_what_its_certificate_covers() -> None:
    cluster = Cluster(APPS, secret("cert", *WILD), site())
    assert [certificate.hosts for certificate in cluster.routing.certificates] == [("ha.lab", "x.lab")]


def test_redirects_can_be_switched_off() -> None:
    objects = APPS, secret("cert", *PAIR)
    off = site("ha.lab", annotations={"ssl-redirect": "false"})
    assert not Cluster(*objects, off).route("ha.lab", "/").redirect
    assert not Cluster(*objects, site("ha.lab"), ssl_redirect=False).route("ha.lab", "/").redirect


@pytest.mark.parametrize(
    ("secrets", "message"),
    [
        ([], "Secret default/cert does not exist; the default certificate is served"),
        (
            [secret("cert", PAIR[0], WILD[1])],
            "Secret default/cert: tls.key: does not belong to tls.crt; the default certificate is served",
        ),
        ([secret("cert", *WILD)], ""),
        ([secret("cert", *key_pair("other.lab"))], "the certificate is for other.lab, not for ha.lab"),
    ],
)
def test_a_certificate_that_cannot_be_served_is_said(secrets: list[Raw], message: str) -> None:
    cluster = Cluster(APPS, secrets, site("ha.lab"))
    found = [(problem.reason, problem.field, problem.message) for problem in cluster.problems("site")]
    assert found == ([("InvalidCertificateRef", "spec.tls[0].secretName", message)] if message else [])
    assert cluster.route("ha.lab", "/").redirect  # TLS is served all the same, as ingress-nginx does
    assert bool(cluster.routing.certificates) == (not message)


def test_a_secret_without_its_keys_is_said() -> None:
    empty = {**secret("cert", *PAIR), "data": {}}
    (problem,) = Cluster(APPS, empty, site("ha.lab")).problems("site")
    assert problem.message == "Secret default/cert has no tls.crt; the default certificate is served"


def test_the_oldest_certificate_of_a_host_wins() -> None:
    newer = ingress("a", ("ha.lab", "/new", "one"), tls=[{"hosts": ["ha.lab"], "secretName": "new"}])
    older = site("ha.lab", created="2026-01-01T00:00:00Z")
    cluster = Cluster(APPS, secret("cert", *PAIR), secret("new", *key_pair("ha.lab")), newer, older)
    assert [certificate.owner for certificate in cluster.routing.certificates] == ["default/cert"]


def test_the_default_certificate_from_a_secret_or_not() -> None:
    good = Cluster(secret("default", *WILD, namespace="kube-system"), default_certificate="kube-system/default")
    assert good.routing.default_certificate is not None
    assert good.routing.default_certificate.names == ("*.lab",)
    assert Cluster(default_certificate="kube-system/default").routing.default_certificate is None
