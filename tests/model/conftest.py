"""The small models that tests of experts share with those of weights."""

from pretrained_models import imported, pretrained  # noqa: F401
