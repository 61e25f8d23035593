"""vLLM behind the engine interface: InProcessEngine and ServerEngine, made by `dcore_jax.engines.open_engine`.

Nothing here is imported before it is asked for: aiohttp and vLLM are extras.
"""
