"""The model of a run: `hsv_torch.SequenceModel` with the values of the configuration, or a pair of them where documents are compared."""

from __future__ import annotations

from typing import TypeAlias

import hsv
import hsv_torch
from paper_repro.configuration import KEYS_OF_LRU, RunConfig
from paper_repro.errors import ConfigurationError
from paper_repro.retrieval import DOCUMENTS, RetrievalModel
from paper_repro.sequences import TaskShape

Model: TypeAlias = hsv_torch.SequenceModel | RetrievalModel


def make_model_config(config: RunConfig, shape: TaskShape) -> hsv_torch.SequenceModelConfig:
    """Return the configuration of the model for a task of `shape`.

    Raises
    ------
    ConfigurationError
        If the layer has no such option, or values do not go together.
    """
    options = dict(config.layer_options)
    if config.layer == "lru":
        options = {key: getattr(config, key) for key in KEYS_OF_LRU} | options
    try:
        return hsv_torch.SequenceModelConfig(
            layer=config.layer,
            layer_options=options,
            d_model=config.d_model,
            n_states=config.n_states,
            n_blocks=config.n_blocks,
            head=shape.head,
            n_inputs=shape.n_inputs,
            vocabulary=shape.vocabulary,
            n_outputs=shape.n_outputs,
            norm=config.norm,
            final_norm=config.final_norm,
            dropout=config.dropout,
            dropout_mask=config.dropout_mask,
            pooling=config.pooling,
            bidirectional=config.bidirectional,
        )
    except hsv.HsvError as error:
        raise ConfigurationError(f"the model: {error}") from error


def make_model(config: RunConfig, shape: TaskShape) -> Model:
    """Return a new model for a task of `shape`.

    Raises
    ------
    ConfigurationError
        If the layer refuses its options.
    """
    model_config = make_model_config(config, shape)
    kind = RetrievalModel if shape.documents == DOCUMENTS else hsv_torch.SequenceModel
    try:
        return kind(model_config)
    except (hsv.HsvError, TypeError) as error:
        raise ConfigurationError(f"key 'layer_options': {error}") from error
