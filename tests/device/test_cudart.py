"""How CUDA's runtime is called: addresses whole, arguments in order, failures told. A library of ours stands for it."""

import shutil
import subprocess

import numpy as np
import pytest

from modularbase_core.device.cudart import HOST_TO_DEVICE, CudaError, CudaRuntime
from modularbase_core.errors import ArtefactError

# every handle is beyond 32 bits, and every function fails on arguments that are not the ones expected
SOURCE = """
#include <stdlib.h>
#include <string.h>
#define STREAM ((void*)0x700000000001)
#define GRAPH ((void*)0x600000000002)
#define READY ((void*)0x500000000003)
#define EVENT ((void*)0x400000000004)
static int last;
static int is(int good) { return last = good ? 0 : 1; }
int cudaStreamCreateWithFlags(void** out, unsigned flags) { *out = STREAM; return is(flags == 1); }
int cudaStreamBeginCapture(void* stream, int mode) { return is(stream == STREAM && mode == 2); }
int cudaStreamEndCapture(void* stream, void** out) { *out = GRAPH; return is(stream == STREAM); }
int cudaGraphInstantiate(void** out, void* graph, unsigned long long flags) {
  *out = READY; return is(graph == GRAPH && flags == 0);
}
int cudaGraphDestroy(void* graph) { return is(graph == GRAPH); }
int cudaGraphExecDestroy(void* graph) { return is(graph == READY); }
int cudaGraphLaunch(void* graph, void* stream) { return is(graph == READY && !stream); }
int cudaStreamSynchronize(void* stream) { return is(!stream || stream == STREAM); }
int cudaMemcpyAsync(void* to, const void* from, size_t size, int kind, void* stream) {
  memcpy(to, from, size); return is(kind == 1 && stream == STREAM);
}
int cudaMallocHost(void** out, size_t size) { *out = malloc(size); return is(*out != 0); }
int cudaEventCreateWithFlags(void** out, unsigned flags) { *out = EVENT; return is(flags == 2); }
int cudaEventRecord(void* event, void* stream) { return is(event == EVENT && stream == STREAM); }
int cudaEventSynchronize(void* event) { return is(event == EVENT); }
int cudaMemGetInfo(size_t* free_, size_t* total) { *free_ = 3ul << 32; *total = 5ul << 32; return is(1); }
int cudaGetLastError(void) { int was = last; last = 0; return was; }
const char* cudaGetErrorString(int status) { return status == 1 ? "invalid argument" : "another error"; }
"""
STREAM, READY, EVENT = 0x700000000001, 0x500000000003, 0x400000000004


@pytest.fixture(scope="module")
def cuda(tmp_path_factory):
    compiler = shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        pytest.skip("needs a C compiler")
    library = tmp_path_factory.mktemp("cudart") / "libcudart.so"
    command = [compiler, "-shared", "-fPIC", "-x", "c", "-", "-o", str(library)]
    subprocess.run(command, input=SOURCE, text=True, check=True)
    return CudaRuntime(str(library))


def test_a_stream_is_recorded_and_what_was_recorded_is_launched(cuda):
    stream = cuda.new_stream()
    assert stream == STREAM
    cuda.begin_capture(stream)
    assert cuda.end_capture(stream) == READY
    cuda.launch(READY, 0)
    cuda.drop(READY)


def test_bytes_are_copied_between_addresses_as_they_are(cuda):
    source, target = np.arange(1000, dtype=np.uint8), np.zeros(1000, np.uint8)
    cuda.copy(target.ctypes.data, source.ctypes.data, 1000, HOST_TO_DEVICE, STREAM)
    assert (source == target).all()


def test_marks_are_made_put_and_awaited(cuda):
    assert cuda.new_event() == EVENT
    cuda.record(EVENT, STREAM)
    cuda.wait(EVENT)
    assert cuda.pinned(100) > 0


def test_more_bytes_than_32_bits_hold_are_told(cuda):
    assert cuda.free_bytes() == (3 << 32, 5 << 32)


def test_a_failure_says_which_call_and_why_and_is_not_reported_twice(cuda):
    with pytest.raises(CudaError, match="cudaGraphLaunch: invalid argument"):
        cuda.launch(READY, STREAM)
    assert cuda._library.cudaGetLastError() == 0


def test_a_missing_library_is_told_in_a_sentence():
    with pytest.raises(ArtefactError, match=r"libnothing\.so.* cannot be loaded .*install the CUDA 13 runtime"):
        CudaRuntime("libnothing.so.13")
