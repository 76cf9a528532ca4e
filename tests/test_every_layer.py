"""Every layer of the table in a network: captured against plain steps, copies, files, resuming."""

from __future__ import annotations

import numpy as np
import pytest
from builders import numbers, train_layer
from pairs import assert_equal, devices
from tables import layers

import nnxp


@devices
@layers
def test_captured_steps_equal_plain_ones(spec, make, inputs, outputs):
    captured, _ = train_layer(make, inputs, outputs, spec)
    plain, _ = train_layer(make, inputs, outputs, spec, capture=False)
    assert captured.captured == "captured"
    assert captured.optimizer.steps == 6
    assert_equal(captured, plain)


@layers
def test_copies_and_files_predict_the_same_bits(tmp_path, make, inputs, outputs):
    pytest.importorskip("safetensors")
    trainer, dataset = train_layer(make, inputs, outputs)
    network = trainer.network
    network.save(tmp_path / "a.safetensors")
    loaded = nnxp.load_network(tmp_path / "a.safetensors")
    assert repr(loaded) == repr(network)
    for other in (loaded, network.to("cpu"), network.to("strict:device1").to("cpu")):
        np.testing.assert_array_equal(
            other.predict(dataset.inputs), network.predict(dataset.inputs)
        )


@layers
def test_resume_gives_the_same_bits(tmp_path, make, inputs, outputs):
    pytest.importorskip("safetensors")
    whole, dataset = train_layer(make, inputs, outputs, epochs=3)
    half, _ = train_layer(make, inputs, outputs, epochs=1)
    half.save(tmp_path / "a.safetensors")
    resumed = nnxp.Trainer.resume(tmp_path / "a.safetensors")
    for trainer in (half, resumed):
        trainer.fit(dataset, epochs=2, batch_size=8, rng=trainer.rng)
        np.testing.assert_equal(numbers(trainer), numbers(whole))
