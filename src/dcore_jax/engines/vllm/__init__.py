"""vLLM behind the engine interface: InProcessEngine and ServerEngine, made by `dcore_jax.engines.open_engine`.

`open_engine` imports them only when they are asked for: aiohttp and vLLM are optional dependencies.
"""
