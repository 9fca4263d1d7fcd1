"""The launcher in C++ against a double of libcuda: what it passes, in which order, and what it says when a call fails."""

import ctypes
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from fake_cuda import parameters

from fastlstm import backends

pytestmark = pytest.mark.skipif(backends.extension_status() != "built", reason="the launcher is in the C++ extension")
_C = backends._C
KB = 1024


def load(name="lstm_forward", shared=0, threads=128, device=0):
    return _C.load_kernel(b"cubin of " + name.encode(), name, shared, threads, device)


def run_resident(kernel, grid, stream=0):
    """A launch whose barrier is the caller's."""
    return _C.run_resident(kernel, grid, [4096], 0, stream)


def launches_of(fake, count):
    """A list that every launch adds (name, its first `count` parameters) to."""
    seen = []
    fake.on_launch = lambda name, grid, threads, shared, stream, params, _: seen.append(
        (name, *parameters(params, count))
    )
    return seen


def test_load(fake_cuda):
    kernel = load("lstm_forward", 1000, 256, 0)
    assert (kernel.name, kernel.device, kernel.shared, kernel.threads) == ("lstm_forward", 0, 1000, 256)
    assert fake_cuda.called[0] == "cuInit"
    assert ("cuModuleLoadData", "cubin of lstm_forward", 0) in fake_cuda.calls
    assert ("cuModuleGetFunction", "lstm_forward", 0) in fake_cuda.calls


@pytest.mark.parametrize(("shared", "raised"), [(0, False), (48 * KB, False), (48 * KB + 1, True), (227 * KB, True)])
def test_shared_memory_is_asked_for_above_48_kb(fake_cuda, shared, raised):
    kernel = load(shared=shared)
    # 9: the carve-out, in per cent, of the memory that the first-level cache has as well
    carved = [("cuFuncSetAttribute", "lstm_forward", 9, 100)] if shared else []
    expected = [("cuFuncSetAttribute", "lstm_forward", 8, shared)] if raised else []
    assert [call for call in fake_cuda.calls if call[0] == "cuFuncSetAttribute"] == expected + carved
    _C.run_steps([(kernel, (1, 1), [0], 0)], 0, 1, 0)
    assert fake_cuda.calls[-1] == ("cuLaunchKernel", "lstm_forward", 1, 1, 1, 128, 1, 1, shared, 0)


def test_too_much_shared_memory(fake_cuda):
    fake_cuda.set("max_shared", 99 * KB)
    message = (
        "lstm_forward needs 204800 bytes of shared memory .*, and GPU 0 has 101376: it was compiled for another GPU"
    )
    with pytest.raises(RuntimeError, match=message):
        load(shared=200 * KB)
    assert "cuFuncSetAttribute" not in fake_cuda.called


@pytest.mark.parametrize(("threads", "shared"), [(0, 0), (1025, 0), (32, -1)])
def test_impossible_programs(fake_cuda, threads, shared):
    with pytest.raises(RuntimeError, match=r"lstm_forward has .* expected"):
        load(shared=shared, threads=threads)


@pytest.mark.parametrize("resident", [False, True])
def test_parameters(fake_cuda, resident):
    seen = launches_of(fake_cuda, 9)
    given = [0, -1, -(2**31), -(2**63), 2**31, 2**63, 2**64 - 1]
    if resident:
        _C.run_resident(load(), (2, 3), given, 1, 0)
    else:
        _C.run_steps([(load(), (2, 3), given, 0)], 0, 1, 0)
    # after those given, Triton's own two: null
    assert seen == [("lstm_forward", *(n % 2**64 for n in given), 0, 0)]


@pytest.mark.parametrize("value", [2**64, -(2**63) - 1, 1.5, None, "0"])
def test_parameters_that_fit_no_slot(fake_cuda, value):
    kernel = load()
    with pytest.raises(TypeError, match="incompatible function arguments"):
        _C.run_resident(kernel, (1, 1), [value], 0, 0)


