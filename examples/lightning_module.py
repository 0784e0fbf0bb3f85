"""Lightning: `configure_optimizers` returns SGD-SaI and a schedule; the Trainer does the rest.

python examples/lightning_module.py
"""

import logging
import warnings

import lightning
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from sgd_sai import SGDSaI, param_groups

logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
warnings.filterwarnings("ignore", ".*does not have many workers.*")


class Digits(lightning.LightningModule):
    """A perceptron for images of 8 × 8."""

    def __init__(self) -> None:
        """One hidden layer."""
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 10))
        self.losses: list[float] = []

    def training_step(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        """The loss of a batch."""
        x, y = batch
        loss = nn.functional.cross_entropy(self.layers(x), y)
        self.losses.append(loss.item())
        return loss

    def configure_optimizers(self) -> dict[str, object]:
        """Return SGD-SaI and a schedule in which lr rises and falls once."""
        optimizer = SGDSaI(param_groups(self, weight_decay=1e-4), lr=1.0)
        steps = int(self.trainer.estimated_stepping_batches)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=2.0, total_steps=steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


torch.manual_seed(0)
images, digits = load_digits(return_X_y=True)
data = TensorDataset(torch.tensor(images).float() / 16, torch.tensor(digits))
module = Digits()
trainer = lightning.Trainer(
    max_epochs=6,
    accelerator="cpu",
    gradient_clip_val=1.0,
    logger=False,
    enable_checkpointing=False,
    enable_progress_bar=False,
    enable_model_summary=False,
)
trainer.fit(module, DataLoader(data, batch_size=64, shuffle=True))
print(f"loss {module.losses[0]:.2f} -> {sum(module.losses[-20:]) / 20:.2f}")
