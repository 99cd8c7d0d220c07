"""What the controller does around the module, which is a stand-in here."""

from __future__ import annotations

import json
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import pytest
from ansible.errors import AnsibleActionFail
from ansible.parsing.dataloader import DataLoader
from ansible_collections.kubelab.netstack.plugins.action import network_policy
from ansible_collections.kubelab.netstack.plugins.plugin_utils import _api

POLICY = {"kind": "NetworkPolicy", "metadata": {"name": "p"}}
TOLD = {"policy": "NetworkPolicy default/p", "changed": False, "effect": {"lines": ["denies a -> b"], "notes": []}}


class Play:
    """One run: the calls of the module with their arguments, and those of the API server."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, check: bool = False, **arguments: Any) -> None:
        self.calls: list[dict[str, Any]] = []
        self.api: list[tuple[str, bool, bool]] = []
        self.answers: list[dict[str, Any]] = [TOLD, TOLD | {"enforced": {"state": "enforced"}}]
        task = MagicMock(args=arguments, check_mode=check, async_val=0, environment=None)
        self.action = network_policy.ActionModule(
            task, MagicMock(), MagicMock(), DataLoader(), MagicMock(), MagicMock()
        )
        monkeypatch.setattr(self.action, "_execute_module", self._module)
        monkeypatch.setattr(_api, "connect", lambda kubeconfig: kubeconfig)
        monkeypatch.setattr(_api, "ensure", self._ensure)

    def _module(self, module_name: str, module_args: dict[str, Any], task_vars: Any) -> dict[str, Any]:
        assert module_name == "kubelab.netstack.network_policy"
        self.calls.append(module_args)
        return self.answers.pop(0)

    def _ensure(self, request: str, definition: Any, *, present: bool, dry_run: bool) -> _api.Change:
        self.api.append((request, present, dry_run))
        return _api.Change(True, None, definition)

    def run(self) -> dict[str, Any]:
        return self.action.run(None, {})


def test_without_a_kubeconfig_the_module_does_it_all(monkeypatch: pytest.MonkeyPatch) -> None:
    play = Play(monkeypatch, definition=POLICY, wait=True)
    assert play.run() == TOLD
    assert (play.calls, play.api) == ([{"definition": POLICY, "wait": True}], [])


def test_a_file_of_the_controller_becomes_the_definition(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "p.yaml").write_text("kind: NetworkPolicy\nmetadata: {name: '{{ p }}'}\n")
    play = Play(monkeypatch, src=str(tmp_path / "p.yaml"))
    monkeypatch.setattr(play.action, "_find_needle", lambda _folder, path: path)
    play.run()
    assert play.calls == [{"definition": {"kind": "NetworkPolicy", "metadata": {"name": "{{ p }}"}}}]
    (tmp_path / "p.yaml").write_text("a: 1\n---\nb: 2\n")
    play = Play(monkeypatch, src=str(tmp_path / "p.yaml"))
    monkeypatch.setattr(play.action, "_find_needle", lambda _folder, path: path)
    with pytest.raises(AnsibleActionFail, match="src: "):
        play.run()


def test_with_one_the_object_changes_between_two_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    play = Play(monkeypatch, definition=POLICY, kubeconfig="/k", state="absent")
    said = play.run()
    assert [call.get("wait") for call in play.calls] == [False, None]
    assert play.api == [("/k", False, False)]
    assert (said["changed"], said["enforced"]) == (True, {"state": "enforced"})
    assert said["diff"]["after"].endswith("# denies a -> b\n")


@pytest.mark.parametrize(
    "written", [{"at": date(2026, 1, 2)}, {"at": datetime(2026, 1, 2, tzinfo=UTC)}, {"at": "2026-01-02"}]
)
def test_a_date_is_text_to_the_server_too(monkeypatch: pytest.MonkeyPatch, written: dict[str, Any]) -> None:
    noted = {**POLICY, "metadata": {"name": "p", "annotations": written}}
    said = Play(monkeypatch, definition=noted, kubeconfig="/k").run()
    assert "at: '2026-01-02" in said["diff"]["after"]


def test_a_definition_may_be_the_text_of_one(monkeypatch: pytest.MonkeyPatch) -> None:
    said = Play(monkeypatch, definition=json.dumps(POLICY), kubeconfig="/k").run()
    assert said["diff"]["after"].startswith("kind: NetworkPolicy\n")


@pytest.mark.parametrize(("check", "wait"), [(True, True), (False, "no")])
def test_nobody_waits_in_check_mode_or_where_nobody_shall(
    check: bool, wait: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    play = Play(monkeypatch, check=check, definition=POLICY, kubeconfig="/k", wait=wait)
    assert play.run()["changed"] is True
    assert (len(play.calls), play.api) == (1, [("/k", True, check)])


def test_what_the_node_refuses_never_reaches_the_server(monkeypatch: pytest.MonkeyPatch) -> None:
    play = Play(monkeypatch, definition=POLICY, kubeconfig="/k")
    play.answers = [{"failed": True, "msg": "spec: is required"}]
    assert play.run()["msg"] == "spec: is required"
    assert play.api == []


def test_a_node_that_does_not_enforce_it_fails_and_the_change_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    play = Play(monkeypatch, definition=POLICY, kubeconfig="/k")
    play.answers[1] = {"failed": True, "msg": "not known", "changed": False}
    said = play.run()
    assert (said["failed"], said["msg"], said["changed"]) == (True, "not known", True)


def test_what_the_server_refuses_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_unused: Any, **_too: Any) -> None:
        raise _api.ApiError("PUT /apis: 403 forbidden")

    play = Play(monkeypatch, definition=POLICY, kubeconfig="/k")
    monkeypatch.setattr(_api, "ensure", refuse)
    with pytest.raises(AnsibleActionFail, match="403 forbidden"):
        play.run()
