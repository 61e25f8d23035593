"""vLLM in the trainer's own process: no HTTP, weights handed over as an iterator; on a GPU both share the device in turns."""

import os
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from flax import nnx
from tqdm import tqdm

from dcore_jax.engines.engine import EngineStats, Request, Sample, check_request
from dcore_jax.engines.vllm.answers import BadAnswer, Question, overlong, tally
from dcore_jax.engines.vllm.canary import Canary, Reference, Seen, check_canary, coarser, reference_function
from dcore_jax.engines.vllm.server import CPU_ENVIRONMENT, EXTENSION, has_cuda
from dcore_jax.engines.vllm.sync import check_coverage, expected_tensors
from dcore_jax.errors import UserError
from dcore_jax.models import Decoder, read_model_config
from dcore_jax.weights import hf_tensors

_ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    "VLLM_LOGGING_LEVEL": "WARNING",
    # The engine's loop in this thread: weights and requests are handed over as objects, not through sockets.
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
}


class InProcessEngine:
    """Samples from a vLLM engine in this process; an `Engine`.

    Args:
      folder: Hugging Face folder; its weights are version 0 until others come.
      max_length: most tokens of prompt and continuation together.
      eos_token_ids: end every sample, unless it says ignore_eos.
      dtype: what vLLM computes in.
      slots: sequences that are decoded at the same time.
      memory: share of a GPU's memory for vLLM's weights and cache.
      sleep: give the GPU's memory to the trainer whenever nothing is in flight; by default where there is a GPU.
      progress: show a bar in `generate`.

    Raises:
      UserError: vLLM is not installed, or does not take the model.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        max_length: int,
        eos_token_ids: Sequence[int] = (),
        dtype: str = "float32",
        slots: int = 64,
        memory: float = 0.4,
        sleep: bool | None = None,
        progress: bool = False,
        weight_version: int = 0,
    ):
        self.max_length, self._eos, self._dtype = max_length, tuple(eos_token_ids), dtype
        self._config = read_model_config(Path(folder))
        self._canary = Canary(self._config.vocab_size)
        self._sleeps = has_cuda() if sleep is None else sleep
        self._asleep, self._covered, self._progress = False, False, progress
        self._version = weight_version
        self._before: Reference | None = None
        self._graph: nnx.GraphDef | None = None
        self._reference_of: Callable[[Any], Reference] | None = None
        self._questions: dict[str, Question] = {}
        self._ready: list[Sample] = []
        self._next = 0
        self._counts: Counter[str] = Counter()
        self.canary_gap: float | None = None
        self._llm: Any = _llm(folder, dtype, max_length, slots, memory, self._sleeps)

    @property
    def weight_version(self) -> int:
        return self._version

    @property
    def in_flight(self) -> int:
        return len(self._questions) + len(self._ready)

    @property
    def stats(self) -> EngineStats:
        return EngineStats(**{name: self._counts[name] for name in EngineStats._fields})

    def generate(self, requests: Sequence[Request]) -> list[Sample]:
        """See Engine.generate."""
        self._check(requests)
        numbers = [self._add(request) for request in requests]
        done: dict[str, Sample] = {}
        wanted = set(numbers)
        for number, request in zip(numbers, requests):
            if number not in self._questions:
                done[number] = self._count(overlong(request, self._version))
        bar = tqdm(total=len(requests), unit="req", delay=2, leave=False, disable=not self._progress)
        with bar:
            bar.update(len(done))
            start, tokens = time.perf_counter(), 0
            while len(done) < len(numbers):
                for number, sample in self._step():
                    if number in wanted:
                        done[number] = sample
                        tokens += len(sample.ids)
                        bar.update()
                    else:
                        self._ready.append(sample)
                elapsed = time.perf_counter() - start
                bar.set_postfix_str(f"{tokens / elapsed:,.0f} tokens/s", refresh=False)
        self._rest()
        return [done[number] for number in numbers]

    def submit(self, requests: Sequence[Request]) -> None:
        """See Engine.submit."""
        self._check(requests)
        for request in requests:
            if self._add(request) not in self._questions:
                self._ready.append(self._count(overlong(request, self._version)))

    def poll(self) -> list[Sample]:
        """See Engine.poll: one step of vLLM's scheduler."""
        ready, self._ready = self._ready, []
        if self._questions:
            ready += [sample for _, sample in self._step()]
            if not self._questions:
                self._rest()
        return ready

    def update_weights(self, weights: Decoder | nnx.State, version: int) -> None:
        """See Engine.update_weights. One tensor at a time is on the host; the canary has been passed when it returns.

        Raises:
          UserError: vLLM's model has other tensors, or the canary differs from the trainer's.
        """
        if self.in_flight:
            raise RuntimeError(f"{self.in_flight} requests are in flight; poll until none is, then update")
        if isinstance(weights, Decoder):
            decoder, self._graph = weights, self._graph or nnx.split(weights)[0]
        elif self._graph is not None:
            decoder = nnx.merge(self._graph, weights)
        else:
            raise RuntimeError("the first update needs a Decoder; later ones may be its nnx.state")
        graph, params = nnx.split(decoder)
        self._reference_of = self._reference_of or reference_function(self._canary, graph)
        reference = self._reference_of(params)
        if not self._covered:
            for names in self._workers("dcore_tensor_names"):
                check_coverage(expected_tensors(self._config), names, "vLLM")
            self._covered = True
        if self._asleep:
            self._llm.wake_up(tags=["weights"])
        self._workers("dcore_load", weights=self._tensors(decoder))
        if self._asleep:
            self._llm.wake_up(tags=["kv_cache"])
            self._asleep = False
        self._llm.reset_prefix_cache()
        self.canary_gap = check_canary(
            self._see(),
            reference,
            self._before,
            dtype=coarser(self._dtype, np.dtype(decoder.compute.dtype).name),
            version=version,
            where="vLLM",
        )
        self._before, self._version = reference, version

    def sleep(self) -> None:
        """Gives the device's memory back until the next request; weights wait on the host."""
        if not self._asleep:
            self._llm.sleep(level=1)
            self._asleep = True

    def wake(self) -> None:
        """Undoes `sleep`; requests and updates do it by themselves."""
        if self._asleep:
            self._llm.wake_up()
            self._asleep = False

    def close(self) -> None:
        """See Engine.close."""
        if self._llm is not None:
            self._llm.llm_engine.engine_core.shutdown()
            self._llm = None
            self._questions.clear()

    def _check(self, requests: Sequence[Request]) -> None:
        if self._llm is None:
            raise RuntimeError("the engine is closed")
        for request in requests:
            check_request(request, self._config.vocab_size)

    def _add(self, request: Request) -> str:
        number = str(self._next)
        self._next += 1
        question = Question.of(request, self._eos, self.max_length, self._config.vocab_size)
        if question is not None:
            self.wake()
            prompt = {"prompt_token_ids": list(request.prompt_ids)}
            self._llm.llm_engine.add_request(number, prompt, _sampling(question))
            self._questions[number] = question
        return number

    def _step(self) -> list[tuple[str, Sample]]:
        finished = []
        for output in self._llm.llm_engine.step():
            if not output.finished:
                continue
            question = self._questions.pop(output.request_id)
            try:
                sample = question.sample(_payload(output), self._version)
            except BadAnswer as error:
                raise UserError(
                    f"vLLM gave {error} with weights of version {self._version}; go back to an earlier checkpoint if they are "
                    "not finite"
                ) from None
            finished.append((output.request_id, self._count(sample)))
        return finished

    def _count(self, sample: Sample) -> Sample:
        self._counts.update(tally(sample))
        return sample

    def _rest(self) -> None:
        if self._sleeps and not self.in_flight:
            self.sleep()

    def _workers(self, method: str, **arguments: Any) -> list[Any]:
        return self._llm.collective_rpc(method, kwargs=arguments)

    def _tensors(self, decoder: Decoder) -> Any:
        import torch

        kinds = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
        for name, array in hf_tensors(decoder):
            # torch knows no bfloat16 of NumPy's: the bits travel as integers.
            if array.dtype.itemsize == 2:
                tensor = torch.from_numpy(array.view(np.int16)).view(kinds[array.dtype.name])
            else:
                tensor = torch.from_numpy(np.array(array))
            yield name, tensor.to(kinds[self._dtype])

    def _see(self) -> Seen:
        from vllm import SamplingParams as VLLMSampling

        wish = self._canary.request.sampling
        sampling = VLLMSampling(
            temperature=wish.temperature, max_tokens=1, seed=0, logprobs=0, prompt_logprobs=0, ignore_eos=True
        )
        prompt = {"prompt_token_ids": list(self._canary.ids)}
        (output,) = self._llm.generate([prompt], sampling, use_tqdm=False)
        rows = output.prompt_logprobs[1:]
        given = [row[token].logprob for row, token in zip(rows, self._canary.ids[1:])]
        answer = output.outputs[0]
        token = int(answer.token_ids[0])
        return Seen(given, token, answer.logprobs[0][token].logprob)


