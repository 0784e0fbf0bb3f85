"""SGD-SaI for PyTorch: SGD with momentum whose learning rate is scaled once, at the first gradient."""

from sgd_sai.diagnostics import GSNRRecorder, convert_lr, transfer_lr
from sgd_sai.gradient_release import gradient_release
from sgd_sai.gsnr import UNLATCHED, Moments, g_snr, measure
from sgd_sai.measure_scales import measure_scales
from sgd_sai.optimizer import SGD_sai, SGDSaI
from sgd_sai.param_groups import param_groups

__version__ = "2.0.0.dev0"
__all__ = [
    "UNLATCHED",
    "GSNRRecorder",
    "Moments",
    "SGDSaI",
    "SGD_sai",
    "__version__",
    "convert_lr",
    "g_snr",
    "gradient_release",
    "measure",
    "measure_scales",
    "param_groups",
    "transfer_lr",
]
