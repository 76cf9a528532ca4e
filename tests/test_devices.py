"""Devices: names, conversion of arrays, and the errors for unusable GPUs."""

from __future__ import annotations

import copy
import importlib.util
import os
import pickle
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from remedies import installs
from tables import device_or_skip

import nnxp


def test_names_and_equality():
    cpu = nnxp.device("cpu")
    assert cpu == nnxp.device("cpu")
    assert cpu != nnxp.device("strict")
    assert nnxp.device(cpu) is cpu
    assert hash(cpu) == hash(nnxp.device("cpu"))
    assert str(cpu) == f"cpu (NumPy {np.__version__})"
    assert "cpu" in repr(cpu)
    assert str(nnxp.device("strict:device1")).startswith("strict:device1 (array-api-strict")


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("cdua", "unknown device 'cdua'; did you mean 'cuda'.*auto, cpu, cuda, torch, jax, strict"),
        ("gpu", "unknown device 'gpu'; GPUs are \"cuda\""),
        ("cpu:1", 'the CPU has no number, got "cpu:1"'),
        ("cuda:one", 'a GPU has a number, got "cuda:one"'),
        ("torch:tpu", 'PyTorch.s devices are .* got "torch:tpu"'),
        ("torch:cuda:x", 'a GPU has a number, got "torch:cuda:x"'),
        ("torch:cpu:1", 'got "torch:cpu:1"'),
        ("jax:tpu", 'JAX.s devices are .* got "jax:tpu"'),
        (0, 'a name such as "cpu" or "cuda:0", got int'),
    ],
)
def test_wrong_names(spec, message):
    with pytest.raises(nnxp.InputError, match=message):
        nnxp.device(spec)


def test_unknown_simulated_device():
    with pytest.raises(nnxp.DeviceError, match='array-api-strict has no device "device9"'):
        nnxp.device("strict:device9")


def test_arrays_survive_a_round_trip_to_the_device(backend):
    host = np.arange(6, dtype="float32").reshape(2, 3)
    x = backend.device.asarray(host)
    assert backend.device.holds(x)
    np.testing.assert_array_equal(backend.device.to_host(x), host)
    assert tuple(backend.device.asarray(3.0).shape) == ()
    infinite = backend.device.asarray([np.inf, np.nan], dtype="float32")  # they stay what they are
    np.testing.assert_array_equal(backend.host(infinite), [np.inf, np.nan])
    again = backend.device.asarray(x, dtype="float64")
    assert again.dtype == backend.device.xp.float64
    assert backend.device.asarray([1, 2], dtype="float32").dtype == backend.device.xp.float32


@pytest.mark.parametrize(
    ("given", "dtype", "message"),
    [
        ([1.0], "flaot32", "unknown dtype 'flaot32'; did you mean 'float32'"),
        ([1.0], object(), "unknown dtype '<object"),
        (["a"], None, "expects an array of numbers, got dtype <U1"),
        ([[1], [1, 2]], None, "expects an array of numbers: "),
        (None, "float32", "expects an array of numbers, got dtype object"),
        (np.array(["2020"], "M8[D]"), None, r"numbers, got dtype datetime64\[D\]"),
        (np.ones(2, "float16"), None, "got dtype float16; supported are float32, float64, int8"),
        (np.array([300]), "uint8", "got 300 of int64, which uint8 cannot hold"),
        ([0.5], "int32", "got 0.5 of float64, which int32 cannot hold"),
        ([1.0, np.nan], "int32", "got nan of float64, which int32 cannot hold"),
        ([1e300], "float32", r"got 1e\+300 of float64, which float32 cannot hold"),
        (np.str_("a"), None, "expects an array of numbers, got dtype <U1"),
        (
            np.ones((1, 1)).view(np.matrix),
            None,
            "a plain array, got matrix; convert with numpy.asarray",
        ),
        (np.ma.array([1.0], mask=[True]), None, "a plain array, got MaskedArray"),
    ],
)
def test_asarray_refuses_unsupported_input(backend, given, dtype, message):
    with pytest.raises(nnxp.InputError, match=message):
        backend.device.asarray(given, dtype=dtype)


def test_asarray_takes_any_byte_order_and_copies(backend):
    host = np.array([1.0, 2.0], dtype=">f4")
    x = backend.device.asarray(host)
    assert x.dtype == backend.device.xp.float32
    host = np.array([1.0, 2.0])
    x = backend.device.asarray(host)
    host[0] = 9.0
    if backend.device != nnxp.device("cpu"):
        np.testing.assert_array_equal(backend.host(x), [1, 2])


