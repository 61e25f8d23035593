"""Devices in zones: find the newest, check, get the power of a mode, set level and mode; a state of three tables."""

from typing import Any

from dcore_jax.calls import JSON
from dcore_jax.toolworld.families.foreign import FOREIGN, FOREIGN_VALUES
from dcore_jax.toolworld.family import Output, Plan, Policy, ToolFamily, ids, register, step
from dcore_jax.toolworld.tables import SMALL, Tables
from dcore_jax.toolworld.tool import Tool, object_schema

_VALUES = {"zone": ids("abcdefgh"), "device": ids("ijklmnop"), "mode": ids("qrstuvwx"), "level": SMALL}
_T = Tables("zone", "device", "mode", "level", _VALUES)


def _find_device(state: Any, zone: str) -> JSON:
    return {"device": _T.latest(state, zone)}


def _check_device(state: Any, device: str) -> JSON:
    return dict(_T.fields(state, device))


def _get_power(state: Any, mode: str) -> JSON:
    return {"power": _T.number(state, mode)}


def _set_level(state: Any, device: str, level: int) -> JSON:
    return _T.change(state, device, "level", level)


def _set_mode(state: Any, device: str, mode: str) -> JSON:
    _T.number(state, mode)
    return _T.change(state, device, "mode", mode)


_FIND = step("find_device", "find the newest device in zone {zone}", zone="zone")
_CHECK = step("check_device", "check device {device}", device="device")
_CHECK_FOUND = step("check_device", "check the device of step {0}", device=Output(0, "device"))
_LEVEL_FOUND = step(
    "set_level",
    "set the level of the device of step {0} to {level}",
    device=Output(0, "device"),
    level="level",
)
_MODE_FOUND = step(
    "set_mode", "switch the device of step {0} to mode {mode}", device=Output(0, "device"), mode="mode"
)
_SHOWN = "the mode is {%d[mode]} and the level is {%d[level]}"

FAMILY = register(
    ToolFamily(
        name="devices",
        tools=(
            Tool(
                "find_device",
                "Name the newest device of a zone.",
                object_schema(zone="string"),
                _find_device,
                "zone_unit",
            ),
            Tool(
                "check_device",
                "Give the mode and the level of a device.",
                object_schema(device="string"),
                _check_device,
                "probe_unit",
            ),
            Tool(
                "get_power",
                "Give the power that a mode needs.",
                object_schema(mode="string"),
                _get_power,
                "mode_watts",
            ),
            Tool(
                "set_level",
                "Change the level of a device.",
                object_schema(device="string", level="integer"),
                _set_level,
                "tune_unit",
            ),
            Tool(
                "set_mode",
                "Change the mode of a device.",
                object_schema(device="string", mode="string"),
                _set_mode,
                "switch_unit",
            ),
        ),
        plans=(
            Plan(
                (
                    "find the newest device in zone {zone}",
                    "which device is newest in zone {zone}",
                    "name the device that came last to zone {zone}",
                ),
                (_FIND,),
                "the newest device is {0[device]}",
            ),
            Plan(
                ("check device {device}", "how is device {device} set", "tell me about device {device}"),
                (_CHECK,),
                _SHOWN % (0, 0),
            ),
            Plan(
                (
                    "get the power of mode {mode}",
                    "what power does mode {mode} need",
                    "how much power goes into mode {mode}",
                ),
                (step("get_power", "get the power of mode {mode}", mode="mode"),),
                "the power is {0[power]}",
            ),
            Plan(
                (
                    "set the level of device {device} to {level}",
                    "bring device {device} to level {level}",
                    "device {device} should be at level {level}",
                ),
                (
                    step(
                        "set_level",
                        "set the level of device {device} to {level}",
                        device="device",
                        level="level",
                    ),
                ),
                "device {device} is changed",
            ),
            Plan(
                (
                    "switch device {device} to mode {mode}",
                    "bring device {device} into mode {mode}",
                    "device {device} should run in mode {mode}",
                ),
                (step("set_mode", "switch device {device} to mode {mode}", device="device", mode="mode"),),
                "device {device} is changed",
            ),
            Plan(
                (
                    "check the newest device in zone {zone}",
                    "how is the newest device in zone {zone} set",
                    "tell me about the device that came last to zone {zone}",
                ),
                (_FIND, _CHECK_FOUND),
                _SHOWN % (1, 1),
            ),
            Plan(
                (
                    "set the level of the newest device in zone {zone} to {level}",
                    "bring the newest device in zone {zone} to level {level}",
                    "the newest device in zone {zone} should be at level {level}",
                ),
                (_FIND, _LEVEL_FOUND),
                "device {0[device]} is changed",
            ),
            Plan(
                (
                    "switch the newest device in zone {zone} to mode {mode}",
                    "bring the newest device in zone {zone} into mode {mode}",
                    "the newest device in zone {zone} should run in mode {mode}",
                ),
                (_FIND, _MODE_FOUND),
                "device {0[device]} is changed",
            ),
            Plan(
                (
                    "get the power of the mode of device {device}",
                    "what power does the mode of device {device} need",
                    "how much power goes into the mode of device {device}",
                ),
                (_CHECK, step("get_power", "get the power of the mode of step {0}", mode=Output(0, "mode"))),
                "the power is {1[power]}",
            ),
            Plan(
                (
                    "switch device {device} to the mode of device {device2}",
                    "bring device {device} into the mode of device {device2}",
                    "device {device} should run as device {device2} does",
                ),
                (
                    step("check_device", "check device {device2}", device="device2"),
                    step(
                        "set_mode",
                        "switch device {device} to the mode of step {0}",
                        device="device",
                        mode=Output(0, "mode"),
                    ),
                ),
                "device {device} is changed",
            ),
            Plan(
                (
                    "get the power of the mode of the newest device in zone {zone}",
                    "what power does the mode of the newest device in zone {zone} need",
                    "how much power goes into the mode of the newest device in zone {zone}",
                ),
                (
                    _FIND,
                    _CHECK_FOUND,
                    step("get_power", "get the power of the mode of step {1}", mode=Output(1, "mode")),
                ),
                "the power is {2[power]}",
            ),
            Plan(
                (
                    "set the level of the newest device in zone {zone} to {level} and check it",
                    "bring the newest device in zone {zone} to level {level} and check it",
                    "the newest device in zone {zone} should be at level {level}, check it then",
                ),
                (_FIND, _LEVEL_FOUND, _CHECK_FOUND),
                _SHOWN % (2, 2),
            ),
            Plan(
                (
                    "switch device {device} to the mode of the newest device in zone {zone}",
                    "bring device {device} into the mode of the newest device in zone {zone}",
                    "device {device} should run as the newest device in zone {zone} does",
                ),
                (
                    _FIND,
                    _CHECK_FOUND,
                    step(
                        "set_mode",
                        "switch device {device} to the mode of step {1}",
                        device="device",
                        mode=Output(1, "mode"),
                    ),
                ),
                "device {device} is changed",
            ),
        ),
        foreign=FOREIGN,
        values={**FOREIGN_VALUES, **_VALUES},
        initial_state=_T.initial_state,
        policies=(
            Policy("set_level", "device", "never set the level of device {device}"),
            Policy("set_mode", "mode", "never switch a device to mode {mode}"),
        ),
    )
)