@pytest.mark.parametrize("resident", [False, True])
def test_grid_threads_and_stream(fake_cuda, resident):
    seen = []
    fake_cuda.on_launch = lambda *launch: seen.append((*launch[:5], launch[6]))
    kernel, stream = load(shared=1000, threads=256), 2**64 - 8
    if resident:
        run_resident(kernel, (4, 2), stream)
    else:
        _C.run_steps([(kernel, (4, 2), [1], 0)], 0, 1, stream)
    assert seen == [("lstm_forward", (4, 2, 1), 256, 1000, stream, resident)]
    assert fake_cuda.called[-1] == ("cuLaunchCooperativeKernel" if resident else "cuLaunchKernel")


def test_steps_in_order_of_several_launches(fake_cuda):
    seen = launches_of(fake_cuda, 2)
    _C.run_steps([(load("gates"), (2, 1), [9, 7], 0), (load("project"), (1, 1), [5, 9], 1)], 3, 3, 0)
    assert seen == [launch for s in (3, 4, 5) for launch in (("gates", s, 7), ("project", 5, s))]


def test_the_callers_list_is_left_alone(fake_cuda):
    parameters = [9, 7]
    _C.run_steps([(load(), (1, 1), parameters, 0)], 0, 4, 0)
    assert parameters == [9, 7]


@pytest.mark.parametrize("several", [0, 1, 2])
def test_nothing_to_run(fake_cuda, several):
    kernel = load()
    before = fake_cuda.calls
    _C.run_steps([(kernel, (1, 1), [0], 0)] * several, 5, 0, 0)
    _C.run_steps([], 0, 5, 0)
    assert fake_cuda.calls == before


def test_many_steps(fake_cuda):
    seen = launches_of(fake_cuda, 1)
    _C.run_steps([(load("a"), (1, 1), [0], 0)], 0, 100_000, 0)
    assert seen == [("a", s) for s in range(100_000)]


@pytest.mark.parametrize(("first", "count"), [(-1, 2), (0, -1), (2**31, 0), (1, 2**31 - 1), (2**62, 2**62)])
def test_impossible_steps(fake_cuda, first, count):
    kernel = load()
    with pytest.raises(RuntimeError, match=f"there are {count} steps from {first} on, expected 0 or more"):
        _C.run_steps([(kernel, (1, 1), [0], 0)], first, count, 0)


@pytest.mark.parametrize("step_param", [-1, 2, 3])
def test_step_is_none_of_the_parameters(fake_cuda, step_param):
    kernel = load()
    with pytest.raises(RuntimeError, match=f"lstm_forward has 2 parameters, and the step is number {step_param}"):
        _C.run_steps([(kernel, (1, 1), [0, 0], step_param)], 0, 1, 0)
    assert "cuLaunchKernel" not in fake_cuda.called


@pytest.mark.parametrize("grid", [(0, 1), (1, 0), (-1, 1), (2**31, 1), (1, 65536)])
def test_impossible_grids(fake_cuda, grid):
    kernel = load()
    message = rf"lstm_forward has the grid \({grid[0]}, {grid[1]}\), expected 1 to 2147483647 by 1 to 65535 programs"
    for launch in (
        lambda: run_resident(kernel, grid, 0),
        lambda: _C.run_steps([(kernel, (1, 1), [0], 0), (kernel, grid, [0], 0)], 0, 1, 0),
    ):
        with pytest.raises(RuntimeError, match=message):
            launch()
    assert not {"cuLaunchKernel", "cuLaunchCooperativeKernel"} & set(fake_cuda.called)


def test_largest_grids(fake_cuda):
    _C.run_steps([(load(), (2**31 - 1, 65535), [0], 0)], 0, 1, 0)
    assert fake_cuda.calls[-1][2:4] == (2**31 - 1, 65535)


