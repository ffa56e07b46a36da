"""The systemd units: valid, and as closed as deploy/README.md says."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from deploy_setting import ENVIRONMENT, REPOSITORY, SYSTEMD, tool
from unit_rules import STATE, faults, read_unit, services, socket_faults

SERVICES = services(SYSTEMD)
MOST_EXPOSURE = 1.5
"""As `systemd-analyze security` weighs it: 0 is closed, 10 is open. Measured with systemd 252: 0.4 to 1.3."""


@pytest.fixture
def units(tmp_path: Path) -> Path:
    """A copy of the units with a program that is there."""
    for file in SYSTEMD.iterdir():
        if file.suffix in (".service", ".socket", ".timer"):
            text = file.read_text(encoding="utf-8").replace("/opt/veilrec/bin/veilrec", sys.executable)
            (tmp_path / file.name).write_text(text, encoding="utf-8")
    return tmp_path


def verified(files: list[Path]) -> str:
    command = [tool("systemd-analyze"), "verify", "--man=no", "--recursive-errors=no", *map(str, files)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)
    return done.stdout + done.stderr


def exposure(file: Path) -> float:
    command = [tool("systemd-analyze"), "security", "--offline=true", "--no-pager", str(file)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)
    if "nrecognized option" in done.stderr:
        pytest.skip("this systemd-analyze does not look at files")
    measured = re.search(r"exposure level for \S+: ([0-9.]+)", done.stdout)
    assert measured, done.stderr
    return float(measured[1])


def test_systemd_finds_nothing_wrong_with_the_units(units: Path) -> None:
    assert verified(sorted(units.iterdir())) == ""


def test_systemd_finds_a_setting_that_it_does_not_know(units: Path) -> None:
    file = units / "veilrec-node.service"
    file.write_text(file.read_text().replace("ProtectHome=yes", "ProtectHaus=yes"))
    assert "ProtectHaus" in verified([file])


def test_systemd_measures_little_exposure(units: Path) -> None:
    measured = {file.stem: exposure(file) for file in sorted(units.glob("*.service"))}
    assert set(measured) == set(STATE)
    assert {name: value for name, value in measured.items() if value > MOST_EXPOSURE} == {}


def test_systemd_measures_more_where_the_walls_are_down(units: Path) -> None:
    file = units / "veilrec-node.service"
    kept = [line for line in file.read_text().splitlines() if not line.startswith(("Protect", "Private", "Restrict"))]
    file.write_text("\n".join(kept))
    assert exposure(file) > MOST_EXPOSURE


def test_every_service_is_closed_as_it_should_be() -> None:
    assert set(SERVICES) == set(STATE)
    assert {name: faults(name, text) for name, text in SERVICES.items()} == {name: [] for name in SERVICES}


@pytest.mark.parametrize(
    ("name", "line", "fault"),
    [
        ("veilrec-node", "NoNewPrivileges=yes\n", "NoNewPrivileges=yes"),
        ("veilrec-agent", "PrivateNetwork=yes\n", "PrivateNetwork=yes"),
        ("veilrec-node", "MemoryDenyWriteExecute=yes\n", "MemoryDenyWriteExecute=yes"),
        ("veilrec-server", "LimitCORE=0\n", "LimitCORE=0"),
        ("veilrec-serve", "SystemCallFilter=~@privileged @resources\n", "SystemCallFilter"),
        ("veilrec-node", "-/var/lib/veilrec-agent ", "InaccessiblePaths=-/var/lib/veilrec-agent"),
    ],
)
def test_a_service_that_lacks_a_wall_is_found(name: str, line: str, fault: str) -> None:
    assert line in SERVICES[name]
    assert faults(name, SERVICES[name].replace(line, "")) == [fault]


def test_a_wall_that_is_taken_down_again_further_on_is_found() -> None:
    text = SERVICES["veilrec-agent"].replace("LimitCORE=0\n", "LimitCORE=0\nPrivateNetwork=no\n")
    assert faults("veilrec-agent", text) == ["PrivateNetwork=yes"]


def test_only_the_node_may_open_the_agents_socket() -> None:
    text = (SYSTEMD / "veilrec-agent.socket").read_text()
    assert socket_faults(text) == []
    assert socket_faults(text.replace("SocketMode=0600", "SocketMode=0666")) == ["SocketMode"]


def test_what_needs_a_passphrase_takes_it_from_an_encrypted_credential() -> None:
    for name in ("veilrec-agent", "veilrec-import", "veilrec-node", "veilrec-server"):
        (credential,) = read_unit(SERVICES[name])["LoadCredentialEncrypted"]
        assert credential.startswith("veilrec-passphrase:/etc/credstore.encrypted/")
    assert not any("SetCredential" in text for text in SERVICES.values())


def test_systemd_waits_for_a_sign_of_life_only_where_one_is_given() -> None:
    asked = {name for name, text in SERVICES.items() if "WatchdogSec" in read_unit(text)}
    code = "".join(file.read_text() for file in (REPOSITORY / "client").rglob("*.py"))
    assert asked <= ({"veilrec-agent"} if "WATCHDOG=1" in code else set())


def test_nothing_calls_out() -> None:
    for text in SERVICES.values():
        told = dict(pair.split("=", 1) for line in read_unit(text)["Environment"] for pair in line.split())
        assert told.items() >= ENVIRONMENT.items()


def test_every_user_of_a_unit_is_made_and_has_its_folder() -> None:
    users = {line.split()[1] for line in (SYSTEMD / "veilrec.sysusers.conf").read_text().splitlines() if line[0] == "u"}
    folders = (SYSTEMD / "veilrec.tmpfiles.conf").read_text()
    assert users == set(STATE.values())
    assert all(f"d /var/lib/{user} 0700 {user} {user} -\n" in folders for user in users)


@pytest.mark.parametrize("kind", ["sysusers", "tmpfiles"])
def test_systemd_reads_the_users_and_the_folders(kind: str, tmp_path: Path) -> None:
    program = tool(f"systemd-{kind}")
    (tmp_path / "etc").mkdir()
    for name in ("passwd", "group"):
        (tmp_path / "etc" / name).write_text("root:x:0:0:root:/root:/bin/sh\n" if name == "passwd" else "root:x:0:\n")
    made = [tool("systemd-sysusers"), f"--root={tmp_path}", str(SYSTEMD / "veilrec.sysusers.conf")]
    subprocess.run(made, check=True, capture_output=True, timeout=30)
    if kind == "tmpfiles":
        command = [program, f"--root={tmp_path}", "--create", str(SYSTEMD / "veilrec.tmpfiles.conf")]
        done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=30)
        assert (done.returncode, done.stderr) == (0, "")
        assert (tmp_path / "var/lib/veilrec-agent").stat().st_mode & 0o777 == 0o700
    assert "veilrec-node" in (tmp_path / "etc/passwd").read_text()
