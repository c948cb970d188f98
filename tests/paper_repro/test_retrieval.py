import pytest
import torch

import hsv
import hsv_torch
from paper_repro.retrieval import RetrievalModel


def make(**values):
    torch.manual_seed(0)
    settings = {"layer": "lru", "d_model": 6, "n_states": 10, "n_blocks": 2, "norm": "batch", "vocabulary": 12}
    config = hsv_torch.SequenceModelConfig(**{**settings, "head": "classification", "n_outputs": 2, **values})
    return RetrievalModel(config)


def documents(count=5, length=20):
    random = torch.Generator().manual_seed(1)
    tokens = torch.randint(1, 12, (count, 2, length), generator=random)
    return tokens, torch.randint(1, length + 1, (count, 2), generator=random)


def test_both_documents_go_through_the_same_encoder():
    model = make().eval()
    tokens, lengths = documents()
    a, b = (model.encoder(tokens[:, k], lengths[:, k]) for k in (0, 1))
    hidden = torch.nn.functional.gelu(model.hidden(torch.cat([a, b, a * b, a - b], dim=-1)))
    torch.testing.assert_close(model(tokens, lengths), model.head(hidden))
    same = tokens.clone()
    same[:, 1] = same[:, 0]
    codes = model.encoder(same.flatten(0, 1)).unflatten(0, (-1, 2))
    torch.testing.assert_close(codes[:, 0], codes[:, 1])


def test_padding_has_no_influence():
    tokens, lengths = documents()
    other = tokens.clone()
    other[torch.arange(20) >= lengths[..., None]] = 3
    for model in (make().eval(), make(dropout=0.0).train()):
        torch.testing.assert_close(model(tokens, lengths), model(other, lengths))


def test_it_is_cut_like_any_model():
    model = make().eval()
    tokens, lengths = documents()
    assert list(hsv_torch.compressible_layers(model)) == ["encoder.blocks.0.layer", "encoder.blocks.1.layer"]
    before = model(tokens, lengths)
    hsv_torch.compress_(model, hsv.Order(4))
    assert model.n_states == (4, 4)
    after = model(tokens, lengths)
    assert after.shape == before.shape
    assert not torch.equal(after, before)


def test_what_does_not_fit_is_named():
    model = make()
    tokens, lengths = documents()
    with pytest.raises(hsv.ShapeError, match=r"\(batch, 2, length\), two documents a sample, got \(5, 20\)"):
        model(tokens[:, 0])
    with pytest.raises(hsv.ShapeError, match=r"`lengths` must be \(5, 2\), one a document, got \(5,\)"):
        model(tokens, lengths[:, 0])
    with pytest.raises(hsv.HsvError, match="`head` must be 'classification', got 'language_model'"):
        make(head="language_model")
