"""The same with Lightning Fabric, which wraps the model and the optimizer of a plain loop.

fabric run examples/train_and_shrink_fabric.py --devices 2 -- --steps 2000
"""

import argparse

import lightning
import torch
from sklearn.datasets import load_digits
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

import hsv
import hsv_torch

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--steps", type=int, default=2000)
steps = parser.parse_args().steps

fabric = lightning.Fabric()
fabric.launch()
fabric.seed_everything(0, verbose=False)
digits = load_digits()
pixels = torch.tensor(digits.images, dtype=torch.float32).reshape(-1, 64, 1) / 16
labels = torch.tensor(digits.target)
loader = fabric.setup_dataloaders(DataLoader(TensorDataset(pixels[:1400], labels[:1400]), batch_size=50, shuffle=True))
config = hsv_torch.SequenceModelConfig(
    layer="lru", d_model=8, n_states=64, head="classification", n_inputs=1, n_outputs=10
)
small = hsv_torch.SequenceModel(config)
model, optimizer = fabric.setup(small, torch.optim.AdamW(small.parameters(), lr=4e-3, weight_decay=0.0))
compressor = hsv_torch.InTrainingCompressor(  # what Fabric has wrapped, so that several processes cut alike
    model, optimizer.optimizer, rule=hsv.HankelSum(discard=0.1), schedule=hsv_torch.Schedule(steps)
)
while compressor.steps < steps:
    for x, y in loader:
        loss = cross_entropy(model(x), y)
        optimizer.zero_grad()
        fabric.backward(loss)
        optimizer.step()
        event = compressor.step()
        if event is not None:
            (layer,) = event.layers
            fabric.print(f"step {event.step}: {layer.n_states_before} -> {layer.n_states_after} states")
        if compressor.steps == steps:
            break

small.eval()
with torch.no_grad():
    right = small(pixels[1400:].to(fabric.device)).argmax(-1).cpu() == labels[1400:]
fabric.print(f"accuracy {right.float().mean():.3f} with {small.n_states[0]} states")
