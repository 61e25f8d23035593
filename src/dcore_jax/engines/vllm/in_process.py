"""vLLM in the trainer's process: no HTTP, and weights are handed over as an iterator.

On a GPU engine and trainer share the device: vLLM sleeps, its memory freed, whenever no requests are in flight.
"""

import os
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
from flax import nnx

from dcore_jax.engines.engine import EngineStats, Request, Sample, check_request
from dcore_jax.engines.vllm.canary import (
    Canary,
    EngineLogprobs,
    Reference,
    ReferenceModel,
    check_canary,
    coarser,
)
from dcore_jax.engines.vllm.protocol import InvalidResponse, PreparedRequest, overlong_sample, stats_of
from dcore_jax.engines.vllm.server import EXTENSION, check_memory_fraction, has_cuda, vllm_settings
from dcore_jax.engines.vllm.sync import check_coverage, expected_tensors
from dcore_jax.errors import UserError
from dcore_jax.models import Decoder, read_model_config
from dcore_jax.progress import progress_bar
from dcore_jax.weights import hf_tensors

# vLLM's own default would leave no memory for the trainer on the same GPU.
DEFAULT_MEMORY_FRACTION = 0.4


class InProcessEngine:
    """Samples from a vLLM engine in this process; an `Engine`.

    Args:
      folder: the model's Hugging Face folder; its weights are used until the first update.
      max_length: most tokens of prompt and continuation together.
      eos_token_ids: end every sample, unless its request says ignore_eos.
      dtype: what vLLM computes in.
      slots: sequences decoded at the same time.
      memory_fraction: share of the GPU's memory for vLLM's weights and cache, in (0, 1] (vLLM's gpu_memory_utilization); None:
        DEFAULT_MEMORY_FRACTION.
      sleep: free the GPU's memory for the trainer whenever nothing is in flight; by default where there is a GPU.
      progress: show a bar in `generate`.
      weight_version: of the folder's weights.

    Raises:
      UserError: memory_fraction is out of range, vLLM is not installed, or it does not load the model.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        max_length: int,
        eos_token_ids: Sequence[int] = (),
        dtype: str = "float32",
        slots: int = 64,
        memory_fraction: float | None = None,
        sleep: bool | None = None,
        progress: bool = False,
        weight_version: int = 0,
    ):
        check_memory_fraction(memory_fraction)
        self.max_length, self._eos, self._dtype = max_length, tuple(eos_token_ids), dtype
        self._config = read_model_config(Path(folder))
        self._canary = Canary(self._config.vocab_size)
        self._reference_model = ReferenceModel(self._canary)
        self._sleeps = has_cuda() if sleep is None else sleep
        self._asleep, self._names_checked, self._progress = False, False, progress
        self._version = weight_version
        self._previous: Reference | None = None  # the canary's, by the weights in use
        self._running: dict[str, PreparedRequest] = {}  # by vLLM's request id
        self._ready: list[Sample] = []  # finished during a `generate`, to be polled
        self._next_id = 0
        self._counts: Counter[str] = Counter()
        self.canary_gap: float | None = None
        fraction = DEFAULT_MEMORY_FRACTION if memory_fraction is None else memory_fraction
        self._llm: Any = _load_vllm(folder, dtype, max_length, slots, fraction, self._sleeps)

    @property
    def weight_version(self) -> int:
        return self._version

    @property
    def in_flight(self) -> int:
        return len(self._running) + len(self._ready)

    @property
    def stats(self) -> EngineStats:
        return EngineStats(**{name: self._counts[name] for name in EngineStats._fields})

    def generate(self, requests: Sequence[Request]) -> list[Sample]:
        """See Engine.generate."""
        self._check(requests)
        ids = [self._add(request) for request in requests]
        done: dict[str, Sample] = {}
        wanted = set(ids)
        for id, request in zip(ids, requests):
            if id not in self._running:
                done[id] = self._count(overlong_sample(request, self._version))
        bar = progress_bar(len(requests), unit="request", transient=True, disable=not self._progress)
        with closing(bar):
            bar.update(len(done))
            start, tokens = time.perf_counter(), 0
            while len(done) < len(ids):
                for id, sample in self._step():
                    if id in wanted:
                        done[id] = sample
                        tokens += len(sample.ids)
                        bar.update()
                    else:
                        self._ready.append(sample)
                elapsed = time.perf_counter() - start
                bar.set_postfix({"tokens/s": f"{tokens / elapsed:,.0f}"})
        self._sleep_if_idle()
        return [done[id] for id in ids]

    def submit(self, requests: Sequence[Request]) -> None:
        """See Engine.submit."""
        self._check(requests)
        for request in requests:
            if self._add(request) not in self._running:
                self._ready.append(self._count(overlong_sample(request, self._version)))

    def poll(self) -> list[Sample]:
        """See Engine.poll. Runs one step of vLLM's scheduler."""
        ready, self._ready = self._ready, []
        if self._running:
            ready += [sample for _, sample in self._step()]
            if not self._running:
                self._sleep_if_idle()
        return ready

    def release(self) -> None:
        """See Engine.release: it sleeps by itself whenever nothing is in flight."""

    def update_weights(self, weights: Decoder | nnx.State, version: int) -> None:
        """See Engine.update_weights. One tensor at a time is on the host; the canary has passed when it returns.

        Raises:
          UserError: vLLM's model has other tensors, or the canary differs from the trainer's.
        """
        if self.in_flight:
            raise RuntimeError(f"{self.in_flight} requests are in flight; poll until none is, then update")
        decoder = self._reference_model.decoder(weights)
        reference = self._reference_model.reference(decoder)
        if not self._names_checked:
            for names in self._call_workers("dcore_tensor_names"):
                check_coverage(expected_tensors(self._config), names, "vLLM")
            self._names_checked = True
        # The cache's memory is claimed only after the weights are loaded: trainer and engine share the device.
        if self._asleep:
            self._llm.wake_up(tags=["weights"])
        self._call_workers("dcore_load", weights=self._tensors(decoder))
        if self._asleep:
            self._llm.wake_up(tags=["kv_cache"])
            self._asleep = False
        # Cached keys and values of the old weights must not serve the new ones.
        self._llm.reset_prefix_cache()
        self.canary_gap = check_canary(
            self._run_canary(),
            reference,
            self._previous,
            dtype=coarser(self._dtype, np.dtype(decoder.compute.dtype).name),
            version=version,
            name="vLLM",
        )
        self._previous, self._version = reference, version

    def sleep(self) -> None:
        """Frees the device's memory until the next request or update; the weights are kept in host memory."""
        if not self._asleep:
            self._llm.sleep(level=1)
            self._asleep = True

    def wake(self) -> None:
        """Undoes `sleep`. Requests and updates wake the engine by themselves."""
        if self._asleep:
            self._llm.wake_up()
            self._asleep = False

    def close(self) -> None:
        """See Engine.close."""
        if self._llm is not None:
            self._llm.llm_engine.engine_core.shutdown()
            self._llm = None
            self._running.clear()

    def _check(self, requests: Sequence[Request]) -> None:
        if self._llm is None:
            raise RuntimeError("the engine is closed")
        for request in requests:
            check_request(request, self._config.vocab_size)

    def _add(self, request: Request) -> str:
        """Queues a request in vLLM, unless it is overlong; returns its id."""
        id = str(self._next_id)
        self._next_id += 1
        prepared = PreparedRequest.from_request(request, self._eos, self.max_length, self._config.vocab_size)
        if prepared is not None:
            self.wake()
            prompt = {"prompt_token_ids": list(request.prompt_ids)}
            self._llm.llm_engine.add_request(id, prompt, _sampling(prepared))
            self._running[id] = prepared
        return id

    def _step(self) -> list[tuple[str, Sample]]:
        """One step of vLLM's scheduler; the requests that it finished."""
        finished = []
        for output in self._llm.llm_engine.step():
            if not output.finished:
                continue
            prepared = self._running.pop(output.request_id)
            try:
                sample = prepared.to_sample(_payload(output), self._version)
            except InvalidResponse as error:
                raise UserError(
                    f"vLLM gave {error} with weights of version {self._version}; go back to an earlier checkpoint if they are "
                    "not finite"
                ) from None
            finished.append((output.request_id, self._count(sample)))
        return finished

    def _count(self, sample: Sample) -> Sample:
        self._counts.update(stats_of(sample))
        return sample

    def _sleep_if_idle(self) -> None:
        if self._sleeps and not self.in_flight:
            self.sleep()

    def _call_workers(self, method: str, **arguments: Any) -> list[Any]:
        return self._llm.collective_rpc(method, kwargs=arguments)

    def _tensors(self, decoder: Decoder) -> Any:
        import torch

        dtypes = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
        for name, array in hf_tensors(decoder):
            # torch cannot read NumPy's bfloat16 (ml_dtypes): the bits are passed as integers.
            if array.dtype.itemsize == 2:
                tensor = torch.from_numpy(array.view(np.int16)).view(dtypes[array.dtype.name])
            else:
                tensor = torch.from_numpy(np.array(array))
            yield name, tensor.to(dtypes[self._dtype])

    def _run_canary(self) -> EngineLogprobs:
        from vllm import SamplingParams as VLLMSampling

        params = self._canary.request.sampling
        sampling = VLLMSampling(
            temperature=params.temperature,
            max_tokens=1,
            seed=0,
            logprobs=0,
            prompt_logprobs=0,
            ignore_eos=True,
        )
        prompt = {"prompt_token_ids": list(self._canary.ids)}
        (output,) = self._llm.generate([prompt], sampling, use_tqdm=False)
        rows = output.prompt_logprobs[1:]
        given = [row[token].logprob for row, token in zip(rows, self._canary.ids[1:])]
        completion = output.outputs[0]
        token = int(completion.token_ids[0])
        return EngineLogprobs(given, token, completion.logprobs[0][token].logprob)


