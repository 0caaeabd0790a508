"""The driver's own CA, and the certificates that it issues for controllers and agents.

Elliptic curve P-256: an agent pays for a handshake at each start, and RSA's costs ten times as much. Nothing here writes
to disk or logs: only the caller gets keys.
"""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from csi_driver.domain.certificates import Certificate

CA_DAYS = 3650
"""Validity of a CA: longer than a cluster lives without a planned rotation."""

CERTIFICATE_DAYS = 90
"""Validity of a certificate: each is renewed after two thirds of it."""

_SKEW = timedelta(minutes=10)
"""How far the clocks of nodes may be apart: validity begins this long before the time of issue."""


@dataclass(frozen=True, slots=True)
class KeyPair:
    """A certificate and its key, in PEM. The key is never printed, not even by repr."""

    certificate: bytes
    key: bytes

    def __repr__(self) -> str:
        return f"KeyPair(valid until {expires(self.certificate):%Y-%m-%d})"


def new_ca(now: datetime | None = None, days: int = CA_DAYS) -> KeyPair:
    """Return a self-signed CA that may sign certificates, but no other CA."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "tidemark authority")])
    builder = (
        _builder(name, name, key.public_key(), now, days)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(sign=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )
    return _pair(builder.sign(key, hashes.SHA256()), key)


def issue(ca: KeyPair, role: str, *more: str, now: datetime | None = None, days: int = CERTIFICATE_DAYS) -> KeyPair:
    """Issue a certificate of one role (a DNS name of rpc/tls.py), for servers and clients, signed by the CA.

    `more`: other DNS names at which its holder serves.
    """
    signer = serialization.load_pem_private_key(ca.key, None)
    if not isinstance(signer, ec.EllipticCurvePrivateKey):
        raise TypeError("the CA's key is not on an elliptic curve: this driver makes no other")
    root = x509.load_pem_x509_certificate(ca.certificate)
    key = ec.generate_private_key(ec.SECP256R1())
    # A common name has at most 64 characters. Peers ignore it: the role is among the alternative names.
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, role[:64])])
    both = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
    builder = (
        _builder(name, root.subject, key.public_key(), now, days)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(sign=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage(both), critical=False)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name) for name in (role, *more)]), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False)
    )
    return _pair(builder.sign(signer, hashes.SHA256()), key)


def expires(certificate: bytes) -> datetime:
    """Return until when a certificate in PEM is valid, in UTC."""
    return x509.load_pem_x509_certificate(certificate).not_valid_after_utc


def split(bundle: bytes) -> list[bytes]:
    """Return the certificates of a PEM file, each in the same form. Raises ValueError if there is none."""
    return [
        certificate.public_bytes(serialization.Encoding.PEM) for certificate in x509.load_pem_x509_certificates(bundle)
    ]


def join(certificates: Sequence[bytes]) -> bytes:
    """Return one PEM file of several certificates, without duplicates, in an order that depends on their content only."""
    return b"".join(sorted(set(certificates)))


def describe(certificate: bytes, trusted: Sequence[bytes] = ()) -> Certificate:
    """Describe the first certificate of a PEM file, and which of the `trusted` ones signed it.

    Raises ValueError if it is not a certificate.
    """
    parsed = x509.load_pem_x509_certificates(certificate)[0]
    names: list[str] = []
    with suppress(x509.ExtensionNotFound):
        extension = parsed.extensions.get_extension_for_class(x509.SubjectAlternativeName)
        names = extension.value.get_values_for_type(x509.DNSName)
    signer = next((candidate for candidate in trusted if _signed_by(parsed, candidate)), None)
    return Certificate(
        id=_id(parsed),
        names=tuple(names),
        signer=_id(x509.load_pem_x509_certificate(signer)) if signer is not None else "",
        begins=parsed.not_valid_before_utc,
        ends=parsed.not_valid_after_utc,
    )


def key_matches(pair: KeyPair) -> bool:
    """Return whether the key is that of the certificate. Raises ValueError if one is invalid, or the key is encrypted."""
    try:
        key = serialization.load_pem_private_key(pair.key, None)
    except TypeError as error:
        raise ValueError("the key is encrypted with a password") from error
    return key.public_key() == x509.load_pem_x509_certificate(pair.certificate).public_key()


def _id(certificate: x509.Certificate) -> str:
    return certificate.fingerprint(hashes.SHA256()).hex()


def _signed_by(certificate: x509.Certificate, ca: bytes) -> bool:
    try:
        certificate.verify_directly_issued_by(x509.load_pem_x509_certificate(ca))
    except (InvalidSignature, ValueError, TypeError):
        return False
    return True


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, now: datetime | None, days: int
) -> x509.CertificateBuilder:
    begin = now or datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(begin - _SKEW)
        .not_valid_after(begin + timedelta(days=days))
    )


def _usage(sign: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not sign,
        key_cert_sign=sign,
        crl_sign=sign,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _pair(certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> KeyPair:
    return KeyPair(
        certificate.public_bytes(serialization.Encoding.PEM),
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()),
    )
