"""The cluster's authority and what it signs, for as long as one run."""

import datetime as dt
import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

_LIFE = dt.timedelta(days=7)


@dataclass(frozen=True, slots=True)
class Authority:
    """A certificate authority in a folder.

    Attributes:
        folder: where keys and certificates are kept, as `NAME.key` and `NAME.crt`.
        key: its key.
        certificate: its certificate, `ca.crt` in the folder.
    """

    folder: Path
    key: ec.EllipticCurvePrivateKey
    certificate: x509.Certificate

    @classmethod
    def make(cls, folder: Path) -> "Authority":
        """Make one, in an empty folder."""
        folder.mkdir(parents=True, mode=0o700)
        key, name = ec.generate_private_key(ec.SECP256R1()), _name("cluster")
        basic = x509.BasicConstraints(ca=True, path_length=0)
        certificate = (
            _builder(name, name, key).add_extension(basic, critical=True).sign(key, hashes.SHA256())
        )
        _write(folder / "ca", key, certificate)
        return cls(folder, key, certificate)

    def sign(
        self, file: str, common: str, organization: str = "", names: Sequence[str] = ()
    ) -> None:
        """Sign a new key for a server and client.

        Args:
            file: name of its files.
            common: its common name: a user's name.
            organization: a user's group.
            names: DNS names and addresses of a server.
        """
        key = ec.generate_private_key(ec.SECP256R1())
        usage = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
        builder = _builder(_name(common, organization), self.certificate.subject, key)
        builder = builder.add_extension(x509.ExtendedKeyUsage(usage), critical=False)
        if names:
            alternatives = x509.SubjectAlternativeName([_general(name) for name in names])
            builder = builder.add_extension(alternatives, critical=False)
        _write(self.folder / file, key, builder.sign(self.key, hashes.SHA256()))


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey
) -> x509.CertificateBuilder:
    now = dt.datetime.now(dt.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(hours=1))
        .not_valid_after(now + _LIFE)
    )


def _name(common: str, organization: str = "") -> x509.Name:
    parts = [(NameOID.ORGANIZATION_NAME, organization), (NameOID.COMMON_NAME, common)]
    return x509.Name([x509.NameAttribute(kind, value) for kind, value in parts if value])


def _general(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _write(path: Path, key: ec.EllipticCurvePrivateKey, certificate: x509.Certificate) -> None:
    secret = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.TraditionalOpenSSL,
        serialization.NoEncryption(),
    )
    path.with_suffix(".key").touch(mode=0o600)
    path.with_suffix(".key").write_bytes(secret)
    path.with_suffix(".crt").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
