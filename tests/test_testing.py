"""check_layer: it accepts every layer, and reports each fault of a wrong one."""

from __future__ import annotations

import numpy as np
import pytest
from array_api_compat import array_namespace
from tables import LAYERS

import nnxp
from nnxp.testing import check_layer


@pytest.mark.parametrize(("make", "inputs", "outputs"), list(LAYERS.values()), ids=list(LAYERS))
@pytest.mark.parametrize("device", ["cpu", "strict:device2"])
def test_check_layer_accepts_every_layer(make, inputs, outputs, device):
    layer = make(nnxp.device(device), "float32")
    before = {name: nnxp.device(device).to_host(x).copy() for name, x in layer.params.items()}
    differs = isinstance(layer, nnxp.BatchNorm) or hasattr(layer, "row_offset")
    check_layer(layer, inputs, training_differs=differs)
    for name, x in layer.params.items():
        np.testing.assert_array_equal(nnxp.device(device).to_host(x), before[name])
    assert layer.grads == {}


class Scale(nnxp.Layer):
    """A right layer with a parameter: y = gain * x."""

    def __init__(self):
        super().__init__()
        self.device, self.dtype = nnxp.device("cpu"), "float64"
        self.params["gain"] = np.full(4, 2.0)

    def forward(self, x, training=False):
        y = self.params["gain"] * x
        if training:
            self.save_for_backward(y, x)
        return y

    def backward(self, dy):
        x = self.saved(dy)
        self.grads["gain"] = array_namespace(dy).sum(dy * x, axis=0)
        return dy * self.params["gain"]


def test_check_layer_accepts_a_correct_custom_layer():
    check_layer(Scale(), (5, 4))


class WrongInputGradient(Scale):
    def backward(self, dy):
        return super().backward(dy) * 1.01


class WrongParameterGradient(Scale):
    def backward(self, dy):
        dx = super().backward(dy)
        self.grads["gain"] = -self.grads["gain"]
        return dx


class MissingParameterGradient(Scale):
    def backward(self, dy):
        self.saved(dy)
        return dy * self.params["gain"]


class WrongShape(Scale):
    def output_shape(self, shape):
        return (7,)


class ChangesInputs(Scale):
    def forward(self, x, training=False):
        x *= 1.0
        return super().forward(x, training)


class ChangesGradient(Scale):
    def backward(self, dy):
        dx = super().backward(dy)
        dy -= 1.0
        return dx


class Promotes(Scale):
    def forward(self, x, training=False):
        xp = array_namespace(x)
        return xp.astype(super().forward(x, training), xp.float64)


class NamesNumpy(Scale):
    def forward(self, x, training=False):
        y = np.multiply(self.params["gain"], x)
        if training:
            self.save_for_backward(y, x)
        return y


class LeavesTheStandard(Scale):
    def forward(self, x, training=False):
        y = super().forward(x, training)
        assert len(y)
        return y.clip(-9, 9)


class ForgetsToForget(Scale):
    def backward(self, dy):
        kept = self._saved
        dx = super().backward(dy)
        self._saved = kept
        return dx


class LeavesItsDevice(Scale):
    def forward(self, x, training=False):
        y = super().forward(x, training)
        return y if isinstance(y, np.ndarray) else array_namespace(y).asarray(1.0) * 1.0


class DiffersInTraining(Scale):
    def forward(self, x, training=False):
        return super().forward(x, training) * (2.0 if training else 1.0)


@pytest.mark.parametrize(
    ("kind", "sentence"),
    [
        (WrongInputGradient, "the gradient of inputs differs from the numerical gradient by .*e-0"),
        (WrongParameterGradient, "the gradient of gain1 differs"),
        (MissingParameterGradient, r"backward fills grads \[\] for params \['gain'\]"),
        (WrongShape, r"output_shape returns \(7,\) for an example, but forward returns \(5, 4\)"),
        (ChangesInputs, "forward on cpu in float32 raises ValueError: .*read-only"),
        (ChangesGradient, "backward on cpu in float32 raises ValueError: .*read-only"),
        (Promotes, "forward's output on cpu in float32 has dtype float64"),
        (NamesNumpy, "forward on strict:device1 in float32 raises"),
        (LeavesTheStandard, "forward on strict:device1 in float32 raises (Attribute|Type)Error"),
        (ForgetsToForget, "a second backward does not raise CallOrderError"),
        (LeavesItsDevice, "forward's output on strict:device1 in float32 is on another device"),
        (DiffersInTraining, "outputs in training and in inference differ"),
    ],
)
def test_check_layer_reports_each_fault(kind, sentence):
    with pytest.raises(nnxp.LayerError, match=sentence) as caught:
        check_layer(kind(), (5, 4))
    assert str(caught.value).startswith(f"{kind.__name__}(): ")


def test_check_layer_allows_other_output_in_training():
    with pytest.raises(nnxp.LayerError) as caught:
        check_layer(DiffersInTraining(), (5, 4), training_differs=True)
    assert "inference differ" not in str(caught.value)  # its gradient is wrong all the same
