"""The processor as read from /proc/cpuinfo, on machines that are not this one."""

import platform

import pytest

from modularbase_core.device.target import Target, cpu_target, cuda_target, physical_cores
from modularbase_core.errors import ArtefactError

V2 = "cx16 lahf_lm popcnt pni sse4_1 sse4_2 ssse3"
V3 = V2 + " avx avx2 bmi1 bmi2 f16c fma abm movbe xsave"
V4 = V3 + " avx512f avx512bw avx512cd avx512dq avx512vl"


@pytest.fixture
def cpuinfo(tmp_path, monkeypatch):
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")

    def write(flags, cores=((0, 0),)):
        blocks = (
            f"processor\t: {i}\nphysical id\t: {socket}\ncore id\t\t: {core}\nflags\t\t: {flags}\n"
            for i, (socket, core) in enumerate(cores)
        )
        path = tmp_path / "cpuinfo"
        path.write_text("\n".join(blocks))
        return path

    return write


@pytest.mark.parametrize(
    ("flags", "level"),
    [("fpu sse2", "x86-64"), (V2, "x86-64-v2"), (V3, "x86-64-v3"), (V4, "x86-64-v4"), (V4 + " x", "x86-64-v4")],
)
def test_level_is_the_highest_whose_flags_are_all_there(cpuinfo, flags, level):
    assert cpu_target(cpuinfo(flags)).level == level


def test_one_missing_flag_lowers_the_level(cpuinfo):
    assert cpu_target(cpuinfo(V4.replace("fma ", ""))).level == "x86-64-v2"


def test_extras_carry_the_names_of_llvm(cpuinfo):
    assert cpu_target(cpuinfo(V4 + " avx512_vnni amx_tile")).features == ("amx-tile", "avx512vnni")


@pytest.mark.parametrize(("told", "vendor"), [("GenuineIntel", "intel"), ("AuthenticAMD", "amd"), ("Other", "")])
def test_the_vendor_is_told_because_kernels_are_tuned_for_it(cpuinfo, told, vendor):
    path = cpuinfo(V4)
    path.write_text(f"vendor_id\t: {told}\n{path.read_text()}")
    assert cpu_target(path).vendor == vendor


def test_a_machine_without_cpuinfo_is_generic_and_says_so(tmp_path):
    target = cpu_target(tmp_path / "absent")
    assert target.level == "generic"
    assert target.portable


def test_other_processors_are_generic(cpuinfo, monkeypatch):
    monkeypatch.setattr(platform, "machine", lambda: "arm64")
    target = cpu_target(cpuinfo(V4))
    assert (target.machine, target.level, target.features) == ("aarch64", "generic", ())


def test_dtype_is_half_on_a_gpu_alone():
    assert (cpu_target().dtype, cuda_target().dtype) == ("float32", "float16")


def test_a_target_survives_json():
    target = cuda_target(("sm_86",))
    assert Target.from_dict(target.to_dict()) == target


def test_what_is_no_target_is_told_in_a_sentence():
    with pytest.raises(ArtefactError, match="level"):
        Target.from_dict({"name": "cpu", "system": "linux", "machine": "x86_64"})


def test_two_threads_of_a_core_count_once(cpuinfo, monkeypatch, tmp_path):
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: {0, 1, 2, 3}, raising=False)
    path = cpuinfo(V4, cores=((0, 0), (0, 1), (0, 0), (0, 1)))
    assert physical_cores(path, tmp_path / "absent") == 2


def test_cores_that_are_not_ours_do_not_count(cpuinfo, monkeypatch, tmp_path):
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: {1}, raising=False)
    assert physical_cores(cpuinfo(V4, cores=((0, 0), (0, 1), (1, 0))), tmp_path / "absent") == 1


@pytest.mark.parametrize(("quota", "cores"), [("150000 100000", 2), ("max 100000", 3), ("10000 100000", 1)])
def test_a_containers_quota_limits_the_cores(cpuinfo, monkeypatch, tmp_path, quota, cores):
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: {0, 1, 2}, raising=False)
    limit = tmp_path / "cpu.max"
    limit.write_text(quota)
    assert physical_cores(cpuinfo(V4, cores=((0, 0), (0, 1), (0, 2))), limit) == cores
