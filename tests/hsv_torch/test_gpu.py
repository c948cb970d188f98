"""What needs a CUDA device: a layer that is run and cut there. Systems on a device: `tests/hsv/test_gpu.py`."""

import copy

import pytest
import torch

import hsv_torch

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.filterwarnings("ignore:.*runs on the host:UserWarning"),  # said once, and expected here
]


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
