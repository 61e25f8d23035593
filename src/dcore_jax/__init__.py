"""Teach language models to use tools, in JAX: packed SFT, self-distillation and DA-GRPO."""

__version__ = "0.1.0"
