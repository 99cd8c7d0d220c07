import base64

from netstack.core.ref import Ref
from netstack.source.models import Meta, Secret


def test_a_secret_does_not_show_itself() -> None:
    secret = Secret(Meta(Ref("Secret", "a", "b")), "Opaque", {"key": b"hidden"})
    assert "hidden" not in repr(secret) and base64.b64encode(b"hidden").decode() not in repr(secret)
