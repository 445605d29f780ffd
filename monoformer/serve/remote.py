"""Pictures that are fetched for a request, from public addresses alone.

Invariant: the address that was looked at is the one that is connected to (a name may resolve anew to something else),
and nothing is followed.
"""

import http.client
import ipaddress
import socket
import ssl
import time
from collections.abc import Callable
from urllib.parse import urlsplit

from monoformer.serve.errors import ApiError

SECONDS = 10.0
"""Until a picture must be there."""


def is_public(address: str) -> bool:
    """Whether an IP address belongs to the open internet, whichever way it is written."""
    found = ipaddress.ip_address(address)
    if isinstance(found, ipaddress.IPv6Address):
        found = found.ipv4_mapped or found.sixtofour or (found.teredo or (None, None))[1] or found
    return found.is_global and not found.is_multicast and not found.is_reserved


def fetch(url: str, *, most: int, parameter: str, allowed: Callable[[str], bool] = is_public) -> bytes:
    """The file at an http or https address, at most `most` bytes. Raises ApiError for anything else."""
    try:
        return _fetch(url, most=most, allowed=allowed)
    except ApiError as error:
        error.parameter, error.code = parameter, "invalid_image_url"
        raise
    except (OSError, ValueError, http.client.HTTPException) as error:
        message = "the picture could not be fetched from its address"
        raise ApiError(message, parameter=parameter, code="invalid_image_url") from error


def _fetch(url: str, *, most: int, allowed: Callable[[str], bool]) -> bytes:
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.username or parts.password:
        raise ApiError("a picture's address must be http:// or https://, with a host and no password")
    secure, end = parts.scheme == "https", time.monotonic() + SECONDS
    port = parts.port or (443 if secure else 80)
    found = socket.getaddrinfo(parts.hostname, port, type=socket.SOCK_STREAM)
    addresses = [str(entry[4][0]) for entry in found]
    if not addresses or not all(allowed(address) for address in addresses):
        raise ApiError("a picture's address must be on the open internet, not a private or local one")
    connection = http.client.HTTPConnection(parts.hostname, port, timeout=SECONDS)
    connected = socket.create_connection((addresses[0], port), timeout=SECONDS)
    try:
        if secure:
            connected = ssl.create_default_context().wrap_socket(connected, server_hostname=parts.hostname)
        connection.sock = connected
        path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        connection.request("GET", path, headers={"Accept": "image/*", "Connection": "close"})
        response = connection.getresponse()
        if response.status != 200:
            raise ApiError(f"the picture's address answered with status {response.status}; redirects are not followed")
        return _read(response, most=most, end=end)
    finally:
        connected.close()


def _read(response: http.client.HTTPResponse, *, most: int, end: float) -> bytes:
    data = bytearray()
    while chunk := response.read1(1 << 16):
        data += chunk
        if len(data) > most:
            raise ApiError(f"the picture at this address has more than the {most} bytes that are accepted")
        if time.monotonic() > end:
            raise TimeoutError("the picture came too slowly")
    return bytes(data)