def test_resident_programs(fake_cuda):
    fake_cuda.set("multiprocessors", 132)
    fake_cuda.set("programs", 3)
    kernel = load(shared=100 * KB, threads=256)
    before = fake_cuda.calls
    assert ("cuOccupancyMaxActiveBlocksPerMultiprocessor", "lstm_forward", 256, 100 * KB) in before
    assert [kernel.resident_programs(), kernel.resident_programs()] == [396, 396]
    assert fake_cuda.calls == before


def test_more_programs_than_can_be_resident(fake_cuda):
    kernel = load()
    run_resident(kernel, (4, 2), 0)
    with pytest.raises(RuntimeError, match=r"lstm_forward has the grid \(3, 3\), and GPU 0 can hold 8 of its programs"):
        run_resident(kernel, (3, 3), 0)
    with pytest.raises(RuntimeError, match=r"grid \(2147483647, 65535\), and GPU 0 can hold 8"):
        run_resident(kernel, (2**31 - 1, 65535), 0)
    assert fake_cuda.called.count("cuLaunchCooperativeKernel") == 1


def barriers(fake, stream, name="lstm_forward"):
    """The memory that a launch on that stream is given, and how it begins."""
    seen = launches_of(fake, 1)
    assert _C.run_resident(load(name), (2, 1), [0], 0, stream)
    (address,) = seen[-1][1:]
    return address, [ctypes.c_int32.from_address(address + place).value for place in (0, 4, 128, 128 * 1024 - 4)]


def test_each_stream_has_a_barrier_that_is_filled_once(fake_cuda):
    first, found = barriers(fake_cuda, 16)
    assert found == [0, 0, 0, 0]
    assert ("cuMemsetD32Async", 0, 32 * 1024, 16) in fake_cuda.calls
    # 2: relaxed, so that what another thread captures goes on; and as it was, afterwards
    assert ("cuMemAlloc_v2", 128 * 1024, 2) in fake_cuda.calls
    assert [call[1] for call in fake_cuda.calls if call[0] == "cuThreadExchangeStreamCaptureMode"] == [2, 0]
    ctypes.c_int32.from_address(first).value = 7
    assert barriers(fake_cuda, 16, "gru_forward") == (first, [7, 0, 0, 0])  # whose launches have to leave it as it was
    ctypes.c_int32.from_address(first).value = 0
    other, _ = barriers(fake_cuda, 24)
    assert other != first
    assert fake_cuda.called.count("cuMemAlloc_v2") == 2


def test_a_stream_of_each_thread_has_a_barrier_in_each_thread(fake_cuda):
    here, _ = barriers(fake_cuda, 2)
    with ThreadPoolExecutor(1) as thread:
        there, _ = thread.submit(barriers, fake_cuda, 2).result(timeout=10)
    assert here != there
    assert barriers(fake_cuda, 2)[0] == here


def test_no_memory_for_a_barrier(fake_cuda):
    fake_cuda.fail("cuMemAlloc_v2", 2)
    with pytest.raises(RuntimeError, match=r"cuMemAlloc_v2 of lstm_forward failed: CUDA_ERROR_OUT_OF_MEMORY .*smaller"):
        barriers(fake_cuda, 32)
    assert [call[1] for call in fake_cuda.calls if call[0] == "cuThreadExchangeStreamCaptureMode"] == [2, 0]


@pytest.mark.parametrize("barrier_param", [-1, 1])
def test_barrier_is_none_of_the_parameters(fake_cuda, barrier_param):
    message = f"lstm_forward has 1 parameters, and the barrier is number {barrier_param}, counted from 0"
    with pytest.raises(RuntimeError, match=message):
        _C.run_resident(load(), (1, 1), [0], barrier_param, 0)


def test_more_barriers_than_there_are(fake_cuda):
    fake_cuda.set("multiprocessors", 1000)
    with pytest.raises(
        RuntimeError, match=r"lstm_forward has the grid \(1025, 1\), expected at most 1024 along its first axis"
    ):
        _C.run_resident(load(), (1025, 1), [0], 0, 0)


def test_a_share_of_the_gpu_that_is_too_small(fake_cuda):
    """As MPS gives, and green contexts."""
    kernel = load()
    assert run_resident(kernel, (1, 1), 0)
    fake_cuda.fail("cuLaunchCooperativeKernel", 720)
    assert not run_resident(kernel, (1, 1), 0)


