from netstack.ingress.wants import TLS, wants


def secrets(*scopes: str) -> list[tuple[str, dict[str, str]]]:
    return [(want.resource.path(want.namespace), want.selectors) for want in wants(scopes) if want.kind == "Secret"]


def test_secrets_of_the_whole_cluster() -> None:
    assert secrets() == [("/api/v1/secrets", {"fieldSelector": TLS})]


def test_a_namespace_and_one_secret_are_asked_for_by_name() -> None:
    assert secrets("web", "home/ha-tls", "web") == [
        ("/api/v1/namespaces/home/secrets", {"fieldSelector": f"metadata.name=ha-tls,{TLS}"}),
        ("/api/v1/namespaces/web/secrets", {"fieldSelector": TLS}),
    ]
    assert [want.key for want in wants(["web", "home/ha-tls"])][-2:] == ["secret.home.ha-tls", "secret.web"]
