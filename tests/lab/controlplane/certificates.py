"""The cluster's certificate authority: who the API server is, and who its users are (common name, organisations)."""

from __future__ import annotations

import datetime
import os
from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

BACKDATED_S = 60
YEAR_S = 365 * 24 * 3600


def write_private(path: Path, data: bytes) -> None:
    """Replace a file by rename; nobody but its owner may read it."""
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    unfinished.touch(mode=0o600)
    unfinished.write_bytes(data)
    unfinished.rename(path)


def new_key(path: Path) -> ec.EllipticCurvePrivateKey:
    """A new P-256 key, in PEM as SEC 1 has it (the API server reads accounts' keys in no other form)."""
    key = ec.generate_private_key(ec.SECP256R1())
    form = serialization.PrivateFormat.TraditionalOpenSSL
    write_private(path, key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption()))
    return key


@dataclass(frozen=True, slots=True)
class Authority:
    """`folder` holds ca.pem and ca.key, once `create` was called."""

    folder: Path

    @property
    def certificate(self) -> Path:
        return self.folder / "ca.pem"

    def create(self) -> None:
        """Make the authority, unless there is one."""
        if self.certificate.exists():
            return
        key = new_key(self.folder / "ca.key")
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "kubernetes")])
        certificate = (
            _builder(name, name, key.public_key(), YEAR_S)
            .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .sign(key, hashes.SHA256())
        )
        write_private(self.certificate, certificate.public_bytes(serialization.Encoding.PEM))

    def serve(self, certificate: Path, key: Path, names: Sequence[str], addresses: Sequence[str]) -> None:
        """Write a server's certificate for these DNS names and IPv4 addresses."""
        alternatives: list[x509.GeneralName] = [x509.DNSName(name) for name in names]
        alternatives += [x509.IPAddress(IPv4Address(address)) for address in addresses]
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "kube-apiserver")])
        extensions = [x509.SubjectAlternativeName(alternatives), _usage(ExtendedKeyUsageOID.SERVER_AUTH)]
        self._sign(certificate, key, subject, extensions, YEAR_S)

    def admit(self, certificate: Path, key: Path, user: str, groups: Sequence[str], valid_s: int) -> None:
        """Write the certificate of a user, valid from now for so many seconds."""
        organisations = [x509.NameAttribute(NameOID.ORGANIZATION_NAME, group) for group in groups]
        subject = x509.Name([*organisations, x509.NameAttribute(NameOID.COMMON_NAME, user)])
        self._sign(certificate, key, subject, [_usage(ExtendedKeyUsageOID.CLIENT_AUTH)], valid_s)

    def _sign(
        self, path: Path, key_path: Path, subject: x509.Name, extensions: Sequence[x509.ExtensionType], valid_s: int
    ) -> None:
        ca_key = serialization.load_pem_private_key((self.folder / "ca.key").read_bytes(), password=None)
        assert isinstance(ca_key, ec.EllipticCurvePrivateKey)
        ca = x509.load_pem_x509_certificate(self.certificate.read_bytes())
        builder = _builder(subject, ca.subject, new_key(key_path).public_key(), valid_s)
        for extension in extensions:
            builder = builder.add_extension(extension, critical=False)
        issuer_key = x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key())
        certificate = builder.add_extension(issuer_key, critical=False).sign(ca_key, hashes.SHA256())
        write_private(path, certificate.public_bytes(serialization.Encoding.PEM))


def _usage(purpose: x509.ObjectIdentifier) -> x509.ExtendedKeyUsage:
    return x509.ExtendedKeyUsage([purpose])


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, valid_s: int
) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(seconds=BACKDATED_S))
        .not_valid_after(now + datetime.timedelta(seconds=valid_s))
    )
