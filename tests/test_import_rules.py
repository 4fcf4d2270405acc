"""Imports run downwards only. Checked on the source, whatever has been imported already."""

import ast
import functools
from pathlib import Path

from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm

import sb3_dmpo
from sb3_dmpo import OfflineAlgorithm

PACKAGE = Path(sb3_dmpo.__file__).parent
FAMILIES = ("bc", "td3_bc", "iql", "cql", "diffusion_ql", "decision_transformer", "maple", "dmpo", "awac", "lapo")
BELOW_FAMILIES = ("files", "data", "envs", "common")
#: What every folder may import of the package; "" is the package itself, with its public names.
RULES: dict[str, tuple[str, ...]] = {
    "files": (),
    "data": ("files",),
    "envs": ("files", "data"),
    "common": ("files", "data", "envs"),
    "plots": ("files", "data", "envs"),
    # A variant builds on its family, and a few on another one's parts.
    **dict.fromkeys(FAMILIES, (*BELOW_FAMILIES, *FAMILIES)),
    "several_seeds": (*BELOW_FAMILIES, *FAMILIES),
    "": (*BELOW_FAMILIES, *FAMILIES),
    "hub": (*BELOW_FAMILIES, "plots", *FAMILIES, ""),
    "cli": (*BELOW_FAMILIES, "plots", *FAMILIES, "several_seeds", "", "hub"),
    "__main__": ("", "cli"),
}
#: The largest share of the package's lines that may lie in one folder.
LARGEST_SHARE = 0.3


def module_name(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}


@functools.cache
def imports_of(module: str) -> frozenset[str]:
    """
    What a module imports anywhere in its code. Of ``from a.b import c`` it is ``a.b.c`` if that is a module of the package,
    else ``a.b``.
    """
    path = MODULES[module]
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            source = ".".join([*above, *([node.module] if node.module else [])])
            found = {f"{source}.{alias.name}" for alias in node.names}
            names.update(name if name in MODULES else source for name in found)
    return frozenset(names)


def modules_imported_by(module: str) -> set[str]:
    """Modules of the package that a module imports."""
    return {name for name in imports_of(module) if name in MODULES}


def folder_of(module: str) -> str:
    return module.split(".")[1] if "." in module else ""


def reachable(module: str) -> set[str]:
    """
    Modules of the package that a module imports, directly or through others. The package itself imports everything: whoever
    imports its names depends on it, but not on the whole.
    """
    found: set[str] = set()
    todo = [module]
    while todo:
        new = modules_imported_by(todo.pop()) - found - {"sb3_dmpo"}
        found |= new
        todo.extend(new)
    return found


def is_from(name: str, *packages: str) -> bool:
    return name.split(".")[0] in packages


def test_the_rules_look_at_something() -> None:
    assert len(MODULES) > 100
    assert "sb3_dmpo.data.preprocessing" in reachable("sb3_dmpo.envs")
    assert modules_imported_by("sb3_dmpo.data") == {"sb3_dmpo.data.loading", "sb3_dmpo.data.transitions"}
    assert is_from("torch.nn", "torch") and not is_from("torchvision", "torch")


def test_every_folder_imports_only_what_lies_below_it() -> None:
    assert {folder_of(module) for module in MODULES} == set(RULES), "every folder needs a rule of its own"
    above = {
        (module, name)
        for module in MODULES
        for name in modules_imported_by(module)
        if folder_of(name) not in (folder_of(module), *RULES[folder_of(module)])
    }
    assert not above


def test_no_module_imports_itself_through_others() -> None:
    assert not {module for module in MODULES if module in reachable(module)}


def test_data_and_environments_never_import_torch() -> None:
    modules = [module for module in MODULES if folder_of(module) in ("data", "envs")]
    parts = {module: (module, *reachable(module)) for module in modules}
    assert not {
        (part, name) for module in modules for part in parts[module] for name in imports_of(part) if is_from(name, "torch")
    }


def test_only_plots_draws() -> None:
    modules = [module for module in MODULES if folder_of(module) != "plots"]
    assert not {
        (module, name) for module in modules for name in imports_of(module) if is_from(name, "matplotlib", "PIL", "seaborn")
    }


def test_policies_never_import_buffers_or_readers() -> None:
    modules = [module for module in MODULES if module.endswith((".policies", ".networks"))]
    readers = {"sb3_dmpo.common.buffers", "sb3_dmpo.data", "sb3_dmpo.data.loading"}
    assert modules and not {(module, name) for module in modules for name in reachable(module) & readers}


def test_the_package_never_imports_benchmarks_or_tests() -> None:
    assert not {(module, name) for module in MODULES for name in imports_of(module) if is_from(name, "benchmarks", "tests")}


def test_no_folder_holds_most_of_the_package() -> None:
    lines: dict[str, int] = {}
    for module, path in MODULES.items():
        lines[folder_of(module)] = lines.get(folder_of(module), 0) + len(path.read_text(encoding="utf-8").splitlines())
    assert max(lines.values()) <= LARGEST_SHARE * sum(lines.values()), lines


def test_algorithms_stand_on_one_class_each() -> None:
    """No mixins: every class has one base, and below the base of all there are at most two."""
    assert OfflineAlgorithm.__bases__ == (OffPolicyAlgorithm,)
    for algorithm in sb3_dmpo.ALGOS.values():
        line = algorithm.__mro__[: algorithm.__mro__.index(OfflineAlgorithm)]
        assert len(line) <= 2 and all(len(cls.__bases__) == 1 for cls in line), algorithm
