"""TLS on the link: a connected socket with the few calls `TailLink` makes, encrypted.

A wrapper with a socket's own calls, so that what is sent and how it is waited for is written once,
in `link`, and a link without TLS pays nothing for it.

Who is trusted: the authorities in one PEM file, or the system's. The host's name must be in the
certificate; there is no way to leave that check out. Renegotiation, which TLS 1.3 no longer has, is
refused, so that sending never waits for receiving.
"""

import select
import socket
import ssl
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from dovetail.errors import ManifestError, TailUnavailable, TailUntrusted
from dovetail.tensor import Buffer

_RECORD: Final = 16 << 10  # most bytes that TLS encrypts at once


class Trust:
    """Whom a link believes.

    Args:
        ca_file: PEM file of the authorities; None for the system's.

    Attributes:
        context: what connections are made with.
        whom: the authorities, for people.

    Raises:
        ManifestError: the file cannot be read, or holds no certificate.
    """

    def __init__(self, ca_file: Path | None = None) -> None:
        self.whom = f"those in {ca_file}" if ca_file else "the system's authorities"
        try:
            self.context = ssl.create_default_context(cafile=ca_file)
        except (OSError, ValueError) as error:
            raise ManifestError(
                f"CA file {ca_file} cannot be used: {getattr(error, 'strerror', None) or error}; "
                "expected certificates in PEM"
            ) from error
        self.context.options |= ssl.OP_NO_RENEGOTIATION
        self.context.set_alpn_protocols(["http/1.1"])


class SecureSocket:
    """A socket under TLS, non-blocking; for one thread at a time.

    Args:
        sock: connected; it belongs to this object from here on.
        trust: whom to believe.
        host: name that the certificate must be for.
        endpoint: the endpoint, for messages.
    """

    def __init__(self, sock: socket.socket, trust: Trust, host: str, endpoint: str) -> None:
        self._trust, self._endpoint = trust, endpoint
        self._sock = trust.context.wrap_socket(
            sock, server_hostname=host, do_handshake_on_connect=False
        )

    def shake(self) -> int:
        """Go on with the handshake; returns what to poll for before the next step, 0 at the end.

        Raises:
            TailUntrusted: the certificate is not trusted, or for another name.
            TailUnavailable: the other side does not speak TLS as it should.
        """
        try:
            self._sock.do_handshake()
        except ssl.SSLWantReadError:
            return select.POLLIN
        except ssl.SSLWantWriteError:
            return select.POLLOUT
        except ssl.SSLCertVerificationError as error:
            raise TailUntrusted(
                f"the certificate of {self._endpoint} is not trusted: {error.verify_message}; "
                f"trusted are {self._trust.whom}; give the authority that signed it with --ca-file"
            ) from error
        except OSError as error:
            why = getattr(error, "reason", None) or error.strerror or type(error).__name__
            raise TailUnavailable(
                f"no TLS with {self._endpoint}: {why.replace('_', ' ').lower()}"
            ) from error
        return 0

    def fileno(self) -> int:
        """The descriptor to poll."""
        return self._sock.fileno()

    def close(self) -> None:
        """Close the connection."""
        self._sock.close()

    def sendmsg(self, parts: Sequence[Buffer]) -> int:
        """Send what the socket takes; raises `BlockingIOError` where it takes nothing."""
        total = 0
        try:
            for chunk in _records(parts):
                left = memoryview(chunk)
                while left:
                    size = self._sock.send(left)  # at most a record
                    left, total = left[size:], total + size
        except ssl.SSLWantWriteError as error:
            # The next call offers the same bytes again, as OpenSSL demands of an interrupted write.
            if not total:
                raise BlockingIOError from error
        return total

    def recv_into(self, buffer: memoryview) -> int:
        """Read what has arrived; 0 at the end, `BlockingIOError` where nothing has."""
        try:
            return self._sock.recv_into(buffer)
        except ssl.SSLWantReadError as error:
            raise BlockingIOError from error

    def recv(self, size: int, _: int) -> bytes:
        """Read without peeking, which TLS cannot: whoever gets bytes here gives the socket up."""
        try:
            return self._sock.recv(size)
        except ssl.SSLWantReadError as error:
            raise BlockingIOError from error


def _records(parts: Sequence[Buffer]) -> Sequence[Buffer]:
    """Parts as chunks to encrypt: small neighbours in one record, large ones as they are.

    A record costs a system call and some thirty bytes on the wire, and head and body of a small
    request would otherwise be two.
    """
    chunks: list[Buffer] = []
    small = bytearray()
    for part in parts:
        if len(small) + len(part) <= _RECORD:
            small += part
            continue
        if small:
            chunks.append(bytes(small))
            small = bytearray()
        if len(part) <= _RECORD:
            small += part
        else:
            chunks.append(part)
    if small:
        chunks.append(bytes(small))
    return chunks