def test_no_cooperative_launch(fake_cuda):
    fake_cuda.set("cooperative", 0)
    kernel = load()
    with pytest.raises(RuntimeError, match="lstm_forward needs a cooperative launch, which GPU 0 lacks"):
        run_resident(kernel, (1, 1), 0)
    assert "cuLaunchCooperativeKernel" not in fake_cuda.called
    _C.run_steps([(kernel, (1, 1), [0], 0)], 0, 1, 0)


FAILURES = {
    "init": ("cuInit", 100, "cuInit failed: CUDA_ERROR_NO_DEVICE .*. Compare torch.cuda.device_count"),
    "device": ("cuDeviceGet", 101, "cuDeviceGet of k failed: CUDA_ERROR_INVALID_DEVICE"),
    "context": ("cuCtxGetCurrent", 3, "CUDA_ERROR_NOT_INITIALIZED .* must be started by 'spawn'"),
    "image": ("cuModuleLoadData", 200, r"of k failed: CUDA_ERROR_INVALID_IMAGE \(device kernel image is invalid\). .*cache"),
    "binary": ("cuModuleLoadData", 209, "of k failed: CUDA_ERROR_NO_BINARY_FOR_GPU .*compiled for another GPU"),
    "load": ("cuModuleLoadData", 2, r"cuModuleLoadData of k failed: CUDA_ERROR_OUT_OF_MEMORY \(out of memory\). CUDA out"),
    "symbol": ("cuModuleGetFunction", 500, r"of k failed: CUDA_ERROR_NOT_FOUND \(named symbol not found\)$"),
    "attribute": ("cuFuncSetAttribute", 1, "cuFuncSetAttribute of k failed: CUDA_ERROR_INVALID_VALUE"),
    "occupancy": ("cuOccupancyMaxActiveBlocksPerMultiprocessor", 400, "MaxActiveBlocksPerMultiprocessor of k failed"),
    "launch": ("cuLaunchKernel", 2, r"cuLaunchKernel of k failed: CUDA_ERROR_OUT_OF_MEMORY \(out of memory\). .*smaller batch"),
    "cooperative": ("cuLaunchCooperativeKernel", 700, "of k failed: CUDA_ERROR_ILLEGAL_ADDRESS .*launched before"),
    "wrong context": ("cuLaunchKernel", 201, "CUDA_ERROR_INVALID_CONTEXT .*torch.cuda.set_device"),
    "unknown": ("cuLaunchKernel", 12345, "cuLaunchKernel of k failed: error 12345$"),
}  # fmt: skip


@pytest.mark.parametrize(("function", "code", "message"), FAILURES.values(), ids=FAILURES)
def test_failures_name_function_kernel_and_reason(fake_cuda, function, code, message):
    def everything() -> None:
        _C.open_driver(fake_cuda.library)
        kernel = load("k", 100 * KB)
        _C.run_steps([(kernel, (1, 1), [0], 0)], 0, 1, 0)
        run_resident(kernel, (1, 1), 0)

    everything()
    fake_cuda.fail(function, code)
    with pytest.raises(RuntimeError, match="^fastlstm: .*" + message):
        everything()


def test_failure_ends_the_steps(fake_cuda):
    seen = launches_of(fake_cuda, 1)
    fake_cuda.fail("cuLaunchKernel", 719, after=5)
    with pytest.raises(RuntimeError, match="cuLaunchKernel of second failed: CUDA_ERROR_LAUNCH_FAILED"):
        _C.run_steps([(load("first"), (1, 1), [0], 0), (load("second"), (1, 1), [0], 0)], 0, 10, 0)
    assert seen == [("first", 0), ("second", 0), ("first", 1), ("second", 1), ("first", 2)]


