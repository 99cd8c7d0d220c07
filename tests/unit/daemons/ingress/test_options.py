import pytest

from netstack.ingress.options import PREFIX, Options, parse


def options(**annotations: str) -> Options:
    found, refusals = parse({PREFIX + name.replace("_", "-"): value for name, value in annotations.items()})
    assert refusals == ()
    return found


def test_nothing_asked_nothing_set() -> None:
    assert parse({"cert-manager.io/cluster-issuer": "letsencrypt"}) == (Options(), ())


def test_what_is_served() -> None:
    assert options(ssl_redirect="false", force_ssl_redirect="True") == Options(False, True)
    assert options(proxy_read_timeout="3600", backend_protocol="http") == Options(read_timeout_ms=3_600_000)


@pytest.mark.parametrize(("text", "size"), [("0", 0), ("1024", 1024), ("8m", 8 << 20), ("1K", 1024), ("2g", 2 << 30)])
def test_sizes_as_nginx_writes_them(text: str, size: int) -> None:
    assert options(proxy_body_size=text).body_size == size


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("proxy-body-size", "8mb", "must be a size such as 8m, not '8mb'"),
        ("proxy-read-timeout", "60s", "must be 1 to 86400 seconds, not '60s'"),
        ("proxy-read-timeout", "0", "must be 1 to 86400 seconds, not '0'"),
        ("ssl-redirect", "yes", "must be true or false, not 'yes'"),
        ("rewrite-target", "/$1", "is not served and has no effect"),
        ("configuration-snippet", "return 200;", "is not served and has no effect"),
    ],
)
def test_what_has_no_effect_is_said_and_closes_nothing(name: str, value: str, reason: str) -> None:
    found, (refusal,) = parse({PREFIX + name: value})
    assert found == Options()
    assert (refusal.field, refusal.reason) == (f"metadata.annotations[{PREFIX}{name}]", reason)
    assert not refusal.closes


@pytest.mark.parametrize(
    "name", ["auth-url", "auth-type", "auth-tls-secret", "whitelist-source-range", "denylist-source-range", "satisfy"]
)
def test_a_guard_that_is_not_served_closes(name: str) -> None:
    _, (refusal,) = parse({PREFIX + name: "something"})
    assert refusal.closes


def test_a_guard_that_is_switched_off_closes_nothing() -> None:
    _, (refusal,) = parse({PREFIX + "enable-global-auth": "false"})
    assert not refusal.closes


def test_another_protocol_closes_because_plain_http_would_not_arrive() -> None:
    _, (refusal,) = parse({PREFIX + "backend-protocol": "HTTPS"})
    assert refusal.closes
    assert refusal.reason.startswith("HTTPS is not served")
