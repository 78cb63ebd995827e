"""The networks of the published tables and of other libraries, by name, and the reading of their checkpoints."""
from models._base import Classifier, ModelError, Outputs
from models._registry import build, check_name, model_dict
from models.checkpoint import Checkpoint, CheckpointError, load_model, model_name_from, read_checkpoint

__all__ = [
    "Checkpoint",
    "CheckpointError",
    "Classifier",
    "ModelError",
    "Outputs",
    "build",
    "check_name",
    "load_model",
    "model_dict",
    "model_name_from",
    "read_checkpoint",
]
