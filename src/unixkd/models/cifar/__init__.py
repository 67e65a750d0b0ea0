"""The CIFAR family, by the parameter names of public checkpoints."""
