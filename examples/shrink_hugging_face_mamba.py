"""Cut a Hugging Face Mamba to a quarter of its states, save it, and load it again.

python examples/shrink_hugging_face_mamba.py --model FOLDER --states 4 --output small-mamba

FOLDER has a model that `save_pretrained` wrote. Without it, a small model with random weights shows the steps.
"""

import argparse
from pathlib import Path

import torch
import transformers

import hsv
import hsv_torch
from hsv_torch.third_party.transformers import update_config

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--model", type=Path, help="folder of a Mamba, FalconMamba or Mamba-2 model")
parser.add_argument("--states", type=int, default=4)
parser.add_argument("--output", type=Path, default=Path("small-mamba"))
args = parser.parse_args()

torch.manual_seed(0)
if args.model is not None:
    model = transformers.AutoModelForCausalLM.from_pretrained(args.model).eval()
else:
    config = transformers.MambaConfig(vocab_size=64, hidden_size=32, state_size=16, num_hidden_layers=2)
    model = transformers.MambaForCausalLM(config).eval()
before = sum(p.numel() for p in model.parameters())

# What the model reads decides which states matter: give it real text. Random tokens stand in here.
batches = [torch.randint(model.config.vocab_size, (8, 64)) for _ in range(4)]
with torch.no_grad():
    expected = model(batches[0]).logits

report = hsv_torch.compress_(model, hsv.Order(args.states), calibration=batches, sizes=hsv_torch.Sizes(uniform=True))
update_config(model)  # the configuration learns the new size, so that stock transformers can load the model
for layer in report.layers:
    print(f"{layer.layer}: {layer.n_states_before} -> {layer.n_states_after} states")
after = sum(p.numel() for p in model.parameters())
print(f"{before:,} -> {after:,} parameters")

model.save_pretrained(args.output)
loaded = type(model).from_pretrained(args.output).eval()
with torch.no_grad():
    logits = loaded(batches[0]).logits
    assert torch.equal(logits, model(batches[0]).logits), "the loaded model computes something else"
print(f"saved in {args.output}; logits changed by {(logits - expected).norm() / expected.norm():.2%} through the cut")
