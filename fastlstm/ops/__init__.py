"""One differentiable op per recurrence: forward and backward registered with `torch.library`, and the Function around them."""
