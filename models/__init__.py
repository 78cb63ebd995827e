"""The networks of the published tables, by name, and the reading of their checkpoints."""
from models._base import Classifier, Outputs
from models._registry import model_dict
from models.checkpoint import Checkpoint, CheckpointError, load_model, model_name_from, read_checkpoint

__all__ = [
    "Checkpoint",
    "CheckpointError",
    "Classifier",
    "Outputs",
    "load_model",
    "model_dict",
    "model_name_from",
    "read_checkpoint",
]
