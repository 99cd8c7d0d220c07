from __future__ import annotations

import logging
from pathlib import Path

import pytest
import yaml

from instruments.ingress_objects import Cluster, Raw, ingress, service
from netstack.core.ref import Ref
from netstack.ingress.report import BATCH, Reporter
from netstack.ingress.settings import IngressSettings
from netstack.source.status import StatusFolder

CONTROLLER = service("ingress-nginx-controller", {"name": "http", "port": 80}, namespace="ingress-nginx")
SITE = ingress("site", ("ha.lab", "/", "gone"))


class Office:
    """A reporter and its folders."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.settings = IngressSettings(
            node="n1",
            manifests=folder / "manifests",
            status=folder / "status",
            endpoint=folder / "endpoint.json",
        )
        self.reporter = Reporter(self.settings, StatusFolder(self.settings.status, self.settings.manifests))

    def wired(self) -> None:
        self.settings.endpoint.write_text('{"ips": [{"address": "10.244.1.2/32"}]}')

    def report(self, *objects: Raw, ready: bool = True) -> None:
        cluster = Cluster(*objects)
        self.reporter.report(cluster.snapshot, cluster.routing.problems, ready=ready)

    @property
    def slice(self) -> Path:
        return self.folder / "manifests/endpointslice.ingress-nginx.ingress-nginx-controller-n1.yaml"

    def ready(self) -> bool:
        return bool(yaml.safe_load(self.slice.read_text())["endpoints"][0]["conditions"]["ready"])

    def statuses(self) -> list[str]:
        return sorted(path.name for path in (self.folder / "status").iterdir())


@pytest.fixture
def office(tmp_path: Path) -> Office:
    return Office(tmp_path)


def test_the_slice_says_whether_haproxy_answers(office: Office) -> None:
    office.wired()
    office.report(CONTROLLER)
    assert office.ready()
    office.report(CONTROLLER, ready=False)
    assert not office.ready()


def test_without_a_service_or_an_address_the_last_word_stays(office: Office) -> None:
    office.report(CONTROLLER)
    assert not office.slice.exists()
    office.wired()
    office.report(CONTROLLER)
    office.report(ready=False)
    assert office.ready()


def test_ports_that_are_not_served_are_kept_for_the_status(office: Office) -> None:
    office.wired()
    office.report({**CONTROLLER, "spec": {"ports": [{"name": "metrics", "port": 10254}]}})
    assert office.reporter.missing_ports == ("metrics",)


def test_a_status_is_written_once_and_its_problem_logged_once(office: Office, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        office.report(SITE)
        (office.folder / "status/ingress.default.site.yaml").write_text("not looked at again")
        office.report(SITE)
    assert [record.getMessage() for record in caplog.records] == [
        "Ingress default/site: BackendNotFound: spec.rules[0].http.paths[0].backend.service.name: "
        "Service default/gone does not exist"
    ]
    assert (office.folder / "status/ingress.default.site.yaml").read_text() == "not looked at again"


def test_the_status_of_an_ingress_goes_with_it_also_if_nobody_was_looking(office: Office) -> None:
    office.report(SITE, ingress("other", ("b.lab", "/", "gone")))
    office.report(SITE)
    assert office.statuses() == ["ingress.default.site.yaml"]
    foreign = StatusFolder(office.settings.status).file(Ref("Service", "default", "one"))
    foreign.write_text("")
    after_a_restart = Office(office.folder)
    after_a_restart.report()
    assert office.statuses() == [foreign.name]


def test_many_statuses_take_several_turns(office: Office) -> None:
    many = [ingress(f"i{number}", (f"h{number}.lab", "/", "gone")) for number in range(BATCH + 1)]
    office.report(*many)
    assert len(office.statuses()) == BATCH
    office.report(*many)
    assert len(office.statuses()) == BATCH + 1


def test_a_folder_that_cannot_be_written_is_an_error_and_is_tried_again(office: Office) -> None:
    (office.folder / "status").write_text("a file in the way")
    with pytest.raises(OSError):
        office.report(SITE)
    (office.folder / "status").unlink()
    office.report(SITE)
    assert office.statuses() == ["ingress.default.site.yaml"]
