import copy
import warnings
from types import SimpleNamespace

import pytest
import torch
import torch.distributed.fsdp
from torch import nn

import hsv
import hsv_torch
from hsv_torch import Rollback, Schedule
from tests.hsv_torch.models import batch, classifier
from tests.hsv_torch.processes import group_of_one

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of packages that Lightning imports
    import lightning
    import lightning.pytorch as pl
    from lightning.pytorch.loggers import CSVLogger

    from hsv_torch.integrations.lightning import CompressionCallback, load_sizes

pytestmark = pytest.mark.filterwarnings("ignore")  # Lightning's advice


class Module(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.model = classifier()
        for block in self.model.blocks:
            block.dropout.p = 0.0
        self.sizes = []

    def training_step(self, data, index):
        x, y = batch(self.global_step)  # Lightning begins anew with the loader when a run is resumed inside an epoch
        self.sizes.append(self.model.blocks[0].ssm.n_states)
        return nn.functional.cross_entropy(self.model(x), y)

    def configure_optimizers(self):
        optimizer = torch.optim.AdamW(self.parameters(), lr=1e-2)
        scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 20)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


class Loading(Module):
    def on_load_checkpoint(self, checkpoint):
        load_sizes(self, checkpoint)


class Batches(torch.utils.data.Dataset):
    def __len__(self):
        return 40

    def __getitem__(self, index):
        return batch(index)


def trainer(tmp_path, callbacks, steps=20, **options):
    options = {"logger": False, "enable_checkpointing": False, **options}
    return pl.Trainer(max_steps=steps, accelerator="cpu", devices=1, callbacks=callbacks, enable_progress_bar=False, enable_model_summary=False, default_root_dir=tmp_path, **options)  # fmt: skip


def loader():
    return torch.utils.data.DataLoader(Batches(), batch_size=None)


def test_the_model_shrinks_at_the_steps_of_the_schedule(tmp_path):
    module, callback = Module(), CompressionCallback(rule=[9, 4], schedule=Schedule(20, at=(5, 11)))
    logger = CSVLogger(tmp_path)
    trainer(tmp_path, [callback], logger=logger).fit(module, loader())
    assert module.sizes == [16] * 5 + [9] * 6 + [4] * 9
    assert callback.history.sizes == {"model.blocks.0.ssm": 4, "model.blocks.1.ssm": 4}
    assert [row["states/model.blocks.0.ssm"] for row in logger.experiment.metrics if "states/model.blocks.0.ssm" in row] in ([9, 4], [])  # fmt: skip
    assert "on_load_checkpoint" not in vars(module)


def test_accumulated_gradients_count_as_one_step(tmp_path):
    module, callback = (
        Module(),
        CompressionCallback(rule=4, schedule=lambda trainer, module: Schedule.once(trainer.max_steps, 3)),
    )
    trainer(tmp_path, [callback], steps=5, accumulate_grad_batches=4).fit(module, loader())
    assert module.sizes == [16] * 12 + [4] * 8


def test_without_a_schedule_it_is_the_papers(tmp_path):
    module, callback = Module(), CompressionCallback(rule=4)
    trainer(tmp_path, [callback], steps=40).fit(module, loader())
    assert callback.compressor.schedule == Schedule(40)


def test_a_resumed_run_ends_like_an_uninterrupted_one(tmp_path):
    def fit(steps, path=None, save=None):
        module, callback = Module(), CompressionCallback(rule=[9, 4], schedule=Schedule(20, at=(5, 11)))
        made = trainer(tmp_path, [callback], steps=steps)
        made.fit(module, loader(), ckpt_path=path)
        if save:
            made.save_checkpoint(save)
        return module

    whole = fit(20)
    half = tmp_path / "half.ckpt"
    fit(8, save=half)
    resumed = fit(20, path=half)
    assert resumed.sizes == [9] * 3 + [4] * 9
    for (name, a), (_, b) in zip(whole.state_dict().items(), resumed.state_dict().items(), strict=True):
        assert torch.equal(a, b), name
    loaded = Loading.load_from_checkpoint(half)
    assert loaded.model.blocks[0].ssm.n_states == 9


def test_a_guard_puts_schedulers_back(tmp_path):
    metrics = iter([0.9, 0.1])
    callback = CompressionCallback(rule=4, schedule=Schedule(20, at=(5,)), guard=lambda trainer, module: Rollback(lambda: next(metrics), max_drop=0.0))  # fmt: skip
    module, never = Module(), Module()
    never.load_state_dict(copy.deepcopy(module.state_dict()))
    trainer(tmp_path, [callback]).fit(module, loader())
    trainer(tmp_path, []).fit(never, loader())
    assert callback.history.events[0].undone
    for a, b in zip(module.state_dict().values(), never.state_dict().values(), strict=True):
        assert torch.equal(a, b)


def test_bad_input(tmp_path):
    class Two(Module):
        def configure_optimizers(self):
            return [torch.optim.SGD(self.parameters(), lr=0.1), torch.optim.SGD(self.parameters(), lr=0.1)]

        def __init__(self):
            super().__init__()
            self.automatic_optimization = False

    with pytest.raises(hsv.HsvError, match="needs one optimizer and automatic optimization, got 2 optimizers"):
        trainer(tmp_path, [CompressionCallback(rule=4)]).fit(Two(), loader())
    with pytest.raises(hsv.HsvError, match="has not begun"):
        _ = CompressionCallback(rule=4).history
    with pytest.raises(hsv.HsvError, match="saved without a CompressionCallback"):
        load_sizes(hsv_torch.LRU(2, 4), {"callbacks": {"other": {}}})


def test_what_fabric_has_wrapped_stands_for_the_model_inside():
    fabric = lightning.Fabric(accelerator="cpu", devices=1)
    inside = classifier()
    model, optimizer = fabric.setup(inside, torch.optim.AdamW(inside.parameters(), lr=1e-2))
    compressor = hsv_torch.InTrainingCompressor(model, optimizer.optimizer, rule=4, schedule=Schedule.once(4, 1))
    assert compressor.model is inside
    assert compressor.step().changed
    x, y = batch(0)
    fabric.backward(nn.functional.cross_entropy(model(x), y))
    optimizer.step()
    assert [block.ssm.n_states for block in inside.blocks] == [4, 4]


def test_a_model_that_is_split_is_refused():
    module = Module()
    with group_of_one() as mesh:
        torch.distributed.fsdp.fully_shard(module, mesh=mesh)
        strategy = SimpleNamespace(model=module)
        stand_in = SimpleNamespace(optimizers=[torch.optim.SGD(module.parameters())], strategy=strategy)
        with pytest.raises(hsv.HsvError, match=r"split over processes \(fully_shard\), which this callback cannot"):
            CompressionCallback(rule=4).on_train_start(stand_in, module)