def test_asarray_refuses_arrays_of_other_devices():
    cpu, strict = nnxp.device("cpu"), nnxp.device("strict:device1")
    with pytest.raises(
        nnxp.DeviceError, match=r"to cpu, got an array of array_api_strict.*to_host\(x\)"
    ):
        cpu.asarray(strict.asarray([1.0]))
    with pytest.raises(nnxp.DeviceError, match="to_host of cpu expects an array of that device"):
        cpu.to_host(strict.asarray([1.0]))


def test_networks_are_copied_and_pickled_with_their_device(backend):
    network = nnxp.ThreeLayerNet(4, 3, 3, 2, rng=np.random.default_rng(0), device=backend.device)
    twin = copy.deepcopy(network)
    twin.parameters()["b1"] = twin.parameters()["b1"] + 1.0
    assert twin.device == network.device
    assert float(backend.device.xp.sum(network.parameters()["b1"])) == 0
    assert pickle.loads(pickle.dumps(nnxp.device("cpu"))) == nnxp.device("cpu")


def test_wrong_device_error_names_both_devices_and_the_call():
    strict = nnxp.device("strict:device1")
    with pytest.raises(
        nnxp.DeviceError,
        match=r"Layer is on strict:device1, got an array of numpy on cpu, \(2,\) float64; convert "
        r'with nnxp.device\("strict:device1"\).asarray\(x\)',
    ):
        strict.require(np.ones(2), "Layer")
    with pytest.raises(nnxp.DeviceError, match="got an array of array_api_strict on .*device2"):
        strict.require(nnxp.device("strict:device2").asarray([1.0]), "Layer")


# Each way in which a GPU can be unusable. The stand-ins raise what CuPy raises; the last test of
# this file and those marked gpu meet the real one.


class RuntimeStatusError(RuntimeError):
    def __init__(self, status, text):
        super().__init__(text)
        self.status = status


def stand_in(count, trial_error=None, trial=None):
    """A CuPy that counts `count` devices (or raises it), and fails its first computation.

    It raises `trial_error`, or computes with `trial`, which is no array of twos afterwards.
    """

    def get_device_count():
        if isinstance(count, Exception):
            raise count
        return count

    def ones(*args, **kwargs):
        if trial is not None:
            return trial
        raise trial_error

    return SimpleNamespace(
        __version__="14.2.0",
        ones=ones,
        cuda=SimpleNamespace(
            runtime=SimpleNamespace(getDeviceCount=get_device_count),
            Device=lambda number: SimpleNamespace(use=lambda: None),
        ),
    )


UNUSABLE = {
    "missing": ("cuda", None, f"CuPy {installs('cuda13')}"),
    "no driver": (
        "cuda",
        stand_in(RuntimeStatusError(35, "cudaErrorInsufficientDriver: ...")),
        "no NVIDIA driver, or one too old.*install or update the driver",
    ),
    "no device": (
        "cuda",
        stand_in(RuntimeStatusError(100, "cudaErrorNoDevice: no CUDA-capable device")),
        "the NVIDIA driver shows no GPU.*CUDA_VISIBLE_DEVICES",
    ),
    "none counted": ("cuda", stand_in(0), "the NVIDIA driver shows no GPU"),
    "cannot count": (
        "cuda",
        stand_in(RuntimeStatusError(999, "cudaErrorUnknown: unknown error")),
        r"cannot count the GPUs \(RuntimeStatusError: cudaErrorUnknown.*nvidia-smi",
    ),
    "number too large": (
        "cuda:2",
        stand_in(2),
        r"cuda:2 does not exist: this machine shows 2 device\(s\), cuda:0 to cuda:1",
    ),
    "wrong kernel": (
        "cuda",
        stand_in(1, trial=np.full((2, 2), 3.0)),
        "a kernel returned 6.0, not 2: the installation is broken",
    ),
    "wrong product": (
        "cuda",
        stand_in(1, trial=np.array([[1.0, 1.0], [7.0, 1.0]])),
        r"a matrix product \(cuBLAS\) returned 8.0, not 2",
    ),
    "library missing": (
        "cuda",
        stand_in(1, ImportError("libnvrtc.so.13: cannot open shared object file\nmore")),
        r"cannot compute a kernel on cuda:0 \(ImportError: libnvrtc.so.13.*file\); if CUDA",
    ),
}


@pytest.mark.parametrize(("spec", "cupy", "message"), list(UNUSABLE.values()), ids=list(UNUSABLE))
def test_unusable_gpu_error_is_one_line_with_the_remedy(monkeypatch, spec, cupy, message):
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    with pytest.raises(nnxp.DeviceError, match=message) as caught:
        nnxp.device(spec)
    assert "\n" not in str(caught.value)
    if spec == "cuda":
        fallback = nnxp.device("auto")
        assert fallback == nnxp.device("cpu")
        assert fallback.reason == str(caught.value)


