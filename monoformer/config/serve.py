"""Settings of a server, and the limits of what one request may ask for."""

import ipaddress
from dataclasses import dataclass, field, replace
from pathlib import Path

from monoformer.config.bounds import check_numbers


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a request may be at most; what is beyond is refused before any work is done."""

    body: int = 16 * 2**20
    """Bytes of a request, its pictures included."""
    body_seconds: float = 60.0
    """Seconds until a request must have been received."""
    pixels: int = 16_000_000
    """Pixels of a picture that is sent, before it is resized: looked up before it is decoded."""
    images: int = 16
    """Pictures that are sent in one request."""
    messages: int = 200
    """Messages of a conversation."""
    prompt: int = 100_000
    """Characters of all texts of a request."""
    count: int = 8
    """Answers or pictures that one request asks for (`n`, for completions times the prompts)."""
    steps: int = 250
    """Denoising steps of a picture."""
    max_tokens: int = 8192
    """Text tokens of an answer."""

    def __post_init__(self) -> None:
        check_numbers(self, *vars(self), room="limits", above=0)


@dataclass(frozen=True, kw_only=True)
class ServeConfig:
    """One server."""

    host: str = "127.0.0.1"
    """Address to listen on; others than loopback need an API key."""
    port: int = 8000
    """0 takes a free one."""
    api_key: tuple[str, ...] = ()
    """API keys, of which every request must name one; none: no key is needed."""
    api_key_file: str = ""
    """A file of more keys, one a line, which other users of this machine do not see as they see an option."""
    capacity: int = 128
    """Requests that are served or wait at once; more are answered with 429."""
    origins: tuple[str, ...] = ()
    """Origins of web pages that may call the server (CORS), such as https://example.org; `*` for all."""
    remote_images: bool = False
    """Fetch pictures that requests name by http or https address; never from private addresses."""
    drain_seconds: float = 30.0
    """Seconds that running requests are given when the server is told to stop."""
    limits: Limits = field(default_factory=Limits)
    """What one request may ask for."""

    def __post_init__(self) -> None:
        if not 0 <= self.port < 2**16:
            raise ValueError(f"the port must be in 0 .. 65535, but is {self.port}")
        if self.capacity < 1 or not self.drain_seconds >= 0:
            raise ValueError("the capacity must be at least 1 request, and the seconds to drain at least 0")
        if any(len(key) < 8 or not key.isascii() or not key.isprintable() or " " in key for key in self.api_key):
            raise ValueError("an API key must have at least 8 characters, all of them ASCII and none a space")
        if not self.api_key and not self.api_key_file and not self.is_local:
            raise ValueError(
                f"without an API key the server listens on loopback only, but the host is {self.host!r}; give "
                "--api-key or --api-key-file, or --host 127.0.0.1"
            )

    def with_keys(self) -> "ServeConfig":
        """The same with the keys of the file. Raises ValueError where that cannot be read, or is empty."""
        if not self.api_key_file:
            return self
        try:
            found = Path(self.api_key_file).read_text(encoding="utf-8").split()
        except (OSError, ValueError) as error:
            raise ValueError(f"the API keys could not be read from {self.api_key_file}: {error}") from None
        if not found:
            raise ValueError(f"{self.api_key_file} holds no API key; write one a line, or leave --api-key-file out")
        return replace(self, api_key=(*self.api_key, *found), api_key_file="")

    @property
    def is_local(self) -> bool:
        """Whether only this machine can reach the server."""
        try:
            return self.host == "localhost" or ipaddress.ip_address(self.host).is_loopback
        except ValueError:  # a name: who can reach it is not known
            return False
