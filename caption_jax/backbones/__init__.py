"""Image backbones as a run uses them: the keys of `config.model.encoder`, the module, the weights it starts from."""
