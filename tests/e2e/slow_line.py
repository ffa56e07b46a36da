"""A line of 1 Mbit/s that loses every twentieth packet, between this machine and a network namespace on it.

The line is a namespace in between that forwards: the kernel's token bucket shapes each direction, and netfilter drops
packets at random. All of it is root's alone, and gone at the end.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import pytest

RATE, LOSS = "1mbit", 0.05
HERE, NEAR, FAR, THERE = "10.231.77.1", "10.231.77.2", "10.231.78.1", "10.231.78.2"


@dataclass(frozen=True)
class SlowLine:
    """The names of two namespaces: the line, and what is beyond it."""

    line: str
    beyond: str

    @property
    def prefix(self) -> tuple[str, ...]:
        """What to start a program with, so that it is beyond the line."""
        return ("ip", "netns", "exec", self.beyond)

    def dropped(self) -> tuple[int, int]:
        """Packets that were lost, and all that came to the line."""
        told = _run("ip", "netns", "exec", self.line, "iptables", "-L", "FORWARD", "-v", "-x", "-n")
        lost = re.search(r"^\s*(\d+)\s+\d+\s+DROP", told, re.MULTILINE)
        through = re.search(r"^\s*(\d+)\s+\d+\s+ACCEPT", told, re.MULTILINE)
        assert lost and through
        return int(lost[1]), int(lost[1]) + int(through[1])


def _run(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


@contextmanager
def slow_line() -> Iterator[SlowLine]:
    """Lay the line; skips the test where that cannot be done."""
    if os.geteuid() != 0 or not all(map(shutil.which, ("ip", "tc", "iptables"))):
        pytest.skip("a slow line is laid by root, with ip, tc and iptables")
    made, tag = SlowLine(f"vf-line-{os.getpid()}", f"vf-beyond-{os.getpid()}"), os.getpid() % 100_000
    with ExitStack() as stack:
        try:
            for name in (made.line, made.beyond):
                _run("ip", "netns", "add", name)
                stack.callback(subprocess.run, ["ip", "netns", "del", name], check=False)
            _lay(made, f"vfh{tag}")
        except subprocess.CalledProcessError as error:
            pytest.skip(f"no slow line on this kernel: {' '.join(error.cmd[:6])}")
        yield made


def _lay(made: SlowLine, here: str) -> None:
    line, beyond = made.line, made.beyond
    _run("ip", "link", "add", here, "type", "veth", "peer", "name", "near", "netns", line)
    _run("ip", "-n", line, "link", "add", "far", "type", "veth", "peer", "name", "there", "netns", beyond)
    for space, name, address in (("", here, HERE), (line, "near", NEAR), (line, "far", FAR), (beyond, "there", THERE)):
        where = ("ip", "-n", space) if space else ("ip",)
        _run(*where, "addr", "add", f"{address}/30", "dev", name)
        _run(*where, "link", "set", name, "up")
    _run("ip", "-n", beyond, "link", "set", "lo", "up")
    _run("ip", "-n", beyond, "route", "add", "default", "via", FAR)
    _run("ip", "route", "add", f"{THERE}/32", "via", NEAR)
    inside = ("ip", "netns", "exec", line)
    _run(*inside, "sysctl", "-qw", "net.ipv4.ip_forward=1")
    for name in ("near", "far"):
        _run(
            *inside, "tc", "qdisc", "add", "dev", name, "root", "tbf", "rate", RATE, "burst", "16kb", "latency", "400ms"
        )
    drop = ("-m", "statistic", "--mode", "random", "--probability", f"{LOSS}", "-j", "DROP")
    _run(*inside, "iptables", "-A", "FORWARD", *drop)
    _run(*inside, "iptables", "-A", "FORWARD", "-j", "ACCEPT")
