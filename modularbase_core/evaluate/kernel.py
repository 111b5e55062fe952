"""What Linux can take from this process for good: files by Landlock, network and other processes by seccomp.

Plain system calls through ctypes, needing no privilege; whoever calls is told what this kernel could not do.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import struct
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

_NO_NEW_PRIVILEGES: Final = 38
_SECCOMP: Final = 22  # of prctl, which every machine knows by the same number
_SECCOMP_FILTER: Final = 2

# Landlock (Salaun, 2021): the same numbers on every machine
_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_EXECUTE, _WRITE, _READ, _LIST = 1 << 0, 1 << 1, 1 << 2, 1 << 3
_FIRST_RIGHTS: Final = (1 << 13) - 1
_ADDED_RIGHTS: Final = ((2, 1 << 13), (3, 1 << 14))  # since which version: moving between folders, truncating
_DEVICES: Final = (1 << 6) | (1 << 11)  # making character and block devices

_ALLOW, _REFUSE, _UNKNOWN, _KILL = 0x7FFF0000, 0x00050000 | errno.EPERM, 0x00050000 | errno.ENOSYS, 0x80000000
_NUMBER, _MACHINE, _ARGUMENTS = 0, 4, 16  # offsets in struct seccomp_data
_THREAD: Final = 0x00010000  # CLONE_THREAD
_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06  # BPF


@dataclass(frozen=True, slots=True)
class _Calls:
    """System calls of a machine. machine: its audit number; refused: none that trying a function out needs."""

    machine: int
    refused: tuple[int, ...]
    clone: int
    prlimit: int
    signals: tuple[int, ...]
    clone3: int = 435


_CALLS: Final = {
    "x86_64": _Calls(
        0xC000003E,
        (
            *(41, 57, 58, 109, 112),  # socket, fork, vfork, setpgid, setsid
            *(29, 64, 68),  # shared memory, semaphores and queues, which outlive a process
            *(90, 91, 92, 93, 94, 260, 268, 452),  # chmod and chown, which Landlock leaves alone
            *(132, 235, 261, 280, 188, 189, 190, 197, 198, 199),  # times and attributes of files
            *(101, 310, 311, 312, 424, 434, 438, 129, 297),  # other processes: ptrace, memory, pidfd, queued signals
            *(155, 161, 165, 166, 272, 308, 428, 429, 430, 442),  # mounts and namespaces
            *(160, 164, 227, 159, 169, 170, 171, 172, 173, 163, 167, 168, 179),  # limits, clocks, the machine
            *(175, 176, 313, 246, 320, 321, 298, 248, 249, 250, 425, 426, 427),  # modules, bpf, keys, io_uring
        ),
        clone=56,
        prlimit=302,
        signals=(62, 200, 234),
    ),
    "aarch64": _Calls(
        0xC00000B7,
        (
            *(198, 154, 157),
            *(194, 190, 186),
            *(52, 53, 54, 55, 452),
            *(88, 5, 6, 7, 14, 15, 16),
            *(117, 270, 271, 272, 424, 434, 438, 138, 240),
            *(41, 51, 40, 39, 97, 268, 428, 429, 430, 442),
            *(164, 170, 112, 171, 142, 161, 162, 89, 224, 225, 60),
            *(105, 106, 273, 104, 294, 280, 241, 217, 218, 219, 425, 426, 427),
        ),
        clone=220,
        prlimit=261,
        signals=(129, 130, 131),
    ),
}


def confine_files(folder: Path, readable: Sequence[Path]) -> bool:
    """Leave this process `folder` to write in and `readable` to read; False where the kernel has no Landlock."""
    libc = _libc()
    version = libc.syscall(_CREATE_RULESET, None, ctypes.c_size_t(0), 1) if libc else 0
    if libc is None or version < 1:
        return False
    every = _FIRST_RIGHTS | sum(right for since, right in _ADDED_RIGHTS if version >= since)
    attributes = struct.pack("Q", every)
    ruleset = libc.syscall(_CREATE_RULESET, attributes, ctypes.c_size_t(len(attributes)), 0)
    if ruleset < 0:
        return False
    try:
        _admit(libc, ruleset, folder, every & ~_DEVICES)
        for path in readable:
            _admit(libc, ruleset, path, (_EXECUTE | _READ | _LIST) if path.is_dir() else _READ)
        for device in ("/dev/null", "/dev/zero", "/dev/urandom", "/dev/random"):
            _admit(libc, ruleset, Path(device), _READ | _WRITE)
        libc.prctl(_NO_NEW_PRIVILEGES, 1, 0, 0, 0)
        return bool(libc.syscall(_RESTRICT_SELF, ruleset, 0) == 0)
    finally:
        os.close(ruleset)


def confine_calls() -> bool:
    """Take network, new processes, other processes, limits and the machine's settings away; threads stay.

    False where the kernel has no seccomp filters, or the machine is one whose system calls are not listed here.
    """
    libc = _libc()
    if libc is None or platform.machine() not in _CALLS:
        return False
    program = _program(_CALLS[platform.machine()])
    code = ctypes.create_string_buffer(b"".join(program), 8 * len(program))
    described = struct.pack("HxxxxxxQ", len(program), ctypes.addressof(code))  # struct sock_fprog
    libc.prctl(_NO_NEW_PRIVILEGES, 1, 0, 0, 0)
    return bool(libc.prctl(_SECCOMP, _SECCOMP_FILTER, described, 0, 0) == 0)


def leave_network() -> bool:
    """Move into a network namespace without devices: for root, or where users may have namespaces of their own."""
    libc = _libc()
    new_user, new_network = 0x10000000, 0x40000000
    return libc is not None and (libc.unshare(new_network) == 0 or libc.unshare(new_user | new_network) == 0)


def _libc() -> ctypes.CDLL | None:
    return ctypes.CDLL(None) if sys.platform == "linux" else None


def _admit(libc: ctypes.CDLL, ruleset: int, path: Path, rights: int) -> None:
    try:
        handle = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return  # what is not there needs no leave
    try:
        rule = struct.pack("=Qi", rights, handle)
        libc.syscall(_ADD_RULE, ruleset, 1, rule, 0)
    finally:
        os.close(handle)


def _program(calls: _Calls) -> list[bytes]:
    """Return the BPF instructions of the filter: what is refused gives EPERM, all else is allowed."""
    out = [
        *(_step(_LOAD, k=_MACHINE), _step(_EQUAL, k=calls.machine, yes=1), _step(_RETURN, k=_KILL)),
        # x86-64 knows every call by a second number, from x32
        *(_step(_LOAD, k=_NUMBER), _step(_AT_LEAST, k=0x40000000, no=1), _step(_RETURN, k=_REFUSE)),
    ]
    for number in calls.refused:
        out += [_step(_EQUAL, k=number, no=1), _step(_RETURN, k=_REFUSE)]
    # the C library turns to clone where clone3 is unknown, and clone's flags can be read
    out += [_step(_EQUAL, k=calls.clone3, no=1), _step(_RETURN, k=_UNKNOWN)]
    out += _only_if(calls.clone, 0, _step(_ANY_BIT, k=_THREAD, yes=1))
    out += _only_if(calls.prlimit, 2, _step(_EQUAL, k=0, yes=1))  # reading limits, not setting them
    for number in calls.signals:
        out += _only_if(number, 0, _step(_EQUAL, k=os.getpid(), yes=1))
    return [*out, _step(_RETURN, k=_ALLOW)]


def _only_if(number: int, argument: int, test: bytes) -> list[bytes]:
    """Refuse a call unless `test`, on the lower half of an argument, jumps over the refusal."""
    load = _step(_LOAD, k=_ARGUMENTS + 8 * argument)
    return [_step(_EQUAL, k=number, no=4), load, test, _step(_RETURN, k=_REFUSE), _step(_RETURN, k=_ALLOW)]


def _step(code: int, *, k: int, yes: int = 0, no: int = 0) -> bytes:
    return struct.pack("HBBI", code, yes, no, k)