def _llm(folder: str | Path, dtype: str, max_length: int, slots: int, memory: float, sleep: bool) -> Any:
    settings = {**_ENVIRONMENT, **({} if has_cuda() else CPU_ENVIRONMENT)}
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
        gpu_memory_utilization=memory,
        enable_sleep_mode=sleep and has_cuda(),
        distributed_executor_backend="uni",
        generation_config="vllm",
        logprobs_mode="processed_logprobs",
        max_logprobs=1,
        worker_extension_cls=f"dcore_jax.engines.vllm.worker.{EXTENSION}",
        trust_remote_code=False,
    )
    try:
        return LLM(**arguments)
    except ValueError as error:
        raise UserError(f"{folder}: vLLM does not take it: {' '.join(str(error).split())[:300]}") from None


def _sampling(question: Question) -> Any:
    from vllm import SamplingParams as VLLMSampling
    from vllm.sampling_params import RequestOutputKind

    return VLLMSampling(**question.sampling, output_kind=RequestOutputKind.FINAL_ONLY)


def _payload(output: Any) -> dict[str, Any]:
    """vLLM's own object in the form of an answer over HTTP, so that both are read by the same rules."""
    answer = output.outputs[0]
    ids = [int(i) for i in answer.token_ids]
    logprobs = [float(row[i].logprob) for row, i in zip(answer.logprobs or [], ids)]
    content = [{"logprob": p} for p in logprobs]
    choice = {"token_ids": ids, "logprobs": {"content": content}, "finish_reason": answer.finish_reason}
    return {"choices": [choice]}
