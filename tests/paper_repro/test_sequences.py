import torch

from paper_repro.sequences import NOT_ASKED, PixelScale, Sequences, TaskShape


def padded():
    inputs = torch.tensor([[1, 2, 0, 0], [3, 0, 0, 0], [1, 1, 1, 0]], dtype=torch.uint8)
    return Sequences(inputs, torch.tensor([0, 1, 1], dtype=torch.int8), torch.tensor([2, 1, 3], dtype=torch.uint8))


def test_a_batch_ends_with_its_longest_sequence():
    batch = padded().batch(torch.tensor([1, 0]))
    assert batch.inputs.tolist() == [[3, 0], [1, 2]]
    assert batch.lengths.tolist() == [1, 2]
    assert batch.labels.tolist() == [1, 0]
    assert {part.dtype for part in batch} == {torch.int64}
    assert len(batch.arguments) == 2


def test_batches_go_through_all_sequences_in_their_order():
    batches = list(padded().batches(2))
    assert [batch.inputs.tolist() for batch in batches] == [[[1, 2], [3, 0]], [[1, 1, 1]]]
    assert [len(batch.labels) for batch in batches] == [2, 1]


def test_labels_that_are_not_asked_for_stay_so():
    labels = torch.tensor([[NOT_ASKED, 3]], dtype=torch.int8)
    batch = Sequences(torch.zeros(1, 2, dtype=torch.uint8), labels).batch(slice(None))
    assert batch.labels.tolist() == [[NOT_ASKED, 3]]
    assert batch.lengths is None
    assert len(batch.arguments) == 1


def test_bytes_are_scaled_a_channel():
    pixels = torch.tensor([[[0, 255], [51, 102]]], dtype=torch.uint8)
    plain = Sequences(pixels, torch.zeros(1), pixels=PixelScale()).batch(slice(None)).inputs
    torch.testing.assert_close(plain, torch.tensor([[[0, 1], [0.2, 0.4]]]))
    scaled = Sequences(pixels, torch.zeros(1), pixels=PixelScale((0.5, 0.2), (0.5, 2.0))).batch(slice(None)).inputs
    torch.testing.assert_close(scaled, torch.tensor([[[-1, 0.4], [-0.6, 0.1]]]))


def test_calibration_hands_lengths_over_by_name():
    parts = padded().calibration(torch.tensor([2, 0, 1]), 2)
    assert [set(part) for part in parts] == [{"x", "lengths"}] * 2
    assert parts[0]["x"].tolist() == [[1, 1, 1], [1, 2, 0]]
    assert parts[1]["lengths"].tolist() == [1]
    real = Sequences(torch.rand(3, 4, 1), torch.zeros(3))
    assert [part.shape for part in real.calibration(torch.tensor([2, 0, 1]), 2)] == [(2, 4, 1), (1, 4, 1)]


def test_memory_is_counted():
    assert padded().n_bytes == 12 + 3 + 3


def test_a_task_has_one_document_unless_it_says_otherwise():
    assert TaskShape(n_outputs=2).documents == 1
