"""What is refused, and how: a 4xx in OpenAI's form that says what was wrong, and a server that goes on."""

import base64
import io
import json
import socket
import struct
import zlib
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import httpx
import pytest
from PIL import Image as PILImage

from monoformer.config.serve import Limits, ServeConfig
from monoformer.serve.errors import ApiError
from monoformer.serve.remote import fetch, is_public
from monoformer.serve.schemas import ImageQuestion
from tests import tiny
from tests.serve.conftest import Running, running
from tests.serve.test_openai import png, square

CHAT, TEXT, DRAW, EDIT = "/v1/chat/completions", "/v1/completions", "/v1/images/generations", "/v1/images/edits"
USER = {"role": "user", "content": "a"}


def bomb(width: int, height: int) -> bytes:
    """A PNG that says it is huge, of few bytes."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(999))) + chunk(b"IEND", b"")
    )


def showing(url: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": url}}]}]}


def data_of(content: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(content).decode()


def talk(**more: Any) -> dict[str, Any]:
    return {"messages": [USER]} | more


REFUSED: list[tuple[str, Any, str]] = [
    # values out of range
    (CHAT, talk(temperature=-1), "temperature"),
    (CHAT, talk(temperature=3), "temperature"),
    (CHAT, talk(top_p=0), "top_p"),
    (CHAT, talk(repetition_penalty=5e-324), "repetition_penalty"),
    (CHAT, talk(n=0), "n"),
    (CHAT, talk(n=9), "n may be at most 8"),
    (CHAT, talk(n=10**30), "n"),
    (CHAT, talk(max_tokens=10_000), "max_tokens may be at most"),
    (CHAT, talk(max_tokens=-1), "max_tokens"),
    (CHAT, talk(max_tokens=1, max_completion_tokens=5), "give one of them"),
    (CHAT, talk(seed=2**70), "seed"),
    (CHAT, talk(steps=1000), "steps may be at most 250"),
    (CHAT, talk(steps=0), "steps"),
    (CHAT, talk(guidance=1e9), "guidance"),
    (CHAT, talk(size="40x40"), "not trained to draw"),
    (CHAT, talk(size="0x8"), "size"),
    (CHAT, talk(size="99999x99999"), "not trained to draw"),
    (CHAT, talk(logit_bias={"999999": 1}), "no token that can be written"),
    (CHAT, talk(logit_bias={"5": 1000}), "logit_bias"),
    (CHAT, talk(logit_bias={"-1": 1}), "logit_bias"),
    (CHAT, talk(logit_bias={"5": 1, "05": 1}), "each token once"),
    (CHAT, talk(sampler="ddpm"), "needs DDPM"),
    (CHAT, talk(sampler="magic"), "sampler"),
    (CHAT, talk(eta=0.5), "no effect on euler"),
    (CHAT, talk(stop=["a"] * 17), "stop: List should have at most 16 items"),
    (CHAT, talk(min_p=0.5, temperature=0), "min_p"),
    (CHAT, talk(top_logprobs=2), "without logprobs"),
    (CHAT, talk(logprobs=True, top_logprobs=21), "top_logprobs"),
    (CHAT, talk(partial_images=2), "without stream"),
    (CHAT, talk(stream_options={"include_usage": True}), "without stream"),
    (CHAT, talk(image_guidance=2.0), "without pictures"),
    (CHAT, talk(modalities=["image"], logprobs=True), "logprobs has no effect"),
    (CHAT, talk(modalities=["image"], temperature=0.5), "temperature has no effect where only a picture is wanted"),
    (CHAT, talk(modalities=["text"], guidance=2.0), "guidance has no effect where only text is wanted"),
    (CHAT, talk(modalities=["text"], steps=3), "steps has no effect where only text is wanted"),
    (CHAT, talk(modalities=["audio"]), "modalities"),
    (TEXT, {"prompt": ["a"] * 9}, "n may be at most 8"),
    (TEXT, {"prompt": "a " * 60_000}, "at most 100000 characters"),
    (TEXT, {"prompt": "a " * 400}, "tokens, too many for the model's context"),
    (TEXT, {"prompt": "a " * 4_000}, "8000 characters, too many for the model's context"),
    (DRAW, {"prompt": "a", "negative": "a " * 400}, "too many for the model's context"),
    (DRAW, {"prompt": ""}, "prompt"),
    (DRAW, {"prompt": "a", "partial_images": 3}, "without stream"),
    (DRAW, {"prompt": "a", "output_compression": 101}, "output_compression"),
    (DRAW, {"prompt": "a", "output_compression": 10}, "no effect on png"),
    (DRAW, {"prompt": "a", "response_format": "url", "stream": True}, "leave response_format out"),
    (DRAW, {"prompt": "a", "guidance": 1, "negative": "b"}, "no effect without guidance"),
    # wrong types, unknown fields
    (CHAT, talk(temperature="hot"), "temperature"),
    (CHAT, talk(temperature=True), "temperature"),
    (CHAT, talk(n="2"), "n"),
    (CHAT, talk(stream="yes"), "stream"),
    (CHAT, talk(stop=3), "stop: Input should be a valid"),
    (CHAT, talk(temprature=1), "did you mean 'temperature'?"),
    (CHAT, talk(tools=[{"type": "function"}]), "tools is not supported"),
    (CHAT, talk(response_format={"type": "json_object"}), "response_format is not supported"),
    (CHAT, [], "must be a JSON object"),
    (CHAT, {}, "messages"),
    (CHAT, {"messages": []}, "messages"),
    (CHAT, {"messages": [USER] * 201}, "at most 200 messages"),
    (CHAT, {"messages": [{"role": "tool", "content": "a"}]}, "role"),
    (CHAT, {"messages": [{"role": "user"}]}, "needs content"),
    (CHAT, {"messages": [{"role": "user", "content": "\ud800"}]}, "surrogate"),
    (CHAT, {"messages": [{"role": "user", "content": [{"type": "input_audio"}]}]}, "type"),
    (CHAT, {"messages": [{"role": "user", "content": "a", "images": []}, USER] * 2 + [{"role": 1}]}, "role"),
    (TEXT, {"prompt": [1.5]}, "prompt"),
    (TEXT, {"prompt": [[1], "a"]}, "prompt"),
    (TEXT, {"prompt": [[]]}, "prompt"),
    (TEXT, {"prompt": [-1]}, "prompt"),
    (TEXT, {"prompt": [10**6]}, "token 1000000, which stands for no text"),
    (TEXT, {"prompt": [[20], [tiny.tokenizer().boi]]}, "stands for no text"),
    (TEXT, {"prompt": [20] * 400}, "400 tokens, too many for the model's context"),
    (TEXT, {"prompt": "a", "suffix": "b"}, "suffix is not supported"),
    # pictures
    (CHAT, showing("data:image/png;base64,???"), "base64"),
    (CHAT, showing("data:image/png;base64," + "QUJD" * 10), "no PNG, JPEG, WEBP or GIF picture"),
    (CHAT, showing(data_of(png(square(size=(64, 64)))[:80])), "no PNG"),
    (CHAT, showing(data_of(bomb(30_000, 30_000))), "more than the 16000000 pixels"),
    (CHAT, showing(data_of(bomb(10, 10_000_000))), "more than the 16000000 pixels"),
    (CHAT, showing("data:text/plain,hello"), "must be data:image"),
    (CHAT, showing("file:///etc/passwd"), "must be data:image"),
    (CHAT, showing("http://example.org/a.png"), "fetches no pictures"),
    (CHAT, showing(7), "url"),
    (CHAT, {"messages": [{"role": "system", "content": showing(data_of(png(square())))["messages"][0]["content"]}]},
     "system message has no pictures"),
    (CHAT, {"messages": showing(data_of(png(square())))["messages"] * 17}, "at most 16 pictures"),
]  # fmt: skip


@pytest.fixture(scope="module")
def http(server: Running) -> Any:
    with httpx.Client(base_url=server.url, timeout=30) as found:
        yield found


def fault_of(answer: httpx.Response, status: int = 400) -> str:
    """The message of an answer that must be an error in OpenAI's form."""
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    assert "Traceback" not in answer.text
    assert len(error["message"]) < 1000
    return str(error["message"])


