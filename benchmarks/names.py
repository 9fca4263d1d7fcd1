"""What variants, modes and peers are called in tables."""

from fastlstm.backends import IN_PYTORCH
from fastlstm.benchmarks.cases import find
from fastlstm.case import AttentionCase, ConvCase

MODULES = {
    "lstm": "LSTM",
    "gru": "GRU",
    "peephole_lstm": "PeepholeLSTM",
    "cifg_lstm": "CIFGLSTM",
    "cifg_peephole_lstm": "CIFGLSTM(peephole=True)",
    "conv_lstm": "ConvLSTM2d",
    "peephole_conv_lstm": 'ConvLSTM2d(peephole="channel")',
    "cifg_conv_lstm": "ConvLSTM2d(coupled=True)",
    "cifg_peephole_conv_lstm": 'ConvLSTM2d(peephole="channel", coupled=True)',
    "attention_lstm": "AttentionLSTM",
}
VECTORS = {"AVX512": "AVX-512", "avx512": "AVX-512", "avx2": "AVX2"}  # where PyTorch, or we, write them otherwise
# Peers that are ours as well: what a variant, a layout or an option costs
OURSELVES = ("lstm", "dense", "checkpoint", "compile-ours", "fp32", "high", "at-once")
MODES = {"train": "training", "infer": "inference"}
# What each is for, and its parameters per layer and direction
PURPOSES = {
    "lstm": ("the default; a drop-in for nn.LSTM", "4H(I + H + 2)"),
    "gru": ("fewer weights, one state; a drop-in for nn.GRU", "3H(I + H + 2)"),
    "peephole_lstm": ("gates that see the cell; meant for precise timing (see examples)", "4H(I + H + 2) + 3H"),
    "cifg_lstm": ("f = 1 - i: a quarter fewer weights", "3H(I + H + 2)"),
    "cifg_peephole_lstm": ("both", "3H(I + H + 2) + 2H"),
    "conv_lstm": ("images over time (also 1d, 3d): nowcasting, video", "4H(kI + kH + 2)"),
    "peephole_conv_lstm": (
        'gates that see the cell, as in the paper ("hadamard": at every pixel)',
        "4H(kI + kH + 2) + 3H",
    ),
    "cifg_conv_lstm": ("f = 1 - i", "3H(kI + kH + 2)"),
    "cifg_peephole_conv_lstm": ("both", "3H(kI + kH + 2) + 2H"),
    "attention_lstm": (
        "decoders that look back at a memory (also dot, general; with peepholes, f = 1 - i)",
        "4H(I + 2H + 2) + A(H + M + 1) + H(H + M + 1), as it is by default",
    ),
}


def called(row: dict) -> str:
    """What a row's case is called in tables: its name, or all that it says."""
    return row.get("name") or row["case"]


def peer(row: dict) -> str:
    """Who a row is measured against, in words."""
    variant, case = row["variant"], find(row["case"])
    own, cell = MODULES[variant] if variant in IN_PYTORCH else "LSTM", "Cell" if case.layout == "cell" else ""
    if isinstance(case, ConvCase):
        loop = "loop over one convolution"
    elif isinstance(case, AttentionCase):
        loop = "step of the loop" if case.layout == "step" else "loop over nn.LSTMCell and an attention"
    else:
        loop = f"loop over nn.{own}Cell" if variant in IN_PYTORCH else "loop over the equations"
    by_steps = ", step by step" if case.layout == "stream" else ""
    return {
        "torch": f"nn.{own}{cell}{by_steps}",
        "cell": loop,
        "channels-last": f"{loop}, channels_last",
        "keras": "Keras on torch",
        "joeynmt": "JoeyNMT's decoder",
        "sdpa": "nn.LSTM + scaled_dot_product_attention",
        "checkpoint": "itself with checkpoint=True",
        "compile": f"torch.compile of a {loop}",
        "compile-ours": "itself under torch.compile",
        "onnx": f"ONNX Runtime{by_steps}",
        "dense": "itself on a dense batch of as many steps",
        "lstm": f"fastlstm.{plain(row)}{cell}",
        "cut": f"nn.{own} on the pieces between resets",
        "torchrl": f"torchrl's {own}Module, by its Triton kernels",
        "fp32": "itself in fp32",
        "high": 'itself at precision "high"',
        "at-once": "itself, by two Python threads at once",
        "torch-at-once": f"nn.{own}{cell}, by two Python threads at once",
        "penalty": f"nn.{own}, in a step of WGAN-GP",
        "ensemble": f"nn.{own}, the gradients of 32 models",
        "samples": f"nn.{own}, the gradients of each sequence",
    }.get(row["against"], row["against"])


def module(row: dict) -> str:
    case, name = find(row["case"]), MODULES[row["variant"]]
    if isinstance(case, ConvCase):
        name = name.replace("2d", f"{len(case.S)}d")
    return f"fastlstm.{name}" + {"cell": "Cell", "step": ".step", "stream": " in a Stream"}.get(case.layout, "")


def processor(result: dict) -> str:
    """The processor, and of a CPU the kind of instructions, which speed depends on most."""
    m = result["machine"]
    chip = " ".join(m["chip"].replace("(R)", "").replace("Processor", "").split())
    if m.get("device", "cpu") != "cpu":
        return chip
    held = m.get("held_to")
    kind = held or m["vectors"]
    return f"{chip} ({'held to ' if held else ''}{VECTORS.get(kind, kind)})"


def plain(row: dict) -> str:
    """Our own that a row's variant is shown beside."""
    case = find(row["case"])
    return f"ConvLSTM{len(case.S)}d" if isinstance(case, ConvCase) else "LSTM"
