"""World2Act (arXiv 2603.10422) at a size for two CPU cores: world model, base policy, post-training; one file each."""
