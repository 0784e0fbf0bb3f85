"""What SGD-SaI does on a user's own model: g-SNR block by block and over time, and learning rates.

blocks            one gradient: G_snr, scales, first updates, flags
learning_rate     between the forms of lr, and from AdamW's
recorder          G_snr while any optimizer trains
gains             the size of an update per unit of gradient, of four optimizers
range_test        the loss while lr rises
workload          a lab task, or the user's `module:factory`
"""

from sgd_sai.analysis.blocks import Block, Measurement, measure_blocks
from sgd_sai.analysis.learning_rate import Transfer, convert_lr, transfer_lr
from sgd_sai.analysis.recorder import GSNRRecorder

__all__ = [
    "Block",
    "GSNRRecorder",
    "Measurement",
    "Transfer",
    "convert_lr",
    "measure_blocks",
    "transfer_lr",
]
