"""Train an S5 classifier on handwritten digits, then cut it to several sizes: no training after the cut.

python examples/compress_s5.py --steps 1500
"""

import argparse
import copy

import torch
from sklearn.datasets import load_digits
from torch.nn.functional import cross_entropy

import hsv
import hsv_torch

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--steps", type=int, default=1500)
parser.add_argument("--states", type=int, default=32)
steps, n_states = (args := parser.parse_args()).steps, args.states

torch.manual_seed(0)
digits = load_digits()  # 8 x 8 pictures, read pixel by pixel
pixels = torch.tensor(digits.images, dtype=torch.float32).reshape(-1, 64, 1) / 16
labels = torch.tensor(digits.target)
order = torch.randperm(len(labels))
train, test = order[:1400], order[1400:]

config = hsv_torch.SequenceModelConfig(
    layer="s5", head="classification", d_model=16, n_states=n_states, n_blocks=2, n_inputs=1, n_outputs=10, norm="layer"
)
model = hsv_torch.SequenceModel(config)
optimizer = torch.optim.AdamW(hsv_torch.parameter_groups(model, lr=4e-3, ssm_lr_factor=0.5, weight_decay=0.01))
for step in range(1, steps + 1):
    batch = train[torch.randint(len(train), (50,))]
    loss = cross_entropy(model(pixels[batch]), labels[batch])
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if step % 250 == 0:
        print(f"step {step}: loss {loss.item():.3f}")


@torch.no_grad()
def accuracy(model: torch.nn.Module) -> float:
    """Return the share of test digits that are read right."""
    return (model.eval()(pixels[test]).argmax(-1) == labels[test]).float().mean().item()


print(f"states {model.n_states}: test accuracy {accuracy(model):.3f}")
# Layers that learn from short sequences get states that hardly ever forget. They have the largest Hankel values of all, for these count what an
# input does for ever; `Discounted` counts what it does within about as many steps as the sequences have.
for name, criterion in (("for ever", None), ("within 64 steps", hsv_torch.Discounted(horizon=64))):
    for keep in (0.99, 0.95, 0.9):
        small = copy.deepcopy(model)
        hsv_torch.compress_(small, hsv.HankelSum(keep=keep), criterion=criterion)
        print(f"{keep:.0%} of the Hankel sum {name}: states {small.n_states}, test accuracy {accuracy(small):.3f}")
