"""Imports point one way: `cli → everything; api → {templates, placement} → node → isolation`."""

from __future__ import annotations

import sys

import pytest
from tests.support.source import Module, imports, packaged_modules

SERVER = "cloche_server"
LEAVES = {
    "addresses",
    "config",
    "ids",
    "clock",
    "link",
    "errors",
    "telemetry",
    "readiness",
    "resolvers",
    "disk_space",
    "domain_names",
    "mount_paths",
    "isolation_choice",
}
ROOMS = {"api", "store", "placement", "node", "isolation", "templates", "edge", "egress", "volumes", "cli"}

# What a room may import of the server, besides itself and the leaf modules; a dotted name allows that module.
ROOM_ARROWS: dict[str, set[str]] = {
    "isolation": set(),
    "node": {"isolation"},
    "store": set(),
    "placement": {"node"},
    "templates": {"node"},
    "api": {"templates", "placement", "store", "node.messages"},
    "edge": {"node.messages"},
    "egress": {"node.messages"},
    "volumes": {"node.messages", "isolation.syscalls"},
    "cli": ROOMS,
}

# What a distribution may import besides the standard library and itself.
DISTRIBUTION_ARROWS: dict[str, set[str]] = {
    "cloche_wire": set(),
    "cloche_agent": {"cloche_wire", "h11"},
    "cloche": {"cloche_wire", "httpx", "anyio"},
    "e2b": {"cloche", "cloche_wire", "e2b_code_interpreter"},
    "e2b_code_interpreter": {"cloche", "cloche_wire", "e2b"},
}
KERNELS = "cloche_agent.kernels"
# Kernel programs run under the template's Python: what is theirs is there, the rest is used where it is.
KERNEL_ARROWS: dict[str, set[str]] = {
    f"{KERNELS}.python_kernel": {
        "IPython", "traitlets", "matplotlib", "pandas", "numpy", "PIL", "orjson", "e2b_charts",
    },
    f"{KERNELS}.driven_kernel": {"jupyter_client", "zmq", f"{KERNELS}.python_kernel.frames"},
}  # fmt: skip

MODULES = packaged_modules()


def in_package(name: str, package: str) -> bool:
    return name == package or name.startswith(package + ".")


def modules_of(package: str) -> list[Module]:
    return [module for module in MODULES.values() if in_package(module.name, package)]


@pytest.mark.parametrize("package", DISTRIBUTION_ARROWS)
def test_a_distribution_imports_only_what_it_depends_on(package: str) -> None:
    allowed = DISTRIBUTION_ARROWS[package] | {package} | sys.stdlib_module_names
    strangers = {
        f"{module.name} → {name}"
        for module in modules_of(package)
        if not any(in_package(module.name, program) for program in KERNEL_ARROWS)
        for name in imports(module)
        if name.split(".")[0] not in allowed
    }
    assert not strangers


@pytest.mark.parametrize("program", KERNEL_ARROWS)
def test_a_kernel_program_imports_nothing_of_ours_and_only_what_a_template_has(program: str) -> None:
    local = {module.path.stem for module in modules_of(program)}
    allowed = KERNEL_ARROWS[program] | local | sys.stdlib_module_names
    strangers = {
        f"{module.name} → {name}"
        for module in modules_of(program)
        for name in imports(module)
        if not in_package(name, program) and not {name, name.split(".")[0]} & allowed
        if not any(known.startswith(f"{name}.") for known in KERNEL_ARROWS[program])
    }
    assert not strangers


@pytest.mark.parametrize("room", ROOM_ARROWS)
def test_a_room_imports_only_along_its_arrows(room: str) -> None:
    package = f"{SERVER}.{room}"
    allowed = {f"{SERVER}.{name}" for name in ROOM_ARROWS[room] | LEAVES | {room}}
    violations = {
        f"{module.name} → {name}"
        for module in modules_of(package)
        for name in imports(module)
        if in_package(name, SERVER) and name != SERVER
        if not any(in_package(name, target) for target in allowed)
    }
    assert not violations


def test_leaf_modules_import_no_room() -> None:
    violations = {
        f"{SERVER}.{leaf} → {name}"
        for leaf in LEAVES & {name.removeprefix(SERVER + ".") for name in MODULES}
        for name in imports(MODULES[f"{SERVER}.{leaf}"])
        if any(in_package(name, f"{SERVER}.{room}") for room in ROOMS)
    }
    assert not violations


def test_every_module_of_the_server_is_in_a_room_or_a_leaf() -> None:
    names = {name.split(".")[1] for name in MODULES if name.startswith(SERVER + ".")}
    assert names <= ROOMS | LEAVES


def test_the_server_takes_the_agent_only_to_bundle_it() -> None:
    """The agent's code runs inside sandboxes; the server may pack it and may not call it."""
    users = {
        module.name
        for module in modules_of(SERVER)
        for name in imports(module)
        if in_package(name, "cloche_agent")
    }
    assert users <= {f"{SERVER}.node.runtime_tree"}


def test_no_import_cycles() -> None:
    graph = {name: imports(module) & MODULES.keys() for name, module in MODULES.items()}
    assert not cycles(graph)


def cycles(graph: dict[str, set[str]]) -> list[list[str]]:
    """What is left when modules that import nothing left are taken away, forwards and backwards."""
    left = {name: set(targets) - {name} for name, targets in graph.items()}
    for reverse in (False, True):
        if reverse:
            left = {name: {other for other in left if name in left[other]} for name in left}
        while free := {name for name, targets in left.items() if not targets & left.keys()}:
            left = {name: targets for name, targets in left.items() if name not in free}
    return [sorted(left)] if left else []


def test_the_cycle_finder_finds_a_ring_and_only_a_ring() -> None:
    assert cycles({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}, "e": set()}) == [["a", "b", "c"]]
    assert not cycles({"a": {"b", "c"}, "b": {"c"}, "c": set()})
