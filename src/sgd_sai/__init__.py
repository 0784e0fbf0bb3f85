"""SGD-SaI for PyTorch: SGD with momentum whose learning rate is scaled once, at the first gradient."""

from sgd_sai.gsnr import UNLATCHED, Moments, g_snr, measure
from sgd_sai.optimizer import SGD_sai, SGDSaI

__version__ = "2.0.0.dev0"
__all__ = ["UNLATCHED", "Moments", "SGDSaI", "SGD_sai", "__version__", "g_snr", "measure"]