def test_what_is_wrong_is_refused_and_said(http: httpx.Client) -> None:
    for path, body, expected in REFUSED:
        said = fault_of(http.post(path, content=json.dumps(body), headers={"Content-Type": "application/json"}))
        assert expected in said, (body, said)
    assert http.get("/ready").status_code == 200
    coldest = {"temperature": 5e-324, "min_p": 5e-324, "top_p": 5e-324, "repetition_penalty": 0.01}
    assert http.post(TEXT, json={"prompt": "a", "max_tokens": 3} | coldest).status_code == 200
    assert http.post(TEXT, json={"prompt": "a", "max_tokens": 1}).status_code == 200


def test_the_field_and_the_kind_of_fault_are_named(http: httpx.Client) -> None:
    for path, body, parameter, code in (
        (CHAT, talk(temprature=1), "temprature", "invalid_value"),
        (CHAT, talk(tools=[{"type": "function"}]), "tools", "invalid_value"),
        (CHAT, {"messages": [USER | {"annotation": 1}]}, "messages.0.annotation", "invalid_value"),
        (TEXT, {"prompt": []}, "prompt", "invalid_value"),
        (TEXT, {"prompt": "a " * 400}, None, "context_length_exceeded"),
        (DRAW, {"prompt": "a", "negative": "a " * 400}, None, "context_length_exceeded"),
    ):
        error = http.post(path, json=body).json()["error"]
        assert (error["param"], error["code"]) == (parameter, code)
    assert "at least 1 item" in fault_of(http.post(TEXT, json={"prompt": []}))
    empty = {"role": "assistant", "content": "a", "annotations": [], "tool_calls": []}
    body = {"messages": [USER, empty, USER], "max_tokens": 1, "modalities": ["text"]}
    assert http.post(CHAT, json=body).status_code == 200, "what asks for nothing is no fault"


