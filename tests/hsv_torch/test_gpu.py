"""What needs a CUDA device: the numbers of the CPU, on the device, for torch and CuPy arrays, and a layer that is cut there."""

import copy

import numpy as np
import pytest
import torch

import hsv
import hsv_torch

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.filterwarnings("ignore:.*runs on the host:UserWarning"),  # said once, and expected here
]


def on_device(array, library):
    if library == "torch":
        return torch.asarray(array, device="cuda")
    return pytest.importorskip("cupy").asarray(array)


def to_numpy(x):
    return x.cpu().numpy() if isinstance(x, torch.Tensor) else x.get()


@pytest.mark.parametrize("library", ["torch", "cupy"])
@pytest.mark.parametrize("dt", [0, True])
@pytest.mark.parametrize("diagonal", [True, False])
def test_systems_on_the_device_give_the_numbers_of_the_host(library, dt, diagonal, rng):
    poles = 0.9 * np.exp(1j * rng.uniform(0, 6, (3, 6))) - (0 if dt else 1)
    B, C = rng.normal(size=(3, 6, 2)) + 0j, rng.normal(size=(3, 2, 6)) + 0j

    def system(convert):
        sys = hsv.DiagonalStateSpace(convert(poles), convert(B), convert(C), dt=dt)
        return sys if diagonal else sys.to_dense()

    host, device = system(np.asarray), system(lambda x: on_device(x, library))
    for compute in (
        hsv.hankel_singular_values,
        hsv.controllability_gramian,
        hsv.h2_norm,
        hsv.hinf_norm,
        lambda s: hsv.balanced_truncation(s, hsv.HankelSum(keep=0.8)).error_bound,
        lambda s: hsv.balanced_truncation(s, 3).system.frequency_response([0.1, 1.0]),
        lambda s: hsv.hankel_singular_values(hsv.real_part(s)),
    ):
        result = compute(device)
        assert type(result) is type(device.B)
        np.testing.assert_allclose(to_numpy(result), compute(host), rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize(
    "criterion", [hsv_torch.ComplexHankel(), hsv_torch.RealHankel()], ids=lambda c: type(c).__name__
)
def test_a_layer_is_run_and_cut_on_the_device(criterion):
    host = hsv_torch.LRU(4, 32, generator=torch.Generator().manual_seed(0))
    device = copy.deepcopy(host).cuda()
    x = torch.randn(3, 50, 4, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(device(x.cuda()).cpu(), host(x), rtol=1e-4, atol=1e-4)
    for layer in (host, device):
        optimizer = torch.optim.AdamW(layer.parameters())
        layer(x.to(layer.D.device)).square().mean().backward()
        optimizer.step()
        hsv_torch.compress_(torch.nn.Sequential(layer), 8, optimizer=optimizer, criterion=criterion)
        assert all(p.device == layer.D.device for p in layer.parameters())
        assert all(v.device == p.device for p in layer.parameters() for v in optimizer.state[p].values() if v.ndim)
    assert host.n_states == device.n_states <= 8
    torch.testing.assert_close(device(x.cuda()).cpu(), host(x), rtol=1e-3, atol=1e-3)
