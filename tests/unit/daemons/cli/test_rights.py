from typing import Any

from netstack.cli.rights import NAME, narrowed

SUBJECTS = [{"kind": "Group", "name": "netstack:ingress"}]
OTHER = {"kind": "ClusterRoleBinding", "metadata": {"name": "netstack-nodes"}}
WHOLE = {"kind": "ClusterRoleBinding", "metadata": {"name": NAME}, "subjects": SUBJECTS}


def made(*scopes: str) -> list[dict[str, Any]]:
    first, *rest = narrowed([OTHER, WHOLE], scopes)
    assert first is OTHER
    return rest


def test_without_scopes_all_stays_as_it_is() -> None:
    assert made() == [WHOLE]


def test_a_namespace_is_bound_to_the_cluster_role() -> None:
    (binding,) = made("web")
    assert (binding["kind"], binding["metadata"]["namespace"]) == ("RoleBinding", "web")
    assert (binding["roleRef"]["kind"], binding["roleRef"]["name"]) == ("ClusterRole", NAME)
    assert binding["subjects"] == SUBJECTS


def test_secrets_are_named_by_a_role() -> None:
    role, binding = made("home/b", "home/a")
    assert role["rules"][0]["resourceNames"] == ["a", "b"] and role["rules"][0]["verbs"] == ["list", "watch"]
    assert (binding["roleRef"]["kind"], binding["roleRef"]["name"]) == (role["kind"], role["metadata"]["name"])
    assert {item["metadata"]["namespace"] for item in (role, binding)} == {"home"}


def test_a_whole_namespace_includes_its_names() -> None:
    assert made("web/a", "web") == made("web")