def test_broken_bodies(http: httpx.Client, caplog: pytest.LogCaptureFixture) -> None:
    kind = {"Content-Type": "application/json"}
    for body in (b"{", b"", b"\xff\xfe", b"[" * 100_000, b'{"n": ' + b"9" * 5000 + b"}", b'{"temperature": NaN}'):
        fault_of(http.post(CHAT, content=body, headers=kind))
    for headers in ({"Content-Type": "text/plain"}, {}):
        assert "application/json" in fault_of(http.post(CHAT, content=b'{"messages": []}', headers=headers))
    assert "multipart" in fault_of(http.post(EDIT, json={"prompt": "a"}))
    fault_of(http.post(EDIT, content=b"no form", headers={"Content-Type": "multipart/form-data; boundary=x"}))
    fault_of(http.post(EDIT, content=b"no form", headers={"Content-Type": "multipart/form-data"}))
    broken = {"Content-Type": 'Multipart/Form-Data; boundary="a:b"'}
    assert "could not be read" in fault_of(http.post(EDIT, content=b"--a;b\r\n", headers=broken))
    assert not caplog.records, "whoever sends a broken form is told, not the log"
    form = b'--x\r\nContent-Disposition: form-data; name="prompt"\r\n\r\na\r\n--x--\r\n'
    unusual = {"Content-Type": "Multipart/Form-Data; boundary=x"}
    assert "send the file as image" in fault_of(http.post(EDIT, content=form, headers=unusual))
    fault_of(http.get("/v1/nothing"), 404)
    fault_of(http.get(CHAT), 405)


