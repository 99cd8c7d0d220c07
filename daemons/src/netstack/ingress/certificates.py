"""Certificates: checked before HAProxy sees them, because one bad PEM file keeps HAProxy from starting."""

from __future__ import annotations

import datetime
import functools
import hashlib
import os
import ssl
from dataclasses import dataclass, field

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes
from cryptography.x509.oid import NameOID

from netstack.core.files import stem

SELF_SIGNED_DAYS = 365
RENEW_DAYS = 30


@dataclass(frozen=True, slots=True)
class KeyPair:
    """A chain and its private key as one PEM text, and the names of its leaf."""

    pem: str = field(repr=False)
    names: tuple[str, ...]
    """subjectAltName DNS names, lower case; `*.x.y` covers one label (RFC 6125, section 6.4.3)."""
    fingerprint: str
    """SHA-1 of the leaf in upper-case hex, as `show ssl cert` prints it."""
    not_after: float
    """Seconds since the epoch."""

    def covers(self, host: str) -> bool:
        return host in self.names or "*." + host.partition(".")[2] in self.names


@functools.lru_cache(maxsize=1024)
def key_pair(chain: bytes, key: bytes) -> KeyPair:
    """tls.crt and tls.key of a Secret as one clean PEM text. ValueError says which of the two is wrong, and how."""
    try:
        certificates = x509.load_pem_x509_certificates(chain)
        leaf_key = certificates[0].public_key()
    except (ValueError, UnsupportedAlgorithm) as error:
        raise ValueError(f"tls.crt: is no PEM certificate: {error}") from error
    try:
        private = serialization.load_pem_private_key(key, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise ValueError(f"tls.key: is no PEM private key without a passphrase: {error}") from error
    if private.public_key() != leaf_key:
        raise ValueError("tls.key: does not belong to tls.crt")
    pair = _pair(certificates, private)
    _loadable(pair.pem)
    return pair


def _loadable(pem: str) -> None:
    """ValueError if the system's OpenSSL, which is HAProxy's too, does not serve it: a key of 1024 bits, a signature by
    SHA-1. A list with one such certificate keeps HAProxy from starting."""
    handle = os.memfd_create("pem")
    with os.fdopen(handle, "wb") as file:
        file.write(pem.encode())
        file.flush()
        try:
            ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(f"/proc/self/fd/{handle}")
        except ssl.SSLError as error:
            reason = (error.reason or str(error)).lower().replace("_", " ")
            raise ValueError(f"tls.crt: cannot be served: {reason}") from error


def _pair(certificates: list[x509.Certificate], private: PrivateKeyTypes) -> KeyPair:
    leaf = certificates[0]
    try:
        names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        dns = tuple(name.lower() for name in names.get_values_for_type(x509.DNSName))
    except (x509.ExtensionNotFound, x509.DuplicateExtension, x509.UnsupportedGeneralNameType, ValueError):
        dns = ()
    # Written anew rather than copied: an empty line inside a PEM ends the payload on HAProxy's socket.
    chain = b"".join(item.public_bytes(serialization.Encoding.PEM) for item in certificates)
    key = private.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return KeyPair(
        pem=(chain + key).decode(),
        names=dns,
        fingerprint=leaf.fingerprint(hashes.SHA1()).hex().upper(),  # noqa: S303 - a name, no protection
        not_after=leaf.not_valid_after_utc.timestamp(),
    )


def parse(pem: str) -> KeyPair:
    """One PEM text with a chain and its key, as `KeyPair.pem` holds it."""
    return key_pair(pem.encode(), pem[pem.index("-----BEGIN PRIVATE") :].encode())


def file_name(owner: str, pem: str, hosts: tuple[str, ...]) -> str:
    """The name of a certificate's file: its owner for the reader, and a hash that changes with all that it holds.

    So a renewed certificate, or one for other hosts, is a new file, and is served before the old one goes.
    """
    digest = hashlib.sha256("\0".join((pem, *hosts)).encode()).hexdigest()
    return f"{stem(owner.replace('/', '_'))}-{digest[:16]}.pem"


def self_signed(name: str, now: float) -> KeyPair:
    """A new certificate for nobody in particular, what ingress-nginx calls its fake certificate."""
    key = ec.generate_private_key(ec.SECP256R1())
    start = datetime.datetime.fromtimestamp(now, datetime.UTC)
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(start - datetime.timedelta(days=1))  # a board without a clock battery may be behind
        .not_valid_after(start + datetime.timedelta(days=SELF_SIGNED_DAYS))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        .sign(key, hashes.SHA256())
    )
    return _pair([certificate], key)


def expires_soon(pair: KeyPair, now: float) -> bool:
    """Whether a self-signed certificate is to be replaced. `now` in seconds since the epoch."""
    return pair.not_after - now < RENEW_DAYS * 86400
