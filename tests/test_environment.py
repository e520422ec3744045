"""One environment, described once: pyproject.toml bounds it, requirements.lock pins it, other files follow."""

import re
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).resolve().parent.parent
LOCK = (ROOT / "requirements.lock").read_text()
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
CONDA = yaml.safe_load((ROOT / "environment.yml").read_text())
LINUX = {
    python: {
        "python_version": python,
        "python_full_version": full,
        "implementation_name": "cpython",
        "platform_python_implementation": "CPython",
        "os_name": "posix",
        "sys_platform": "linux",
        "platform_system": "Linux",
        "platform_machine": "x86_64",
    }
    for python, full in {"3.11": "3.11.9", "3.12": "3.12.8"}.items()
}


def locked() -> list[tuple[Requirement, list[str]]]:
    """Return every requirement of the lock with its options, the hashes."""
    lines = LOCK.replace("\\\n", " ").splitlines()
    pairs = (re.split(r"\s+(?=--)", line.strip()) for line in lines if line.strip())
    return [(Requirement(requirement), options) for requirement, *options in pairs]


def pins(environment: dict[str, str]) -> dict[str, Version]:
    """Return the one version of each package in an environment."""
    found = {}
    for requirement, _ in locked():
        if requirement.marker is None or requirement.marker.evaluate(environment):
            name = canonicalize_name(requirement.name)
            assert name not in found, f"{name} is pinned twice"
            (specifier,) = requirement.specifier
            found[name] = Version(specifier.version)
    return found


def test_every_locked_requirement_is_one_version_with_hashes():
    assert len(locked()) > 100
    for requirement, options in locked():
        assert re.fullmatch(r"==[\w.!+]+", str(requirement.specifier)), f"{requirement} is not pinned"
        assert requirement.url is None
        assert options, f"{requirement} has no hash"
        for option in options:
            assert re.fullmatch(r"--hash=sha256:[0-9a-f]{64}", option), f"{requirement}: {option}"


def test_lock_names_no_package_server():
    assert not re.search(r"://|\bhttps?:|index-url|find-links|trusted-host", LOCK)


@pytest.mark.parametrize("python", LINUX)
def test_lock_satisfies_pyproject(python):
    project = PYPROJECT["project"]
    wanted = [
        *PYPROJECT["build-system"]["requires"],  # the project is built without build isolation
        *project["dependencies"],
        *(requirement for extra in project["optional-dependencies"].values() for requirement in extra),
    ]
    assert Version(python) in SpecifierSet(project["requires-python"])
    pinned = pins(LINUX[python])
    for requirement in map(Requirement, wanted):
        if requirement.marker is None or requirement.marker.evaluate(LINUX[python]):
            name = canonicalize_name(requirement.name)
            assert name in pinned, f"{name} is not in requirements.lock: run make lock"
            assert pinned[name] in requirement.specifier, f"{requirement}, but the lock has {pinned[name]}"


@pytest.mark.parametrize("python", LINUX)
def test_torchvision_is_built_for_the_locked_torch(python):
    pinned = pins(LINUX[python])
    # a build may carry a local version, such as +cu130, which is not part of the pin
    if (version := metadata.version("torchvision").split("+")[0]) != str(pinned["torchvision"]):
        pytest.skip(f"torchvision {version} is installed, not the locked one")
    (needs,) = (r for r in map(Requirement, metadata.requires("torchvision")) if r.name == "torch")
    assert needs.specifier == SpecifierSet(f"=={pinned['torch']}")


def test_conda_environment_is_the_lock():
    *conda, by_pip = CONDA["dependencies"]
    assert by_pip == {"pip": ["-r requirements.lock"]}
    python, pip = conda
    assert pip == "pip"
    name, version = python.split("=")
    assert name == "python" and version in LINUX
    assert Version(version) in SpecifierSet(PYPROJECT["project"]["requires-python"])


def test_citation_is_of_this_project():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert str(citation["version"]) == PYPROJECT["project"]["version"]
    assert citation["license"] == PYPROJECT["project"]["license"]