def test_broken_edits(http: httpx.Client) -> None:
    good = png(square(size=(16, 16)))
    clear, opaque = PILImage.new("RGBA", (16, 16), (0, 0, 0, 0)), PILImage.new("RGBA", (16, 16), "red")
    for files, fields, expected in (
        ({"image": good}, {}, "prompt"),
        ({"image": b"no picture"}, {"prompt": "a"}, "no PNG"),
        ({"image": bomb(30_000, 30_000)}, {"prompt": "a"}, "pixels"),
        ({"image": good, "mask": png(PILImage.new("L", (16, 16)))}, {"prompt": "a"}, "mask of an edit is empty"),
        ({"image": good, "mask": png(clear.resize((8, 8)))}, {"prompt": "a"}, "make them alike"),
        ({"image": good, "mask": png(opaque)}, {"prompt": "a"}, "mask of an edit is empty"),
        ({"image": good}, {"prompt": "a", "n": "many"}, "n"),
        ({"image": good}, {"prompt": "a", "strength": "0"}, "strength"),
        ({"image": good}, {"prompt": "a", "strenght": "1"}, "did you mean 'strength'?"),
        ({"image": good, "prompt": b"a"}, {}, "must be text"),
    ):
        answer = http.post(EDIT, files=files, data=fields)
        assert expected in fault_of(answer), (fields, answer.text)
    assert "must be a file" in fault_of(http.post(EDIT, data={"prompt": "a", "image": "b"}, files={"mask": good}))
    assert "send the file as image" in fault_of(http.post(EDIT, data={"prompt": "a"}, files={"mask": good}))
    many = [("image[]", ("a.png", good))] * 18
    assert "form" in fault_of(http.post(EDIT, files=many, data={"prompt": "a"}))


def test_a_body_that_is_too_large_or_too_slow() -> None:
    limits = Limits(body=10_000, body_seconds=0.3)
    with running(limits=limits) as server, httpx.Client(base_url=server.url) as http:
        large = b'{"prompt": "' + b"a" * 30_000 + b'"}'
        kind = {"Content-Type": "application/json"}
        assert "10000 bytes" in fault_of(http.post(TEXT, content=large, headers=kind), 413)
        chunks = (large[start : start + 1000] for start in range(0, len(large), 1000))  # no Content-Length
        fault_of(http.post(TEXT, content=chunks, headers=kind), 413)
        with socket.create_connection(server.server.listening.getsockname()) as raw:
            raw.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99\r\n\r\n{")
            assert b"408" in raw.recv(100)
        assert http.post(TEXT, json={"prompt": "a", "max_tokens": 1}).status_code == 200


def test_keys() -> None:
    with running(api_key=("right-key-1", "right-key-2")) as server, httpx.Client(base_url=server.url) as http:
        for given in (
            {},
            {"Authorization": "Bearer wrong"},
            {"Authorization": "Basic ???"},
            {"Authorization": "right-key-1"},
        ):
            for path in ("/v1/models", "/metrics", "/openapi.json", "/"):
                answer = http.get(path, headers=given)
                assert "needs an API key" in fault_of(answer, 401)
        assert http.get("/health").status_code == http.get("/ready").status_code == 200
        for key in ("right-key-1", "right-key-2"):
            assert http.get("/v1/models", headers={"Authorization": f"Bearer {key}"}).status_code == 200
            assert http.get("/metrics", auth=("anyone", key)).status_code == 200
        with server.client(api_key="right-key-2") as client:
            assert client.models.list().data


def test_only_loopback_goes_without_a_key() -> None:
    for host in ("0.0.0.0", "::", "192.168.0.1", "example.org", ""):
        with pytest.raises(ValueError, match="loopback only"):
            ServeConfig(host=host)
        ServeConfig(host=host, api_key=("a-long-key",))
    for host in ("127.0.0.1", "127.8.8.8", "::1", "localhost"):
        assert ServeConfig(host=host).is_local
    with pytest.raises(ValueError, match="at least 8 characters"):
        ServeConfig(api_key=("short",))


def test_steps_that_nobody_named_keep_to_the_limit_too() -> None:
    """The folder's own number, and that of another sampler, may be more than the server wants to take."""
    with running(limits=Limits(steps=3)) as server:
        for given in ({}, {"sampler": "dpm++2m"}):
            question = ImageQuestion.model_validate({"prompt": "a", **given})
            assert server.service.settings(question).steps == 3


def test_a_file_of_keys_that_holds_none_opens_nothing(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    for text in ("", "\n \n"):
        file.write_text(text)
        with pytest.raises(ValueError, match="holds no API key; write one a line"):
            ServeConfig(api_key_file=str(file)).with_keys()
    file.write_text("a-long-key\nanother-key\n")
    assert ServeConfig(api_key_file=str(file)).with_keys().api_key == ("a-long-key", "another-key")


def test_web_pages_of_others(http: httpx.Client) -> None:
    assert "ask it as localhost" in fault_of(http.get("/v1/models", headers={"Host": "evil.example"}), 403)
    preflight = {"Origin": "https://page.example", "Access-Control-Request-Method": "POST"}
    assert "access-control-allow-origin" not in http.options(CHAT, headers=preflight).headers
    with running(origins=("https://page.example",), api_key=("a-long-key",)) as server:
        answer = httpx.options(server.url + CHAT, headers=preflight)
        assert answer.headers["access-control-allow-origin"] == "https://page.example"
        other = httpx.options(server.url + CHAT, headers=preflight | {"Origin": "https://other.example"})
        assert "access-control-allow-origin" not in other.headers


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1", "10.1.2.3", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1", "0.0.0.0", "224.0.0.1",
        "255.255.255.255", "::1", "::", "fe80::1", "fd00::1", "::ffff:127.0.0.1", "::ffff:10.0.0.1", "2002:7f00:1::",
        "64:ff9b::7f00:1", "ff02::1",
    ],
)  # fmt: skip
def test_private_addresses_are_not_public(address: str) -> None:
    assert not is_public(address)


