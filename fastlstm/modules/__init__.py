"""The `nn.Module`s."""
