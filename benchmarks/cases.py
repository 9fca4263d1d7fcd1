"""The cases that are measured: what people train, read off the defaults of the libraries that build `nn.LSTM` for them."""

from itertools import product

from fastlstm.backends import ATTENTION, CONVOLUTIONAL, VARIANTS
from fastlstm.case import Case, parse

KINDS = VARIANTS | CONVOLUTIONAL | ATTENTION
# A name's case, of every variant that takes it, and what it stands for
OF_CPUS = {
    "darts": ("T24 B32 I8 H25", "forecasting, tiny"),
    "deepar": ("T100 B32 I40 H40 L2", "forecasting"),
    "forecast": ("T100 B128 I16 H128 L2", "forecasting, windows"),
    "hydrology": ("T365 B256 I32 H128", "daily rainfall-runoff, one year"),
    "ppo": ("T128 B16 I128 H256", "reinforcement learning"),
    "ppo-resets": ("T128 B16 I128 H256 resets:0.03", "the same, 3% resets"),
    "control-resets": ("T128 B16 I8 H64 resets:0.03", "control, a small policy, 3% resets"),
    "atari": ("T128 B8 I512 H128", "reinforcement learning"),
    "tagger": ("T80 B32 I300 H256 bi packed:20-80", "tagging, PackedSequence"),
    "tagger-lengths": ("T80 B32 I300 H256 bi lengths:20-80", "tagging, padded batch"),
    "codec": ("T150 B8 I512 H512 L2", "audio"),
    "lm": ("T70 B40 I400 H1152", "language model"),
    "translate": ("T50 B32 I1024 H1024", "sequence to sequence"),
    "square": ("T100 B64 I512 H512", "the classic benchmark"),
    "stream": ("T1 B1 I256 H256", "one step at a time"),
    "long": ("T4000 B4 I64 H64", "long sequences"),
    "packed": ("T128 B32 I128 H256 packed:64-128", "packed input, one direction"),
    "proj": ("T100 B32 I80 H512 P256", "speech, projected"),
    "control": ("T100 B1 I64 H64 stream", "robots, a step at a time, by a stream"),
    "audio": ("T100 B1 I128 H128 stream", "audio, a step at a time, by a stream"),
    "cell-1": ("T1 B1 I256 H256 cell", "a cell, one row"),
    "cell-16": ("T1 B16 I256 H256 cell", "a cell, a small batch"),
    "cell-64": ("T1 B64 I256 H256 cell", "a cell, a batch"),
    "cell-256": ("T1 B256 I256 H256 cell", "a cell, a large batch"),
}
OF_IMAGES = {
    "radar": ("T10 B4 I16 H64 L2 S32x32 k3", "nowcasting"),
    "video": ("T10 B4 I16 H128 S16x16 k5", "video prediction"),
    "deep-radar": ("T10 B4 I16 H128 L4 S16x16 k5", "the benchmark of spatiotemporal papers"),
    "frame": ("T1 B1 I5 H32 S96x64 k3", "event cameras, one frame at a time"),
    "radar-step": ("T1 B1 I16 H64 L2 S32x32 k3", "nowcasting, one frame at a time"),
    "thermal": ("T24 B8 I1 H8 S24x32 k3", "low-resolution sensors, few channels"),
    "volume": ("T8 B1 I1 H16 S16x32x32 k3", "3d scans over time"),
}
OF_MEMORIES = {
    "decode": ("T30 B32 I256 H256 S50 M256", "translation decoder"),
    "decode-dot": ("T30 B32 I256 H256 S50 M256 dot", "the same, scores of products"),
    "decode-unfed": ("T30 B32 I256 H256 S50 M256 dot feed:None", "the same, nothing fed"),
    "long-memory": ("T60 B8 I256 H256 S400 M256", "speech, summaries"),
    "pronounce": ("T10 B64 I64 H128 S12 M256 memory:4-12", "spelling to phonemes, dates"),
    "bilingual": ("T30 B64 I512 H512 L2 S30 M1024 general memory:8-30", "translation, a bidirectional encoder"),
    "decode-step": ("T1 B32 I256 H256 S50 M256 step", "one step at a time, a batch or beams"),
    "decode-step-1": ("T1 B1 I256 H256 S50 M256 step", "one step at a time, greedy"),
}
# A GPU takes more to be busy. Its own cases are named after their sizes; T is 512
OF_GPUS = {
    f"b{B}-h{H}": (f"T512 B{B} I{H} H{H}", "the grid") for B, H in product((16, 64, 128), (256, 512, 768, 1024))
} | {
    "published": ("T1024 B16 I768 H768", "what others have published"),
    "b64-h512-packed": ("T512 B64 I512 H512 packed:256-512", "packed input"),
    "b64-h512-resets": ("T512 B64 I512 H512 resets:0.03", "3% resets"),
    "rollouts": ("T128 B128 I32 H256 resets:0.03 zero_state", "TorchRL's own benchmark"),
    "b1-h128-t1": ("T1 B1 I128 H128", "one step at a time"),
}
CPU_CASES, CONV_CASES, ATTENTION_CASES, GPU_CASES = [
    {name: parse(text) for name, (text, _) in table.items()} for table in (OF_CPUS, OF_IMAGES, OF_MEMORIES, OF_GPUS)
]
CASES: dict[str, Case] = CPU_CASES | CONV_CASES | ATTENTION_CASES | GPU_CASES
STANDS_FOR = {name: what for name, (_, what) in (OF_CPUS | OF_IMAGES | OF_MEMORIES | OF_GPUS).items()}


def find(text: str) -> Case:
    """The case of a name, or that a line of text says. Raises CaseError."""
    return CASES[text] if text in CASES else parse(text)


def default_cases(device: str) -> dict[str, Case]:
    """Those that are measured on a device where none are named."""
    return (CPU_CASES if device == "cpu" else GPU_CASES) | CONV_CASES | ATTENTION_CASES


def main_peer(variant: str) -> str:
    """Whom a variant is measured against where nobody is named: PyTorch's module, or the loop that stands for one."""
    return "torch" if variant in VARIANTS else "cell"
