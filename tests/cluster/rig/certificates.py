"""The cluster's authority, its certificates, and the kubeconfig files that hold them."""

import base64
import datetime
import ipaddress
import json
from collections.abc import Sequence
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from rig.paths import API, PKI

DAYS = 30


def _write(path: Path, data: bytes) -> None:
    path.touch(mode=0o600)
    path.write_bytes(data)


def _key(path: Path) -> ec.EllipticCurvePrivateKey:
    key = ec.generate_private_key(ec.SECP256R1())
    _write(
        path,
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()),
    )
    return key


def _builder(subject: x509.Name, issuer: x509.Name, public: ec.EllipticCurvePublicKey) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(days=DAYS))
    )


def make_authority() -> None:
    """Make the authority that everything in the cluster trusts."""
    PKI.mkdir(mode=0o700, parents=True, exist_ok=True)
    key = _key(PKI / "ca.key")
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test cluster")])
    certificate = (
        _builder(name, name, key.public_key())
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    _write(PKI / "ca.crt", certificate.public_bytes(serialization.Encoding.PEM))


def issue(name: str, user: str, group: str = "", addresses: Sequence[str] = (), names: Sequence[str] = ()) -> Path:
    """Make NAME.crt and NAME.key for a user and a group of Kubernetes, valid for a server at the addresses and names."""
    authority = x509.load_pem_x509_certificate((PKI / "ca.crt").read_bytes())
    signer = serialization.load_pem_private_key((PKI / "ca.key").read_bytes(), password=None)
    assert isinstance(signer, ec.EllipticCurvePrivateKey)
    subject = [x509.NameAttribute(NameOID.COMMON_NAME, user)]
    if group:
        subject.append(x509.NameAttribute(NameOID.ORGANIZATION_NAME, group))
    usages = [ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH]
    alternatives: list[x509.GeneralName] = [x509.IPAddress(ipaddress.ip_address(address)) for address in addresses]
    alternatives += [x509.DNSName(each) for each in names]
    key = _key(PKI / f"{name}.key")
    builder = _builder(x509.Name(subject), authority.subject, key.public_key())
    builder = builder.add_extension(x509.ExtendedKeyUsage(usages), critical=False)
    if alternatives:
        builder = builder.add_extension(x509.SubjectAlternativeName(alternatives), critical=False)
    certificate = builder.sign(signer, hashes.SHA256())
    _write(PKI / f"{name}.crt", certificate.public_bytes(serialization.Encoding.PEM))
    return PKI / f"{name}.crt"


def kubeconfig(path: Path, name: str, user: str, group: str = "") -> Path:
    """Issue a client's certificate and write the file that a program of Kubernetes finds the API by."""

    def encoded(file: str) -> str:
        return base64.b64encode((PKI / file).read_bytes()).decode()

    issue(name, user, group)
    cluster = {"server": API, "certificate-authority-data": encoded("ca.crt")}
    client = {"client-certificate-data": encoded(f"{name}.crt"), "client-key-data": encoded(f"{name}.key")}
    content = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "tidemark", "cluster": cluster}],
        "users": [{"name": user, "user": client}],
        "contexts": [{"name": "tidemark", "context": {"cluster": "tidemark", "user": user}}],
        "current-context": "tidemark",
    }
    _write(path, json.dumps(content, indent=1).encode())
    return path
