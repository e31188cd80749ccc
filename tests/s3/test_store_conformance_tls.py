"""Both clients refuse an endpoint with an untrusted certificate."""

import datetime
import ipaddress
import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from pipeline.config.storage import StorageConfig
from pipeline.errors import NotFound, StorageError
from pipeline.storage.store import resolve

pytestmark = pytest.mark.s3


def _certificate(folder: Path) -> Path:
    """A fresh self-signed certificate for 127.0.0.1 with its key, PEM."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.datetime.now(datetime.UTC)
    names = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    signed = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(names, critical=False)
        .sign(key, hashes.SHA256())
    )
    secret = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    path = folder / "self-signed.pem"
    path.write_bytes(secret + signed.public_bytes(serialization.Encoding.PEM))
    return path


@contextmanager
def _tls_server(certificate: Path) -> Iterator[str]:
    """Endpoint of an HTTPS server that answers every request with 404."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        while True:
            try:
                raw, _ = listener.accept()
            except OSError:
                return
            try:
                with context.wrap_socket(raw, server_side=True) as client:
                    client.recv(65536)
                    client.sendall(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
            except OSError:  # the client refused the certificate
                continue

    threading.Thread(target=serve, daemon=True).start()
    yield f"https://127.0.0.1:{listener.getsockname()[1]}"
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()


@pytest.mark.usefixtures("s3_environment")
def test_a_self_signed_endpoint_is_refused_unless_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    certificate = _certificate(tmp_path)
    with _tls_server(certificate) as endpoint:
        store = resolve("s3://bucket/prefix", StorageConfig(endpoint=endpoint, retries=0))
        with pytest.raises(StorageError, match=r"certificate of .* is not trusted"):
            store.read("key")
        with pytest.raises(OSError, match=r"(?i)ssl|cert"):
            store.pa_fs.open_input_stream(store.path("key"))
        careless = resolve("s3://bucket/prefix", StorageConfig(endpoint=endpoint, retries=0, verify_tls=False))
        with pytest.raises(NotFound):
            careless.read("key")
        with pytest.raises(FileNotFoundError):
            careless.pa_fs.open_input_stream(careless.path("key"))
        monkeypatch.setenv("AWS_CA_BUNDLE", str(certificate))
        trusting = resolve("s3://bucket/prefix", StorageConfig(endpoint=endpoint, retries=0, region="eu-west-1"))
        with pytest.raises(NotFound):
            trusting.read("key")
        with pytest.raises(FileNotFoundError):
            trusting.pa_fs.open_input_stream(trusting.path("key"))
