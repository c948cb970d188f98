"""The same with Lightning: one callback.

python examples/train_and_shrink_lightning.py --steps 2000
"""

import argparse

import lightning
import torch
from sklearn.datasets import load_digits
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

import hsv
import hsv_torch
from hsv_torch.integrations.lightning import CompressionCallback


class Digits(lightning.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        config = hsv_torch.SequenceModelConfig(
            layer="lru", d_model=8, n_states=64, head="classification", n_inputs=1, n_outputs=10
        )
        self.model = hsv_torch.SequenceModel(config)

    def training_step(self, batch, index):
        return cross_entropy(self.model(batch[0]), batch[1])

    def validation_step(self, batch, index):
        self.log("accuracy", (self.model(batch[0]).argmax(-1) == batch[1]).float().mean())

    def configure_optimizers(self):
        return torch.optim.AdamW(hsv_torch.parameter_groups(self, lr=4e-3, ssm_lr_factor=1.0, weight_decay=0.0))


parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--steps", type=int, default=2000)
steps = parser.parse_args().steps

lightning.seed_everything(0)
digits = load_digits()
pixels = torch.tensor(digits.images, dtype=torch.float32).reshape(-1, 64, 1) / 16
data = TensorDataset(pixels, torch.tensor(digits.target))
train = DataLoader(torch.utils.data.Subset(data, range(1400)), batch_size=50, shuffle=True)
held_out = DataLoader(torch.utils.data.Subset(data, range(1400, len(data))), batch_size=400)

module = Digits()
callback = CompressionCallback(rule=hsv.HankelSum(discard=0.1))  # four attempts in the first tenth of the steps
trainer = lightning.Trainer(
    max_steps=steps, accelerator="auto", devices=1, callbacks=[callback], logger=False, enable_checkpointing=False
)
trainer.fit(module, train)
(found,) = trainer.validate(module, held_out, verbose=False)
print(f"accuracy {found['accuracy']:.3f} with {module.model.n_states[0]} states")