def _load_vllm(
    folder: str | Path, dtype: str, max_length: int, slots: int, memory_fraction: float, sleep: bool
) -> Any:
    # 0: the engine's loop in this thread, so that weights and requests are handed over as objects, not through sockets.
    settings = {**vllm_settings(), "VLLM_LOGGING_LEVEL": "WARNING", "VLLM_ENABLE_V1_MULTIPROCESSING": "0"}
    for name, value in settings.items():
        os.environ.setdefault(name, value)
    try:
        from vllm import LLM
    except ImportError as error:
        raise UserError(
            f"engine vllm needs vLLM, which is not in this environment ({error}); see docs/vllm.md"
        ) from None
    arguments: dict[str, Any] = dict(
        model=str(folder),
        dtype=dtype,
        max_model_len=max_length,
        max_num_seqs=slots,
        seed=0,
        enforce_eager=not has_cuda(),
        enable_prefix_caching=True,
        gpu_memory_utilization=memory_fraction,
        enable_sleep_mode=sleep and has_cuda(),
        distributed_executor_backend="uni",
        generation_config="vllm",  # no sampling defaults from the model's folder
        logprobs_mode="processed_logprobs",  # after temperature, as training needs them
        max_logprobs=1,
        worker_extension_cls=f"dcore_jax.engines.vllm.worker.{EXTENSION}",
        trust_remote_code=False,
    )
    try:
        return LLM(**arguments)
    except ValueError as error:
        raise UserError(f"{folder}: vLLM does not load it: {' '.join(str(error).split())[:300]}") from None


def _sampling(prepared: PreparedRequest) -> Any:
    from vllm import SamplingParams as VLLMSampling
    from vllm.sampling_params import RequestOutputKind

    return VLLMSampling(**prepared.sampling_params, output_kind=RequestOutputKind.FINAL_ONLY)


def _payload(output: Any) -> dict[str, Any]:
    """vLLM's output object in the form of an HTTP response, so that both are validated by the same code."""
    completion = output.outputs[0]
    ids = [int(i) for i in completion.token_ids]
    logprobs = [float(row[i].logprob) for row, i in zip(completion.logprobs or [], ids)]
    content = [{"logprob": p} for p in logprobs]
    choice = {"token_ids": ids, "logprobs": {"content": content}, "finish_reason": completion.finish_reason}
    return {"choices": [choice]}
