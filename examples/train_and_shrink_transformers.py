"""A Hugging Face Mamba that learns to repeat what it read, and shrinks while the Trainer trains it.

python examples/train_and_shrink_transformers.py --steps 600
"""

import argparse
import tempfile

import torch
import transformers

import hsv_torch
import hsv_torch.third_party.transformers  # so that MambaMixer can be cut
from hsv_torch.integrations.transformers import CompressionCallback

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--steps", type=int, default=600)
steps = parser.parse_args().steps

transformers.set_seed(0)
first = torch.randint(2, 12, (2048, 8))
tokens = torch.cat(
    [first, torch.ones(2048, 1, dtype=torch.int64), first], dim=1
)  # eight tokens, a mark, the same again
labels = tokens.clone()
labels[:, :9] = -100  # only the repetition counts
data = [{"input_ids": x, "labels": y} for x, y in zip(tokens, labels, strict=True)]

config = transformers.MambaConfig(vocab_size=12, hidden_size=32, state_size=32, num_hidden_layers=2, use_cache=False)
model = transformers.MambaForCausalLM(config)
callback = CompressionCallback(
    rule=12,
    schedule=hsv_torch.Schedule.once(steps, steps // 2),
    calibration=tokens[:64],
    sizes=hsv_torch.Sizes(uniform=True),
)
with tempfile.TemporaryDirectory() as folder:
    args = transformers.TrainingArguments(
        folder, max_steps=steps, per_device_train_batch_size=32, learning_rate=5e-3, save_strategy="no", report_to=[]
    )
    transformers.Trainer(model, args, train_dataset=data, callbacks=[callback]).train()

model.eval()
with torch.no_grad():
    right = model(input_ids=tokens[:256].to(model.device)).logits[:, 8:-1].argmax(-1).cpu() == tokens[:256, 9:]
print(f"repeats {right.float().mean():.3f} of the tokens with {callback.history.sizes} states")
