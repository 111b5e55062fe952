"""What programs allocate while a call is recorded comes from memory of its own, in TVM as it is."""

import tvm_ffi

from modularbase_core.device.captured import Storages
from modularbase_core.device.executable import Executable, _lend_storages
from modularbase_core.device.layouts import PlacedWeights

ALLOCATION = "vm.builtin.alloc_storage"


def test_a_program_takes_the_same_memory_each_time_it_is_lent_some(artefacts, device):
    before, storages = tvm_ffi.get_global_func(ALLOCATION), Storages()
    _lend_storages(storages)
    try:
        executable = Executable.load(artefacts["base"], device)
    finally:
        tvm_ffi.register_global_func(ALLOCATION, before, override=True)
    mix = PlacedWeights(executable, device).bind("mix")
    inputs = [device.tensor((3, 64)), device.tensor((3, 64)), device.tensor((3,))]
    addresses = []
    for _ in range(2):
        with storages.lending():
            addresses.append(mix(*inputs).address)
    assert addresses[0] == addresses[1]
    kept = mix(*inputs)  # outside, it is TVM's to lend
    assert kept.address != addresses[0]
