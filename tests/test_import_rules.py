"""Data flows one way: dataset, buffer, algorithm, policy, zip. Checked on the source, whatever has been imported already."""

import ast
from pathlib import Path

import pytest

import sb3_dmpo

PACKAGE = Path(sb3_dmpo.__file__).parent
NOT_ALGORITHMS = {"common", "envs"}


def module_name(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def imports_of(module: str) -> set[str]:
    """Names that a module imports anywhere in its code, with what is imported from them: ``a.b`` and ``a.b.c``."""
    path = MODULES[module]
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            source = ".".join([*above, *([node.module] if node.module else [])])
            names.add(source)
            names.update(f"{source}.{alias.name}" for alias in node.names)
    return names


def reachable(module: str) -> set[str]:
    """Everything a module imports, directly or through other modules of the package."""
    found: set[str] = set()
    todo = [module]
    while todo:
        names = imports_of(todo.pop())
        # The package itself imports everything; importing a part of it does not make a module depend on the whole.
        todo.extend(name for name in names - found if name in MODULES and name != "sb3_dmpo")
        found |= names
    return found


def is_algorithm(name: str) -> bool:
    parts = name.split(".")
    if parts[0] != "sb3_dmpo" or len(parts) == 1:
        return False
    return name.startswith("sb3_dmpo.common.offline_algorithm") or (
        parts[1] not in NOT_ALGORITHMS and (PACKAGE / parts[1]).is_dir()
    )


def is_data(name: str) -> bool:
    return name.startswith(("sb3_dmpo.common.dataset", "sb3_dmpo.common.buffers"))


def is_torch(name: str) -> bool:
    return name.split(".")[0] == "torch"


def named(*stems: str) -> list[str]:
    return [name for name, path in MODULES.items() if path.stem.startswith(stems)]


def test_the_rules_look_at_something() -> None:
    assert len(MODULES) > 10
    assert "sb3_dmpo.common.buffers" in MODULES and "sb3_dmpo.common.policies" in named("policies")
    assert is_algorithm("sb3_dmpo.dmpo.dmpo") and is_algorithm("sb3_dmpo.dmpo.DMPO") and not is_algorithm("sb3_dmpo.envs")
    assert is_torch("torch.nn") and is_data("sb3_dmpo.data.load_transitions")
    assert "sb3_dmpo.data.preprocessing" in reachable("sb3_dmpo.envs")


@pytest.mark.parametrize("module", named("buffers", "dataset", "preprocessing"))
def test_data_modules_never_import_algorithms_or_policies(module: str) -> None:
    assert not {name for name in reachable(module) if is_algorithm(name) or name.startswith("sb3_dmpo.common.policies")}


@pytest.mark.parametrize("module", named("policies", "networks"))
def test_policies_never_import_buffers_or_datasets(module: str) -> None:
    assert not {name for name in reachable(module) if is_data(name)}


@pytest.mark.parametrize(
    "module", [*named("dataset", "preprocessing"), *(m for m in MODULES if m.startswith("sb3_dmpo.envs"))]
)
def test_data_modules_and_environments_never_import_torch(module: str) -> None:
    assert not {name for name in imports_of(module) if is_torch(name)}
    assert not {name for part in reachable(module) if part in MODULES for name in imports_of(part) if is_torch(name)}


@pytest.mark.parametrize("module", MODULES)
def test_the_package_never_imports_benchmarks_or_tests(module: str) -> None:
    assert not {name for name in imports_of(module) if name.split(".")[0] in ("benchmarks", "tests")}