def test_no_driver(fake_cuda):
    message = (
        r"fastlstm: no CUDA driver: looked for /no/libcuda.so.1 \(/no/libcuda.so.1: cannot open .*\); "
        'install the NVIDIA driver, or use tensors on the CPU, or backend="auto"'
    )
    with pytest.raises(RuntimeError, match=message):
        _C.open_driver("/no/libcuda.so.1")
    # the one in use stays so
    load()
    assert "cuModuleLoadData" in fake_cuda.called


def test_driver_that_lacks_a_function(fake_cuda):
    with pytest.raises(RuntimeError, match=r"has no function cuInit: it is too old; install a newer NVIDIA driver"):
        _C.open_driver(_C.__file__)


def test_kernels_outlive_the_driver_in_use(fake_cuda):
    kernel = load()
    _C.close_driver()
    _C.run_steps([(kernel, (1, 1), [0], 0)], 0, 1, 0)
    assert fake_cuda.called[-1] == "cuLaunchKernel"


def test_missing_context_is_the_primary_one_of_the_kernels_gpu(fake_cuda):
    fake_cuda.set("context", 0)
    kernel = load(device=1)
    entering = [("cuDevicePrimaryCtxRetain", 1), ("cuCtxSetCurrent", 1)]
    assert [call for call in fake_cuda.calls if call in entering] == entering
    # as on a thread that has not used CUDA yet
    for launch in (
        lambda: _C.run_steps([(kernel, (1, 1), [0], 0)], 0, 2, 0),
        lambda: run_resident(kernel, (1, 1), 0),
    ):
        fake_cuda.set("context", 0)
        before = len(fake_cuda.calls)
        launch()
        assert [call for call in fake_cuda.calls[before:] if call in entering] == entering


def test_current_context_is_kept(fake_cuda):
    run_resident(load(), (1, 1), 0)
    assert not {"cuDevicePrimaryCtxRetain", "cuCtxSetCurrent"} & set(fake_cuda.called)


def test_another_gpu_is_current(fake_cuda):
    kernel = load()
    fake_cuda.set("device", 1)
    message = r"lstm_forward belongs to GPU 0, and the current one is GPU 1: run it under torch.cuda.device\(0\)"
    for launch in (
        lambda: load(device=0),
        lambda: _C.run_steps([(load("other", device=1), (1, 1), [0], 0), (kernel, (1, 1), [0], 0)], 0, 1, 0),
        lambda: run_resident(kernel, (1, 1), 0),
    ):
        with pytest.raises(RuntimeError, match=message):
            launch()
    assert not {"cuLaunchKernel", "cuLaunchCooperativeKernel"} & set(fake_cuda.called)


def test_no_such_gpu(fake_cuda):
    with pytest.raises(RuntimeError, match="cuDeviceGet of lstm_forward failed: CUDA_ERROR_INVALID_DEVICE"):
        load(device=2)


@pytest.mark.parametrize("resident", [False, True])
def test_python_goes_on_during_a_launch(fake_cuda, resident):
    kernel = load()
    fake_cuda.close_gate()
    with ThreadPoolExecutor(1) as thread:
        if resident:
            launched = thread.submit(run_resident, kernel, (1, 1))
        else:
            launched = thread.submit(_C.run_steps, [(kernel, (1, 1), [0], 0)], 0, 3, 0)
        # with the lock held, this thread would come here only after the launch has timed out in the driver
        while not fake_cuda.waiting:
            time.sleep(0.001)
        fake_cuda.open_gate()
        launched.result(timeout=10)


def test_exception_in_a_callback_fails_the_launch(fake_cuda, capsys):
    def on_launch(*_) -> None:
        raise ZeroDivisionError("in the kernel")

    fake_cuda.on_launch = on_launch
    with pytest.raises(RuntimeError, match="cuLaunchKernel of lstm_forward failed: CUDA_ERROR_LAUNCH_FAILED"):
        _C.run_steps([(load(), (1, 1), [0], 0)], 0, 3, 0)
    assert isinstance(fake_cuda.error, ZeroDivisionError)
    assert "in the kernel" in capsys.readouterr().err
