"""The study of cuts in selective layers: which method keeps what the layer does, early and late, before and after training on."""
