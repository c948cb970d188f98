"""The same with Accelerate, on whatever and however many devices it was told to use.

accelerate launch examples/train_and_shrink_accelerate.py --steps 2000
"""

import argparse

import torch
from accelerate import Accelerator
from sklearn.datasets import load_digits
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

import hsv
import hsv_torch

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--steps", type=int, default=2000)
steps = parser.parse_args().steps

torch.manual_seed(0)
digits = load_digits()
pixels = torch.tensor(digits.images, dtype=torch.float32).reshape(-1, 64, 1) / 16
loader = DataLoader(TensorDataset(pixels[:1400], torch.tensor(digits.target[:1400])), batch_size=50, shuffle=True)
config = hsv_torch.SequenceModelConfig(
    layer="lru", d_model=8, n_states=64, head="classification", n_inputs=1, n_outputs=10
)
model = hsv_torch.SequenceModel(config)
optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3, weight_decay=0.0)

accelerator = Accelerator()
model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
compressor = hsv_torch.InTrainingCompressor(  # the wrapped model, so that several processes cut alike
    model, optimizer.optimizer, rule=hsv.HankelSum(discard=0.1), schedule=hsv_torch.Schedule(steps)
)
while compressor.steps < steps:
    for x, y in loader:
        loss = cross_entropy(model(x), y)
        optimizer.zero_grad()
        accelerator.backward(loss)
        optimizer.step()
        event = compressor.step()
        if event is not None:
            (layer,) = event.layers
            accelerator.print(f"step {event.step}: {layer.n_states_before} -> {layer.n_states_after} states")
        if compressor.steps == steps:
            break

small = accelerator.unwrap_model(model).eval()
with torch.no_grad():
    right = small(pixels[1400:].to(accelerator.device)).argmax(-1).cpu() == torch.tensor(digits.target[1400:])
accelerator.print(f"accuracy {right.float().mean():.3f} with {small.n_states[0]} states")
