"""RepWAM at a size for two CPU cores: tokenizer, latent actions, pretraining, adaptation; one file a stage."""
