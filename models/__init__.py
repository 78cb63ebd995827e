"""The networks of the published tables, by name."""
from models._base import Classifier, Outputs
from models._registry import model_dict

__all__ = ["Classifier", "Outputs", "model_dict"]
