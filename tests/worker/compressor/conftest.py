"""The files that whole attempts are made of."""

import numpy as np
import pytest
import torch

from tests.worker.compressor.networks import export, export_fixed, pictures, trained


@pytest.fixture(autouse=True)
def same_numbers_in_any_order(request):
    """A module's generator starts anew for each test, so what a test draws hangs on no other test."""
    generator = getattr(request.module, "RNG", None)
    if generator is not None:
        generator.bit_generator.state = np.random.default_rng(0).bit_generator.state


@pytest.fixture(scope="session")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    export(trained(), folder)
    export(trained(num_outputs=1), folder, "value")
    leaning = trained()
    with torch.no_grad():
        leaning.fc2.bias[0] += 4  # few units cannot outweigh it
    export(leaning, folder, "leaning")
    export_fixed(trained(), folder)
    (x, y), (xt, yt) = pictures(400, 1), pictures(120, 2)
    np.savez(folder / "labelled.npz", x_train=x, y_train=y, x_test=xt, y_test=yt)
    np.savez(folder / "unlabelled.npz", x_train=x, x_test=xt)
    np.savez(folder / "values.npz", x_train=x, y_train=y.astype(np.float32), x_test=xt, y_test=yt.astype(np.float32))
    np.savez(folder / "other.npz", x=np.zeros((60, 1, 9, 9), np.uint8))
    np.savez(folder / "classes.npz", x=x, y=y + 5)
    return folder