@pytest.mark.parametrize(
    "line",
    [
        "raise ImportError('libcuda.so.1: cannot open shared object file')",
        "import numpy; numpy.no_such_name",
        "import no_such_module_of_cupy",
        "# imports, and is empty",
    ],
)
def test_broken_cupy_and_missing_cupy_give_different_errors(monkeypatch, tmp_path, line):
    (tmp_path / "cupy.py").write_text(line + "\n")
    monkeypatch.delitem(sys.modules, "cupy", raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(nnxp.DeviceError, match="CuPy is installed but does not import .*reinstall"):
        nnxp.device("cuda")
    assert nnxp.device("auto") == nnxp.device("cpu")


@pytest.mark.gpu
def test_a_real_gpu():
    gpu = device_or_skip("cuda")
    assert gpu == nnxp.device("cuda:0")
    assert nnxp.device("auto") == gpu
    with pytest.raises(nnxp.DeviceError, match="cuda:99 does not exist"):
        nnxp.device("cuda:99")
    layer = nnxp.Affine(2, 1, rng=np.random.default_rng(0), device=gpu)
    with pytest.raises(
        nnxp.DeviceError, match=r"on cuda:0, got an array of numpy on cpu, .*; convert .*cuda:0"
    ):
        layer.forward(np.ones((1, 2), "float32"))
    with pytest.raises(nnxp.DeviceError, match="on cpu, got an array of cupy"):
        nnxp.Affine(2, 1, rng=np.random.default_rng(0)).forward(gpu.asarray([[1.0, 1.0]]))


def test_the_real_cupy_without_a_gpu():
    if importlib.util.find_spec("cupy") is None:
        pytest.skip("cupy: not installed")
    try:
        nnxp.device("cuda")
    except nnxp.DeviceError as error:
        assert "driver" in str(error)
        assert "\n" not in str(error)
    else:
        pytest.skip("cupy: a GPU is there")


@pytest.mark.parametrize(
    ("module", "spec", "message"),
    [
        ("torch", "torch", "PyTorch is not installed; .*pip install .*torch"),
        ("jax", "jax", "JAX is not installed; .*pip install .*jax"),
        ("array_api_strict", "strict", f"array-api-strict {installs('testing')}"),
    ],
)
def test_missing_library_error_says_how_to_install_it(monkeypatch, module, spec, message):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(nnxp.DeviceError, match=message):
        nnxp.device(spec)


@pytest.mark.interop
def test_torch_and_jax_devices():
    torch = pytest.importorskip("torch", reason="torch is not installed")
    jax = pytest.importorskip("jax", reason="jax is not installed")
    assert nnxp.device("torch") == nnxp.device("torch:cpu")
    assert nnxp.device("jax:cpu").asarray([1.0]).device == jax.devices("cpu")[0]
    host = np.ones((2, 3))[:, ::-1]
    host.flags.writeable = False
    for spec in ("torch", "jax:cpu"):
        x = nnxp.device(spec).asarray(host)
        np.testing.assert_array_equal(nnxp.device(spec).to_host(x), host)
    if not torch.cuda.is_available():
        with pytest.raises(nnxp.DeviceError, match="shows no GPU.*nvidia-smi"):
            nnxp.device("torch:cuda")
        with pytest.raises(nnxp.DeviceError, match=r"JAX shows no cuda device .*jax\[cuda13\]"):
            nnxp.device("jax:cuda")
    if not torch.backends.mps.is_available():
        with pytest.raises(nnxp.DeviceError, match="no Apple GPU"):
            nnxp.device("torch:mps")


@pytest.mark.interop
def test_jax_without_64_bits_is_refused():
    pytest.importorskip("jax", reason="jax is not installed")
    code = (
        "import numpy as np, nnxp\n"
        "d = nnxp.device('jax:cpu')\n"
        "assert d.asarray(np.array([7])).dtype == 'int32'\n"
        "for wrong in ([0.5], [2**40]):\n"
        "    try: d.asarray(np.array(wrong))\n"
        "    except nnxp.InputError as error: print(error)\n"
    )
    result = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        env=os.environ | {"JAX_ENABLE_X64": "0"}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    first, second = result.stdout.splitlines()
    assert first.startswith("JAX has float64 only if JAX_ENABLE_X64=1 is set")
    assert second == "JAX has int64 only if JAX_ENABLE_X64=1 is set"
