"""matplotlib, as all our figures use it."""

from types import ModuleType

from a3jax.errors import UserError


def pyplot() -> ModuleType:
    """matplotlib without a display. Raises `UserError` where it is not installed."""
    try:
        import matplotlib
    except ImportError:
        raise UserError("the plot is drawn with matplotlib; pip install 'a3jax[evaluate]'") from None
    matplotlib.use("svg")
    matplotlib.rcParams |= {"svg.hashsalt": "a3jax", "svg.fonttype": "none"}  # text stays text
    import matplotlib.pyplot

    return matplotlib.pyplot
