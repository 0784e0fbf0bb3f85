"""Measurements of a training as it is, with torch alone: g-SNR of every block, and learning rates.

measurement       one gradient: G_snr, scales and first updates of every block, flags
learning_rate     between the forms of lr, and from AdamW's
recorder          G_snr while any optimizer trains
"""

from sgd_sai.diagnostics.learning_rate import Transfer, convert_lr, transfer_lr
from sgd_sai.diagnostics.measurement import BlockMeasurement, Measurement, measure_blocks
from sgd_sai.diagnostics.recorder import GSNRRecorder

__all__ = [
    "BlockMeasurement",
    "GSNRRecorder",
    "Measurement",
    "Transfer",
    "convert_lr",
    "measure_blocks",
    "transfer_lr",
]
