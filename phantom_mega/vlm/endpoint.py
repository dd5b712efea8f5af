"""A model behind an OpenAI-compatible chat endpoint: vLLM, Gemini, Ollama and others."""

from __future__ import annotations

import base64
import io
import json
import time
from collections.abc import Callable, Sequence

import httpx
from PIL import Image

from phantom_mega.errors import SetupError
from phantom_mega.vlm.base import TransientError, Turn, VisionModel

MAX_BODY = 1 << 20
MAX_SIDE = 768  # pixels of an image as sent
LONGEST_WAIT = 60.0  # seconds, whatever Retry-After says
_BUSY = (408, 409, 425, 429)


def data_url(image: Image.Image) -> str:
    """An image as a JPEG of at most `MAX_SIDE` pixels, base64."""
    small = image.convert("RGB")
    small.thumbnail((MAX_SIDE, MAX_SIDE))
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=90)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


class Endpoint(VisionModel):
    """Asks `POST endpoint/chat/completions`.

    Args:
        endpoint: base address, as `http://localhost:8000/v1`.
        model: its name there.
        key: sent as a bearer token; never printed.
        key_name: where the key is from, for messages.
        timeout: seconds for an answer.
        requests: tries of one answer while the server is busy or does not respond.
        sleep: how to wait.
    """

    def __init__(
        self,
        endpoint: str,
        model: str,
        key: str | None = None,
        key_name: str = "the key",
        timeout: float = 120.0,
        requests: int = 3,
        sleep: Callable[[float], None] = time.sleep,
    ):
        self.address = endpoint.rstrip("/") + "/chat/completions"
        self.model, self.key_name, self.requests, self.sleep = model, key_name, requests, sleep
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._client = httpx.Client(timeout=timeout, headers=headers, follow_redirects=False, trust_env=True)
        self._timeout = timeout
        self._json_mode = True
        self._answered = False

    def ask(self, turns: Sequence[Turn]) -> str:
        """See `VisionModel.ask`."""
        error = TransientError("the endpoint was not asked")
        for number in range(self.requests):
            try:
                return self._content(self._post(turns))
            except TransientError as problem:
                error = problem
                if number + 1 < self.requests:
                    self.sleep(getattr(problem, "wait", min(2.0**number, LONGEST_WAIT)))
        raise error

    def _post(self, turns: Sequence[Turn]) -> bytes:
        body = {"model": self.model, "messages": [self._message(turn) for turn in turns], "temperature": 0.2}
        if self._json_mode:
            body["response_format"] = {"type": "json_object"}
        deadline = time.monotonic() + self._timeout
        try:
            with self._client.stream("POST", self.address, json=body) as response:
                data = b""
                for part in response.iter_bytes():
                    data += part
                    if len(data) > MAX_BODY:
                        raise TransientError(f"the answer is larger than {MAX_BODY >> 20} MiB")
                    if time.monotonic() > deadline:  # httpx's own limit is for one read
                        raise TransientError(f"no whole answer within {self._timeout:g} s")
        except httpx.TimeoutException:
            raise TransientError(f"no answer within {self._timeout:g} s") from None
        except (httpx.ConnectError, httpx.UnsupportedProtocol, httpx.InvalidURL) as error:
            if self._answered:
                raise TransientError(f"the endpoint is gone: {error}") from None
            raise SetupError(
                f"{self.address} cannot be reached ({error}); is the server running, is the address right?"
            ) from None
        except httpx.HTTPError as error:
            raise TransientError(f"the connection broke: {error or type(error).__name__}") from None
        if response.status_code == 400 and self._json_mode:
            self._json_mode = False  # not every server knows response_format
            return self._post(turns)
        self._check(response, data)
        return data

    def _check(self, response: httpx.Response, data: bytes) -> None:
        """Sort a refusal: later, or never."""
        code = response.status_code
        if code == 200:
            self._answered = True
            return
        said = " ".join(data[:300].decode(errors="replace").split())
        if code in _BUSY or code >= 500:
            problem = TransientError(f"the endpoint answered {code}: {said}")
            wait = response.headers.get("retry-after", "")
            if wait.replace(".", "", 1).isdecimal():
                problem.wait = min(float(wait), LONGEST_WAIT)
            raise problem
        if 300 <= code < 400:
            raise SetupError(f"{self.address} redirects to {response.headers.get('location', '?')}; name that address")
        hints = {
            401: f"it refuses {self.key_name}",
            403: f"it refuses {self.key_name}",
            404: f"it knows no model {self.model!r}, or the address has no /chat/completions",
            413: "the images are too large for it",
        }
        raise SetupError(f"{self.address} answered {code}: {hints.get(code, 'it refuses the request')} ({said})")

    def _content(self, data: bytes) -> str:
        try:
            choice = json.loads(data)["choices"][0]
            content, reason = choice["message"]["content"], choice.get("finish_reason")
        except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError):
            raise TransientError("the answer is no chat completion") from None
        if not isinstance(content, str) or not content.strip():
            raise TransientError("the answer is empty")
        if reason == "length":
            raise TransientError("the answer was cut off")
        return content

    def _message(self, turn: Turn) -> dict:
        if not turn.images:
            return {"role": turn.role, "content": turn.text}
        images = [{"type": "image_url", "image_url": {"url": data_url(image)}} for image in turn.images]
        return {"role": turn.role, "content": [*images, {"type": "text", "text": turn.text}]}
