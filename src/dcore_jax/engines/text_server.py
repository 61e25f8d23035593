"""Any OpenAI-compatible server as an engine of texts: for evaluation, since it gives neither ids nor their log-probabilities."""

import json
import os
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import Any

from dcore_jax.engines.engine import EngineStats, FinishReason, Request, Sample
from dcore_jax.errors import UserError

_ATTEMPTS = 6
_TIMEOUT = 3600.0  # seconds for one answer
_BUSY = {408, 409, 425, 429, 500, 502, 503, 504}  # statuses after which a request is sent again


class TextServerEngine:
    """An `Engine` over `POST /v1/completions`: prompts are decoded to text, answers tokenised again.

    Its samples have log-probabilities of 0: not for training.

    Args:
      url: of the server, http://host:port, with or without `/v1`.
      tokenizer: of the model that is served.
      model: as the server names it; None: the first of its `/v1/models`.
      slots: requests at the same time.

    Raises:
      UserError: the server cannot be reached or names no model. The key, where it asks for one, is $OPENAI_API_KEY.
    """

    weight_version = 0

    def __init__(self, url: str, tokenizer: Any, *, model: str | None = None, slots: int = 64):
        self._url = url.rstrip("/").removesuffix("/v1") + "/v1"
        self._tokenizer = tokenizer
        self._pool = ThreadPoolExecutor(slots)
        self._waiting: set[Future[Sample]] = set()
        self._stats = EngineStats()
        self.model = model or self._first_model()

    @property
    def in_flight(self) -> int:
        """Requests without an answer."""
        return len(self._waiting)

    @property
    def stats(self) -> EngineStats:
        """Counters since it was made."""
        return self._stats

    def submit(self, requests: Sequence[Request]) -> None:
        """See Engine.submit."""
        self._waiting |= {self._pool.submit(self._complete, request) for request in requests}

    def poll(self) -> list[Sample]:
        """The answers that have come; waits for one where none has."""
        if not self._waiting:
            return []
        done, self._waiting = wait(self._waiting, timeout=1.0, return_when=FIRST_COMPLETED)
        samples = [future.result() for future in done]
        for sample in samples:
            counts = self._stats._asdict()
            counts["requests"] += 1
            counts["prompt_tokens"] += len(sample.prompt_ids)
            counts["generated_tokens"] += len(sample.ids)
            counts[sample.finish_reason] += 1
            self._stats = EngineStats(**counts)
        return samples

    def generate(self, requests: Sequence[Request]) -> list[Sample]:
        """See Engine.generate."""
        return list(self._pool.map(self._complete, requests))

    def update_weights(self, weights: Any, version: int) -> None:
        """Not possible."""
        raise RuntimeError("an OpenAI-compatible server takes no weights")

    def release(self) -> None:
        """See Engine.release: the server's memory is its own."""

    def close(self) -> None:
        """Drops what is in flight."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _complete(self, request: Request) -> Sample:
        sampling = request.sampling
        answer = self._ask(
            "/completions",
            {
                "model": self.model,
                "prompt": self._tokenizer.decode(list(request.prompt_ids)),
                "max_tokens": sampling.max_tokens,
                "temperature": sampling.temperature,
                "top_p": sampling.top_p,
                "seed": sampling.seed % 2**31,
            },
        )
        if answer is None:
            return Sample(request.id, request.prompt_ids, (), (), "overlong", 0)
        try:
            choice = answer["choices"][0]
            text, reason = str(choice["text"]), choice.get("finish_reason")
        except (KeyError, IndexError, TypeError, AttributeError) as error:
            raise UserError(
                f"{self._url}/completions answers without choices: {str(answer)[:200]}"
            ) from error
        ids = tuple(self._tokenizer(text, add_special_tokens=False)["input_ids"])
        finish: FinishReason = "length" if reason == "length" else "stop"
        return Sample(request.id, request.prompt_ids, ids, (0.0,) * len(ids), finish, 0)

    def _first_model(self) -> str:
        answer = self._ask("/models")
        try:
            return str(answer["data"][0]["id"])  # type: ignore[index]
        except (KeyError, IndexError, TypeError) as error:
            raise UserError(f"{self._url}/models names no model; give its name") from error

    def _ask(self, path: str, body: dict[str, Any] | None = None) -> dict[str, Any] | None:
        """The server's answer; None where it says that the prompt is too long."""
        key = os.environ.get("OPENAI_API_KEY", "EMPTY")
        headers = {"Content-Type": "application/json", "Authorization": f"Bearer {key}"}
        data = None if body is None else json.dumps(body).encode()
        reason = ""
        for attempt in range(_ATTEMPTS):
            if attempt:
                time.sleep(min(2.0**attempt, 30.0))
            try:
                request = urllib.request.Request(self._url + path, data, headers)
                with urllib.request.urlopen(request, timeout=_TIMEOUT if body else 30.0) as answer:
                    return dict(json.load(answer))
            except urllib.error.HTTPError as error:
                said = error.read(2000).decode("utf-8", errors="replace")
                reason = f"status {error.code}: {' '.join(said.split())[:200]}"
                if error.code == 400 and ("context" in said or "too long" in said or "length" in said):
                    return None
                if error.code not in _BUSY:
                    break
            except (OSError, ValueError) as error:
                reason = str(error)
        raise UserError(f"{self._url}{path}: {reason}")
