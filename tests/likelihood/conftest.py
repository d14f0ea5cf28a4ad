"""The small models that tests of weights share with those of exports."""

from pretrained_models import imported, large, pretrained  # noqa: F401
