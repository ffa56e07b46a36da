"""The air-gapped install: what it takes, what it refuses, and that it needs no network.

The wheels here are two small ones: what is tested is the script. The real set has 101 wheels and 503 MB
(deploy/README.md).
"""

from __future__ import annotations

import base64
import hashlib
import os
import shutil
import subprocess
import zipfile
from pathlib import Path

import pytest
from deploy_setting import DEPLOY, tool

SCRIPT = str(DEPLOY / "wheelhouse")
COMMAND = """
import socket, sys
from helper_lib import value
def main():
    if sys.argv[1:] == ["reach"]:
        socket.create_connection(("192.0.2.1", 9), 2)
    print("helper", value)
"""


def wheel(folder: Path, name: str, version: str, module: str, needs: str = "", command: str = "") -> Path:
    """A wheel of one module (PEP 427)."""
    about = f"{name}-{version}.dist-info"
    entry = f"[console_scripts]\n{command} = {name}:main\n" if command else ""
    files = {
        f"{name}.py": module,
        f"{about}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
        + (f"Requires-Dist: {needs}\n" if needs else ""),
        f"{about}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{about}/entry_points.txt": entry,
    }
    digests = {path: hashlib.sha256(text.encode()).digest() for path, text in files.items()}
    lines = [f"{path},sha256={base64.urlsafe_b64encode(d).decode().rstrip('=')}," for path, d in digests.items()]
    path = folder / f"{name}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for inside, text in files.items():
            archive.writestr(inside, text)
        archive.writestr(f"{about}/RECORD", "\n".join([*lines, f"{about}/RECORD,,"]) + "\n")
    return path


def run(*arguments: str, before: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    # pip as this machine has it set up would reach an index; the script must not.
    environment = {**os.environ, "PIP_INDEX_URL": "https://index.invalid/simple", "PIP_FIND_LINKS": "/no/such/place"}
    command = [*before, "bash", SCRIPT, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120, env=environment)


@pytest.fixture(scope="module")
def sealed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A folder of wheels and the digest of its SHA256SUMS."""
    folder = tmp_path_factory.mktemp("wheels")
    wheel(folder, "veilrec", "0.1.0", COMMAND, needs="helper-lib>=1", command="veilrec")
    wheel(folder, "helper_lib", "1.2+cpu", "value = 1\n")
    done = run("seal", str(folder))
    assert done.returncode == 0, done.stderr
    return folder, done.stdout.splitlines()[-1].split()[0]


@pytest.fixture
def house(sealed: tuple[Path, str], tmp_path: Path) -> Path:
    """A copy to spoil."""
    return Path(shutil.copytree(sealed[0], tmp_path / "house"))


def test_shellcheck_finds_nothing_wrong() -> None:
    done = subprocess.run([tool("shellcheck"), SCRIPT], capture_output=True, text=True, check=False, timeout=30)
    assert (done.returncode, done.stdout) == (0, "")


def test_every_wheel_is_locked_by_version_and_digest(sealed: tuple[Path, str]) -> None:
    folder, digest = sealed
    lines = (folder / "requirements.lock").read_text().splitlines()
    hashes = {file.name.split("-")[0]: hashlib.sha256(file.read_bytes()).hexdigest() for file in folder.glob("*.whl")}
    assert lines == [
        f"helper-lib==1.2+cpu --hash=sha256:{hashes['helper_lib']}",
        f"veilrec==0.1.0 --hash=sha256:{hashes['veilrec']}",
    ]
    assert digest == hashlib.sha256((folder / "SHA256SUMS").read_bytes()).hexdigest()


@pytest.mark.slow
def test_it_installs_without_a_network(sealed: tuple[Path, str], tmp_path: Path) -> None:
    alone = (tool("unshare"), "--net")
    if subprocess.run([*alone, "true"], capture_output=True, check=False, timeout=10).returncode:
        pytest.skip("this user may make no network namespace")
    folder, digest = sealed
    done = run("install", str(folder), str(tmp_path / "venv"), digest, before=alone)
    assert done.returncode == 0, done.stderr
    program = str(tmp_path / "venv" / "bin" / "veilrec")
    said = subprocess.run([*alone, program], capture_output=True, text=True, check=True, timeout=30)
    assert said.stdout == "helper 1\n"
    # The namespace is what it is said to be.
    reached = subprocess.run([*alone, program, "reach"], capture_output=True, text=True, check=False, timeout=30)
    assert "unreachable" in reached.stderr


@pytest.mark.slow
def test_a_wheel_that_the_lock_does_not_know_is_refused_by_pip_itself(house: Path, tmp_path: Path) -> None:
    wheel(house, "helper_lib", "1.2+cpu", "value = 'stolen'\n")
    sealed = [file for file in house.iterdir() if file.name != "SHA256SUMS"]
    lines = [f"{hashlib.sha256(file.read_bytes()).hexdigest()}  {file.name}\n" for file in sealed]
    (house / "SHA256SUMS").write_text("".join(lines))
    done = run("install", str(house), str(tmp_path / "venv"))
    assert done.returncode == 2 and "nothing was installed" in done.stderr and "HASHES" in done.stderr.upper()
    assert not (tmp_path / "venv").exists()


def refused(house: Path, tmp_path: Path, *digest: str) -> str:
    done = run("install", str(house), str(tmp_path / "venv"), *digest)
    assert done.returncode == 2 and not (tmp_path / "venv").exists()
    return done.stderr


def test_a_changed_wheel_is_refused_before_anything_is_made(house: Path, tmp_path: Path) -> None:
    wheel(house, "helper_lib", "1.2+cpu", "value = 'stolen'\n")
    assert "a file is not the one that was made" in refused(house, tmp_path)


def test_a_set_that_was_sealed_anew_is_refused_by_its_digest(
    house: Path, tmp_path: Path, sealed: tuple[Path, str]
) -> None:
    wheel(house, "helper_lib", "1.2+cpu", "value = 'stolen'\n")
    assert run("seal", str(house)).returncode == 0
    assert "Expected SHA256SUMS with the digest" in refused(house, tmp_path, sealed[1])


def test_wheels_of_another_platform_are_refused(house: Path, tmp_path: Path) -> None:
    (house / "PLATFORM").write_text("cpython-3.9-linux-sparc\n")
    done = run("install", str(house), str(tmp_path / "venv"))
    assert "a file is not the one" in done.stderr  # it is sealed as well
    seal = hashlib.sha256((house / "PLATFORM").read_bytes()).hexdigest()
    lines = [line for line in (house / "SHA256SUMS").read_text().splitlines() if not line.endswith("PLATFORM")]
    (house / "SHA256SUMS").write_text("\n".join([*lines, f"{seal}  PLATFORM"]) + "\n")
    assert "Expected the platform that the wheels were made for, cpython-3.9-linux-sparc" in refused(house, tmp_path)


@pytest.mark.parametrize("arguments", [[], ["make"], ["install", "a"], ["burn", "a"], ["make", "a", "--fast"]])
def test_what_it_does_not_understand_is_one_line(arguments: list[str], tmp_path: Path) -> None:
    done = subprocess.run(["bash", SCRIPT, *arguments], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 2 and done.stderr.startswith("wheelhouse: ") and done.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_wheels_are_not_mixed_with_what_a_folder_holds(house: Path) -> None:
    done = run("make", str(house))
    assert done.returncode == 2 and "Expected a new or an empty folder" in done.stderr
