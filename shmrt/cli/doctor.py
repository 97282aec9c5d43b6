"""`doctor`: what this machine gives to shared memory and worker processes; every line a value, a verdict, a remedy.

Verdicts: `ok`; `note`, worth knowing; `warn`, will hurt some use; `fail`, shmrt cannot work. Exit code 1 with a
`fail`, else 0. Nothing is changed and no process is started.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import platform
import resource
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass

from shmrt.cli.screen import Screen

DOES = "Check this machine: memory, limits, kernel, extension"

MIB = 1 << 20
_COLOURS = {"ok": "green", "note": "dim", "warn": "yellow", "fail": "red"}


@dataclass(frozen=True, slots=True)
class Finding:
    check: str
    value: str
    verdict: str = "ok"
    remedy: str = ""


def options(parser: argparse.ArgumentParser) -> None:
    del parser


def run(arguments: argparse.Namespace, screen: Screen) -> int:
    del arguments
    findings = list(examine())
    failed = any(finding.verdict == "fail" for finding in findings)
    if screen.json:
        screen.document("shmrt.doctor/1", {"ok": not failed, "findings": [asdict(finding) for finding in findings]})
        return int(failed)
    width = max(len(finding.check) for finding in findings)
    for finding in findings:
        verdict = screen.paint(f"{finding.verdict:<4}", _COLOURS[finding.verdict], sys.stdout)
        remedy = f"  -> {finding.remedy}" if finding.remedy else ""
        screen.line(f"{verdict}  {finding.check:<{width}}  {finding.value}{remedy}")
    return int(failed)


def examine() -> Iterator[Finding]:
    """Every check; one that cannot look says so instead of failing."""
    for check in CHECKS:
        try:
            yield from check()
        except (OSError, ValueError, AttributeError) as error:
            yield Finding(check.__name__.removeprefix("_"), f"cannot be read: {error}", "note")


def size(number: int) -> str:
    value = float(number)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} TiB"


def text_of(path: str) -> str | None:
    try:
        with open(path, errors="replace") as file:
            return file.read().strip()
    except OSError:
        return None


# ---- the checks --------------------------------------------------------------------------------------


def _python() -> Iterator[Finding]:
    yield Finding("python", f"{sys.version.split()[0]} at {sys.executable}")
    if sys.flags.no_user_site and sys.flags.isolated:
        yield Finding("python flags", "isolated: PYTHON* variables are ignored", "note")


def _extension() -> Iterator[Finding]:
    try:
        from shmrt import _native
    except ImportError as error:
        yield Finding("extension", str(error), "fail", "reinstall shmrt with a C compiler and this Python's headers")
        return
    yield Finding("extension", f"{_native.__file__}, layout {getattr(_native, 'LAYOUT_VERSION', 'unknown')}")


def _kernel() -> Iterator[Finding]:
    release = platform.release()
    try:
        version = tuple(int(part) for part in release.split("-")[0].split(".")[:2])
    except ValueError:
        version = (0, 0)
    old = version < (5, 4)
    yield Finding("kernel", release, "fail" if old else "ok", "Linux 5.4 or newer is needed" if old else "")
    yield Finding("machine", platform.machine(), "ok" if platform.machine() in ("x86_64", "aarch64") else "warn")
    libc = ctypes.CDLL(None, use_errno=True)
    # futex_waitv with an empty list: EINVAL where the call exists, ENOSYS where it does not.
    waitv = libc.syscall(449, None, 0, 0, None, 0) == -1 and ctypes.get_errno() != 38
    yield Finding(
        "futex_waitv",
        "present" if waitv else "missing",
        "ok" if waitv else "note",
        "" if waitv else "death is noticed by a short scan instead; Linux 5.16 or newer has it",
    )
    try:
        os.close(os.memfd_create("shmrt-doctor", os.MFD_CLOEXEC | getattr(os, "MFD_ALLOW_SEALING", 2)))
        yield Finding("memfd", "works")
    except OSError as error:
        yield Finding("memfd", str(error), "fail", "the container's seccomp profile must allow memfd_create")
    try:
        os.close(os.pidfd_open(os.getpid()))
        yield Finding("pidfd", "works")
    except OSError as error:
        yield Finding("pidfd", str(error), "fail", "the container's seccomp profile must allow pidfd_open")


def _cpus() -> Iterator[Finding]:
    affinity = len(os.sched_getaffinity(0))
    quota = cpu_quota()
    shown = f"{os.cpu_count()} in the machine, {affinity} by affinity, " + (
        f"{quota:.2f} by cgroup quota" if quota is not None else "no cgroup quota"
    )
    least = min(affinity, quota) if quota is not None else affinity
    remedy = "workers and program share one CPU; nothing will spin" if least < 2 else ""
    yield Finding("cpus", shown, "note" if least < 2 else "ok", remedy)


def _memory() -> Iterator[Finding]:
    try:
        status = os.statvfs("/dev/shm")
    except OSError as error:
        yield Finding("/dev/shm", error.strerror or "missing", "warn", "named rings need it; anonymous memory does not")
    else:
        free = status.f_bavail * status.f_frsize
        small = free < 64 * MIB
        yield Finding(
            "/dev/shm",
            f"{size(status.f_blocks * status.f_frsize)}, {size(free)} free",
            "warn" if small else "ok",
            "named rings lie there; docker run --shm-size=1g, or remount with size=" if small else "",
        )
    for line in (text_of("/proc/meminfo") or "").splitlines():
        if line.startswith("MemAvailable:"):
            available = int(line.split()[1]) * 1024
            yield Finding("memory available", size(available), "warn" if available < 256 * MIB else "ok")
    for directory in cgroups("memory"):
        for limit, used in (("memory.max", "memory.current"), ("memory.limit_in_bytes", "memory.usage_in_bytes")):
            most, now = number_of(directory, limit), number_of(directory, used)
            if most is not None and now is not None and most < 1 << 60:
                tight = most - now < 128 * MIB
                yield Finding(
                    "cgroup memory",
                    f"{size(now)} of {size(most)} in {directory}",
                    "warn" if tight else "ok",
                    "raise the container's memory limit" if tight else "",
                )


def _limits() -> Iterator[Finding]:
    wanted = (
        ("RLIMIT_NOFILE", resource.RLIMIT_NOFILE, 256, "ulimit -n 4096"),
        ("RLIMIT_NPROC", resource.RLIMIT_NPROC, 256, "ulimit -u 4096"),
        ("RLIMIT_MEMLOCK", resource.RLIMIT_MEMLOCK, 0, ""),
        ("RLIMIT_AS", resource.RLIMIT_AS, 1 << 30, "ulimit -v unlimited"),
        ("RLIMIT_FSIZE", resource.RLIMIT_FSIZE, 64 * MIB, "ulimit -f unlimited"),
    )
    for name, which, least, remedy in wanted:
        soft, hard = resource.getrlimit(which)
        shown = ["unlimited" if value == resource.RLIM_INFINITY else str(value) for value in (soft, hard)]
        low = soft != resource.RLIM_INFINITY and soft < least
        yield Finding(name, f"{shown[0]} (hard {shown[1]})", "warn" if low else "ok", remedy if low else "")
    for directory in cgroups("pids"):
        most, now = number_of(directory, "pids.max"), number_of(directory, "pids.current")
        if most is not None and now is not None:
            tight = most - now < 64
            remedy = "raise the container's pids limit" if tight else ""
            yield Finding("cgroup pids", f"{now} of {most} in {directory}", "warn" if tight else "ok", remedy)


def _policies() -> Iterator[Finding]:
    settings = text_of("/etc/systemd/logind.conf")
    if settings is None:
        yield Finding("RemoveIPC", "no systemd-logind here")
    else:
        lines = [line.split("=", 1)[1].strip() for line in settings.splitlines() if line.startswith("RemoveIPC=")]
        value = lines[-1] if lines else "yes (default)"
        system = os.getuid() < 1000
        risky = not value.startswith("no") and not system
        yield Finding(
            "RemoveIPC",
            value + (", but not for system users" if system else ""),
            "warn" if risky else "ok",
            "named rings vanish at logout: RemoveIPC=no in /etc/systemd/logind.conf" if risky else "",
        )
    scope = text_of("/proc/sys/kernel/yama/ptrace_scope")
    shown = {None: "no Yama", "0": "0: any of your processes", "1": "1: descendants", "2": "2: root", "3": "3: nobody"}
    verdict = "note" if scope in ("2", "3") else "ok"
    yield Finding(
        "ptrace scope",
        shown.get(scope, str(scope)),
        verdict,
        "py-spy and gdb need root here; attaching an anonymous ring through its owner too" if verdict == "note" else "",
    )
    huge = text_of("/sys/kernel/mm/transparent_hugepage/shmem_enabled")
    if huge:
        yield Finding("huge pages for shared memory", huge)


CHECKS: tuple[Callable[[], Iterator[Finding]], ...] = (
    _python,
    _extension,
    _kernel,
    _cpus,
    _memory,
    _limits,
    _policies,
)


# ---- control groups ----------------------------------------------------------------------------------


def cgroups(controller: str) -> list[str]:
    """Directories of the groups that bind this process, innermost first, as far as they can be seen."""
    found: list[str] = []
    for line in (text_of("/proc/self/cgroup") or "").splitlines():
        _number, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        base = f"/sys/fs/cgroup/{controllers}" if controllers else "/sys/fs/cgroup"
        while True:
            directory = (base + path).rstrip("/")
            if os.path.isdir(directory):
                found.append(directory)
            if path in ("/", ""):
                break
            path = os.path.dirname(path)
    return found


def number_of(directory: str, name: str) -> int | None:
    text = text_of(os.path.join(directory, name))
    return int(text) if text is not None and text.isdigit() else None


def cpu_quota() -> float | None:
    quotas: list[float] = []
    for directory in cgroups("cpu"):
        text = text_of(os.path.join(directory, "cpu.max"))
        if text is not None and not text.startswith("max"):
            quota, period = text.split()[:2]
            quotas.append(int(quota) / int(period))
        used, period_us = number_of(directory, "cpu.cfs_quota_us"), number_of(directory, "cpu.cfs_period_us")
        if used and period_us:
            quotas.append(used / period_us)
    return min(quotas, default=None)
