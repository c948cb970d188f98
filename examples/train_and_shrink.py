"""A plain PyTorch loop: an LRU that reads the pixels of handwritten digits shrinks while it trains.

python examples/train_and_shrink.py --steps 2000
"""

import argparse

import torch
from sklearn.datasets import load_digits
from torch.nn.functional import cross_entropy

import hsv
import hsv_torch

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--steps", type=int, default=2000)
steps = parser.parse_args().steps

torch.manual_seed(0)
digits = load_digits()
pixels = torch.tensor(digits.images, dtype=torch.float32).reshape(-1, 64, 1) / 16
labels = torch.tensor(digits.target)

config = hsv_torch.SequenceModelConfig(
    layer="lru", d_model=8, n_states=64, head="classification", n_inputs=1, n_outputs=10
)
model = hsv_torch.SequenceModel(config)
optimizer = torch.optim.AdamW(hsv_torch.parameter_groups(model, lr=4e-3, ssm_lr_factor=1.0, weight_decay=0.0))
compressor = hsv_torch.InTrainingCompressor(
    model, optimizer, rule=hsv.HankelSum(discard=0.1), schedule=hsv_torch.Schedule(steps)
)


@torch.no_grad()
def accuracy() -> float:
    """Share of right answers on digits that were not trained on."""
    model.eval()
    right = model(pixels[1400:]).argmax(-1) == labels[1400:]
    model.train()
    return right.float().mean().item()


for _ in range(steps):
    batch = torch.randint(1400, (50,))
    loss = cross_entropy(model(pixels[batch]), labels[batch])
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    event = compressor.step()
    if event is not None:
        (layer,) = event.layers
        print(f"step {event.step}: {layer.n_states_before} -> {layer.n_states_after} states ({layer.outcome})")
print(f"accuracy {accuracy():.3f} with {model.n_states[0]} states")
