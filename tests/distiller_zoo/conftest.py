"""What the tests of the methods share."""
import pytest

from tests.support.terms import logits


@pytest.fixture
def pair():
    """A student's and a teacher's logits; the student's require gradients."""
    return logits(1).requires_grad_(), logits(2)
