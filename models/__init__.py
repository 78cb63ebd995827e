"""The networks of the published tables, by name."""
from models._base import Classifier, Outputs

__all__ = ["Classifier", "Outputs"]
