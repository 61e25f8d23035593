"""What a recipe needs on a device before one is rented: memory by part, work, time and price, from shapes alone."""

from dcore_jax.plan.names import DEVICES, device_named, model_named, planned_presets
from dcore_jax.plan.page import plan_json, plan_table, plan_text
from dcore_jax.plan.plan import Plan, Workload, make_plan
from dcore_jax.plan.programs import ProgramPlan, Setting

__all__ = [
    "DEVICES", "Plan", "ProgramPlan", "Setting", "Workload", "device_named", "make_plan", "model_named", "plan_json",
    "plan_table", "plan_text", "planned_presets",
]  # fmt: skip
