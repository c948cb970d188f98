from types import SimpleNamespace

import pytest
import torch
import torch.distributed.fsdp
import transformers

import hsv
from hsv_torch import Schedule
from hsv_torch.integrations.transformers import CompressionCallback
from hsv_torch.third_party import transformers as _adapters  # noqa: F401  (MambaMixer can be cut)
from tests.hsv_torch.processes import group_of_one

pytestmark = pytest.mark.filterwarnings("ignore")  # the Trainer's advice

SEQUENCES = torch.randint(9, (32, 12), generator=torch.Generator().manual_seed(0))


def model():
    torch.manual_seed(0)
    return transformers.MambaForCausalLM(transformers.MambaConfig(vocab_size=9, hidden_size=8, state_size=6, num_hidden_layers=2))  # fmt: skip


def make(folder, trained, steps=8, **options):
    options = {"rule": 3, "schedule": Schedule(8, at=(4,)), "calibration": SEQUENCES[:8], **options}
    callback = CompressionCallback(**options)
    args = transformers.TrainingArguments(folder, max_steps=steps, per_device_train_batch_size=4, save_steps=2, logging_steps=2, report_to=[], use_cpu=True, seed=0, disable_tqdm=True)  # fmt: skip
    data = [{"input_ids": s, "labels": s} for s in SEQUENCES]
    return transformers.Trainer(trained, args, train_dataset=data, callbacks=[callback]), callback


def sizes(trained):
    return [layer.mixer.ssm_state_size for layer in trained.backbone.layers]


def test_the_model_shrinks_and_a_resumed_run_ends_alike(tmp_path):
    whole = model()
    trainer, callback = make(tmp_path / "whole", whole)
    trainer.train()
    assert sizes(whole) == [3, 3]
    assert [event.step for event in callback.history.events] == [4]
    assert any("states/backbone.layers.0.mixer" in entry for entry in trainer.state.log_history)

    resumed = model()
    trainer, callback = make(tmp_path / "whole", resumed)
    folder = tmp_path / "whole" / "checkpoint-6"
    callback.resume(resumed, folder)
    assert sizes(resumed) == [3, 3]
    trainer.train(resume_from_checkpoint=str(folder))
    assert callback.compressor.steps == 8
    assert callback.compressor.done
    for a, b in zip(whole.state_dict().values(), resumed.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)


def test_bad_input(tmp_path):
    _, callback = make(tmp_path, model())
    with pytest.raises(FileNotFoundError, match="saved without a CompressionCallback"):
        callback.resume(model(), tmp_path)
    with pytest.raises(hsv.HsvError, match="has not begun"):
        _ = callback.history


def test_a_model_that_is_split_is_refused():
    trained = model()
    with group_of_one() as mesh:
        torch.distributed.fsdp.fully_shard(trained, mesh=mesh)
        optimizer = torch.optim.SGD(trained.parameters())
        with pytest.raises(hsv.HsvError, match=r"split over processes \(fully_shard\), which this callback cannot"):
            CompressionCallback(rule=3).on_train_begin(
                SimpleNamespace(world_size=1), None, None, model=trained, optimizer=optimizer
            )
