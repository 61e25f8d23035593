"""A STUB of a vLLM server for the client's tests: no model, responses computed from the request, faults on demand.

    python stub_vllm_server.py --port PORT [--delay SECONDS] [--length TOKENS]

A response is a function of (prompt, seed, weights), so that a test can tell which weights it came from. POST /stub/fault sets one
of: none, status (HTTP 500), garbage (not JSON), nonsense (JSON that is not a response), hang, small (refuses long requests),
crash, forget (base weights, as after a restart by someone else). GET /stub/seen lists the generate
requests that began and finished.
"""

import argparse
import asyncio
import hashlib
import json
import os
from pathlib import Path

from aiohttp import web

VOCAB = 131


def stub_tokens(prompt, seed, weights, count, stops):
    """Ids and log-probabilities of a response: a pure function, so that tests can compute them again."""
    ids, logprobs = [], []
    for i in range(count):
        digest = hashlib.sha256(json.dumps([list(prompt), seed, weights, i]).encode()).digest()
        ids.append(digest[0] % VOCAB)
        logprobs.append(-digest[1] / 64)
        if ids[-1] in stops:
            return ids, logprobs, "stop"
    return ids, logprobs, "length"


class StubServer:
    def __init__(self, arguments):
        self.arguments, self.fault, self.name = arguments, arguments.fault, "default"
        self.folder, self.canned = "", None
        self.began, self.finished, self.pushes = [], [], []
        self.busy = self.busiest = 0

    async def generate(self, request):
        body = await request.json()
        if request.headers.get("Authorization", "") != f"Bearer {os.environ.get('VLLM_API_KEY', '')}":
            return web.json_response({"error": {"message": "Unauthorized"}}, status=401)
        prompt, params = body["token_ids"], body["sampling_params"]
        if params.get("prompt_logprobs") is not None:
            return web.json_response(self.answer_canary(prompt))
        self.began.append([prompt, params["seed"]])
        name = self.name
        self.busy += 1
        self.busiest = max(self.busy, self.busiest)
        if self.arguments.delay:
            await asyncio.sleep(self.arguments.delay)
        self.busy -= 1
        fault, self.fault = self.fault, self.fault if self.fault in ("hang", "small") else "none"
        if self.fault == "none" and self.arguments.keep_fault:
            self.fault = fault
        if fault == "status":
            return web.json_response({"error": {"message": "the engine is dead"}}, status=500)
        if fault == "garbage":
            return web.Response(body=b"\x00\xff<html>")
        if fault == "nonsense":
            return web.json_response({"choices": [{"token_ids": [VOCAB + 7], "finish_reason": "stop"}]})
        if fault == "hang":
            await asyncio.sleep(3600)
        if fault == "crash":
            os._exit(1)
        if fault == "small":
            message = "maximum context length is 8 tokens"
            return web.json_response({"error": {"message": message}}, status=400)
        if self.arguments.canned:
            return web.Response(
                body=self.canned_answer(params["max_tokens"]), content_type="application/json"
            )
        ids, logprobs, reason = stub_tokens(
            prompt, params["seed"], name, params["max_tokens"], params["stop_token_ids"]
        )
        self.finished.append([prompt, params["seed"]])
        spans = [{"version": name, "start": 0, "end": len(ids)}]
        content = [{"token_id": i, "logprob": p} for i, p in zip(ids, logprobs)]
        choice = {
            "index": 0,
            "token_ids": ids,
            "logprobs": {"content": content},
            "finish_reason": reason,
            "weight_versions": spans,
        }
        return web.json_response({"choices": [choice]})

    def canned_answer(self, count):
        if self.canned is None:
            content = [{"token_id": 1, "logprob": -1.2345678, "rank": 1, "top_logprobs": []}] * count
            choice = {
                "index": 0,
                "token_ids": [1] * count,
                "logprobs": {"content": content},
                "finish_reason": "length",
            }
            self.canned = json.dumps({"choices": [choice]}).encode()
        return self.canned

    def answer_canary(self, prompt):
        """The canary's log-probabilities that the test wrote beside the pushed weights, as stub_canary.json."""
        path = Path(self.folder).parent / "stub_canary.json"
        given = {"prompt": [-1.0] * 63, "sampled": [-2.0] * VOCAB}
        if path.exists():
            given = json.loads(path.read_text())
        rows = [{str(t): {"logprob": p}} for t, p in zip(prompt[1:], given["prompt"])]
        content = [
            {"token_id": 0, "logprob": given["sampled"][0]}
        ]  # any token may be sampled: the first one is
        choice = {"token_ids": [0], "logprobs": {"content": content}, "finish_reason": "length"}
        return {"choices": [choice], "prompt_logprobs": [None, *rows]}

    async def control(self, request):
        body = await request.json() if request.can_read_body else {}
        path = request.path
        self.pushes.append(path)
        if path == "/collective_rpc":
            if body["method"] == "dcore_tensor_names":
                return web.json_response({"results": [json.loads(os.environ["STUB_TENSORS"])]})
            self.folder = body["kwargs"]["folder"]
            return web.json_response({"results": [self.folder]})
        if path == "/update_weights":
            self.folder = body["update_info"]["folder"]
        if path == "/finish_weight_update":
            self.name = body["weight_version"]
        if path == "/update_weight_version":
            self.name = body["new_version"]
        return web.json_response({})

    async def set_fault(self, request):
        self.fault = (await request.json())["fault"]
        if self.fault == "forget":
            self.fault, self.name = "none", "default"
        return web.json_response({})

    async def health(self, request):
        return web.Response()

    async def models(self, request):
        return web.json_response({"data": [{"id": "stub", "max_model_len": self.arguments.length}]})

    async def weight_info(self, request):
        return web.json_response({"weight_version": self.name})

    async def seen(self, request):
        return web.json_response(
            {"began": self.began, "finished": self.finished, "pushes": self.pushes, "busiest": self.busiest}
        )

    def app(self):
        app = web.Application()
        app.router.add_get("/health", self.health)
        app.router.add_get("/v1/models", self.models)
        app.router.add_get("/weight_info", self.weight_info)
        app.router.add_get("/stub/seen", self.seen)
        app.router.add_post("/stub/fault", self.set_fault)
        app.router.add_post("/inference/v1/generate", self.generate)
        for path in (
            "/pause", "/resume", "/collective_rpc", "/reset_prefix_cache", "/init_weight_transfer_engine",
            "/start_weight_update", "/update_weights", "/finish_weight_update", "/update_weight_version",
        ):  # fmt: skip
            app.router.add_post(path, self.control)
        return app


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--delay", type=float, default=0.0)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument(
        "--canned", action="store_true", help="always the same answer, made once: for benchmarks"
    )
    parser.add_argument("--fault", default="none")
    parser.add_argument(
        "--keep-fault", action="store_true", help="every request has the fault, not the next one alone"
    )
    arguments = parser.parse_args()
    web.run_app(
        StubServer(arguments).app(), host="127.0.0.1", port=arguments.port, print=None, access_log=None
    )