def test_public_addresses_are() -> None:
    assert all(map(is_public, ("93.184.215.14", "2606:2800:21f:cb07:6820:80da:af6b:8b2c", "::ffff:8.8.8.8")))


class Site(BaseHTTPRequestHandler):
    """A picture, a redirect, and something endless."""

    def do_GET(self) -> None:
        if self.path == "/moved":
            self.send_response(302)
            self.send_header("Location", "/picture.png")
            self.end_headers()
            return
        self.send_response(200)
        self.end_headers()
        self.wfile.write(png(square()) if self.path == "/picture.png?a=b" else bytes(50_000))

    def log_message(self, format: str, *arguments: Any) -> None:
        pass


def test_fetching() -> None:
    with HTTPServer(("127.0.0.1", 0), Site) as site:
        Thread(target=site.serve_forever, args=(0.02,), daemon=True).start()
        address = f"http://127.0.0.1:{site.server_port}"
        found = fetch(f"{address}/picture.png?a=b", most=10_000, parameter="x", allowed=lambda _: True)
        with PILImage.open(io.BytesIO(found)) as picture:
            assert picture.size == (8, 8)
        for url, expected in (
            (f"{address}/moved", "redirects are not followed"),
            (f"{address}/large", "more than the 10000 bytes"),
            ("http://127.0.0.1:1/", "could not be fetched"),
            (f"http://user:secret@127.0.0.1:{site.server_port}/", "no password"),
            ("ftp://127.0.0.1/", "must be http"),
            ("http://[::1/", "could not be fetched"),
            ("http://127.0.0.1:99999/", "could not be fetched"),
            (f"{address}/a b\r\nX: y", "could not be fetched"),
        ):
            with pytest.raises(ApiError, match=expected):
                fetch(url, most=10_000, parameter="x", allowed=lambda _: True)
        site.shutdown()


def test_private_pictures_are_not_fetched() -> None:
    with running(remote_images=True) as server, httpx.Client(base_url=server.url) as http:
        own = f"{server.url}/health"
        for url in (
            own,
            own.replace("127.0.0.1", "localhost"),
            own.replace("127.0.0.1", "2130706433"),
            "http://[::1]/",
        ):
            assert "open internet" in fault_of(http.post(CHAT, json=showing(url))), url
